"""A tensor that lies in several places, as one that is read where it lies.

Its pieces are boxes (a rank's rows, a rank's columns, both), or runs of a flat vector that holds one parameter after
the other. Rows that are asked for come from the pieces that hold them, without a copy where one piece has them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from converter.errors import CorruptFile, short
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

Box = tuple[tuple[int, ...], tuple[int, ...]]
# Where the edges of all pieces cut the axes, a grid; honest pieces are about as many as its cells.
_MAX_CELLS = 1 << 22


@dataclass(frozen=True)
class Piece:
    """A box of a tensor: the place of its first element in the whole, and its rows."""

    offset: tuple[int, ...]
    tensor: LazyTensor


def assembled(path: Path, info: TensorInfo, pieces: Iterable[Piece]) -> LazyTensor:
    """The tensor that the pieces make; each has its type.

    Raises:
        CorruptFile: they overlap, leave something out, or reach out of it.
    """
    pieces = [piece for piece in pieces if piece.tensor.info.n_elements]
    check_tiled(path, info, [(piece.offset, piece.tensor.info.shape) for piece in pieces])
    placed = [_Placed(info, piece) for piece in pieces]
    firsts = np.array([each.first for each in placed])
    ends = np.array([each.end for each in placed])

    def read(start: int, stop: int) -> Rows:
        near = [placed[index] for index in np.flatnonzero((firsts < stop) & (ends > start))]
        if len(near) == 1 and near[0].whole_rows:
            return near[0].rows(start, stop)
        out = np.empty((stop - start, info.row_nbytes), np.uint8)
        for each in near:
            each.fill(out, start, stop)
        return out

    scattered = 24 * len(info.shape) if any(not each.in_a_row for each in placed) else 0
    work = info.row_nbytes + max((piece.tensor.row_work for piece in pieces), default=0) + scattered
    grain = info.n_rows if any(piece.tensor.grain > 1 for piece in pieces) else 1
    return LazyTensor(info, read, _sources([piece.tensor for piece in pieces]), work_nbytes=work, grain=grain)


def _sources(tensors: Sequence[LazyTensor]) -> str:
    if not tensors:
        return "nothing"
    more = f" and {len(tensors) - 1} more places" if len(tensors) > 1 else ""
    return tensors[0].source + more


@dataclass(frozen=True)
class _Placed:
    """A piece among the rows of the whole, which are counted through all its axes but the last."""

    info: TensorInfo
    piece: Piece

    @cached_property
    def _outer(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Offset, shape and the whole's shape along the axes that count rows."""
        return self.piece.offset[:-1], self.piece.tensor.info.shape[:-1], self.info.shape[:-1]

    @cached_property
    def first(self) -> int:
        offset, _, outer = self._outer
        return int(np.ravel_multi_index(offset, outer)) if outer else 0

    @cached_property
    def end(self) -> int:
        offset, shape, outer = self._outer
        last = tuple(start + n - 1 for start, n in zip(offset, shape, strict=True))
        return int(np.ravel_multi_index(last, outer)) + 1 if outer else 1

    @cached_property
    def in_a_row(self) -> bool:
        return self.end - self.first == self.piece.tensor.info.n_rows

    @cached_property
    def whole_rows(self) -> bool:
        return self.in_a_row and self.piece.tensor.info.row == self.info.row

    def rows(self, start: int, stop: int) -> Rows:
        return self.piece.tensor.rows(start - self.first, stop - self.first)

    def fill(self, out: Rows, start: int, stop: int) -> None:
        """Write what the piece has of rows [start, stop)."""
        low, high = max(start, self.first), min(stop, self.end)
        left = self.piece.offset[-1] * self.info.dtype.type_size if self.info.shape else 0
        columns = slice(left, left + self.piece.tensor.info.row_nbytes)
        if self.in_a_row:
            out[low - start : high - start, columns] = self.rows(low, high)
            return
        offset, shape, outer = self._outer
        at = np.arange(low, high)
        places = [axis - first for axis, first in zip(np.unravel_index(at, outer), offset, strict=True)]
        inside = np.logical_and.reduce([(axis >= 0) & (axis < n) for axis, n in zip(places, shape, strict=True)])
        if inside.any():
            own = np.ravel_multi_index([axis[inside] for axis in places], shape)
            out[at[inside] - start, columns] = self.piece.tensor.take(own)


def check_tiled(path: Path, info: TensorInfo, boxes: Sequence[Box]) -> None:
    """Refuse boxes (offset, shape) that do not hold each element of a tensor once.

    Raises:
        CorruptFile: as said.
    """
    what = f"{path}: tensor {short(info.name)} of shape {list(info.shape)}"
    for offset, shape in boxes:
        ends = [start + n for start, n in zip(offset, shape, strict=False)]
        if not len(offset) == len(shape) == len(info.shape) or any(map(int.__gt__, ends, info.shape)):
            raise CorruptFile(f"{what} has a piece of shape {list(shape)} at {list(offset)}, which leaves it")
    if not info.n_elements:
        return
    edges = [
        sorted({0, size, *(edge for offset, shape in boxes for edge in (offset[axis], offset[axis] + shape[axis]))})
        for axis, size in enumerate(info.shape)
    ]
    if math.prod(len(each) - 1 for each in edges) > _MAX_CELLS:
        raise CorruptFile(f"{what} lies in {len(boxes)} pieces that do not fit together")
    cells = [{edge: cell for cell, edge in enumerate(each)} for each in edges]
    taken = np.zeros([len(each) - 1 for each in edges], bool)
    for offset, shape in boxes:
        region = tuple(slice(cell[start], cell[start + n]) for cell, start, n in zip(cells, offset, shape, strict=True))
        if taken[region].any():
            raise CorruptFile(f"{what}: its piece of shape {list(shape)} at {list(offset)} overlaps another")
        taken[region] = True
    if not taken.all():
        hole = [each[cell] for each, cell in zip(edges, np.argwhere(~taken)[0], strict=True)]
        raise CorruptFile(f"{what}: no piece holds what begins at {hole}; a part of the checkpoint is missing")


@dataclass(frozen=True)
class Run:
    """Elements [start, stop) of a vector, whose rows are its elements: its shape is (n, 1)."""

    vector: LazyTensor
    start: int
    stop: int


def strung(info: TensorInfo, runs: Iterable[Run]) -> LazyTensor:
    """The tensor whose elements, in order, are those of the runs; they are as many, and of its type."""
    runs = [run for run in runs if run.stop > run.start]
    ends = np.cumsum([0, *(run.stop - run.start for run in runs)])
    assert ends[-1] == info.n_elements, (info, int(ends[-1]))

    def read(start: int, stop: int) -> Rows:
        low, high = start * info.row, stop * info.row
        found = [np.empty((0, 1), np.uint8)] * (low == high)
        for run, (first, end) in zip(runs, pairwise(ends), strict=True):
            if first < high and end > low:
                ahead, behind = max(low - first, 0), min(high, end) - first
                found.append(run.vector.rows(run.start + int(ahead), run.start + int(behind)))
        values = found[0] if len(found) == 1 else np.concatenate(found)
        return values.reshape(stop - start, info.row_nbytes)

    source = _sources([run.vector for run in runs])
    grain = info.n_rows if any(run.vector.grain > 1 for run in runs) else 1
    return LazyTensor(info, read, source, work_nbytes=2 * info.row_nbytes, grain=grain)
