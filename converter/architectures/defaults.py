"""What transformers' configuration classes fill in where a config.json is silent, by model type.

`defaults.json` is made by fixtures/make_defaults.py. What a class computes of its sizes is in the `defaults` of our
rows, and so is everything for classes that transformers does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any


def defaults_of(model_type: object) -> Mapping[str, Any]:
    """The values that the class of this model type fills in; empty where none is known."""
    return _table().get(model_type, {}) if isinstance(model_type, str) else {}


@cache
def _table() -> dict[str, dict[str, Any]]:
    path = resources.files("converter.architectures") / "defaults.json"
    table: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return table
