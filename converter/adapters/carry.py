"""B and A through the ops that a weight goes through: what moves rows moves those of B, what moves columns those of A.

The weight itself is not needed. A chain that moves rows says where each row of its results comes from; that row of B
comes from there, and A from the weight it belonged to. Where rows of several weights meet in one (Q, K and V in a
fused weight), B has columns for the A of each, and zeros elsewhere: the rank is the sum of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from converter.adapters.factors import Floats, Pair, Shape
from converter.errors import UnsupportedFeature
from converter.tensors.ops import (
    Add,
    At,
    Chain,
    Concat,
    Mul,
    Op,
    PermuteColumns,
    PermuteRows,
    Split,
    Transpose,
    infer,
    reaches,
)
from converter.tensors.streams import source_rows


@dataclass(frozen=True)
class Carried:
    """A change of low rank, and what its product is yet to be multiplied by."""

    pair: Pair
    factor: float


Changes = Sequence[Carried | None]


def carried(chain: Chain, shapes: Sequence[Shape], changes: Changes) -> Changes:
    """The changes of the tensors that a bound chain makes of those of `shapes`, some of which change.

    Raises:
        UnsupportedFeature: an op that B and A cannot follow apart.
    """
    run: list[Op] = []
    start, now = list(shapes), list(shapes)
    for op, kind in zip(chain, reaches(chain, shapes), strict=True):
        if kind == "rows":
            run.append(op)
            now = op.infer(now)
            continue
        changes = _rows_moved(tuple(run), start, changes) if run else changes
        changes = _other(op, now, changes)
        run, now = [], op.infer(now)
        start = now
    return _rows_moved(tuple(run), start, changes) if run else changes


def _other(op: Op, shapes: Sequence[Shape], changes: Changes) -> Changes:
    """An op that does more than move rows."""
    if isinstance(op, At):
        made = _other(op.op, shapes[op.index : op.stop], changes[op.index : op.stop])
        return [*changes[: op.index], *made, *changes[op.stop :]]
    if isinstance(op, Add) or not any(changes):  # a constant is no part of a change
        return [None] * len(op.infer(shapes)) if not any(changes) else changes
    if isinstance(op, Mul):
        factor = 1 / float(op.factor) if op.undo else float(op.factor)
        return [each and replace(each, factor=each.factor * factor) for each in changes]
    n_axes = len(shapes[0])
    if isinstance(op, Transpose) and op.axes == (*range(n_axes - 2), n_axes - 1, n_axes - 2):
        return [each and replace(each, pair=each.pair.turned()) for each in changes]
    sideways = _sideways(op, n_axes)
    if sideways is None:
        raise UnsupportedFeature(f"{op} does more than move rows or columns, so that A and B cannot follow it apart")
    turned = [each and replace(each, pair=each.pair.turned()) for each in changes]
    made = _rows_moved((sideways,), [(*shape[:-2], shape[-1], shape[-2]) for shape in shapes], turned)
    return [each and replace(each, pair=each.pair.turned()) for each in made]


def _sideways(op: Op, n_axes: int) -> Op | None:
    """What an op that moves columns does to the rows of the transposed weight."""
    if isinstance(op, PermuteColumns) and n_axes == 2:
        return PermuteRows(op.shape, op.order)
    if isinstance(op, Split | Concat) and op.axis % n_axes == n_axes - 1 and n_axes in (2, 3):
        return replace(op, axis=n_axes - 2)
    return None


_Owner = tuple[int, int]  # which weight, and which of those that it stacks


def _rows_moved(chain: Chain, shapes: Sequence[Shape], changes: Changes) -> Changes:
    """Ops that only move rows."""
    sources = _Sources(tuple(shapes), changes)
    return [
        sources.gathered(shape, source_rows(chain, sources.shapes, which, 0, math.prod(shape[:-1])))
        for which, shape in enumerate(infer(chain, shapes))
    ]


@dataclass(frozen=True)
class _Sources:
    """Weights whose rows are counted through all of them, and their changes."""

    shapes: tuple[Shape, ...]
    changes: Changes

    def owners(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each row the number of its matrix, counted through all weights and what they stack, and its row in that.

        Rows of zeros, and of weights that do not change, have the number -1.
        """
        ends = np.cumsum([0, *(int(np.prod(shape[:-1])) for shape in self.shapes)])
        which = np.searchsorted(ends, rows, side="right") - 1
        local = rows - ends[which]
        per = np.array([shape[-2] if len(shape) > 1 else 1 for shape in self.shapes])[which]
        first = np.cumsum([0, *(int(np.prod(shape[:-2])) for shape in self.shapes)])[which]
        changes = np.array([each is not None for each in self.changes])[which] & (rows >= 0)
        return np.where(changes, first + local // per, -1), local % per

    def matrices(self) -> list[tuple[Carried | None, int]]:
        """Each matrix that the weights stack, by its number: whose it is, and its place in that."""
        return [
            (change, at)
            for shape, change in zip(self.shapes, self.changes, strict=True)
            for at in range(int(np.prod(shape[:-2])))
        ]

    def gathered(self, shape: Shape, rows: NDArray[np.int64]) -> Carried | None:
        """The change of a weight of this shape that is made of these rows."""
        numbers, places = self.owners(rows)
        if not (numbers >= 0).any():
            return None
        if len(shape) not in (2, 3):
            raise UnsupportedFeature(f"a weight of {len(shape)} axes cannot be changed by A and B")
        matrices, per = self.matrices(), shape[-2]
        own = [_in_order(numbers[at : at + per]) for at in range(0, len(numbers), per)]
        used = [change for number in dict.fromkeys(n for each in own for n in each) if (change := matrices[number][0])]
        factor = next((change.factor for change in used if change.factor), 1.0)
        cuts = [np.cumsum([0, *(_rank(matrices[number]) for number in each)]) for each in own]
        rank = int(max(cut[-1] for cut in cuts))

        def b(start: int, stop: int) -> Floats:
            out = np.zeros((stop - start, rank), np.float32)
            for at in range(start // per, (stop - 1) // per + 1):
                for number, (low, high) in zip(own[at], pairwise(cuts[at]), strict=True):
                    change, stacked = matrices[number]
                    here = np.flatnonzero((numbers[start:stop] == number) & (np.arange(start, stop) // per == at))
                    assert change is not None  # or it would have no number
                    if len(here):
                        wanted = places[start + here]
                        first = stacked * change.pair.n_rows
                        values = change.pair.b(first + int(wanted.min()), first + int(wanted.max()) + 1)
                        scale = np.float32(change.factor / factor)
                        out[here, low:high] = values[wanted - wanted.min()] * scale
            return out

        def a(which: int) -> Floats:
            out = np.zeros((rank, shape[-1]), np.float32)
            for number, (low, high) in zip(own[which], pairwise(cuts[which]), strict=True):
                change, stacked = matrices[number]
                assert change is not None
                out[low:high] = change.pair.a(stacked)
            return out

        return Carried(Pair(shape, rank, b, a), factor)


def _in_order(numbers: NDArray[np.int64]) -> list[int]:
    found, first = np.unique(numbers, return_index=True)
    return [int(number) for number in found[np.argsort(first)] if number >= 0]


def _rank(matrix: tuple[Carried | None, int]) -> int:
    return matrix[0].pair.rank if matrix[0] is not None else 0
