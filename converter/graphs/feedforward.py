"""The feed-forward part of a block: gated or not, dense or a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

from converter.graphs.builder import Builder
from converter.graphs.linear import Matrices
from converter.graphs.model import Model

Linear = Callable[[str, str], str]


class FeedForward:
    """Writes the feed-forward part of any block."""

    def __init__(self, builder: Builder, model: Model, matrices: Matrices) -> None:
        self._builder = builder
        self._model = model
        self._matrices = matrices
        self.used: set[str] = set()

    def __call__(self, x: str, block: int, linear: Linear) -> str:
        return self._dense(x, f"blk.{block}.ffn_", linear)

    def _dense(self, x: str, name: str, linear: Linear) -> str:
        build, model = self._builder, self._model
        up = linear(x, f"{name}up")
        if model.tensor(f"{name}gate.weight") is not None:
            return linear(build.op("Mul", self.activated(linear(x, f"{name}gate")), up), f"{name}down")
        width = model.tensor(f"{name}down.weight")
        inner = width.info.row if width is not None else 0
        matrix = model.tensor(f"{name}up.weight")
        if matrix is not None and matrix.info.shape[0] == 2 * inner:
            first, second = build.split(up, (inner, inner))
            gate, up = (first, second) if model.facts.gate_first else (second, first)
            return linear(build.op("Mul", self.activated(gate), up), f"{name}down")
        return linear(self.activated(up), f"{name}down")

    def activated(self, x: str) -> str:
        """The function of the architecture."""
        return ACTIVATIONS[self._model.facts.activation](self._builder, x)


def _relu2(build: Builder, x: str) -> str:
    positive = build.op("Relu", x)
    return build.op("Mul", positive, positive)


ACTIVATIONS: dict[str, Callable[[Builder, str], str]] = {
    "silu": lambda build, x: build.op("Mul", x, build.op("Sigmoid", x)),
    "gelu": lambda build, x: build.op("Gelu", x, approximate="none"),
    "gelu_tanh": lambda build, x: build.op("Gelu", x, approximate="tanh"),
    "relu": lambda build, x: build.op("Relu", x),
    "relu2": _relu2,
}
