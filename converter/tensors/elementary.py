"""exp, log, powers and waves in F32, with the same bits on every machine.

numpy and libm answer from code that differs between processors and versions, in the last bit. What reaches a file is
computed here instead: additions, multiplications and divisions of float64, which IEEE 754 defines to the bit, and one
rounding to F32 at the end. The float64 is within 2.1 units of its last place (`exp` 1.2). So the F32 is the correctly
rounded value for all arguments of `exp`, and for all of `log` but five, which lie so close to the middle between two
others that they get the second nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

CHUNK = 1 << 15  # elements at a time, so that the float64 between fits the cache

_LOG2_E = 1.4426950408889634
_LN2 = (float.fromhex("0x1.62e42fefap-1"), float.fromhex("0x1.cf79abc9e3b3ap-40"))  # multiples of the first are exact
_SHIFT = 1.5 * 2.0**52  # added to a small number, leaves the nearest integer in the last bits
_HALF_PI = (
    float.fromhex("0x1.921fb54400000p+0"),
    float.fromhex("0x1.0b4611a626331p-34"),
)  # multiples of the first are exact
_SIN = [(1 - n % 2 * 2) / math.factorial(2 * n + 1) for n in range(10)]  # of r^2 in sin(r) / r, |r| <= pi / 4
_COS = [(1 - n % 2 * 2) / math.factorial(2 * n) for n in range(10)]
_EXP_RANGE = (-104.0, 89.0)  # exp rounds to zero below it, to infinity above
_EXP = [1 / math.factorial(n) for n in range(14)]  # of r in e^r, |r| <= ln 2 / 2
_ATANH = [2 / (2 * n + 1) for n in range(12)]  # of s^2 in 2 atanh(s) / s, |s| <= 3 - sqrt 8
_ROOT_HALF = 0.7071067811865476
_LINEAR = 20.0  # softplus is x itself above it
_TINY, _ROUND = 2.0**-20, 2.0**-28  # below them e^x - 1 loses too many bits, and log(1 + x) is x to the last of an F32
# BF16 patterns of the arguments for which torch on x86 (its vector library's exp) gives the F32 below or above.
_TORCH_BELOW = (
    0x3380, 0x3AD9, 0x3E43, 0x3F7A, 0x4070, 0x4079, 0x40E1, 0x4279, 0xBB33, 0xBB3A, 0xBB55, 0xBC0D, 0xBC69, 0xBC9D,
    0xBC9E, 0xBD11, 0xBF67,
)  # fmt: skip
_TORCH_ABOVE = (
    0x3B49, 0x3B4E, 0x3B61, 0x3DF0, 0x3EC1, 0x3ED7, 0x3FB6, 0x404C, 0x407F, 0x40AC, 0x40E5, 0x4226, 0x425D, 0x428F,
    0xBAE9, 0xBAFA, 0xBAFE, 0xBB03, 0xBB17, 0xBB1C, 0xBB24, 0xBC42, 0xBCC5, 0xBD0E, 0xBD95, 0xBDC2, 0xBE0D, 0xBF52,
)  # fmt: skip


def exp(values: NDArray[Any]) -> Floats:
    """e to the power of each of `values`, which are taken as F32."""
    return _chunked(lambda x: _exp(x, 0.0), values)


def torch_exp(values: NDArray[Any]) -> Floats:
    """`exp` as torch on x86 has it for every argument that is a BF16 number, and for 99 % of the others.

    What converters write of a model's decay rates comes from torch, and these are nearly always stored in BF16. Of
    the 34,000 arguments whose exp is a number, torch rounds 45 to the second nearest F32.
    """
    result, patterns = exp(values), np.asarray(values, np.float32).view(np.uint32)
    for step, table in ((-1, _TORCH_BELOW), (1, _TORCH_ABOVE)):
        result.view(np.int32)[np.isin(patterns, np.array(table, np.uint32) << 16)] += step
    return result


def log(values: NDArray[Any]) -> Floats:
    """Natural logarithm of each of `values`, which are taken as F32: -inf of zero, NaN of what is negative."""
    return _chunked(_log, values)


def softplus(values: NDArray[Any]) -> Floats:
    """log(1 + e^x) of each of `values`, which are taken as F32, with e^x rounded to F32 between, as torch has it.

    Which of two neighbours torch gives depends on its processor and on how many values there are.
    """
    return _chunked(lambda x: np.where(x > _LINEAR, x, _log1p(_exp(x, 0.0).astype(np.float32))), values)


def softplus_inverse(values: NDArray[Any]) -> Floats:
    """log(e^y - 1) of each of `values`, which are taken as F32: NaN of what is negative."""
    return _chunked(lambda y: np.where(y > _LINEAR, y, np.where(y < _TINY, _log(y), _log(_exp(y, 0.0) - 1))), values)


def power(base: float, exponents: NDArray[Any]) -> Floats:
    """`base`, a positive number, to the power of each of `exponents`, which are taken as F32."""
    decimal = Context(prec=50)
    logarithm = decimal.ln(Decimal(base))
    fraction, exponent = math.frexp(float(logarithm))
    high = math.ldexp(round(math.ldexp(fraction, 29)), exponent - 29)  # 29 bits: times an F32 it is exact
    low = float(decimal.subtract(logarithm, Decimal(high)))
    return _chunked(lambda x: _exp(x * high, x * low), exponents)


def sin(angles: NDArray[Any]) -> Floats:
    """The sine of each of `angles`, which are taken as F32, up to a million in either direction."""
    return _chunked(lambda x: _wave(x, 0), angles)


def cos(angles: NDArray[Any]) -> Floats:
    """The cosine of each of `angles`, as `sin`."""
    return _chunked(lambda x: _wave(x, 1), angles)


def double_power(base: float, exponent: float) -> float:
    """`base` to the power of `exponent` as the nearest double; a number that none is near is infinite.

    Raises:
        ValueError: a negative number to the power of what is no integer.
        ZeroDivisionError: a negative power of zero.
    """
    if exponent == 0:
        return 1.0
    if base == 0 and exponent < 0:
        raise ZeroDivisionError("a negative power of zero")
    if base < 0 and not float(exponent).is_integer():
        raise ValueError("a negative number has no such power")
    return float(Context(prec=50).power(Decimal(base), Decimal(exponent)))


def double_log(number: float) -> float:
    """Natural logarithm of a positive number as the nearest double.

    Raises:
        ValueError: it is not positive.
    """
    if not number > 0:
        raise ValueError("a logarithm of what is not positive")
    return float(Context(prec=50).ln(Decimal(number)))


def _chunked(function: Callable[[Doubles], Doubles], values: NDArray[Any]) -> Floats:
    given = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    result = np.empty_like(given)
    with np.errstate(all="ignore"):
        for start in range(0, given.size, CHUNK):
            result[start : start + CHUNK] = function(given[start : start + CHUNK].astype(np.float64))
    return result.reshape(np.shape(values))


def _exp(x: Doubles, rest: Doubles | float) -> Doubles:
    """e^(x + rest) = 2^k e^r with x = k ln 2 + r; `rest` is what x lacks."""
    x = np.clip(x, *_EXP_RANGE)
    shifted = x * _LOG2_E + _SHIFT
    k = shifted - _SHIFT
    r = (x - k * _LN2[0]) - k * _LN2[1] + rest
    power_of_2 = ((shifted.view(np.int64) + 1023) << 52).view(np.float64)
    return _polynomial(_EXP, r) * power_of_2


def _wave(x: Doubles, ahead: int) -> Doubles:
    """sin(x + ahead * pi / 2): x = k pi / 2 + r, and k says which of four waves of r it is."""
    k = np.rint(x * (1 / _HALF_PI[0]))
    r = (x - k * _HALF_PI[0]) - k * _HALF_PI[1]
    which = k.astype(np.int64) + ahead
    square = r * r
    made = np.where(which & 1, _polynomial(_COS, square), r * _polynomial(_SIN, square))
    return np.where(which & 2, -made, made)


def _log1p(x: Floats) -> Doubles:
    wide = x.astype(np.float64)
    return np.where(wide < _ROUND, wide, _log(1 + wide))


def _log(x: Doubles) -> Doubles:
    """log x = k ln 2 + log m with x = 2^k m; log m = 2 atanh((m - 1) / (m + 1))."""
    m, exponent = np.frexp(x)
    small = m < _ROOT_HALF
    m, k = np.where(small, m + m, m), exponent - small.astype(np.float64)
    s = (m - 1) / (m + 1)
    finite = k * _LN2[0] + (k * _LN2[1] + s * _polynomial(_ATANH, s * s))
    return np.select([x == 0, x < 0, ~np.isfinite(x)], [-np.inf, np.nan, x], finite)


def _polynomial(coefficients: Sequence[float], x: Doubles) -> Doubles:
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result
