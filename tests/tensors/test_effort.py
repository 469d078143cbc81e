"""`--effort 1`: the reference's codes with scales of the right length, the same on every processor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.kernel_samples import ROW, SHAPES, sample, weightings

from converter import _native
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, DType

STRETCHED = (
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S",
)  # fmt: skip
LEFT = ("Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "IQ1_M")


@pytest.fixture
def restored() -> Iterator[None]:
    before = kernels.isa()
    yield
    _native.select_isa(before)


def weights_like(shape: tuple[int, int]) -> np.ndarray:
    return (np.random.default_rng(5).standard_normal(shape) * 0.02).astype(np.float32)


def importance(dtype: DType) -> np.ndarray | None:
    """What a type must have to be encoded, alike for all columns."""
    return np.ones(1024, np.float32) if kernels.needs_importance(dtype) else None


@pytest.mark.parametrize("name", STRETCHED)
def test_every_processor_makes_the_same_bytes(name: str, restored: None) -> None:
    dtype, made = DTYPES[name], []
    for isa in kernels.available_isas():
        _native.select_isa(isa)
        samples = [(sample(kind, 2).reshape(-1, ROW), given) for kind in SHAPES for _, given in weightings(dtype)]
        made.append([kernels.encode(x, dtype, weights=given, effort=1) for x, given in samples])
    for other in made[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("name", STRETCHED)
def test_what_comes_back_is_as_long_as_what_went_in(name: str) -> None:
    dtype, x = DTYPES[name], weights_like((256, 1024))
    y = kernels.decode(kernels.encode(x, dtype, weights=importance(dtype), effort=1), dtype)
    assert float((x * y).sum() / (x * x).sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", STRETCHED)
def test_importance_says_which_columns_count(name: str) -> None:
    dtype, x = DTYPES[name], weights_like((256, 1024))
    weights = np.random.default_rng(6).uniform(0.1, 4, 1024).astype(np.float32)
    y = kernels.decode(kernels.encode(x, dtype, weights=weights, effort=1), dtype)
    assert float((weights * x * y).sum() / (weights * x * x).sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", STRETCHED)
def test_codes_are_the_reference_s(name: str) -> None:
    """A block is the reference's, times one factor."""
    dtype, x = DTYPES[name], weights_like((2, 1024))
    plain, better = (
        kernels.decode(kernels.encode(x, dtype, weights=importance(dtype), effort=effort), dtype).reshape(
            -1, dtype.block_of(1024)
        )
        for effort in (0, 1)
    )
    factor = (plain * better).sum(axis=1, keepdims=True) / (plain * plain).sum(axis=1, keepdims=True)
    assert np.allclose(better, plain * factor, rtol=0, atol=2e-3 * np.abs(plain).max())


@pytest.mark.parametrize("name", LEFT)
def test_other_types_are_the_reference_s(name: str) -> None:
    dtype, x = DTYPES[name], weights_like((4, 1024))
    assert np.array_equal(kernels.encode(x, dtype, effort=1), kernels.encode(x, dtype))


@pytest.mark.parametrize("name", STRETCHED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_that_holds_no_numbers_stays_the_reference_s(name: str, bad: float) -> None:
    """And those beside it are better all the same."""
    dtype, x = DTYPES[name], weights_like((64, 1024))
    x[0, 5] = bad
    plain, better = (kernels.encode(x, dtype, weights=importance(dtype), effort=effort) for effort in (0, 1))
    assert np.array_equal(plain.reshape(-1, dtype.type_size)[0], better.reshape(-1, dtype.type_size)[0])
    assert not np.array_equal(plain[1:], better[1:])


def test_levels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="effort is 0 or 1, not 2"):
        kernels.encode(weights_like((1, 256)), DTYPES["Q4_K"], effort=2)
