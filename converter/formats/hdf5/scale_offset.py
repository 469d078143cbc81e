"""HDF5's scale-offset filter: integers, or floats to a number of decimals, as their distance from the least of them.

Source: the HDF5 File Format Specification 3.0 (the filter's message) and what libhdf5 writes: a chunk begins with the
bits of each value and the least value, then come the values in so many bits each, highest bit first. The number that
is all ones stands for the fill value, where there is one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.tensors.tensor import Rows

BY_DECIMALS, BY_BITS = 0, 2  # scale types; the third, by powers of two, was never written
HEADER = 21
_VALUES = 20
Bits = NDArray[np.unsignedinteger[Any]]
_PIECE = 1 << 16  # values that are unpacked at a time, a multiple of 8


@dataclass(frozen=True)
class ScaleOffset:
    """What the filter was told: of which values a chunk is made. `fill` is one of them, little-endian, or nothing."""

    decimals: int | None
    count: int
    size: int
    floats: bool
    fill: bytes


def scale_offset(values: tuple[int, ...]) -> ScaleOffset | None:
    """The filter's parameters; None where they make no sense, or are of the kind that libraries do not write."""
    if len(values) != _VALUES:
        return None
    kind, factor, count, numbers, size, _, _, has_fill = values[:8]
    floats = numbers == 1
    if numbers > 1 or kind != (BY_DECIMALS if floats else BY_BITS) or size not in ((4, 8) if floats else (1, 2, 4, 8)):
        return None
    (decimals,) = struct.unpack("<i", struct.pack("<I", factor))
    if floats and abs(decimals) > 308:
        return None
    fill = struct.pack("<12I", *values[8:])[:size] if has_fill else b""
    return ScaleOffset(decimals if floats else None, count, size, floats, fill)


def limit(nbytes: int) -> int:
    """The bytes that a chunk of `nbytes` has at most, once it is packed."""
    return HEADER + nbytes + 1


def unpacked(data: Rows, how: ScaleOffset) -> Rows | None:
    """The chunk's values, little-endian; None where `data` is too short for what it says."""
    if len(data) < HEADER:
        return None
    bits, width = struct.unpack_from("<IB", data.tobytes()[:HEADER])
    least = data[5 : 5 + min(width, 8)].tobytes().ljust(8, b"\0")[: how.size]
    body, unsigned = data[HEADER:], np.dtype(f"<u{how.size}")
    if bits > 8 * how.size or 8 * len(body) < how.count * bits:
        return None
    if bits == 8 * how.size:
        return body[: how.count * how.size]
    result = np.empty(how.count, unsigned)
    for start in range(0, how.count, _PIECE):
        count = min(_PIECE, how.count - start)
        raw = _numbers(body[start * bits // 8 :], count, bits, unsigned)
        result[start : start + count] = _scaled(raw, how, least)
        if how.fill:
            result[start : start + count][raw == (1 << bits) - 1] = np.frombuffer(how.fill, unsigned)
    return result.view(np.uint8)


def _numbers(body: Rows, count: int, bits: int, unsigned: np.dtype[Any]) -> Bits:
    """`count` numbers of so many bits each."""
    wide = np.zeros((count, 8 * unsigned.itemsize), np.uint8)
    given = np.unpackbits(body[: -(-count * bits // 8)], count=count * bits)
    wide[:, 8 * unsigned.itemsize - bits :] = given.reshape(count, bits)
    return np.packbits(wide).view(unsigned.newbyteorder(">")).astype(unsigned)


def _scaled(raw: Bits, how: ScaleOffset, least: bytes) -> Bits:
    """The bits of the values that the numbers stand for, in the arithmetic of the values' own type, as in libhdf5."""
    if how.decimals is None:
        return raw + np.frombuffer(least, raw.dtype)
    floating = np.dtype(f"<f{how.size}")
    with np.errstate(all="ignore"):
        scale = floating.type(f"1e{how.decimals}")  # rounded once, on every machine
        values = raw.view(f"<i{how.size}").astype(floating) / scale + np.frombuffer(least, floating)
    bits: Bits = values.view(raw.dtype)
    return bits
