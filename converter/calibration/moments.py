"""Second moments of what goes into matrix products, and the factors that error feedback wants of them.

With X the inputs of a matrix, (tokens, columns), H = X^T X / tokens + damping * (mean of its diagonal) * 1 says how its
columns go together. An error e of column j, made good as well as it can be by the columns to the right of it, leaves
e^2 * D^-1[j], where H^-1 = V^T D V with V upper triangular and ones on its diagonal; row j of V says how it is made
good. (GPTQ, arXiv:2210.17323, has U = D^(1/2) V, the upper Cholesky factor of H^-1.)
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import UnsupportedFeature

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
#: What is added to the diagonal, of its mean: columns that hardly move are not relied on.
DAMPING = 0.01
_TOGETHER = 1024  # rows that are multiplied at once
_PANEL = 1024  # columns of a product that are there beside the sum
_SMALL = 64  # triangles of so many rows are inverted as they are


class Moments:
    """X^T X of rows that come one after the other, float32, its upper triangle."""

    def __init__(self, row: int) -> None:
        self.sums = np.zeros((row, row), np.float32)
        self.tokens = 0
        self._waiting: list[Floats] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self.sums.nbytes

    def add(self, rows: Floats) -> None:
        """Take (tokens, row) in."""
        self.tokens += len(rows)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _TOGETHER:
            self._multiply()

    def finish(self) -> Moments:
        """The same with all rows in it."""
        if self._waiting:
            self._multiply()
        return self

    def merge(self, other: Moments) -> None:
        """Take in what another, finished one has."""
        self.sums += other.sums
        self.tokens += other.tokens

    def _multiply(self) -> None:
        rows = np.concatenate(self._waiting)
        self._waiting.clear()
        for start in range(0, len(self.sums), _PANEL):
            stop = min(len(self.sums), start + _PANEL)
            self.sums[:stop, start:stop] += rows[:, :stop].T @ rows[:, start:stop]


@dataclass(frozen=True)
class Solved:
    """V of a matrix' inputs, float64 (row, row), with D^-1 on its diagonal in the place of the ones: the mean is 1."""

    matrix: Doubles

    def packed(self) -> NDArray[np.uint8]:
        """Its upper triangle row by row, BF16, as bytes."""
        row = len(self.matrix)
        return np.concatenate([self.matrix[j, j:].astype(ml_dtypes.bfloat16) for j in range(row)]).view(np.uint8)


def solved(moments: Moments, name: str, damping: float = DAMPING) -> Solved | None:
    """What an error of each column is worth in those to the right; None where nothing ever came in.

    Raises:
        UnsupportedFeature: activations that are not finite, of which `name` tells whose they are.
    """
    h = np.triu(moments.finish().sums).astype(np.float64)
    mean = float(np.trace(h)) / len(h)
    if not mean:
        return None
    if not np.isfinite(mean):
        raise UnsupportedFeature(f"{name}: its inputs are not finite on this text; calibrate with another, or a model")
    h /= mean
    h[np.diag_indices_from(h)] += damping
    try:  # numpy reads the lower triangle: that of H read from its end
        upper = np.asarray(np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1], np.float64)
    except np.linalg.LinAlgError as error:
        raise UnsupportedFeature(f"{name}: its inputs are not finite on this text, or far too large") from error
    del h  # at 14,336 columns, 1.6 GB
    own = np.diag(upper).copy()
    v = _inverse(upper)
    v *= own[:, None]
    np.fill_diagonal(v, own**2 / np.mean(own**2))
    return Solved(v)


def _inverse(upper: Doubles) -> Doubles:
    """The inverse of an upper triangular matrix, by halves: nearly all of it is products."""
    row = len(upper)
    if row <= _SMALL:
        return np.triu(np.linalg.inv(upper))
    half = row // 2
    made = np.zeros_like(upper)
    made[:half, :half], made[half:, half:] = _inverse(upper[:half, :half]), _inverse(upper[half:, half:])
    made[:half, half:] = -made[:half, :half] @ (upper[:half, half:] @ made[half:, half:])
    return made
