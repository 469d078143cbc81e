"""A matrix with its axes exchanged, which needs the whole source for any part of it and never has it in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from converter.storage.slabs import row_ranges
from converter.tensors.tensor import LazyTensor, Rows

SLAB = 32 << 20  # bytes of a transposed matrix that are made together: each needs the whole source once


def transposed(matrix: LazyTensor) -> LazyTensor:
    """A matrix of plain numbers with its axes exchanged, made of columns of the source slab by slab."""
    rows, columns = matrix.info.shape
    kind = matrix.info.dtype.numpy
    assert kind is not None  # blocks stay as they are
    info = replace(matrix.info, shape=(columns, rows))

    def read(start: int, stop: int) -> Rows:
        out = np.empty((stop - start, rows), kind)
        for low, high in row_ranges([matrix], matrix.row_work):
            out[:, low:high] = np.ascontiguousarray(matrix.rows(low, high)).view(kind)[:, start:stop].T
        return out.view(np.uint8)

    made = matrix.derived(info, read, work_nbytes=2 * info.row_nbytes, grain=1)
    return replace(made, slab_nbytes=SLAB)
