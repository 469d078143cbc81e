"""What a run that was killed leaves beside its output: temporary files or a stage of them, a journal, a lock."""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.address import BASES, base
from converter.errors import OutputError
from converter.storage import swap
from converter.storage.lock import Lock

#: The name of the lock that its run held, without its end, is in the name of what is temporary.
_TEMPORARY = re.compile(r"\.(.*)\.[0-9a-f]{8}(?:\.journal)?\.part", re.DOTALL)


@dataclass(frozen=True)
class Leftover:
    """Something temporary: its size in bytes, and whether its run is still there."""

    path: Path
    nbytes: int
    running: bool

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"path": str(self.path), "bytes": self.nbytes, "running": self.running}


def found(folder: Path) -> list[Leftover]:
    """What is temporary in a folder, by name; journals go with what they are of.

    Raises:
        OutputError: it is no folder, or cannot be looked into.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    result = []
    for path in paths:
        lock = lock_of(path)
        if lock is not None and not (is_journal(path) and _owner_of(path).exists()):
            result.append(Leftover(path, size_of(path), lock.path.exists() and not is_free(lock)))
    return result


def of_addresses() -> list[Leftover]:
    """What processes of this user left that read or wrote at addresses, in the folder for temporary files.

    Others may write there, too, so what is not ours counts for nothing, whatever it is called.

    Raises:
        OutputError: as `found`.
    """
    return [each for each in found(base().parent) if each.path.name.startswith(BASES) and _ours(each.path)]


def _ours(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and (sys.platform == "win32" or status.st_uid == os.getuid())


def clean(leftover: Leftover) -> None:
    """Remove it, with its journal and its lock; a set that it was about to replace is as it was before, or all new.

    Raises:
        OutputError: its run is still there, or files have come into the place of those that it had moved away.
    """
    lock = lock_of(leftover.path)
    if lock is None or not _taken(lock):
        raise OutputError(f"{leftover.path}: a run is writing it; wait for its end")
    try:
        removed(leftover.path)
        journal_of(leftover.path).unlink(missing_ok=True)
    finally:
        lock.release()


def lock_of(temporary: Path) -> Lock | None:
    """The lock that the run held which made something temporary; None where the name is another's."""
    match = _TEMPORARY.fullmatch(temporary.name)
    return None if match is None else Lock(temporary.with_name(f".{match[1]}.lock"))


def is_free(lock: Lock) -> bool:
    """Whether nobody holds it."""
    try:
        return _taken(lock)
    finally:
        lock.release()


def _taken(lock: Lock) -> bool:
    try:
        return lock.take()
    except OSError:
        return False


def journal_of(temporary: Path) -> Path:
    """Where the journal of a run lies that writes into `temporary`."""
    return temporary.with_name(f"{temporary.name.removesuffix('.part')}.journal.part")


def is_journal(path: Path) -> bool:
    return path.name.endswith(".journal.part")


def _owner_of(journal: Path) -> Path:
    return journal.with_name(journal.name.replace(".journal.part", ".part"))


def size_of(temporary: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if temporary.is_dir() and not temporary.is_symlink():
        return sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    return temporary.lstat().st_size


def removed(temporary: Path) -> str:
    """Remove what a dead run left; says what it was.

    Raises:
        OutputError: as `swap.recover`.
    """
    size = size_of(temporary)
    if temporary.is_dir() and not temporary.is_symlink():
        swap.recover(temporary)
    else:
        temporary.unlink(missing_ok=True)
    return f"{temporary.name}: left by a run that was killed, removed ({size:,} bytes)"
