"""A file as memory.

The extension's `Mapping` is the one: it holds no open file, and what is lost while it is mapped (the file is cut short,
the disk fails) is zeros and `faulted`, where the system would end the process. Where the extension has none, a mapped
file cannot be cut short.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from converter import _native


class _Mapping(mmap.mmap):
    """The standard library's map as the extension's."""

    faulted = False

    def __new__(cls, fd: int, size: int) -> _Mapping:
        return super().__new__(cls, fd, size, access=mmap.ACCESS_READ)

    def advise(self, advice: int) -> None:
        """Nothing: such systems take no advice."""


if TYPE_CHECKING:
    from converter._native import Mapping as Mapping
    from converter._native import faults as faults
else:
    Mapping = getattr(_native, "Mapping", _Mapping)
    faults = getattr(_native, "faults", int)  # of all maps together; none where the extension has no map
