"""One short text for a metadata value, the same for values read from a GGUF and values held in memory."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

FORMATS = {"u8": "<B", "i32": "<i", "u32": "<I", "f32": "<f", "bool": "<?"}


def digest(kind: str, value: object) -> str:
    """sha256 of the value's GGUF bytes (strings with their lengths); scalars that are short are shown as they are."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        shown = value.decode() if isinstance(value, bytes) else str(value)
        return shown if len(shown) < 40 else hashlib.sha256(shown.encode()).hexdigest()
    sha = hashlib.sha256()
    for item in value:
        if kind == "str":
            body = item.encode() if isinstance(item, str) else bytes(item)
            sha.update(struct.pack("<Q", len(body)) + body)
        else:
            sha.update(struct.pack(FORMATS[kind], item))
    return sha.hexdigest()
