"""The feed-forward part of a block: gated or not, dense or a mixture of experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

from converter.errors import UnsupportedFeature
from converter.graphs.builder import Builder
from converter.graphs.experts import Activation, Experts
from converter.graphs.layers import Layers


class FeedForward:
    """Writes the feed-forward part of any block."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._builder, self._model = layers.build, layers.model
        self._experts = Experts(layers)

    def has(self, block: int) -> bool:
        """Whether a block has such a part."""
        return any(self._layers.has(f"blk.{block}.ffn_down{end}") for end in ("", "_exps"))

    def __call__(self, x: str, block: int, residual: str, given: str) -> str:
        """What the part makes of `x`, which is `residual` behind its norm; `given` is what the block got."""
        name, has = f"blk.{block}.ffn_", self._layers.has
        dense = [self._normed(self._dense(x, name, "", block), block, 1)] if has(f"{name}down") else []
        experts = [self._mixture(x, block, residual, given)] if has(f"{name}down_exps") else []
        shared = [self._shared(x, name, block)] if has(f"{name}down_shexp") else []
        made = reduce(lambda a, b: self._builder.op("Add", a, b), (*dense, *experts, *shared))
        return self._layers.times(made, 0.5) if shared and self._model.facts.shared_mean else made

    def _normed(self, made: str, block: int, part: int) -> str:
        """What the dense part (1) or the experts (2) made, by a norm of their own where there is one."""
        return self._layers.norm(made, f"blk.{block}.post_ffw_norm_{part}") or made

    def _mixture(self, x: str, block: int, residual: str, given: str) -> str:
        """The chosen experts, by a norm of their own where they have one: of what stands before the attention, or
        behind it.

        They may work on a shorter vector than the model's.
        """
        norm, name = self._layers.norm, f"blk.{block}."
        own = norm(given, f"{name}ffn_norm_exps") or norm(residual, f"{name}pre_ffw_norm_2") or x
        routed = self._scaled(residual, name) or (given if self._model.facts.routed_early else own)
        activated = self._bounded(float(self._model.key("swiglu_clamp_exp", block, 0.0)))
        if not self._layers.has(f"{name}ffn_latent_down"):
            return self._normed(self._experts(own, block, activated, routed), block, 2)
        made = self._experts(self._layers.linear(own, f"{name}ffn_latent_down"), block, activated, routed)
        return self._layers.linear(made, f"{name}ffn_latent_up")

    def _scaled(self, residual: str, name: str) -> str | None:
        """What a router with scales for its input is given: a norm by these; None where it has none."""
        scale = self._layers.tensor(f"{name}ffn_gate_inp.scale")
        if scale is None:
            return None
        normed = self._layers.normalised(residual, self._layers.matrices.plain(scale))
        return self._layers.times(normed, 1 / math.sqrt(scale.info.row))

    def _shared(self, x: str, name: str, block: int) -> str:
        """The experts that see every token, by a gate of their own where they have one."""
        made = self._dense(x, name, "_shexp", block)
        if not self._layers.has(f"{name}gate_inp_shexp"):
            return made
        gate = self._builder.op("Sigmoid", self._layers.linear(x, f"{name}gate_inp_shexp"))
        return self._builder.op("Mul", made, gate)

    def _dense(self, x: str, name: str, end: str, block: int) -> str:
        build, model, down = self._builder, self._model, f"{name}down{end}"
        up = self._layers.linear(x, f"{name}up{end}")
        if self._layers.has(f"{name}gate{end}"):
            activated = self._bounded(float(model.key("swiglu_clamp_shexp", block, 0.0)))
            gate = self._sparse(self._layers.linear(x, f"{name}gate{end}"), block)
            return self._layers.linear(activated(gate, up), down)
        width, matrix = model.tensor(f"{down}.weight"), model.tensor(f"{name}up{end}.weight")
        inner = width.info.row if width is not None else 0
        if matrix is not None and matrix.info.shape[0] == 2 * inner:
            first, second = build.split(up, (inner, inner))
            gate, up = (first, second) if model.facts.gate_first else (second, first)
            return self._layers.linear(self.activated(gate, up), down)
        return self._layers.linear(self.activated(up), down)

    def _sparse(self, gate: str, block: int) -> str:
        """Of a gate what is so many standard deviations above the mean; a quantile of none is minus infinity."""
        quantile = float(self._model.key("activation_sparsity_scale", block, -math.inf))
        if math.isinf(quantile):
            return gate
        build, last = self._builder, self._builder.constant([-1])
        mean = build.op("ReduceMean", gate, last, keepdims=1)
        from_mean = build.op("Sub", gate, mean)
        variance = build.op("ReduceMean", build.op("Mul", from_mean, from_mean), last, keepdims=1)
        cut = build.op("Mul", build.op("Sqrt", variance), build.number(quantile))
        return build.op("Relu", build.op("Sub", from_mean, cut))

    def _bounded(self, limit: float) -> Activation:
        """The function of the architecture, of which neither side is larger than a limit; zero is none.

        Source: step35.cpp, maple.cpp; `ggml_swiglu_clamp`.
        """
        if not limit:
            return self.activated

        def bounded(x: str, up: str | None) -> str:
            build, most = self._builder, self._builder.number(limit)
            first = self._model.facts.bounded_first
            gate = self.activated(build.op("Min", x, most)) if first else build.op("Min", self.activated(x), most)
            return gate if up is None else build.op("Mul", gate, build.op("Clip", up, build.number(-limit), most))

        return bounded

    def activated(self, x: str, up: str | None = None) -> str:
        """The function of the architecture; of a gate, times what it lets through."""
        kind = self._model.key("hidden_activation", default=self._model.facts.activation)
        if kind == "clamped" and up is not None:
            return _clamped(self._builder, x, up)
        if kind not in ACTIVATIONS:
            raise UnsupportedFeature(f"{self._model.architecture.gguf}: {kind}, a function that no graph can have yet")
        made = ACTIVATIONS[kind](self._builder, x)
        return made if up is None else self._builder.op("Mul", made, up)


def _relu2(build: Builder, x: str) -> str:
    positive = build.op("Relu", x)
    return build.op("Mul", positive, positive)


def _clamped(build: Builder, gate: str, up: str) -> str:
    """The gated function of gpt-oss: neither side is large, and what is let through is one more."""
    gate = build.op("Min", gate, build.number(CLAMP))
    up = build.op("Clip", up, build.number(-CLAMP), build.number(CLAMP))
    opened = build.op("Mul", gate, build.op("Sigmoid", build.op("Mul", gate, build.number(CLAMPED_ALPHA))))
    return build.op("Mul", opened, build.op("Add", up, build.number(1)))


CLAMP, CLAMPED_ALPHA = 7.0, 1.702
ACTIVATIONS: dict[str, Callable[[Builder, str], str]] = {
    "silu": lambda build, x: build.op("Mul", x, build.op("Sigmoid", x)),
    "gelu": lambda build, x: build.op("Gelu", x, approximate="none"),
    "gelu_tanh": lambda build, x: build.op("Gelu", x, approximate="tanh"),
    "relu": lambda build, x: build.op("Relu", x),
    "relu2": _relu2,
    "tanh": lambda build, x: build.op("Tanh", x),
}
