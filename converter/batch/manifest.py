"""A manifest: models and what shall become of them, in TOML, JSON or YAML, checked before anything is done.

    [defaults]
    out = "out/{name}-{quant}.gguf"
    quant = ["q4_k_m", "q8_0"]

    [[models]]
    source = "models/*-chat"

    [[models]]
    source = "models/base"
    imatrix = "base.imatrix.gguf"
    verify = true

Keys are `source`, `out`, `verify`, those of a `Source` and those of a `Request` (docs/batch.md). Paths are relative to
the manifest's folder. A pattern stands for every file or folder that it finds, an address for what lies there.
"""

from __future__ import annotations

import glob
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from converter.address import is_address
from converter.address import parse as parse_address
from converter.errors import ConverterError, UsageError, short
from converter.extras import package
from converter.formats.registry import readers
from converter.quant.recipe_files import read_recipe
from converter.remote.outlet import refuse_unwritable
from converter.request import FIELDS, PARTS, Request, Source
from converter.storage.files import regular_size
from converter.storage.json import parse

MODELS, DEFAULTS = "models", "defaults"
EXTENSIONS = (".toml", ".json", ".yaml", ".yml")
MAX_SIZE = 16 << 20
_OF_SOURCE = ("config", "key", "adapters", "base")
_PATHS = ("config", "base", "imatrix", "mmproj", "recipe")
#: A request's keys, what a value of each is, and how that is called.
_KINDS: Mapping[str, type] = {
    field.name: {"bool": bool, "int | None": int}.get(str(field.type), str)
    for kind in PARTS.values() for field in fields(kind)
}  # fmt: skip
_LISTS = ("quant", "include_weights", "exclude_weights", "adapters", "spread")
_WORDS = {bool: "true or false", int: "a whole number", str: "a text"}
Lines = Mapping[tuple[int, str], int]  # of the model's number (from 0; -1: the defaults) and a key, from 1


@dataclass(frozen=True)
class Job:
    """A model and its outputs.

    Attributes:
        name: what reports call it: the source's name without its extension.
        source, target, requests: as for `pipeline.plan_several`; `{name}` in the target is replaced already.
        verify: whether every output is compared with its source.
        place: where it was asked for (file and line), for messages; empty where there is no manifest.
        folder: where is remembered what was done, where the outputs lie elsewhere: the manifest's folder.
    """

    name: str
    source: Source
    target: str
    requests: tuple[Request, ...]
    verify: bool = False
    place: str = ""
    folder: Path = Path()


def read(path: Path, defaults: Mapping[str, Any]) -> list[Job]:
    """The jobs of a manifest; `defaults` are for keys that it does not have.

    Raises:
        UsageError: what cannot be meant, with its line; all that was found, at most ten.
        MissingDependency: YAML, without its package.
    """
    data, lines = _parsed(path)
    if not isinstance(data, dict) or not isinstance(data.get(MODELS), list) or not data[MODELS]:
        raise UsageError(f"{path}: a manifest has a list `{MODELS}` of one model at least")
    own = data.get(DEFAULTS, {})
    found = [
        f"{path}: {key!r} is not known; there are {DEFAULTS}, {MODELS}" for key in data if key not in (DEFAULTS, MODELS)
    ]
    jobs: list[Job] = []
    for number, model in enumerate(data[MODELS]):
        if not isinstance(model, dict) or not isinstance(own, dict):
            raise UsageError(f"{path}: {MODELS}[{number}] and {DEFAULTS} are tables of keys and values")
        keys = {**defaults, **own, **model}
        wrong = list(_wrong(keys))
        for key, words in wrong:
            line = lines.get((number, key)) or lines.get((-1, key)) or lines.get((number, "")) or 1
            found.append(f"{path}:{line}: {words}")
        if not wrong:
            line = lines.get((number, "source"), lines.get((number, ""), 1))
            try:
                jobs += jobs_of(keys, path.parent, f"{path}:{line}")
            except ConverterError as error:
                found.append(f"{path}:{line}: {error}")
    if found:
        more = [f"and {len(found) - 10} more"] if len(found) > 10 else []
        raise UsageError("\n".join((*found[:10], *more)))
    return jobs


def _wrong(keys: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What cannot be meant: the key, and what to say of it."""
    known = ("source", "out", "verify", *_OF_SOURCE, *FIELDS)
    result = [(key, f"{key!r} is not known; there are {', '.join(known)}") for key in keys if key not in known]
    result += [(key, f"{key!r} is missing") for key in ("source", "out") if key not in keys]
    for key, value in keys.items():
        kind = _KINDS.get(key, bool if key == "verify" else str)
        several = value if isinstance(value, list | tuple) and key in _LISTS else [value]
        if key == "mmproj":
            several = [] if isinstance(value, bool) else several
        if key == "tensor_types":
            fits = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
            result += [] if fits else [(key, "'tensor_types' is a table of patterns and types")]
        elif key in known and not all(type(each) is kind for each in several):
            result.append((key, f"{key!r} is {_WORDS[kind]}{' or a list of them' if key in _LISTS else ''}"))
    return result


def jobs_of(keys: Mapping[str, Any], folder: Path, place: str = "") -> list[Job]:
    """A job for every source that the pattern of one finds; keys and values as in a manifest, which are right.

    Raises:
        UsageError: nothing is there, a target that would be the same for several, or no address that can be meant.
    """
    sources, out = _found(keys["source"], folder), keys["out"]
    _check_address(out, written=True)
    if len(sources) > 1 and "{name}" not in out:
        raise UsageError(f"{out}: {len(sources)} models are found, so their outputs need {{name}} in it")
    result = []
    for each in sources:
        name = _name(each)
        target = out.replace("{name}", name)
        target = target if is_address(out) else str(folder / target) + "/" * out.endswith("/")
        source, verified = _source(each, keys, folder), bool(keys.get("verify", False))
        result.append(Job(name, source, target, _requests(keys, folder), verified, place, folder))
    return result


def _found(pattern: str, folder: Path) -> list[Path | str]:
    """What a pattern finds, or the address that it is."""
    if is_address(pattern):
        _check_address(pattern)
        return [pattern]
    path = folder / pattern
    found: list[Path | str] = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path)))]
    if not found:
        raise UsageError(f"{pattern}: nothing is there")
    return found


def _check_address(text: str, written: bool = False) -> None:
    try:
        if is_address(text):
            (refuse_unwritable if written else str)(parse_address(text))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _name(source: Path | str) -> str:
    """What a source is called: without its extension, where it is a file."""
    if isinstance(source, Path):
        return source.name if source.is_dir() else source.stem
    address = parse_address(source)
    last = Path(address.parts[-1] if address.parts else address.where).name
    known = {extension for each in readers() for extension in each.extensions}
    return Path(last).stem if Path(last).suffix.lower() in known and not address.folder else last


def _source(path: Path | str, keys: Mapping[str, Any], folder: Path) -> Source:
    adapters = keys.get("adapters", ())
    adapters = [adapters] if isinstance(adapters, str) else adapters
    return Source(
        path,
        config=_inside(keys.get("config"), folder),
        key=keys.get("key"),
        adapters=[(_inside(each, folder), 1.0) for each in adapters],
        base=_inside(keys.get("base"), folder),
    )


def _inside(value: Any, folder: Path) -> Any:
    return folder / value if isinstance(value, str) and not is_address(value) else value


def _requests(keys: Mapping[str, Any], folder: Path) -> tuple[Request, ...]:
    given = {key: value for key, value in keys.items() if key in FIELDS}
    given |= {key: _inside(given[key], folder) for key in _PATHS if key in given}
    given |= {key: [given[key]] for key in _LISTS if isinstance(given.get(key), str) and key != "quant"}
    if "recipe" in given:
        given["recipe"] = read_recipe(given["recipe"])
    if "spread" in given:
        given["spread"] = [_inside(each, folder) for each in given["spread"]]
    if "tensor_types" in given:
        given["tensor_types"] = tuple(given["tensor_types"].items())
    quants = given.pop("quant", None)
    names = quants.split(",") if isinstance(quants, str) else quants or [None]
    return tuple(Request(**given, quant=name.strip() if name else None) for name in dict.fromkeys(names))


# --------------------------------------------------------------------------------------- files and their lines


def _parsed(path: Path) -> tuple[Any, Lines]:
    if path.suffix.lower() not in EXTENSIONS:
        raise UsageError(f"{path}: a manifest ends in {', '.join(EXTENSIONS)}")
    if regular_size(path) > MAX_SIZE:
        raise UsageError(f"{path}: a manifest is no larger than {MAX_SIZE:,} bytes")
    try:
        content = path.read_text("utf-8")
        return {".toml": _toml, ".json": _json}.get(path.suffix.lower(), _yaml)(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {short(str(error))}") from error


def _toml(content: str) -> tuple[Any, Lines]:
    lines: dict[tuple[int, str], int] = {}
    number = -1
    for at, line in enumerate(content.splitlines(), 1):
        if re.match(rf"\s*\[\[\s*{MODELS}\s*\]\]", line):
            number += 1
            lines[number, ""] = at
        elif key := re.match(r"\s*([\w-]+|\"[^\"]*\")\s*=", line):
            lines.setdefault((number, key[1].strip('"')), at)
    return tomllib.loads(content), lines


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]')


def _json(content: str) -> tuple[Any, Lines]:
    """Keys of objects in the list `models` are at depth 3, those of the defaults at 2."""
    try:
        data = parse(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    lines: dict[tuple[int, str], int] = {}
    depth, number, last = 0, -1, ""
    for token in _TOKEN.finditer(content):
        text, line = token[0], content.count("\n", 0, token.start()) + 1
        if text == "{" and depth == 2:
            number += 1
            lines[number, ""] = line
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(text, 0)
        if text == ":" and depth in (2, 3):
            lines.setdefault((number if depth == 3 else -1, json.loads(last)), line)
        last = text
    return data, lines


def _yaml(content: str) -> tuple[Any, Lines]:
    yaml = package("yaml", "a manifest in YAML")
    try:
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    lines: dict[tuple[int, str], int] = {}
    for key, value in getattr(node, "value", ()) if isinstance(node, yaml.MappingNode) else ():
        tables: Sequence[Any] = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for number, table in enumerate(tables):
            own = number if key.value == MODELS else -1
            lines[own, ""] = table.start_mark.line + 1
            for each, _ in table.value if isinstance(table, yaml.MappingNode) else ():
                lines[own, str(each.value)] = each.start_mark.line + 1
    return data, lines
