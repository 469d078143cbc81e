"""Keys and bytes as fixtures/make_expected.py writes them down."""

from __future__ import annotations

import hashlib

import numpy as np

from converter.metadata import TYPES, Array, Value

GGUF_NAMES = {
    "u8": "UINT8",
    "i8": "INT8",
    "u16": "UINT16",
    "i16": "INT16",
    "u32": "UINT32",
    "i32": "INT32",
    "f32": "FLOAT32",
    "bool": "BOOL",
    "str": "STRING",
    "u64": "UINT64",
    "i64": "INT64",
    "f64": "FLOAT64",
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def recorded_value(value: Value | Array) -> tuple[str, object]:
    """A key's type and value as fixtures/make_expected.py writes them."""
    if isinstance(value, Value):
        stored = float(np.float32(value.value)) if value.type == "f32" else value.value  # type: ignore[arg-type]
        return GGUF_NAMES[value.type], stored
    kind = f"ARRAY[{GGUF_NAMES[value.type]}]"
    if len(value) <= 16 and value.type == "f32":
        return kind, [float(np.float32(item)) for item in value.values]
    if len(value) <= 16:
        return kind, [item.item() if isinstance(item, np.generic) else item for item in value.values]
    if value.type == "str":
        texts = [text.encode() if isinstance(text, str) else text for text in value.values]
        data = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    else:
        data = np.asarray(value.values, TYPES[value.type].struct).tobytes()
    return kind, {"count": len(value), "sha256": digest(data)}
