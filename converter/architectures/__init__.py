"""The architectures, one file of data each; a new file in this folder is found by being there."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from converter.architectures.runtime import RUNTIME
from converter.architectures.spec import Architecture
from converter.architectures.traits import Traits


@cache
def architectures() -> dict[str, Architecture]:
    """Every architecture by its GGUF name."""
    found: dict[str, Architecture] = {}
    for module in pkgutil.iter_modules(__path__):
        for architecture in getattr(importlib.import_module(f"{__name__}.{module.name}"), "ARCHITECTURES", ()):
            found[architecture.gguf] = architecture
    return found


def traits_of(name: str) -> Traits:
    """The facts of the architecture with this GGUF name, mapped here or only known to runtimes; else the usual ones."""
    mapped = architectures().get(name)
    return mapped.traits if mapped else RUNTIME.get(name, Traits())
