"""How a report came about: by which command, when, by which version, and of which bytes. What an audit asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from converter import __version__
from converter.address import is_elsewhere
from converter.storage.checksums import sha256


@dataclass(frozen=True)
class FileDigest:
    """A file that was read; `sha256` is None of one that lies elsewhere, which is not read a second time."""

    path: str
    bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Provenance:
    """`made` is the date and time in UTC (ISO 8601); `files` are those that were read, where they were hashed."""

    command: str
    made: str
    version: str
    files: tuple[FileDigest, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "files": [vars(file) for file in self.files]}


def provenance(command: str, files: Iterable[Path] = ()) -> Provenance:
    """That of a report which is made now; every byte of `files` is read for their hashes."""
    made = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Provenance(command, made, __version__, tuple(map(_digest, files)))


def _digest(path: Path) -> FileDigest:
    if is_elsewhere(path):
        return FileDigest(str(path), None, None)
    return FileDigest(str(path), path.stat().st_size, sha256(path))
