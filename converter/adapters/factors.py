"""A change of low rank, B A, read where it is needed: rows of B, and A. Never the product of the two as a whole.

Its sums are those of PEFT on a processor: F32, in the order of the rank, each product added by one rounding, as the
fused multiply-add of every BLAS does it for ranks of this size. The result is the same on every machine, whatever
rows are asked for together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.tensors.streams import decoded
from converter.tensors.tensor import LazyTensor

Floats = NDArray[np.float32]
Shape = tuple[int, ...]
# A tile's sums and products stay in the cache of a core.
_TILE_ROWS, _TILE_COLUMNS = 4, 4096


def product(b: Floats, a: Floats) -> Floats:
    """B A: (n, rank) by (rank, columns), as said above. A product of two F32 is exact in F64, which stands for FMA."""
    out = np.zeros((len(b), a.shape[1]), np.float32)
    wide_b, wide_a = b.astype(np.float64), a.astype(np.float64)
    terms, wides = np.empty((2, _TILE_ROWS, _TILE_COLUMNS))
    for row in range(0, len(b), _TILE_ROWS):
        for column in range(0, a.shape[1], _TILE_COLUMNS):
            left, right = wide_b[row : row + _TILE_ROWS], wide_a[:, column : column + _TILE_COLUMNS]
            sums = out[row : row + _TILE_ROWS, column : column + _TILE_COLUMNS]
            term, wide = (each[: len(left), : right.shape[1]] for each in (terms, wides))
            for k in range(len(a)):
                np.multiply(left[:, k, None], right[k], out=term)
                wide[...] = sums
                np.add(term, wide, out=term)
                sums[...] = term
    return out


@dataclass(frozen=True)
class Pair:
    """The two matrices of a change of a weight of `shape`: (rows, columns), or (n, rows, columns) for n of one rank.

    `b` gives rows [start, stop), counted through all n, as (stop - start, rank); `a` gives (rank, columns) of one of n.
    """

    shape: Shape
    rank: int
    b: Callable[[int, int], Floats]
    a: Callable[[int], Floats]

    @property
    def n_rows(self) -> int:
        """Rows of each of the n."""
        return self.shape[-2]

    @property
    def n(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else 1

    def rows(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) of B A, counted through all n."""
        pieces = [product(self.b(low, high), self.a(which)) for which, low, high in self.pieces(start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Which of the n, and which rows of [start, stop) are its."""
        for which in range(start // self.n_rows, max(start, stop - 1) // self.n_rows + 1):
            yield which, max(start, which * self.n_rows), min(stop, (which + 1) * self.n_rows)

    def part(self, start: int, stop: int) -> Pair:
        """Rows [start, stop) of the change of one weight."""
        shape = (stop - start, self.shape[-1])
        return Pair(shape, self.rank, lambda low, high: self.b(start + low, start + high), self.a)

    def turned(self) -> Pair:
        """The same change of the weight that lies the other way round, its last two axes swapped."""
        rows, columns = self.shape[-2:]

        def b(start: int, stop: int) -> Floats:
            parts = [
                self.a(low // columns).T[low % columns : low % columns + high - low]
                for _, low, high in turned.pieces(start, stop)
            ]
            return np.concatenate(parts)

        def a(which: int) -> Floats:
            return self.b(which * rows, (which + 1) * rows).T

        turned = Pair((*self.shape[:-2], columns, rows), self.rank, b, a)
        return turned


View = Callable[[NDArray[np.generic]], NDArray[np.generic]]


@dataclass(frozen=True)
class Matrix:
    """A stored matrix, or what `view` shows of it; of a mapped file only the rows that are asked for are read."""

    tensor: LazyTensor
    shape: tuple[int, int]
    view: View | None = None

    def rows(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) in F32."""
        if self.view is None:
            return decoded(self.tensor).rows(start, stop).view(np.float32)
        return self.view(self.tensor.array())[start:stop].astype(np.float32)

    @property
    def whole(self) -> Floats:
        return self.rows(0, self.shape[0])

    @property
    def T(self) -> Matrix:
        """The same, transposed."""
        view = self.view
        return Matrix(self.tensor, self.shape[::-1], lambda stored: (stored if view is None else view(stored)).T)


def matrix(tensor: LazyTensor) -> Matrix:
    """A tensor as a matrix; a vector is one row."""
    return Matrix(tensor, (tensor.info.n_rows, tensor.info.row))


def pair(b: Matrix, a: Matrix) -> Pair:
    """The change of one weight, of (rows, rank) and (rank, columns)."""
    return Pair((b.shape[0], a.shape[1]), a.shape[0], b.rows, lambda _: a.whole)


def stacked(pairs: list[Pair]) -> Pair:
    """The changes of n weights of one shape, all of one rank."""
    first = pairs[0]

    def b(start: int, stop: int) -> Floats:
        parts = [
            pairs[which].b(low - which * first.n_rows, high - which * first.n_rows)
            for which, low, high in whole.pieces(start, stop)
        ]
        return np.concatenate(parts)

    whole = Pair((len(pairs), *first.shape), first.rank, b, lambda which: pairs[which].a(0))
    return whole
