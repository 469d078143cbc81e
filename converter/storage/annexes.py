"""Shards on other disks, to which symbolic links in the folder of their set lead.

What a run writes to another disk lies there in an annex, a folder of its own with a note that says whose shards these
are: readers follow a link out of a folder only where the note names it. A shard is a part of its set by the link alone,
which appears with the set, whole or not at all.

Before anything is made on another disk, a ledger beside the run's temporary files says what will be, so that a later
run, or `convert clean`, finds it. A shard is removed where its ledger proves that its link was never to be seen, or was
replaced, and where no link of its set leads to it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.errors import OutputError
from converter.storage import swap

ENDING, NOTE = ".annex", "annex.json"
MADE, PUBLISHING, PUBLISHED, UNDONE, LEFT = "made", "publishing", "published", "undone", "left"
_LARGEST = 16 << 20  # bytes of a note or a ledger


# ------------------------------------------------------------------------------------------------ notes


@dataclass(frozen=True)
class Note:
    """Whose shards an annex holds: the set's folder, the names of the links in it, the ledger of the run."""

    folder: Path
    names: tuple[str, ...]
    ledger: Path

    @classmethod
    def of(cls, annex: Path) -> Note | None:
        """What the note of an annex says; None where there is none.

        Raises:
            OSError: it cannot be read.
        """
        said = _read(annex / NOTE)
        try:
            return cls(Path(said[-1]["set"]), tuple(map(str, said[-1]["names"])), Path(said[-1]["ledger"]))
        except (IndexError, KeyError, TypeError):
            return None

    def write(self, annex: Path) -> None:
        """Make the annex, with this note in it, and both safe.

        Raises:
            OSError: it is there already, or cannot be made.
        """
        annex.mkdir()
        said = {"set": str(self.folder), "names": self.names, "ledger": str(self.ledger)}
        _append(annex / NOTE, said)
        swap.flush_folders((annex, annex.parent))

    def links(self, annex: Path) -> list[Path]:
        """The links of the set that lead into its annex."""
        return [self.folder / name for name in self.names if _leads(self.folder / name, annex / name)]


def shard_of(link: Path) -> Path | None:
    """The shard on another disk that a link leads to, where its note names the link; None for any other path.

    Raises:
        OSError: the note cannot be read.
    """
    if not link.is_symlink():
        return None
    try:
        shard, folder = link.resolve(strict=True), link.parent.resolve(strict=True)
    except (OSError, RuntimeError):  # nothing there, or a loop
        return None
    note = Note.of(shard.parent)
    named = note is not None and note.folder == folder and link.name == shard.name and link.name in note.names
    return shard if named else None


def unlinked(folder: Path) -> Iterator[tuple[Path, Note]]:
    """The annexes in a folder to which no link of their set leads."""
    for annex in sorted(folder.glob(f"*{ENDING}")):
        with contextlib.suppress(OSError):
            if (note := Note.of(annex)) is not None and not note.links(annex):
                yield annex, note


def _leads(link: Path, shard: Path) -> bool:
    """Whether a link is there and says just that."""
    try:
        return Path(os.readlink(link).removeprefix("\\\\?\\")) == shard  # Windows puts that in front
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------- ledgers


@dataclass
class Ledger:
    """What one run makes on other disks, and what becomes of it.

    Attributes:
        path: the file.
        folder: that of the set, as it really is.
        names: of all files of the set, from its folder on.
        new: shards that the run makes, by the names of their links.
        old: shards whose links it replaces.
        state: how far it is; empty before the first `write`. What is `new` is no part of a set in the states made and
            undone, `old` in published.
    """

    path: Path
    folder: Path
    names: Sequence[str]
    new: dict[str, Path] = field(default_factory=dict)
    old: list[Path] = field(default_factory=list)
    state: str = ""

    @classmethod
    def read(cls, path: Path) -> Ledger | None:
        """What a dead run wrote; None where it wrote nothing.

        Raises:
            OutputError: it cannot be read.
        """
        try:
            lines = _read(path)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        said = {key: value for line in lines for key, value in line.items()}
        try:
            return cls(
                path,
                Path(said["set"]),
                [str(name) for name in said["names"]],
                {str(name): Path(shard) for name, shard in said["new"].items()},
                [Path(shard) for shard in said.get("old", ())],
                str(said["state"]),
            )
        except (KeyError, TypeError, AttributeError):
            return None

    def begin(self) -> None:
        """Write down what will be made, then make the annexes, still empty.

        Raises:
            OSError: that is not possible.
        """
        self._write(MADE)
        for annex in dict.fromkeys(shard.parent for shard in self.new.values()):
            names = tuple(name for name, shard in self.new.items() if shard.parent == annex)
            Note(self.folder, names, _real(self.path)).write(annex)

    def publishing(self, old: Iterable[Path]) -> None:
        """The set is about to take the place of one that has these shards.

        Raises:
            OSError: that cannot be written down.
        """
        self.old = list(old)
        self._write(PUBLISHING)

    def _write(self, state: str) -> None:
        whole = {"set": str(self.folder), "names": list(self.names), "new": {k: str(v) for k, v in self.new.items()}}
        said = {"state": state, "old": [str(shard) for shard in self.old]}
        _append(self.path, said if self.state else whole | said)
        if not self.state:
            swap.flush_folders({self.path.parent})
        self.state = state

    def ended(self, *, published: bool) -> None:
        """The set is in its place, or will never be."""
        if self.state in (MADE, PUBLISHING):
            with contextlib.suppress(OSError):  # what was said last is careful enough
                self._write(PUBLISHED if published else UNDONE)
            self.state = PUBLISHED if published else UNDONE

    def judge(self, temporary: Path) -> None:
        """Find out where a run came to that died while it published; `temporary` is what it left, untouched so far."""
        if self.state == PUBLISHING:
            self.ended(published=self._was_published(temporary))

    def _was_published(self, temporary: Path) -> bool:
        if not temporary.is_dir() or temporary.is_symlink():
            return not os.path.lexists(temporary)
        if (temporary / swap.JOURNAL).is_file():
            return swap.is_published(temporary)
        waits = all(os.path.lexists(temporary / swap.NEW / name) for name in self.names)
        waits |= all(os.path.lexists(temporary / name) for name in self.names)  # a new folder
        return not waits or any(_leads(self.folder / name, shard) for name, shard in self.new.items())

    @property
    def doomed(self) -> list[Path]:
        """Shards that are a part of no set.

        Raises:
            OSError: a note cannot be read.
        """
        if self.state == PUBLISHED:
            return [shard for shard in self.old if self._is_ours(shard, old=True)]
        new = self.new.values() if self.state in (MADE, UNDONE) else ()
        return [shard for shard in new if self._is_ours(shard, old=False)]

    @property
    def nbytes(self) -> int:
        """Bytes of those, as far as they can be looked at."""
        with contextlib.suppress(OSError):
            return sum(shard.stat().st_size for shard in self.doomed if shard.is_file())
        return 0

    def _is_ours(self, shard: Path, *, old: bool) -> bool:
        """Whether it may go: a ledger in a stranger's folder can say anything, the note of an annex cannot."""
        note = Note.of(shard.parent)
        if note is None or shard.name not in note.names or _leads(note.folder / shard.name, shard):
            return False
        if old:
            return note.folder == self.folder and _real(self.path.parent) in (self.folder, self.folder.parent)
        return note.ledger == _real(self.path)

    def leave(self) -> None:
        """What became of the set, a later run has to find out."""
        self.state = LEFT

    def settle(self) -> None:
        """Remove what is a part of no set, then the ledger; it stays where that is not possible, for the next try."""
        if self.state == LEFT or not (self.new or self.old):
            return
        annexes = dict.fromkeys(shard.parent for shard in (*self.new.values(), *self.old))
        with contextlib.suppress(OSError):
            for shard in self.doomed:
                shard.unlink(missing_ok=True)
            for annex in annexes:
                _close(annex)
            self.path.unlink(missing_ok=True)
            self.state = ""

    def holds(self, path: Path, shard: Path) -> bool:
        """Whether `path`, in what a dead run left, is a link to a shard of its, which is there."""
        return _leads(path, shard) and self._is_ours(shard, old=False) and shard.is_file() and not shard.is_symlink()


def _close(annex: Path) -> None:
    """Remove an annex in which no shard is left."""
    if annex.name.endswith(ENDING) and annex.is_dir() and {path.name for path in annex.iterdir()} <= {NOTE}:
        (annex / NOTE).unlink(missing_ok=True)
        annex.rmdir()


def _append(path: Path, said: Mapping[str, Any]) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(said).encode() + b"\n")
        os.fsync(file.fileno())


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of ours, none where there is no file; one that was not written to its end is left out."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_LARGEST).split(b"\n")
        return [said for line in lines[:-1] if isinstance(said := json.loads(line), dict)]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return []


def _real(path: Path) -> Path:
    """A path by the real name of its folder, whatever it is itself."""
    return path.parent.resolve() / path.name
