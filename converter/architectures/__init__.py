"""The architectures, one file of data each; a new file in this folder is found by being there."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from converter.architectures.spec import Architecture


@cache
def architectures() -> dict[str, Architecture]:
    """Every architecture by its GGUF name."""
    found: dict[str, Architecture] = {}
    for module in pkgutil.iter_modules(__path__):
        for architecture in getattr(importlib.import_module(f"{__name__}.{module.name}"), "ARCHITECTURES", ()):
            found[architecture.gguf] = architecture
    return found
