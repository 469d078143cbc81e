"""Several streams beside each other (AltUp), of which one goes through a block: what the block makes of it changes the
others, too. (batch, tokens, streams, elements), and where a model has one stream, that as it is.

Source: llama.cpp's gemma3n.cpp, whose tensors and keys these are; transformers' Gemma3nTextAltUp.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from converter.graphs.layers import Layers
from converter.tensors.dtypes import F32

LEAST_SQUARE = 1e-5  # what the mean of squares is at least that a stream is divided by the root of


class AltUp:
    """Writes what leads from one stream to several, through a block, and back."""

    def __init__(self, layers: Layers) -> None:
        self._layers, self._build, self._model = layers, layers.build, layers.model
        self.n = int(self._model.key("altup.num_inputs", default=1))
        self._active = int(self._model.key("altup.active_idx", default=0))

    def spread(self, x: str) -> str:
        """The first stream is the embedding, the others are made of it, as large as it."""
        if self.n == 1:
            return x
        return self._stacked([x, *self._others([x] * (self.n - 1), "altup_proj.weight", x)])

    def joined(self, streams: str) -> str:
        """The mean of all, made as large as the first."""
        if self.n == 1:
            return streams
        build = self._build
        first, *others = (self._stream(streams, index) for index in range(self.n))
        every = self._stacked([first, *self._others(others, "altup_unembd_proj.weight", first)])
        return build.op("ReduceMean", every, build.constant([2]), keepdims=0)

    def through(self, streams: str, block: int, part: Callable[[str], str], more: Callable[[str], str]) -> str:
        """Streams behind a block.

        Args:
            streams: before it.
            block: whose tensors these are.
            part: what the block makes of the stream that goes through it.
            more: what is added to all streams but the first, of that stream behind the block.
        """
        build, name = self._build, f"blk.{block}.altup_"
        expected = self._predicted(streams, name)
        made = part(self._stream(expected, self._active))
        corrected = self._corrected(expected, made, name)
        scale = self._layers.matrices.plain(self._layers.needed(f"{name}correct_scale.weight"))
        added = more(build.op("Mul", self._stream(corrected, self._active), scale))
        others = build.number([[float(index > 0)] for index in range(self.n)])
        return build.op("Add", corrected, build.op("Mul", self._beside(added, 2), others))

    def _predicted(self, streams: str, name: str) -> str:
        """What all streams are expected to be behind a block: themselves, and of all others some."""
        build = self._build
        weights = self._routed(self._stream(streams, self._active), name, "predict_coef")
        weights = build.reshape(weights, 0, 0, self.n, self.n)
        return build.op("Add", build.op("MatMul", weights, streams), streams)

    def _corrected(self, expected: str, made: str, name: str) -> str:
        """Streams moved by what a block made otherwise than it was expected."""
        build = self._build
        news = build.op("Sub", made, self._stream(expected, self._active))
        weights = build.op("Add", self._routed(made, name, "correct_coef"), build.number(1))
        return build.op("Add", expected, build.op("Mul", self._beside(news, 2), self._beside(weights, -1)))

    def _routed(self, x: str, name: str, coefficients: str) -> str:
        """Weights that a stream gives to others."""
        layers = self._layers
        normed = layers.norm(x, f"{name}router_norm") or x
        routed = layers.linear(layers.times(normed, 1 / self._model.size("embedding_length")), f"{name}router")
        return layers.linear(self._build.op("Tanh", routed), f"{name}{coefficients}")

    def _others(self, streams: list[str], name: str, like: str) -> list[str]:
        """Streams times a matrix each, as large as `like`."""
        build, multiply = self._build, self._layers.matrices.multiply
        self._layers.needed(name)
        size, least = build.op("Sqrt", self._squares(like)), build.constant(LEAST_SQUARE, np.float32)
        found = []
        for x, matrix in zip(streams, self._model.experts(name), strict=True):
            made = multiply(x, matrix)
            own = build.op("Sqrt", build.op("Max", self._squares(made), least))
            scaled = build.op("Div", build.op("Mul", self._wide(made), size), own)
            found.append(scaled if build.dtype is F32 else build.cast(scaled, build.dtype))
        return found

    def _squares(self, x: str) -> str:
        """Their mean, in F32."""
        wide = self._wide(x)
        return self._build.op("ReduceMean", self._build.op("Mul", wide, wide), self._build.constant([-1]), keepdims=1)

    def _wide(self, x: str) -> str:
        return x if self._build.dtype is F32 else self._build.cast(x, F32)

    def _stream(self, streams: str, index: int) -> str:
        return self._build.op("Gather", streams, self._build.constant(index), axis=2)

    def _stacked(self, streams: list[str]) -> str:
        return self._build.op("Concat", *(self._beside(x, 2) for x in streams), axis=2)

    def _beside(self, x: str, axis: int) -> str:
        return self._build.op("Unsqueeze", x, self._build.constant([axis]))
