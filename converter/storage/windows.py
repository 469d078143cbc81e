"""The structure of a file, looked at through windows: what lies near is asked for together, what is far away never."""

from __future__ import annotations

import struct

from converter.errors import CorruptFile
from converter.storage.files import Bytes

_BITS = 10
BLOCK = 1 << _BITS
MARGIN = 32  # bytes after a block that come with it, so that nothing small needs two
_MOST = 1 << 14  # blocks that are kept
FIRST, WINDOW = 1 << 8, 1 << 13  # what a cursor asks for after a jump, and at most where it reads on

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class Windows:
    """A file whose structure is looked at here and there: blocks of BLOCK bytes, each asked for once."""

    def __init__(self, source: Bytes) -> None:
        self.source, self.path, self.size = source, source.path, source.size
        self._blocks: dict[int, memoryview] = {}

    def near(self, position: int) -> tuple[memoryview, int]:
        """A buffer with the block of `position` and MARGIN bytes more, as far as the file goes, and where it begins."""
        number, start = position >> _BITS, position & -BLOCK
        found = self._blocks.get(number)
        if found is None:
            if len(self._blocks) >= _MOST:
                self._blocks.clear()
            found = self.source.view(start, min(BLOCK + MARGIN, self.size - start), "the file").data
            self._blocks[number] = found
        return found, start

    def at(self, position: int, nbytes: int, what: str) -> memoryview:
        """Bytes [position, position + nbytes).

        Raises:
            CorruptFile: the range leaves the file; `what` names it in the message.
        """
        if 0 <= position <= self.size - nbytes:
            found = self._blocks.get(position >> _BITS) or self.near(position)[0]
            low = position & BLOCK - 1
            if low + nbytes <= len(found):
                return found[low : low + nbytes]
        return self.source.view(position, nbytes, what).data


class Cursor:
    """Reads forward through a file's header; a declared size is compared with what is left before it is used."""

    def __init__(self, source: Bytes) -> None:
        self.path, self.position = source.path, 0
        self._source, self._size = source, source.size
        self._window, self._start = memoryview(b""), 0  # what was asked for last, and where it begins
        self._room = FIRST

    @property
    def left(self) -> int:
        """Bytes up to the end of the file."""
        return self._size - self.position

    def ahead(self, size: int, what: str) -> memoryview:
        """The next `size` bytes, or all that are left; the position stays."""
        return self._source.view(self.position, min(size, self.left), what).data

    def take(self, size: int, what: str) -> memoryview:
        """The next `size` bytes.

        Raises:
            CorruptFile: fewer are left; `what` names them in the message.
        """
        low = self.position - self._start
        if low + size > len(self._window):
            self._check(size, what)
            self._room = FIRST if low > len(self._window) else min(2 * self._room, WINDOW)
            self._window, self._start, low = self.ahead(max(size, self._room), what), self.position, 0
        self.position += size
        return self._window[low : low + size]

    def skip(self, size: int, what: str) -> None:
        """Step over the next `size` bytes, which are not looked at.

        Raises:
            CorruptFile: fewer are left.
        """
        self._check(size, what)
        self.position += size

    def _check(self, size: int, what: str) -> None:
        if size > self.left:
            raise CorruptFile(
                f"{self.path}: {what} at offset {self.position} needs {size} bytes, {self.left} are left\n"
                "the file is truncated or its header lies; download it again"
            )

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def count(self, smallest: int, what: str) -> int:
        """A number of entries of at least `smallest` bytes each.

        Raises:
            CorruptFile: the file has no room for so many.
        """
        number = self.u64(what)
        if number * smallest > self.left:
            raise CorruptFile(f"{self.path}: {what} says {number}, the file has room for {self.left // smallest}")
        return number
