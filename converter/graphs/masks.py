"""Which tokens a token sees: earlier ones that are no padding, in some blocks within a window. One mask a kind.

A token always sees itself, so that rows of padding stay finite: a NaN there would come back through what is multiplied
by zero.
"""

from __future__ import annotations

from converter.graphs.builder import Builder
from converter.graphs.model import Model
from converter.tensors.dtypes import DTYPES


class Masks:
    """Masks (batch, 1, tokens, tokens so far) of booleans, made when a block first asks."""

    def __init__(self, builder: Builder, model: Model) -> None:
        self._builder = builder
        self._model = model
        self.total = builder.op("Shape", "attention_mask", start=1, end=2)
        self._made: dict[int, str] = {}
        self._query = self._key = ""

    def of(self, block: int) -> str:
        """The mask of a block."""
        window = self.window(block)
        if window not in self._made:
            build = self._builder
            scope, build.scope = build.scope, ""
            if 0 not in self._made:
                self._made[0] = self._causal()
            if window:
                since = build.op("Sub", self._query, build.constant([window]))
                self._made[window] = build.op("And", self._made[0], build.op("Greater", self._key, since))
            build.scope = scope
        return self._made[window]

    def window(self, block: int) -> int:
        """Tokens that a block sees, itself among them; 0 where it sees all."""
        model, rule = self._model, self._model.architecture.traits.window
        size = model.key("attention.sliding_window", default=rule.size if rule else 0)
        if not size:
            return 0
        slides = model.key("attention.sliding_window_pattern", block)
        if isinstance(slides, bool):
            return int(size) if slides else 0
        if rule is None:
            return int(size)
        at = block % rule.period
        full = at == 0 if rule.full_first else at == rule.period - 1
        return 0 if full else int(size)

    def _causal(self) -> str:
        build = self._builder
        tokens = build.op("Shape", "input_ids", start=1, end=2)
        total = build.op("Squeeze", self.total)
        past = build.op("Sub", total, build.op("Squeeze", tokens))
        one = build.constant(1)
        self._query = build.op("Unsqueeze", build.op("Range", past, total, one), build.constant([1]))
        self._key = build.op("Unsqueeze", build.op("Range", build.constant(0), total, one), build.constant([0]))
        real = build.cast(build.op("Unsqueeze", "attention_mask", build.constant([1, 2])), DTYPES["BOOL"])
        itself = build.op("Equal", self._key, self._query)
        seen = build.op("Or", real, itself)
        return build.op("And", build.op("LessOrEqual", self._key, self._query), seen)
