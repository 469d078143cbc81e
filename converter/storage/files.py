"""Files as bytes that are looked at by ranges: mapped, a part of another, or held in memory.

Readers ask for the ranges that they need and never for a whole file, so that whatever has the bytes (a disk, a member
of an archive, a server) need give no more.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar, copy_context
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from numpy.typing import NDArray

from converter.address import is_elsewhere, shown
from converter.errors import CorruptFile, Interrupted, OutputError
from converter.storage import page_cache
from converter.storage.mapping import Mapping, faults
from converter.storage.stand_ins import LOOKED_AT, refuse_stand_in
from converter.tensors.tensor import Extent
from converter.workers import default_threads

# Pages that were read stay resident until somebody lets go of them. After this many bytes, of all files together, the
# maps that were read are released; what is still in use is simply faulted in again from the page cache.
RELEASE_AFTER = 32 << 20
_PAGE = 2 << 20  # the largest that Linux maps at once
_STREAMED = 128 << 10  # bytes that are read at once of a file of which more will be
AT_ONCE = 16  # files that lie elsewhere are opened so many at a time

Result = TypeVar("Result")


class Elsewhere(Protocol):
    """A file that lies elsewhere; where its path leads lies a pointer, so that folders list it and nobody takes it.

    Attributes:
        size: bytes of the file.
        here: whether it was fetched as a whole.
        identity: what tells it from the same file after it was changed.
    """

    size: int

    @property
    def here(self) -> bool: ...

    @property
    def identity(self) -> str: ...

    def open(self, path: Path) -> Bytes:
        """Its bytes, fetched as they are asked for."""

    def fetch(self, path: Path) -> None:
        """Put the whole file where its path leads, once."""

    def prove(self) -> None:
        """Compare what was read of it with what its host says of all of it, as far as that can be; CorruptFile."""


_elsewhere: dict[Path, Elsewhere] = {}


def stands_for(path: Path, file: Elsewhere | None) -> None:
    """Say what a path leads to: a file that lies elsewhere, or (None) what is there."""
    if file is None:
        _elsewhere.pop(path, None)
    else:
        _elsewhere[path] = file


def local(path: Path) -> Path:
    """A file that is read otherwise than by ranges, small as such files are: it is here when this returns.

    Raises:
        ConverterError: it lies elsewhere, and cannot be fetched.
    """
    if (file := _elsewhere.get(path)) is not None:
        file.fetch(path)
    return path


def refuse_elsewhere(path: Path, work: str) -> None:
    """Refuse what other programs would read, who find pointers where files lie elsewhere.

    Raises:
        OutputError: it is such a file, or the folder of an address.
    """
    if is_elsewhere(path):
        raise OutputError(f"{path}: lies elsewhere, and {work} reads only files of this machine; download it first")


def regular_size(path: Path) -> int:
    """Size of a regular file; anything else (FIFO, device, folder) is refused because reading it may hang.

    Raises:
        OutputError: there is no such file, or it is not a regular file.
    """
    if (file := _elsewhere.get(path)) is not None:
        return file.size
    try:
        status = os.stat(path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{path}: not a regular file")
    return status.st_size


class Identity(NamedTuple):
    """What tells a file from the same file after somebody wrote to it."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Opened:
    """The files that were opened, each as it was then, and those of them that are mapped."""

    def __init__(self) -> None:
        self._identities: dict[Path, Identity] = {}
        self._remote: dict[Path, Elsewhere] = {}
        self._mapped: list[MappedFile] = []

    def map(self, file: MappedFile, status: os.stat_result) -> None:
        """Remember a file and its map."""
        self._mapped.append(file)
        self.add(file.path, status)

    def add(self, path: Path, status: os.stat_result | None = None) -> None:
        """Remember a file, the first time that it is told; one that is not there is left out."""
        if (file := _elsewhere.get(path)) is not None:
            self._remote[path] = file  # every answer of its host says whether it is still the same
        elif path not in self._identities and not is_elsewhere(path):
            with suppress(OSError):
                self._identities[path] = Identity.of(os.stat(path) if status is None else status)

    def identities(self) -> list[tuple[str, Identity | str]]:
        """Every file, and which it was."""
        remote = ((shown(str(path)), file.identity) for path, file in self._remote.items())
        return sorted([*((str(path), each) for path, each in self._identities.items()), *remote], key=itemgetter(0))

    def lost(self) -> OutputError | None:
        """What to say where bytes of a file could not be read, and were seen as zeros."""
        for file in self._mapped if faults() else ():
            if file.faulted:
                return OutputError(
                    f"{file.path}: was changed while it was read: it was cut short, or its disk failed\n"
                    "run again when nothing writes to it; nothing was written"
                )
        return None

    def check(self) -> None:
        """Compare all with what is there now.

        Raises:
            OutputError: a file is gone, is another one, was written to or could not be read.
        """
        if (lost := self.lost()) is not None:
            raise lost
        for path, identity in self._identities.items():
            try:
                now = Identity.of(os.stat(path))
            except OSError as error:
                raise OutputError(f"{path}: cannot be found again after it was read ({error.strerror})") from error
            if now != identity:
                raise OutputError(
                    f"{path}: was changed while it was read; what came of it may be neither the old nor the new file\n"
                    "run again when nothing writes to it; nothing was written"
                )

    def prove(self) -> None:
        """Compare what was read of files that lie elsewhere with what their hosts say of them.

        Raises:
            CorruptFile: it is not that.
        """
        if self._remote:
            with ThreadPoolExecutor(default_threads(), "prove") as threads:
                list(threads.map(lambda file: file.prove(), self._remote.values()))

    def explain(self, error: BaseException | None) -> None:
        """Whatever went wrong: where a file was changed, that is why.

        Raises:
            OutputError: as `check`.
        """
        if isinstance(error, Exception) and not isinstance(error, Interrupted):
            self.check()


_opened: ContextVar[Opened | None] = ContextVar("opened", default=None)


@contextmanager
def remembering(found: Opened | None = None) -> Iterator[Opened]:
    """Every file that is mapped meanwhile is remembered, with those that were `found` before."""
    found = Opened() if found is None else found
    token = _opened.set(found)
    try:
        yield found
    finally:
        _opened.reset(token)


class Bytes(Protocol):
    """The bytes of one file, wherever it lies.

    Attributes:
        path: what messages call it; the files that it names lie beside it.
        size: bytes.
    """

    path: Path
    size: int

    def view(self, offset: int, nbytes: int, what: str) -> NDArray[np.uint8]:
        """Bytes [offset, offset + nbytes), zero-copy where that can be.

        Raises:
            CorruptFile: the range leaves the file; `what` names it in the message.
        """

    def scattered(self) -> AbstractContextManager[None]:
        """A hint: while it lasts, what is asked for lies here and there between tensors; reading ahead is wasted."""

    def forward(self, edges: Iterable[int]) -> None:
        """A hint: what lies between two of these offsets, a tensor, is read from its beginning to its end."""

    def close(self) -> None:
        """Let go of the file. Arrays that are still held stay valid."""


@runtime_checkable
class Local(Protocol):
    """`Bytes` that lie in a file of this machine as they are."""

    def extent(self, offset: int) -> Extent:
        """Where those from `offset` on do."""


def open_bytes(path: Path) -> Bytes:
    """The one way by which readers open a file.

    Raises:
        OutputError: there is no such file, it is not a regular file, or it cannot be mapped.
        MissingPart: a pointer, a web page or an unfinished download lies in its place.
    """
    mapped = bytes_of(path)
    try:
        refuse_stand_in(path, bytes(mapped.view(0, min(LOOKED_AT, mapped.size), "the start")))
    except BaseException:
        mapped.close()
        raise
    return mapped


def bytes_of(path: Path) -> Bytes:
    """The bytes of a file, whatever lies in its place.

    Raises:
        OutputError: as `open_bytes`.
    """
    file = _elsewhere.get(path)
    return MappedFile(path) if file is None or file.here else file.open(path)


def peek(path: Path, nbytes: int, offset: int = 0) -> bytes:
    """Bytes of a file from `offset` on, or from its end where that is negative; fewer where it has no more.

    Raises:
        OSError: it cannot be read; ConverterError where it lies elsewhere.
    """
    if (there := _elsewhere.get(path)) is not None and not there.here:
        start = min(offset if offset >= 0 else max(0, there.size + offset), there.size)
        file = there.open(path)
        try:
            return file.view(start, min(nbytes, there.size - start), "what is looked at").tobytes()
        finally:
            file.close()
    with open(path, "rb") as here:
        here.seek(max(offset, -regular_size(path)) if offset < 0 else offset, os.SEEK_END if offset < 0 else 0)
        return here.read(nbytes)


def each_of(paths: Iterable[Path], look: Callable[[Path], Result]) -> Iterator[Result]:
    """`look(path)` of each, in order; several at once where they lie elsewhere, and each is a way there and back.

    Whoever stops, by an error of one of them, closes what the others gave.
    """
    paths = list(paths)
    if len(paths) < 2 or not all(path in _elsewhere for path in paths):
        yield from map(look, paths)
        return
    with ThreadPoolExecutor(AT_ONCE, "look") as threads:
        contexts = [copy_context() for _ in paths]
        yield from threads.map(lambda context, path: context.run(look, path), contexts, paths)


def check_inside(source: Bytes, offset: int, nbytes: int, what: str) -> None:
    """Refuse a range that leaves the file.

    Raises:
        CorruptFile: as said.
    """
    if offset < 0 or nbytes < 0 or offset + nbytes > source.size:
        raise CorruptFile(
            f"{source.path}: {what} at offset {offset} needs {nbytes} bytes, the file has {source.size}\n"
            "the file is truncated or its header lies; download it again"
        )


class _Resident:
    """What was read of all maps together since they were let go of: a model of many shards takes no more than one.

    Counted are large pages: where a file is cached in such, a byte that is read makes all of one resident, and a model
    is opened by the first bytes of every shard. Of files that outgrow memory the system's cache forgets what was let go
    of, unless it was read again meanwhile.
    """

    def __init__(self) -> None:
        self._open: WeakSet[MappedFile] = WeakSet()
        self._read: WeakKeyDictionary[MappedFile, set[int]] = WeakKeyDictionary()
        self._before = self._read.copy()
        self._count = 0  # of the pages in `_read`
        self._lock = threading.Lock()

    def opened(self, file: MappedFile) -> None:
        with self._lock:
            self._open.add(file)

    def add(self, file: MappedFile, offset: int, nbytes: int) -> None:
        """Count what is about to be read of a file; all that were read let go of it where it is too much."""
        with self._lock:
            pages = self._read.setdefault(file, set())
            self._count -= len(pages)
            pages.update(range(offset // _PAGE, -(-(offset + nbytes) // _PAGE)))
            self._count += len(pages)
            if self._count * _PAGE < RELEASE_AFTER:
                return
            before, read = self._before, self._read
            self._before, self._read, self._count = read, WeakKeyDictionary(), 0
            outgrown = page_cache.outgrown(sum(each.size for each in self._open))
        for each in list(read):
            each.release()
        for each, pages in list(before.items()) if outgrown else ():
            page_cache.forget(each.path, pages - read.get(each, set()), _PAGE)


_resident = _Resident()


class MappedFile:
    """`Bytes` of a local file: a read-only map of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        regular_size(path)
        self._map: Mapping | None = None
        self._faulted = self._streamed = False
        self._bytes: NDArray[np.uint8] = np.empty(0, np.uint8)
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                self.size = status.st_size
                if self.size:
                    self._map = Mapping(file.fileno(), self.size)
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: cannot be mapped ({error})") from error
        if (opened := _opened.get()) is not None:
            opened.map(self, status)
        if self._map is not None:
            _resident.opened(self)
            self._bytes = np.frombuffer(memoryview(self._map), np.uint8)

    @property
    def faulted(self) -> bool:
        """Whether a part of it could not be read, and was seen as zeros."""
        return self._faulted if self._map is None else self._map.faulted

    def view(self, offset: int, nbytes: int, what: str) -> NDArray[np.uint8]:
        check_inside(self, offset, nbytes, what)
        _resident.add(self, offset, nbytes)
        if nbytes >= _STREAMED and not self._streamed:
            self._streamed = True
            self._advise("MADV_HUGEPAGE")
        return self._bytes[offset : offset + nbytes]

    def extent(self, offset: int) -> Extent:
        return Extent(self.path, offset)

    @contextmanager
    def scattered(self) -> Iterator[None]:
        """The system reads the pages that are asked for and none ahead; afterwards they are let go of."""
        self._advise("MADV_RANDOM")
        try:
            yield
        finally:
            self._advise("MADV_NORMAL")
            self.release()

    def release(self) -> None:
        """Let go of the pages that were read; they come back when they are asked for."""
        self._advise("MADV_DONTNEED")

    def forward(self, edges: Iterable[int]) -> None:
        """Nothing: the system reads ahead by itself."""

    def _advise(self, advice: str) -> None:
        mapped = self._map  # another thread may close the file
        if mapped is not None and hasattr(mmap, advice):
            mapped.advise(getattr(mmap, advice))

    def close(self) -> None:
        """Unmap; arrays that are still held keep the map alive until they are gone."""
        self._faulted = self.faulted
        self._bytes, self._map = np.empty(0, np.uint8), None


class Part:
    """Bytes [offset, offset + size) of another file, as a file of their own: a member of an archive, say."""

    def __init__(self, whole: Bytes, offset: int, size: int) -> None:
        self.path, self.size = whole.path, size
        self._whole, self._offset = whole, offset

    def view(self, offset: int, nbytes: int, what: str) -> NDArray[np.uint8]:
        check_inside(self, offset, nbytes, what)
        return self._whole.view(self._offset + offset, nbytes, what)

    def scattered(self) -> AbstractContextManager[None]:
        return self._whole.scattered()

    def forward(self, edges: Iterable[int]) -> None:
        self._whole.forward(self._offset + edge for edge in edges)

    def close(self) -> None:
        """Nothing: the whole is closed by whoever opened it."""


def extent_of(source: Bytes, offset: int) -> Extent | None:
    """Where bytes from `offset` on lie, if that is a file of this machine."""
    return source.extent(offset) if isinstance(source, Local) else None


class InMemory:
    """Bytes that are held: what came out of a compressed block, say; `path` is that of the file it came from."""

    def __init__(self, path: Path, data: bytes | memoryview) -> None:
        self.path, self.size = path, len(data)
        self._bytes = np.frombuffer(data, np.uint8)

    def view(self, offset: int, nbytes: int, what: str) -> NDArray[np.uint8]:
        check_inside(self, offset, nbytes, what)
        return self._bytes[offset : offset + nbytes]

    def scattered(self) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, edges: Iterable[int]) -> None:
        """Nothing: all is here."""

    def close(self) -> None:
        """Nothing: there is no file."""


# What all tensors of a file may declare, for the bytes it has: values that are given once for many elements, fill
# values, packed chunks and views that share bytes make more of a file than it is, a hostile one without end.
_EXPANSION, _ALLOWANCE = 64, 64 << 20


def expands_too_far(declared: int, given: int) -> bool:
    """Whether tensors of `declared` bytes are more than a file of `given` bytes can honestly mean."""
    return declared > _EXPANSION * given + _ALLOWANCE
