"""What lies where a file should be: pointers, web pages and unfinished downloads, told before a reader is puzzled.

Sources: the Git LFS specification (docs/spec.md: a pointer's first line), and the answers that file hosts give in
place of a file, which a download without checks keeps.
"""

from __future__ import annotations

import re
from pathlib import Path

from converter.errors import MissingPart

_FETCH = "fetch the file itself"
# How such content starts (after white space) -> what it is, and what to do.
_CONTENT: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(start, re.IGNORECASE), says)
    for start, says in (
        (rb"version https://(git-lfs\.github\.com|hawser\.github\.com)/spec/",
         "is a Git LFS pointer, not the file; run `git lfs pull` there or download the file itself"),
        (rb"<(!doctype html|html|head|body|script|meta)\b",
         f"is a web page (HTML) saved in the file's place; log in where that is needed and {_FETCH}"),
        (rb"<\?xml\b|<Error>", f"is XML, as hosts answer in the place of a file; {_FETCH}"),
        (rb"\{\s*\"error\"\s*:", f"is a host's error message in the place of the file; {_FETCH}"),
        (rb"(Entry|Repository|Revision|File|404:?|Page) not found\b|Invalid username or password\b|"
         rb"Access to \S+ \S+ is restricted\b|Unauthorized\b|Forbidden\b|Access denied\b|Too many requests\b",
         f"is a host's error message in the place of the file; {_FETCH}"),
    )
)  # fmt: skip
_SPACE = b"\xef\xbb\xbf \t\r\n"
LOOKED_AT = 64  # bytes of a file that say what it is; as much as any header has

# Names that download programs give to what is not whole yet.
UNFINISHED = (
    ".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download", ".opdownload", ".!qb", ".!ut",
)  # fmt: skip
_PIECE = re.compile(r"\.part[-_]?\d+of\d+$|\.(gguf|safetensors|bin|ggml)(-split-[a-z]|\.\d{3})$", re.IGNORECASE)
_CONTROL_FILE = ".aria2"


def stand_in(start: bytes) -> str | None:
    """What a file with these first bytes is, where it is none that a program wrote; with what to do about it."""
    start = start[:LOOKED_AT].lstrip(_SPACE)
    return next((says for pattern, says in _CONTENT if pattern.match(start)), None)


def unfinished(path: Path) -> str | None:
    """What a file of this name is, where the name says that it is not whole; with what to do about it."""
    if _PIECE.search(path.name):
        return "is a piece of a file that was cut; join the pieces in order (`cat`, or `copy /b`) and give the whole"
    if path.name.lower().endswith(UNFINISHED):
        return "is an unfinished download by its name; finish it, or give it its own name if it is whole"
    return None


def refuse_stand_in(path: Path, start: bytes) -> None:
    """Raises MissingPart where `start`, the first bytes of `path`, or a control file beside it say that it is not
    there yet: aria2 makes a file in its full size, of zeros, and keeps its `.aria2` until it is done."""
    if says := stand_in(start):
        raise MissingPart(f"{path}: {says}")
    if path.with_name(path.name + _CONTROL_FILE).exists():
        raise MissingPart(f"{path}: is not downloaded to its end ({path.name}{_CONTROL_FILE} lies beside it)")
