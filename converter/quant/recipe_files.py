"""Recipes as files: TOML, which docs/recipes.md describes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from converter.errors import UsageError, short
from converter.mixture import Mixture, Rule
from converter.quant.mixtures import compile_rules
from converter.quant.recipes import recipe
from converter.storage.files import regular_size

#: Of the files; raised when a key changes its meaning or goes away.
VERSION = 1
MAX_NBYTES = 4 << 20
_HEAD = ("base", "architecture", "block_count", "origin")
_RULE = "rule"
_KEYS = ("tensors", "blocks", "type", "bytes", "error", "sensitivity", "kl", "gain", "why")
#: What each key holds.
_KINDS: Mapping[str, tuple[type, ...]] = {
    name: (int, float) if "float" in str(hint) else (int,) if "int" in str(hint) else (str,)
    for kind in (Rule, Mixture)
    for name, hint in get_type_hints(kind).items()
}


def read_recipe(path: Path) -> Mixture:
    """The mixture that a file describes.

    Raises:
        UsageError: not TOML, or something in it that cannot be meant; it names the file and the rule.
        OutputError: there is no such file.
    """
    if regular_size(path) > MAX_NBYTES:
        raise UsageError(f"{path}: larger than {MAX_NBYTES:,} bytes, that is no recipe")
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: bad TOML ({str(error)[:200] or 'nested too deeply'})") from None
    try:
        return _mixture(content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _mixture(content: Mapping[str, Any]) -> Mixture:
    if content.get("version") != VERSION:
        raise UsageError(f"is no recipe that this program reads: it begins with version = {VERSION}")
    rows = content.get(_RULE, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{_RULE} is a list of tables, each begins with [[{_RULE}]]")
    head = {key: value for key, value in content.items() if key not in ("version", _RULE)}
    _check(head, _HEAD, ("base",), "the head")
    rules = []
    for at, row in enumerate(rows, 1):
        _check(row, _KEYS, ("tensors", "type"), f"rule {at}")
        rules.append(replace(Rule(**row), type=row["type"].strip().upper()))
    made = Mixture(**{**head, "base": recipe(head["base"]).name}, rules=tuple(rules))
    compile_rules(made)
    return made


def _check(row: Mapping[str, Any], known: Any, needed: tuple[str, ...], where: str) -> None:
    for key in needed:
        if key not in row:
            raise UsageError(f"{where}: {key} is missing")
    for key, value in row.items():
        if key not in known:
            raise UsageError(f"{where}: there is no {short(key)}; there are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, _KINDS[key]):
            raise UsageError(f"{where}: {key} is a {'text' if _KINDS[key] == (str,) else 'number'}")


def text(mixture: Mixture) -> str:
    """The file of a mixture; reading it gives the same one, measured figures to four digits."""
    said = mixture.as_dict()
    lines = ["# Types of tensors by their GGUF names; the first rule that fits decides, else the base does.", ""]
    lines += _lines({"version": VERSION} | {key: said[key] for key in _HEAD if key in said})
    for rule in mixture.rules:
        own = rule.as_dict()
        lines += ["", f"[[{_RULE}]]", *_lines({key: own[key] for key in _KEYS if key in own})]
    return "\n".join(lines) + "\n"


def _lines(row: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in row.items()]


def _value(value: str | float) -> str:
    if isinstance(value, str):  # JSON's text is TOML's, but for one sign
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value) if isinstance(value, int) else f"{value:.4g}"
