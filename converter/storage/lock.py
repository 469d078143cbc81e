"""One run at a time for one output: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


class Lock:
    """An empty file that is locked while a run writes; a run that was killed leaves the file, but not the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def take(self) -> bool:
        """Whether nobody else has it; it is ours then.

        Raises:
            OSError: the folder takes no file, or its file system has no locks.
        """
        while self._handle is None:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _locked(handle):
                    os.close(handle)
                    return False
                # Who held it may have removed the file between our opening and our locking; then it is nobody's.
                if _same(handle, self.path):
                    self._handle = handle
                else:
                    os.close(handle)
            except OSError:
                os.close(handle)
                raise
        return True

    def release(self) -> None:
        """Let go, and remove the file; nothing where the lock is not ours."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        if sys.platform != "win32":  # there, a file that is open cannot be removed, nor one that another has opened
            with contextlib.suppress(OSError):
                self.path.unlink()
        with contextlib.suppress(OSError):
            os.close(handle)
            if sys.platform == "win32":
                self.path.unlink()


def _locked(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
