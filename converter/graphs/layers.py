"""Linear layers and norms of a model, by the names of their tensors."""

from __future__ import annotations

from collections.abc import Sequence

from converter.errors import UnsupportedFeature
from converter.formats.onnx.program import Size, Value
from converter.graphs.builder import BATCH, Builder
from converter.graphs.linear import Matrices
from converter.graphs.model import Model
from converter.tensors.dtypes import DType
from converter.tensors.tensor import LazyTensor


class Layers:
    """What the parts of a graph are made of.

    `used` collects the tensors that they looked at, `states` what is kept of earlier tokens: as it comes in and as it
    goes out; `slot` is the number that the current block's are known by, of its own each time that it is gone through.
    """

    def __init__(self, builder: Builder, model: Model, matrices: Matrices) -> None:
        self.build = builder
        self.model = model
        self.matrices = matrices
        self.used: set[str] = set()
        self.states: list[tuple[Value, Value]] = []
        self.slot = 0

    def keep(self, past: str, present: str, dtype: DType, shape: Sequence[Size], after: Sequence[Size] = ()) -> None:
        """A state (batch, ...) comes in as `past` and goes out as `present`, of another shape where `after` says so."""
        ends = zip((past, present), (shape, after or shape), strict=True)
        first, last = (Value(name, dtype.name, (BATCH, *sizes)) for name, sizes in ends)
        self.states.append((first, last))

    def has(self, name: str) -> bool:
        """Whether there is a matrix (or a norm) of that name."""
        return self.model.tensor(f"{name}.weight") is not None

    def has_norm(self, name: str) -> bool:
        """Whether there is a norm of that name; some have no ending."""
        return self.has(name) or self.model.tensor(name) is not None

    def tensor(self, name: str) -> LazyTensor | None:
        """A tensor that the graph uses; None where there is none."""
        self.used.add(name)
        return self.model.tensor(name)

    def needed(self, name: str) -> LazyTensor:
        """A tensor that the graph cannot do without.

        Raises:
            UnsupportedFeature: there is none.
        """
        found = self.tensor(name)
        if found is None:
            raise UnsupportedFeature(f"{self.model.architecture.gguf}: no {name}, a graph needs it")
        return found

    def linear(self, x: str, name: str) -> str:
        """x @ weight.T + bias, where there is one."""
        return self.biased(self.matrices.multiply(x, self.needed(f"{name}.weight")), f"{name}.bias")

    def biased(self, x: str, name: str) -> str:
        """x + a tensor, where there is one."""
        bias = self.tensor(name)
        return x if bias is None else self.build.op("Add", x, self.matrices.plain(bias))

    def norm(self, x: str, name: str, epsilon: float | None = None) -> str | None:
        """The norm of that name; None where the model has none. `epsilon` stands for the one of the keys."""
        weight, bias = self.tensor(f"{name}.weight") or self.tensor(name), self.tensor(f"{name}.bias")
        if weight is None:
            return None
        more = None if bias is None else self.matrices.plain(bias)
        return self.normalised(x, self.matrices.plain(weight), more, epsilon)

    def first_norm(self, x: str, name: str) -> str | None:
        """The norm before a part, which some models have without weights."""
        found = self.norm(x, name)
        if found is None and self.model.facts.plain_norm:
            return self.normalised(x, self.ones(self.model.size("embedding_length")))
        return found

    def normalised(self, x: str, weight: str, bias: str | None = None, epsilon: float | None = None) -> str:
        """The norm that the model's keys name."""
        rms, other = (self.model.key(f"attention.layer_norm_{name}") for name in ("rms_epsilon", "epsilon"))
        if bias is None and (self.model.facts.rms or (rms is not None and other is None)):
            epsilon = float(epsilon or rms or other)
            return self.build.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1)
        epsilon = float(epsilon or other or rms or 1e-5)
        more = () if bias is None else (bias,)
        return self.build.op("LayerNormalization", x, weight, *more, axis=-1, epsilon=epsilon, stash_type=1)

    def ones(self, size: int) -> str:
        """A weight that changes nothing."""
        return self.build.op("Expand", self.build.number(1), self.build.constant([size]))

    def times(self, x: str, factor: float | None) -> str:
        """x times a number; a key that is not there, or is zero, changes nothing."""
        return x if factor in (None, 0.0, 1.0) else self.build.op("Mul", x, self.build.number(float(factor or 1)))
