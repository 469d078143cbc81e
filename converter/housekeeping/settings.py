"""What a model says of itself, to be changed: the typed keys of a GGUF, or config.json with a text model nested in it.

Both are asked by the rows of the architecture, which know the keys.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from converter.architectures.spec import Architecture, HFClass, HParam
from converter.checkpoint import Checkpoint
from converter.mapping.hparams import text_config
from converter.metadata import Array, Value

CONFIG = "config.json"


class Settings(Protocol):
    """The settings of a model."""

    def value(self, row: HParam) -> Any:
        """What is said for a row, a list as a list; None where nothing is."""

    def change(self, row: HParam, value: Any) -> None:
        """Say another value, in every place where one is said, or else where the row writes its own."""

    def said(self, row: HParam) -> str:
        """The key of a row, for messages."""

    def applied(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with these settings."""


def settings_of(checkpoint: Checkpoint, architecture: Architecture, hf: HFClass | None) -> Settings:
    """The settings of a checkpoint, a copy that can be changed."""
    return Keys(checkpoint, architecture) if hf is None else Config(checkpoint, hf)


class Keys:
    """The keys of a GGUF."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        self.entries: dict[str, Value | Array] = dict(checkpoint.config)
        self._architecture = architecture

    def _keys(self, row: HParam) -> list[str]:
        keys = [self._architecture.key(key) for key in row.gguf]
        return [key for key in keys if key in self.entries] or keys[:1]

    def value(self, row: HParam) -> Any:
        entry = next((self.entries[key] for key in self._keys(row) if key in self.entries), None)
        return plain(entry)

    def change(self, row: HParam, value: Any) -> None:
        for key in self._keys(row):
            self.entries[key] = typed(self.entries.get(key), row, value)

    def said(self, row: HParam) -> str:
        return next(iter(self._keys(row)), row.name)

    def applied(self, checkpoint: Checkpoint) -> Checkpoint:
        return checkpoint.replace(config=self.entries)


def plain(entry: Value | Array | None) -> Any:
    """A GGUF value as Python has it."""
    if isinstance(entry, Array):
        return entry.values.tolist() if isinstance(entry.values, np.ndarray) else list(entry.values)
    return None if entry is None else entry.value


def typed(old: Value | Array | None, row: HParam, value: Any) -> Value | Array:
    """A value of the type that the key has, or else of that which the row writes."""
    many = isinstance(value, list)
    if isinstance(old, Array if many else Value):
        return Array(old.type, value) if many else Value(old.type, value)
    kind = next(kind.removesuffix("[]") for kind in row.types if kind.endswith("[]") == many)
    return Array(kind, value) if many else Value(kind, value)


class Config:
    """config.json."""

    def __init__(self, checkpoint: Checkpoint, hf: HFClass) -> None:
        self.whole: dict[str, Any] = copy.deepcopy(dict(checkpoint.config))
        self._hf = hf

    @property
    def text(self) -> dict[str, Any]:
        """The part that is the text model's, in which most entries are."""
        part: Mapping[str, Any] = text_config(self.whole)
        return part if isinstance(part, dict) and part else self.whole

    def holders(self, dotted: str) -> Iterator[tuple[dict[str, Any], str]]:
        """The objects that an entry stands in, with its own key there."""
        *parts, last = self._hf.keys.get(dotted, dotted).split(".")
        for holder in (self.text, self.whole) if self.text is not self.whole else (self.whole,):
            for part in parts:
                holder = holder.get(part) if isinstance(holder, dict) else None  # type: ignore[assignment]
            if isinstance(holder, dict) and last in holder:
                yield holder, last

    def _places(self, row: HParam) -> list[tuple[dict[str, Any], str]]:
        keys = [key for key in row.config if not key.startswith(("rope.", "/"))]
        return [place for key in keys for place in self.holders(key)]

    def value(self, row: HParam) -> Any:
        return next((holder[key] for holder, key in self._places(row)), None)

    def change(self, row: HParam, value: Any) -> None:
        own = (self._hf.keys.get(key, key) for key in row.config[:1])
        for holder, key in self._places(row) or [(self.text, key) for key in own]:
            holder[key] = value

    def said(self, row: HParam) -> str:
        return f"{CONFIG}: {row.config[0]}" if row.config else row.name

    def applied(self, checkpoint: Checkpoint) -> Checkpoint:
        text = json.dumps(self.whole, indent=2, ensure_ascii=False) + "\n"
        return checkpoint.replace(config=self.whole, made={**checkpoint.made, CONFIG: text.encode()})
