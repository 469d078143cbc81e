"""Which tensors of a base an adapter changes, and how: modules found there, matrices turned as weights lie there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

from converter.adapters.changes import Added, Change, Dora, Hadamard, Kronecker, LowRank, Scaled, Tokens
from converter.adapters.factors import Matrix, Pair, matrix, pair, stacked
from converter.adapters.names import Module, Named, listed, named
from converter.adapters.settings import Settings
from converter.architectures.spec import Architecture
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, CorruptFile, ShapeMismatch, UnmatchedTensor, UnsupportedFeature, short
from converter.mapping.detect import detect
from converter.mapping.hparams import text_config
from converter.mapping.names import spellings
from converter.mapping.tensors import equal
from converter.tensors.dtypes import DType
from converter.tensors.tensor import LazyTensor

HEAD = "lm_head.weight"
# Ends of the names of embeddings that a head may be.
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
# What transformers holds as one parameter of all experts, and files hold as a matrix each: its parts, in their order.
_FUSED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
# What transformers calls otherwise than the files that it reads and writes.
_RENAMED = ((".mlp.", ".block_sparse_moe."),)
# Models whose parameters of experts lie (experts, inputs, outputs), by `model_type`.
_TURNED = ("gpt_oss", "openai_privacy_filter")


@dataclass
class Resolved:
    """What an adapter does to the tensors of a base, by their names there.

    `changes` are made in their order; `saved` replaces a tensor. `ranks` are those of its matrices; `scaled`: products
    are among the changes, which have a factor.
    """

    settings: Settings
    names: Named
    changes: dict[str, list[Change]] = field(default_factory=dict)
    saved: dict[str, LazyTensor] = field(default_factory=dict)
    ranks: set[int] = field(default_factory=set)
    scaled: bool = False

    def add(self, name: str, change: Change) -> None:
        self.changes.setdefault(name, []).append(change)


def resolve(
    base: Checkpoint,
    adapter: Checkpoint,
    rounded: Callable[[LazyTensor], DType | None] = lambda own: None,
    strength: float = 1.0,
) -> Resolved:
    """What `adapter` does to `base`, shapes and names checked; the values of neither are read.

    Args:
        base, adapter: the model, and the adapter as its reader opened it.
        rounded: the type of what is added to a tensor of the base where PEFT rounds that before the sum.
        strength: what the factor of each product is multiplied by.

    Raises:
        UnmatchedTensor: the base has no tensor for one of the adapter's, or its head is the embedding.
        ShapeMismatch: it is for a model of other sizes.
        UnsupportedFeature, CorruptFile: what is not computed here, or not whole.
    """
    resolver = _Resolver(base, adapter, Resolved(Settings.of(adapter), named(adapter)), rounded, strength)
    resolver.run()
    return resolver.found


def is_embedding(name: str) -> bool:
    """Whether a tensor is one that a head may be."""
    return name.endswith(_EMBEDDINGS)


def tied(base: Checkpoint) -> bool:
    """Whether a model says that its head is its embedding."""
    return any(part.get("tie_word_embeddings") is True for part in (base.config, text_config(base.config)))


class _Resolver:
    def __init__(
        self,
        base: Checkpoint,
        adapter: Checkpoint,
        found: Resolved,
        rounded: Callable[[LazyTensor], DType | None],
        strength: float,
    ) -> None:
        self.base, self.adapter, self.found, self.rounded, self.strength = base, adapter, found, rounded, strength
        self.settings, self.names = found.settings, found.names
        self.unmatched: list[str] = []

    def run(self) -> None:
        for module in self.names.modules.values():
            self._module(module)
        for name, tensor in self.names.saved.items():
            self._saved(name, tensor)
        for name, tensor in self.names.copies.items():
            own = self._partner(name)
            if own is not None:
                self._check(tensor, own, tensor.info.shape)
        if self.unmatched:
            raise UnmatchedTensor(
                f"{self.adapter.path}: {self.base.path.name} has no partner for {listed(self.unmatched)}\n"
                f"the adapter says that it was trained on {short(self.settings.base or 'nothing')}; is this that model?"
            )

    # ------------------------------------------------------------------------------------------- names

    def _partner(self, name: str) -> LazyTensor | None:
        """The base's tensor of a name, under whatever name the base has it."""
        own = self.base.tensors.get(name)
        if own is not None:
            return own
        wanted = [name, *(name.replace(old, new) for old, new in _RENAMED)]
        if self._architecture is not None:
            wanted = [each for one in wanted for each in spellings(self._architecture, one)]
        return next((self._spelled[each] for each in wanted if each in self._spelled), None)

    @cached_property
    def _architecture(self) -> Architecture | None:
        try:
            return detect(self.base.config)[0]
        except ArchitectureError:
            return None

    @cached_property
    def _spelled(self) -> Mapping[str, LazyTensor]:
        table: dict[str, LazyTensor] = {}
        for name, tensor in self.base.tensors.items():
            for each in spellings(self._architecture, name) if self._architecture else (name,):
                table.setdefault(each, tensor)
        return table

    def _weight(self, module: Module) -> LazyTensor | None:
        """The weight of a module."""
        own = self._partner(f"{module.name}.weight")
        if f"{module.name}.weight".endswith(HEAD):
            self._refuse_tied(own, f"{module.name}.weight")
        if own is None:
            self.unmatched.append(next(iter(module.parts.values())).name)
        return own

    def _refuse_tied(self, own: LazyTensor | None, name: str) -> None:
        if own is None or tied(self.base):
            raise UnmatchedTensor(
                f"{self.adapter.path}: changes {name}, and in {self.base.path.name} the head is the embedding\n"
                "the merge would split the two; give the base a head of its own first (tie_word_embeddings false)"
            )

    # ----------------------------------------------------------------------------------------- modules

    def _module(self, module: Module) -> None:
        parts = module.parts
        if "trainable_tokens_delta" in parts:
            self._tokens(module, parts["trainable_tokens_delta"])
        if "ia3_l" in parts:
            self._ia3(module, parts["ia3_l"])
        elif any(kind.startswith("hada_") for kind in parts):
            self._hadamard(module)
        elif any(kind.startswith("lokr_") for kind in parts):
            self._kronecker(module)
        elif any(kind.startswith("lora_embedding") for kind in parts):
            self._embedding(module)
        elif "lora_a" in parts or "lora_b" in parts:
            self._mlx(module)
        elif any(kind.startswith("lora_") for kind in parts):
            self._lora(module)

    def _lora(self, module: Module) -> None:
        a, b = (self._matrix(module.part(kind)) for kind in ("lora_A", "lora_B"))
        made = self._pair(module, b, a)
        if names := self._parameters(module):
            self._parameter(module, names, a, b)
            return
        if (own := self._weight(module)) is None:
            return
        if own.info.shape not in (made.shape, made.shape[::-1]):
            self._mismatch(module.part("lora_B"), own, made.shape)
        turned = self._lies_turned if b.shape[0] == a.shape[1] else own.info.shape != made.shape
        change = self._low_rank(module.name, own, made.turned() if turned else made)
        self._with_length(module, own, change, by_rows=not turned)
        if (vector := module.parts.get("lora_B.bias")) is not None:
            bias = self._partner(f"{module.name}.bias")
            if bias is None:
                raise UnmatchedTensor(f"{self.adapter.path}: {vector.name} is for a bias that the base has not")
            self._check(vector, bias, vector.info.shape)
            self.found.add(bias.name, Added(matrix(vector), change.factor))

    def _pair(self, module: Module, b: Matrix, a: Matrix) -> Pair:
        if b.shape[1] != a.shape[0]:
            name = next(iter(module.parts.values())).name
            raise CorruptFile(f"{self.adapter.path}: {short(name)}: A is {list(a.shape)} and B {list(b.shape)}")
        self.found.ranks.add(a.shape[0])
        return pair(b, a)

    def _low_rank(self, name: str, own: LazyTensor, change: Pair, twice: bool = False) -> LowRank:
        factor = self._factor(name, change.rank)
        return LowRank(change, factor, self.rounded(own) if twice else None)

    def _factor(self, name: str, rank: int) -> float:
        self.found.scaled = True
        return self.strength * self.settings.factor(name, rank)

    def _with_length(self, module: Module, own: LazyTensor, change: LowRank, by_rows: bool) -> None:
        """A change of a weight, whose rows get the lengths that DoRA has learned, where it is one."""
        length = next((module.parts[kind] for kind in ("lora_magnitude_vector", "m") if kind in module.parts), None)
        if length is None:
            self.found.add(own.name, change)
            return
        if length.info.n_elements != own.info.shape[0 if by_rows else 1]:
            self._mismatch(length, own)
        plain = LowRank(change.pair, change.factor)
        self.found.add(own.name, Dora(plain, matrix(length), own, by_rows))

    def _embedding(self, module: Module) -> None:
        if (own := self._weight(module)) is None:
            return
        a, b = (self._matrix(module.part(kind)) for kind in ("lora_embedding_A", "lora_embedding_B"))
        made = self._pair(module, a.T, b.T)
        self._check(module.part("lora_embedding_A"), own, made.shape)
        self._with_length(module, own, self._low_rank(module.name, own, made, twice=True), by_rows=False)

    def _mlx(self, module: Module) -> None:
        if (own := self._weight(module)) is None:
            return
        a, b = (self._matrix(module.part(kind)) for kind in ("lora_a", "lora_b"))
        embedding = (a.shape[0], b.shape[1]) == own.info.shape != (b.shape[1], a.shape[0])
        made = self._pair(module, a, b) if embedding else self._pair(module, b.T, a.T)
        self._check(module.part("lora_b"), own, made.shape)
        self._with_length(module, own, self._low_rank(module.name, own, made, twice=True), by_rows=True)

    def _hadamard(self, module: Module) -> None:
        if (own := self._weight(module)) is None:
            return
        w1a, w1b, w2a, w2b = (self._matrix(module.part(f"hada_{kind}")) for kind in ("w1_a", "w1_b", "w2_a", "w2_b"))
        first, second = self._pair(module, w1a, w1b), self._pair(module, w2a, w2b)
        for made in (first, second):
            self._check(module.part("hada_w1_a"), own, made.shape)
        self.found.add(own.name, Hadamard(first, second, self._factor(module.name, first.rank)))

    def _kronecker(self, module: Module) -> None:
        if (own := self._weight(module)) is None:
            return

        def side(kind: str) -> Matrix | Pair:
            if kind in module.parts:
                return self._matrix(module.parts[kind])
            return self._pair(module, *(self._matrix(module.part(f"{kind}_{part}")) for part in ("a", "b")))

        first, second = side("lokr_w1"), side("lokr_w2")
        shape = (first.shape[0] * second.shape[0], first.shape[1] * second.shape[1])
        self._check(next(iter(module.parts.values())), own, shape)
        self.found.add(own.name, Kronecker(first, second, self._factor(module.name, 0)))

    def _ia3(self, module: Module, scale: LazyTensor) -> None:
        """It multiplies the outputs, or of feed-forward modules the inputs: (outputs, 1) or (1, inputs)."""
        if (own := self._weight(module)) is None:
            return
        n, shape, inputs = scale.info.n_elements, own.info.shape, self._matrix(scale).shape[0] == 1
        if n not in shape or len(shape) != 2 or 1 not in scale.info.shape:
            self._mismatch(scale, own)
        by_rows = inputs is self._lies_turned if shape[0] == shape[1] else shape[0] == n
        self.found.add(own.name, Scaled(matrix(scale), by_rows))
        if not inputs and (bias := self._partner(f"{module.name}.bias")) is not None:
            self._check(scale, bias, (n,))
            self.found.add(bias.name, Scaled(matrix(scale), by_rows=False))

    def _tokens(self, module: Module, rows: LazyTensor) -> None:
        if (own := self._weight(module)) is None:
            return
        index = self.settings.tokens(module.name)
        if (
            len(own.info.shape) != 2
            or rows.info.shape != (len(index), own.info.row)
            or max(index, default=0) >= own.info.shape[0]
        ):
            self._mismatch(rows, own)
        self.found.add(own.name, Tokens(index, matrix(rows)))

    def _saved(self, name: str, tensor: LazyTensor) -> None:
        own, saved = self._partner(name), self.names.saved
        if name.endswith(HEAD) and (own is None or tied(self.base)):
            if any(is_embedding(key) and equal(each, tensor) for key, each in saved.items()):
                return
            self._refuse_tied(own, name)
        if is_embedding(name) and tied(self.base) and not self.settings.config.get("ensure_weight_tying"):
            if not any(key.endswith(HEAD) for key in saved):  # PEFT leaves the head as it was
                self._refuse_tied(None, name)
        if own is None:
            self.unmatched.append(tensor.name)
            return
        self._check(tensor, own, tensor.info.shape)
        self.found.saved[own.name] = tensor

    # -------------------------------------------------------------------------------------- parameters

    def _parameters(self, module: Module) -> list[str]:
        """The parameters of a module that the config targets, in the order in which PEFT wraps them."""
        names = []
        for target in self.settings.target_parameters:
            leaf = target.rpartition(".")[2]
            if f".{module.name}.{leaf}".endswith(f".{target}"):
                names.append(leaf)
        return sorted(dict.fromkeys(names), key=lambda name: name.startswith("down"))

    def _parameter(self, module: Module, names: list[str], a: Matrix, b: Matrix) -> None:
        """A parameter that no module of its own holds: which one, its sizes tell, else how often it was wrapped."""
        named = {name: owns for name in names if (owns := self._owns(module.name, name)) is not None}
        fits = [name for name, owns in named.items() if owns.ways(a, b)]
        wrapped = names[len(names) - 1 - module.depth] if module.depth < len(names) else None
        name = wrapped if wrapped in fits else fits[0] if len(fits) == 1 else None
        tensor = module.part("lora_B")
        if not named:
            self.unmatched.append(tensor.name)
        elif name is None:
            self._mismatch(tensor, next(iter(named.values())).tensors[0][0], (b.shape[0], a.shape[1]))
        else:
            self._change_parameter(f"{module.name}.{name}", named[name], a, b)

    def _change_parameter(self, name: str, owns: _Parameter, a: Matrix, b: Matrix) -> None:
        ways, rank = owns.ways(a, b), a.shape[0] // owns.n
        turned = ways[0] if len(ways) == 1 else self.base.config.get("model_type") in _TURNED
        made = [pair(*owns.of_expert(number, a, b)) for number in range(owns.n)]
        made = [each.turned() for each in made] if turned else made
        if owns.fused:
            ((own,),) = owns.tensors
            whole = stacked(made) if len(own.info.shape) == 3 else made[0]
            self.found.add(own.name, self._low_rank(name, own, whole, twice=True))
        for parts, change in zip(owns.tensors, made, strict=True) if not owns.fused else ():
            row = 0
            for own in parts:
                own_part = change.part(row, row + own.info.shape[0])
                self.found.add(own.name, self._low_rank(name, own, own_part, twice=True))
                row += own.info.shape[0]
        self.found.ranks.add(rank)

    def _owns(self, module: str, leaf: str) -> _Parameter | None:
        """What the base has for a parameter: one tensor, or those of its experts."""
        own = self._partner(f"{module}.{leaf}")
        if own is not None and len(own.info.shape) in (2, 3):
            n = own.info.shape[0] if len(own.info.shape) == 3 else 1
            return _Parameter([[own]], n, own.info.shape[-2:], fused=True)
        for parts in _FUSED.get(leaf, ()):
            experts = list(self._experts(module, parts))
            if experts:
                rows = sum(each.info.shape[0] for each in experts[0])
                return _Parameter(experts, len(experts), (rows, experts[0][0].info.row), fused=False)
        return None

    def _experts(self, module: str, parts: tuple[str, ...]) -> Iterator[list[LazyTensor]]:
        for number in itertools.count():
            found = [self._partner(f"{module}.{number}.{part}.weight") for part in parts]
            if any(each is None for each in found):
                return
            yield [each for each in found if each is not None]

    # ------------------------------------------------------------------------------------------ shapes

    def _matrix(self, tensor: LazyTensor) -> Matrix:
        if len(tensor.info.shape) != 2 or 0 in tensor.info.shape:
            raise UnsupportedFeature(
                f"{self.adapter.path}: {short(tensor.name)} is {list(tensor.info.shape)}; only matrices are merged, "
                "no convolutions"
            )
        return matrix(tensor)

    @cached_property
    def _lies_turned(self) -> bool:
        """Whether square weights lie (inputs, outputs): as those that are not square do, else as the config says."""
        votes = set(by_biases(self.base.tensors))
        for module in self.names.modules.values():
            own = self._partner(f"{module.name}.weight") if {"lora_A", "lora_B"} <= module.parts.keys() else None
            if own is not None and len(own.info.shape) == 2 and own.info.shape[0] != own.info.shape[1]:
                votes.add(own.info.shape[0] != module.parts["lora_B"].info.shape[0])
        return votes.pop() if len(votes) == 1 else self.settings.fan_in_fan_out

    def _check(self, tensor: LazyTensor, own: LazyTensor, shape: tuple[int, ...]) -> None:
        if own.info.shape != shape:
            self._mismatch(tensor, own, shape)

    def _mismatch(self, tensor: LazyTensor, own: LazyTensor, shape: tuple[int, ...] | None = None) -> NoReturn:
        raise ShapeMismatch(
            f"{self.adapter.path}: {short(tensor.name)} is for a weight of {list(shape or tensor.info.shape)}, "
            f"{own.name} of {self.base.path.name} is {list(own.info.shape)}\n"
            f"it was trained on {short(self.settings.base or 'another model')}; a vocabulary that was changed must be "
            "changed in the base, too"
        )


def by_biases(tensors: Mapping[str, LazyTensor]) -> Iterator[bool]:
    """Of each weight that is not square and has a bias, whether it lies (inputs, outputs)."""
    for name, tensor in tensors.items():
        shape, bias = tensor.info.shape, tensors.get(f"{name.removesuffix('weight')}bias")
        if name.endswith(".weight") and len(shape) == 2 and shape[0] != shape[1] and bias is not None:
            yield bias.info.shape == shape[1:]


@dataclass(frozen=True)
class _Parameter:
    """What a base has for a parameter of `n` experts, each of `shape`: one tensor, or for each expert its parts."""

    tensors: list[list[LazyTensor]]
    n: int
    shape: tuple[int, ...]
    fused: bool

    def ways(self, a: Matrix, b: Matrix) -> list[bool]:
        """Whether matrices fit it as it lies (False), and the other way round (True)."""
        if a.shape[0] != b.shape[1] or a.shape[0] % self.n:
            return []
        shape = (b.shape[0], a.shape[1])
        return [turned for turned in (False, True) if (shape[::-1] if turned else shape) == self.shape]

    def of_expert(self, number: int, a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
        """B and A of one expert: A has their ranks one after the other, B the experts of each rank."""
        n, rank = self.n, a.shape[0] // self.n
        return (
            Matrix(b.tensor, (b.shape[0], rank), lambda stored: stored[:, number::n]),
            Matrix(a.tensor, (rank, a.shape[1]), lambda stored: stored[number * rank : (number + 1) * rank]),
        )
