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
from converter.storage.files import regular_size
from converter.tensors import ops

SUFFIX = ".toml"
MAX_NBYTES = 1 << 20
KEYS = ("gguf", "like", "tokenizer", "without", "ignore", "aliases", "class", "hparam", "tensor")
OPS: dict[str, type[ops.Op]] = {
    name: each
    for name, each in vars(ops).items()
    if isinstance(each, type) and issubclass(each, ops.Op) and each is not ops.Op and not name.startswith("_")
}
STYLES = {name.lower(): style for name, style in vars(styles).items() if isinstance(style, TokenizerStyle)}
_ROW = re.compile(r": (?:hparam|tensor|class|ignore|alias) ([^:,]+)")  # in what is said of a row
_NAMES = ("hf", "gguf", "config")  # fields that are several names, of which one alone needs no list


def is_file(name: str) -> bool:
    """Whether an architecture's name means a file."""
    return name.endswith(SUFFIX)


def read_architecture(path: Path) -> Architecture:
    """The architecture that the file describes.

    Raises:
        ArchitectureError: what is wrong with it, with the line.
        OutputError: there is no such file.
    """
    if (size := regular_size(path)) > MAX_NBYTES:
        raise ArchitectureError(f"{path}: {size:,} bytes, an architecture has at most {MAX_NBYTES:,}")
    return _read(path, path.stat().st_mtime_ns)


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
        try:
            return self._made(content, self._base(content.get("like")))
        except (ValueError, TypeError, AttributeError) as error:  # what the rows themselves refuse
            raise self._error(str(error), *_ROW.findall(str(error)), *re.findall("'([^']+)'", str(error))) from error

    def _made(self, content: Mapping[str, Any], base: Architecture) -> Architecture:
        classes, hparams, rules = (self._rows(content, kind) for kind in _KINDS)
        dropped, ignore, aliases = (self._list(content, key) for key in ("without", "ignore", "aliases"))
        written = {(name, row.get("when")) for row in rules for name in row["gguf"]}
        kept = [rule for rule in base.tensors if not {*rule.gguf[:1]} & {*dropped}]
        kept = [rule for rule in kept if rule.read_only or not written & {(name, rule.when) for name in rule.gguf}]
        name, hf = content.get("gguf", base.gguf), tuple(HFClass(**row) for row in classes) or base.hf
        if not isinstance(name, str) or not name or not hf:
            raise self._error("an architecture has a name (gguf = ...) and a [[class]]")
        return Architecture(
            gguf=name,
            hf=hf,
            hparams=_merged(base.hparams, hparams),
            tensors=(*kept, *(TensorRule(**row) for row in rules)),
            ignore=(*base.ignore, *ignore),
            aliases=(*base.aliases, *map(tuple, aliases)),
            traits=replace(base.traits, tokenizer=self._style(content, base.traits.tokenizer)),
        )

    def _base(self, name: Any) -> Architecture:
        if name is None:
            return Architecture("", (), (), ())
        if (found := architectures(name).get(str(name))) is None:
            raise self._error(f"there is no architecture {short(name)}; `convert architectures` lists them", "like")
        return found

    def _style(self, content: Mapping[str, Any], usual: TokenizerStyle) -> TokenizerStyle:
        name = content.get("tokenizer")
        if name is None:
            return usual
        if str(name) not in STYLES:
            raise self._error(f"there is no tokenizer {short(name)}; there are {', '.join(STYLES)}", "tokenizer")
        return STYLES[str(name)]

    def _list(self, content: Mapping[str, Any], key: str) -> list[Any]:
        value = content.get(key, [])
        if not isinstance(value, list):
            raise self._error(f"{key} is a list", key)
        return value

    def _rows(self, content: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
        """The rows of one kind as fields."""
        rows = self._list(content, kind)
        if not all(isinstance(row, dict) for row in rows):
            raise self._error(f"{kind} is written [[{kind}]]", kind)
        header = re.compile(rf"\s*\[\[\s*{kind}\s*\]\]")
        starts = [number for number, line in enumerate(self._lines, 1) if header.match(line)]
        return [_REST[kind] | self._fields(row, kind, line) for line, row in zip(starts, rows, strict=False)]

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
#: What a row has where it does not say so, and must say for most.
_REST: Mapping[str, dict[str, Any]] = {"class": {}, "hparam": {"name": ""}, "tensor": {"hf": (), "gguf": ()}}


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
    if name not in OPS:
        raise ArchitectureError(f"there is no op {short(name)}; there are {', '.join(sorted(OPS))}")
    return OPS[name](*(_op(each) if isinstance(each, dict) else _tuples(each) for each in given))


def _merged(base: Iterable[HParam], rows: Iterable[dict[str, Any]]) -> tuple[HParam, ...]:
    """Hyperparameters of a base, those of a given name with the fields that are given, and the rest behind them."""
    found = {row.name: row for row in base}
    for given in rows:
        name = given["name"]
        found[name] = replace(found[name], **given) if name in found else HParam(**given)
    return tuple(found.values())
