"""Files that are written to, of which only a few are open at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

#: Files that stay open, each the place of one more in a set; systems allow a process at least 64, often 256 or 1024.
KEPT_OPEN = 16


class Handles:
    """Files by number, opened when they are asked for; the one that was not for longest is closed for another.

    Any thread may ask. Whoever has one has it open until he is done, however many that are.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: dict[int, FileIO] = {}  # in the order of their last use
        self._users: dict[int, int] = {}
        self._lock = threading.Lock()
        self._place = threading.Lock()  # held by who moves a file's place and writes there

    @contextmanager
    def opened(self, number: int) -> Iterator[FileIO]:
        """The file, which is there already."""
        with self._lock:
            file = self._open.pop(number, None) or open(self._paths[number], "r+b", buffering=0)
            self._open[number] = file
            self._users[number] = self._users.get(number, 0) + 1
        try:
            yield file
        finally:
            with self._lock:
                self._users[number] -= 1
                idle = [each for each in self._open if not self._users[each]]
                for each in idle[: max(0, len(self._open) - KEPT_OPEN)]:
                    self._open.pop(each).close()

    def write(self, number: int, offset: int, data: memoryview) -> None:
        """Write all of `data`, bytes, at `offset`."""
        with self.opened(number) as out:
            if hasattr(os, "pwrite"):
                while data:
                    written = os.pwrite(out.fileno(), data, offset)
                    data, offset = data[written:], offset + written
            else:
                with self._place:
                    out.seek(offset)
                    while data:
                        data = data[out.write(data) or 0 :]

    def close(self) -> None:
        """Close all; nobody has one."""
        while self._open:
            self._open.popitem()[1].close()
