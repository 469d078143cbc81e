"""Weights to codes: what a scheme that folders use is, and the tensors that it makes of a weight, still unread."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.tensors.bound import EXACT, Bound, Share, within
from converter.tensors.dtypes import DTYPES
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

Floats = NDArray[np.float32]
Array = NDArray[Any]
#: By what the ends of a group are multiplied before its scale follows from them: the first that gives the least error.
Ratios = tuple[float, ...]
NEAREST: Ratios = (1.0,)
#: Beside that for even steps, of less than eight bits: largest numbers are few; what cutting them loses, others gain.
CLIPPED: Ratios = tuple(1 - step / 50 for step in range(1, 16))
#: Bytes of memory that a number needs on its way: itself, its code, what that makes, and the square of the difference.
_WORK = 24


@dataclass(frozen=True)
class Target:
    """A scheme that a folder's weights can be packed by.

    Attributes:
        name: for people.
        row: what the length of a row must be a multiple of.
        pack: the tensors that a weight becomes; it is given the weight, its module's name, and ratios.
        config: what config.json says, given the names of the modules that are left as they are.
        bound: how far a number may be from the weight's.
        own: settings of a single weight whose blocks are taken over as they are; None where it is packed anew.
        embeddings: whether the token embedding and the head are packed, too.
        keys: keys of config.json that hold the same.
        searched: ratios beside 1 that are tried where scales are to leave the least squared error; none where the
            scheme has nothing to gain.
    """

    name: str
    row: int
    pack: Callable[[LazyTensor, str, Ratios], tuple[LazyTensor, ...]]
    config: Callable[[tuple[str, ...]], Mapping[str, Any]]
    bound: Bound
    own: Callable[[LazyTensor], Mapping[str, Any] | None] = lambda weight: None
    embeddings: bool = False
    keys: tuple[str, ...] = ("quantization_config",)
    searched: Ratios = ()

    def bound_of(self, weight: LazyTensor, ratios: Ratios = NEAREST) -> Bound:
        """How far numbers of its codes may be from this weight's; by ratios, steps are wider or ends are cut."""
        if self.own(weight) is not None:
            return EXACT
        if ratios == NEAREST:
            return self.bound
        wider = (Share(share * max(ratios), of) for share, of in self.bound.shares)
        return Bound(tuple(wider)) + within((1 - min(ratios), "the largest of its group"))


@dataclass(frozen=True)
class Grid:
    """Where the numbers of a group can be, by its scales.

    Attributes:
        size: numbers of a group.
        scales: of groups (n, groups, size) whose ends are multiplied by a ratio: (n, groups, k).
        codes: the nearest codes of groups for scales, (n, groups, size).
        numbers: what codes and scales make of them again, F32.
    """

    size: int
    scales: Callable[[Floats, np.float32], Array]
    codes: Callable[[Floats, Array], Array]
    numbers: Callable[[Array, Array], Floats]

    def best(self, rows: Floats, ratios: Ratios) -> Array:
        """The scales of rows (n, row) that leave the least squared error, of those that ratios give."""
        groups = self.groups(rows)
        found = self.scales(groups, np.float32(ratios[0]))
        if len(ratios) == 1:
            return found
        least = self._error(groups, found)
        for ratio in ratios[1:]:
            other = self.scales(groups, np.float32(ratio))
            error = self._error(groups, other)
            found, least = np.where(error < least, other, found), np.minimum(error, least)
        return found

    def encoded(self, rows: Floats, ratios: Ratios) -> Array:
        """The codes of rows, (n, row)."""
        return self.codes(self.groups(rows), self.best(rows, ratios)).reshape(rows.shape)

    def groups(self, rows: Floats) -> Floats:
        return rows.reshape(len(rows), -1, self.size)

    def _error(self, groups: Floats, scales: Array) -> Floats:
        """Sums of squares, (n, groups, 1): in pairs, so that no processor adds in an order of its own."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares: Floats = np.square(groups - self.numbers(self.codes(groups, scales), scales))
            while (half := squares.shape[-1] // 2) > 0:
                squares = squares[..., :half] + squares[..., half:]
        return squares


def computed(
    source: LazyTensor,
    name: str,
    dtype: str,
    row: int,
    make: Callable[[Any], Array],
    *,
    tall: int = 1,
    per: int = 1,
    stored: bool = False,
) -> LazyTensor:
    """A tensor that is calculated from rows of a weight when it is asked for.

    Args:
        source: the weight, (rows, row).
        name, dtype, row: of the result.
        make: F32 (n, row of the source) to (n / per, row), given whole blocks of rows.
        tall: rows of the source that are calculated together, a multiple of `per`.
        per: rows of the source that become one of the result.
        stored: `make` is given the rows as they are stored, uint8 (n, bytes of a row).
    """
    n_source = source.info.shape[0]
    n_rows = -(-n_source // per)
    info = TensorInfo(name, (n_rows, row), DTYPES[dtype])

    def read(start: int, stop: int) -> Rows:
        first = start * per // tall * tall
        last = min(n_source, -(-stop * per // tall) * tall)
        rows = source.rows(first, last) if stored else values(source, first, last)
        made = np.ascontiguousarray(make(rows), info.dtype.numpy)
        data = made.reshape(len(made), -1).view(np.uint8)
        return data[start - first // per : stop - first // per]

    work = per * (source.row_work + _WORK * source.info.row) + info.row_nbytes
    grain = math.lcm(tall, source.grain) // per
    return source.derived(info, read, parts=source.parts or (source.name,), work_nbytes=work, grain=max(1, grain))


def constant(source: LazyTensor, name: str, array: Array) -> LazyTensor:
    """A small tensor that is the same whatever the weight holds."""
    found = next(dtype for dtype in DTYPES.values() if dtype.numpy == array.dtype)
    info = TensorInfo(name, array.shape, found)
    data = np.ascontiguousarray(array).view(np.uint8).reshape(info.n_rows, info.row_nbytes)
    return source.derived(info, lambda start, stop: data[start:stop], parts=source.parts or (source.name,))


def late(source: LazyTensor, name: str, dtype: str, number: Callable[[], np.float32]) -> LazyTensor:
    """One number that is known when the weight has been read."""
    info = TensorInfo(name, (1,), DTYPES[dtype])

    def read(start: int, stop: int) -> Rows:
        return np.array([number()], info.dtype.numpy).view(np.uint8).reshape(1, -1)[start:stop]

    return source.derived(info, read, parts=source.parts or (source.name,))


def stream(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes (n, row) as one little-endian stream of bits to a row, lowest first: bytes (n, row * bits / 8)."""
    if bits == 8:
        return codes
    if 8 % bits == 0:
        parts = codes.reshape(len(codes), -1, 8 // bits)
        made = np.zeros(parts.shape[:2], np.uint8)
        for place in range(8 // bits):
            made |= parts[..., place] << np.uint8(place * bits)
        return made
    single = codes[..., None] >> np.arange(bits, dtype=np.uint8) & np.uint8(1)
    return np.packbits(single.reshape(len(codes), -1), axis=1, bitorder="little")


def largest(groups: Floats) -> Floats:
    """The largest magnitude of each group (..., size), with that axis kept."""
    found: Floats = np.abs(groups).max(axis=-1, keepdims=True)
    return found
