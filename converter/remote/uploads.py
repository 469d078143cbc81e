"""Outputs that are objects of a store: sent in parts while they are written, seen by others when all is there.

What is written is passed on in the order of the file and kept only until its part was sent, so no copy of a file lies
anywhere. A large file is a multipart upload, which the store shows to nobody before it is completed; small ones are put
as they are, at the end. Completed are first all others, then the file that leads to them.

Sources: Amazon S3's "Multipart upload limits" (10,000 parts of 5 MiB and more, the last one of any size) and "Checking
object integrity" (the ETag of an upload is the MD5 of its parts' MD5s); other stores' limits are wider.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any

from converter.address import address_of
from converter.errors import ConverterError, CorruptFile, MissingPart, OutputError, OutputExists, UnsupportedFeature
from converter.extras import package
from converter.remote.attempts import TRIES, Transient, filled, tried
from converter.remote.settings import online
from converter.remote.stores import WORK, ObjectFile, answered, store_of
from converter.storage.layout import FileLayout, Layout

PART = 8 << 20  # bytes of a part, more where that would make too many
MAX_PARTS = 9_999  # and what is left over
IN_FLIGHT = 32 << 20  # bytes of a file that are on their way, where parts are no larger than this
ROOM = 16 << 20  # bytes of a file that wait for those before them, or for their part
HELD = 64 << 20  # bytes of all files that are put at the end: small ones, and those that are finished where they begin
AT_ONCE = 8
PATIENCE = 20.0  # seconds for an upload that was given up to say so to the store
_HASHES = ("s3",)  # stores whose ETags are MD5s, as a rule
_REFUSES = "refuses to take it"


class Upload:
    """An `Output` (storage/output.py) that is objects of a store.

    Args:
        layout: what will be written; its paths are those of addresses.
        replace: whether objects of the same names are replaced.

    Raises:
        UnsupportedFeature: a large file whose beginning is known only at its end.
    """

    lock = None
    keeps = False

    def __init__(self, layout: Layout, *, replace: bool) -> None:
        found = address_of(layout.files[0].path)
        assert found is not None
        self.layout, self._replace = layout, replace
        self._address, self._top = found
        if layout.together and not _in_one_order(layout):
            raise UnsupportedFeature(f"{self._address.shown}: these quants have to be uploaded one after another")
        self._held = 0
        self._files = [self._file(file) for file in layout.files]
        self._there: set[str] = set()  # names of objects that were there before
        self._made: list[_Held | _Stream] = []

    def _file(self, file: FileLayout) -> _Held | _Stream:
        key = file.path.relative_to(self._top).as_posix()
        name = f"{self._address.top}/{key}"
        room = HELD - self._held
        if file.finish is None and (file.size > PART or file.size > room):
            return _Stream(self._object(name, key), file)
        if file.size > room:
            raise UnsupportedFeature(
                f"{name}: its format is finished where it begins, when all is written, which an upload cannot be\n"
                "write it to a file here and copy that, or choose another format (GGUF, safetensors)"
            )
        self._held += file.size
        return _Held(self._object(name, key), file)

    def _object(self, name: str, key: str) -> _Object:
        return _Object(name, self._address.scheme, self._address.where, key)

    def claim(self) -> list[str]:
        """See that nothing is in the way.

        Raises:
            OutputExists: an object is there, and must not be replaced.
            OutputError: the store does not say, or no host may be asked.
        """
        online(self._address.shown, "write it to a file here")
        with ThreadPoolExecutor(AT_ONCE, "look") as threads:
            sizes = list(threads.map(lambda file: file.object.nbytes(), self._files))
        self._there = {file.object.name for file, size in zip(self._files, sizes, strict=True) if size is not None}
        if self._there and not self._replace:
            raise OutputExists(f"{min(self._there)}: exists already; --force replaces it")
        if self.layout.folder is not None and not self._replace and (beside := self._beside()) is not None:
            raise OutputExists(
                f"{self._address.shown}: is not empty ({beside} is there); --force keeps what has other names"
            )
        return []

    def _beside(self) -> str | None:
        """Something in the folder that is to be written."""
        folder = self.layout.folder
        assert folder is not None
        prefix = folder.relative_to(self._top).as_posix()
        obstore, store = package("obstore", WORK), self._files[0].object.store

        def look() -> list[Any]:
            pages = obstore.list(store, None if prefix == "." else f"{prefix}/", chunk_size=50)
            return next(iter(pages), [])

        found = tried(self._address.shown, lambda: answered(self._address.shown, look))
        return next((str(each["path"]) for each in found), None)

    def check_room(self) -> None:
        """Nothing: a store has room."""

    def create(self) -> None:
        """Make room for what is held; an upload begins with its first bytes."""
        for file in self._files:
            file.begin()

    def kept(self, file: int, offset: int, nbytes: int) -> memoryview | None:
        """Nothing: what a run has sent, no other can name."""

    def write(self, file: int, offset: int, data: memoryview) -> None:
        if data.nbytes:
            self._files[file].write(offset, data)

    def flush(self) -> None:
        for file in self._files:
            file.flush()

    def publish(self) -> None:
        entry = self._files[self.layout.entry]
        try:
            if not self._replace:
                self.claim()  # much time has passed
            with ThreadPoolExecutor(AT_ONCE, "complete") as threads:
                list(threads.map(self._complete, (file for file in self._files if file is not entry)))
            self._complete(entry)
        except ConverterError as error:
            raise type(error)(f"{error}{self._undone()}") from error

    def _complete(self, file: _Held | _Stream) -> None:
        self._made.append(file)
        file.complete(replace=self._replace)

    def _undone(self) -> str:
        """Remove what was completed; says what it had replaced, which is gone."""
        replaced = [file.object.name for file in self._made if file.done and file.object.name in self._there]
        for file in self._made:
            if file.done and file.object.name not in self._there:
                with suppress(ConverterError, Transient):
                    file.object.delete()
        return f"\nalready replaced: {', '.join(replaced[:3])}" if replaced else ""

    def abandon(self) -> None:
        for file in self._files:
            file.give_up()
        for file in self._files:
            file.gone()


def _in_one_order(layout: Layout) -> bool:
    """Whether files that are filled together have their tensors in an order that is one for all."""
    names = [[(slot.tensor.name, slot.tensor.info.n_rows) for slot in file.slots] for file in layout.files]
    place = {name: number for number, name in enumerate(dict.fromkeys(name for file in names for name in file))}
    return all([place[name] for name in file] == sorted(place[name] for name in file) for file in names)


class _Object:
    """An object by its name, that is there or not."""

    def __init__(self, name: str, scheme: str, bucket: str, key: str) -> None:
        self.name, self.key, self._scheme, self._bucket = name, key, scheme, bucket

    @property
    def store(self) -> Any:
        return store_of(self._scheme, self._bucket)

    @property
    def _writing(self) -> Any:
        """The same; what is sent is sent again by it."""
        return store_of(self._scheme, self._bucket, TRIES - 1)

    def nbytes(self) -> int | None:
        """Its size; None where there is none."""
        meta = self._head()
        return None if meta is None else int(meta["size"])

    def _head(self) -> Any:
        obstore = package("obstore", WORK)
        try:
            return tried(self.name, lambda: answered(self.name, lambda: obstore.head(self.store, self.key)))
        except MissingPart:
            return None

    def put(self, content: bytes | Iterable[bytes], size: int, digest: _Digest, **how: Any) -> None:
        """Send it, and compare what the store says of it.

        Raises:
            OutputExists: one came there, and must not be replaced.
            CorruptFile: another one arrived than was sent.
            OutputError: the store does not take it.
        """
        obstore = package("obstore", WORK)
        try:
            tag = self._sent(lambda: obstore.put(self._writing, self.key, content, **how)["e_tag"])
        except OutputExists:
            raise
        except (Transient, MissingPart, OutputError) as error:
            if digest.nbytes == size and self._arrived(size, digest):
                return  # the answer was lost, not the object
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{self.name}: could not be written in {TRIES} attempts: {error}") from error
        if self._scheme in _HASHES and _plain(tag) != digest.tag:
            self._compare(size, tag, digest)
        elif self._scheme not in _HASHES and (there := self.nbytes()) != size:
            raise CorruptFile(f"{self.name}: {there} bytes arrived of {size}")

    def _arrived(self, size: int, digest: _Digest) -> bool:
        try:
            meta = self._head()
            if meta is None or meta["size"] != size:
                return False
            if _plain(meta["e_tag"]) != digest.tag:
                self._compare(size, meta["e_tag"], digest)
        except ConverterError:
            return False
        return True

    def _sent(self, send: Any) -> Any:
        kinds = package("obstore", WORK).exceptions

        def sent() -> Any:
            try:
                return send()
            except kinds.AlreadyExistsError:
                raise OutputExists(f"{self.name}: came there while this ran; --force replaces it") from None

        return answered(self.name, sent, _REFUSES)

    def _compare(self, size: int, tag: str | None, digest: _Digest) -> None:
        """Read what lies there, whose ETag is not what it should be: those of encrypted objects are no checksums."""
        stored, found = ObjectFile(self.name, self.store, self.key, size, tag), _Digest(digest.part)
        try:
            for start in range(0, size, PART):
                found.add(filled(self.name, start, min(size, start + PART), stored.stream).data)
        except ConverterError as error:
            raise CorruptFile(f"{self.name}: its ETag is not that of what was sent, and it cannot be read") from error
        if found.tag != digest.tag:
            raise CorruptFile(f"{self.name}: what arrived is not what was sent (ETag {_plain(tag)}, not {digest.tag})")

    def delete(self) -> None:
        obstore = package("obstore", WORK)
        answered(self.name, lambda: obstore.delete(self._writing, self.key), "refuses to remove it")


class _Digest:
    """The ETag of an upload in parts: the MD5 of its parts' MD5s; of an object that is put at once (part 0) its MD5."""

    def __init__(self, part: int) -> None:
        self.part, self.nbytes, self._at = part, 0, 0
        self._parts = [_md5()]

    def add(self, data: bytes | memoryview) -> None:
        """Bytes that follow those before."""
        view = memoryview(data).cast("B")
        while view:
            if self._at == self.part:
                self._parts.append(_md5())
                self._at = 0
            step = min(len(view), self.part - self._at)
            self._parts[-1].update(view[:step])
            view, self._at, self.nbytes = view[step:], self._at + step, self.nbytes + step

    @property
    def tag(self) -> str:
        if len(self._parts) == 1:
            return str(self._parts[0].hexdigest())
        return f"{_md5(b''.join(each.digest() for each in self._parts)).hexdigest()}-{len(self._parts)}"


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _plain(tag: str | None) -> str:
    return (tag or "").removeprefix("W/").strip('"')


class _Held:
    """A small file, or one that is finished where it begins: all of it, until it is put."""

    def __init__(self, object: _Object, file: FileLayout) -> None:
        self.object, self._size, self.done = object, file.size, False
        self._data = bytearray()

    def begin(self) -> None:
        self._data = bytearray(self._size)

    def write(self, offset: int, data: memoryview) -> None:
        self._data[offset : offset + data.nbytes] = data.cast("B")

    def flush(self) -> None:
        """Nothing: it is put when all others are there."""

    def complete(self, *, replace: bool) -> None:
        digest = _Digest(max(1, self._size))
        digest.add(memoryview(self._data))
        mode = "overwrite" if replace else "create"
        self.done = True  # an answer that is lost is one of an object that may be there
        self.object.put(bytes(self._data), self._size, digest, mode=mode, use_multipart=False)

    def give_up(self) -> None:
        self._data = bytearray()

    def gone(self) -> None:
        """Nothing: it was nowhere."""


class _Stream:
    """A large file, passed on in order by a thread of its own, which completes the upload when it is told to.

    Who writes far ahead of what was passed on waits. The piece that is next never does, so all go on: whoever fills a
    file does so slab by slab in its order.
    """

    def __init__(self, object: _Object, file: FileLayout) -> None:
        self.object, self.size, self.done = object, file.size, False
        filled = [(0, len(file.header)), *((slot.offset, slot.offset + slot.tensor.info.nbytes) for slot in file.slots)]
        spans = [span for span in filled if span[0] < span[1]]
        if any(end > start for (_, end), (start, _) in pairwise(spans)):
            raise UnsupportedFeature(f"{object.name}: its tensors are not written in the order of the file")
        edges = [0, *(edge for span in spans for edge in span), file.size]
        self._gaps = {start: end for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end}
        parts = max(1, min(MAX_PARTS, file.size // PART))
        self.part = file.size // parts  # so that what is left over, which waits for the end, is less than `parts` bytes
        self._digest = _Digest(self.part)
        self._pieces: dict[int, bytes] = {}  # by where they begin
        self._held = self._at = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._whole = False
        self._changed = threading.Condition()

    def begin(self) -> None:
        """Nothing: it begins with what follows its header."""

    def write(self, offset: int, data: memoryview) -> None:
        piece = bytes(data)
        with self._changed:
            if offset and self._thread is None:
                self._start()
            while offset and offset != self._at and self._held + len(piece) > ROOM and self._error is None:
                self._changed.wait(1)
            self._check()
            self._pieces[offset] = piece
            self._held += len(piece)
            self._changed.notify_all()

    def _check(self) -> None:
        """Raises what ended the upload, of every thread that meets it an error of its own."""
        if isinstance(self._error, ConverterError):
            raise type(self._error)(str(self._error)) from self._error
        if self._error is not None:
            raise OutputError(f"{self.object.name}: could not be written ({type(self._error).__name__})")

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._send, name="upload", daemon=True)
        self._thread.start()

    def _send(self) -> None:
        how = {"use_multipart": True, "chunk_size": self.part, "max_concurrency": max(1, IN_FLIGHT // self.part)}
        try:
            self.object.put(self._arriving(), self.size, self._digest, **how)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _arriving(self) -> Iterator[bytes]:
        """All pieces in order; after the last one it ends only when the upload may be completed."""
        while self._at < self.size:
            piece = self._gap() if self._at in self._gaps else self._next()
            self._digest.add(piece)
            yield piece
        with self._changed:
            while not self._whole:
                self._given_up()
                self._changed.wait(1)
            self._given_up()
            self.done = True

    def _gap(self) -> bytes:
        """Zeros between two slots."""
        end = self._gaps.pop(self._at)
        step = min(end - self._at, PART)
        with self._changed:
            self._at += step
            if self._at < end:
                self._gaps[self._at] = end
            self._changed.notify_all()
        return bytes(step)

    def _next(self) -> bytes:
        with self._changed:
            while (piece := self._pieces.pop(self._at, None)) is None:
                self._given_up()
                self._changed.wait(1)
            self._held -= len(piece)
            self._at += len(piece)
            self._changed.notify_all()
        return piece

    def _given_up(self) -> None:
        if self._error is not None:
            raise self._error  # the upload is aborted for it

    def flush(self) -> None:
        with self._changed:
            if self._thread is None:
                self._start()
            while self._at < self.size and self._error is None:
                self._changed.wait(1)
            self._check()

    def complete(self, *, replace: bool) -> None:
        with self._changed:
            self._whole = True
            self._changed.notify_all()
        assert self._thread is not None
        self._thread.join()
        self._check()

    def give_up(self) -> None:
        with self._changed:
            if not self._whole:
                self._error = self._error or OutputError(f"{self.object.name}: was not completed")
            self._pieces.clear()
            self._changed.notify_all()

    def gone(self) -> None:
        """Wait until the store was told that nothing follows."""
        if self._thread is not None:
            self._thread.join(PATIENCE)
