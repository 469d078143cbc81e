"""The system's cache of files, where files are larger than memory.

Nobody finds there again what was read first. But the system keeps it until memory is full, and then looks for room page
by page, which takes the processors as much as a tenth of their time. So it is told what to forget.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path


@cache
def _memory() -> int | None:
    """Bytes of the machine; None where the system takes no advice about its cache."""
    if not hasattr(os, "posix_fadvise"):
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def outgrown(nbytes: int) -> bool:
    """Whether files of so many bytes leave no room in memory for much else."""
    memory = _memory()
    return memory is not None and nbytes > memory // 2


def forget(path: Path, pages: Iterable[int], page: int) -> None:
    """Forget what was read of a file: pages of `page` bytes, by their numbers."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # the file may be gone, and a pipe in its place
        try:
            for _, run in groupby(enumerate(sorted(pages)), lambda each: each[1] - each[0]):
                numbers = [number for _, number in run]
                os.posix_fadvise(descriptor, numbers[0] * page, len(numbers) * page, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
