"""Which architecture a model is: by the class that its config.json names, or by a GGUF file's own word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.architectures import architectures
from converter.architectures.spec import Architecture, HFClass
from converter.errors import UnknownArchitecture, short
from converter.mapping.hparams import Scope, read_config, text_config
from converter.metadata import Array, Value


def detect(config: Mapping[str, Any], name: str | None = None) -> tuple[Architecture, HFClass]:
    """The architecture of a Hugging Face config, by `name` (GGUF name or class) or by its `architectures`.

    The classes that the config names come before those that its text model names, and these before `model_type`. Of
    several architectures that a class may belong to, the first takes it whose condition the config meets.

    Raises:
        UnknownArchitecture: none answers; the message lists those there are.
    """
    classes = [name] if name else _classes(config)
    inner = [] if name else _classes(text_config(config))
    if found := _first(config, "name", classes) or _first(config, "name", inner):
        return found
    if name and name in architectures():
        architecture = architectures()[name]
        by_type = (hf for hf in architecture.hf if hf.model_type == config.get("model_type"))
        return architecture, next(by_type, architecture.hf[0])
    if not classes and (found := _first(config, "model_type", [config.get("model_type")])):
        return found
    known = ", ".join(dict.fromkeys(hf.name for architecture in architectures().values() for hf in architecture.hf))
    said = ", ".join(map(short, classes[:3])) or f"model_type {short(config.get('model_type'))}"
    raise UnknownArchitecture(f"no architecture answers to {said} (known: {known})\n--arch NAME chooses one")


def _classes(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("architectures")
    return [item for item in listed if isinstance(item, str)] if isinstance(listed, list) else []


def _first(config: Mapping[str, Any], field: str, wanted: list[Any]) -> tuple[Architecture, HFClass] | None:
    for architecture in architectures().values():
        for hf in architecture.hf:
            if getattr(hf, field) in wanted and _takes(architecture, hf, config):
                return architecture, hf
    return None


def _takes(architecture: Architecture, hf: HFClass, config: Mapping[str, Any]) -> bool:
    """Whether the architecture is the one for this config of the class; what belongs to one only is not asked."""
    return hf.takes is None or Scope(read_config(architecture, hf, config)[0]).holds(hf.takes)


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
