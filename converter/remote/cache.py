"""What was fetched, kept from one run to the next in a folder that was named for it (`--cache DIR`).

A file is known by its address and by its hash or ETag, so a changed one is another (`kept` has its blocks). What a host
said lies at an address is kept, too, for where no host may be asked. Nothing there has a query or a token in it: names
are hashes of addresses as they are told to people.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from converter.address import Address, without_secrets
from converter.errors import ConverterError, OutputError
from converter.remote.digests import Digest
from converter.remote.kept import BLOCK, Kept, write
from converter.remote.listing import Entry, checked

_SCHEMA = 1
# https://bford.info/cachedir/: programs that make backups leave such a folder out.
_TAG, _SIGNATURE = "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n"


class Cache:
    """A folder of files that lie elsewhere. `origin` is who is asked for an address, where the environment says it.

    Raises:
        OutputError: there is no such folder, and none can be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / _TAG).exists():
                _replace(folder / _TAG, _SIGNATURE.encode())
        except OSError as error:
            raise OutputError(f"{folder}: the cache cannot be made ({error.strerror})") from error

    def file(self, address: Address, origin: str, entry: Entry) -> Kept | None:
        """The place of a file; None where its host says nothing that tells it from another with the same name."""
        if entry.identity is None:
            return None
        name = f"{address.scheme}://{address.where}/{entry.name}"
        return Kept(self.folder / _hash(origin, name, entry.identity, entry.size), entry.size)

    def remember(self, address: Address, origin: str, entries: Iterable[Entry]) -> None:
        """Keep what lies at an address. One with a query is not kept: without it, it may be another file's."""
        if "?" in address.secret:
            return
        files = [_told(entry) for entry in entries]
        said = json.dumps({"schema": _SCHEMA, "address": address.shown, "files": files}, indent=1).encode()
        path = self._listing(address, origin)
        with suppress(OSError):
            if not path.is_file() or path.read_bytes() != said:
                _replace(path, said)

    def listed(self, address: Address, origin: str) -> list[Entry] | None:
        """What lay at an address when its host was last asked; None where that is not known."""
        try:
            said = json.loads(self._listing(address, origin).read_text("utf-8"))
            if "?" in address.secret or said["schema"] != _SCHEMA:
                return None
            return checked(address.top, [_entry(address, each) for each in said["files"]])
        except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError, ConverterError):
            return None

    def _listing(self, address: Address, origin: str) -> Path:
        return self.folder / f"{_hash(origin, address.shown, address.folder)}.json"


def _hash(*parts: str | int) -> str:
    known = [without_secrets(part) if isinstance(part, str) else part for part in (_SCHEMA, BLOCK, *parts)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _told(entry: Entry) -> dict[str, Any]:
    digest = None if entry.digest is None else [entry.digest.kind, entry.digest.text, entry.digest.sure]
    return {"name": entry.name, "size": entry.size, "tag": entry.stored.identity, "digest": digest}


def _entry(address: Address, said: dict[str, Any]) -> Entry:
    name, size, tag, digest = str(said["name"]), int(said["size"]), said["tag"], said["digest"]
    stored = _Asleep(f"{address.top}/{name}", size, tag if isinstance(tag, str) else None)
    return Entry(
        name, size, stored, None if digest is None else Digest(str(digest[0]), str(digest[1]), bool(digest[2]))
    )


class _Asleep:
    """A file of a host that is not asked."""

    def __init__(self, name: str, size: int, tag: str | None) -> None:
        self.name, self.tag, self.identity = name, tag, tag
        self.size: int | None = size

    def stream(self, start: int, stop: int) -> Iterator[bytes]:
        """Nothing.

        Raises:
            OutputError: as said.
        """
        raise OutputError(
            f"{self.name}: bytes {start:,} to {stop:,} are not in the cache, and no host is asked (--offline, "
            "HF_HUB_OFFLINE)\nrun once without"
        )


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        write(part, 0, data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
