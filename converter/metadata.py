"""Typed key-value metadata: what a GGUF header holds, independent of the container's bytes.

A header is a `dict[str, Value | Array]`, in write order. The type ids are those of the GGUF
specification (`gguf_type`); an array's own id is `ARRAY_GGUF` and its elements carry one of TYPES.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

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


_U64 = struct.Struct("<Q")


class Strings(Sequence["str | bytes"]):
    """An array of texts as GGUF stores it, each after its length, decoded when it is asked for.

    A text that is not UTF-8 is bytes. Going through it decodes one text at a time; asking for one decodes all of them.
    """

    def __init__(self, raw: memoryview, count: int) -> None:
        self.raw = raw
        self._count = count
        self._decoded: list[str | bytes] | None = None

    @classmethod
    def of(cls, texts: Iterable[str | bytes]) -> Strings:
        """Raises: UnicodeEncodeError, where a text holds half a surrogate pair."""
        raw, count = bytearray(), 0
        for text in texts:
            data = text.encode() if isinstance(text, str) else text
            raw += _U64.pack(len(data))
            raw += data
            count += 1
        return cls(memoryview(raw), count)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str | bytes]:
        return iter(self._decoded) if self._decoded is not None else self._first(self._count)

    @overload
    def __getitem__(self, index: int) -> str | bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[str | bytes]: ...
    def __getitem__(self, index: int | slice) -> str | bytes | list[str | bytes]:
        if self._decoded is None and isinstance(index, slice) and index.start is None and index.step is None:
            return list(self._first(len(range(*index.indices(self._count)))))
        if self._decoded is None:
            self._decoded = list(self._first(self._count))
        return self._decoded[index]

    def _first(self, count: int) -> Iterator[str | bytes]:
        """A look at the beginning decodes no more than that."""
        position = 0
        for _ in range(count):
            (length,) = _U64.unpack_from(self.raw, position)
            position += 8 + length
            yield text_or_bytes(bytes(self.raw[position - length : position]))


def text_or_bytes(data: bytes) -> str | bytes:
    """UTF-8 as text, anything else as it is."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


@dataclass(frozen=True)
class Value:
    """One scalar. `type` is a name of TYPES; `value` is `bytes` only for a "str" that is not valid UTF-8."""

    type: str
    value: Scalar


@dataclass(frozen=True, eq=False)
class Array:
    """A list of one type: a numpy array (1-D) or a sequence of numbers, or one of `str | bytes` for "str".

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


def spelled(value: Value) -> str:
    """A scalar for people: of an F32, the shortest decimal that is the same, 0.8 and not 0.800000011920929."""
    return str(np.float32(value.value)) if value.type == "f32" else str(value.value)


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
