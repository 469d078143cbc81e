"""Error feedback: every column rounded by the weights as corrected so far, on every processor the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from support.calibrations import factor, inputs, packed
from support.kernel_samples import ROW, SHAPES, sample

from converter import _native
from converter.request import EFFORTS
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES

Floats = NDArray[np.float32]
NAMES = sorted(kernels.FEEDBACK)


@dataclass(frozen=True)
class Layout:
    """Where the codes of a block are: (first byte, bytes, the byte that holds code `c` everywhere)."""

    codes: range
    fields: tuple[tuple[int, int, str], ...]

    def all_codes(self, block: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The block once for each code, all its elements having it."""
        made = np.tile(block, (len(self.codes), 1))
        for at, count, byte in self.fields:
            for row, code in enumerate(self.codes):
                made[row, at : at + count] = eval(byte, {"c": code}) & 255
        return made

    def steps(self, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes that hold no codes."""
        held = {at for start, count, _ in self.fields for at in range(start, start + count)}
        return blocks[:, [at for at in range(blocks.shape[1]) if at not in held]]


LAYOUTS = {
    "Q2_K": Layout(range(4), ((16, 64, "c * 0x55"),)),
    "Q3_K": Layout(range(8), ((0, 32, "255 * (c >> 2)"), (32, 64, "(c & 3) * 0x55"))),
    "Q4_K": Layout(range(16), ((16, 128, "c * 0x11"),)),
    "Q5_K": Layout(range(32), ((16, 32, "255 * (c >> 4)"), (48, 128, "(c & 15) * 0x11"))),
    "Q6_K": Layout(range(64), ((0, 128, "(c & 15) * 0x11"), (128, 64, "(c >> 4) * 0x55"))),
    "Q4_0": Layout(range(16), ((2, 16, "c * 0x11"),)),
    "Q4_1": Layout(range(16), ((4, 16, "c * 0x11"),)),
    "Q5_0": Layout(range(32), ((2, 4, "255 * (c >> 4)"), (6, 16, "(c & 15) * 0x11"))),
    "Q5_1": Layout(range(32), ((4, 4, "255 * (c >> 4)"), (8, 16, "(c & 15) * 0x11"))),
    "Q8_0": Layout(range(-127, 128), ((2, 32, "c"),)),
}


@pytest.fixture
def restored() -> Iterator[None]:
    before = kernels.isa()
    yield
    _native.select_isa(before)


def weights_like(shape: tuple[int, int], seed: int = 5) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


def test_all_types_have_a_layout() -> None:
    assert list(LAYOUTS) and set(LAYOUTS) == kernels.FEEDBACK


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_column_is_what_the_corrected_weights_round_to(name: str, effort: int) -> None:
    """An oracle in numpy goes along: float32, column by column, errors as the blocks say they are."""
    dtype, layout = DTYPES[name], LAYOUTS[name]
    n, size = 512, dtype.block_of(512)
    v = factor(inputs(n))
    own = v.astype(ml_dtypes.bfloat16).astype(np.float32)
    w = weights_like((5, n))
    made = kernels.encode_with_feedback(w, dtype, packed(v), effort)
    blocks, y = made.reshape(5, n // size, -1), kernels.decode(made, dtype)
    for first in range(0, n, size):
        mine = blocks[:, first // size]
        importance = np.diag(own)[first : first + size].copy()
        corrected = np.ascontiguousarray(w[:, first : first + size])
        fitted = kernels.encode(corrected, dtype, weights=importance, effort=effort)
        assert np.array_equal(layout.steps(fitted), layout.steps(mine))
        values = np.stack([kernels.decode(layout.all_codes(block), dtype) for block in mine])  # row, code, column
        for j in range(first, first + size):
            at = values[:, :, j - first]
            error = w[:, j] - y[:, j]
            nearest = np.abs(w[:, j, None] - at).min(axis=1)
            step = np.abs(np.diff(at, axis=1)).max(axis=1)
            assert (np.abs(error) <= nearest + 1e-4 * step).all()
            w[:, j + 1 :] -= error[:, None] * own[j, j + 1 :]


@pytest.mark.parametrize("name", NAMES)
def test_every_processor_makes_the_same_bytes(name: str, restored: None) -> None:
    dtype, f, made = DTYPES[name], packed(factor(inputs(ROW))), []
    odd = sample("normal", 2).copy().reshape(-1, ROW)
    odd[0, [3, 70, 300]] = np.nan, np.inf, -3e38
    samples = [*(sample(kind, 2).reshape(-1, ROW) for kind in SHAPES), odd]
    for isa in kernels.available_isas():
        _native.select_isa(isa)
        made.append([kernels.encode_with_feedback(x, dtype, f, effort) for x in samples for effort in EFFORTS])
    for other in made[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_out_of_the_product_is_nearer(name: str) -> None:
    dtype, x, w = DTYPES[name], inputs(512), weights_like((48, 512))

    def error(data: NDArray[np.uint8]) -> float:
        return float(np.linalg.norm((w - kernels.decode(data, dtype)) @ x.T))

    plain, spread = kernels.encode(w, dtype), kernels.encode_with_feedback(w, dtype, packed(factor(x)))
    assert error(spread) < 0.8 * error(plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_others(name: str) -> None:
    dtype, f, w = DTYPES[name], packed(factor(inputs(256))), weights_like((70, 256))
    whole = kernels.encode_with_feedback(w, dtype, f)
    parts = [kernels.encode_with_feedback(w[at : at + 9], dtype, f) for at in range(0, 70, 9)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_a_row_shorter_than_a_super_block_and_none_at_all() -> None:
    dtype, f = DTYPES["Q4_0"], packed(factor(inputs(96)))
    assert kernels.encode_with_feedback(weights_like((3, 96)), dtype, f).shape == (3, 54)
    assert kernels.encode_with_feedback(weights_like((0, 96)), dtype, f).shape == (0, 54)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_spoils_its_block_alone(bad: float) -> None:
    """Of its error nobody hears, so that the columns behind are as good as ever."""
    dtype, x, w = DTYPES["Q4_0"], inputs(512), weights_like((1, 512))
    w[0, 40] = bad
    y = kernels.decode(kernels.encode_with_feedback(w, dtype, packed(factor(x))), dtype)
    assert np.abs(y[0, 64:] - w[0, 64:]).max() < 0.1


def test_columns_without_inputs_spread_nothing() -> None:
    x, w = inputs(256), weights_like((4, 256))
    x[:, 10:20] = 0
    f = factor(x)
    assert not f[10:20, 20:].any()
    y = kernels.decode(kernels.encode_with_feedback(w, DTYPES["Q8_0"], packed(f)), DTYPES["Q8_0"])
    assert np.abs(y[:, 10:20] - w[:, 10:20]).max() < 0.002


def test_what_does_not_fit_is_refused() -> None:
    w, f = weights_like((2, 256)), packed(factor(inputs(256)))
    with pytest.raises(ValueError, match="factor must be 32896 aligned BF16 numbers for a row of 256"):
        kernels.encode_with_feedback(w, DTYPES["Q4_K"], f[:-2])
    with pytest.raises(ValueError, match="IQ4_XS is not encoded with error feedback"):
        kernels.encode_with_feedback(w, DTYPES["IQ4_XS"], f)
    with pytest.raises(ValueError, match="effort is 0 to 3, not 4"):
        kernels.encode_with_feedback(w, DTYPES["Q4_K"], f, effort=4)
