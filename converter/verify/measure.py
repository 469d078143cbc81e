"""Measures pairs of tensors: slab by slab, on all processors, in bounded memory.

Of each slab the reference is read and encoded again; where that gives the stored bytes, the target is what a correct
encoder makes and only the error itself is left to measure, in large tensors on one slab in four. Where it does not, the
error of the encoder's own result on the same data is measured too: that is the bound.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile, QuantizationError
from converter.storage import slabs
from converter.storage.slabs import ProgressCallback
from converter.tensors import kernels
from converter.tensors.dtypes import DType
from converter.tensors.encode import Alike, encode_rows
from converter.tensors.kernels import NO_DIFFERENCES, Differences
from converter.tensors.streams import decoded, values
from converter.tensors.tensor import Rows
from converter.verify import bounds
from converter.verify.pairing import Pair, holds
from converter.verify.results import Block, Fidelity

Floats = NDArray[np.float32]
#: Buckets of |error|: the upper bits of a binary32, so each is at most 1/32 wide.
BUCKETS = 8192
SHIFT = 18
GROUP = 256
#: Where bytes are proven, errors are measured in the first elements of a tensor and then in one stride out of four.
ALL_MEASURED, STRIDE, EVERY = 1 << 19, 1 << 16, 4


@dataclass
class Measured:
    """What was summed up of one pair, or of one slab of it.

    Attributes:
        found: how far the numbers are from each other, over `elements` elements.
        tried: the source was encoded again, so that the bytes must be the stored ones.
        blocks, differing, first_differing: blocks compared with the encoder's, how many differ, and the element that
            the first of these begins with.
        encoder_noise: noise of the encoder's own result.
        allowed, expected: of what was not encoded again, the most noise a correct encoder may leave, and what it
            leaves of weights.
        excess, excess_at: the largest noise of a group over what the encoder's own result has there, and the group's
            first element.
        reference_zero, zero: nothing but zeros, on either side.
        histogram: of |error|, by BUCKETS; empty where nothing differs.
        unreadable: why the target's rows cannot be read; "" where they can.
    """

    pair: Pair
    found: Differences = NO_DIFFERENCES
    elements: int = 0
    tried: bool = False
    blocks: int = 0
    differing: int = 0
    first_differing: int = -1
    encoder_noise: float = 0.0
    allowed: float = 0.0
    expected: float = 0.0
    excess: float = 0.0
    excess_at: int = -1
    reference_zero: bool = True
    zero: bool = True
    histogram: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    unreadable: str = ""

    @property
    def lossless(self) -> bool:
        """Whether the target's type holds all values of the source, so that nothing may differ."""
        return holds(self.pair.candidate.info.dtype, self.pair.reference.info.dtype) and self.pair.rounded is (
            self.pair.reference
        )

    def fidelity(self) -> Fidelity:
        """The numbers of the report."""
        info, found = self.pair.candidate.info, self.found
        norm = float(np.sqrt(found.energy) * np.sqrt(found.energy_candidate))
        cosine = found.product / norm if norm else 1.0 if found.energy == found.energy_candidate else 0.0
        row, column = divmod(found.worst_at, max(1, info.row))
        group = min(GROUP, info.n_elements)
        return Fidelity(
            name=info.name,
            sources=self.pair.reference.parts or (self.pair.reference.name,),
            shape=info.shape,
            type=info.dtype.name,
            reference_type=self.pair.reference.info.dtype.name,
            elements=info.n_elements,
            exact=found.differing_values == 0,
            reproduced=self.differing == 0 if self.tried else None,
            blocks=self.blocks,
            differing=self.differing,
            max_abs=found.max_abs,
            max_rel=found.max_rel,
            measured=self.elements,
            noise=found.noise,
            energy=found.energy,
            cosine=min(1.0, max(-1.0, cosine)),
            p999=self._percentile(0.999),
            worst=Block(row, column, float(np.sqrt(found.worst / group))) if found.worst_at >= 0 else None,
            bound=self._bound(),
            nonfinite=found.nonfinite,
            reference_nonfinite=found.nonfinite_reference,
            zero=self.zero and info.n_elements > 0,
            reference_zero=self.reference_zero and info.n_elements > 0,
            bytes=info.nbytes,
            histogram=self._edges(),
        )

    def _bound(self) -> float | None:
        energy = self.found.energy
        most = self.encoder_noise if self.tried else self.allowed
        known = energy and np.isfinite(most) and (self.tried or self.allowed)
        return most / energy if known else None

    def _percentile(self, share: float) -> float:
        """Of |error|, in the groups that were counted."""
        if not self.found.differing_values or not self.histogram.any():
            return 0.0
        sums = np.cumsum(self.histogram)
        bucket = int(np.searchsorted(sums, share * float(sums[-1])))
        return min(self.found.max_abs, _edge(bucket)) if bucket else 0.0

    def _edges(self) -> tuple[tuple[float, int], ...]:
        """The histogram in at most a few hundred steps: an eighth of a power of two each."""
        if not self.histogram.size:
            return ()
        coarse = self.histogram.reshape(-1, 4).sum(axis=1)
        return tuple((_edge(4 * int(k) + 3), int(coarse[k])) for k in np.nonzero(coarse)[0])


def _edge(bucket: int) -> float:
    return float(np.array([((bucket + 1) << SHIFT) - 1], np.uint32).view(np.float32)[0])


def measure(
    pairs: Sequence[Pair], *, encode: bool = True, threads: int | None = None, progress: ProgressCallback | None = None
) -> list[Measured]:
    """Compare all pairs.

    Args:
        encode: encode the reference again, to know what a correct encoder makes of it.
        progress: called after every slab; returning False cancels.

    Raises:
        ConverterError: what a source raised while it was read.
        Cancelled: `progress` returned False.
    """
    # Of nothing there is no slab, and it is what it should be.
    results = [Measured(pair, tried=not pair.candidate.info.n_elements) for pair in pairs]
    slabs.run([_job(results, index, encode) for index in range(len(results))], threads, progress)
    return results


def _job(results: list[Measured], index: int, encode: bool) -> slabs.Job:
    pair = results[index].pair
    tensors = (pair.candidate,) if pair.rounded is pair.reference else (pair.candidate, pair.rounded)
    counts, lock = results[index], threading.Lock()

    def look(start: int, stop: int) -> Measured:
        part = _measure_rows(pair, start, stop, encode)
        if part.histogram.size:
            with lock:  # integers, which may be added in any order; to keep one array for each slab would be much
                counts.histogram = counts.histogram + part.histogram if counts.histogram.size else part.histogram
            part.histogram = counts.histogram[:0]
        return part

    def done(parts: list[Measured]) -> None:
        results[index] = _together(pair, parts, counts.histogram)

    # Read, as numbers, encoded again and those as numbers.
    row_work = 16 * pair.candidate.info.row + pair.reference.row_work + pair.candidate.row_work
    return slabs.gathering((*tensors, pair.reference), look, done, row_work)


def _together(pair: Pair, parts: Sequence[Measured], histogram: NDArray[np.uint64]) -> Measured:
    """All slabs of a pair."""
    excess = max(parts, key=lambda part: (part.excess, -part.excess_at))
    return Measured(
        pair,
        found=Differences.together([part.found for part in parts]),
        elements=sum(part.elements for part in parts),
        tried=any(part.tried for part in parts),
        blocks=sum(part.blocks for part in parts),
        differing=sum(part.differing for part in parts),
        first_differing=min((part.first_differing for part in parts if part.first_differing >= 0), default=-1),
        encoder_noise=math.fsum(part.encoder_noise for part in parts),
        allowed=math.fsum(part.allowed for part in parts),
        expected=math.fsum(part.expected for part in parts),
        excess=excess.excess,
        excess_at=excess.excess_at,
        reference_zero=all(part.reference_zero for part in parts),
        zero=all(part.zero for part in parts),
        histogram=histogram,
        unreadable=next((part.unreadable for part in parts if part.unreadable), ""),
    )


def _measure_rows(pair: Pair, start: int, stop: int, encode: bool) -> Measured:
    info, part = pair.candidate.info, Measured(pair)
    try:
        stored = np.ascontiguousarray(pair.candidate.rows(start, stop))
    except CorruptFile as error:
        part.unreadable = str(error).partition("\n")[0]
        return part
    if not info.dtype.floating or not pair.reference.info.dtype.floating:
        return _measure_plain(pair, stored, start, stop)
    reference = values(pair.reference, start, stop)
    part.tried, made = _encoded(pair, start, stop, reference, encode)
    same = made is not None and _equal(made, stored)
    part.blocks = len(info.dtype.blocks(stored))
    if same and part.tried and not _is_measured(start * info.row):
        return part
    candidate = kernels.decode(stored, info.dtype)
    _add(part, reference, candidate, start * info.row)
    part.reference_zero, part.zero = part.found.energy == 0, part.found.energy_candidate == 0
    part.encoder_noise = part.found.noise
    if made is None:
        part.allowed, part.expected = _derived(pair, reference)
    elif not same:
        _compare_bytes(part, info.dtype, made, stored, start * info.row)
        own = kernels.decode(made, info.dtype)
        part.encoder_noise = kernels.compare(reference, own).noise
        _find_excess(part, reference.reshape(-1), candidate.reshape(-1), own.reshape(-1), start * info.row)
    return part


def _derived(pair: Pair, reference: Floats) -> tuple[float, float]:
    """The most noise and the expected noise, by docs/bounds.md; with that of an intermediate file's rounding."""
    dtype, between = pair.candidate.info.dtype, pair.rounded.info.dtype
    if dtype.name not in bounds.TYPES or pair.spread:
        return 0.0, 0.0
    weighted = pair.weights is not None or not pair.explained
    most, expected = bounds.noise_bound(reference, dtype, weighted=weighted), bounds.expected_noise(reference, dtype)
    if pair.rounded is pair.reference or holds(between, pair.reference.info.dtype):
        return most, expected
    rounding = bounds.noise_bound(reference, between)
    return float((np.sqrt(most) + np.sqrt(rounding)) ** 2), expected + rounding


def _is_measured(at: int) -> bool:
    return at < ALL_MEASURED or at // STRIDE % EVERY == 0


def _equal(a: Rows, b: Rows) -> bool:
    """Whether two arrays hold the same bytes; eight at a time."""
    x, y = a.reshape(-1), b.reshape(-1)
    whole = len(x) // 8 * 8
    return np.array_equal(x[:whole].view(np.uint64), y[:whole].view(np.uint64)) and np.array_equal(x[whole:], y[whole:])


def _encoded(pair: Pair, start: int, stop: int, reference: Floats, encode: bool) -> tuple[bool, Rows | None]:
    """The bytes that a correct encoder makes of these rows, and whether they must be the stored ones."""
    info, own = pair.candidate.info, pair.reference.info.dtype
    if pair.spread and not pair.explained:
        return False, None
    if own is info.dtype and pair.rounded is pair.reference:
        return True, np.ascontiguousarray(pair.reference.rows(start, stop))
    if not encode or not kernels.encodable(info.dtype):
        return False, None
    numbers = reference if pair.rounded is pair.reference else values(pair.rounded, start, stop)
    per_matrix = max(1, info.shape[-2]) if len(info.shape) > 1 else 1
    weights = pair.weights
    if weights is None and kernels.needs_importance(info.dtype):
        weights = Alike(info.row)
    return pair.explained, encode_rows(numbers, info.dtype, weights, start, per_matrix, pair.effort)


def _measure_plain(pair: Pair, stored: Rows, start: int, stop: int) -> Measured:
    """Integers, bools and complex numbers: they are equal or they are not, unless both become real numbers."""
    info, reference = pair.candidate.info, pair.reference
    part = Measured(pair, tried=True, blocks=stored.size // info.dtype.type_size)
    raw = np.ascontiguousarray(reference.rows(start, stop))
    if reference.info.dtype is info.dtype:
        different = (raw != stored).reshape(-1, info.dtype.type_size).any(axis=1)
        part.differing = int(np.count_nonzero(different))
        part.found = Differences(differing_values=part.differing)
        part.reference_zero, part.zero = not raw.any(), not stored.any()
        return part
    try:
        decoded(reference)
        decoded(pair.candidate)
    except QuantizationError:
        part.differing = part.blocks
        part.found = Differences(differing_values=part.blocks)
        return part
    a, b = values(reference, start, stop), values(pair.candidate, start, stop)
    _add(part, a, b, start * info.row)
    part.reference_zero, part.zero = not a.any(), not b.any()
    part.differing = part.found.differing_values
    return part


def _add(part: Measured, reference: Floats, candidate: Floats, at: int) -> None:
    histogram = np.zeros(BUCKETS, np.uint64)
    part.elements = reference.size
    part.found = kernels.compare(reference, candidate, at, histogram)
    if part.found.differing_values:
        part.histogram = histogram


def _compare_bytes(part: Measured, dtype: DType, made: Rows, stored: Rows, at: int) -> None:
    different = (dtype.blocks(made) != dtype.blocks(stored)).any(axis=1)
    part.differing = int(np.count_nonzero(different))
    part.first_differing = at + dtype.block_of(dtype.row_of(stored.shape[1])) * int(np.argmax(different))


def _find_excess(part: Measured, reference: Floats, candidate: Floats, own: Floats, at: int) -> None:
    """How much worse than the encoder's own result the worst group is; a quarter of the mean noise is no matter."""
    mine, theirs = _group_noise(reference, own), _group_noise(reference, candidate)
    floor = max(float(mine.mean()) / 4, 1e-30)
    ratio = theirs / np.maximum(mine, floor)
    worst = int(np.argmax(ratio))
    part.excess, part.excess_at = float(ratio[worst]), at + GROUP * worst


def _group_noise(a: Floats, b: Floats) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.nan_to_num(np.square(a - b, dtype=np.float64), nan=0.0, posinf=0.0)
    padded = np.pad(squares, (0, -len(squares) % GROUP))
    sums: NDArray[np.float64] = padded.reshape(-1, GROUP).sum(axis=1)
    return sums
