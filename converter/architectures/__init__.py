"""The architectures, one file of data each; a new file in this folder or below is found by being there.

Third parties add theirs through the entry-point group `converter.architectures`, whose value is an Architecture or a
tuple of them.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources

from converter.architectures.runtime import RUNTIME
from converter.architectures.spec import Architecture
from converter.architectures.traits import Traits
from converter.plugins import plugins

ENTRY_POINTS = "converter.architectures"
_QUOTED = re.compile(r'"([^"\n]+)"')


def architectures(*words: object) -> dict[str, Architecture]:
    """Every architecture of ours by its GGUF name.

    With words, only those of the files that have one of them in quotes, which is where each architecture's classes,
    model types and GGUF name stand: to load all takes longer than to read a header.
    """
    return {architecture.gguf: architecture for architecture in _rows("ARCHITECTURES", words)}


def projectors(*words: object) -> tuple[Architecture, ...]:
    """What multimodal models have beside their text model; all are `clip` in GGUF. Words choose as above."""
    return tuple(_rows("PROJECTORS", words))


def _rows(table: str, words: tuple[object, ...]) -> Iterator[Architecture]:
    wanted = {word for word in words if isinstance(word, str)}
    for module, quoted in _quoted().items():
        if not words or quoted is None or wanted & quoted:
            yield from getattr(importlib.import_module(module), table, ())


@cache
def _quoted() -> dict[str, frozenset[str] | None]:
    """What stands in quotes in each file here and below, by module; None where only its bytecode is installed."""
    found: dict[str, frozenset[str] | None] = {}
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        if not module.ispkg:
            *folders, name = module.name.removeprefix(f"{__name__}.").split(".")
            source = resources.files(__name__).joinpath(*folders, f"{name}.py")
            found[module.name] = frozenset(_QUOTED.findall(source.read_text("utf-8"))) if source.is_file() else None
    return found


@cache
def plugged() -> dict[str, Architecture]:
    """Those of other packages by their GGUF names, where we have none of that name."""
    found: dict[str, Architecture] = {}
    for each in plugins(ENTRY_POINTS, Architecture):
        if each.gguf not in architectures(each.gguf):
            found.setdefault(each.gguf, each)
    return found


def traits_of(name: str) -> Traits:
    """The facts of the architecture with this GGUF name, mapped here or only known to runtimes; else the usual ones."""
    mapped = architectures(name).get(name)
    return mapped.traits if mapped else RUNTIME.get(name, Traits())
