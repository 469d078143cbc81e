"""A weight as a scheme stores it, whatever the scheme: numbers on demand, and blocks of ggml where these hold it.

Numbers are F32: integers times scales that are widened first, so that a product is rounded once. Libraries calculate
in the type of the scales, which is F16 or BF16 often, and round to that once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile
from converter.quant.sources import blocks
from converter.tensors.dtypes import BF16, DTYPES, DType
from converter.tensors.tensor import Rows

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]


class Kept(NamedTuple):
    """A type of ggml that holds a weight as it is stored.

    `read(start, stop)` gives rows of it and how many of their scales were rounded. `loss` says what is lost in words,
    "" where nothing is but a scale that F16 does not hold.
    """

    dtype: DType
    read: Callable[[int, int], tuple[Rows, int]]
    loss: str = ""


class Stored(Protocol):
    """A weight of `shape`, (rows, row) or with more axes before; `work` is the memory that a row needs on its way."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def work(self) -> int: ...
    def values(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) as F32 (stop - start, row)."""
        ...

    def kept(self) -> Kept | None:
        """The type of ggml that holds it best, if one does. May read what is small, zero points and the like."""
        ...

    def holds(self) -> DType | None:
        """A type of 16 bits that holds every number, whatever the model calculates in."""
        ...


class Group(NamedTuple):
    """Rows of codes: number = scale * (code - zero) + least, the last three by groups of columns.

    codes: (n, row); scale, zero, least: (n, groups), the last two or None.
    """

    codes: Integers
    scale: Floats
    zero: NDArray[Any] | None = None
    least: Floats | None = None


def _check(where: str, scale: Floats, numbers: Callable[[NDArray[np.bool_]], NDArray[Any]]) -> None:
    """Refuse scales that leave nothing of a weight; `numbers` are the codes, without zero points, of groups chosen."""
    if not np.isfinite(scale).all():
        raise CorruptFile(f"{where}: a scale is infinite or no number (NaN)")
    if (none := scale == 0).any() and numbers(none).any():
        raise CorruptFile(f"{where}: a scale is zero, and its codes are not")


@dataclass(frozen=True)
class Affine:
    """Integers in groups of columns that share a scale.

    Attributes:
        where: file and module, for messages.
        shape: of the weight.
        size: columns of a group; the last may be shorter.
        codes: lowest and highest code there can be.
        read: rows [start, stop).
        zeros: the lowest and the highest zero point that are there, read when asked; None where there are none.
        least: whether groups have a least number.
        order: the group of each column, where groups are not in the order of columns.
        real: zero points are real numbers, not integers.
        halves: whether scales may well be what F16 holds; those that are not after all are counted.
    """

    where: str
    shape: tuple[int, ...]
    size: int
    codes: tuple[int, int]
    read: Callable[[int, int], Group]
    zeros: Callable[[], tuple[int, int]] | None = None
    least: bool = False
    order: NDArray[np.int64] | None = None
    real: bool = False
    halves: Callable[[], bool] = lambda: True

    @property
    def work(self) -> int:
        return 16 * self.shape[-1]

    def _spread(self, groups: NDArray[Any]) -> NDArray[Any]:
        """(n, groups) as (n, row)."""
        if self.order is not None:
            return groups[:, self.order]
        return np.repeat(groups, self.size, axis=1)[:, : self.shape[-1]]

    def values(self, start: int, stop: int) -> Floats:
        group = self.read(start, stop)
        numbers = group.codes.astype(np.float32)
        if group.zero is not None:
            numbers -= self._spread(group.zero)
        _check(self.where, group.scale, lambda none: numbers[self._spread(none)])
        with np.errstate(all="ignore"):  # what is too large is counted where it is encoded
            numbers *= self._spread(group.scale)
            if group.least is not None:
                numbers += self._spread(group.least)
        return numbers

    def kept(self) -> Kept | None:
        row = self.shape[-1]
        columns = self.order if self.order is not None else np.arange(row) // self.size
        if row % blocks.SIZE or self.real:
            return None
        first = columns[:: blocks.SIZE]
        if (columns.reshape(-1, blocks.SIZE) != first[:, None]).any():
            return None
        zeros = self.zeros() if self.zeros is not None else (0, 0)
        name = blocks.smallest(self.codes[0] - zeros[1], self.codes[1] - zeros[0], least=self.least)
        if name is None or not self.halves():
            return None

        def read(start: int, stop: int) -> tuple[Rows, int]:
            group = self.read(start, stop)
            codes = group.codes.astype(np.int16)
            if group.zero is not None:
                codes -= self._spread(group.zero).astype(np.int16)
            _check(self.where, group.scale, lambda none: codes[self._spread(none)])
            least = None if group.least is None else group.least[:, first]
            return blocks.packed(name, codes, group.scale[:, first], least)

        return Kept(DTYPES[name], read)

    def holds(self) -> DType | None:
        return None


@dataclass(frozen=True)
class Scaled:
    """Numbers of a small floating type, each times the scale of its place.

    Attributes:
        where: file and module, for messages.
        shape: of the weight.
        read: rows [start, stop) as F32 (n, row), unscaled.
        scales: the scales of rows [start, stop) as F32 (n, groups).
        size: columns that share a scale; the last may be fewer.
        powers: whether all scales are powers of two, asked when needed: then BF16 holds every product.
    """

    where: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Floats]
    scales: Callable[[int, int], Floats]
    size: int
    powers: Callable[[], bool] = lambda: False

    @property
    def work(self) -> int:
        return 12 * self.shape[-1]

    def values(self, start: int, stop: int) -> Floats:
        numbers, scale = self.read(start, stop), self.scales(start, stop)
        row = self.shape[-1]
        if np.isnan(numbers).any():
            raise CorruptFile(f"{self.where}: holds codes that are no numbers (NaN)")
        _check(self.where, scale, lambda none: numbers[np.repeat(none, self.size, axis=1)[:, :row]])
        with np.errstate(all="ignore"):
            if row % self.size == 0:
                parts = numbers.reshape(len(numbers), -1, self.size)
                parts *= scale[:, :, None]
            else:
                numbers *= np.repeat(scale, self.size, axis=1)[:, :row]
        return numbers

    def kept(self) -> Kept | None:
        return None

    def holds(self) -> DType | None:
        return BF16 if self.powers() else None


@dataclass(frozen=True)
class Values:
    """What is neither of these: rows by a function."""

    shape: tuple[int, ...]
    read: Callable[[int, int], Floats]
    work: int

    def values(self, start: int, stop: int) -> Floats:
        return self.read(start, stop)

    def kept(self) -> Kept | None:
        return None

    def holds(self) -> DType | None:
        return None
