"""A mixture: which tensors get which type, as a value to compare, hash, store and send. Its file is a recipe
(docs/recipes.md), which `quant.recipe_files` reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Rule:
    """Tensors, and their type.

    Attributes:
        tensors: a GGUF name, or a pattern of whole names in which `{block}` stands for the number of a block.
        type: of ggml, by name.
        blocks: numbers of blocks, `0-3,7`; all where it is empty.
        bytes: of these tensors in this type.
        error: what the type does to them: squared error over squared values.
        sensitivity: KL divergence in nats per such error.
        kl: what the type adds to the model's KL divergence, as predicted: their product.
        gain: nats that it saves over the next smaller type that was worth it, for each byte more.
        why: in words.
    """

    tensors: str
    type: str
    blocks: str = ""
    bytes: int | None = None
    error: float | None = None
    sensitivity: float | None = None
    kl: float | None = None
    gain: float | None = None
    why: str = ""

    @property
    def label(self) -> str:
        """The rule in words, as `convert plan` prints it."""
        return f"recipe: {self.tensors}" + (f" of blocks {self.blocks}" if self.blocks else "")

    def as_dict(self) -> dict[str, Any]:
        """What is said of it, as JSON."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class Mixture:
    """Rules, of which the first that fits a tensor decides.

    Attributes:
        base: the quant whose rules decide where none of these does.
        architecture, block_count: of the model that it was made for.
        origin: how it came about, in words.
    """

    base: str
    rules: tuple[Rule, ...]
    architecture: str | None = None
    block_count: int | None = None
    origin: str = ""

    @classmethod
    def of(cls, value: Self | Mapping[str, Any] | None) -> Self | None:
        """A mixture, or the one that `as_dict` described."""
        if not isinstance(value, Mapping):
            return value
        return cls(**{**value, "rules": tuple(Rule(**rule) for rule in value.get("rules", ()))})

    def as_dict(self) -> dict[str, Any]:
        """The mixture as JSON."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rules"}
        said = {name: value for name, value in own.items() if value not in (None, "")}
        return said | {"rules": [rule.as_dict() for rule in self.rules]}
