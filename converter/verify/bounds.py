"""How much error a type may have on given weights, known before anything is encoded: from the largest values of its
blocks alone.

`noise_bound` is what no correct encoder exceeds, `expected_noise` what one has on weights. Both are sums of squared
errors, as `Measured.noise` is.

Derivation. A block of `n` values, of largest magnitude `a` (of range `a = max - min` where the type stores a minimum),
is given levels that reach from end to end. A correct encoder is no worse than one that takes the nearest level of each
value. The error of that one has at most these parts:

- `half * a`: half of the widest gap between levels. Where the levels of one sign end before those of the other (Q4_0
  has -8 to 7), a value of that sign is off by at most what it is beyond `reach * a`.
- `coarse * A`: where the scales of a super-block's blocks are small integers, half a step of those, carried to the
  outermost level; `A` is the largest `a` of the super-block. As much of the largest minimum, where there are minima.
- 2^-11 of the outermost level (and of the minimum) for the scale in F16, but for the smallest scales half of the
  smallest F16, times `levels`; no more than the value itself, for then the scale is zero.

Their sum `e` is the largest error of one value, and `n e^2` that of the block. Where zero is a level, the nearest one
is no farther than the value is large, so the energy of all values is a bound too. Expected are the parts' mean squares
added up: h^2/3 for an error even in (-h, h), and `mean^2` for levels or points that are not evenly spread.

Where an encoder does nothing but round, this is proven. Where it searches (`searched`), it has the least weighted
error, which the rounding one's is a bound of, but not the least plain error. There, and for the points of the IQ types
(`half` is the distance, per value, of the farthest place from them), that it holds was measured on all data of the
tests. With an importance matrix, values in columns of no importance may lose nearly all: `UNHEARD` allows for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.quant.imatrix import WEIGHTED
from converter.tensors.dtypes import DType

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

SUPER_BLOCK = 256
#: With an importance matrix: how much more plain error its search may leave, and the share of the energy that columns
#: of importance zero may lose beside. Measured: at most 0.5 and 0.22 (docs/bounds.md).
SLACK = 2.0
UNHEARD = 0.25
_F16, _F16_LEAST = 2.0**-11, 2.0**-25
_ROUNDING = 1.0 + 1e-4  # the encoders' own arithmetic is in float32


@dataclass(frozen=True)
class Blocks:
    """A blocked type; `half`, `reach`, `coarse` and `mean` are relative to a block's largest magnitude, or range.

    `n` values are a block, or 0 where a row is.
    `kind` says what a block is scaled by: "magnitude", "range" between a stored minimum and the maximum, "minimum" the
    same with one that is never positive, "mean" of the magnitudes. `levels` is the integer by which the F16 scale is
    multiplied for the outermost level (with those for a minimum).
    """

    n: int
    half: float
    levels: int
    coarse: float = 0.0
    kind: Literal["magnitude", "range", "minimum", "mean"] = "magnitude"
    reach: float = 1.0
    zero: bool = True
    searched: bool = False
    mean: float = 0.0  # where the levels are not even
    scale: tuple[float, float] = (_F16, _F16_LEAST)
    most: float = float("inf")  # what the scale can stand for


@dataclass(frozen=True)
class Cast:
    """A plain type: half a unit in the last place, relative to the value, and half the smallest subnormal."""

    half: float
    least: float


def _symmetric(n: int, top: int, levels: int = 1, **more: Any) -> Blocks:
    """Levels -top to top - 1, one apart."""
    return Blocks(n, 0.5 / top, levels * top, reach=(top - 1) / top, **more)


def _affine(n: int, top: int, **more: Any) -> Blocks:
    """Levels 0 to top, above a minimum."""
    return Blocks(n, 0.5 / top, (top + 1) * more.pop("levels", 1), **more)


def _points(n: int, half: float, mean: float, levels: int, steps: int) -> Blocks:
    """Points of a lattice; the scale of a block is an odd number of up to `steps`."""
    return Blocks(n, half, levels * steps, 1 / steps, zero=False, searched=True, mean=mean)


_EXACT = (0.0, 0.0)
TYPES: dict[str, Blocks | Cast] = {
    "F32": Cast(2.0**-24, 2.0**-150), "F16": Cast(2.0**-11, 2.0**-25), "BF16": Cast(2.0**-8, 2.0**-134),
    "F8_E4M3": Cast(2.0**-4, 2.0**-10), "F8_E4M3FNUZ": Cast(2.0**-4, 2.0**-11),
    "F8_E5M2": Cast(2.0**-3, 2.0**-17), "F8_E5M2FNUZ": Cast(2.0**-3, 2.0**-18), "F8_E8M0": Cast(1 / 3, 2.0**-128),
    "Q8_0": Blocks(32, 0.5 / 127, 127), "Q8_1": Blocks(32, 0.5 / 127, 127),
    "INT8": Blocks(0, 0.5 / 127, 127, scale=(2.0**-24, 2.0**-150)), "Q8_K": Blocks(256, 0.5 / 127, 127, scale=_EXACT),
    "Q4_0": _symmetric(32, 8), "Q5_0": _symmetric(32, 16),
    "Q4_1": _affine(32, 15, kind="range"), "Q5_1": _affine(32, 31, kind="range"),
    "Q2_K": _affine(16, 3, levels=15, coarse=0.5 / 15, kind="minimum", searched=True),
    "Q4_K": _affine(32, 15, levels=63, coarse=0.5 / 63, kind="minimum", searched=True),
    "Q5_K": _affine(32, 31, levels=63, coarse=0.5 / 63, kind="minimum", searched=True),
    # Their scales have signs, of which one may end a step early as well.
    "Q3_K": _symmetric(16, 4, levels=32, coarse=1 / 32, searched=True),
    "Q6_K": _symmetric(16, 32, levels=128, coarse=1 / 128, searched=True),
    # Of the 16 levels from -127 to 113 the widest gap is 24; cubes of the gaps give the mean.
    "IQ4_NL": Blocks(32, 12 / 127, 127, reach=113 / 127, zero=False, searched=True, mean=5.08 / 127),
    "IQ4_XS": Blocks(
        32, 12 / 127, 127 * 32, coarse=1 / 32, reach=113 / 127, zero=False, searched=True, mean=5.08 / 127
    ),
    # Covering radius and second moment of the points, as tests/verify/test_bounds.py finds them; with the price of an
    # even number of minus signs where only seven of eight are stored (IQ2_XXS, IQ2_XS, IQ3_XXS).
    "IQ3_XXS": _points(32, 0.414, 0.095, 62, 31), "IQ3_S": _points(32, 0.320, 0.076, 15, 31),
    "IQ2_XXS": _points(32, 0.555, 0.200, 43, 31), "IQ2_XS": _points(16, 0.436, 0.185, 43, 31),
    "IQ2_S": _points(16, 0.305, 0.146, 43, 31), "IQ1_S": _points(32, 0.54, 0.274, 9, 15),
    # A block's only value may become the eighth that all levels are shifted by; the others are nine times as large.
    "IQ1_M": Blocks(16, 9.0, 9 * 15, 1 / 15, zero=False, searched=True, mean=0.274),
    "TQ1_0": Blocks(256, 0.5, 1), "TQ2_0": Blocks(256, 0.5, 1), "Q2_0": Blocks(64, 0.5, 1),
    "Q1_0": Blocks(128, 0.0, 1, kind="mean", zero=False),
    # Levels 0, 1/2, 1, 3/2, 2, 3, 4, 6 (mean 0.38 of 6). MXFP4's scale is a power of two, and a up to 8; NVFP4's has a
    # rounding of 1/16, and from 240 on is 448.
    "MXFP4": Blocks(32, 0.25, 1, mean=0.064, scale=(0.0, 2.0**-126)),
    "NVFP4": Blocks(16, 17 / 96, 6, mean=0.064, scale=(0.0, 2.0**-10), most=6 * 240),
}  # fmt: skip


def noise_bound(rows: Floats, dtype: DType, *, weighted: bool = False) -> float:
    """The most squared error that a correct encoder leaves, summed over all rows.

    Args:
        rows: what is encoded, float32 (n, row); a row is whole blocks.
        dtype: a row of `TYPES`.
        weighted: whether the encoder may have followed an importance matrix.

    Returns:
        The bound; infinite where the rows have values that are not finite.
    """
    facts, energy = TYPES[dtype.name], _energy(rows)
    if isinstance(facts, Cast):
        most = (facts.half * np.sqrt(energy) + facts.least * np.sqrt(rows.size)) ** 2
        return _or_infinite(min(most, energy) * _ROUNDING)
    rounding, stored = _parts(facts, rows)
    steps, n = sum(stored), facts.n or rows.shape[1]
    total = n * float(np.square(rounding + steps).sum())
    if facts.zero:  # by the triangle inequality: the nearest levels, and what their scales are off
        total = min(total, (np.sqrt(energy) + np.sqrt(n * float(np.square(steps).sum()))) ** 2)
    if weighted and dtype.name in WEIGHTED:
        total = SLACK * total + UNHEARD * energy
    return _or_infinite(total * _ROUNDING)


def expected_noise(rows: Floats, dtype: DType) -> float:
    """The squared error that is to be expected of rows as in `noise_bound`, where they are weights."""
    facts, energy = TYPES[dtype.name], _energy(rows)
    if isinstance(facts, Cast):
        # A significand m in [1, 2) has density 1 / (m ln 2), so its mean square is 3 / (2 ln 2).
        return _or_infinite(energy * facts.half**2 / 3 * np.log(2) / 1.5 + rows.size * facts.least**2 / 3)
    rounding, stored = _parts(facts, rows)
    known = facts.mean / facts.half if facts.mean else 1.0 if facts.kind == "mean" else _EVEN
    squares = np.square(known * rounding) + sum(np.square(_EVEN * part) for part in stored)
    total = (facts.n or rows.shape[1]) * float(squares.sum())
    return _or_infinite(min(total, energy) if facts.zero else total)


_EVEN = 3**-0.5  # root mean square of what is even in (-1, 1)


def _energy(rows: Floats) -> float:
    flat = rows.reshape(-1)
    return float(np.einsum("i,i", flat, flat, dtype=np.float64))


def _or_infinite(value: float) -> float:
    return float(value) if np.isfinite(value) else float("inf")


def _parts(facts: Blocks, rows: Floats) -> tuple[Doubles, tuple[Doubles, ...]]:
    """Of each block, the largest error of rounding to its levels, and those of its stored scales."""
    blocks = rows.reshape(-1, facts.n or rows.shape[1])
    with np.errstate(invalid="ignore", over="ignore"):
        if facts.kind == "mean":
            return _around_mean(blocks)
        high, low = _ends(blocks)
        if facts.kind == "magnitude":
            a, other, minimum = np.maximum(high, -low), np.minimum(high, -low), np.zeros(len(blocks))
            rounding = np.maximum(facts.half * a, other - facts.reach * a)
            rounding = np.where(a > facts.most, a, rounding)
        else:
            low = np.minimum(low, 0) if facts.kind == "minimum" else low
            a, minimum = high - low, np.abs(low)
            rounding = facts.half * a
        if facts.coarse:
            a, minimum = _of_super_block(a, facts.n), _of_super_block(minimum, facts.n)
        relative, least = facts.scale
        outermost = a + minimum
        scale = np.maximum(relative * outermost, np.minimum(least * facts.levels, outermost))
        return rounding, (facts.coarse * a, facts.coarse * minimum, scale)


def _ends(blocks: Floats) -> tuple[Doubles, Doubles]:
    """Largest and smallest value of each block. Neighbours are paired: much faster than to reduce short rows."""
    if blocks.shape[1] & (blocks.shape[1] - 1):
        return blocks.max(axis=1).astype(np.float64), blocks.min(axis=1).astype(np.float64)
    high = low = blocks.reshape(-1)
    for _ in range(blocks.shape[1].bit_length() - 1):
        high, low = np.maximum(high[0::2], high[1::2]), np.minimum(low[0::2], low[1::2])
    return high.astype(np.float64), low.astype(np.float64)


def _around_mean(blocks: Floats) -> tuple[Doubles, tuple[Doubles, ...]]:
    """One bit: plus or minus the mean magnitude. Not only a bound: the error itself, but for the scale's rounding."""
    magnitudes = np.abs(blocks, dtype=np.float64)
    mean = magnitudes.mean(axis=1)
    spread = np.sqrt(np.square(magnitudes - mean[:, None]).mean(axis=1))
    return spread, (np.maximum(_F16 * mean, np.minimum(_F16_LEAST, mean)),)


def _of_super_block(values: Doubles, n: int) -> Doubles:
    per = SUPER_BLOCK // n
    return np.repeat(values.reshape(-1, per).max(axis=1), per)
