"""llama.cpp's golden tables of types (fixtures/snapshots): models, their tensors, and what recipes make of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from converter.architectures import traits_of
from converter.quant.recipes import ModelFacts, TensorSpec
from support.paths import FIXTURES

PATHS = sorted((FIXTURES / "snapshots").glob("*.json"))


@dataclass(frozen=True)
class Golden:
    """One model's table.

    Attributes:
        facts, specs: the model and its tensors, as recipes see them.
        entries: by ftype, the type that most tensors get and those that differ.
    """

    facts: ModelFacts
    specs: tuple[TensorSpec, ...]
    entries: dict[str, Any]

    def special(self, ftype: str) -> dict[str, str]:
        """The tensors that get another type than most, and which."""
        return {
            name: its_type
            for its_type, templates in self.entries[ftype]["except"].items()
            for template, layers in templates.items()
            for name in _names(template, layers)
        }

    def type(self, ftype: str, name: str) -> str:
        """The type of a tensor that is quantized at all."""
        return self.special(ftype).get(name, self.entries[ftype]["base"])


@cache
def golden(path: Path) -> Golden:
    data = json.loads(path.read_text(encoding="utf-8"))
    specs = tuple(
        TensorSpec(name, tuple(shape), "F32")
        for template, layers, shape in data["tensors"]
        for name in _names(template, layers)
    )
    facts = data["facts"]
    return Golden(ModelFacts(**facts, traits=traits_of(facts["arch"])), specs, data["expected"])


def _names(template: str, layers: str) -> list[str]:
    """`blk.{}.x` and "0-2,5" as four names; a template without layers as itself."""
    if not layers:
        return [template]
    bounds = [part.partition("-") for part in layers.split(",")]
    return [template.format(n) for low, _, high in bounds for n in range(int(low), int(high or low) + 1)]
