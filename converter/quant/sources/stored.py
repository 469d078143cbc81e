"""A weight as a scheme stores it, whatever the scheme: numbers on demand, and blocks of ggml where these hold it.

Numbers are F32: integers times scales that are widened first, so that a product is rounded once. Libraries calculate
in the type of the scales, which is F16 or BF16 often, and round to that once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile, UnsupportedFeature
from converter.quant.sources import blocks
from converter.quant.sources.bits import stream
from converter.quant.sources.floats import E4M3, E8M0, MICRO, fours
from converter.tensors.bound import EXACT, Bound, rounding, within
from converter.tensors.dtypes import BF16, DTYPES, F16, DType
from converter.tensors.mxfp4 import MXFP4
from converter.tensors.tensor import Beside, Rows

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]
_POSITIVE = 0x7E  # the largest E4M3; above are NaN and what is negative


class Kept(NamedTuple):
    """A type of ggml that holds a weight as it is stored.

    `read(start, stop)` gives rows of it and how many of their scales were rounded. `loss` says what is lost in words,
    "" where nothing is but a scale that F16 does not hold; `bound` how far its numbers are from those of the codes.
    `beside` is what the blocks do not say. `same` says that blocks of that type are what the source has.
    """

    dtype: DType
    read: Callable[[int, int], tuple[Rows, int]]
    loss: str = ""
    bound: Bound = EXACT
    beside: Beside | None = None
    same: bool = False


class Stored(Protocol):
    """A weight of `shape`, (rows, row) or with more axes before; `work` is the memory that a row needs on its way."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def work(self) -> int: ...
    def values(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) as F32 (stop - start, row)."""
        ...

    def kept(self, near: bool) -> Kept | None:
        """The type of ggml that holds it best, if one does: exactly, or `near` enough to say what is lost.

        May read what is small, zero points and the like.
        """
        ...

    def holds(self) -> DType | None:
        """A type of 16 bits that holds every number, whatever the model calculates in."""
        ...


class Group(NamedTuple):
    """Rows of codes: number = scale * (code - zero) + least, the last three by groups of columns.

    codes: (n, row); scale, zero, least: (n, groups), the last two or None.
    """

    codes: Integers
    scale: Floats
    zero: NDArray[Any] | None = None
    least: Floats | None = None


_ROWS = 1 << 14  # whose scales are looked at together
_BEYOND = 65520  # what F16 takes for infinite
_ROUNDED_SCALES = (
    "scales are F32 and become F16: numbers move by 1/2048 of themselves, more if a scale is below 0.00006"
)
_ROUNDED_LEAST = "least numbers, -zero * scale, become F16: each moves by 1/2048 of itself at most"
#: What F16 makes of scales and least numbers of these types; those of others are rounded.
_HELD_SCALES = {"F16": EXACT, "BF16": Bound(but="but for scales below 2^-17")}
_LEAST = "the least number of its group"
_HALF = rounding(F16).shares[0].share
_ORDER = Bound(but="but for the last bit of F32")  # three factors, multiplied in another order


def _in(dtype: DType | None, numbers: Floats) -> Floats:
    """Numbers rounded to a type of 16 bits."""
    if dtype is None:
        return numbers
    return numbers.astype(ml_dtypes.bfloat16 if dtype is BF16 else np.float16).astype(np.float32)


def check(
    where: str,
    scale: Floats,
    numbers: Callable[[NDArray[np.bool_]], NDArray[Any]],
    *more: NDArray[Any] | None,
) -> None:
    """Refuse scales that leave nothing of a weight; `numbers` are the codes, without zero points, of groups chosen.

    `more` are zero points and least numbers.
    """
    for what, given in (("scale", scale), *(("zero point or a least number", each) for each in more)):
        if given is not None and not np.isfinite(given).all():
            raise CorruptFile(f"{where}: a {what} is infinite or no number (NaN)")
    if (none := scale == 0).any() and numbers(none).any():
        raise CorruptFile(f"{where}: a scale is zero, and its codes are not")


def _steps(scale: Floats, least: Floats) -> Floats:
    """Least numbers in steps of their scales, with the sign of zero points."""
    with np.errstate(all="ignore"):
        found: Floats = np.where(least == 0, np.float32(0), -least / scale)
    return found


@dataclass(frozen=True)
class Affine:
    """Integers in groups of columns that share a scale.

    Attributes:
        where: file and module, for messages.
        shape: of the weight.
        size: columns of a group; the last may be shorter.
        codes: lowest and highest code there can be.
        read: rows [start, stop).
        zeros: the lowest and the highest zero point that are there, read when asked; None where there are none.
        least: whether groups have a least number.
        order: the group of each column, where groups are not in the order of columns.
        real: zero points are real numbers, not integers.
        scaled: the type that scales have or are held by, asked when needed: F16 and BF16 ones are kept as F16, and
            those that this does not hold after all are counted.
        after: what numbers are multiplied by once they are scaled.
        scales: scales and least numbers of rows [start, stop) without the codes, where groups have a least number.
        own: the type that the scheme gives numbers in: each step is rounded to it. Codes that are kept are not.
    """

    where: str
    shape: tuple[int, ...]
    size: int
    codes: tuple[int, int]
    read: Callable[[int, int], Group]
    zeros: Callable[[], tuple[int, int]] | None = None
    least: bool = False
    order: NDArray[np.int64] | None = None
    real: bool = False
    scaled: Callable[[], str] = lambda: "F16"
    after: np.float32 | None = None
    scales: Callable[[int, int], tuple[Floats, Floats]] | None = None
    own: DType | None = None

    @property
    def work(self) -> int:
        return 16 * self.shape[-1]

    def _spread(self, groups: NDArray[Any]) -> NDArray[Any]:
        """(n, groups) as (n, row)."""
        if self.order is not None:
            return groups[:, self.order]
        return np.repeat(groups, self.size, axis=1)[:, : self.shape[-1]]

    def values(self, start: int, stop: int) -> Floats:
        group = self.read(start, stop)
        numbers = group.codes.astype(np.float32)
        if group.zero is not None:
            numbers -= self._spread(group.zero)
        check(self.where, group.scale, lambda none: numbers[self._spread(none)], group.zero, group.least)
        with np.errstate(all="ignore"):  # what is too large is counted where it is encoded
            numbers *= self._spread(group.scale)
            if self.after is not None:
                numbers *= self.after
            numbers = _in(self.own, numbers)
            if group.least is not None:
                numbers = _in(self.own, numbers + self._spread(group.least))
        return numbers

    def kept(self, near: bool) -> Kept | None:
        exact = self._held() if self.scaled() in _HELD_SCALES and not self.real else None
        if exact is not None or not near:
            return exact
        nearby = ((other._held(), loss, bound) for other, loss, bound in self._nearby())
        return next((held._replace(loss=loss, bound=held.bound + bound) for held, loss, bound in nearby if held), None)

    def _rounded_scales(self) -> Bound:
        """What F16 makes of numbers by way of their scales and, where these are rounded, of least numbers."""
        held = _HELD_SCALES.get(self.scaled())
        if held is not None:
            return held
        small = "more where a scale is below 0.00006"
        if not self.least:
            return replace(within((_HALF, "itself")), but=small)
        return replace(within((_HALF, "code times scale"), (_HALF, _LEAST)), but=small)

    def _held(self) -> Kept | None:
        """As a type of ggml, whatever becomes of the scales."""
        zeros = self.zeros() if self.zeros is not None else (0, 0)
        columns = self.order if self.order is not None else np.arange(self.shape[-1]) // self.size
        name = blocks.holding(self.codes[0] - zeros[1], self.codes[1] - zeros[0], columns, least=self.least)
        if name is None:
            return None
        first = columns[:: blocks.HOLDS[name].size]

        def read(start: int, stop: int) -> tuple[Rows, int]:
            group = self.read(start, stop)
            codes = group.codes.astype(np.int16)
            if group.zero is not None:
                codes -= self._spread(group.zero).astype(np.int16)
            check(self.where, group.scale, lambda none: codes[self._spread(none)], group.zero, group.least)
            scale = group.scale if self.after is None else group.scale * self.after
            least = None if group.least is None else group.least[:, first]
            if max(float(np.abs(each).max(initial=0)) for each in (scale, least) if each is not None) >= _BEYOND:
                raise UnsupportedFeature(f"{self.where}: a scale is beyond F16\n--keep-codes never decodes the codes")
            return blocks.packed(name, codes, scale[:, first], least)

        return Kept(DTYPES[name], read, bound=self._rounded_scales())

    def _nearby(self) -> Iterator[tuple[Affine, str, Bound]]:
        """The same weight with something rounded, so that a type may hold it, and what that loses beside scales."""
        if self.real:
            rounded = replace(self, real=False, least=True, read=self._read_least)
            yield rounded, _ROUNDED_LEAST, within((_HALF, _LEAST))
            return
        yield self, _ROUNDED_SCALES, EXACT
        if self.scales is not None:
            low, high, off = self._extent(self.scales)
            zeroed = replace(self, least=False, read=self._read_zeros, zeros=lambda: (low, high))
            said = f"least numbers become whole steps: each number moves by {off:.3f} of a step at most"
            yield zeroed, said, within((off, "a step"))

    def _extent(self, scales: Callable[[int, int], tuple[Floats, Floats]]) -> tuple[int, int, float]:
        """The lowest and the highest least number in whole steps, and how far from whole the farthest is."""
        rows = math.prod(self.shape[:-1])
        found = []
        for start in range(0, rows, _ROWS):
            steps = _steps(*scales(start, min(start + _ROWS, rows)))
            whole = np.rint(steps)
            found.append((whole.min(), whole.max(), np.abs(steps - whole).max()))
        lows, highs, offs = np.array(found, np.float64).T
        if not np.isfinite((lows, highs)).all():
            raise CorruptFile(f"{self.where}: a scale or a least number is infinite or no number (NaN)")
        return int(lows.min()), int(highs.max()), float(offs.max())

    def _read_least(self, start: int, stop: int) -> Group:
        """With least numbers in the place of zero points that are real numbers."""
        codes, scale, zero, _ = self.read(start, stop)
        return Group(codes, scale, None, -np.asarray(zero, np.float32) * scale)

    def _read_zeros(self, start: int, stop: int) -> Group:
        """With zero points in the place of least numbers."""
        codes, scale, _, least = self.read(start, stop)
        assert least is not None  # where there are none, this is not asked
        return Group(codes, scale, np.rint(_steps(scale, least)))

    def holds(self) -> DType | None:
        return self.own


@dataclass(frozen=True)
class Scaled:
    """Numbers of a small floating type, each times the scale of its place.

    Attributes:
        where: file and module, for messages.
        shape: of the weight.
        read: rows [start, stop) as F32 (n, row), unscaled.
        scales: the scales of rows [start, stop) as F32 (n, groups).
        size: columns that share a scale; the last may be fewer.
        powers: whether all scales are powers of two, asked when needed: then BF16 holds every product.
        own: the type that the scheme gives numbers in: products are rounded to it.
    """

    where: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Floats]
    scales: Callable[[int, int], Floats]
    size: int
    powers: Callable[[], bool] = lambda: False
    own: DType | None = None

    @property
    def work(self) -> int:
        return 12 * self.shape[-1]

    def values(self, start: int, stop: int) -> Floats:
        numbers, scale = self.read(start, stop), self.scales(start, stop)
        row = self.shape[-1]
        if np.isnan(numbers).any():
            raise CorruptFile(f"{self.where}: holds codes that are no numbers (NaN)")
        check(self.where, scale, lambda none: numbers[np.repeat(none, self.size, axis=1)[:, :row]])
        with np.errstate(all="ignore"):
            if row % self.size == 0:
                parts = numbers.reshape(len(numbers), -1, self.size)
                parts *= scale[:, :, None]
            else:
                numbers *= np.repeat(scale, self.size, axis=1)[:, :row]
        return _in(self.own, numbers)

    def kept(self, near: bool) -> Kept | None:
        return None

    def holds(self) -> DType | None:
        return self.own or (BF16 if self.powers() else None)


class Factor(NamedTuple):
    """What all scales of a tensor are multiplied by (or divided, as it is stored), one number or one to each matrix."""

    numbers: Floats
    divides: bool = False

    @property
    def factors(self) -> Floats:
        numbers = self.numbers.reshape(-1)
        with np.errstate(divide="ignore", over="ignore"):
            return np.float32(1) / numbers if self.divides else numbers

    def check(self, where: str) -> None:
        """Refuse what leaves nothing of a weight.

        Raises:
            CorruptFile: a number is zero, negative, infinite or none.
        """
        if not (np.isfinite(self.factors) & (self.factors > 0) & (self.numbers.reshape(-1) > 0)).all():
            raise CorruptFile(f"{where}: the scale of the whole tensor is {self.numbers.min()}, nothing to multiply by")


@dataclass(frozen=True)
class Fours:
    """Numbers of four bits (E2M1) in groups of columns: 32 of them share an exponent (MXFP4), or 16 an E4M3 (NVFP4).

    Attributes:
        where: file and module, for messages.
        shape: of the weight.
        codes: rows [start, stop) as bytes (n, row / 2) of two codes, the low half first.
        scales: their scales as bytes (n, groups).
        size: columns of a group, 32 or 16.
        factor: of the whole tensor, where there is one.
        inputs: the same of activations.
        signed_zero: whether code 8 is -0.
        prec_a4: whether activations may be rounded to four bits.
    """

    where: str
    shape: tuple[int, ...]
    codes: Callable[[int, int], Rows]
    scales: Callable[[int, int], Rows]
    size: int
    factor: Factor | None = None
    inputs: Factor | None = None
    signed_zero: bool = True
    prec_a4: bool = True

    @property
    def work(self) -> int:
        return 12 * self.shape[-1]

    def _checked(self, start: int, stop: int) -> tuple[Rows, Rows, Floats]:
        """Codes, scales, and the scales as numbers."""
        codes, scales = self.codes(start, stop), self.scales(start, stop)
        numbers = (E8M0 if self.size == MICRO else E4M3)[scales]
        if self.size != MICRO and (scales > _POSITIVE).any():
            raise CorruptFile(f"{self.where}: a scale is negative or no number (NaN)")
        row = self.shape[-1]
        check(self.where, numbers, lambda none: stream(codes, 4, row)[np.repeat(none, self.size, axis=1)[:, :row]] & 7)
        return codes, scales, numbers

    def values(self, start: int, stop: int) -> Floats:
        codes, _, scale = self._checked(start, stop)
        if self.factor is not None:
            self.factor.check(self.where)
            given = self.factor.numbers.reshape(-1)
            own = given[np.arange(start, stop) * len(given) // math.prod(self.shape[:-1]), None]
            scale = scale / own if self.factor.divides else scale * own
        numbers = fours(codes)
        if not self.signed_zero:
            numbers += np.float32(0)
        row = self.shape[-1]
        with np.errstate(all="ignore"):  # what is too large is counted where it is encoded
            numbers *= np.repeat(scale, self.size, axis=1)[:, :row]
        return numbers

    def kept(self, near: bool) -> Kept | None:
        dtype = DTYPES["MXFP4" if self.size == MICRO else "NVFP4"]
        if not dtype.fits(self.shape[-1]) or (dtype is MXFP4 and self.factor is not None):
            return None

        def read(start: int, stop: int) -> tuple[Rows, int]:
            codes, scales, _ = self._checked(start, stop)
            return blocks.fours(dtype.name, codes, scales), 0

        if self.factor is None:
            return Kept(dtype, read, same=True)
        self.factor.check(self.where)
        scale = self.factor.factors
        given = np.ones(1, np.float32) if self.inputs is None else self.inputs.factors
        beside = Beside(tuple(scale.tolist()), tuple(np.broadcast_to(given, scale.shape).tolist()), self.prec_a4)
        return Kept(dtype, read, bound=_ORDER, beside=beside, same=True)

    def holds(self) -> DType | None:
        return BF16 if self.size == MICRO and self.factor is None else None


@dataclass(frozen=True)
class Values:
    """What is neither of these: rows by a function; `type` of 16 bits holds them, where one does.

    `slab` is the memory that rows asked for together should take, where single ones cost much.
    """

    shape: tuple[int, ...]
    read: Callable[[int, int], Floats]
    work: int
    type: DType | None = None
    slab: int | None = None

    def values(self, start: int, stop: int) -> Floats:
        return self.read(start, stop)

    def kept(self, near: bool) -> Kept | None:
        return None

    def holds(self) -> DType | None:
        return self.type
