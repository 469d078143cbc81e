"""What a token gives each block besides the residual: a short vector of its own, by the token's id.

Source: llama.cpp's gemma4.cpp and gemma3n.cpp (`project_per_layer_inputs`), whose tensors these are.
"""

from __future__ import annotations

import math

from converter.errors import UnsupportedFeature
from converter.graphs.feedforward import FeedForward
from converter.graphs.layers import Layers

#: A token's own vector and what its embedding makes of it are added, and no larger than each.
HALF = math.sqrt(0.5)


class PerBlock:
    """Writes these vectors, and what a block makes of its own."""

    def __init__(self, layers: Layers, feed_forward: FeedForward) -> None:
        self._layers, self._feed_forward = layers, feed_forward
        self._build, self._model = layers.build, layers.model
        self._vectors: tuple[str, ...] = ()

    def prepare(self, embedded: str) -> None:
        """The vectors of all blocks, where the model has them; `embedded` is what the first block is given."""
        table = self._layers.tensor("per_layer_token_embd.weight")
        if table is None:
            return
        build, layers, n_layer = self._build, self._layers, self._model.size("block_count")
        width = self._model.size("embedding_length_per_layer_input")
        if table.info.row != n_layer * width:
            raise UnsupportedFeature(f"per_layer_token_embd.weight: {table.info.row} elements, not {n_layer} x {width}")
        own = layers.times(layers.matrices.rows(table, "input_ids"), math.sqrt(width))
        made = layers.linear(embedded, "per_layer_model_proj")
        made = layers.times(made, 1 / math.sqrt(self._model.size("embedding_length")))
        made = build.reshape(made, 0, 0, n_layer, width)
        made = build.reshape(layers.norm(made, "per_layer_proj_norm") or made, 0, 0, -1)
        self._vectors = build.split(layers.times(build.op("Add", made, own), HALF), (width,) * n_layer)

    def has(self, block: int) -> bool:
        """Whether a block is given such a vector."""
        return self._layers.has(f"blk.{block}.inp_gate")

    def __call__(self, x: str, block: int) -> str:
        """What a block makes of its vector, by a gate of `x`: (batch, tokens, elements)."""
        name = f"blk.{block}."
        gate = self._layers.linear(x, f"{name}inp_gate")
        made = self._layers.linear(self._feed_forward.activated(gate, self._vectors[block]), f"{name}proj")
        return self._layers.norm(made, f"{name}post_norm") or made
