"""What adapters do to a weight, by rows: each change takes rows in F32 to rows in F32, in PEFT's order of operations.

Source: `merge` and `get_delta_weight` of the layers in PEFT 0.21's `tuners`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from converter.adapters.factors import Floats, Matrix, Pair
from converter.storage.slabs import row_ranges
from converter.tensors import kernels
from converter.tensors.dtypes import F32, DType
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor

_LANES = 8


class Change(Protocol):
    """Takes rows of a weight, of which the first is row `start`, to what becomes of them."""

    def __call__(self, rows: Floats, start: int) -> Floats: ...


@dataclass(frozen=True)
class LowRank:
    """W + B A * factor; what is added is first rounded to a type, as PEFT does it for embeddings and parameters."""

    pair: Pair
    factor: float
    rounded: DType | None = None

    def __call__(self, rows: Floats, start: int) -> Floats:
        return rows + self.delta(start, start + len(rows))

    def delta(self, start: int, stop: int) -> Floats:
        """Rows of what is added."""
        delta = self.pair.rows(start, stop) * np.float32(self.factor)
        return (
            delta if self.rounded in (None, F32) else kernels.decode(kernels.encode(delta, self.rounded), self.rounded)
        )


@dataclass(frozen=True)
class Dora:
    """(W + B A * factor) with rows, or columns, of the length that `magnitude` says."""

    low_rank: LowRank
    magnitude: Matrix
    weight: LazyTensor
    by_rows: bool
    _of_all: list[Floats] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, rows: Floats, start: int) -> Floats:
        whole, magnitude = self.low_rank(rows, start), self.magnitude.whole.reshape(-1)
        if self.by_rows:
            return (magnitude[start : start + len(rows)] / _lengths(whole))[:, None] * whole
        return (magnitude / self._of_columns())[None] * whole

    def _of_columns(self) -> Floats:
        """The lengths of all columns, from one read of the weight, row after row."""
        with self._lock:
            if not self._of_all:
                info = self.weight.info
                total = np.zeros(info.row, np.float32)
                for start, stop in row_ranges([self.weight], 4 * info.row):
                    for row in self.low_rank(values(self.weight, start, stop), start):
                        total += row * row
                self._of_all.append(np.sqrt(total))
        return self._of_all[0]


def _lengths(rows: Floats) -> Floats:
    """The length of each row by F32 sums of every eighth square, these in their order, and what is left over.

    So does torch on most processors, whose registers hold eight.
    """
    n, row = rows.shape
    sums = np.zeros((n, _LANES), np.float32)
    squares = rows * rows
    for start in range(0, row - row % _LANES, _LANES):
        sums += squares[:, start : start + _LANES]
    total = sums[:, 0]
    for column in (*sums.T[1:], *squares[:, row - row % _LANES :].T):
        total = total + column
    return np.sqrt(total)


@dataclass(frozen=True)
class Scaled:
    """Rows, or columns, multiplied by a number each (IA3)."""

    by: Matrix
    by_rows: bool

    def __call__(self, rows: Floats, start: int) -> Floats:
        scale = self.by.whole.reshape(-1)
        return rows * (scale[start : start + len(rows), None] if self.by_rows else scale)


@dataclass(frozen=True)
class Hadamard:
    """W + (B1 A1) * (B2 A2) * factor, element by element (LoHa)."""

    first: Pair
    second: Pair
    factor: float

    def __call__(self, rows: Floats, start: int) -> Floats:
        stop = start + len(rows)
        return rows + self.first.rows(start, stop) * self.second.rows(start, stop) * np.float32(self.factor)


@dataclass(frozen=True)
class Kronecker:
    """W + kron(first, second) * factor (LoKr); each of the two is a matrix or a product."""

    first: Matrix | Pair
    second: Matrix | Pair
    factor: float

    def __call__(self, rows: Floats, start: int) -> Floats:
        below = self.second.shape[0]
        outer = self.first.rows(start // below, (start + len(rows) - 1) // below + 1)
        inner = self.second.rows(0, below)
        number = np.arange(start, start + len(rows))
        blocks = outer[number // below - start // below][:, :, None] * inner[number % below][:, None]
        return rows + blocks.reshape(rows.shape) * np.float32(self.factor)


@dataclass(frozen=True)
class Tokens:
    """Some rows replaced by others."""

    index: tuple[int, ...]
    by: Matrix

    def __call__(self, rows: Floats, start: int) -> Floats:
        out = rows.copy()
        for place, row in enumerate(self.index):
            if start <= row < start + len(rows):
                out[row - start] = self.by.rows(place, place + 1)
        return out


@dataclass(frozen=True)
class Added:
    """A vector with another added to it, times a factor."""

    vector: Matrix
    factor: float

    def __call__(self, rows: Floats, start: int) -> Floats:
        return rows + self.vector.whole.reshape(1, -1) * np.float32(self.factor)
