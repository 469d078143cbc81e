"""Typed key-value metadata: what a GGUF header holds, independent of the container's bytes.

A header is a `dict[str, Value | Array]`, in write order. The type ids are those of the GGUF
specification (`gguf_type`); an array's own id is `ARRAY_GGUF` and its elements carry one of TYPES.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class MetaType:
    """One element type: its GGUF id, its little-endian struct format and size in bytes (strings have neither)."""

    name: str
    gguf: int
    struct: str
    size: int


TYPES: dict[str, MetaType] = {
    t.name: t
    for t in (
        MetaType("u8", 0, "<B", 1),
        MetaType("i8", 1, "<b", 1),
        MetaType("u16", 2, "<H", 2),
        MetaType("i16", 3, "<h", 2),
        MetaType("u32", 4, "<I", 4),
        MetaType("i32", 5, "<i", 4),
        MetaType("f32", 6, "<f", 4),
        MetaType("bool", 7, "<?", 1),
        MetaType("str", 8, "", 0),
        MetaType("u64", 10, "<Q", 8),
        MetaType("i64", 11, "<q", 8),
        MetaType("f64", 12, "<d", 8),
    )
}
ARRAY_GGUF = 9
BY_GGUF: dict[int, MetaType] = {t.gguf: t for t in TYPES.values()}

Scalar = int | float | bool | str | bytes


@dataclass(frozen=True)
class Value:
    """One scalar. `type` is a name of TYPES; `value` is `bytes` only for a "str" that is not valid UTF-8."""

    type: str
    value: Scalar


@dataclass(frozen=True, eq=False)
class Array:
    """A list of one type: a numpy array (1-D) or a sequence of numbers, or a list of `str | bytes` for "str".

    `type` may also be "array" with `values` a list of Array: GGUF allows nesting.
    """

    type: str
    values: Sequence[Scalar] | Sequence[Array] | np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        return (
            self.type == other.type
            and len(self) == len(other)
            and all(a == b for a, b in zip(self.values, other.values, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


Metadata = dict[str, Value | Array]


def text(value: str) -> Value:
    """A string value."""
    return Value("str", value)


def u32(value: int) -> Value:
    """An unsigned 32-bit value, the type of most counts and token ids."""
    return Value("u32", value)


def f32(value: float) -> Value:
    """A 32-bit float value."""
    return Value("f32", value)


def boolean(value: bool) -> Value:
    """A truth value."""
    return Value("bool", value)


# Lookups: what stands under a key, or None where nothing of that kind does. Keys of a config.json are of no kind.


def scalar_of(metadata: Mapping[str, Any], key: str) -> Scalar | None:
    """The one value under `key`."""
    entry = metadata.get(key)
    return entry.value if isinstance(entry, Value) else None


def number_of(metadata: Mapping[str, Any], key: str, *types: str) -> int | None:
    """The whole number under `key`, of one of `types` where they are given; a truth value is none."""
    entry = metadata.get(key)
    if not isinstance(entry, Value) or (types and entry.type not in types):
        return None
    return entry.value if type(entry.value) is int else None


def text_of(metadata: Mapping[str, Any], key: str) -> str | None:
    """The text under `key`; one that is not UTF-8 is none."""
    value = scalar_of(metadata, key)
    return value if isinstance(value, str) else None


def array_of(metadata: Mapping[str, Any], key: str, *types: str) -> Array | None:
    """The list under `key`, of one of `types` where they are given."""
    entry = metadata.get(key)
    return entry if isinstance(entry, Array) and (not types or entry.type in types) else None
