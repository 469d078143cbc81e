"""The folder that stands for an address: what lies there by name, with pointers in the place of the files.

What reads folders finds the names that it looks for; what reads a file gets its bytes by ranges, or has it fetched
where it is small and read otherwise. Nobody takes a pointer for a file: it is one of Git LFS, which all readers refuse.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path

from converter.address import STORES, Address, address_of, base
from converter.errors import ConverterError, MissingPart, OutputError, UnsupportedFeature
from converter.remote import hub, stores
from converter.remote.attempts import tried
from converter.remote.blocks import RUN, RemoteBytes, RemoteFile
from converter.remote.cache import Cache
from converter.remote.kept import Kept
from converter.remote.listing import Entry, checked
from converter.remote.settings import online, settings
from converter.remote.web import WebFile
from converter.storage import leftovers
from converter.storage.files import AT_ONCE, stands_for

MAX_FETCHED = 512 << 20  # bytes of a file that is fetched whole
# Files beside the weights that are fetched before anybody asks: each costs a way there and back.
SMALL, MAX_SMALL, MOST = 256 << 10, 4 << 20, 32
_NAMES = (".json", ".txt", ".md", ".jinja", ".model")

_lock = threading.RLock()
_reached: dict[Path, dict[Path, Fetched]] = {}  # folder of an address -> its files
_held: dict[Path, int] = {}
_keeping: ContextVar[ExitStack | None] = ContextVar("keeping", default=None)


def reach(path: Path) -> None:
    """Ask the host of the address that a path stands for what lies there; nothing for other paths, or a second time.

    Raises:
        ConverterError: nothing is there, or the host does not say.
    """
    found = address_of(path)
    if found is None:
        return
    address, top = found
    with _lock:
        if top not in _reached:
            _make(address, top)
            if (kept := _keeping.get()) is not None:
                kept.callback(hold(path))
    if not path.exists():
        raise MissingPart(f"{path}: {_there(address, top)}")


def hold(path: Path) -> Callable[[], None]:
    """As `reach`; what was reached for stays until what this returns is called by everyone who holds it.

    Raises:
        ConverterError: as `reach`.
    """
    found = address_of(path)
    if found is None:
        return lambda: None
    _, top = found
    with _lock:
        _held[top] = _held.get(top, 0) + 1
        try:
            reach(path)
        except BaseException:
            _release(top)
            raise
    return cache(partial(_release, top))  # once, however often it is called


@contextmanager
def keeping() -> Iterator[None]:
    """What is reached for meanwhile stays until this ends: a model that is read twice is looked for once."""
    with ExitStack() as kept:
        token = _keeping.set(kept)
        try:
            yield
        finally:
            _keeping.reset(token)


def _release(top: Path) -> None:
    with _lock:
        _held[top] -= 1
        if not _held[top]:
            del _held[top]
            for path, file in _reached.pop(top, {}).items():
                stands_for(path, None)
                file.forget()
            shutil.rmtree(_own(top), ignore_errors=True)


def _own(top: Path) -> Path:
    """The folder that an address has for itself."""
    return base() / top.relative_to(base()).parts[0]


def _there(address: Address, top: Path) -> str:
    names = sorted(path.relative_to(top).as_posix() for path in _reached[top])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"is not there; there are: {', '.join(names[:8])}{more}"


def _make(address: Address, top: Path) -> None:
    cache, origin = _cache(settings().cache), _origin(address.scheme)
    entries = _listed(address, cache, origin)
    base_made()
    files: dict[Path, Fetched] = {}
    try:
        for entry in entries:
            path = top.joinpath(*entry.name.split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_pointer(entry), "utf-8")
            files[path] = Fetched(entry, None if cache is None else cache.file(address, origin, entry))
    except OSError as error:
        shutil.rmtree(_own(top), ignore_errors=True)
        raise OutputError(f"{address.shown}: no folder can be made for it ({error.strerror})") from error
    for path, file in files.items():
        stands_for(path, file)
    _reached[top] = files
    _fetch_small(top.joinpath(*address.parts), files)


def state(path: Path) -> tuple[int, str] | None:
    """Size of the file that an address leads to, and what tells it from others, as its host says now; None for none.

    Raises:
        ConverterError: its host does not say.
    """
    found = address_of(path)
    assert found is not None
    online(found[0].shown, "nothing can be said of it")
    name = "/".join(found[0].parts)
    try:
        entries = _LISTINGS[found[0].scheme](found[0])
    except MissingPart:
        return None
    return next(((each.size, each.identity) for each in entries if each.name == name and each.identity), None)


def _listed(address: Address, cache: Cache | None, origin: str) -> list[Entry]:
    """What lies at an address, as its host says, or as it said where it is not to be asked.

    Raises:
        ConverterError: nobody knows.
    """
    if cache is not None and settings().offline and (entries := cache.listed(address, origin)) is not None:
        return entries
    online(address.shown, "download it where that can be done, and give the folder")
    entries = _LISTINGS[address.scheme](address)
    if cache is not None:
        cache.remember(address, origin, entries)
    return entries


def _cache(folder: Path | None) -> Cache | None:
    return None if folder is None else Cache(folder)


def _origin(scheme: str) -> str:
    """Who is asked, where an address alone does not say it."""
    return hub.endpoint() if scheme == "hf" else stores.endpoint(scheme) if scheme in STORES else ""


@cache
def base_made() -> None:
    """Make the folder of this process that all of addresses is in; it goes with the process.

    What processes that were killed left of theirs goes now.
    """
    with suppress(ConverterError, OSError):
        for each in leftovers.of_addresses():
            if not each.running:
                leftovers.clean(each)
    lock = leftovers.lock_of(base())
    assert lock is not None  # by its name
    atexit.register(lock.release)
    with suppress(OSError):  # where there are none, nobody takes the folder for one of a dead process
        lock.take()
    base().mkdir(mode=0o700)
    atexit.register(shutil.rmtree, base(), ignore_errors=True)


def _pointer(entry: Entry) -> str:
    digest = entry.digest.text if entry.digest is not None and entry.digest.kind == "sha256" else "0" * 64
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {entry.size}\n"


def _fetch_small(path: Path, files: dict[Path, Fetched]) -> None:
    """What a reader of the folder looks at first, several at once."""
    folder = path if path.is_dir() else path.parent
    beside = (
        each for each, file in sorted(files.items(), key=lambda item: item[1].size)
        if each.parent == folder and file.size <= SMALL and each.name.endswith(_NAMES)
    )  # fmt: skip
    chosen, left = list[Path](), MAX_SMALL
    for each in beside:
        left -= files[each].size
        if left < 0 or len(chosen) == MOST:
            break
        chosen.append(each)
    if chosen:
        with ThreadPoolExecutor(AT_ONCE, "small") as threads:
            list(threads.map(lambda each: files[each].fetch(each), chosen))


class Fetched:
    """`Elsewhere` of a listed file."""

    def __init__(self, entry: Entry, kept: Kept | None) -> None:
        self.size, self._entry = entry.size, entry
        self._file = RemoteFile(entry.stored, entry.size, kept, entry.digest)
        self._lock = threading.Lock()
        self._unlike = secrets.token_hex(16)
        self.here = False

    @property
    def identity(self) -> str:
        """Its hash or its ETag; where its host says neither, it is like no other."""
        return f"{self.size} {self._entry.identity or self._entry.stored.tag or self._unlike}"

    def open(self, path: Path) -> RemoteBytes:
        return self._file.open(path)

    def prove(self) -> None:
        """Compare what was read of it with what its host says of all of it."""
        self._file.prove()

    def forget(self) -> None:
        """Keep nothing of it in memory."""
        self._file.forget()

    def fetch(self, path: Path) -> None:
        """Put the whole file in the pointer's place.

        Raises:
            ConverterError: the host does not give it, or its bytes are not those that the host says they are.
        """
        with self._lock:
            if self.here:
                return
            if self.size > MAX_FETCHED:
                raise UnsupportedFeature(f"{path}: {self.size} bytes are too many to be fetched as a whole")
            data = bytearray()
            for start in range(0, self.size, RUN):
                data += self._file.view(start, min(self.size, start + RUN)).data
            part = path.with_name(f".{path.name}.part")
            try:
                part.write_bytes(data)
                os.replace(part, path)
            except OSError as error:
                with suppress(OSError):
                    part.unlink()
                raise OutputError(f"{path}: cannot be kept here ({error.strerror})") from error
            self.here = True
            self._file.forget()


def _web(address: Address) -> list[Entry]:
    """The file that is named, alone: nobody says what lies beside it."""
    if address.folder:
        raise UnsupportedFeature(f"{address.shown}/: folders cannot be listed by https; give the file")
    stored = WebFile(address.shown, address.secret)
    tried(address.shown, lambda: list(stored.stream(0, 1)))
    assert stored.size is not None  # an answer says it
    return checked(address.top, [Entry("/".join(address.parts), stored.size, stored, stored.digest)])


_LISTINGS: dict[str, Callable[[Address], list[Entry]]] = {
    "hf": hub.listing,
    "http": _web,
    "https": _web,
    **dict.fromkeys(STORES, stores.listing),
}
