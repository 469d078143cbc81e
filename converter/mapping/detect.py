"""Which architecture a model is: by the class that its config.json names, or by a GGUF file's own word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.architectures import architectures
from converter.architectures.spec import Architecture, HFClass
from converter.errors import UnknownArchitecture, short
from converter.metadata import Array, Value


def detect(config: Mapping[str, Any], name: str | None = None) -> tuple[Architecture, HFClass]:
    """The architecture of a Hugging Face config, by `name` (GGUF name or class) or by its `architectures`.

    Raises:
        UnknownArchitecture: none answers; the message lists those there are.
    """
    listed = config.get("architectures")
    classes = listed if isinstance(listed, list) else []
    wanted = [name] if name else [item for item in classes if isinstance(item, str)]
    for architecture in architectures().values():
        for hf in architecture.hf:
            if hf.name in wanted:
                return architecture, hf
    if name and name in architectures():
        architecture = architectures()[name]
        by_type = (hf for hf in architecture.hf if hf.model_type == config.get("model_type"))
        return architecture, next(by_type, architecture.hf[0])
    for architecture in () if wanted else architectures().values():
        for hf in architecture.hf:
            if hf.model_type == config.get("model_type"):
                return architecture, hf
    known = ", ".join(hf.name for architecture in architectures().values() for hf in architecture.hf)
    said = ", ".join(map(short, wanted[:3])) or f"model_type {short(config.get('model_type'))}"
    raise UnknownArchitecture(f"no architecture answers to {said} (known: {known})\n--arch NAME chooses one")


def detect_gguf(metadata: Mapping[str, Value | Array], name: str | None = None) -> Architecture:
    """The architecture of a GGUF file.

    Raises:
        UnknownArchitecture: none answers.
    """
    value = metadata.get("general.architecture")
    wanted = name or (value.value if isinstance(value, Value) else None)
    if wanted not in architectures():
        known = ", ".join(architectures())
        raise UnknownArchitecture(f"no architecture answers to {short(wanted)} (known: {known})")
    return architectures()[str(wanted)]
