"""What a writer wants written: files with header bytes and slots for tensors, computed before a byte is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.events import Event
from converter.tensors.tensor import LazyTensor


@dataclass(frozen=True)
class Slot:
    """Where a tensor's bytes go in a file."""

    offset: int
    tensor: LazyTensor


# What a writer adds when the slots are full: from the CRC-32 of every slot, bytes and where they go.
Finish = Callable[[Sequence[int]], Iterable[tuple[int, bytes]]]


@dataclass(frozen=True)
class FileLayout:
    """One file to be: its header bytes at 0, its slots, its size. What lies between is zero, or `finish` writes it."""

    path: Path
    header: bytes | bytearray
    slots: tuple[Slot, ...]
    size: int
    finish: Finish | None = None


@dataclass(frozen=True)
class Layout:
    """Everything a writer wants written, computed from names, shapes and types alone.

    Attributes:
        files: what to write.
        folder: the folder that they make together, created where it is absent; None for files beside each other.
        events: what the writer has to say.
        together: slots of equal names hold what is made of the same rows, which are read once for all of them.
        spread: folders on other disks, to which files with slots may go, by the room there.
    """

    files: tuple[FileLayout, ...]
    folder: Path | None = None
    events: tuple[Event, ...] = ()
    together: bool = False
    spread: tuple[Path, ...] = ()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def entry(self) -> int:
        """The file that leads to the others, by its number: their index where there is one, or else the first."""
        index = (number for number, file in enumerate(self.files) if file.path.name.endswith(".index.json"))
        return next(index, 0)


def whole_file(path: Path, content: bytes) -> FileLayout:
    """A small file whose content is known."""
    return FileLayout(path, content, (), len(content))
