"""Which architecture a model is: by the class that its config.json names, or by a GGUF file's own word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from converter.architectures import architectures, plugged, projectors
from converter.architectures.spec import Architecture, HFClass
from converter.errors import ArchitectureError, UnknownArchitecture, short
from converter.mapping.architecture_file import is_file, read_architecture
from converter.mapping.hparams import Scope, read_config, text_config
from converter.metadata import Array, Value, text_of

_Known = Mapping[str, Architecture]
_Found = tuple[Architecture, HFClass]


def detect(config: Mapping[str, Any], name: str | None = None) -> tuple[Architecture, HFClass]:
    """The architecture of a Hugging Face config, by `name` (GGUF name, class or file) or by its `architectures`.

    The classes that the config names come before those that its text model names, and these before `model_type`. Of
    several architectures that a class may belong to, the first takes it whose condition the config meets.

    Raises:
        UnknownArchitecture: none answers.
        ArchitectureError: what is wrong with the file.
    """
    if name and is_file(name):
        return _class_in(read_architecture(Path(name)), config)
    classes = [name] if name else classes_of(config)
    inner = [] if name else classes_of(text_config(config))
    ours = architectures(*classes, *inner, config.get("model_type"), text_config(config).get("model_type"))
    # Others are looked for only where none of ours answers.
    found = _answer(ours, config, name, classes, inner) or _answer(plugged(), config, name, classes, inner)
    if found is None:
        said = named(classes) or f"model_type {short(config.get('model_type'))}"
        if detect_projector(config):
            raise UnknownArchitecture(
                f"{said}: no text model of it is known here; --mmproj converts what sees or hears"
            )
        raise _unknown(said)
    return found


def detect_projector(config: Mapping[str, Any]) -> _Found | None:
    """What turns the images of a multimodal model into its text model's embeddings; None where we know of none."""
    classes = classes_of(config)
    return _first(projectors(*classes), config, "name", classes) if classes else None


def classes_of(config: Mapping[str, Any]) -> list[str]:
    """The classes that a config names; one of the mamba_ssm package names a layer."""
    listed = config.get("architectures")
    if not listed and isinstance(parts := config.get("ssm_cfg"), dict):
        return [f"{parts.get('layer', 'Mamba')}LMHeadModel"]
    return [item for item in listed if isinstance(item, str)] if isinstance(listed, list) else []


def is_classifier(name: str) -> bool:
    """Whether a class of this name is a model with a classifier in the place of its head."""
    return name.endswith("ForSequenceClassification")


def _kinds(config: Mapping[str, Any]) -> list[Any]:
    return [kind for part in (config, text_config(config)) if (kind := part.get("model_type")) is not None]


def named(classes: Iterable[str]) -> str:
    """The first few of them, for a message."""
    return ", ".join(map(short, islice(classes, 3)))


def _answer(
    known: _Known, config: Mapping[str, Any], name: str | None, classes: list[str], inner: list[str]
) -> _Found | None:
    every = known.values()
    if found := _first(every, config, "name", classes):
        return _with_text_defaults(*found, config)
    if found := _first(every, config, "name", inner):
        return found
    if name and name in known:
        return _class_in(known[name], config)
    if classes and is_classifier(classes[0]) and (found := _first(every, config, "model_type", _kinds(config))):
        return found[0], replace(found[1], name=classes[0], head=False)
    # Of a model of several inputs whose class only a projector names, the text model's type tells.
    beside = classes and detect_projector(config)
    kind = text_config(config).get("model_type") if beside else config.get("model_type")
    return _first(every, config, "model_type", [kind]) if beside or not classes else None


def _with_text_defaults(architecture: Architecture, hf: HFClass, config: Mapping[str, Any]) -> _Found:
    """The class, which for a config of several models leaves out what its text model's class leaves out."""
    text = text_config(config)
    of_text = (each for each in architecture.hf if text and each.model_type == text.get("model_type"))
    inner = next(of_text, hf)
    return architecture, hf if inner is hf else replace(hf, defaults={**hf.defaults, **inner.defaults})


def _class_in(architecture: Architecture, config: Mapping[str, Any]) -> tuple[Architecture, HFClass]:
    """The class of a chosen architecture that the config is of: by name, by type, else the first."""
    classes = (*classes_of(config), *classes_of(text_config(config)))
    by_name = (hf for hf in architecture.hf if hf.name in classes)
    by_type = (hf for hf in architecture.hf if hf.model_type == config.get("model_type"))
    return architecture, next(by_name, next(by_type, architecture.hf[0]))


def _first(known: Iterable[Architecture], config: Mapping[str, Any], field: str, wanted: list[Any]) -> _Found | None:
    for architecture in known:
        for hf in architecture.hf:
            if getattr(hf, field) in wanted and _takes(architecture, hf, config):
                return architecture, hf
    return None


def _takes(architecture: Architecture, hf: HFClass, config: Mapping[str, Any]) -> bool:
    """Whether the architecture is the one for this config of the class; what belongs to one only is not asked."""
    if hf.takes is None:
        return True
    try:
        return Scope(read_config(architecture, hf, config)[0]).holds(hf.takes)
    except ArchitectureError:  # it has not all that such a model needs
        return False


def detect_gguf(metadata: Mapping[str, Value | Array], name: str | None = None) -> Architecture:
    """The architecture of a GGUF file.

    Raises:
        UnknownArchitecture: none answers.
    """
    value = metadata.get("general.architecture")
    wanted = name or (value.value if isinstance(value, Value) else None)
    if name and is_file(name):  # what a stranger's file says is never a path
        return read_architecture(Path(name))
    if found := architectures(wanted).get(str(wanted)) or plugged().get(str(wanted)):
        return found
    raise _unknown(short(wanted))


def projector_in(metadata: Mapping[str, Value | Array], text: Architecture) -> Architecture:
    """What a GGUF file's projector is, with the classes that it makes together with a text model.

    Raises:
        UnknownArchitecture: none that is known here, or none for this text model.
    """
    known = [(each, next(row for row in each.hparams if row.name == "projector")) for each in projectors()]
    found = [
        each for each, row in known
        for key in row.gguf if text_of(metadata, each.key(key)) == str(row.default).strip("'")
    ]  # fmt: skip
    if not found:
        said = text_of(metadata, "clip.projector_type") or text_of(metadata, "clip.vision.projector_type")
        raise UnknownArchitecture(
            f"--mmproj: no projector {short(said)} is known; without it the folder is of the text model alone"
        )
    for each in found:
        if classes := tuple(hf for hf in each.hf if text.gguf in hf.text):
            return replace(each, hf=classes)
    back = any(hf.text for each in found for hf in each.hf)
    raise UnknownArchitecture(
        f"--mmproj: the projector of {named(hf.name for each in found for hf in each.hf)} "
        f"{f'is not for {text.gguf}' if back else 'goes to GGUF only'}\n"
        "without it the folder is of the text model alone"
    )


def _unknown(said: str) -> UnknownArchitecture:
    return UnknownArchitecture(
        f"no architecture answers to {said}; `convert architectures` lists the known ones\n"
        "--arch NAME or --arch-file FILE says which it is, --tensors-only keeps its names"
    )
