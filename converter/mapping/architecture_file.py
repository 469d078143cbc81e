"""An architecture that a user describes: a TOML file in the language of `converter.architectures.spec`.

The tables `[[class]]`, `[[hparam]]` and `[[tensor]]` are the rows `HFClass`, `HParam` and `TensorRule`, their keys the
fields of these. `like` takes the rows of a known architecture along, and what the file says replaces what these say.
docs/adding-an-architecture.md has an example.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from converter.architectures import architectures, styles
from converter.architectures.spec import Architecture, HFClass, HParam, TensorRule
from converter.architectures.traits import TokenizerStyle
from converter.errors import ArchitectureError, short
from converter.tensors import ops

SUFFIX = ".toml"
MAX_NBYTES = 1 << 20
KEYS = ("gguf", "like", "tokenizer", "without", "ignore", "aliases", "class", "hparam", "tensor")
OPS = {name: each for name, each in vars(ops).items() if isinstance(each, type) and issubclass(each, ops.Op)}
STYLES = {
    name.lower(): style for name, style in vars(styles).items() if isinstance(style, TokenizerStyle)
}  # fmt: skip
_ROW = re.compile(r": (?:hparam|tensor|class|ignore|alias) ([^:,]+)")  # in what is said of a row
_NAMES = ("hf", "gguf", "config")  # fields that are several names, of which one alone needs no list


def is_file(name: str) -> bool:
    """Whether an architecture's name means a file."""
    return name.endswith(SUFFIX)


def read_architecture(path: Path) -> Architecture:
    """The architecture that the file describes.

    Raises:
        ArchitectureError: what is wrong with it, with the line.
        OSError: it cannot be read.
    """
    status = path.stat()
    if status.st_size > MAX_NBYTES:
        raise ArchitectureError(f"{path}: {status.st_size:,} bytes, an architecture has at most {MAX_NBYTES:,}")
    return _read(path, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, _changed: int) -> Architecture:
    try:
        text = path.read_bytes().decode("utf-8")
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a decode error is a ValueError, as is a number beyond all limits
        raise ArchitectureError(f"{path}: {short(error)}") from error
    return _File(path, text).architecture(content)


class _File:
    """A file and its lines, for what is said of them."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._lines = path, text.splitlines()

    def architecture(self, content: Mapping[str, Any]) -> Architecture:
        for key in content.keys() - set(KEYS):
            raise self._error(f"there is no {short(key)}; there are {', '.join(KEYS)}", key)
        base = self._base(content.get("like"))
        hparams = _merged(base.hparams if base else (), self._rows(content, "hparam"))
        rules = self._rows(content, "tensor")
        dropped = self._list(content, "without")
        written = {(name, row.get("when")) for _, row in rules for name in row.get("gguf", ())}
        kept = [rule for rule in base.tensors if rule.gguf[0] not in dropped] if base else []
        kept = [rule for rule in kept if rule.read_only or not written & {(name, rule.when) for name in rule.gguf}]
        classes = tuple(HFClass(**row) for _, row in self._rows(content, "class"))
        given = {
            "gguf": content.get("gguf", base.gguf if base else None),
            "hf": classes or (base.hf if base else ()),
            "hparams": hparams,
            "tensors": (*kept, *(TensorRule(**{"hf": (), "gguf": (), **row}) for _, row in rules)),
            "ignore": (*(base.ignore if base else ()), *self._list(content, "ignore")),
            "aliases": (*(base.aliases if base else ()), *map(tuple, self._list(content, "aliases"))),
        }
        if not isinstance(given["gguf"], str) or not given["hf"]:
            raise self._error("an architecture has a name (gguf = ...) and a [[class]]")
        try:
            made = Architecture(**given, traits=base.traits) if base else Architecture(**given)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._error(str(error), *_ROW.findall(str(error)), *re.findall("'([^']+)'", str(error))) from error
        return replace(made, traits=replace(made.traits, tokenizer=self._style(content, made.traits.tokenizer)))

    def _base(self, name: Any) -> Architecture | None:
        if name is not None and name not in architectures(name):
            raise self._error(f"there is no architecture {short(name)}; `convert architectures` lists them", "like")
        return architectures(name)[name] if name is not None else None

    def _style(self, content: Mapping[str, Any], usual: TokenizerStyle) -> TokenizerStyle:
        name = content.get("tokenizer")
        if name is not None and name not in STYLES:
            raise self._error(f"there is no tokenizer {short(name)}; there are {', '.join(STYLES)}", "tokenizer")
        return STYLES[name] if name is not None else usual

    def _list(self, content: Mapping[str, Any], key: str) -> list[Any]:
        value = content.get(key, [])
        if not isinstance(value, list):
            raise self._error(f"{key} is a list", key)
        return value

    def _rows(self, content: Mapping[str, Any], kind: str) -> list[tuple[int, dict[str, Any]]]:
        """The rows of one kind as fields, and the line that each begins on."""
        rows = self._list(content, kind)
        if not all(isinstance(row, dict) for row in rows):
            raise self._error(f"{kind} is written [[{kind}]]", kind)
        header = re.compile(rf"\s*\[\[\s*{kind}\s*\]\]")
        starts = [number for number, line in enumerate(self._lines, 1) if header.match(line)]
        return [(line, self._fields(row, kind, line)) for line, row in zip(starts, rows, strict=False)]

    def _fields(self, row: dict[str, Any], kind: str, line: int) -> dict[str, Any]:
        known = {field.name for field in fields(_KINDS[kind])}
        for key in row.keys() - known:
            at = self._line_of(line, key)
            raise ArchitectureError(
                f"{self._path}:{at}: a {kind} has no {short(key)}; it has {', '.join(sorted(known))}"
            )
        try:
            return {key: _value(key, value) for key, value in row.items()}
        except (ArchitectureError, TypeError, ValueError) as error:
            raise ArchitectureError(f"{self._path}:{line}: {kind}: {error}") from error

    def _line_of(self, start: int, key: str) -> int:
        words = re.compile(rf"\s*\"?{re.escape(key)}\"?\s*[.=]")
        return next((n for n in range(start, len(self._lines) + 1) if words.match(self._lines[n - 1])), start)

    def _error(self, problem: str, *words: str) -> ArchitectureError:
        """A problem, at the first line that has the last of the words, or one before it."""
        for word in reversed(words):
            for number, line in enumerate(self._lines, 1):
                if word in line:
                    return ArchitectureError(f"{self._path}:{number}: {problem}")
        return ArchitectureError(f"{self._path}: {problem}")


_KINDS: Mapping[str, Any] = {"class": HFClass, "hparam": HParam, "tensor": TensorRule}


def _value(key: str, value: Any) -> Any:
    if key in _NAMES and isinstance(value, str):
        return (value,)
    if key == "ops":
        return tuple(_op(each) for each in value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _op(value: Any) -> ops.Op:
    """`{ Rope = ["n_head"] }`: an op by its name, with its fields in order."""
    if not isinstance(value, dict) or len(value) != 1:
        raise ArchitectureError(f"an op is written {{ Name = [its fields] }}, not {short(value)}")
    ((name, given),) = value.items()
    if name not in OPS or name.startswith("_") or OPS[name] is ops.Op:
        known = ", ".join(sorted(name for name in OPS if not name.startswith("_") and name != "Op"))
        raise ArchitectureError(f"there is no op {short(name)}; there are {known}")
    arguments = [_op(each) if isinstance(each, dict) else _tuples(each) for each in given]
    made: ops.Op = OPS[name](*arguments)
    return made


def _merged(base: Iterable[HParam], rows: list[tuple[int, dict[str, Any]]]) -> tuple[HParam, ...]:
    """Hyperparameters of a base, those of a given name with the fields that are given, and the rest behind them."""
    found = {row.name: row for row in base}
    for _, given in rows:
        name = given.get("name", "")
        found[name] = replace(found[name], **given) if name in found else HParam(**{"name": "", **given})
    return tuple(found.values())
