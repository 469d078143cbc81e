"""ggml's blocks as codes, scales and minima: the numbers stay what they are."""

from __future__ import annotations

import numpy as np
import pytest

from converter.graphs.blocks import KINDS, Parts, parts
from converter.tensors.dtypes import DTYPES
from converter.tensors.encode import decoded, encode_rows
from converter.tensors.tensor import LazyTensor, TensorInfo

ROWS, ROW = 24, 768


def matrix(name: str, spread: float = 1.0) -> LazyTensor:
    numbers = np.random.default_rng(3).standard_normal((ROWS, ROW)).astype(np.float32) * np.float32(spread)
    numbers[3] = 0
    numbers[5] = np.abs(numbers[5])
    data = np.ascontiguousarray(encode_rows(numbers, DTYPES[name], None, 0, ROWS)).view(np.uint8).reshape(ROWS, -1)
    return LazyTensor(TensorInfo("w", (ROWS, ROW), DTYPES[name]), lambda start, stop: data[start:stop], "a test")


def decode(found: Parts) -> np.ndarray:
    """What com.microsoft.MatMulNBits multiplies by, from its documentation: scale * (code - zero), less the minimum."""
    kind = found.kind
    codes = found.codes.array()
    if kind.bits < 8:
        pieces = [codes >> shift & (1 << kind.bits) - 1 for shift in range(0, 8, kind.bits)]
        codes = np.stack(pieces, -1).reshape(*codes.shape[:2], kind.block)
    zero = 0 if kind.minima and kind.bits < 8 else 1 << kind.bits - 1
    numbers = found.scales.array()[..., None] * (codes.astype(np.float32) - np.float32(zero))
    if found.minima is not None:
        numbers = numbers - found.minima.array()[..., None]
    return numbers.reshape(ROWS, ROW)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 100.0])
@pytest.mark.parametrize("name", KINDS)
def test_numbers_stay_what_they_are(name: str, spread: float) -> None:
    tensor = matrix(name, spread)
    assert np.array_equal(decode(parts(tensor, "w")), decoded(tensor).array())


@pytest.mark.parametrize("name", KINDS)
def test_any_rows_are_those_of_the_whole(name: str) -> None:
    found = parts(matrix(name), "w")
    for each in (found.codes, found.scales, found.minima):
        if each is not None:
            whole = each.rows(0, each.info.n_rows)
            for start, stop in ((0, 1), (5, 9), (each.info.n_rows - 1, each.info.n_rows), (2, 2)):
                assert np.array_equal(each.rows(start, stop), whole[start:stop])
