"""Mixtures of experts: who is chosen for a token, and the chosen ones alone computed.

Rows of tokens are sorted by their experts, and every expert multiplies its own, of which there may be none: three
products for each expert of a block, whatever the number of tokens, by standard operators. Then the rows go back to
their tokens.

Source: `build_moe_ffn` of llama.cpp, whose keys and tensors these are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from converter.architectures.traits import CHOSEN, SIGMOID, SOFTMAX, SQRT_SOFTPLUS
from converter.graphs.builder import Builder
from converter.graphs.layers import Layers
from converter.tensors.dtypes import DTYPES

#: How names of stacked matrices end: those of experts, and of streams beside the residual.
STACKED = (
    *(f".ffn_{part}_exps.weight" for part in ("gate", "up", "down", "gate_up")),
    *(f"altup_{part}.weight" for part in ("proj", "unembd_proj")),
)
LEAST_SUM = 6.103515625e-5  # what a sum of weights is at least: F16's smallest normal number
Activation = Callable[[str, str | None], str]


def is_stacked(name: str) -> bool:
    """Whether a tensor of a GGUF has a matrix for each expert (or stream), which a graph multiplies by one by one."""
    return name.endswith(STACKED)


@dataclass(frozen=True)
class _Sorted:
    """Rows in the order of their experts: the expert of each, and how many each expert has."""

    experts: str
    counts: str


class Experts:
    """Writes the mixture of any block."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._builder, self._model, self._matrices = layers.build, layers.model, layers.matrices

    def __call__(self, x: str, block: int, activated: Activation, routed: str) -> str:
        """The sum of the chosen experts' outputs, times their weights: (batch, tokens, row) -> the same.

        Args:
            x: what experts are given.
            block: whose they are.
            activated: of (gate or up, up or None), what goes into the last matrix.
            routed: what the router is given.
        """
        build, name = self._builder, f"blk.{block}."
        n_embd = self._layers.needed(f"{name}ffn_down_exps.weight").info.shape[1]
        chosen, weights, n_used = self._routed(routed, block)
        flat = build.reshape(chosen, -1)
        order, back = self._sorted(flat)
        rows = build.op("Gather", build.reshape(x, -1, n_embd), build.op("Div", order, build.constant(n_used)))
        if early := self._model.facts.weights_first:
            sorted_weights = build.op("Gather", build.reshape(weights, -1, 1), order)
            rows = build.op("Mul", rows, sorted_weights)
        owners = build.op("Gather", flat, order)
        counts = self._counts(flat, self._n_expert(block))
        made = self._feed_forward(rows, name, _Sorted(owners, counts), activated)
        made = build.reshape(build.op("Gather", made, back), -1, n_used, n_embd)
        if not early:
            made = build.op("Mul", made, build.op("Unsqueeze", weights, build.constant([-1])))
        total = build.op("ReduceSum", made, build.constant([1]), keepdims=0)
        return build.op("Reshape", total, build.op("Shape", x))

    def _feed_forward(self, rows: str, name: str, own: _Sorted, activated: Activation) -> str:
        if self._layers.has(f"{name}ffn_gate_up_exps"):
            inner = self._layers.needed(f"{name}ffn_gate_up_exps.weight").info.shape[1] // 2
            gate, up = self._builder.split(self._product(rows, f"{name}ffn_gate_up_exps", own), (inner, inner))
            return self._product(activated(gate, up), f"{name}ffn_down_exps", own)
        up = self._product(rows, f"{name}ffn_up_exps", own)
        if not self._layers.has(f"{name}ffn_gate_exps"):
            return self._product(activated(up, None), f"{name}ffn_down_exps", own)
        gate = self._product(rows, f"{name}ffn_gate_exps", own)
        return self._product(activated(gate, up), f"{name}ffn_down_exps", own)

    def _product(self, rows: str, name: str, own: _Sorted) -> str:
        """Every row times its expert's matrix, plus its bias where there is one."""
        self._layers.needed(f"{name}.weight")
        made = self._matrices.multiply_each(rows, self._model.experts(f"{name}.weight"), own.counts)
        bias = self._layers.tensor(f"{name}.bias")
        if bias is None:
            return made
        return self._builder.op("Add", made, self._builder.op("Gather", self._matrices.plain(bias), own.experts))

    # ------------------------------------------------------------------------------------------- routing

    def _n_expert(self, block: int) -> int:
        router = self._layers.needed(f"blk.{block}.ffn_gate_inp.weight")
        return router.info.shape[0]

    def _routed(self, x: str, block: int) -> tuple[str, str, int]:
        """Experts of each row and their weights, (rows, n_used) both; and n_used."""
        build, model, name = self._builder, self._model, f"blk.{block}."
        n_used = model.size("expert_used_count", block)
        logits = build.reshape(self._layers.linear(x, f"{name}ffn_gate_inp"), -1, self._n_expert(block))
        if model.facts.sparse_mixer:
            return (*self._one_by_one(logits, n_used, model.facts.sparse_mixer), n_used)
        gating = int(model.key("expert_gating_func", default=0)) or model.facts.gating or SOFTMAX
        probabilities = _GATES[gating](build, logits)
        scores = logits if model.facts.chosen_by_logits else probabilities
        for bias in (f"{name}exp_probs_b.bias", f"{name}exp_probs_b"):  # some write it without the ending
            scores = self._layers.biased(scores, bias)
        scores = self._in_groups(scores, self._n_expert(block))
        chosen = build.ops("TopK", scores, build.constant([n_used]), outputs=("", ""), axis=-1)[1]
        weights = self._weighed(build.op("GatherElements", probabilities, chosen, axis=-1), gating)
        scales = self._layers.tensor(f"{name}ffn_down_exps.scale")
        if scales is not None:
            weights = build.op("Mul", weights, build.op("Gather", self._matrices.plain(scales), chosen))
        return chosen, weights, n_used

    def _one_by_one(self, logits: str, n_used: int, tolerance: float) -> tuple[str, str]:
        """SparseMixer: the best expert, then the best of the others, each weighed among those nearly as good."""
        build, left, below = self._builder, logits, self._builder.number(-np.inf)
        size, chosen, weights = build.op("Abs", logits), [], []
        for _ in range(n_used):
            best, which = build.ops("TopK", left, build.constant([1]), outputs=("", ""), axis=-1)
            distance = build.op("Div", build.op("Sub", best, logits), build.op("Max", size, best))
            is_far = build.op("Greater", distance, build.number(tolerance))
            gates = build.op("Softmax", build.op("Where", is_far, below, left), axis=-1)
            weights.append(build.op("GatherElements", gates, which, axis=-1))
            chosen.append(which)
            nothing = build.op("Expand", below, build.op("Shape", which))
            left = build.op("ScatterElements", left, which, nothing, axis=-1)
        return build.op("Concat", *chosen, axis=-1), build.op("Concat", *weights, axis=-1)

    def _weighed(self, weights: str, gating: int) -> str:
        build, model = self._builder, self._model
        if gating == CHOSEN:
            weights = build.op("Softmax", weights, axis=-1)
        norm = model.facts.weights_norm
        if model.key("expert_weights_norm", default=False) if norm is None else norm:
            total = build.op("ReduceSum", weights, build.constant([-1]), keepdims=1)
            weights = build.op("Div", weights, build.op("Max", total, build.number(LEAST_SUM)))
        scale = float(model.key("expert_weights_scale", default=0.0))
        return weights if scale in (0.0, 1.0) else build.op("Mul", weights, build.number(scale))

    def _in_groups(self, scores: str, n_expert: int) -> str:
        """Scores, below all others those of experts outside the best groups: by the sum of the two best of each."""
        build, model = self._builder, self._model
        n_groups = int(model.key("expert_group_count", default=0))
        if n_groups <= 1:
            return scores
        apart = build.reshape(scores, 0, n_groups, n_expert // n_groups)
        n_best = build.constant([int(model.number(model.facts.best_of_group))])
        best = build.ops("TopK", apart, n_best, outputs=("", ""), axis=-1)[0]
        total = build.op("ReduceSum", best, build.constant([-1]), keepdims=0)
        n_used = build.constant([model.size("expert_group_used_count")])
        last = build.op("ReduceMin", build.ops("TopK", total, n_used, outputs=("", ""), axis=-1)[0],
                        build.constant([-1]), keepdims=1)  # fmt: skip
        is_in = build.op("Unsqueeze", build.op("GreaterOrEqual", total, last), build.constant([-1]))
        return build.reshape(build.op("Where", is_in, apart, build.number(-np.inf)), 0, n_expert)

    # ------------------------------------------------------------------------------------------- sorting

    def _sorted(self, experts: str) -> tuple[str, str]:
        """The order that brings the same experts together, and the one that undoes it."""
        order = self._ascending(experts)
        return order, self._ascending(order)

    def _ascending(self, numbers: str) -> str:
        build = self._builder
        return build.ops("TopK", numbers, build.op("Shape", numbers), outputs=("", ""), axis=0, largest=0)[1]

    def _counts(self, experts: str, n_expert: int) -> str:
        """How many rows each expert has."""
        build = self._builder
        column = build.op("Unsqueeze", experts, build.constant([-1]))
        same = build.op("Equal", column, build.constant(np.arange(n_expert)))
        return build.op("ReduceSum", build.cast(same, DTYPES["I64"]), build.constant([0]), keepdims=0)


_GATES: dict[int, Callable[[Builder, str], str]] = {
    SOFTMAX: lambda build, x: build.op("Softmax", x, axis=-1),
    SIGMOID: lambda build, x: build.op("Sigmoid", x),
    CHOSEN: lambda _, x: x,
    SQRT_SOFTPLUS: lambda build, x: build.op("Sqrt", build.op("Softplus", x)),
}
