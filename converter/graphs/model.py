"""A model as graphs are written of it: its keys, its tensors under ggml's names, its architecture's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from converter.architectures.spec import Architecture, TensorRule
from converter.architectures.traits import Blocks, Encoder
from converter.errors import UnsupportedFeature
from converter.mapping.detect import detect_gguf
from converter.mapping.hparams import HParams, Scope, read_metadata
from converter.mapping.names import RuleNames, fill, resolved
from converter.mapping.tensors import bound
from converter.metadata import Array, Metadata, Value
from converter.tensors.expressions import compute
from converter.tensors.ops import At, Op, Rope, Unstack
from converter.tensors.streams import compose
from converter.tensors.tensor import LazyTensor


@dataclass(frozen=True)
class Model:
    """Keys, tensors and facts; raises nothing of its own but where a key that is needed is not there."""

    architecture: Architecture
    metadata: Metadata
    tensors: Mapping[str, LazyTensor]
    hparams: HParams

    @classmethod
    def of(cls, metadata: Metadata, tensors: Mapping[str, LazyTensor], arch: str | None = None) -> Model:
        """The model that keys and tensors of a GGUF make.

        Raises:
            ArchitectureError: the architecture or its keys.
        """
        architecture = detect_gguf(metadata, arch)
        embedding = tensors.get("token_embd.weight")
        n_rows = embedding.info.shape[0] if embedding and embedding.info.shape else None
        hparams = read_metadata(architecture, metadata, n_rows, tensors)
        architecture = resolved(architecture, Scope(hparams, tensors).at(None))
        return cls(architecture, metadata, tensors, hparams)

    @property
    def facts(self) -> Blocks:
        """How its blocks compute: whoever writes a graph has one of both."""
        return self.architecture.traits.decoder or self.architecture.traits.encoder or Blocks()

    @property
    def is_causal(self) -> bool:
        """Whether its tokens see earlier ones only."""
        return not isinstance(self.facts, Encoder) and bool(self.key("attention.causal", default=True))

    @property
    def has_cache(self) -> bool:
        """Whether something is kept of its tokens for later ones: not where a text is read at once, as a whole."""
        return self.is_causal and not self.is_of_texts

    @property
    def is_of_texts(self) -> bool:
        """Whether it makes vectors of texts or of their tokens, or tells texts apart."""
        return bool(self.key("pooling_type", default=0)) or "dense_2.weight" in self.tensors

    @cached_property
    def _scope(self) -> Scope:
        return Scope(self.hparams, self.tensors)

    def holds(self, condition: str, block: int | None = None) -> bool:
        """Whether a condition does; an empty one always does."""
        return not condition or self._scope.holds(condition, block)

    def number(self, expression: str, block: int | None = None) -> float:
        """What an expression makes."""
        return float(compute(expression, self._scope.at(block)))

    def key(self, name: str, block: int = 0, default: Any = None) -> Any:
        """The value of `ARCHITECTURE.name`, or its element of a block."""
        found = self.metadata.get(f"{self.architecture.gguf}.{name}")
        if isinstance(found, Array):
            values = found.values.tolist() if isinstance(found.values, np.ndarray) else list(found.values)
            return values[block] if block < len(values) else default
        return found.value if isinstance(found, Value) else default

    def size(self, name: str, block: int = 0, default: int | None = None) -> int:
        """A key that is a whole number.

        Raises:
            UnsupportedFeature: it is not there, and nothing stands in for it.
        """
        found = self.key(name, block, default)
        if isinstance(found, bool) or not isinstance(found, int):
            raise UnsupportedFeature(f"{self.architecture.gguf}.{name}: not there, a graph needs it")
        return found

    @property
    def n_layer(self) -> int:
        """Blocks of the model itself, without those that predict further tokens."""
        return self.size("block_count") - int(self.key("nextn_predict_layers", default=0))

    @cached_property
    def read(self) -> frozenset[str]:
        """The tensors that a graph is made of: not those of blocks that predict further tokens, nor what is there
        and never used."""
        return frozenset(name for name in self.tensors if not (self._is_beyond(name) or self._is_idle(name)))

    def _is_beyond(self, name: str) -> bool:
        parts = name.split(".")
        return parts[0] == "blk" and parts[1].isdigit() and int(parts[1]) >= self.n_layer

    def _is_idle(self, name: str) -> bool:
        match = self._rules.find(name, self._applies)
        return match is not None and match.rule.idle

    def tensor(self, name: str) -> LazyTensor | None:
        """A tensor under the name that the graph has for it; None where there is none."""
        return self._named.get(name)

    def experts(self, name: str) -> list[LazyTensor]:
        """The matrices of a tensor that has one for each expert, each under a name of its own."""
        whole = self._named[name]
        n_expert = whole.info.shape[0]
        match = self._rules.find(name, self._applies)
        rule = match.rule if match and _is_alone(match.rule) else None
        template = rule.hf[0] if rule and rule.stacked else f"{whole.name}.{{expert}}"
        names = [fill(template, match.block if match else None, expert) for expert in range(n_expert)]
        return compose((Unstack(n_expert),), [whole], names)

    @cached_property
    def _rules(self) -> RuleNames:
        return RuleNames([rule for rule in self.architecture.tensors if not rule.read_only], "gguf")

    def _applies(self, rule: TensorRule, block: int | None) -> bool:
        return self._scope.holds(rule.when, block) or bool(rule.generator)

    @cached_property
    def _named(self) -> Mapping[str, LazyTensor]:
        found = {}
        for name, tensor in self.tensors.items():
            match = self._rules.find(name, self._applies)
            found[name] = self._as_stored(tensor, match.rule, match.block) if match else tensor
        return found

    def _as_stored(self, tensor: LazyTensor, rule: TensorRule, block: int | None) -> LazyTensor:
        """A tensor under its Hugging Face name where it is one tensor there, too, with the rows in their order."""
        if not _is_alone(rule):
            return tensor
        ropes = self._ropes(rule, block)
        name = fill(rule.hf[0].replace(".{expert}", ""), block)
        undone = tuple(op.inverse() for op in reversed(ropes))
        return compose(undone, [tensor], [name])[0] if undone else tensor.renamed(name)

    def _ropes(self, rule: TensorRule, block: int | None) -> tuple[Rope, ...]:
        return tuple(op for op in bound(rule, self._scope, block) if isinstance(op, Rope))

    def undone(self, name: str) -> tuple[Rope, ...]:
        """The rotations of rows that a tensor has in a GGUF and not in the graph."""
        match = self._rules.find(name, self._applies)
        return self._ropes(match.rule, match.block) if match and _is_alone(match.rule) else ()

    def neighbours(self, name: str) -> bool:
        """Whether pairs that rotate are neighbours in the rows of a tensor, as the graph has it."""
        match = self._rules.find(name, self._applies)
        if match is None or not any(isinstance(_moving(op), Rope) for op in match.rule.ops):
            return self.facts.neighbours
        return not _is_alone(match.rule)


def _is_alone(rule: TensorRule) -> bool:
    """Whether one tensor of Hugging Face's is one of ggml's."""
    return len(rule.hf) == len(rule.gguf) == 1


def _moving(op: Op) -> Op:
    """The op itself, or the one that it does to some of the tensors in flight."""
    return op.op if isinstance(op, At) else op
