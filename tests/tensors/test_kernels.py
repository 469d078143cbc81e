"""Kernels: the bytes of ggml for every type, shape of data, weighting and instruction set."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support import ggml_oracle
from support.kernel_samples import ROW, SHAPES, importance, sample, uniform, weightings

from converter import _native
from converter.errors import MissingImportance, QuantizationError
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, DType

ENCODED = [name for name, (_, _, encodes, _) in kernels.TYPES.items() if encodes and DTYPES[name].quantized]
# ggml takes 3 to 50 seconds to build the tables of these: they are compared with stored digests of its output.
SLOW_ORACLE = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M")
DIGESTS = Path(__file__).parent.parent / "kernel_digests.json"


def digest(data: np.ndarray) -> str:
    return hashlib.sha256(data.tobytes()).hexdigest()[:16]


@pytest.fixture(params=kernels.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.isa()
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


@pytest.fixture
def isa_restored() -> Iterator[None]:
    before = kernels.isa()
    yield
    _native.select_isa(before)


def assert_same_blocks(ours: np.ndarray, theirs: np.ndarray, dtype: DType, what: str) -> None:
    ours, theirs = (a.reshape(-1, dtype.type_size) for a in (ours, theirs))
    differ = np.flatnonzero((ours != theirs).any(axis=1))
    assert differ.size == 0, f"{what}: {differ.size} of {len(ours)} blocks differ, first {differ[0]}"


@cache
def expected_of(name: str, blocks: int) -> dict[tuple[str, str], np.ndarray]:
    """What ggml makes of every sample; kept, for it is compared with every instruction set."""
    dtype = DTYPES[name]
    return {
        (shape, label): ggml_oracle.quantize(sample(shape, blocks), dtype, weights)
        for shape in SHAPES
        for label, weights in weightings(dtype)
    }


def check_against_ggml(dtype: DType, blocks: int) -> None:
    for shape in SHAPES:
        x = sample(shape, blocks)
        for label, weights in weightings(dtype):
            expected = expected_of(dtype.name, blocks)[shape, label]
            assert_same_blocks(kernels.encode(x, dtype, weights=weights), expected, dtype, f"{shape}, {label}")
            values = kernels.decode(expected, dtype)
            np.testing.assert_array_equal(
                values.view(np.uint32), ggml_oracle.dequantize(expected, dtype).view(np.uint32)
            )


@ggml_oracle.needs_ggml
@pytest.mark.parametrize("name", [n for n in ENCODED if n not in SLOW_ORACLE])
def test_bytes_equal_ggml(name: str, isa: str) -> None:
    check_against_ggml(DTYPES[name], blocks=34)


@ggml_oracle.needs_ggml
@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.usefixtures("isa_restored")
def test_bytes_equal_ggml_at_length(name: str) -> None:
    """20,000 blocks of each shape and weighting, with every instruction set: minutes to an hour per type."""
    dtype = DTYPES[name]
    for shape in SHAPES:
        x = sample(shape, 20_000 * dtype.block_size // 256)
        for label, weights in weightings(dtype):
            expected = ggml_oracle.quantize(x, dtype, weights)
            values = ggml_oracle.dequantize(expected, dtype).view(np.uint32)
            for one in kernels.available_isas():
                _native.select_isa(one)
                ours = kernels.encode(x, dtype, weights=weights)
                assert_same_blocks(ours, expected, dtype, f"{one}, {shape}, {label}")
                np.testing.assert_array_equal(kernels.decode(expected, dtype).view(np.uint32), values)


def digests_of(name: str) -> dict[str, str]:
    dtype = DTYPES[name]
    return {
        f"{shape}, {label}": digest(kernels.encode(sample(shape, 6), dtype, weights=weights))
        for shape in SHAPES
        for label, weights in weightings(dtype)
    }


@pytest.mark.parametrize("name", ENCODED)
def test_bytes_equal_stored_digests(name: str, isa: str) -> None:
    """Digests of ggml's own output (see main() below), so that this holds where ggml is not installed."""
    assert digests_of(name) == json.loads(DIGESTS.read_text())[name]


@pytest.mark.parametrize("name", ENCODED)
def test_rows_threads_and_slabs_do_not_change_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = sample("normal", 12), importance(zeros=False)
    whole = kernels.quantize(x, name, weights=weights, threads=1)
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 12 * ROW)
    assert np.array_equal(kernels.quantize(x, name, weights=weights, threads=3), whole)
    for i in range(len(x)):
        assert np.array_equal(kernels.encode(x[i : i + 1], DTYPES[name], weights=weights)[0], whole[i])
    cube = kernels.quantize(x.reshape(2, -1, ROW), name, weights=weights)
    assert np.array_equal(cube.reshape(whole.shape), whole)
    values = kernels.dequantize(whole, name, x.shape, threads=3)
    np.testing.assert_array_equal(values, kernels.decode(whole, DTYPES[name]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", ENCODED)
def test_odd_values_are_encoded_alike_by_all_isas(name: str, bad: float) -> None:
    x = sample("normal", 8)
    x[uniform(x.size, 5).reshape(x.shape) < 0.02] = bad
    dtype, before, results = DTYPES[name], kernels.isa(), {}
    for one in kernels.available_isas():
        _native.select_isa(one)
        results[one] = kernels.encode(x, dtype, weights=importance(zeros=False))
    _native.select_isa(before)
    if ggml_oracle.available() and "IQ" not in name:  # ggml aborts on some of these for grid types
        results["ggml"] = ggml_oracle.quantize(x, dtype, importance(zeros=False))
    first = results.pop("scalar")
    for one, data in results.items():
        assert_same_blocks(data, first, dtype, one)


# ---- blocks whose answer is obvious ----


def _f16(value: float) -> bytes:
    return np.float16(value).tobytes()


HAND_MADE = {
    "Q8_0": (_f16(0.5) + bytes(range(32)), np.arange(32) * 0.5),
    "Q8_1": (_f16(2) + _f16(99) + bytes(range(32)), np.arange(32) * 2.0),
    "Q4_0": (_f16(1) + bytes([0xF0] * 16), np.repeat([-8.0, 7.0], 16)),
    "Q4_1": (_f16(2) + _f16(-1) + bytes([0x30] * 16), np.repeat([-1.0, 5.0], 16)),
    "Q5_0": (_f16(1) + b"\xff\xff\x00\x00" + bytes(16), np.repeat([0.0, -16.0], 16)),
    "Q5_1": (_f16(1) + _f16(0) + b"\x00\x00\xff\xff" + bytes(16), np.repeat([0.0, 16.0], 16)),
    "Q4_K": (_f16(1) + _f16(1) + bytes([2] * 4 + [3] * 4 + [0x32] * 4) + bytes([0x55] * 128), np.full(256, 7.0)),
    "Q6_K": (bytes(128) + bytes([0xAA] * 64) + bytes([3] * 16) + _f16(1), np.zeros(256)),
    "Q8_K": (np.float32(0.25).tobytes() + bytes([4] * 256) + bytes(32), np.ones(256)),
    "Q2_0": (_f16(1) + bytes([0b11100100] * 16), np.tile([-1.0, 0, 1, 2], 16)),
    "Q1_0": (_f16(3) + bytes([0b00001111] * 16), np.tile(np.repeat([3.0, -3.0], 4), 16)),
    "TQ2_0": (bytes([0b00100100] * 64) + _f16(1), np.tile(np.repeat([-1.0, 0, 1, -1], 32), 2)),
    "MXFP4": (bytes([127] + [0xA7] * 16), np.repeat([6.0, -1.0], 16)),
    "IQ4_NL": (_f16(1) + bytes([0xF0] * 16), np.repeat([-127.0, 113.0], 16)),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_block(name: str, isa: str) -> None:
    block, expected = HAND_MADE[name]
    data = np.frombuffer(block, np.uint8)[None]
    np.testing.assert_array_equal(kernels.decode(data, DTYPES[name])[0], expected.astype(np.float32))


# ---- casts ----

DENSE = ("F16", "BF16", "F8_E4M3", "F8_E5M2", "F64", "F32")


def _many_floats() -> np.ndarray:
    raw = np.random.Philox(key=9).random_raw(1 << 16).astype(np.uint32)
    near = np.concatenate([np.arange(0, 1 << 32, 65521, np.uint64).astype(np.uint32), raw]).view(np.float32)
    exact = np.arange(-600, 600, 0.125, np.float32)
    small = np.exp2(np.arange(-30, 20, 0.25)).astype(np.float32)
    values = np.concatenate([near, exact, small, -small])
    return values[np.isfinite(values)][None]


@pytest.mark.parametrize("name", DENSE)
def test_cast_rounds_as_numpy_and_ml_dtypes(name: str, isa: str) -> None:
    x, dtype = _many_floats(), DTYPES[name]
    with np.errstate(over="ignore"):
        expected = x.astype(dtype.numpy)
    assert np.array_equal(kernels.encode(x, dtype), expected.view(np.uint8))


@pytest.mark.parametrize("name", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_cast_back_is_exact_and_counts_nonfinite(name: str, isa: str) -> None:
    dtype = DTYPES[name]
    codes = np.arange(1 << 8 * dtype.type_size).astype(f"u{dtype.type_size}")
    data = codes.view(np.uint8)[None]
    np.testing.assert_array_equal(kernels.decode(data, dtype)[0], codes.view(dtype.numpy).astype(np.float32))
    expected = np.count_nonzero(~np.isfinite(codes.view(dtype.numpy).astype(np.float32)))
    assert kernels.nonfinite(data, dtype) == expected


def test_nan_is_quiet() -> None:
    nans = np.array([0x7F800001, 0xFFABCDEF], np.uint32).view(np.float32)[None]
    assert kernels.encode(nans, DTYPES["BF16"]).view(np.uint16).tolist() == [[0x7FC0, 0xFFEB]]
    assert kernels.encode(nans, DTYPES["F16"]).view(np.uint16).tolist() == [[0x7E00, 0xFE00]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nonfinite_counts_wide_types(dtype: type, isa: str) -> None:
    x = np.arange(1000, dtype=dtype)
    x[[3, 500, 999]] = np.nan, np.inf, -np.inf
    name = {4: "F32", 8: "F64"}[x.itemsize]
    assert kernels.nonfinite(x.view(np.uint8)[None], DTYPES[name]) == 3


def test_the_largest_of_floats(isa: str) -> None:
    x = _many_floats()
    finite = x[np.isfinite(x)]
    assert kernels.largest(finite) == np.abs(finite).max()
    assert kernels.largest(np.array([1, -np.inf, 3], np.float32)) == np.inf
    assert np.isnan(kernels.largest(np.array([np.inf, -np.nan, 0], np.float32)))
    assert kernels.largest(np.empty(0, np.float32)) == 0
    assert kernels.largest(np.arange(64, dtype=np.float32).reshape(8, 8)[:, 3:5]) == 60


def test_types_without_a_kernel_go_through_numpy() -> None:
    x = sample("normal", 2)
    for name in ("F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"):
        dtype = DTYPES[name]
        source = np.abs(x) if name == "F8_E8M0" else x
        data = kernels.encode(source, dtype)
        np.testing.assert_array_equal(data, source.astype(dtype.numpy).view(np.uint8))
        np.testing.assert_array_equal(kernels.decode(data, dtype), source.astype(dtype.numpy).astype(np.float32))
        assert kernels.nonfinite(data, dtype) == 0


def test_unaligned_and_strided_input() -> None:
    x = sample("normal", 4)
    shifted = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    wide = np.repeat(x, 2, axis=1)[:, ::2]
    expected = kernels.encode(x, DTYPES["Q4_K"])
    assert np.array_equal(kernels.encode(shifted, DTYPES["Q4_K"]), expected)
    assert np.array_equal(kernels.encode(wide, DTYPES["Q4_K"]), expected)


def test_empty() -> None:
    assert kernels.quantize(np.empty((0, 256), np.float32), "Q4_K").shape == (0, 144)
    assert kernels.dequantize(np.empty((0, 144), np.uint8), "Q4_K", (0, 256)).shape == (0, 256)


def test_read_only_input_is_not_modified() -> None:
    x = sample("normal", 4)
    before = x.copy()
    x.flags.writeable = False
    kernels.encode(x, DTYPES["Q6_K"])
    assert np.array_equal(x, before)


# ---- bad arguments ----


def test_row_must_divide() -> None:
    with pytest.raises(QuantizationError, match="300 elements"):
        kernels.quantize(np.zeros((2, 300), np.float32), "Q4_K")


def test_unknown_type() -> None:
    with pytest.raises(QuantizationError, match="Q9_Z"):
        kernels.quantize(np.zeros((2, 256), np.float32), "Q9_Z")


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K", "I32"])
def test_not_encodable(name: str) -> None:
    with pytest.raises(QuantizationError, match="cannot be encoded"):
        kernels.quantize(np.zeros((2, 256), np.float32), name)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ1_S"])
def test_importance_is_mandatory_where_ggml_insists(name: str) -> None:
    with pytest.raises(MissingImportance, match="importance"):
        kernels.quantize(np.zeros((2, 256), np.float32), name)


def test_wrong_arrays() -> None:
    x = np.zeros((2, 256), np.float32)
    with pytest.raises(TypeError, match="float64"):
        kernels.quantize(x.astype(np.float64), "Q4_K")
    with pytest.raises(ValueError, match="weights"):
        kernels.quantize(x, "Q4_K", weights=np.ones(255, np.float32))
    with pytest.raises(ValueError, match="out must be"):
        kernels.encode(x, DTYPES["Q4_K"], out=np.zeros((2, 143), np.uint8))
    with pytest.raises(QuantizationError, match="do not hold"):
        kernels.dequantize(np.zeros(143, np.uint8), "Q4_K", (1, 256))
    with pytest.raises(QuantizationError, match="whole"):
        kernels.decode(np.zeros((1, 143), np.uint8), DTYPES["Q4_K"])
    with pytest.raises(QuantizationError, match="real numbers"):
        kernels.decode(np.zeros((1, 4), np.uint8), DTYPES["I32"])
    with pytest.raises(QuantizationError, match="dense"):
        kernels.nonfinite(np.zeros((1, 144), np.uint8), DTYPES["Q4_K"])


def test_binding_refuses_what_would_overrun() -> None:
    x, out, weights = np.zeros(512, np.float32), np.zeros(288, np.uint8), np.ones(512, np.float32)
    bad = (
        ("Q9", x, out, 512),
        ("Q4_K", x, out[:-1], 512),
        ("Q4_K", x[:-1], out, 512),
        ("Q4_K", x, out, 0),
        ("Q4_K", x, out, -512),
        ("Q4_K", x, out, 384),
        ("Q8_K", x, np.zeros(584, np.uint8), 512),
        ("Q4_K", x, out, 512, weights[:-1]),
        ("IQ2_XS", x, np.zeros(148, np.uint8), 512),
        ("F32", x, x.view(np.uint8), 512),
    )
    for args in bad:
        with pytest.raises(ValueError):
            _native.encode(*args)
    read_only = out.copy()
    read_only.flags.writeable = False
    unaligned = np.zeros(2049, np.uint8)[1:].view(np.float32)
    wrong = (
        ("Q4_K", x.astype(np.float64), out, 512),
        ("Q4_K", x.view(np.uint8), out, 512),
        ("Q4_K", x, read_only, 512),
        ("Q4_K", x[::2], out, 256),
        ("Q4_K", list(x), out, 512),
        ("Q4_K", x, out.view(np.int8), 512),
        ("Q4_K", x, out),
        ("Q4_K", unaligned, out, 512),
    )
    for args in wrong:
        with pytest.raises((TypeError, ValueError)):
            _native.encode(*args)
    for args in (("Q4_K", out, x[:-1]), ("Q4_K", out[:-1], x), ("Q4_K", x.view(np.uint8)[:144], x[:256])):
        with pytest.raises(ValueError):
            _native.decode(*args)
    for args in (("Q4_K", out), ("F16", out[:3]), ("F99", out)):
        with pytest.raises(ValueError):
            _native.nonfinite(*args)


# ---- anything at all: refused with an error, or done right, and nothing written beside the output ----

GUARD = 64
#: What a caller may hand in instead of a plain array of floats (or of bytes).
DISGUISES = (
    *[lambda a: a] * 8,
    lambda a: a[:-1],
    lambda a: a[::2],
    lambda a: a[::-1],
    lambda a: a.astype(np.float64),
    lambda a: a.astype(a.dtype.newbyteorder(">")),
    lambda a: a.view(np.int8),
    lambda a: a.astype(object),
    lambda a: np.asfortranarray(a[: a.size // 2 * 2].reshape(-1, 2)),
    lambda a: a.reshape(1, -1, 1),
    lambda a: np.broadcast_to(np.float32(1), a.shape),
    lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype),
    lambda a: np.concatenate([a, a[:1]])[: a.size],
    lambda a: np.lib.stride_tricks.as_strided(a, a.shape, writeable=False),
    memoryview,
    lambda a: a.tobytes(),
    lambda a: a.tolist(),
    lambda a: None,
    lambda a: "text",
)


def _pick(random: np.random.Generator, choices: tuple) -> object:
    return choices[random.integers(len(choices))]


def _guarded(n: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """`n` zeros, and the bytes around them."""
    whole = np.full(max(0, n) * np.dtype(dtype).itemsize + 2 * GUARD, 0xA5, np.uint8)
    return whole, whole[GUARD : len(whole) - GUARD].view(dtype)


def _intact(whole: np.ndarray) -> bool:
    return bool((whole[:GUARD] == 0xA5).all() and (whole[-GUARD:] == 0xA5).all())


def _names(random: np.random.Generator) -> object:
    odd = ("", "Q4_k", "Q4_K ", "Q4_K\0", "I8", "\N{SNOWMAN}", None, 12)
    return _pick(random, odd) if random.random() < 0.05 else _pick(random, tuple(kernels.TYPES))


def _floats(random: np.random.Generator, n: int) -> np.ndarray:
    scale = np.float32(10.0 ** random.integers(-45, 38))
    with np.errstate(over="ignore"):
        return random.standard_normal(n).astype(np.float32) * scale


def test_encode_survives_anything() -> None:
    random, done = np.random.default_rng(1), 0
    for _ in range(6000):
        name = _names(random)
        block, size, _, _ = kernels.TYPES.get(name, (32, 18, True, False))
        row = _pick(random, (block, 2 * block, 4 * block, block, block + 1, 0, -block, 2**62, 2**63 - 1))
        n = int(random.integers(4)) * min(max(row, 0), 4 * block)
        x, weights = _floats(random, n), abs(_floats(random, min(max(row, 0), 4 * block)))
        whole, out = _guarded(n // block * size + int(_pick(random, (0, 0, 0, 0, 0, -1, 1, size, -size))), np.uint8)
        given = _pick(random, DISGUISES)(x)
        given_weights = None if random.random() < 0.5 else _pick(random, DISGUISES)(weights)
        target = out if random.random() < 0.8 else _pick(random, DISGUISES)(out)
        try:
            _native.encode(name, given, target, row, given_weights)
        except (TypeError, ValueError):
            pass
        else:
            done += 1
            rows = np.array(given, np.float32).reshape(-1, min(row, 4 * block))  # a huge row only with no data
            again = None if given_weights is None else np.array(given_weights, np.float32).ravel()
            expected = kernels.encode(rows, DTYPES[name], weights=again)
            assert np.array_equal(np.frombuffer(target, np.uint8), expected.ravel())
        assert _intact(whole)
    assert done > 400


def test_decode_and_count_survive_anything() -> None:
    random, done = np.random.default_rng(2), 0
    for _ in range(6000):
        name = _names(random)
        block, size, _, _ = kernels.TYPES.get(name, (32, 18, True, False))
        blocks = int(random.integers(5))
        data = random.integers(0, 256, max(0, blocks * size + int(_pick(random, (0, 0, 0, 0, 0, -1, 1)))), np.uint8)
        whole, out = _guarded(blocks * block + int(_pick(random, (0, 0, 0, 0, 0, -1, 1, block))), np.float32)
        given = _pick(random, DISGUISES)(data)
        target = out if random.random() < 0.8 else _pick(random, DISGUISES)(out)
        try:
            _native.decode(name, given, target)
            done += 1
        except (TypeError, ValueError):
            pass
        try:
            assert 0 <= _native.nonfinite(name, given) <= len(given) // size
        except (TypeError, ValueError):
            pass
        assert _intact(whole)
    assert done > 1000


def test_python_face_survives_anything() -> None:
    """Shapes and types that the binding never sees: the errors are those of the docstrings."""
    random, done = np.random.default_rng(3), 0
    names = (*kernels.TYPES, "I32", "F8_E4M3FNUZ", "Q9")
    shapes = ((), (0,), (256,), (2, 256), (3, 2, 512), (2, 100), (0, 256), (256, 0), (2, 0, 256), (1, 32), (5, 33))
    odd = ((2**40, 2**40), (-1, 256), (2**62,), (0, -256), (3, 256), (256,), (0,))
    for _ in range(3000):
        name, shape = _pick(random, names), _pick(random, shapes)
        x = np.asarray(_floats(random, int(np.prod(shape)))).reshape(shape)
        weights = None if random.random() < 0.5 else abs(_floats(random, int(_pick(random, (32, 256, 512)))))
        given = _pick(random, DISGUISES[:14])(x) if x.size > 1 and random.random() < 0.5 else x
        try:
            data = kernels.quantize(given, name, weights=weights, threads=int(random.integers(1, 4)))
            back = kernels.dequantize(data, name, _pick(random, (np.shape(given), *odd)))
            assert back.size == np.size(given)
            done += 1
        except (TypeError, ValueError, QuantizationError):
            pass
    assert done > 100


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e18])
@pytest.mark.parametrize("n", [0, 1, 255, 256, 1000, 4096])
def test_compare_measures_as_numpy(n: int, scale: float, isa: str) -> None:
    rng = np.random.default_rng(n)
    a = (rng.standard_normal(n) * scale).astype(np.float32)
    b = (a * (1 + 0.01 * rng.standard_normal(n))).astype(np.float32)
    b[::7] = a[::7]
    odd = {3: (np.nan, np.nan), 8: (np.inf, np.inf), 90: (np.inf, -np.inf), 200: (1.0, np.nan), 260: (np.inf, 2.0)}
    for at, (x, y) in odd.items():
        if at < n:
            a[at], b[at] = x, y
    histogram = np.zeros(8192, np.uint64)
    before = kernels.isa()
    try:
        _native.select_isa(isa)
        found = _native.compare(a, b, 5000, histogram.view(np.uint8))
    finally:
        _native.select_isa(before)
    good = np.isfinite(a) & np.isfinite(b)
    x, y = np.where(good, a, 0).astype(np.float64), np.where(good, b, 0).astype(np.float64)
    error = np.abs(np.where(good, a, 0) - np.where(good, b, 0)).astype(np.float64)
    sums = [((x - y) ** 2).sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
    np.testing.assert_allclose(found[:4], sums, rtol=1e-5)
    assert found[4] == error.max(initial=0)
    relative = np.divide(error, np.abs(x), out=np.zeros_like(x), where=x != 0)
    assert found[5] == pytest.approx(relative.max(initial=0), rel=1e-6)
    groups = [((x - y)[at : at + 256] ** 2).sum() for at in range(0, n, 256)]
    if max(groups, default=0) > 0:
        assert found[7] == 5000 + 256 * int(np.argmax(groups))
        assert found[6] == pytest.approx(max(groups), rel=1e-5)
    else:
        assert found[7] == -1
    mismatched = sum(1 for at in odd if at < n and at in (90, 200, 260))
    assert found[8] == np.count_nonzero(x != y) + mismatched
    assert found[9:] == (np.count_nonzero(~np.isfinite(a)), np.count_nonzero(~np.isfinite(b)), mismatched)
    assert histogram.sum() == 256 * -(-n // 1024), "one group of 256 in four, the last one filled up"
    edges = (np.arange(8192, dtype=np.uint32) << 18).view(np.float32)
    assert histogram[edges > found[4]].sum() == 0


def test_compare_refuses_what_would_overrun() -> None:
    a = np.zeros(8, np.float32)
    for b, at, histogram, kind in (
        (a[:4], 0, None, ValueError), (a.view(np.uint8), 0, None, TypeError),
        (a, 0, np.zeros(8, np.uint8), ValueError), (a, 0, np.zeros(8192 * 8 + 8, np.uint8)[4:-4], ValueError),
    ):  # fmt: skip
        with pytest.raises(kind):
            _native.compare(a, b, at, histogram)


def test_skip_strings_stays_inside() -> None:
    texts = [b"", b"a", b"\xff" * 300]
    data = memoryview(b"".join(len(t).to_bytes(8, "little") + t for t in texts))
    assert _native.skip_strings(data, 0, 3) == len(data)
    assert _native.skip_strings(data, 8, 2) == len(data)
    assert _native.skip_strings(data, 0, 1) == 8
    assert _native.skip_strings(data, len(data), 0) == len(data)
    for start, count in ((0, 4), (-1, 1), (len(data) + 1, 0), (len(data) - 7, 1), (1, 3)):
        assert _native.skip_strings(data, start, count) == -1
    for end in range(len(data)):
        assert _native.skip_strings(data[:end], 0, 3) == -1
    assert _native.skip_strings(memoryview(b"\xff" * 16), 0, 1) == -1, "a length near 2^64"


def test_environment_chooses_the_instruction_set() -> None:
    code = "from converter.tensors import kernels; print(kernels.isa())"
    for one in kernels.available_isas():
        run = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "CONVERTER_ISA": one}, capture_output=True
        )
        assert run.stdout.decode().strip() == one
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "CONVERTER_ISA": "vax"}, capture_output=True)
    assert run.returncode != 0 and b"CONVERTER_ISA=vax cannot run here" in run.stderr


def test_differences_have_names() -> None:
    """Exact in binary: each field of what the kernel returns, with the first element's number and a histogram."""
    a = np.array([1, 2, 4, 0, np.inf, np.nan, 3], np.float32)
    b = np.array([1, 2.5, 3, 0, np.inf, 1, -np.inf], np.float32)
    histogram = np.zeros(8192, np.uint64)
    found = kernels.compare(a, b, 512, histogram)
    assert found == kernels.Differences(
        noise=1.25, energy=21.0, energy_candidate=16.25, product=18.0, max_abs=1.0, max_rel=0.25, worst=1.25,
        worst_at=512, differing_values=4, nonfinite_reference=2, nonfinite=2, mismatched=2,
    )  # fmt: skip
    for error in (0.5, 1.0):
        assert histogram[np.float32(error).view(np.uint32) >> 18] == 1
    assert kernels.compare(a[:1], b[:1]) == kernels.NO_DIFFERENCES._replace(
        energy=1.0, energy_candidate=1.0, product=1.0
    )


def test_differences_of_several_parts_do_not_depend_on_their_order() -> None:
    """Sums are rounded once; of equally bad groups the first counts."""
    parts = [
        kernels.Differences(1e16, 1.0, 2.0, -1.0, 3.0, 0.5, 7.0, 768, 1, 2, 3, 4),
        kernels.Differences(1.0, 1e-30, 2.0, 1.0, 4.0, 0.25, 7.0, 256, 10, 20, 30, 40),
        kernels.Differences(1.0, -1.0, 2.0, 0.0, 1.0, 0.75, 6.0, 0, 100, 200, 300, 400),
        kernels.NO_DIFFERENCES,
    ]
    expected = kernels.Differences(1e16 + 2.0, 1e-30, 6.0, 0.0, 4.0, 0.75, 7.0, 256, 111, 222, 333, 444)
    assert 1e16 + 1.0 + 1.0 != expected.noise  # what adding in order would give
    for order in itertools.permutations(parts):
        assert kernels.Differences.together(order) == expected
    assert kernels.Differences.together(parts[-1:]) == kernels.NO_DIFFERENCES


def test_ml_dtypes_agree_on_names() -> None:
    """The dense kernels are chosen by name; the name must mean what ml_dtypes means."""
    assert DTYPES["F8_E4M3"].numpy == ml_dtypes.float8_e4m3fn
    assert DTYPES["F8_E5M2"].numpy == ml_dtypes.float8_e5m2


def main() -> None:
    """Write the digests of ggml's output: python tests/tensors/test_kernels.py (a minute or two)."""
    found = {}
    for name in ENCODED:
        dtype = DTYPES[name]
        found[name] = {
            f"{shape}, {label}": digest(ggml_oracle.quantize(sample(shape, 6), dtype, weights))
            for shape in SHAPES
            for label, weights in weightings(dtype)
        }
    DIGESTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
