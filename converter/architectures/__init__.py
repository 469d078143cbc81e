"""The architectures, one file of data each; a new file in this folder is found by being there.

Third parties add theirs through the entry-point group `converter.architectures`, whose value is an Architecture or a
tuple of them.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache
from importlib import resources

from converter.architectures.runtime import RUNTIME
from converter.architectures.spec import Architecture
from converter.architectures.traits import Traits
from converter.plugins import plugins

ENTRY_POINTS = "converter.architectures"
_QUOTED = re.compile(rb'"([^"\n]+)"')


def architectures(*words: object) -> dict[str, Architecture]:
    """Every architecture of ours by its GGUF name.

    With words, only those of the files that have one of them in quotes, which is where each architecture's classes,
    model types and GGUF name stand: to load all takes longer than to read a header.
    """
    wanted = {word.encode() for word in words if isinstance(word, str)}
    modules = [name for name, quoted in _sources().items() if not words or not wanted.isdisjoint(quoted)]
    return {architecture.gguf: architecture for module in modules for architecture in _rows(module)}


@cache
def _sources() -> dict[str, frozenset[bytes]]:
    """What stands in quotes in each file of this folder, by module."""
    folder = resources.files(__name__)
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return {name: frozenset(_QUOTED.findall((folder / f"{name}.py").read_bytes())) for name in names}


@cache
def _rows(module: str) -> tuple[Architecture, ...]:
    rows: tuple[Architecture, ...] = getattr(importlib.import_module(f"{__name__}.{module}"), "ARCHITECTURES", ())
    return rows


@cache
def projectors() -> tuple[Architecture, ...]:
    """What multimodal models have beside their text model; all are `clip` in GGUF."""
    return importlib.import_module(f"{__name__}.mmproj").PROJECTORS  # type: ignore[no-any-return]


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
