"""exp, log and power: correctly rounded, so the same on every machine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from decimal import Context, Decimal

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.tensors.elementary import (
    CHUNK,
    cos,
    double_log,
    double_power,
    exp,
    log,
    power,
    sin,
    softplus,
    softplus_inverse,
    torch_exp,
)

EXACT = Context(prec=60)
BF16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
BF16_NUMBERS = BF16[np.isfinite(BF16)]
# Of all F32, those whose result lies closest to the middle between two others: found by trying every one.
HARDEST_EXP = (
    "-0x1.d2259ap+3", "-0x1.e1dbe2p-8", "-0x1.c1c4b8p-10", "-0x1.0p-25", "0x1.fdff02p-17", "0x1.8d7cb6p-12",
    "0x1.cd3982p-14",
)  # fmt: skip
HARDEST_LOG = (
    "0x1.c09d7cp+27", "0x1.5190c0p+78", "0x1.22d570p-65", "0x1.b97c70p-14", "0x1.d1309cp+62", "0x1.cb534cp+13",
    "0x1.f0dde0p-8",
)  # fmt: skip
OFF_LOG = ("0x1.827a74p-7", "0x1.2f1fd6p+3", "0x1.bacb4ap+25", "0x1.b121a6p+76", "0x1.6351d8p+95")  # by one unit


def numbers(texts: tuple[str, ...]) -> NDArray[np.float32]:
    return np.array([float.fromhex(text) for text in texts], dtype=np.float32)


def nearest(value: Decimal) -> np.float32:
    """The F32 next to `value`, of the two that a float64 lies between."""
    guess = np.float32(float(value))
    around = (np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf)))
    return min(around, key=lambda f: abs(EXACT.subtract(Decimal(float(f)), value)))


def correct(function: Callable[[Decimal], Decimal], values: NDArray[np.float32]) -> list[np.float32]:
    return [nearest(function(Decimal(float(value)))) for value in values]


def digest(values: NDArray[np.float32]) -> str:
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()[:16]


def test_exp_rounds_correctly() -> None:
    usual = BF16_NUMBERS[(np.abs(BF16_NUMBERS) < 88) & (np.abs(BF16_NUMBERS) > 1e-9)][::7]
    least = np.array([-87.4, -95.5, -103.2, -103.9, -103.98], dtype=np.float32)  # results are subnormal or zero
    for values in (numbers(HARDEST_EXP), usual, least):
        assert exp(values).tolist() == correct(EXACT.exp, values)


def test_log_rounds_correctly() -> None:
    usual = BF16_NUMBERS[BF16_NUMBERS > 0][::9]
    least = np.array([1e-45, 3e-42, 1.1754942e-38], dtype=np.float32)
    for values in (numbers(HARDEST_LOG), usual, least):
        assert log(values).tolist() == correct(EXACT.ln, values)
    off = numbers(OFF_LOG)
    units = log(off).view(np.int32) - np.array(correct(EXACT.ln, off)).view(np.int32)
    assert np.abs(units).tolist() == [1] * len(off)


@pytest.mark.parametrize("base", [1e-30, 0.1, 1.0, 2.0, 10000.0, 500000.0, 1e6, 1.2e7, 1e30])
def test_power_rounds_correctly(base: float) -> None:
    base = float(np.float32(base))
    exponents = np.arange(0, 256, 2, dtype=np.float32) / np.float32(256)
    assert power(base, exponents).tolist() == correct(lambda e: EXACT.power(Decimal(base), e), exponents)


def test_what_no_number_can_say() -> None:
    inf = np.inf
    given = np.array([np.nan, inf, -inf, 0.0, -0.0, 88.72284, 88.72283, -104.0], dtype=np.float32)
    expected = np.array([np.nan, inf, 0.0, 1.0, 1.0, inf, 3.4027985e38, 0.0], dtype=np.float32)
    np.testing.assert_array_equal(exp(given), expected)
    given = np.array([np.nan, inf, -inf, 0.0, -0.0, -1.0, 1.0], dtype=np.float32)
    expected = np.array([np.nan, inf, np.nan, -inf, -inf, np.nan, 0.0], dtype=np.float32)
    np.testing.assert_array_equal(log(given), expected)


@pytest.mark.parametrize(("function", "recorded"), [(exp, "fb2a9c354799fce6"), (log, "22e0c06ba1c76b87")])
def test_the_bits_are_those_of_every_machine(
    function: Callable[[NDArray[np.float32]], NDArray[np.float32]], recorded: str
) -> None:
    """All BF16 numbers; recorded on x86-64."""
    result = function(BF16_NUMBERS)
    assert digest(result[~np.isnan(result)]) == recorded


def test_any_shape_and_any_order_of_memory() -> None:
    values = np.linspace(-9, 9, CHUNK + 5, dtype=np.float32)
    one_by_one = [exp(value[None])[0] for value in (values[0], values[CHUNK - 1], values[CHUNK], values[-1])]
    assert exp(values)[[0, CHUNK - 1, CHUNK, -1]].tolist() == one_by_one
    grid = np.linspace(-9, 9, 60, dtype=np.float32).reshape(3, 4, 5)
    assert exp(grid.T).tolist() == exp(grid).T.tolist()
    assert exp(grid[:, ::2, ::-1]).tolist() == exp(grid)[:, ::2, ::-1].tolist()
    assert exp(np.float32(1)).shape == () and exp(np.empty((0, 3), np.float32)).shape == (0, 3)
    assert (exp(grid).dtype, exp(grid.astype(np.float16)).dtype) == (np.float32, np.float32)


def test_torch_is_at_most_one_unit_off() -> None:
    """torch answers from MKL, Sleef or libm, as it was built and as the processor is; none rounds all correctly."""
    torch = pytest.importorskip("torch")
    values = BF16_NUMBERS[np.abs(BF16_NUMBERS) < 8]
    ours, theirs = exp(values), torch.exp(torch.from_numpy(values.copy())).numpy()
    off = np.flatnonzero(ours != theirs)
    assert len(off) < 0.02 * len(values)
    assert np.abs(ours[off].view(np.int32) - theirs[off].view(np.int32)).max(initial=0) <= 1
    assert ours[off].tolist() == correct(EXACT.exp, values[off])


def test_softplus_is_rounded_twice() -> None:
    """e^x to an F32, then log(1 + that): the value that torch has up to the last bit of either."""
    values = BF16_NUMBERS[BF16_NUMBERS < 20]
    ones = exp(values).astype(np.float64)
    wide = [nearest(EXACT.ln(EXACT.add(1, Decimal(float(each))))) for each in ones[::37]]
    assert softplus(values[::37]).tolist() == wide
    assert softplus(np.float32([20.5, 1e30, np.inf, -200])).tolist() == [20.5, float(np.float32(1e30)), np.inf, 0]
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.softplus(torch.from_numpy(values.copy())).numpy()
    off = np.abs(softplus(values).view(np.int32) - theirs.view(np.int32))
    assert off.max() <= 2 and np.count_nonzero(off) < 0.02 * len(values)


def test_softplus_leads_back_to_bf16() -> None:
    values = BF16_NUMBERS[(BF16_NUMBERS > -80) & (np.abs(BF16_NUMBERS) > 1e-3)]
    again = softplus_inverse(softplus(values)).view(np.uint32)
    assert np.array_equal((again + 0x7FFF + ((again >> 16) & 1)) >> 16, values.view(np.uint32) >> 16)
    assert np.isnan(softplus_inverse(np.float32(-1))) and softplus_inverse(np.float32(30)) == 30


def test_the_exceptions_of_torch() -> None:
    """One unit at 45 BF16 numbers and nowhere else; where torch is MKL's on x86, that makes all of them its own."""
    values = BF16_NUMBERS[np.abs(BF16_NUMBERS) < 88]
    ours, rounded = torch_exp(values), exp(values)
    steps = ours.view(np.int32) - rounded.view(np.int32)
    assert (int((steps == 1).sum()), int((steps == -1).sum())) == (28, 17) and np.abs(steps).max() == 1
    assert torch_exp(np.float32(0.1171875)) == np.nextafter(exp(np.float32(0.1171875)), np.float32(2))
    torch = pytest.importorskip("torch")
    if not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("another exp")
    assert np.array_equal(ours, torch.exp(torch.from_numpy(values.copy())).numpy())


def test_waves_round_correctly() -> None:
    """The wider type of x86 is exact enough for all of these; elsewhere it may be a double."""
    random = np.random.default_rng(5)
    angles = np.concatenate([np.linspace(-2000, 2000, 40001), random.uniform(-1e6, 1e6, 20000), [0, -0.0, 1e-30]])
    angles = angles.astype(np.float32)
    assert np.array_equal(sin(angles), np.sin(angles.astype(np.longdouble)).astype(np.float32))
    assert np.array_equal(cos(angles), np.cos(angles.astype(np.longdouble)).astype(np.float32))


def test_powers_of_doubles_are_the_nearest_double() -> None:
    """An expression's power reaches the file, too; expectations are 60 digits, rounded once."""
    assert double_power(2.0, 0.5).hex() == "0x1.6a09e667f3bcdp+0"
    assert double_power(10.0, -2.0).hex() == "0x1.47ae147ae147bp-7"
    rng = np.random.default_rng(1)
    for base, exponent in zip(rng.uniform(0.01, 1e6, 200), rng.uniform(-20, 20, 200), strict=True):
        found = double_power(float(base), float(exponent))
        exact = EXACT.power(Decimal(float(base)), Decimal(float(exponent)))
        assert found == float(exact)
        assert abs(found - float(base) ** float(exponent)) <= 2 * math.ulp(found)
    assert double_power(-2.0, 3) == -8.0
    assert double_power(0.0, 0) == 1.0
    assert double_power(1e300, 2.0) == math.inf
    with pytest.raises(ZeroDivisionError):
        double_power(0.0, -1)
    with pytest.raises(ValueError, match="no such power"):
        double_power(-1.0, 0.5)


def test_logarithms_of_doubles_are_the_nearest_double() -> None:
    assert double_log(2).hex() == "0x1.62e42fefa39efp-1"
    for number in np.random.default_rng(2).uniform(1e-6, 1e6, 200):
        assert abs(double_log(float(number)) - math.log(number)) <= math.ulp(math.log(number))
    for number in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="not positive"):
            double_log(number)
