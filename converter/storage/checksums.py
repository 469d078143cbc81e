"""Sums of bytes: SHA-256 of files, cyclic redundancy checks of what several threads read in pieces and in any order.

CRC-32 is that of zip, gzip and PNG, CRC-32C that of TensorFlow's files. The arithmetic of joining pieces is that of
zlib's `crc32_combine`: appending n zero bits to a message multiplies its remainder by x**n.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import zlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter import _native
from converter.address import is_elsewhere
from converter.storage.files import bytes_of

_STEP = 8 << 20  # bytes of a file elsewhere that are hashed at a time
_ONE = 1 << 31  # the polynomial 1; the highest bit is the lowest power
Data = memoryview | bytes


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex; of one that lies elsewhere as its bytes come.

    Raises:
        OSError: it cannot be read; ConverterError where it lies elsewhere.
    """
    if not is_elsewhere(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    hashed = hashlib.sha256()
    with closing(bytes_of(path)) as there:
        edges = [*range(0, there.size, _STEP), there.size]
        there.forward(edges)
        for start, stop in itertools.pairwise(edges):
            hashed.update(there.view(start, stop - start, "what is hashed").data)
    return hashed.hexdigest()


@dataclass(frozen=True)
class Crc:
    """A sum of 32 bits: its polynomial, bit-reversed, and what computes it: (data, sum of what is before it) -> sum."""

    polynomial: int
    compute: Callable[[Data, int], int]

    def of(self, data: Data, before: int = 0) -> int:
        """The sum of bytes, which may follow others whose sum is `before`."""
        return self.compute(data, before)

    def combine(self, first: int, second: int, nbytes: int) -> int:
        """The sum of two pieces in a row, from that of each; `nbytes` is the length of the second."""
        return _multiply(first, _shift(nbytes, self.polynomial), self.polynomial) ^ second

    def combine_all(self, pieces: Iterable[tuple[int, int]]) -> int:
        """The sum of pieces in a row, each given as its sum and its length."""
        total = 0
        for crc, nbytes in pieces:
            total = self.combine(total, crc, nbytes)
        return total


CRC32 = Crc(0xEDB88320, zlib.crc32)
CRC32C = Crc(0x82F63B78, _native.crc32c)


def _multiply(a: int, b: int, polynomial: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (polynomial if b & 1 else 0)
    return product


@lru_cache(maxsize=256)
def _shift(nbytes: int, polynomial: int) -> int:
    """x**(8 * nbytes)."""
    product, square = _ONE, _ONE >> 8
    while nbytes:
        if nbytes & 1:
            product = _multiply(square, product, polynomial)
        square = _multiply(square, square, polynomial)
        nbytes >>= 1
    return product


class Pieces:
    """The sum of bytes that come in pieces, in any order; neighbours are joined. Not for several threads at once."""

    def __init__(self, kind: Crc = CRC32) -> None:
        self._kind = kind
        self._pieces: list[tuple[int, int, int]] = []  # start, stop, sum; sorted, neither touching nor overlapping

    @property
    def crc(self) -> int:
        """The sum of the first bytes that are there without a gap."""
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
                self._pieces[left : left + 2] = [(low, high, self._kind.combine(one, two, high - middle))]


class Checksum:
    """Compares `size` bytes with the sum they should have, as they happen to be read.

    Every byte counts once, however often it is read.
    """

    def __init__(self, size: int, expected: int, kind: Crc = CRC32) -> None:
        self._size = size
        self._expected = expected
        self._kind = kind
        self._pieces = Pieces(kind)
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
            crc = self._kind.of(view[low - start : high - start])
            with self._lock:
                # Another thread may have been faster; what it left uncovered then waits for the next reader.
                self._pieces.add(low, high, crc)
        if self.complete or self.gaps(0, self._size):
            return True
        self.complete = self._pieces.crc == self._expected
        return self.complete
