"""Hyperparameters: config.json <-> names that expressions use <-> typed GGUF keys, by an architecture's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from converter.architectures.spec import Architecture, HFClass, HParam
from converter.errors import ArchitectureError
from converter.metadata import Array, Metadata, Value
from converter.tensors.expressions import ExpressionError, evaluate

HParams = dict[str, Any]


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of transformers 4 or 5, with a nested text model lifted and every rope fact under "rope"."""
    flat = {**config, **_object(config.get("text_config"))}
    rope = dict(_object(flat.get("rope_parameters")) or _object(flat.get("rope_scaling")))
    rope = dict(_object(rope.get("full_attention")) or rope)
    for key in ("rope_theta", "original_max_position_embeddings"):
        if flat.get(key) is not None:
            rope.setdefault(key, flat[key])
    if "type" in rope:
        rope.setdefault("rope_type", rope["type"])
    flat["rope"] = rope
    return flat


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _lookup(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def read_config(architecture: Architecture, hf: HFClass, config: Mapping[str, Any]) -> tuple[HParams, set[str]]:
    """Hyperparameters by name, and the names of those that the config (or its class) really gives.

    Raises:
        ArchitectureError: a required key is missing, or a value is of the wrong kind.
    """
    flat = flat_config(config)
    found: HParams = {}
    given: set[str] = set()
    for hparam in architecture.hparams:
        value = next((v for key in hparam.config if (v := _lookup(flat, key)) is not None), None)
        if value is None:
            value = _class_default(hf, hparam, flat)
        if value is not None:
            given.add(hparam.name)
        elif hparam.required:
            raise ArchitectureError(f"config.json has no {hparam.config[0]}, which {architecture.gguf} needs")
        elif hparam.default is not None:
            value = _default(hparam, found)
        if value is not None:
            name = hparam.config[0] if hparam.config else hparam.name
            found[hparam.name] = _checked(hparam, value, f"config.json: {name}")
    return found, given


def _class_default(hf: HFClass, hparam: HParam, flat: Mapping[str, Any]) -> Any:
    """What the transformers class would have filled in; a text is an expression over config keys."""
    for key in hparam.config:
        default = hf.defaults.get(key.removeprefix("rope."))
        try:
            if default is not None:
                return evaluate(default, flat) if isinstance(default, str) else default
        except ExpressionError:
            continue
    return None


def _default(hparam: HParam, found: HParams) -> Any:
    if not isinstance(hparam.default, str) or hparam.type == "str":
        return hparam.default
    return evaluate(hparam.default, found)


# A config that says more than this is not a model but an attack on our memory.
_LIMIT = 1 << 31


_F32_MAX = float(np.finfo(np.float32).max)


def _checked(hparam: HParam, value: Any, where: str) -> Any:
    kinds: dict[str, type | tuple[type, ...]] = {"u32": int, "f32": (int, float), "str": str, "bool": bool}
    wrong = not isinstance(value, kinds[hparam.type]) or (isinstance(value, bool) and hparam.type != "bool")
    if not wrong and hparam.type in ("u32", "f32"):
        wrong = not (0 <= value < _LIMIT if hparam.type == "u32" else -_F32_MAX <= value <= _F32_MAX)
    if wrong:
        raise ArchitectureError(f"{where} is {str(value)[:40]!r}, not a usable {hparam.type} value")
    return value


def hparam_metadata(architecture: Architecture, hparams: HParams, given: set[str]) -> Metadata:
    """The architecture's GGUF keys, in the order of its rows."""
    metadata: Metadata = {}
    for hparam in architecture.hparams:
        value = hparams.get(hparam.name)
        if value is None or not (hparam.always or hparam.name in given) or not holds(hparam.when, hparams):
            continue
        if hparam.values:
            value = dict(hparam.values).get(value)
            if value is None:
                continue
        for key in hparam.gguf:
            metadata[f"{architecture.gguf}.{key}"] = Value(hparam.type, value)
    return metadata


def read_metadata(
    architecture: Architecture, metadata: Mapping[str, Value | Array], n_rows: int | None = None
) -> HParams:
    """Hyperparameters by name from a GGUF file's keys; the vocabulary is `n_rows` where no key tells.

    Raises:
        ArchitectureError: a required key is missing or of the wrong kind.
    """
    found: HParams = {}
    for hparam in architecture.hparams:
        value: Any = None
        for key in hparam.gguf:
            entry = metadata.get(f"{architecture.gguf}.{key}")
            if isinstance(entry, Value):
                value = _config_value(hparam, entry.value)
        if hparam.name == "n_vocab" and value is None:
            tokens = metadata.get("tokenizer.ggml.tokens")
            value = len(tokens) if isinstance(tokens, Array) else n_rows
        if value is None and hparam.required and hparam.gguf:
            raise ArchitectureError(f"the file has no {architecture.gguf}.{hparam.gguf[0]}")
        if value is None and hparam.default is not None:
            value = _default(hparam, found)
        if value is not None:
            name = f"{architecture.gguf}.{hparam.gguf[0]}" if hparam.gguf else hparam.name
            found[hparam.name] = _checked(hparam, value, name)
    return found


def _config_value(hparam: HParam, value: Any) -> Any:
    """What config.json calls a GGUF value; nothing where it has no word for it."""
    if not hparam.values:
        return value
    return next((ours for ours, theirs in hparam.values if theirs == value), None)


def write_config(architecture: Architecture, hparams: HParams, tied: bool) -> dict[str, Any]:
    """A config.json (in the layout of transformers 4, which 5 reads too) for these hyperparameters."""
    hf = next(cls for cls in architecture.hf if holds(cls.when, hparams))
    config: dict[str, Any] = {"architectures": [hf.name], "model_type": hf.model_type, "tie_word_embeddings": tied}
    rope: dict[str, Any] = {}
    for hparam in architecture.hparams:
        value = hparams.get(hparam.name)
        if value is None or not hparam.config or not holds(hparam.when, hparams):
            continue
        key = hparam.config[0]
        plain = _shortest(value) if hparam.type == "f32" else value
        if key.startswith("rope."):
            rope[key.removeprefix("rope.")] = plain
        elif not (hparam.default == 0 and value == 0):
            config[key] = plain
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    return config


def _shortest(value: float) -> float:
    """The shortest decimal that is the same F32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def holds(condition: str | None, hparams: HParams) -> bool:
    """Whether a row applies; one without a condition always does."""
    return condition is None or bool(evaluate(condition, hparams))
