"""ggml's blocks as codes, scales and minima: the numbers stay what they are."""

from __future__ import annotations

import numpy as np
import pytest

from converter.graphs.blocks import Parts, parts
from converter.tensors.dtypes import DTYPES
from converter.tensors.encode import decoded, encode_rows
from converter.tensors.operands import KINDS, Inexact, Unpacked, apart, numbers
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


@pytest.mark.parametrize("spread", [1.0, 1e-3, 100.0])
@pytest.mark.parametrize("name", KINDS)
def test_and_back_to_the_bytes(name: str, spread: float) -> None:
    kind, dtype = KINDS[name], DTYPES[name]
    blocks = matrix(name, spread).rows(0, ROWS).reshape(-1, dtype.type_size)
    assert np.array_equal(kind.pack(kind.unpack(blocks)), blocks)


@pytest.mark.parametrize("name", KINDS)
def test_any_bytes_keep_their_numbers(name: str) -> None:
    """Blocks that no encoder writes: random codes and small scales, F16 scales of all sizes."""
    kind, dtype = KINDS[name], DTYPES[name]
    random = np.random.default_rng(5)
    blocks = random.integers(0, 256, (400, dtype.type_size), np.uint8)
    with np.errstate(all="ignore"):
        wide = kind.unpack(blocks)
    finite = np.isfinite(wide.scales) & (True if wide.minima is None else np.isfinite(wide.minima))
    blocks = blocks[finite.reshape(len(blocks), -1).all(axis=1)]
    before = kind.unpack(blocks)
    after = kind.unpack(kind.pack(before))
    with np.errstate(over="ignore"):
        assert np.array_equal(numbers(after, kind), numbers(before, kind))


@pytest.mark.parametrize("name", KINDS)
def test_what_no_block_has_is_refused(name: str) -> None:
    kind, dtype = KINDS[name], DTYPES[name]
    found = kind.unpack(matrix(name).rows(0, ROWS).reshape(-1, dtype.type_size))
    scales = found.scales.copy()
    scales[7] = np.nextafter(scales[7], np.float32(9))
    with pytest.raises(Inexact, match="scale"):
        kind.pack(Unpacked(found.codes, scales, found.minima))
    if kind.bits == 8 and name != "Q8_0":
        codes = found.codes.copy()
        codes[3, 5] = 2
        with pytest.raises(Inexact, match="code"):
            kind.pack(Unpacked(codes, found.scales, found.minima))


def test_codes_apart() -> None:
    assert apart(np.array([[0xE4, 0x1B]], np.uint8), 2).tolist() == [[0, 1, 2, 3, 3, 2, 1, 0]]
