"""Outputs that are objects of a store: sent in parts while they are written, seen by others when all is there.

What is written is passed on in the order of the file and kept only until its part was sent, so no copy of a file lies
anywhere. A large file is a multipart upload, which the store shows to nobody before it is completed; small ones are put
as they are, at the end. Completed are first all others, then the file that leads to them.

Sources: Amazon S3's "Multipart upload limits" (10,000 parts of 5 MiB and more, the last one of any size); other stores'
limits are wider.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any

from converter.address import address_of
from converter.errors import ConverterError, OutputError, OutputExists, UnsupportedFeature
from converter.extras import package
from converter.remote.attempts import Transient, tried
from converter.remote.multipart import Multipart
from converter.remote.objects import PartDigest, StoredObject
from converter.remote.settings import online
from converter.remote.stores import WORK, answered
from converter.storage.layout import FileLayout, Layout

PART = 8 << 20  # bytes of a part, more where that would make too many
MAX_PARTS = 9_999  # and what is left over
IN_FLIGHT = 32 << 20  # bytes of a file that are on their way, where parts are no larger than this
ROOM = 16 << 20  # bytes of a file that wait for those before them, or for their part
HELD = 64 << 20  # bytes of all files that are put at the end: small ones, and those that are finished where they begin
AT_ONCE = 8
PATIENCE = 20.0  # seconds for an upload that was given up to say so to the store


class Upload:
    """An `Output` (storage/output.py) that is objects of a store.

    Args:
        layout: what will be written; its paths are those of addresses.
        replace: whether objects of the same names are replaced.
        keep: what was sent of large files stays for another run, should this one be stopped.

    Raises:
        UnsupportedFeature: a large file whose beginning is known only at its end.
    """

    lock = None

    def __init__(self, layout: Layout, *, replace: bool, keep: bool = False) -> None:
        found = address_of(layout.files[0].path)
        assert found is not None
        self.layout, self._replace, self.keeps = layout, replace, keep
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
            return _Stream(self._object(name, key), file, keep=self.keeps, replace=self._replace)
        if file.size > room:
            raise UnsupportedFeature(
                f"{name}: its format is finished where it begins, when all is written, which an upload cannot be\n"
                "write it to a file here and copy that, or choose another format (GGUF, safetensors)"
            )
        self._held += file.size
        return _Held(self._object(name, key), file, replace=self._replace)

    def _object(self, name: str, key: str) -> StoredObject:
        return StoredObject(name, self._address.scheme, self._address.where, key)

    def claim(self) -> list[str]:
        """See that nothing is in the way, and what was begun before.

        Raises:
            OutputExists: an object is there, and must not be replaced.
            OutputError: the store does not say, or no host may be asked.
        """
        online(self._address.shown, "write it to a file here")
        self._clear()
        with ThreadPoolExecutor(AT_ONCE, "look") as threads:
            return [note for notes in threads.map(lambda file: file.begun(), self._files) for note in notes]

    def _clear(self) -> None:
        """Raises what `claim` does where something is in the way."""
        with ThreadPoolExecutor(AT_ONCE, "look") as threads:
            sizes = list(threads.map(lambda file: file.object.nbytes(), self._files))
        self._there = {file.object.name for file, size in zip(self._files, sizes, strict=True) if size is not None}
        if self._there and not self._replace:
            raise OutputExists(f"{min(self._there)}: exists already; --force replaces it")
        if self.layout.folder is not None and not self._replace and (beside := self._beside()) is not None:
            raise OutputExists(
                f"{self._address.shown}: is not empty ({beside} is there); --force keeps what has other names"
            )

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
        """Nothing: what a run has sent is not read before the upload is completed; it is only not sent again."""

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
                self._clear()  # much time has passed
            with ThreadPoolExecutor(AT_ONCE, "complete") as threads:
                list(threads.map(self._complete, (file for file in self._files if file is not entry)))
            self._complete(entry)
        except ConverterError as error:
            raise type(error)(f"{error}{self._undone()}") from error

    def _complete(self, file: _Held | _Stream) -> None:
        self._made.append(file)
        file.complete()

    def _undone(self) -> str:
        """Remove what was completed; says what it had replaced, which is gone."""
        replaced = [file.object.name for file in self._made if file.object.made and file.object.name in self._there]
        for file in self._made:
            if file.object.made and file.object.name not in self._there:
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


class _Held:
    """A small file, or one that is finished where it begins: all of it, until it is put."""

    def __init__(self, object: StoredObject, file: FileLayout, *, replace: bool) -> None:
        self.object, self._size, self._mode = object, file.size, "overwrite" if replace else "create"
        self._data = bytearray()

    def begun(self) -> list[str]:
        return []

    def begin(self) -> None:
        self._data = bytearray(self._size)

    def write(self, offset: int, data: memoryview) -> None:
        self._data[offset : offset + data.nbytes] = data.cast("B")

    def flush(self) -> None:
        """Nothing: it is put when all others are there."""

    def complete(self) -> None:
        digest = PartDigest(max(1, self._size))
        digest.add(memoryview(self._data))
        self.object.put(self._put, self._size, digest)

    def _put(self) -> str | None:
        obstore, whole = package("obstore", WORK), bytes(self._data)
        put = obstore.put(self.object.writing, self.object.key, whole, mode=self._mode, use_multipart=False)
        tag: str | None = put["e_tag"]
        return tag

    def give_up(self) -> None:
        self._data = bytearray()

    def gone(self) -> None:
        """Nothing: it was nowhere."""


class _Stream:
    """A large file, passed on in order by a thread of its own, which completes the upload when it is told to.

    Who writes far ahead of what was passed on waits. The piece that is next never does, so all go on: whoever fills a
    file does so slab by slab in its order.
    """

    def __init__(self, object: StoredObject, file: FileLayout, *, keep: bool, replace: bool) -> None:
        self.object, self.size = object, file.size
        filled = [(0, len(file.header)), *((slot.offset, slot.offset + slot.tensor.info.nbytes) for slot in file.slots)]
        spans = [span for span in filled if span[0] < span[1]]
        if any(end > start for (_, end), (start, _) in pairwise(spans)):
            raise UnsupportedFeature(f"{object.name}: its tensors are not written in the order of the file")
        edges = [0, *(edge for span in spans for edge in span), file.size]
        self._gaps = {start: end for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end}
        parts = max(1, min(MAX_PARTS, file.size // PART))
        self.part = file.size // parts  # so that what is left over, which waits for the end, is less than `parts` bytes
        self._digest = PartDigest(self.part)
        at_once = max(1, IN_FLIGHT // self.part)
        self._sender = Multipart(object, file.size, self.part, at_once, keep=keep, replace=replace)
        self._pieces: dict[int, bytes] = {}  # by where they begin
        self._held = self._at = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._whole = False
        self._changed = threading.Condition()

    def begun(self) -> list[str]:
        return self._sender.begun()

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
        try:
            self.object.put(lambda: self._sender.send(self._arriving(), self._digest), self.size, self._digest)
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

    def complete(self) -> None:
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
