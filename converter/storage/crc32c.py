"""CRC-32C (Castagnoli), which TensorFlow's files carry, in lanes: a message is cut into pieces that advance together.

Appending n zero bytes to a message is a linear map of its remainder; two tables of 65536 entries apply one. The
remainder of two pieces in a row is that of the first, moved by the length of the second, plus that of the second.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # bit-reversed
_MASK_DELTA = 0xA282EAD8
_FULL = 0xFFFFFFFF
_WORDS = 64  # words of four bytes per lane
_PIECE = 4 << 20
_SMALL = 64

Tables = NDArray[np.uint32]  # (2, 65536)


@cache
def _images(nbytes: int) -> tuple[int, ...]:
    """Where each of the 32 bits of a remainder goes when `nbytes` zero bytes are appended."""
    if nbytes == 0:
        return tuple(1 << bit for bit in range(32))
    if nbytes == 1:
        return tuple(_zero_byte(1 << bit) for bit in range(32))
    half, rest = _images(nbytes // 2), _images(nbytes % 2)
    return tuple(_through(rest, _through(half, image)) for image in half)


def _zero_byte(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


def _through(images: tuple[int, ...], value: int) -> int:
    result = 0
    for bit in range(32):
        if value >> bit & 1:
            result ^= images[bit]
    return result


@cache
def _tables(nbytes: int) -> Tables:
    images, tables = _images(nbytes), np.zeros((2, 1 << 16), np.uint32)
    for bit, image in enumerate(images):
        table, low = tables[bit // 16], 1 << bit % 16
        table[low : 2 * low] = table[:low] ^ np.uint32(image)
    return tables


def _move(tables: Tables, lanes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    halves = np.ascontiguousarray(lanes, "<u4").view("<u2").reshape(-1, 2)
    # Every index is in range; "wrap" spares numpy's check.
    moved: NDArray[np.uint32] = tables[0].take(halves[:, 0], mode="wrap")
    moved ^= tables[1].take(halves[:, 1], mode="wrap")
    return moved


def _remainder(data: NDArray[np.uint8]) -> int:
    """Remainder of at most a piece, from 0."""
    if len(data) <= _SMALL:
        table, value = _tables(1)[0, :256].tolist(), 0
        for byte in data.tolist():
            value = value >> 8 ^ table[(value ^ byte) & 0xFF]
        return value
    lanes = 1 << (-(-len(data) // (4 * _WORDS)) - 1).bit_length()
    padded = np.zeros(lanes * 4 * _WORDS, np.uint8)  # zeros in front leave a remainder that starts from 0 as it is
    padded[len(padded) - len(data) :] = data
    words = np.ascontiguousarray(padded.view("<u4").reshape(lanes, _WORDS).T)
    step, state = _tables(4), np.zeros(lanes, np.uint32)
    for word in words:
        state = _move(step, state ^ word)
    nbytes = 4 * _WORDS
    while len(state) > 1:
        state = _move(_tables(nbytes), state[0::2]) ^ state[1::2]
        nbytes *= 2
    return int(state[0])


class Crc32c:
    """CRC-32C of bytes that come in pieces, in order."""

    def __init__(self) -> None:
        self._value = _FULL

    def update(self, data: NDArray[np.uint8]) -> None:
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            self._value = _through(_images(len(piece)), self._value) ^ _remainder(piece)

    @property
    def masked(self) -> int:
        """As TensorFlow and LevelDB store it: rotated by 15 bits, plus a constant."""
        value = self._value ^ _FULL
        return ((value >> 15 | value << 17) + _MASK_DELTA) & _FULL


def masked_crc32c(data: NDArray[np.uint8]) -> int:
    """The masked CRC-32C of bytes in memory."""
    crc = Crc32c()
    crc.update(data)
    return crc.masked
