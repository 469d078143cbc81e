"""INT8: rows of codes with one scale each."""

from __future__ import annotations

import numpy as np
import pytest

from converter.errors import QuantizationError
from converter.tensors import int8, kernels
from converter.tensors.dtypes import INT8, dtype
from converter.tensors.encode import Watch, encoded
from converter.tensors.scales import broken_blocks
from converter.tensors.tensor import from_array


def rows(n: int = 40, row: int = 77) -> np.ndarray:
    made = np.random.default_rng(1).standard_normal((n, row)).astype(np.float32)
    made[3] = 0
    made[4, 5] = -1000
    made[6] *= np.float32(1e-38)
    return made


def test_a_row_is_its_scale_and_its_codes() -> None:
    made = kernels.encode(np.array([[0.5, -2.0, 1.0]], np.float32), INT8)
    scale = np.float32(2) / np.float32(127)
    assert made.tobytes() == scale.tobytes() + np.array([32, -127, 64], np.int8).tobytes()
    assert kernels.decode(made, INT8).tolist() == [[scale * 32, -scale * 127, scale * 64]]


def test_numbers_are_off_by_half_a_scale() -> None:
    given = rows()
    made = kernels.encode(given, INT8)
    scales = np.abs(given).max(axis=1) / np.float32(127)
    assert np.array_equal(int8.scales_of(made), scales)
    error = np.abs(kernels.decode(made, INT8) - given)
    assert (error <= scales[:, None] * np.float32(0.500001)).all()
    assert not kernels.decode(made, INT8)[3].any()


def test_parts_and_back() -> None:
    made = kernels.encode(rows(), INT8)
    codes = int8.codes_of(made)
    assert codes.min() >= 1 and (codes[3] == 128).all()
    assert np.array_equal(int8.joined(int8.scales_of(made), codes), made)


def test_sizes() -> None:
    assert dtype("int8") is INT8
    assert INT8.nbytes((3, 10)) == 42 and INT8.row_of(14) == 10 and INT8.block_of(10) == 10
    with pytest.raises(QuantizationError, match="3 bytes are not whole"):
        kernels.decode(np.zeros((1, 3), np.uint8), INT8)
    assert kernels.encode(np.zeros((2, 0), np.float32), INT8).shape == (2, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    given = rows()
    given[7, 3] = bad
    watch = Watch()
    made = encoded(from_array("w", given, dtype("F32"), "here"), INT8, watch).rows(0, 40)
    assert broken_blocks(made, INT8).tolist() == [7]
    assert [str(event) for event in watch.events()] and "w" in str(watch.events()[0])
    assert np.array_equal(kernels.decode(made[:7], INT8), kernels.decode(kernels.encode(given[:7], INT8), INT8))
