"""One upload in parts, in which the parts that a run before this one has sent are not sent again.

What such a run left is at the store alone, so any machine goes on with it. An upload is gone on with where its parts
have the sizes of ours and its first one, which holds the file's header, is ours byte for byte; of the others each is
compared with what is made now, and one that differs is sent again. One that another run is seen to send to is left
alone. So nothing is ever mixed, and what two runs to one object make at once is one's or the other's: an upload is
completed by naming every part, which on S3 is by its MD5 and on Azure by a name that has it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from converter.address import Address
from converter.errors import ConverterError, OutputError, OutputExists
from converter.remote import azure, google, s3
from converter.remote.attempts import Result, Transient, tried
from converter.remote.objects import PartDigest, StoredObject
from converter.remote.parts import Begun, Ended, Store
from converter.remote.settings import online

PATIENCE = 10.0  # seconds for parts that are on their way when the upload is given up
MOMENT = 5.0  # seconds in which an upload gets a part, or what a killed run had on its way has arrived
STORES: dict[str, Store] = {"s3": s3.STORE, "gs": google.STORE, "az": azure.STORE}


def begun(address: Address) -> list[Begun]:
    """The uploads that were begun to an address: to the object of this name, and to those of the folder of this name.

    Raises:
        OutputError: the store does not say.
        MissingDependency: the package is not there that asks it.
    """
    online(address.shown, "nothing can be said of it")
    key = "/".join(address.parts)
    top = StoredObject(f"{address.top}/{key}", address.scheme, address.where, key)
    return tried(top.name, lambda: STORES[top.scheme].begun(top, below=True))


def abort(begun: Begun) -> None:
    """Have the store forget an upload.

    Raises:
        OutputError: the store refuses.
    """
    with suppress(Ended):
        tried(begun.name, lambda: STORES[begun.object.scheme].abort(begun.object, begun.id), "removed")


class Multipart:
    """Sends the parts of one object.

    Args:
        object: what it will become.
        size: bytes of it.
        part: bytes of every part but the last.
        at_once: parts that are on their way together.
        keep: an upload that fails is not aborted.
        replace: whether the object may take another one's place.
    """

    def __init__(self, object: StoredObject, size: int, part: int, at_once: int, *, keep: bool, replace: bool) -> None:
        self._object, self._size, self._part, self._keep, self._replace = object, size, part, keep, replace
        self._store = STORES[object.scheme]
        self._room = threading.Semaphore(at_once)
        self._found: list[Begun] = []
        self._begun: Begun | None = None  # what is gone on with
        self._id = ""
        self._names: dict[int, str] = {}  # of the parts that are there, by number
        self._error: BaseException | None = None

    def begun(self) -> list[str]:
        """What was begun before, for the report."""
        try:
            found = tried(self._object.name, lambda: self._store.begun(self._object, below=False))
        except OutputError as error:
            return [f"{str(error).splitlines()[0]}: whether an upload was begun is not known; all is sent"]
        self._found = [each for each in found if self._fits(each)]
        notes = [
            f"{each.object.name}: an upload was begun, {each.nbytes:,} bytes in {len(each.parts)} parts; what is the "
            "same is not sent again"
            for each in self._found
        ]
        if others := [each for each in found if each not in self._found]:
            nbytes, name = sum(each.nbytes for each in others), self._object.name
            notes.append(f"{name}: uploads of something else were begun: {len(others)}, {nbytes:,} bytes; " + (
                f"they are left there, and `convert clean {name}` aborts them when they are a day old"
                if others[0].until is None
                else "the store forgets them when this one is completed"
            ))  # fmt: skip
        return notes

    def _fits(self, begun: Begun) -> bool:
        """Whether its parts could be ours."""
        sizes = {number: part.nbytes for number, part in begun.parts.items()}
        return 1 in sizes and all(nbytes == self._nbytes(number) for number, nbytes in sizes.items())

    def _nbytes(self, number: int) -> int:
        return max(0, min(self._part, self._size - (number - 1) * self._part))

    def send(self, pieces: Iterable[bytes], digest: PartDigest) -> str | None:
        """Send what comes, of which `digest` is, and complete the upload when all has come; its ETag.

        Where sending fails, or `pieces` raises, the upload is aborted, unless it is to be kept.
        """
        threads: list[threading.Thread] = []
        try:
            for number, data in enumerate(_cut(pieces, self._part), 1):
                self._room.acquire()
                self._check()
                if number == 1:  # before all others, as what an upload is gone on with by
                    self._open(digest.of(1))
                    self._sent(1, data, digest.of(1))
                    continue
                # Not of a pool: the end of this program waits for those of pools, whatever the store does.
                thread = threading.Thread(target=self._sent, args=(number, data, digest.of(number)), daemon=True)
                thread.start()
                threads.append(thread)
            for thread in threads:
                thread.join()
            self._check()
            return self._complete()
        except BaseException as error:
            self._error = self._error or error
            self._give_up(threads)
            raise

    def _open(self, first: str) -> None:
        same = sorted((each for each in self._found if each.parts[1].md5 == first), key=lambda each: -len(each.parts))
        self._begun = next((now for each in same if (now := self._nobodys(each)) is not None), None)
        begin = self._store.begin
        self._id = self._begun.id if self._begun is not None else self._ask(lambda: begin(self._object))

    def _nobodys(self, found: Begun) -> Begun | None:
        """An upload as it is now; None where it is not ours to go on with.

        What got a part since it was found, and again while we wait, another run is sending to.
        """
        for pause in (0.0, MOMENT):
            time.sleep(pause)
            try:
                uploads = tried(self._object.name, lambda: self._store.begun(self._object, below=False))
            except OutputError:
                return None
            now = next((each for each in uploads if each.id == found.id and self._fits(each)), None)
            if now is None or now.parts == found.parts:
                return now
            found = now
        return None

    def _sent(self, number: int, data: bytes, md5: str) -> None:
        there = self._begun.parts.get(number) if self._begun is not None else None
        try:
            if there is not None and there.md5 == md5:
                self._names[number] = there.name
            else:
                send = self._store.send
                self._names[number] = self._ask(lambda: send(self._object, self._id, number, data, md5))
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._room.release()

    def _complete(self) -> str | None:
        lost: list[Transient] = []

        def complete() -> str | None:
            try:
                return self._store.complete(self._object, self._id, self._names, replace=self._replace)
            except Transient as error:
                lost.append(error)
                raise
            except OutputExists:
                if lost:  # it may be ours, of a completion whose answer was lost
                    raise Ended.of(self._object.name) from None
                raise

        return self._ask(complete)

    def _ask(self, what: Callable[[], Result]) -> Result:
        def ask() -> Result:
            self._check()
            return what()

        return tried(self._object.name, ask, "written")

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _give_up(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._id and not self._keep:
            with suppress(ConverterError, Transient):
                self._store.abort(self._object, self._id)


def _cut(pieces: Iterable[bytes], part: int) -> Iterator[bytes]:
    """The same bytes in pieces of the size of a part, but for the last."""
    held: list[memoryview] = []
    missing = part
    for piece in pieces:
        view = memoryview(piece)
        while view:
            head, view = view[:missing], view[missing:]
            held.append(head)
            missing -= len(head)
            if not missing:
                yield b"".join(held)
                held, missing = [], part
    if held:
        yield b"".join(held)
