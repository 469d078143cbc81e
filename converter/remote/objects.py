"""Objects of a store by their names: put, compared with what was sent, removed.

Sources: "Checking object integrity" of Amazon S3 (the ETag of an upload is the MD5 of its parts' MD5s).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from converter.errors import ConverterError, CorruptFile, MissingPart, OutputError, OutputExists
from converter.extras import package
from converter.remote.attempts import TRIES, Transient, filled, tried
from converter.remote.stores import WORK, ObjectFile, answered, store_of

REFUSES = "refuses to take it"
_PIECE = 8 << 20  # bytes of an object that are read back at once
_HASHES = ("s3",)  # stores whose ETags are MD5s, as a rule


class StoredObject:
    """An object by its name, that is there or not.

    Attributes:
        name: its address, for people.
        made: whether the store has answered that what lies there is what was put.
    """

    def __init__(self, name: str, scheme: str, bucket: str, key: str) -> None:
        self.name, self.scheme, self.bucket, self.key = name, scheme, bucket, key
        self.made = False

    @property
    def store(self) -> Any:
        return store_of(self.scheme, self.bucket)

    @property
    def writing(self) -> Any:
        """The same; what is sent is sent again by it."""
        return store_of(self.scheme, self.bucket, TRIES - 1)

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

    def put(self, send: Callable[[], str | None], size: int, digest: PartDigest) -> None:
        """Have `send` send it, which says the ETag that it got, and compare what the store says of it.

        Raises:
            OutputExists: one came there, and must not be replaced.
            CorruptFile: another one arrived than was sent.
            OutputError: the store does not take it.
        """
        try:
            tag = self._sent(send)
            self.made = True
        except OutputExists:
            raise
        except (Transient, MissingPart, OutputError) as error:
            if digest.nbytes == size and self._arrived(size, digest):
                self.made = True
                return  # the answer was lost, not the object
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{self.name}: could not be written in {TRIES} attempts: {error}") from error
        if self.scheme in _HASHES and plain(tag) != digest.tag:
            self._compare(size, tag, digest)
        elif self.scheme not in _HASHES and (there := self.nbytes()) != size:
            raise CorruptFile(f"{self.name}: {there} bytes arrived of {size}")

    def _arrived(self, size: int, digest: PartDigest) -> bool:
        try:
            meta = self._head()
            if meta is None or meta["size"] != size:
                return False
            if plain(meta["e_tag"]) != digest.tag:
                self._compare(size, meta["e_tag"], digest)
        except ConverterError:
            return False
        return True

    def _sent(self, send: Callable[[], str | None]) -> str | None:
        kinds = package("obstore", WORK).exceptions

        def sent() -> str | None:
            try:
                return send()
            except kinds.AlreadyExistsError:
                raise OutputExists(f"{self.name}: came there while this ran; --force replaces it") from None

        tag: str | None = answered(self.name, sent, REFUSES)
        return tag

    def _compare(self, size: int, tag: str | None, digest: PartDigest) -> None:
        """Read what lies there, whose ETag is not what it should be: those of encrypted objects are no checksums."""
        stored, found = ObjectFile(self.name, self.store, self.key, size, tag), PartDigest(digest.part)
        try:
            for start in range(0, size, _PIECE):
                found.add(filled(self.name, start, min(size, start + _PIECE), stored.stream).data)
        except ConverterError as error:
            raise CorruptFile(f"{self.name}: its ETag is not that of what was sent, and it cannot be read") from error
        if found.tag != digest.tag:
            raise CorruptFile(f"{self.name}: what arrived is not what was sent (ETag {plain(tag)}, not {digest.tag})")

    def delete(self) -> None:
        obstore = package("obstore", WORK)
        answered(self.name, lambda: obstore.delete(self.writing, self.key), "refuses to remove it")


class PartDigest:
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

    def of(self, number: int) -> str:
        """The MD5 of a part that is complete; they are counted from 1."""
        return str(self._parts[number - 1].hexdigest())

    @property
    def tag(self) -> str:
        if len(self._parts) == 1:
            return str(self._parts[0].hexdigest())
        return f"{_md5(b''.join(each.digest() for each in self._parts)).hexdigest()}-{len(self._parts)}"


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def plain(tag: str | None) -> str:
    return (tag or "").removeprefix("W/").strip('"')
