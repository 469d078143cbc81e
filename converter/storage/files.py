"""Files mapped into memory, whose pages do not pile up."""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile, OutputError

# Pages that were read stay resident until somebody lets go of them. After this many bytes the whole
# map is released; what is still in use is simply faulted in again from the page cache.
RELEASE_AFTER = 32 << 20


def regular_size(path: Path) -> int:
    """Size of a regular file; anything else (FIFO, device, folder) is refused because reading it may hang.

    Raises:
        OutputError: there is no such file, or it is not a regular file.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{path}: not a regular file")
    return status.st_size


class MappedFile:
    """A read-only map of one file; every read is checked against the file's size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = regular_size(path)
        self._map: mmap.mmap | None = None
        self._bytes: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._read = 0
        self._lock = threading.Lock()
        if self.size:
            try:
                with open(path, "rb") as file:
                    self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise OutputError(f"{path}: cannot be mapped ({error})") from error
            self._bytes = np.frombuffer(self._map, np.uint8)

    def view(self, offset: int, nbytes: int, what: str) -> NDArray[np.uint8]:
        """Bytes [offset, offset + nbytes), zero-copy.

        Raises:
            CorruptFile: the range leaves the file; `what` names it in the message.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise CorruptFile(
                f"{self.path}: {what} at offset {offset} needs {nbytes} bytes, the file has {self.size}\n"
                "the file is truncated or its header lies; download it again"
            )
        self._account(nbytes)
        return self._bytes[offset : offset + nbytes]

    @contextmanager
    def scattered(self) -> Iterator[None]:
        """While what is read lies between tensors: the system reads the pages that are asked for, and none ahead."""
        self._advise("MADV_RANDOM")
        try:
            yield
        finally:
            self._advise("MADV_NORMAL")

    def _advise(self, advice: str) -> None:
        if self._map is not None and hasattr(mmap, advice):
            self._map.madvise(getattr(mmap, advice))

    def _account(self, nbytes: int) -> None:
        with self._lock:
            self._read += nbytes
            full = self._read >= RELEASE_AFTER
            if full:
                self._read = 0
        if full:
            self._advise("MADV_DONTNEED")

    def close(self) -> None:
        """Unmap. Arrays that are still held keep the map alive until they are gone."""
        self._bytes = np.empty(0, np.uint8)
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                pass
            self._map = None
