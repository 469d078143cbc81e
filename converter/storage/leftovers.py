"""What a run that was killed leaves beside its output: temporary files or a stage of them, a journal, a lock, and a
ledger of what it made on other disks."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.address import BASES, base
from converter.errors import OutputError
from converter.storage import annexes, swap
from converter.storage.lock import Lock

#: The name of the lock that its run held, without its end, is in the name of what is temporary.
_TEMPORARY = re.compile(r"\.(.*)\.[0-9a-f]{8}(?:\.(?:journal|disks))?\.part", re.DOTALL)


@dataclass(frozen=True)
class Leftover:
    """Something temporary: its size in bytes, and whether its run is still there.

    `unlinked_from` is the folder of a set that has no link to these shards any more, though no run is known to have
    ended so: they may be those of a set that was moved, and are only named.
    """

    path: Path
    nbytes: int
    running: bool
    unlinked_from: Path | None = None

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def stays(self) -> bool:
        """Whether it is not for us to remove."""
        return self.running or self.unlinked_from is not None

    @property
    def why(self) -> str:
        """Why it stays."""
        return "at work" if self.running else f"stays: no link in {self.unlinked_from} leads to it"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        set_of = None if self.unlinked_from is None else str(self.unlinked_from)
        return {"path": str(self.path), "bytes": self.nbytes, "running": self.running, "unlinked_from": set_of}


def found(folder: Path) -> list[Leftover]:
    """What is temporary in a folder, by name, and what runs into other folders left in it; journals and ledgers go with
    what they are of.

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
        if lock is not None and not (is_beside(path) and owner_of(path).exists()):
            result.append(_left(path, lock))
    result += [_unlinked(annex, note) for annex, note in annexes.unlinked(folder.resolve())]
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


def _unlinked(annex: Path, note: annexes.Note) -> Leftover:
    """An annex to which no link leads: what its run left, where the ledger of that says so."""
    ledger, lock, owner = None, lock_of(note.ledger), owner_of(note.ledger)
    with contextlib.suppress(OutputError):
        ledger = annexes.Ledger.read(note.ledger)
    if lock is not None and ledger is not None and annex in {shard.parent for shard in ledger.new.values()}:
        return _left(owner if owner.exists() else note.ledger, lock)
    return Leftover(annex, size_of(annex), running=False, unlinked_from=note.folder)


def _left(path: Path, lock: Lock) -> Leftover:
    return Leftover(path, size_of(path), lock.path.exists() and not is_free(lock))


def clean(leftover: Leftover) -> None:
    """Remove it, with its journal and its lock; a set that it was about to replace is as it was before, or all new.

    Raises:
        OutputError: its run is still there, or files have come into the place of those that it had moved away.
    """
    if leftover.unlinked_from is not None:
        raise OutputError(
            f"{leftover.path}: no link in {leftover.unlinked_from} leads to it, but another may\n"
            "remove it yourself when its set is gone for good"
        )
    lock = lock_of(leftover.path)
    if lock is None or not _taken(lock):
        raise OutputError(f"{leftover.path}: a run is writing it; wait for its end")
    try:
        removed(leftover.path)
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


def ledger_of(temporary: Path) -> Path:
    """Where the ledger of a run lies that writes into `temporary`."""
    return temporary.with_name(f"{temporary.name.removesuffix('.part')}.disks.part")


def is_journal(path: Path) -> bool:
    return path.name.endswith(".journal.part")


def is_beside(path: Path) -> bool:
    """Whether it is a journal or a ledger."""
    return owner_of(path) != path


def owner_of(path: Path) -> Path:
    """What a journal or a ledger lies beside; of anything else, itself."""
    return path.with_name(path.name.replace(".journal.part", ".part").replace(".disks.part", ".part"))


def size_of(temporary: Path) -> int:
    """Bytes of a file, or of all files of a folder, those that its links lead to included; of a ledger, of what is a
    part of no set."""
    if temporary == ledger_of(owner_of(temporary)):
        ledger = annexes.Ledger.read(temporary)
        return 0 if ledger is None else ledger.nbytes
    if temporary.is_dir() and not temporary.is_symlink():
        return sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    return temporary.lstat().st_size


def removed(temporary: Path) -> str:
    """Remove what a dead run left, with its journal and what it made on other disks; says what it was.

    Raises:
        OutputError: as `swap.recover`.
    """
    size, owner = size_of(temporary), owner_of(temporary)
    ledger = annexes.Ledger.read(ledger_of(owner))
    if ledger is not None:
        ledger.judge(owner)
    if owner.is_dir() and not owner.is_symlink():
        swap.recover(owner)
    else:
        owner.unlink(missing_ok=True)
    if ledger is not None:
        ledger.settle()
    else:
        ledger_of(owner).unlink(missing_ok=True)
    journal_of(owner).unlink(missing_ok=True)
    return f"{temporary.name}: left by a run that was killed, removed ({size:,} bytes)"
