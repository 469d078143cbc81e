"""Typed values as people write and read them: `u32`, `str`, `f32[]`, and lists in JSON."""

from __future__ import annotations

import struct
from typing import Any

from converter.errors import UsageError, short
from converter.metadata import TYPES, Array, Scalar, Strings, Value
from converter.storage.json import parse

Entry = Value | Array
LIST = "[]"
_BOOLEANS = {"true": True, "false": False}
_SHOWN, _ITEMS = 120, 6


def type_of(entry: Entry) -> str:
    """The type of a value as it is written on the command line."""
    return f"{entry.type}{LIST}" if isinstance(entry, Array) else entry.type


def shown(entry: Entry) -> str:
    """A value for people, cut where it is long."""
    if isinstance(entry, Array):
        items = ", ".join(_item(item) for item in list(entry.values[:_ITEMS]))
        return f"[{items}{', ...' if len(entry) > _ITEMS else ''}] ({len(entry)})"
    text = entry.value if isinstance(entry.value, str) else str(entry.value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _item(item: Any) -> str:
    return f"{len(item)} values" if isinstance(item, Array) else short(item) if isinstance(item, str) else str(item)


def parsed(key: str, kind: str, text: str) -> Entry:
    """The value that a text means as `kind`: `true`, `7`, `1e-5`, any text, or a list in JSON.

    Raises:
        UsageError: there is no such type, or the text is none of it.
    """
    name = kind.removesuffix(LIST)
    if name not in TYPES:
        raise UsageError(f"{short(key)}: no type {short(kind)}; there are {', '.join(TYPES)}, and lists such as str[]")
    try:
        if kind == name:
            return Value(name, _scalar(name, text))
        items = parse(text)
        if not isinstance(items, list):
            raise ValueError("a list in JSON is expected")
        values = [_checked(name, item) for item in items]
        return Array(name, Strings.of(values) if name == "str" else values)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError, struct.error) as error:
        raise UsageError(f"{short(key)}: {short(text)} is no {kind} ({short(error)})") from None


def _scalar(name: str, text: str) -> Scalar:
    if name == "str":
        return _checked(name, text)
    if name == "bool":
        if text.lower() not in _BOOLEANS:
            raise ValueError("true or false")
        return _BOOLEANS[text.lower()]
    return _checked(name, float(text) if name.startswith("f") else int(text, 0))


def _checked(name: str, value: Any) -> Scalar:
    """A value of one of TYPES, as JSON or a person gives it."""
    if name == "str" and isinstance(value, str):
        value.encode()  # raises where half a surrogate pair is in it
        return value
    fits = {"str": (), "bool": (bool,)}.get(name, (int, float) if name.startswith("f") else (int,))
    if type(value) not in fits:
        raise ValueError(f"a {type(value).__name__}")
    struct.pack(TYPES[name].struct, value)
    return value  # type: ignore[no-any-return]
