"""A matrix with its axes exchanged: the numbers, and how much of the source is in memory for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from converter.storage.transposed import transposed
from converter.tensors import kernels
from converter.tensors.dtypes import F32
from converter.tensors.tensor import LazyTensor, Rows, from_array

NUMBERS = np.arange(64 * 24, dtype=np.float32).reshape(64, 24)


def test_any_rows_are_columns_of_the_source() -> None:
    found = transposed(from_array("w", NUMBERS, F32, "a test"))
    assert found.info.shape == (24, 64)
    for start, stop in ((0, 24), (3, 4), (5, 20), (7, 7)):
        assert np.array_equal(found.rows(start, stop).view(np.float32), NUMBERS.T[start:stop])


def test_rows_that_need_much_memory_are_read_few_at_a_time() -> None:
    """Scales and minima of blocks are small rows, for each of which a whole row of blocks is decoded."""
    plain, asked = from_array("w", NUMBERS, F32, "a test"), list[int]()

    def read(start: int, stop: int) -> Rows:
        asked.append(stop - start)
        return plain.rows(start, stop)

    matrix: LazyTensor = replace(plain, read=read, work_nbytes=kernels.SLAB_NBYTES // 4)
    assert np.array_equal(transposed(matrix).rows(0, 24).view(np.float32), NUMBERS.T)
    assert max(asked) == 4
