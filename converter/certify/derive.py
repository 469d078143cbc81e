"""Derives tensors again, by one variant after the other: a few rows first, and all where these are the same.

Memory is that of slabs; the result does not depend on the threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from converter.certify.results import Differing
from converter.certify.variants import Variant
from converter.errors import ConverterError, CorruptFile, QuantizationError
from converter.storage import slabs
from converter.storage.slabs import ProgressCallback, Slab
from converter.tensors import kernels
from converter.tensors.dtypes import DType
from converter.tensors.encode import Alike, Watch, encoded
from converter.tensors.scales import KINDS, SCALES
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor, Rows
from converter.verify.pairing import Pair

#: Rows at the beginning, in the middle and at the end of a tensor that tell a variant that does not fit.
SAMPLE_ROWS = 8
#: Blocks that differ of which it is measured how, in a slab: enough to say what they look like.
LOOKED_AT = 1024


@dataclass(frozen=True)
class Derived:
    """A tensor by one variant; `reason` says why it cannot be made by it, or cannot be read."""

    pair: Pair
    variant: Variant
    differing: Differing
    reason: str = ""

    @property
    def same(self) -> bool:
        return not self.differing.count and not self.reason

    @property
    def off(self) -> float:
        """The share of blocks that are not what the variant makes."""
        return 1.0 if self.reason else self.differing.share


@dataclass
class _Task:
    """A tensor to compare by one variant, and what was seen of it, by first row."""

    pair: Pair
    variant: Variant
    made: LazyTensor | None
    reason: str = ""
    parts: dict[int, Differing] = field(default_factory=dict)

    def derived(self) -> Derived:
        together = _together([self.parts[at] for at in sorted(self.parts)])
        return Derived(self.pair, self.variant, together, self.reason)


Planned = Callable[[Variant], Mapping[str, Pair]]


def derive(
    tried: Iterable[Variant],
    planned: Planned,
    *,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, Derived]:
    """Every tensor by the one variant that gives the bytes of all, or else those of most.

    A tool goes one way with a whole file. So a tensor that another way would give is not proven by it.

    Args:
        tried: the variants, in their order.
        planned: the pairs of a variant, by name; asked for only as long as a tensor is left.

    Raises:
        ConverterError: what a source raised while it was read.
        Cancelled: `progress` returned False.
    """
    best: dict[str, Derived] = {}
    sampled: list[tuple[Variant, float]] = []
    for variant in tried:
        pairs = planned(variant)
        left = [name for name in pairs if name not in best or not best[name].same]
        glance = _compared([_task(pairs[name], variant) for name in left], threads, None, sample=True)
        if best:
            best = _better(best, pairs, variant, [each.pair.name for each in glance if each.same], threads, progress)
        elif all(each.same for each in glance):
            best = _whole(pairs, variant, pairs, threads, progress)
        else:
            sampled.append((variant, sum(each.off for each in glance)))
        if best and all(each.same for each in best.values()):
            return best
    if not best and sampled:
        nearest = min(sampled, key=lambda each: each[1])[0]
        best = _whole(planned(nearest), nearest, planned(nearest), threads, progress)
    return best


def _whole(
    pairs: Mapping[str, Pair],
    variant: Variant,
    names: Iterable[str],
    threads: int | None,
    progress: ProgressCallback | None,
) -> dict[str, Derived]:
    found = _compared([_task(pairs[name], variant) for name in names], threads, progress)
    return {each.pair.name: each for each in found}


def _better(
    best: dict[str, Derived],
    pairs: Mapping[str, Pair],
    variant: Variant,
    promising: Sequence[str],
    threads: int | None,
    progress: ProgressCallback | None,
) -> dict[str, Derived]:
    """Another variant for all tensors, if it gives some of those that the best does not, and more of all."""
    gained = _whole(pairs, variant, promising, threads, None)
    if not any(each.same for each in gained.values()):
        return best
    other = gained | _whole(pairs, variant, [name for name in pairs if name not in gained], threads, progress)
    n_same = [sum(each.same for each in found.values()) for found in (other, best)]
    return other if n_same[0] > n_same[1] else best


def _task(pair: Pair, variant: Variant) -> _Task:
    dtype, weights = pair.candidate.info.dtype, pair.weights
    if weights is None and dtype.floating and kernels.needs_importance(dtype):
        weights = Alike(pair.candidate.info.row)
    try:
        return _Task(pair, variant, encoded(pair.rounded, dtype, Watch(), weights, pair.effort))
    except QuantizationError as error:
        return _Task(pair, variant, None, str(error).partition("\n")[0])


def _compared(
    tasks: Sequence[_Task], threads: int | None, progress: ProgressCallback | None, *, sample: bool = False
) -> list[Derived]:
    able = [task for task in tasks if task.made is not None]
    jobs = [_job(task) for task in able]
    pieces = [Slab(at, *rows) for at, job in enumerate(jobs) for rows in _sample(job)] if sample else None
    slabs.run(jobs, threads, progress, slabs=pieces)
    return [task.derived() for task in tasks]


def _job(task: _Task) -> slabs.Job:
    pair, made = task.pair, task.made
    assert made is not None

    def work(start: int, stop: int) -> None:
        try:
            task.parts[start] = _compare(pair, made, start, stop)
        except CorruptFile as error:  # of the target: what the source raises ends the run when it is checked
            task.reason = str(error).partition("\n")[0]
        except ConverterError as error:
            if not isinstance(error, QuantizationError):
                raise
            task.reason = str(error).partition("\n")[0]

    row_work = 8 * pair.candidate.info.row + made.row_work + pair.candidate.row_work
    return slabs.Job((pair.candidate, made), work, row_work)


def _sample(job: slabs.Job) -> Iterator[tuple[int, int]]:
    """Row ranges at the beginning, in the middle and at the end; all rows where that is as little."""
    n_rows, grain = job.tensors[0].info.n_rows, math.lcm(*(max(1, tensor.grain) for tensor in job.tensors))
    step = -(-SAMPLE_ROWS // grain) * grain
    if not job.nbytes:
        return
    starts = {0, n_rows // 2 // grain * grain, max(0, n_rows - step) // grain * grain}
    taken = 0
    for start in sorted(starts):
        stop = min(n_rows, start + step)
        if stop > taken:
            yield max(start, taken), stop
        taken = stop


def _compare(pair: Pair, made: LazyTensor, start: int, stop: int) -> Differing:
    """Rows as they are stored against those that the variant makes."""
    info = pair.candidate.info
    stored, own = (np.ascontiguousarray(each.rows(start, stop)) for each in (pair.candidate, made))
    a, b = info.dtype.blocks(own), info.dtype.blocks(stored)
    if np.array_equal(a, b):
        return Differing(len(b))
    at = np.flatnonzero((a != b).any(axis=1))
    first = start * info.row + info.dtype.block_of(info.row) * int(at[0])
    found = Differing(len(b), len(at), first)
    if not info.dtype.floating:
        return replace(found, values=len(at))
    return _looked_at(found, pair, (start, stop), a, b, at[:LOOKED_AT])


def _looked_at(
    found: Differing, pair: Pair, rows: tuple[int, int], own: Rows, stored: Rows, at: NDArray[np.intp]
) -> Differing:
    """What the blocks at `at` look like."""
    dtype = pair.candidate.info.dtype
    before, after = (kernels.decode(np.ascontiguousarray(each[at]), dtype) for each in (own, stored))
    numbers = values(pair.rounded, *rows).reshape(-1, before.shape[1])[at]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        change = np.abs(after - before).max(axis=1) / np.abs(before).max(axis=1)
        errors = [np.square(each - numbers, dtype=np.float64).sum(axis=1) for each in (before, after)]
        worse = errors[1] / errors[0]
    return replace(
        found,
        values=int(np.count_nonzero(before != after)),
        change=_largest(change),
        scale_steps=_scale_steps(own[at], stored[at], dtype),
        worse=_largest(worse),
    )


def _largest(numbers: NDArray[np.floating]) -> float:
    """The largest of numbers; infinite where one is none."""
    return float(numbers.max()) if len(numbers) and np.isfinite(numbers).all() else math.inf


def _scale_steps(own: Rows, stored: Rows, dtype: DType) -> int:
    """The largest difference of scales, as the whole numbers that their bits are."""
    steps = 0
    for scale in SCALES.get(dtype.name, ()):
        kind = KINDS[scale.kind][0]
        a, b = (
            np.ndarray(len(each), kind, np.ascontiguousarray(each).data, scale.offset, (each.shape[1],))
            for each in (own, stored)
        )
        larger, smaller = np.maximum(a, b), np.minimum(a, b)
        steps = max(steps, int((larger - smaller).max(initial=0)))
    return steps


def _together(parts: Sequence[Differing]) -> Differing:
    """All slabs of a tensor."""
    return Differing(
        blocks=sum(part.blocks for part in parts),
        count=sum(part.count for part in parts),
        first=min((part.first for part in parts if part.first >= 0), default=-1),
        values=sum(part.values for part in parts),
        change=max((part.change for part in parts), default=0.0),
        scale_steps=max((part.scale_steps for part in parts), default=0),
        worse=max((part.worse for part in parts), default=0.0),
    )
