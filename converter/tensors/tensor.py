"""A tensor that has not been read yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.tensors.dtypes import DType

Rows = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without reading it.

    `shape` is row-major (numpy order) everywhere; the last axis is the row, and blocks never
    span two rows. A scalar is one row of one element.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements per row."""
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_nbytes(self) -> int:
        return self.dtype.row_nbytes(self.row)

    @property
    def nbytes(self) -> int:
        return self.n_rows * self.row_nbytes


@dataclass(frozen=True)
class Beside:
    """Numbers that blocks are used with, each for one of as many runs of equally many rows (the matrices of experts).

    Attributes:
        scale: what decoded numbers are multiplied by.
        input_scale: the same of activations that are rounded to four bits.
        prec_a4: whether activations may be.
    """

    scale: tuple[float, ...]
    input_scale: tuple[float, ...]
    prec_a4: bool = True


class Extent(NamedTuple):
    """Where rows lie one after the other as they are: in a file of this machine, from `offset` on."""

    path: Path
    offset: int


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """Stored rows on demand.

    `read(start, stop)` returns rows [start, stop) as uint8 of shape (stop - start, row_nbytes), a view
    of the map where it can be. It is repeatable and thread-safe; making the tensor reads nothing.
    `source` says where the bytes come from (file@offset, or what computed them), for messages.
    `parts` are the names of the tensors it was made of. `work_nbytes` is the memory one row needs on its
    way, so that the engine can size its slabs: a row that is decoded costs more than what comes out.
    `grain` rows, counted from the first, are computed together whatever part of them is asked for: all of them where
    the tensor can only be had whole. `slab_nbytes` is the memory that rows asked for together should take, where
    whoever computes them wants another amount than the kernels.
    `beside` is what blocks do not say themselves; numbers that are decoded have it in them.
    `extent` is where the rows are stored as they are, so that they can be copied without being read.
    """

    info: TensorInfo
    read: Callable[[int, int], Rows]
    source: str
    parts: tuple[str, ...] = ()
    work_nbytes: int | None = None
    grain: int = 1
    slab_nbytes: int | None = None
    beside: Beside | None = None
    extent: Extent | None = None

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.info.shape)) or "scalar"
        return f"<LazyTensor {self.name!r}: {self.info.dtype} {shape}, {self.source}>"

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def row_work(self) -> int:
        """Bytes of memory that one row needs on its way through."""
        return self.work_nbytes if self.work_nbytes is not None else self.info.row_nbytes

    def rows(self, start: int, stop: int) -> Rows:
        """Rows [start, stop) as stored bytes, uint8 (stop - start, row_nbytes)."""
        if not 0 <= start <= stop <= self.info.n_rows:
            raise IndexError(f"{self.name}: rows {start}:{stop} of {self.info.n_rows}")
        return self.read(start, stop)

    def take(self, index: NDArray[np.int64]) -> Rows:
        """The rows at `index`, in that order. What lies between the first and the last is mapped, not copied."""
        low, high = int(index.min()), int(index.max()) + 1
        block = self.rows(low, high)
        if high - low == len(index) and bool((np.diff(index) == 1).all()):
            return block
        return block[index - low]

    def array(self) -> NDArray[np.generic]:
        """The whole tensor: in its numpy type and shape when dense, as uint8 rows when blocked."""
        data = np.ascontiguousarray(self.rows(0, self.info.n_rows))
        if self.info.dtype.numpy is None:
            return data
        return data.view(self.info.dtype.numpy).reshape(self.info.shape)

    def derived(
        self,
        info: TensorInfo | None = None,
        read: Callable[[int, int], Rows] | None = None,
        *,
        parts: tuple[str, ...] | None = None,
        work_nbytes: int | None = None,
        grain: int | None = None,
    ) -> LazyTensor:
        """A tensor that is read through this one: what is not given stays as it is, a row's memory included.

        The one way to wrap a tensor, so that no field is lost on the way; what stands beside blocks goes with them.
        """
        blocks = info is None or info.dtype is self.info.dtype
        stored = read is None and (info is None or info.nbytes == self.info.nbytes)
        return replace(
            self,
            info=self.info if info is None else info,
            read=self.read if read is None else read,
            parts=self.parts if parts is None else parts,
            work_nbytes=self.row_work if work_nbytes is None else work_nbytes,
            grain=self.grain if grain is None else grain,
            beside=self.beside if blocks else None,
            extent=self.extent if stored else None,
        )

    def renamed(self, name: str) -> LazyTensor:
        """The same rows under another name."""
        return self.derived(replace(self.info, name=name), parts=self.parts or (self.name,))


def from_array(name: str, array: NDArray[np.generic], dtype: DType, source: str) -> LazyTensor:
    """A tensor whose dense values are already in memory (generated tensors, plugins, tests)."""
    info = TensorInfo(name, array.shape, dtype)
    data = np.ascontiguousarray(array, dtype=dtype.numpy).view(np.uint8).reshape(info.n_rows, info.row_nbytes)
    return LazyTensor(info, lambda start, stop: data[start:stop], source)
