"""A set of files takes the place of another as one thing.

The old files, the entry first, are moved into a stage; then the new ones come out of it, the entry last. At no time do
old and new stand beside each other. An error puts the old set back; after a kill the journal in the stage tells the
next run what to put back, or that all was done.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from converter.errors import OutputError

NEW, OLD, JOURNAL = "new", "old", "journal"
_LARGEST = 64 << 20  # bytes of a journal


class NotUndone(OutputError):
    """A set could neither be put in place nor the old one put back; the stage holds what is missing."""


@dataclass(frozen=True)
class Entry:
    """A file of a set: its name from the folder on, whether it takes the place of another, and which file it is."""

    name: str
    replaces: bool
    inode: int


def publish(stage: Path, names: Sequence[str], replace: bool) -> None:
    """Bring `names` from the stage, a folder beside their places, there; the first one is the entry.

    Raises:
        FileExistsError: a file is there, and `replace` does not allow it; all is as it was.
        OSError: a move failed; all is as it was.
        NotUndone: as said.
    """
    folder, new = stage.parent, stage / NEW
    entries = [Entry(name, replace and os.path.lexists(folder / name), os.lstat(new / name).st_ino) for name in names]
    for entry in entries:
        if entry.replaces:
            keep_mode(folder / entry.name, new / entry.name)
    _record(stage, entries)
    try:
        for entry in entries:
            if entry.replaces:
                _move(folder / entry.name, stage / OLD / entry.name)
        for entry in reversed(entries):
            (folder / entry.name).parent.mkdir(parents=True, exist_ok=True)
            place(new / entry.name, folder / entry.name)
    except BaseException:
        _undo(stage, entries)
        raise
    flush_folders({(folder / name).parent for name in names})
    with contextlib.suppress(OSError):
        (stage / JOURNAL).unlink()


def recover(stage: Path) -> None:
    """End what a run that was killed had begun: the old set is back, or the new one is there; the stage is gone.

    Raises:
        NotUndone: files have come there since, or cannot be moved; or the journal is none that a run wrote.
    """
    journal = stage / JOURNAL
    if journal.is_file():
        if not is_published(stage):
            _undo(stage, _entries(stage))
        journal.unlink(missing_ok=True)
    shutil.rmtree(stage, ignore_errors=True)


def is_published(stage: Path) -> bool:
    """Whether all that the journal of a stage names is in its place."""
    return all(
        _is(stage.parent / each.name, each) and not os.path.lexists(stage / NEW / each.name) for each in _entries(stage)
    )


def _entries(stage: Path) -> list[Entry]:
    """What the journal of a stage says. In a folder that others may write to, it may be a stranger's: what it names
    lies in that folder, or nothing is touched."""
    journal = stage / JOURNAL
    try:
        with open(journal, "rb") as file:
            said = json.loads(file.read(_LARGEST))
        entries = [Entry(str(each["name"]), bool(each["replaces"]), int(each["inode"])) for each in said]
        inside = all(_lies_in(stage.parent.resolve(), entry.name) for entry in entries)
    except (ValueError, TypeError, KeyError, RecursionError, RuntimeError):
        inside = False
    if not inside:
        raise NotUndone(f"{journal}: no run wrote this; look at what is in {stage}, and remove that folder yourself")
    return entries


def _lies_in(folder: Path, name: str) -> bool:
    return ".." not in Path(name).parts and (folder / name).parent.resolve().is_relative_to(folder)


def _undo(stage: Path, entries: Sequence[Entry]) -> None:
    """New files away, the entry first; old ones back, the entry last."""
    folder = stage.parent
    kept = [entry for entry in entries if entry.replaces and os.path.lexists(stage / OLD / entry.name)]
    for entry in kept:
        if os.path.lexists(folder / entry.name) and not _is(folder / entry.name, entry):
            raise NotUndone(
                f"{folder / entry.name}: is neither the old file nor the new one of an interrupted run\n"
                f"the old files of it lie in {stage / OLD}: move them back, or remove that folder"
            )
    try:
        for entry in entries:
            if _is(folder / entry.name, entry):
                (folder / entry.name).unlink()
        for entry in reversed(kept):
            _move(stage / OLD / entry.name, folder / entry.name)
    except OSError as error:
        raise NotUndone(
            f"{error.filename or folder}: {error.strerror or error}; the output is not complete\n"
            f"the old files that are not in their places lie in {stage / OLD}; the next run into the same place "
            "puts them back"
        ) from error
    for folder_of in {(folder / entry.name).parent for entry in entries} - {folder}:
        with contextlib.suppress(OSError):  # not empty: it was there before
            folder_of.rmdir()
    flush_folders({folder})
    with contextlib.suppress(OSError):
        (stage / JOURNAL).unlink()


def _record(stage: Path, entries: Sequence[Entry]) -> None:
    text, part = json.dumps([asdict(entry) for entry in entries]), stage / f"{JOURNAL}.part"
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, stage / JOURNAL)
    flush_folders({stage})


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def _is(path: Path, entry: Entry) -> bool:
    try:
        return os.lstat(path).st_ino == entry.inode
    except FileNotFoundError:
        return False


def place(source: Path, target: Path) -> None:
    """Give a file another name on the same disk that nothing has.

    Raises:
        FileExistsError: something has it.
    """
    try:
        # Without this, some systems link to what a link leads to, and others cannot say which they do.
        os.link(source, target, **{"follow_symlinks": False} if source.is_symlink() else {})
    except FileExistsError:
        raise _taken(target) from None
    except (OSError, NotImplementedError):  # no hard links on this file system; a rename may replace
        if os.path.lexists(target):
            raise _taken(target) from None
        os.rename(source, target)
    else:
        with contextlib.suppress(OSError):  # it has its name; the other one goes with the stage
            os.unlink(source)


def _taken(target: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "has come there meanwhile; --force replaces it", str(target))


def keep_mode(old: Path, new: Path) -> None:
    """Give a file the owner, where that is allowed, and the mode of what it will replace."""
    was = os.stat(old, follow_symlinks=False)
    if not stat.S_ISREG(was.st_mode):  # a link has no mode of its own
        return
    now = os.stat(new)
    if hasattr(os, "chown") and (was.st_uid, was.st_gid) != (now.st_uid, now.st_gid):
        try:
            os.chown(new, was.st_uid, was.st_gid)
        except OSError:
            return  # another's file: its mode is not for ours
    os.chmod(new, stat.S_IMODE(was.st_mode))


def flush_folders(folders: Iterable[Path]) -> None:
    """Make the renames durable where the system can open folders."""
    for folder in folders:
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
