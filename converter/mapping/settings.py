"""What of a config.json changes what the model computes, and the target cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from converter.architectures.settings import BY_FACTORS, NEUTRAL, ONLY_WHEN, SAME_AS
from converter.architectures.spec import Architecture, HFClass
from converter.events import SettingLost
from converter.mapping.generators import GENERATORS
from converter.mapping.hparams import (
    ROPE_KEYS,
    HParams,
    Scope,
    class_defaults,
    computed_defaults,
    flat_config,
    lookup,
    says,
)
from converter.tensors.expressions import ExpressionError, compute


def lost_settings(
    architecture: Architecture, hf: HFClass, config: Mapping[str, Any], scope: Scope, back: HParams
) -> Iterator[SettingLost]:
    """The settings of `config` (or of its class) that the keys and tensors of the architecture do not express.

    `back` are the hyperparameters that a reader of the target finds.
    """
    own, filled = flat_config(config), class_defaults(hf, config)
    flat = {**computed_defaults(hf, filled, own), **filled, **own}
    for key, neutral in {**NEUTRAL, **architecture.traits.built_in}.items():
        value = lookup(flat, key)
        if key in SAME_AS:
            neutral = (*neutral, lookup(flat, SAME_AS[key]))
        if _acts(value, neutral, ONLY_WHEN.get(key, ()), flat) and not _said(architecture, key, value, scope, back):
            yield SettingLost(_spelled(config, key), str(value)[:60], architecture.gguf)


def _acts(value: Any, neutral: tuple[object, ...], conditions: tuple[str, ...], flat: Mapping[str, Any]) -> bool:
    if isinstance(value, list | tuple):
        strange = any(item not in neutral for item in value)
    else:
        strange = value is not None and value not in neutral
    return strange and all(_holds(condition, flat) for condition in conditions)


def _holds(condition: str, flat: Mapping[str, Any]) -> bool:
    try:
        return bool(compute(condition, flat))
    except ExpressionError:  # the config does not say all that the condition asks
        return True


def _said(architecture: Architecture, key: str, value: Any, scope: Scope, back: HParams) -> bool:
    """Whether a key of the target holds the value, it follows from others, or a tensor has what the value makes."""
    rows = [hparam for hparam in architecture.hparams if key in hparam.config]
    by_factors = key == "rope.rope_type" and value in BY_FACTORS
    if not by_factors and any(says(row, value) if row.gguf else _alike(back.get(row.name), value) for row in rows):
        return True
    made = (rule for rule in architecture.tensors if rule.generator and scope.holds(rule.when))
    return any(key in GENERATORS[rule.generator].says for rule in made if rule.generator)


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are one as a file would hold them."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return bool(np.float32(a) == np.float32(b))
    return bool(a == b)


def _spelled(config: Mapping[str, Any], key: str) -> str:
    """The key as config.json has it."""
    if not key.startswith("rope."):
        return key
    name = key.removeprefix("rope.")
    beside = (key for key in ROPE_KEYS.get(name, ()) if config.get(key) is not None)
    if found := next(beside, None):
        return found
    parts = ("rope_parameters", "rope_scaling", "text_config")
    return f"{next((part for part in parts if config.get(part)), 'rope_scaling')}.{name}"
