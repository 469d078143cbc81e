"""`--effort`: closer than the reference at the same bytes, the same on every processor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.kernel_samples import ROW, SHAPES, sample, weightings

from converter import _native
from converter.request import EFFORTS
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, DType

SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS")
LATTICES = ("IQ3_XXS", "IQ3_S", "IQ2_S")
STRETCHED = (*SEARCHED, *LATTICES, "IQ2_XXS", "IQ2_XS", "IQ1_S")
COARSE = ("MXFP4", "NVFP4")  # their scales are no F16
LEFT = ("Q8_0", "TQ1_0", "TQ2_0", "IQ1_M")
LEVELS = EFFORTS[1:]


@pytest.fixture
def restored() -> Iterator[None]:
    before = kernels.isa()
    yield
    _native.select_isa(before)


def weights_like(shape: tuple[int, int]) -> np.ndarray:
    return (np.random.default_rng(5).standard_normal(shape) * 0.02).astype(np.float32)


def uneven(n: int = 1024) -> np.ndarray:
    """An importance of columns."""
    return np.random.default_rng(6).uniform(0.1, 4, n).astype(np.float32)


def importance(dtype: DType, n: int = 1024) -> np.ndarray | None:
    """What a type must have to be encoded, alike for all columns."""
    return np.ones(n, np.float32) if kernels.needs_importance(dtype) else None


def made(x: np.ndarray, dtype: DType, effort: int, weights: np.ndarray | None = None) -> np.ndarray:
    """What comes back, float32."""
    given = importance(dtype, x.shape[1]) if weights is None else weights
    return kernels.decode(kernels.encode(x, dtype, weights=given, effort=effort), dtype)


@pytest.mark.parametrize("name", (*STRETCHED, *COARSE))
def test_every_processor_makes_the_same_bytes(name: str, restored: None) -> None:
    dtype, by_isa = DTYPES[name], []
    samples = [(sample(kind, 2).reshape(-1, ROW), given) for kind in SHAPES for _, given in weightings(dtype)]
    for isa in kernels.available_isas():
        _native.select_isa(isa)
        by_isa.append([kernels.encode(x, dtype, weights=w, effort=level) for x, w in samples for level in LEVELS])
    for other in by_isa[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(by_isa[0], other, strict=True))


@pytest.mark.parametrize("name", (*SEARCHED, *LATTICES))
def test_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    dtype, x, weights = DTYPES[name], weights_like((7, 768)), uneven(768)
    for given in (None, weights):
        whole = kernels.encode(x, dtype, weights=given, effort=2)
        assert all(
            np.array_equal(kernels.encode(x[i : i + 1], dtype, weights=given, effort=2)[0], whole[i]) for i in range(7)
        )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", STRETCHED)
def test_what_comes_back_is_as_long_as_what_went_in(name: str, level: int) -> None:
    x = weights_like((256, 1024))
    y = made(x, DTYPES[name], level)
    assert float((x * y).sum() / (x * x).sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", STRETCHED)
def test_importance_says_which_columns_count(name: str, level: int) -> None:
    x, weights = weights_like((256, 1024)), uneven()
    y = made(x, DTYPES[name], level, weights)
    assert float((weights * x * y).sum() / (weights * x * x).sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", SEARCHED)
def test_more_effort_is_no_further_away(name: str, kind: str) -> None:
    """On the whole; codes are settled before steps get their length, which can throw a single block a little back."""
    dtype, x = DTYPES[name], sample(kind, 8).reshape(-1, ROW)
    size = dtype.block_of(ROW)
    with np.errstate(over="ignore", invalid="ignore"):
        errors = [
            ((made(x, dtype, level).astype(np.float64) - x) ** 2).reshape(-1, size).sum(axis=1) for level in LEVELS
        ]
    held = np.isfinite(errors[0])  # a step of more than an F16 is infinite
    one, two, three = (error[held] for error in errors)
    noise = 1e-6 * float((x.astype(np.float64) ** 2).sum())
    assert two.sum() <= one.sum() + noise
    assert three.sum() <= two.sum() + noise
    assert (two <= 1.15 * one + noise).all()
    assert (two > 1.001 * one + noise).sum() <= 0.05 * len(one) + 1


@pytest.mark.parametrize(("name", "least"), [
    ("Q2_K", 0.06), ("Q3_K", 0.02), ("Q4_K", 0.015), ("Q5_K", 0.035), ("Q6_K", 0.01), ("Q4_0", 0.02), ("Q4_1", 0.045),
    ("Q5_0", 0.02), ("Q5_1", 0.045), ("IQ4_NL", 0.003), ("IQ4_XS", 0.01),
    ("IQ3_S", 0.17), ("IQ3_XXS", 0.11), ("IQ2_S", 0.05),
])  # fmt: skip
def test_searching_is_worth_it(name: str, least: float) -> None:
    """Root mean square error of normal weights, level 2 below the reference by so much, and level 3 by more."""
    dtype, x = DTYPES[name], weights_like((64, 1024))
    error = [float(np.sqrt(((made(x, dtype, level) - x) ** 2).mean())) for level in (0, 2, 3)]
    assert error[1] < (1 - least) * error[0]
    assert error[2] < error[1]


@pytest.mark.parametrize("name", (*SEARCHED, *LATTICES))
def test_importance_leads_the_search(name: str) -> None:
    """Columns that count more come closer than they do without it."""
    dtype, x = DTYPES[name], weights_like((64, 1024))
    weights = np.where(np.arange(1024) % 4 == 0, 30, 1).astype(np.float32)
    plain, led = (((made(x, dtype, 2, given) - x)[:, ::4] ** 2).sum() for given in (None, weights))
    assert led < plain


@pytest.mark.parametrize("name", LATTICES)
def test_lattices_are_no_further_away_with_an_importance(name: str) -> None:
    """Level 2 and 3 weigh errors as the reference does, and lose none of what level 1 brings."""
    dtype, x, weights = DTYPES[name], weights_like((64, 1024)), uneven()
    one, two, three = (float((weights * (made(x, dtype, e, weights) - x) ** 2).sum()) for e in LEVELS)
    assert two < 0.99 * one
    assert three < two


@pytest.mark.parametrize("name", ("IQ2_XXS", "IQ2_XS", "IQ1_S"))
def test_lattices_that_a_search_does_not_help(name: str) -> None:
    dtype, x = DTYPES[name], weights_like((4, 1024))
    one, *others = (kernels.encode(x, dtype, weights=uneven(), effort=e) for e in LEVELS)
    assert all(np.array_equal(one, other) for other in others)


@pytest.mark.parametrize("name", STRETCHED)
def test_codes_are_the_reference_s(name: str) -> None:
    """With effort 1 a block is the reference's, times one factor."""
    dtype, x = DTYPES[name], weights_like((2, 1024))
    plain, better = (made(x, dtype, effort).reshape(-1, dtype.block_of(1024)) for effort in (0, 1))
    factor = (plain * better).sum(axis=1, keepdims=True) / (plain * plain).sum(axis=1, keepdims=True)
    assert np.allclose(better, plain * factor, rtol=0, atol=2e-3 * np.abs(plain).max())


@pytest.mark.parametrize(("name", "least"), [("MXFP4", 0.02), ("NVFP4", 0.05)])
def test_scales_without_a_fraction_are_searched_for(name: str, least: float) -> None:
    """No block is further away than the reference's, with importance or without; level 1 has nothing to do."""
    dtype, x = DTYPES[name], weights_like((64, 1024))
    for given in (None, uneven()):
        w = np.float32(1) if given is None else given
        errors = [(w * (made(x, dtype, level, given) - x) ** 2).reshape(-1, 16) for level in EFFORTS]
        blocks = [error.reshape(-1, dtype.block_size).sum(axis=1) for error in errors]
        assert np.array_equal(errors[0], errors[1])
        assert all((blocks[i + 1] <= blocks[i] * 1.00001).all() for i in range(3))
        assert blocks[2].sum() < (1 - least) ** 2 * blocks[0].sum()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_block_of_no_numbers_and_scales_at_their_ends(name: str, bad: float, level: int) -> None:
    dtype, x = DTYPES[name], weights_like((4, 256))
    x[0, 5] = bad
    x[1], x[2], x[3] = 0, x[2] * np.float32(1e38), x[3] * np.float32(1e-43)
    plain, better = (kernels.encode(x, dtype, effort=effort) for effort in (0, level))
    first = [kernels.decode(data[:1], dtype)[0, :16] for data in (plain, better)]
    assert np.array_equal(*first, equal_nan=True)
    assert np.array_equal(plain[1], better[1])
    assert np.isfinite(kernels.decode(better[1:], dtype)).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", LEFT)
def test_other_types_are_the_reference_s(name: str, level: int) -> None:
    dtype, x = DTYPES[name], weights_like((4, 1024))
    assert np.array_equal(kernels.encode(x, dtype, effort=level), kernels.encode(x, dtype))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", STRETCHED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_that_holds_no_numbers_stays_the_reference_s(name: str, bad: float, level: int) -> None:
    """And those beside it are better all the same."""
    dtype, x = DTYPES[name], weights_like((64, 1024))
    x[0, 5] = bad
    plain, better = (kernels.encode(x, dtype, weights=importance(dtype), effort=effort) for effort in (0, level))
    assert np.array_equal(plain.reshape(-1, dtype.type_size)[0], better.reshape(-1, dtype.type_size)[0])
    assert not np.array_equal(plain[1:], better[1:])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", STRETCHED)
def test_numbers_of_any_size(name: str, level: int) -> None:
    """Zeros stay zeros; what no block can hold is no worse than the reference's."""
    dtype = DTYPES[name]
    zeros = np.zeros((2, 256), np.float32)
    assert not made(zeros, dtype, level).any()
    for scale in (1e-30, 1e4, 1e30):
        x = weights_like((4, 256)) * np.float32(scale)
        with np.errstate(over="ignore", invalid="ignore"):
            reference, better = (np.abs(made(x, dtype, effort).astype(np.float64) - x).sum() for effort in (0, level))
        assert better <= reference * 1.06 or not np.isfinite(reference)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", STRETCHED)
def test_steps_that_an_f16_holds_coarsely(name: str, level: int) -> None:
    """Weights so small that steps are subnormal: what getting longer costs is no more than at any other size."""
    dtype, x = DTYPES[name], weights_like((16, 1024))

    def dearer(scale: float) -> float:
        reference, better = (((made(x * np.float32(scale), dtype, e) / scale - x) ** 2).sum() for e in (0, level))
        return float(better / reference)

    usual = max(dearer(1), 1)
    assert all(dearer(2.0**-by) <= 1.01 * usual for by in range(2, 15, 2))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SEARCHED)
def test_an_importance_of_zeros(name: str, level: int) -> None:
    """Columns that count for nothing are still stored; where none counts, the block is the reference's."""
    dtype, x = DTYPES[name], weights_like((4, 1024))
    weights = uneven()
    weights[:512] = 0
    reference, better = (kernels.encode(x, dtype, weights=weights, effort=effort) for effort in (0, level))
    half = reference.shape[1] // 2
    assert np.array_equal(reference[:, :half], better[:, :half])
    assert np.isfinite(kernels.decode(better, dtype)).all()
    assert not np.array_equal(reference[:, half:], better[:, half:])


def test_levels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="effort is 0 to 3, not 4"):
        kernels.encode(weights_like((1, 256)), DTYPES["Q4_K"], effort=4)
