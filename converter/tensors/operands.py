"""ggml's blocks as what MatMulNBits multiplies by: codes, scales, and minima where a type has them.

Every type here is a table of whole numbers times scales, less minima: `number = scale * (code - zero) - minimum`, the
same F32 product of the same factors as ggml's own decoding, so that no weight changes. Codes of 4 bits are two a byte,
the first in the low bits; a zero is what the operator takes for it by itself, half of the codes, except with minima.

Source: ggml's block layouts (ggml-common.h); com.microsoft.MatMulNBits of ONNX Runtime's contributed operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Inexact(ValueError):
    """Numbers that no block of a type has; the text says which."""


@dataclass(frozen=True)
class Unpacked:
    """Blocks of one type as arrays: codes (blocks, elements), scales and minima (blocks,)."""

    codes: Bytes
    scales: Floats
    minima: Floats | None = None


@dataclass(frozen=True)
class Kind:
    """How a type of ggml is multiplied by.

    Attributes:
        bits: of a code as the operator reads it.
        block: elements that share a scale.
        unpack: ggml's blocks as rows of bytes -> the operator's blocks.
        pack: and back; raises Inexact where no block of the type has these numbers.
        minima: whether a minimum is subtracted.
    """

    bits: int
    block: int
    unpack: Callable[[Bytes], Unpacked]
    pack: Callable[[Unpacked], Bytes]
    minima: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of a block's codes."""
        return self.block * self.bits // 8

    @property
    def zero(self) -> int:
        """The code of zero."""
        return 0 if self.minima and self.bits < 8 else 1 << self.bits - 1


def _f16(data: Bytes) -> Floats:
    """Numbers of two bytes each, along the last axis."""
    found: Floats = np.ascontiguousarray(data).view(np.float16).astype(np.float32)
    return found


def _nibbles(data: Bytes) -> Bytes:
    """The low halves of all bytes, then the high ones."""
    return np.concatenate((data & 15, data >> 4), axis=-1)


def _shifted(high: Bytes) -> Bytes:
    """Bits above a nibble, in their place."""
    return np.left_shift(high, 4, dtype=np.uint8)


def _bits(data: Bytes, first: range) -> list[Bytes]:
    """Numbers of as many bits as the range steps, from each of its positions in every byte."""
    mask = np.uint8((1 << first.step) - 1)
    return [np.right_shift(data, bit, dtype=np.uint8) & mask for bit in first]


def _q4_0(data: Bytes) -> Unpacked:
    return Unpacked(_nibbles(data[:, 2:]), _f16(data[:, :2])[:, 0])


def _q4_1(data: Bytes) -> Unpacked:
    return Unpacked(_nibbles(data[:, 4:]), _f16(data[:, :2])[:, 0], -_f16(data[:, 2:4])[:, 0])


def _fifths(data: Bytes) -> Bytes:
    """Four high bits in a byte of 32 each, before the nibbles that they belong to."""
    high = np.unpackbits(data[:, :4], axis=-1, bitorder="little")
    return _nibbles(data[:, 4:]) | _shifted(high)


def _q5_0(data: Bytes) -> Unpacked:
    return Unpacked(_fifths(data[:, 2:]) + np.uint8(128 - 16), _f16(data[:, :2])[:, 0])


def _q5_1(data: Bytes) -> Unpacked:
    return Unpacked(_fifths(data[:, 4:]) + np.uint8(128), _f16(data[:, :2])[:, 0], -_f16(data[:, 2:4])[:, 0])


def _q8_0(data: Bytes) -> Unpacked:
    return Unpacked(data[:, 2:] ^ np.uint8(128), _f16(data[:, :2])[:, 0])


def _shared(d: Floats, small: NDArray[np.generic]) -> Floats:
    """A super-block's scale times those of its blocks, one after the other."""
    found: Floats = (d * small.astype(np.float32)).reshape(-1)
    return found


def _sixes(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits each, of 12 bytes."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (high & 15) | (low >> 6) << 4), axis=1)
    minima = np.concatenate((middle & 63, (high >> 4) | (middle >> 6) << 4), axis=1)
    return scales, minima


def _pairs(data: Bytes) -> Bytes:
    """(n, 128) bytes as (n, 8, 32) nibbles: of every 32 bytes the low halves, then the high ones."""
    runs = data.reshape(-1, 4, 32)
    return np.stack((runs & 15, runs >> 4), axis=2).reshape(-1, 8, 32)


def _q4_k(data: Bytes) -> Unpacked:
    scales, minima = _sixes(data[:, 4:16])
    codes = _pairs(data[:, 16:]).reshape(-1, 32)
    return Unpacked(codes, _shared(_f16(data[:, :2]), scales), _shared(_f16(data[:, 2:4]), minima))


def _q5_k(data: Bytes) -> Unpacked:
    scales, minima = _sixes(data[:, 4:16])
    high = np.stack(_bits(data[:, 16:48], range(8)), axis=1)
    codes = (_pairs(data[:, 48:]) | _shifted(high)).reshape(-1, 32) + np.uint8(128)
    return Unpacked(codes, _shared(_f16(data[:, :2]), scales), _shared(_f16(data[:, 2:4]), minima))


def _q6_k(data: Bytes) -> Unpacked:
    low = data[:, :128].reshape(-1, 2, 64)
    high = np.stack(_bits(data[:, 128:192].reshape(-1, 2, 32), range(0, 8, 2)), axis=2)
    nibbles = np.concatenate((low & 15, low >> 4), axis=2).reshape(-1, 2, 4, 32)
    codes = (nibbles | _shifted(high)).reshape(-1, 16) + np.uint8(128 - 32)
    return Unpacked(codes, _shared(_f16(data[:, 208:210]), data[:, 192:208].view(np.int8)))


def _crumbs(data: Bytes) -> Bytes:
    """(n, 64) bytes as (n, 256) numbers of two bits: of every 32 bytes the lowest bits first."""
    return np.stack(_bits(data.reshape(-1, 2, 32), range(0, 8, 2)), axis=2).reshape(-1, 256)


def _q2_k(data: Bytes) -> Unpacked:
    small, d = data[:, :16], _f16(data[:, 80:84])
    codes = _crumbs(data[:, 16:80]).reshape(-1, 16)
    return Unpacked(codes, _shared(d[:, :1], small & 15), _shared(d[:, 1:], small >> 4))


def _q3_k(data: Bytes) -> Unpacked:
    high = np.stack(_bits(data[:, :32], range(8)), axis=1).reshape(-1, 256)
    codes = (_crumbs(data[:, 32:96]) | np.left_shift(high, 2, dtype=np.uint8)).reshape(-1, 16) + np.uint8(8 - 4)
    low, top = data[:, 96:104], data[:, 104:108]
    tops = np.concatenate(_bits(top, range(0, 8, 2)), axis=1)
    small = _nibbles(low) | _shifted(tops)
    return Unpacked(codes, _shared(_f16(data[:, 108:110]), small.astype(np.int8) - np.int8(32)))


#: The numbers of IQ4_NL and IQ4_XS.
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)


def _iq4(nibbles: Bytes) -> Bytes:
    return (_IQ4 + 128).astype(np.uint8)[nibbles]


def _iq4_nl(data: Bytes) -> Unpacked:
    return Unpacked(_iq4(_nibbles(data[:, 2:])), _f16(data[:, :2])[:, 0])


def _iq4_xs(data: Bytes) -> Unpacked:
    high, low = data[:, 2:4], data[:, 4:8]
    tops = np.ascontiguousarray(high).view("<u2").astype(np.uint32) >> np.arange(0, 16, 2, dtype=np.uint32) & 3
    small = np.stack((low & 15, low >> 4), axis=2).reshape(-1, 8) | (tops << 4).astype(np.uint8)
    codes = _iq4(_nibbles(data[:, 8:].reshape(-1, 8, 16))).reshape(-1, 32)
    return Unpacked(codes, _shared(_f16(data[:, :2]), small.astype(np.int8) - np.int8(32)))


#: Twice the numbers of E2M1.
_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int16)


def _mxfp4(data: Bytes) -> Unpacked:
    codes = (_E2M1 + 128).astype(np.uint8)[_nibbles(data[:, 1:])]
    exponent = data[:, 0].astype(np.int32)
    return Unpacked(codes, np.ldexp(np.float32(1), exponent - 128).astype(np.float32))


# ------------------------------------------------------------------------------------------------ and back


def packed(codes: Bytes, bits: int) -> Bytes:
    """Codes of a byte each in as many bits as they need, the first in the lowest."""
    if bits == 8:
        return codes
    apart = codes.reshape(len(codes), -1, 8 // bits)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    found: Bytes = np.bitwise_or.reduce(apart << shifts, axis=2)
    return found


def apart(data: Bytes, bits: int) -> Bytes:
    """Codes that share bytes, (n, bytes), each in its own."""
    return data if bits == 8 else np.stack(_bits(data, range(0, 8, bits)), axis=-1).reshape(len(data), -1)


def numbers(blocks: Unpacked, kind: Kind) -> Floats:
    """What blocks stand for, (blocks, elements), as ggml decodes them."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: Floats = blocks.scales[:, None] * (blocks.codes.astype(np.float32) - np.float32(kind.zero))
        return found if blocks.minima is None else found - blocks.minima[:, None]


def _halves(numbers: Floats) -> Bytes:
    """Numbers as F16, a row of two bytes each."""
    with np.errstate(over="ignore"):
        found = numbers.astype(np.float16)
    if not np.array_equal(found.astype(np.float32).view(np.uint32), np.ascontiguousarray(numbers).view(np.uint32)):
        raise Inexact("a scale is no number of F16")
    return found.view(np.uint8).reshape(-1, 2)


def _less(codes: Bytes, zero: int, most: int) -> Bytes:
    """Codes counted from `zero`, up to `most`."""
    found: Bytes = codes - np.uint8(zero)
    if (found > most).any():
        raise Inexact("a code is out of range")
    return found


def _low(codes: Bytes, bits: int) -> Bytes:
    """The lowest bits of every code."""
    return codes & np.uint8((1 << bits) - 1)


def _high(codes: Bytes, bits: int) -> Bytes:
    """What is above the lowest bits."""
    return np.right_shift(codes, bits, dtype=np.uint8)


def _joined(codes: Bytes, bits: int) -> Bytes:
    """(..., k, n) numbers of a few bits in n bytes, the first in the lowest bits; `_bits` stacked undone."""
    count = codes.shape[-2]
    shifts = np.arange(0, count * bits, bits, dtype=np.uint8)[:, None]
    found: Bytes = np.bitwise_or.reduce(codes << shifts, axis=-2)
    return found


def _from_nibbles(codes: Bytes) -> Bytes:
    """`_nibbles` undone."""
    return _joined(codes.reshape(*codes.shape[:-1], 2, -1), 4)


def _factors(scales: Floats, least: int, most: int, of_zeros: int = 0) -> tuple[Bytes, NDArray[np.int16]]:
    """(n, k) scales as a super-block's own scale in F16 times whole numbers from `least` to `most`.

    The largest is tried with the largest whole number first, which is what encoders give it; any that fits makes the
    same numbers. Scales that are all zero get `of_zeros`, as encoders have it.
    """
    wide = scales.astype(np.float64)
    first = np.take_along_axis(wide, np.abs(wide).argmax(axis=1)[:, None], axis=1)[:, 0]
    own, whole = first.copy(), np.full(scales.shape, of_zeros, np.float64)
    own[first == 0] *= np.sign(of_zeros) or 1
    left = np.nonzero(first)[0]
    for number in sorted((each for each in range(least, most + 1) if each), key=lambda each: (-abs(each), each)):
        if not left.size:
            break
        with np.errstate(over="ignore", invalid="ignore"):
            scale = (first[left] / number).astype(np.float16).astype(np.float64)
            times = np.rint(wide[left] / np.where(scale == 0, 1, scale)[:, None])
            fits = (times * scale[:, None] == wide[left]).all(axis=1) & (scale != 0)
        fits &= (times >= least).all(axis=1) & (times <= most).all(axis=1)
        own[left[fits]], whole[left[fits]] = scale[fits], times[fits]
        left = left[~fits]
    if left.size:
        raise Inexact("scales have no common factor in F16")
    return _halves(own.astype(np.float32)), whole.astype(np.int16)


def _together(*parts: Bytes) -> Bytes:
    """The fields of blocks, (blocks, bytes) each."""
    return np.concatenate([part.reshape(len(parts[0]), -1) for part in parts], axis=1)


def _minima_of(blocks: Unpacked) -> Floats:
    assert blocks.minima is not None  # the type has them
    return blocks.minima


def _pack_q4_0(blocks: Unpacked) -> Bytes:
    return _together(_halves(blocks.scales), _from_nibbles(blocks.codes))


def _pack_q4_1(blocks: Unpacked) -> Bytes:
    return _together(_halves(blocks.scales), _halves(-_minima_of(blocks)), _from_nibbles(blocks.codes))


def _from_fifths(codes: Bytes) -> Bytes:
    """`_fifths` undone."""
    return _together(np.packbits(_high(codes, 4), axis=-1, bitorder="little"), _from_nibbles(_low(codes, 4)))


def _pack_q5_0(blocks: Unpacked) -> Bytes:
    return _together(_halves(blocks.scales), _from_fifths(_less(blocks.codes, 128 - 16, 31)))


def _pack_q5_1(blocks: Unpacked) -> Bytes:
    codes = _from_fifths(_less(blocks.codes, 128, 31))
    return _together(_halves(blocks.scales), _halves(-_minima_of(blocks)), codes)


def _pack_q8_0(blocks: Unpacked) -> Bytes:
    return _together(_halves(blocks.scales), blocks.codes ^ np.uint8(128))


def _from_sixes(scales: Bytes, minima: Bytes) -> Bytes:
    """`_sixes` undone."""
    both = np.stack((scales, minima), axis=1)
    first, last = both[:, :, :4], both[:, :, 4:]
    low = _joined(np.stack((first, _high(last, 4)), axis=2), 6)
    return _together(low, _joined(_low(last, 4), 4))


def _from_pairs(codes: Bytes) -> Bytes:
    """`_pairs` undone."""
    return _joined(codes.reshape(-1, 4, 2, 32), 4).reshape(-1, 128)


def _supers(blocks: Unpacked, count: int, most: int) -> tuple[Bytes, Bytes, Bytes]:
    """The scales and the minimum's scales of super-blocks of `count` blocks: both in F16, both in whole numbers."""
    d, scales = _factors(blocks.scales.reshape(-1, count), 0, most)
    dmin, minima = _factors(_minima_of(blocks).reshape(-1, count), 0, most)
    return np.concatenate((d, dmin), axis=1), scales.astype(np.uint8), minima.astype(np.uint8)


def _pack_q4_k(blocks: Unpacked) -> Bytes:
    ends, scales, minima = _supers(blocks, 8, 63)
    return _together(ends, _from_sixes(scales, minima), _from_pairs(blocks.codes))


def _pack_q5_k(blocks: Unpacked) -> Bytes:
    ends, scales, minima = _supers(blocks, 8, 63)
    codes = _less(blocks.codes, 128, 31).reshape(-1, 8, 32)
    return _together(ends, _from_sixes(scales, minima), _joined(_high(codes, 4), 1), _from_pairs(_low(codes, 4)))


def _pack_q6_k(blocks: Unpacked) -> Bytes:
    d, scales = _factors(blocks.scales.reshape(-1, 16), -128, 127)
    codes = _less(blocks.codes, 128 - 32, 63).reshape(-1, 2, 4, 32)
    low = _from_nibbles(_low(codes, 4).reshape(-1, 2, 128))
    return _together(low.reshape(-1, 128), _joined(_high(codes, 4), 2), scales.astype(np.int8).view(np.uint8), d)


def _from_crumbs(codes: Bytes) -> Bytes:
    """`_crumbs` undone."""
    return _joined(codes.reshape(-1, 2, 4, 32), 2).reshape(-1, 64)


def _pack_q2_k(blocks: Unpacked) -> Bytes:
    ends, scales, minima = _supers(blocks, 16, 15)
    return _together(_joined(np.stack((scales, minima), axis=1), 4), _from_crumbs(blocks.codes), ends)


def _pack_q3_k(blocks: Unpacked) -> Bytes:
    d, scales = _factors(blocks.scales.reshape(-1, 16), -32, 31, of_zeros=-32)
    codes = _less(blocks.codes, 8 - 4, 7).reshape(-1, 256)
    small = (scales + 32).astype(np.uint8)
    high = _joined(_high(codes, 2).reshape(-1, 8, 32), 1)
    tops = _joined(_high(small, 4).reshape(-1, 4, 4), 2)
    return _together(high, _from_crumbs(_low(codes, 2)), _from_nibbles(_low(small, 4)), tops, d)


def _places(values: NDArray[np.int16]) -> Bytes:
    """Of every code the first place that it has in a table; 255 where it has none."""
    found = np.full(256, 255, np.uint8)
    for place in reversed(range(len(values))):
        found[values[place] + 128] = place
    return found


_IQ4_PLACES, _E2M1_PLACES = _places(_IQ4), _places(_E2M1)


def _placed(codes: Bytes, places: Bytes) -> Bytes:
    """The places of codes in a table of sixteen, two a byte."""
    return _from_nibbles(_less(places[codes], 0, 15))


def _pack_iq4_nl(blocks: Unpacked) -> Bytes:
    return _together(_halves(blocks.scales), _placed(blocks.codes, _IQ4_PLACES))


def _pack_iq4_xs(blocks: Unpacked) -> Bytes:
    d, scales = _factors(blocks.scales.reshape(-1, 8), -32, 31)
    small = (scales + 32).astype(np.uint8)
    low = _joined(_low(small, 4).reshape(-1, 4, 2).swapaxes(1, 2), 4)
    tops = np.bitwise_or.reduce(_high(small, 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16), axis=1)
    high = tops.astype("<u2")[:, None].view(np.uint8)
    return _together(d, high, low, _placed(blocks.codes, _IQ4_PLACES))


def _pack_mxfp4(blocks: Unpacked) -> Bytes:
    fraction, exponent = np.frexp(blocks.scales)
    biased = exponent.astype(np.int32) + 127
    if (fraction != 0.5).any() or (biased < 0).any() or (biased > 255).any():
        raise Inexact("a scale is no power of two")
    return _together(biased.astype(np.uint8)[:, None], _placed(blocks.codes, _E2M1_PLACES))


KINDS: Mapping[str, Kind] = {
    "Q4_0": Kind(4, 32, _q4_0, _pack_q4_0),
    "Q4_1": Kind(4, 32, _q4_1, _pack_q4_1, minima=True),
    "Q5_0": Kind(8, 32, _q5_0, _pack_q5_0),
    "Q5_1": Kind(8, 32, _q5_1, _pack_q5_1, minima=True),
    "Q8_0": Kind(8, 32, _q8_0, _pack_q8_0),
    "Q2_K": Kind(2, 16, _q2_k, _pack_q2_k, minima=True),
    "Q3_K": Kind(4, 16, _q3_k, _pack_q3_k),
    "Q4_K": Kind(4, 32, _q4_k, _pack_q4_k, minima=True),
    "Q5_K": Kind(8, 32, _q5_k, _pack_q5_k, minima=True),
    "Q6_K": Kind(8, 16, _q6_k, _pack_q6_k),
    "IQ4_NL": Kind(8, 32, _iq4_nl, _pack_iq4_nl),
    "IQ4_XS": Kind(8, 32, _iq4_xs, _pack_iq4_xs),
    "MXFP4": Kind(8, 32, _mxfp4, _pack_mxfp4),
}
