"""What lies at an address: files by name, each as its host gives it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.remote.blocks import Stored
from converter.remote.digests import Digest

MAX_FILES = 20_000
MAX_NBYTES = 1 << 50
_NO_NAME = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


@dataclass(frozen=True)
class Entry:
    """A file that lies elsewhere: its name below the address's top, with `/` where it is in a folder."""

    name: str
    size: int
    stored: Stored
    digest: Digest | None = None

    @property
    def identity(self) -> str | None:
        """What no file of other bytes has that was or will be there; None where its host says no such thing."""
        if self.digest is not None and self.digest.kind in ("sha256", "git"):
            return f"{self.digest.kind} {self.digest.text}"
        return self.stored.identity


def checked(name: str, entries: Iterable[Entry]) -> list[Entry]:
    """The files that a host lists, as far as they can be files here.

    Raises:
        CorruptFile: a size that makes no sense.
        UnsupportedFeature: too many.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        parts = entry.name.split("/")
        if any(part in ("", ".", "..") or _NO_NAME.search(part) or not part.isprintable() for part in parts):
            continue  # a folder's own mark, or what nothing here could be called
        if not 0 <= entry.size <= MAX_NBYTES:
            raise CorruptFile(f"{name}: its host says that {short(entry.name)} has {entry.size} bytes")
        found[entry.name] = entry
        if len(found) > MAX_FILES:
            raise UnsupportedFeature(f"{name}: holds more than {MAX_FILES} files; give the folder of one model")
    return list(found.values())
