"""Files that are called what they hold: the SHA-256 of their bytes, as registries of containers keep them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import Cancelled, CorruptFile, OutputError
from converter.formats.hf_folder import copy_of
from converter.storage.files import regular_size
from converter.storage.layout import FileLayout, whole_file
from converter.storage.slabs import Progress, ProgressCallback

_STEP = 4 << 20


@dataclass(frozen=True)
class Part:
    """Something that goes into a package: its media type, what it is called, and a file or the bytes themselves."""

    media_type: str
    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else regular_size(self.content)


@dataclass(frozen=True)
class Blob:
    """A part with its digest, 64 hexadecimal digits."""

    part: Part
    sha256: str
    size: int

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256}"

    def descriptor(self, annotations: dict[str, str] | None = None) -> dict[str, Any]:
        """What a manifest says of it."""
        own = {"mediaType": self.part.media_type, "digest": self.digest, "size": self.size}
        return own | ({"annotations": annotations} if annotations else {})

    def layout(self, target: Path) -> FileLayout:
        """The file that it will be."""
        content = self.part.content
        return whole_file(target, content) if isinstance(content, bytes) else copy_of(content, target)


def blob_of(media_type: str, name: str, content: bytes) -> Blob:
    """A blob of bytes."""
    return Blob(Part(media_type, name, content), hashlib.sha256(content).hexdigest(), len(content))


def blobs_of(parts: Sequence[Part], progress: ProgressCallback | None = None) -> list[Blob]:
    """The digests of parts, every file read once.

    Raises:
        Cancelled: `progress` returned False.
        OutputError: a file cannot be read.
    """
    done, total = 0, sum(part.size for part in parts)

    def seen(name: str) -> Callable[[int], None]:
        def more(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if progress is not None and progress(Progress(done, total, name)) is False:
                raise Cancelled("cancelled; nothing was written")

        return more

    return [_hashed(part, seen(part.name)) for part in parts]


def _hashed(part: Part, more: Callable[[int], None]) -> Blob:
    if isinstance(part.content, bytes):
        return blob_of(part.media_type, part.name, part.content)
    hashed, size = hashlib.sha256(), 0
    for data in _pieces(part.content):
        hashed.update(data)
        size += len(data)
        more(len(data))
    return Blob(part, hashed.hexdigest(), size)


def _pieces(path: Path) -> Iterable[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(_STEP):
                yield data
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error


def is_there(path: Path, blob: Blob) -> bool:
    """Whether a store has a blob already.

    Raises:
        CorruptFile: a file of its name holds something else.
    """
    if not path.is_file():
        return False
    if path.stat().st_size != blob.size or _hashed(Part("", path.name, path), lambda _: None).sha256 != blob.sha256:
        raise CorruptFile(f"{path}: does not hold what its name says; remove it")
    return True
