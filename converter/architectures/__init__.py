"""The architectures, one file of data each; a new file in this folder is found by being there.

Third parties add theirs through the entry-point group `converter.architectures`, whose value is an Architecture or a
tuple of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from converter.architectures.runtime import RUNTIME
from converter.architectures.spec import Architecture
from converter.architectures.traits import Traits
from converter.plugins import plugins

ENTRY_POINTS = "converter.architectures"


@cache
def architectures() -> dict[str, Architecture]:
    """Every architecture of ours by its GGUF name."""
    found: dict[str, Architecture] = {}
    for module in pkgutil.iter_modules(__path__):
        for architecture in getattr(importlib.import_module(f"{__name__}.{module.name}"), "ARCHITECTURES", ()):
            found[architecture.gguf] = architecture
    return found


@cache
def projectors() -> tuple[Architecture, ...]:
    """What multimodal models have beside their text model; all are `clip` in GGUF."""
    return importlib.import_module(f"{__name__}.mmproj").PROJECTORS  # type: ignore[no-any-return]


@cache
def plugged() -> dict[str, Architecture]:
    """Those of other packages by their GGUF names, where we have none of that name."""
    found: dict[str, Architecture] = {}
    for each in plugins(ENTRY_POINTS, Architecture):
        if each.gguf not in architectures():
            found.setdefault(each.gguf, each)
    return found


def traits_of(name: str) -> Traits:
    """The facts of the architecture with this GGUF name, mapped here or only known to runtimes; else the usual ones."""
    mapped = architectures().get(name)
    return mapped.traits if mapped else RUNTIME.get(name, Traits())
