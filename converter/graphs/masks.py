"""Which tokens a token sees: earlier ones, an encoder's all; none of padding, in some blocks those of a window.

One mask a kind. A token always sees itself, so that rows of padding stay finite: a NaN there would come back through
what is multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converter.graphs.builder import Builder
from converter.graphs.model import Model
from converter.metadata import Array
from converter.tensors.dtypes import DTYPES


class Masks:
    """Masks (batch, 1, tokens, tokens so far) of booleans, made when a block first asks."""

    def __init__(self, builder: Builder, model: Model) -> None:
        self._builder = builder
        self._model = model
        self.total = builder.op("Shape", "attention_mask", start=1, end=2)
        self._made: dict[int, str] = {}
        self._sloped: dict[tuple[int, tuple[float, ...]], str] = {}
        self._query = self._key = self._real = ""

    def of(self, block: int) -> str:
        """The mask of a block."""
        window = self.window(block)
        if window not in self._made:
            with self._builder.outside_blocks():
                if 0 not in self._made:
                    self._made[0] = self._seen()
                if window:
                    near = self._in_chunk(window) if self._model.facts.chunked else self._in_window(window)
                    self._made[window] = self._builder.op("And", self._made[0], near)
        return self._made[window]

    def sloped(self, block: int, slopes: Sequence[float]) -> str:
        """What ALiBi adds to scores, below all where nothing is seen: (batch, heads, tokens, tokens so far)."""
        build, mask, key = self._builder, self.of(block), (self.window(block), tuple(slopes))
        if key not in self._sloped:
            with build.outside_blocks():
                far = build.cast(build.op("Neg", self._distance()), build.dtype)
                steep = build.number(np.reshape(slopes, (1, -1, 1, 1)))
                self._sloped[key] = build.op("Where", mask, build.op("Mul", steep, far), build.number(-np.inf))
        return self._sloped[key]

    def _in_window(self, size: int) -> str:
        build = self._builder
        if not self._model.is_causal:  # half of it to either side
            return build.op("LessOrEqual", self._distance(), build.constant([size // 2]))
        return build.op("Greater", self._key, build.op("Sub", self._query, build.constant([size])))

    def _distance(self) -> str:
        return self._builder.op("Abs", self._builder.op("Sub", self._key, self._query))

    def _in_chunk(self, size: int) -> str:
        """Whether two tokens are of one chunk of the text, which begins behind the padding."""
        build, length = self._builder, self._builder.constant(size)
        one = build.constant(1)
        places = build.op("Sub", build.op("CumSum", "attention_mask", one), one)
        keys = build.op("Unsqueeze", build.op("Div", places, length), build.constant([1, 2]))
        queries = build.op("Unsqueeze", build.op("Div", "position_ids", length), build.constant([1, 3]))
        return build.op("Equal", queries, keys)

    def real(self) -> str:
        """One of every token, zero of padding: (batch, tokens, 1)."""
        if not self._real:
            build = self._builder
            with build.outside_blocks():
                first = build.op("Neg", build.op("Shape", "input_ids", start=1, end=2))
                new = build.slice("attention_mask", first, axis=1)
                self._real = build.cast(build.op("Unsqueeze", new, build.constant([-1])), build.dtype)
        return self._real

    def window(self, block: int) -> int:
        """Tokens that a block sees, itself among them; 0 where it sees all."""
        model, rule = self._model, self._model.architecture.traits.window
        size = model.key("attention.sliding_window", default=rule.size if rule else 0)
        if not size:
            return 0
        pattern = model.metadata.get(f"{model.architecture.gguf}.attention.sliding_window_pattern")
        if isinstance(pattern, Array):
            return int(size) if pattern.values[block] else 0
        if rule is None:
            return int(size)
        period = int(model.key("attention.sliding_window_pattern", default=rule.period))
        at = block % period
        full = at == 0 if rule.full_first else at == period - 1
        return 0 if full else int(size)

    def _seen(self) -> str:
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
        if not self._model.is_causal:
            return seen
        return build.op("And", build.op("LessOrEqual", self._key, self._query), seen)
