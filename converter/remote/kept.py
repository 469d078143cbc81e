"""Blocks of a file that lies elsewhere, kept on this machine: a sparse file, and a table of their sums.

A block whose bytes have another sum than the table says counts as not there, so a run that was killed, another one
beside it or a bad disk cost a request and never give a wrong byte.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.storage.checksums import CRC32C

BLOCK = 16 << 10  # bytes that are fetched and kept as one
_PIECE = 4 << 20
_THERE = 1 << 32  # in an entry of a table, whose lower half is the block's CRC-32C
_ENTRY = np.dtype("<u8")

Fetch = Callable[[int, int], NDArray[np.uint8]]


class Kept:
    """The blocks of a file that are in the cache."""

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self._data, self._sums, self._proved = (path.with_suffix(end) for end in (".data", ".sums", ".proved"))
        self._full = False  # nothing more can be written

    def filled(self, start: int, stop: int, fetch: Fetch) -> NDArray[np.uint8]:
        """Bytes [start, stop): what is there, and what `fetch(start, stop)` gives for the rest, which is kept.

        `start` is where a block begins.
        """
        table = self._table(start, stop)
        if not table.any():
            return self._kept(start, fetch(start, stop))
        result, there = np.empty(stop - start, np.uint8), np.zeros(len(table), np.bool_)
        sums = _sums(start, result[: _read(self._data, start, result)], self.size)
        there[: len(sums)] = sums == table[: len(sums)]
        for low, high in _gaps(there):
            low, high = start + low * BLOCK, min(stop, start + high * BLOCK)
            result[low - start : high - start] = self._kept(low, fetch(low, high))
        result.flags.writeable = False
        return result

    def complete(self) -> bool:
        """Whether there is something for every block."""
        return bool(self._table(0, self.size).all())

    @property
    def proved(self) -> bool:
        """Whether all of it was compared with what its host says of it."""
        return self._proved.exists()

    def prove(self) -> None:
        """All of it was."""
        with suppress(OSError):
            write(self._proved, 0, b"")

    def forget(self) -> None:
        """Remove it."""
        for path in (self._proved, self._sums, self._data):
            with suppress(OSError):
                path.unlink()

    def _table(self, start: int, stop: int) -> NDArray[np.uint64]:
        """An entry for each block: 0 where it is not there."""
        table = np.zeros(-(-stop // BLOCK) - start // BLOCK, _ENTRY)
        _read(self._sums, start // BLOCK * _ENTRY.itemsize, table.view(np.uint8))
        return table

    def _kept(self, start: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Keep bytes of whole blocks; a block that is cut off is not."""
        sums = _sums(start, data, self.size)
        if self._full or not len(sums):
            return data
        try:
            write(self._data, start, data[: len(sums) * BLOCK].data)
            write(self._sums, start // BLOCK * _ENTRY.itemsize, sums.tobytes())
        except OSError as error:
            self._full = True
            warnings.warn(f"{self._data.parent}: the cache takes no more ({error.strerror})", stacklevel=2)
        return data


def _sums(start: int, data: NDArray[np.uint8], size: int) -> NDArray[np.uint64]:
    """Entries for the blocks that are whole in bytes from `start` on, of a file of `size` bytes."""
    ends = start + len(data) == size
    count = -(-len(data) // BLOCK) if ends else len(data) // BLOCK
    each = (CRC32C.of(data[at * BLOCK : (at + 1) * BLOCK].data) for at in range(count))
    return np.fromiter((_THERE | crc for crc in each), _ENTRY, count)


def _gaps(there: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Runs of blocks that are not there."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], there, [True])).astype(np.int8)))
    return [(int(low), int(high)) for low, high in edges.reshape(-1, 2)]


def _read(path: Path, offset: int, into: NDArray[np.uint8]) -> int:
    """Read as many bytes as there are, from `offset` on; none of a file that cannot be read."""
    view, done = into.data, 0
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while done < len(view) and (size := file.readinto(view[done : done + _PIECE])):
                done += size
    except OSError:
        return done
    return done


def write(path: Path, offset: int, data: bytes | memoryview) -> None:
    """Write bytes at a place of a file, which is made where it is not there."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    with open(handle, "r+b", buffering=0) as file:
        file.seek(offset)
        view = memoryview(data)
        while view:
            view = view[file.write(view) or 0 :]
