"""Codes of a few bits, packed in words or bytes, as one small integer each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]


def stream(data: NDArray[np.generic], bits: int, count: int) -> Codes:
    """The first `count` codes of each row, which is one little-endian stream of bits, lowest first.

    Args:
        data: (n, words) of any integer type; words of 32 bits are the same stream as their bytes.
        bits: 1 to 8.
        count: codes to a row; the row has at least `bits * count` bits.

    Returns:
        uint8 (n, count).
    """
    octets = np.ascontiguousarray(data).view(np.uint8).reshape(len(data), -1)
    if bits == 8:
        return octets[:, :count]
    mask = np.uint8((1 << bits) - 1)
    if 8 % bits == 0:
        made = np.empty((*octets.shape, 8 // bits), np.uint8)
        for place in range(8 // bits):
            np.bitwise_and(octets >> np.uint8(place * bits), mask, out=made[..., place])
        return made.reshape(len(octets), -1)[:, :count]
    first = np.arange(count) * bits
    padded = np.pad(octets, ((0, 0), (0, 1))).astype(np.uint16)
    pairs = padded[:, first // 8] | padded[:, first // 8 + 1] << np.uint16(8)
    return (pairs >> (first % 8).astype(np.uint16)).astype(np.uint8) & mask


def fields(words: NDArray[np.generic], bits: int, count: int) -> Codes:
    """The first `count` codes of each row of 32-bit words, 32 // bits to a word, lowest first; the rest is unused.

    Returns:
        uint8 (n, count).
    """
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    made = np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts & np.uint32((1 << bits) - 1)
    return made.astype(np.uint8).reshape(len(words), -1)[:, :count]


def nibbles(data: Codes) -> Codes:
    """Two codes of each byte, the low half first: uint8 (n, bytes) to (n, 2 * bytes)."""
    return stream(data, 4, 2 * data.shape[-1])
