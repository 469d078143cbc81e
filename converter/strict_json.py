"""JSON of strangers, without the surprises of `json.loads`."""

from __future__ import annotations

import json
from typing import Any

from converter.errors import short

MAX_DIGITS = 40  # of a whole number; tokenizer_config.json has a length of 10**30 for "no limit"


def parse(text: str) -> Any:
    """A JSON value: no duplicate keys, no NaN or infinity, whole numbers of at most MAX_DIGITS digits.

    Raises:
        ValueError: anything else, or nested deeper than the decoder goes.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_bounded)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
