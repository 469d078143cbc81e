"""What hosts say that whole files hash to, and whether bytes that pass by in pieces do.

Sources: RFC 9530 (Repr-Digest), RFC 3230 (Digest) and RFC 1864 (Content-MD5); "x-goog-hash" of Google Cloud Storage,
"x-ms-blob-content-md5" of Azure, "X-Checksum-Sha256" of Artifactory. All are of the whole file, whatever range of it is
answered, but for Content-MD5, which is of what is sent.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from converter.storage.checksums import CRC32C, Pieces

_NBYTES = {"crc32c": 4, "sha256": 32, "sha512": 64, "md5": 16}  # the first that a host gives is compared
_CALLED = {"sha-256": "sha256", "sha-512": "sha512"}
_LISTS = ("repr-digest", "digest", "x-goog-hash")  # of names and sums in base64
_SINGLE = {"x-checksum-sha256": "sha256", "x-ms-blob-content-md5": "md5", "x-checksum-md5": "md5"}
_OF_WHAT_IS_SENT = {"content-md5": "md5"}


@dataclass(frozen=True)
class Digest:
    """What the host says of a whole file.

    Attributes:
        kind: "sha256", "sha512", "md5", "crc32c", or "git", the SHA-1 that git knows a file by.
        text: the sum, in hex.
        sure: whether it is one; an ETag that looks like one may be anything.
    """

    kind: str
    text: str
    sure: bool = True

    def of(self, size: int, pieces: Iterable[bytes]) -> bool:
        """Whether a file of so many bytes, that come in pieces, has it."""
        made, at = self.sum(size), 0
        for piece in pieces:
            made.add(at, np.frombuffer(piece, np.uint8))
            at += len(piece)
        return made.full and made.text == self.text

    def sum(self, size: int) -> Sum:
        """What makes such a sum of a file of so many bytes."""
        return _AnyOrder(size) if self.kind == "crc32c" else _InOrder(self.kind, size)


class Sum(Protocol):
    """The sum of a file.

    Attributes:
        next: where the bytes begin that are missing first, where they count in their order alone.
        full: whether all have come.
        text: the sum of those that count, in hex.
    """

    @property
    def next(self) -> int | None: ...

    @property
    def full(self) -> bool: ...

    @property
    def text(self) -> str: ...

    def add(self, start: int, data: NDArray[np.uint8]) -> None:
        """Bytes that stand at `start`; each counts once."""


class _InOrder:
    def __init__(self, kind: str, size: int) -> None:
        self._size, self._done = size, 0
        name = "sha1" if kind == "git" else kind
        self._hash: Any = hashlib.new(name, usedforsecurity=kind.startswith("sha"))
        if kind == "git":
            self._hash.update(b"blob %d\0" % size)

    @property
    def next(self) -> int | None:
        return None if self.full else self._done

    @property
    def full(self) -> bool:
        return self._done == self._size

    @property
    def text(self) -> str:
        return str(self._hash.hexdigest())

    def add(self, start: int, data: NDArray[np.uint8]) -> None:
        if start <= self._done < start + len(data):
            self._hash.update(data[self._done - start :].data)
            self._done = start + len(data)


class _AnyOrder:
    next = None

    def __init__(self, size: int) -> None:
        self._size, self._pieces = size, Pieces(CRC32C)

    @property
    def full(self) -> bool:
        return not self._pieces.gaps(0, self._size)

    @property
    def text(self) -> str:
        return f"{self._pieces.crc:08x}"

    def add(self, start: int, data: NDArray[np.uint8]) -> None:
        for low, high in self._pieces.gaps(start, start + len(data)):
            self._pieces.add(low, high, CRC32C.of(data[low - start : high - start].data))


def said(headers: Mapping[str, str], whole: bool) -> Digest | None:
    """What an answer says of its file, of which all is sent or a range; header names are in small letters."""
    if headers.get("x-goog-stored-content-encoding", "identity") != "identity":
        return None  # what is stored is another text than what is sent
    found: dict[str, str] = {}
    for name, text in _given(headers, whole):
        kind = _CALLED.get(name, name)
        if kind in _NBYTES and (data := _decoded(text, _NBYTES[kind])) is not None:
            found.setdefault(kind, data.hex())
    return next((Digest(kind, found[kind]) for kind in _NBYTES if kind in found), None)


def _given(headers: Mapping[str, str], whole: bool) -> Iterator[tuple[str, str]]:
    for name in _LISTS:
        for item in headers.get(name, "").split(","):
            kind, _, text = item.strip().partition("=")
            yield kind.lower(), text.strip(":")
    for name, kind in (_SINGLE | (_OF_WHAT_IS_SENT if whole else {})).items():
        yield kind, headers.get(name, "")


def _decoded(text: str, nbytes: int) -> bytes | None:
    """A sum of so many bytes, in hex or base64; None where it is none."""
    try:
        data = bytes.fromhex(text) if re.fullmatch(r"[0-9a-fA-F]+", text) and len(text) == 2 * nbytes else None
        data = binascii.a2b_base64(text, strict_mode=True) if data is None else data
    except ValueError:
        return None
    return data if len(data) == nbytes else None
