"""JSON of strangers, without the surprises of `json.loads`; and numbers of ours that JSON has no word for.

Python writes and reads three words that are no JSON, `NaN`, `Infinity` and `-Infinity`, and published configs have
them. `python=True` takes them where a file's own reader is Python; those of headers and tokenizer.json refuse them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.address import shown
from converter.errors import ConverterError, CorruptFile, short
from converter.storage.files import local, regular_size
from converter.storage.stand_ins import refuse_stand_in

MAX_JSON = 64 << 20
MAX_DIGITS = 40  # of a whole number; tokenizer_config.json has a length of 10**30 for "no limit"


def parse(text: str, *, python: bool = False) -> Any:
    """A JSON value: no duplicate keys, whole numbers of at most MAX_DIGITS digits, Python's own words if `python`.

    Raises:
        ValueError: anything else, or nested deeper than the decoder goes.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=float if python else _refuse, parse_int=_bounded
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_pairs(text: str) -> list[tuple[str, Any]]:
    """The pairs of a JSON object, keys that stand twice among them; raises as `parse`."""
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list, parse_constant=_refuse, parse_int=_bounded)
    return pairs


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {short(twice)} stands twice in one object")
    return result


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _bounded(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    return int(text)


def read_json(path: Path, limit: int = MAX_JSON, *, python: bool = False) -> dict[str, Any]:
    """A JSON object from a file, Python's own words among its numbers if `python`.

    Raises:
        CorruptFile: too long, not UTF-8, not JSON, not an object.
        MissingPart: a pointer or a web page lies in its place.
    """
    return parse_json(_read(path, limit), path, python=python)


def read_json_list(path: Path, limit: int = MAX_JSON) -> list[Any]:
    """A JSON list from a file that Python reads; raises as `read_json`."""
    value = _value(_read(path, limit), path, python=True)
    if not isinstance(value, list):
        raise CorruptFile(f"{path}: the JSON is not a list")
    return value


def _read(path: Path, limit: int) -> bytes:
    if regular_size(path) > limit:
        raise CorruptFile(f"{path}: larger than {limit} bytes, that is no configuration")
    data = local(path).read_bytes()
    refuse_stand_in(path, data)
    return data


def parse_json(data: bytes, path: Path | str, *, python: bool = False) -> dict[str, Any]:
    """A JSON object: no duplicate keys, whole numbers of at most 40 digits, no broken surrogates; NaN if `python`.

    The decoder bounds the depth.

    Raises:
        CorruptFile: anything else.
    """
    value = _value(data, path, python=python)
    if not isinstance(value, dict):
        raise CorruptFile(f"{path}: the JSON is not an object")
    return value


def _value(data: bytes, path: Path | str, *, python: bool) -> Any:
    try:
        value = parse(data.decode("utf-8"), python=python)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise CorruptFile(f"{path}: bad JSON (half of a surrogate pair stands alone)") from None
    except ValueError as error:
        raise CorruptFile(f"{path}: bad JSON ({error})") from None
    return value


class Unreadable(Mapping[str, Any]):
    """What a file that cannot be read says: its error for whoever asks, and nothing for those who do not."""

    def __init__(self, error: ConverterError) -> None:
        self._error = error

    def _again(self) -> ConverterError:
        return type(self._error)(str(self._error))

    def __getitem__(self, key: str) -> Any:
        raise self._again()

    def __iter__(self) -> Iterator[str]:
        raise self._again()

    def __len__(self) -> int:
        raise self._again()


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def finite(value: Any) -> Any:
    """A value as JSON can hold it, containers included: infinities and NaN become None, tuples lists, paths that stand
    for addresses these."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
