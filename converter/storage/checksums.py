"""CRC-32 (of zip, gzip and PNG) of bytes that are read in pieces, in any order, by several threads.

The arithmetic is that of zlib's `crc32_combine`: appending n zero bits to a message multiplies its remainder by x**n.
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_left, insort
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0xEDB88320  # bit-reversed
_ONE = 1 << 31  # the polynomial 1; the highest bit is the lowest power


def combine(first: int, second: int, nbytes: int) -> int:
    """CRC-32 of two pieces in a row, from that of each; `nbytes` is the length of the second."""
    return _multiply(_shift(nbytes), first) ^ second


def combine_all(pieces: Iterable[tuple[int, int]]) -> int:
    """CRC-32 of pieces in a row, each given as its CRC-32 and its length."""
    total = 0
    for crc, nbytes in pieces:
        total = combine(total, crc, nbytes)
    return total


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _squares() -> tuple[int, ...]:
    """x**(2**i) for i = 0 .. 31; the sequence repeats after that."""
    powers = [_ONE >> 1]
    for _ in range(31):
        powers.append(_multiply(powers[-1], powers[-1]))
    return tuple(powers)


_SQUARES = _squares()


@lru_cache(maxsize=256)
def _shift(nbytes: int) -> int:
    """x**(8 * nbytes)."""
    product, bit = _ONE, 3
    while nbytes:
        if nbytes & 1:
            product = _multiply(_SQUARES[bit & 31], product)
        nbytes >>= 1
        bit += 1
    return product


class Pieces:
    """The CRC-32 of bytes that come in pieces, in any order; neighbours are joined. Not for several threads at once."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, int, int]] = []  # start, stop, CRC-32; sorted, neither touching nor overlapping

    @property
    def crc(self) -> int:
        """CRC-32 of the first bytes that are there without a gap."""
        return self._pieces[0][2] if self._pieces else 0

    def gaps(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that have not come yet."""
        gaps = []
        for low, high, _ in self._pieces[max(0, bisect_left(self._pieces, (start,)) - 1) :]:
            if low >= stop:
                break
            if low > start:
                gaps.append((start, low))
            start = max(start, high)
        if start < stop:
            gaps.append((start, stop))
        return gaps

    def add(self, start: int, stop: int, crc: int) -> None:
        """Bytes [start, stop) have come; what overlaps others counts for nothing."""
        if self.gaps(start, stop) != [(start, stop)]:
            return
        insort(self._pieces, (start, stop, crc))
        at = bisect_left(self._pieces, (start,))
        for left in (at, at - 1):  # with the piece after it, then with the one before it
            if 0 <= left < len(self._pieces) - 1 and self._pieces[left][1] == self._pieces[left + 1][0]:
                (low, _, one), (middle, high, two) = self._pieces[left : left + 2]
                self._pieces[left : left + 2] = [(low, high, combine(one, two, high - middle))]


class Checksum:
    """Compares `size` bytes with the CRC-32 they should have, as they happen to be read.

    Every byte counts once, however often it is read.
    """

    def __init__(self, size: int, expected: int) -> None:
        self._size = size
        self._expected = expected
        self._pieces = Pieces()
        self._lock = threading.Lock()
        self.complete = size == 0

    def gaps(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that have not been read yet."""
        if self.complete:
            return []
        with self._lock:
            return self._pieces.gaps(start, stop)

    def add(self, start: int, data: NDArray[np.uint8] | bytes) -> bool:
        """Account for `data`, which stands at `start`; False when all is there and the sum is wrong."""
        view = data if isinstance(data, bytes) else data.data
        for low, high in self.gaps(start, start + len(view)):
            crc = zlib.crc32(view[low - start : high - start])
            with self._lock:
                # Another thread may have been faster; what it left uncovered then waits for the next reader.
                self._pieces.add(low, high, crc)
        if self.complete or self.gaps(0, self._size):
            return True
        self.complete = self._pieces.crc == self._expected
        return self.complete
