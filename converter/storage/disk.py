"""The output that is a folder of this machine: temporary files beside their targets, renamed when all is there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from converter.errors import DiskFull, OutputError
from converter.storage import annexes, leftovers, swap
from converter.storage.checksums import CRC32C
from converter.storage.folders import Folders
from converter.storage.handles import Handles
from converter.storage.journal import Journal
from converter.storage.layout import Layout
from converter.storage.lock import Lock
from converter.storage.shares import Share, movable, place_of, shares
from converter.tensors.tensor import Extent

_BLOCK = 4096  # of file systems whose files may share blocks


class Disk:
    """An `Output` (storage/output.py) on a local disk.

    A file is written under a temporary name beside its target; a new folder is built beside its place and renamed as
    one; files that come into a folder, or stand beside each other, are built in a stage there, which is sure to be the
    same disk, and published as one (storage/swap.py). What goes to other disks is led to by links in that stage
    (storage/annexes.py). What it all lies in is made where it is not there.

    Args:
        layout: what will be written.
        replace: whether files of the same names are replaced, also those that come there meanwhile.
        key: what tells this run from any other that could write here. A run of the same key that was killed is gone on
            with; without one, nothing is.
        keep: what is written stays for such a run, should this one be stopped.

    Raises:
        OutputError: a file of the layout lies outside its folder.
    """

    def __init__(self, layout: Layout, *, replace: bool = True, key: str | None = None, keep: bool = False) -> None:
        self.layout, self._replace, self._key, self._keep = layout, replace, key, keep and key is not None
        folder = layout.folder
        self._new_folder = folder is not None and not folder.exists()
        anchor = layout.files[0].path if folder is None else folder if self._new_folder else folder / folder.name
        self._root = anchor.parent if folder is None else folder
        self._names = [_name_in(self._root, file.path) for file in layout.files]
        self._claim = Lock(anchor.with_name(f".{_short(anchor.name)}.lock"))
        self._folders = Folders(anchor.parent)
        self._build_in(anchor.with_name(f".{_short(anchor.name)}.{secrets.token_hex(4)}.part"))

    def _build_in(self, temporary: Path) -> None:
        """Take `temporary`, a name that is free or what a run of the same key left, to write into."""
        self._temporary = temporary
        self._stage = None if self._is_alone else temporary
        self._paths = self._paths_in(temporary)
        self._handles = Handles(self._paths)
        self._journal = Journal(leftovers.journal_of(temporary), self._key or "")
        root = self._root.parent.resolve() / self._root.name if self._new_folder else self._root.resolve()
        self._ledger = annexes.Ledger(leftovers.ledger_of(temporary), root, self._names)

    @property
    def _is_alone(self) -> bool:
        """Whether it is one file, which needs no stage."""
        return self.layout.folder is None and len(self.layout.files) == 1 and not self.layout.spread

    def _paths_in(self, temporary: Path) -> list[Path]:
        if self._is_alone:
            return [temporary]
        return [(temporary if self._new_folder else temporary / swap.NEW) / name for name in self._names]

    @property
    def paths(self) -> list[Path]:
        """The temporary files, by the numbers of the layout's."""
        return list(self._paths)

    @property
    def lock(self) -> Path:
        """The file that stands for the claim while it is held."""
        return self._claim.path

    def claim(self) -> list[str]:
        """Take the place for this run, end what dead runs began there, and remove what they left, but for what this
        one goes on with.

        Returns:
            What was found of dead runs, for the report. Where no lock can be had, none is held and nothing is found.

        Raises:
            OutputError: another run writes there, what a dead one left can neither be finished nor undone, or there
                can be no such folder.
        """
        self._folders.make()
        place = self.layout.folder or self.layout.files[0].path
        try:
            if not self._claim.take():
                raise OutputError(f"{place}: another run is writing it; wait for its end")
        except OSError:
            return []
        found = [self._ended(path) for path in self._unfinished() if self._is_dead(path)]
        with contextlib.suppress(OSError):
            if (beside := self._beside) is not None and beside.path.exists() and beside.take():
                beside.release()
        return [note for note in found if note is not None]

    def _ended(self, temporary: Path) -> str | None:
        """Go on with what a dead run left, where it can be, or remove it; says which."""
        if leftovers.owner_of(temporary) == self._temporary or not os.path.lexists(temporary):  # done with already
            return None
        if self._goes_on(temporary):
            return f"goes on where a run was stopped: {self._journal.nbytes:,} bytes are there"
        note = leftovers.removed(temporary)
        return None if leftovers.is_journal(temporary) else note

    def _goes_on(self, temporary: Path) -> bool:
        """Whether a dead run with this one's key left all its files, and had not begun to give them their names."""
        if self._key is None or self._journal.done or (temporary / swap.JOURNAL).exists():
            return False
        journal = Journal(leftovers.journal_of(temporary), self._key)
        ledger = annexes.Ledger.read(leftovers.ledger_of(temporary))
        if not journal.read() or (ledger is not None and ledger.state != annexes.MADE):
            return False
        away = {} if ledger is None else ledger.new
        for name, path, file in zip(self._names, self._paths_in(temporary), self.layout.files, strict=True):
            shard = away.get(name)
            whole = path if shard is None else shard
            if not _is_of_size(whole, file.size) or not (ledger is None or shard is None or ledger.holds(path, shard)):
                return False
        self._build_in(temporary)
        self._journal, self._ledger = journal, ledger or self._ledger
        return True

    @property
    def _beside(self) -> Lock | None:
        """The lock of a run for which a folder that is there now was a new one."""
        folder = self.layout.folder
        if folder is None or self._new_folder:
            return None
        return Lock(folder.with_name(f".{_short(folder.name)}.lock"))

    def _unfinished(self) -> list[Path]:
        found: list[Path] = []
        for lock in (self._claim, self._beside):
            with contextlib.suppress(OSError):
                found += sorted(lock.path.parent.glob(".*.part")) if lock is not None else []
        return sorted(found, key=leftovers.is_beside)

    def _is_dead(self, temporary: Path) -> bool:
        """Whether its run is certainly gone: we hold its lock, or could have it."""
        lock = leftovers.lock_of(temporary)
        if lock is None or lock.path == self.lock:
            return lock is not None
        return lock.path.exists() and leftovers.is_free(lock)  # without one, no run of ours has died there

    def check_room(self) -> None:
        """Compare what will be written with what is free.

        Raises:
            DiskFull: it does not fit.
            OutputError: there can be no such folder.
        """
        for share in self._shares():
            there = sum(_allocated(self._paths[number]) for number in share.files) if self._journal.done else 0
            if share.nbytes > share.free + there:
                part = "its part of the output" if self.layout.spread else "the output"
                raise DiskFull(f"{share.folder}: {part} needs {share.nbytes:,} bytes, {share.free:,} are free")

    def _shares(self) -> list[Share]:
        away = {number: self._ledger.new.get(name) for number, name in enumerate(self._names)}
        given = {number: shard.parent.parent for number, shard in away.items() if shard is not None}
        try:
            return shares(self.layout, given if self._journal.done else None)
        except OSError as error:
            raise OutputError(f"{error.filename}: {error.strerror}") from error

    def create(self) -> None:
        self.claim()
        if not self._journal.done:
            self._spread()
            for file, name, path in zip(self.layout.files, self._names, self._paths, strict=True):
                if self._stage is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                shard = self._ledger.new.get(name)
                with _named(shard), open(shard or path, "xb", buffering=0) as out:
                    _reserve(out, file.size)
        if self._key is not None:
            self._journal.open()

    def _spread(self) -> None:
        """Give shards their places on other disks, with links in the stage that lead there."""
        shards, own = set(movable(self.layout)), place_of(self.layout)
        annex = self._temporary.name.removeprefix(".").removesuffix(".part") + annexes.ENDING
        for share in self._shares() if shards else ():
            for number in shards.intersection(share.files if share.folder != own else ()):
                name = self._names[number]
                self._ledger.new[name] = share.folder.resolve() / annex / name
                _link(self._paths[number], self._ledger.new[name])
        if self._ledger.new:
            self._ledger.begin()

    def kept(self, file: int, offset: int, nbytes: int) -> memoryview | None:
        crc = self._journal.done.get((file, offset, nbytes))
        if crc is None:
            return None
        with open(self._paths[file], "rb") as source:
            source.seek(offset)
            data = source.read(nbytes)
        return memoryview(data) if len(data) == nbytes and CRC32C.of(data) == crc else None

    def write(self, file: int, offset: int, data: memoryview) -> None:
        with _named(self._ledger.new.get(self._names[file])):
            self._handles.write(file, offset, data)
        self._journal.wrote(file, offset, data)

    def copy(self, file: int, offset: int, source: Extent, nbytes: int) -> bool:
        """By the system, without a detour through this process; where it can, both files share the blocks.

        Blocks are shared from a boundary in both files on, where there is one: what is before it goes by itself. A run
        that can be gone on with reads, as its journal has sums. Whatever is wrong, the ordinary way will meet it again
        and say it.
        """
        if sys.platform != "linux" or self._key is not None:
            return False
        with (
            contextlib.suppress(OSError),
            open(source.path, "rb", buffering=0) as read,
            self._handles.opened(file) as out,
        ):
            at, stop, shift = source.offset, source.offset + nbytes, offset - source.offset
            while at < stop:
                step = -at % _BLOCK or stop - at if shift % _BLOCK == 0 else stop - at
                copied = os.copy_file_range(read.fileno(), out.fileno(), min(step, stop - at), at, at + shift)
                if not copied:  # the source became shorter
                    return False
                at += copied
            return True
        return False

    def flush(self) -> None:
        for number in range(len(self._paths)):
            with self._handles.opened(number) as out:
                os.fsync(out.fileno())
        self._handles.close()
        swap.flush_folders({shard.parent for shard in self._ledger.new.values()})

    def publish(self) -> None:
        self._journal.remove()
        self._keep = False
        old = [shard for file in self.layout.files if (shard := annexes.shard_of(file.path)) is not None]
        if old or self._ledger.new:
            self._ledger.publishing(old)
        self._put_in_place()
        swap.flush_folders({self._root.parent if self._new_folder else self._root})
        self._ledger.ended(published=True)

    def _put_in_place(self) -> None:
        if self._stage is None:
            ((file, path),) = zip(self.layout.files, self._paths, strict=True)
            if self._replace:
                if os.path.lexists(file.path):
                    swap.keep_mode(file.path, path)
                os.replace(path, file.path)
            else:
                swap.place(path, file.path)
        elif self._new_folder:
            # A new folder appears in one step, which fails if another has come there meanwhile.
            swap.flush_folders({path.parent for path in self._paths})
            os.rename(self._stage, self._root)
        else:
            entry = self.layout.entry
            order = [entry, *(number for number in range(len(self._names)) if number != entry)]
            try:
                swap.publish(self._stage, [self._names[number] for number in order], self._replace)
            except swap.NotUndone:
                # The old files are in the stage, which the next run ends.
                self._stage, self._paths = None, []
                self._ledger.leave()
                raise

    @property
    def keeps(self) -> bool:
        return self._keep

    def abandon(self) -> None:
        self._handles.close()
        if self._keep:
            self._journal.close()
            self._claim.release()
            return
        self._journal.remove()
        self._ledger.ended(published=False)
        if self._stage is not None:
            shutil.rmtree(self._stage, ignore_errors=True)
        else:
            for path in self._paths:
                with contextlib.suppress(OSError):
                    path.unlink()
        self._ledger.settle()
        self._claim.release()
        self._folders.remove()


def _is_of_size(path: Path, size: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size


def _allocated(path: Path) -> int:
    """Bytes that a file has of its disk already."""
    status = path.stat()
    return min(status.st_size, status.st_blocks * 512) if hasattr(status, "st_blocks") else status.st_size


def _link(link: Path, shard: Path) -> None:
    """Make a link.

    Raises:
        OutputError: the system, or the file system, has none.
    """
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(shard, link)
    except (OSError, NotImplementedError) as error:
        may = "; on Windows, developer mode or an administrator may" if sys.platform == "win32" else ""
        raise OutputError(
            f"{link.parent}: no symbolic link can be made there ({getattr(error, 'strerror', None) or error}){may}\n"
            "shards on other disks are led to by such links: choose another folder, or leave --spread out"
        ) from error


@contextlib.contextmanager
def _named(path: Path | None) -> Iterator[None]:
    """An error of the system says which file it is about, where it does not itself."""
    try:
        yield
    except OSError as error:
        if path is not None and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _short(name: str) -> str:
    """A name that leaves room for what goes around it; still another one for another file."""
    return name if len(name) <= 48 else f"{name[:40]}{zlib.crc32(os.fsencode(name)):08x}"


def _name_in(root: Path, path: Path) -> str:
    """The name of a file from its folder on."""
    if not path.is_relative_to(root) or path == root or ".." in path.relative_to(root).parts:
        raise OutputError(f"{path}: lies outside {root}, where the output goes; its writer is wrong")
    return path.relative_to(root).as_posix()


def _reserve(file: FileIO, size: int) -> None:
    """Make the file this long, all zero; its room is taken now where the file system can."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    file.truncate(size)
