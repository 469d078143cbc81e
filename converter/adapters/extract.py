"""An adapter out of two models: what a fine-tune added to each matrix of its base, as the nearest product of two.

The difference is never held. Its strongest directions are found by passes over the rows of both models, each of which
multiplies a few random vectors by it and by its transpose (Halko, Martinsson, Tropp 2011, section 4.5), in F64. The
product is the nearest of its rank as far as these are the strongest; small matrices are decomposed whole.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.adapters.factors import Floats, Shape
from converter.adapters.resolve import HEAD, by_biases, is_embedding, tied
from converter.architectures.spec import Architecture
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, CorruptFile, ShapeMismatch, UnmatchedTensor, UsageError, short
from converter.events import Dropped, Event, Note
from converter.mapping.detect import detect
from converter.mapping.names import RuleNames, spellings
from converter.storage.slabs import Job, ProgressCallback, row_ranges, run
from converter.tensors.dtypes import F32
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor, from_array

_MORE, _PASSES = 16, 3  # vectors beyond the rank, and passes, after which they are the strongest of real fine-tunes
_SMALL = 1 << 18  # elements of a matrix that is decomposed whole
_WORK = 32  # bytes for an element of a slab: of both models in F32, the difference in F32 and F64
_PREFIX = "base_model.model."
_ROUTERS = ("gate", "router")  # modules of their own kinds, which PEFT wraps for no factors
_EXPERT = re.compile(r"\.experts\.\d+\.")
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}


class Factors(NamedTuple):
    """The nearest product B A of a difference; `energy` is the sum of its squares, `noise` what B A lacks of it."""

    b: Floats
    a: Floats
    energy: float
    noise: float


def nearest(base: LazyTensor, tuned: LazyTensor, rank: int) -> Factors | None:
    """What is nearest to the difference of two matrices among the products of a rank; None where they are equal.

    Raises:
        CorruptFile: a difference is infinite or no number.
    """
    rows, columns = tuned.info.shape
    whole = rows * columns <= _SMALL or columns <= rank + _MORE
    basis = np.eye(columns) if whole else np.random.default_rng(0).standard_normal((columns, rank + _MORE))
    for _ in range(0 if whole else _PASSES):
        turned = np.zeros_like(basis)
        for _, part in _differences(base, tuned):
            turned += part.T @ (part @ basis)
        if not turned.any():
            return None
        basis = np.linalg.qr(turned).Q
    seen, energy = np.zeros((rows, basis.shape[1])), 0.0
    for start, part in _differences(base, tuned):
        seen[start : start + len(part)] = part @ basis
        energy += float(np.vdot(part, part))
    if energy == 0:
        return None
    left, strengths, right = np.linalg.svd(seen, full_matrices=False)
    root = np.sqrt(strengths[:rank])
    b, a = left[:, :rank] * root, root[:, None] * (right[:rank] @ basis.T)
    noise = max(0.0, energy - float(np.vdot(strengths[:rank], strengths[:rank])))
    return Factors(b.astype(np.float32), a.astype(np.float32), energy, noise)


def _differences(base: LazyTensor, tuned: LazyTensor) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Rows of the difference of two tensors in F64, from which row on; those that are all equal are left out."""
    for start, stop in row_ranges([tuned], _WORK * tuned.info.row):
        with np.errstate(over="ignore", invalid="ignore"):  # which is refused
            part = values(tuned, start, stop) - values(base, start, stop)
        if not np.isfinite(part).all():
            raise CorruptFile(
                f"{tuned.source}: {tuned.name}: the difference of the two models is infinite or no number (NaN)"
            )
        if part.any():
            yield start, part.astype(np.float64)


@dataclass(frozen=True)
class Fit:
    """How near the factors of a module are to what they stand for."""

    module: str
    shape: Shape
    rank: int
    energy: float
    noise: float

    @property
    def relative_error(self) -> float:
        """Length of what is missing, as part of the length of the difference."""
        return math.sqrt(self.noise / self.energy)


@dataclass(frozen=True)
class Extracted:
    """The tensors of an adapter by PEFT's names, its config, how near each pair is, and what is lost."""

    tensors: Mapping[str, LazyTensor]
    config: Mapping[str, Any]
    fits: tuple[Fit, ...]
    events: tuple[Event, ...]


def extracted(
    base: Checkpoint,
    tuned: Checkpoint,
    rank: int,
    *,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Extracted:
    """The adapter that makes of `base`, nearly, what `tuned` is; both are read, and the factors are in memory.

    Raises:
        UsageError: no Hugging Face models, or no matrix differs.
        ShapeMismatch, UnmatchedTensor: they are not of one kind.
        CorruptFile: as `nearest`.
    """
    for model in (base, tuned):
        if model.dialect != "hf":
            raise UsageError(f"{model.path}: is no Hugging Face model, and adapters are for these")
    extraction = _Extraction(base, tuned, rank)
    run(extraction.jobs(), threads, progress)
    return extraction.done()


class _Extraction:
    def __init__(self, base: Checkpoint, tuned: Checkpoint, rank: int) -> None:
        self.base, self.tuned, self.rank = base, tuned, rank
        self.turned = set(by_biases(base.tensors)) == {True}  # as GPT-2's, (inputs, outputs)
        self.events: list[Event] = []
        self.names = [name for name in base.tensors if self._is_shared(name)]
        self.factors: dict[str, Factors] = {}
        self.changed: set[str] = set()
        self._lock = threading.Lock()

    def _is_shared(self, name: str) -> bool:
        if name == HEAD and tied(self.base):
            return False  # a copy of the embedding
        own, other = self.base.tensors[name], self.tuned.tensors.get(name)
        if other is not None and other.info.shape != own.info.shape:
            raise ShapeMismatch(
                f"{self.tuned.path}: {short(name)} is {list(other.info.shape)}, of {self.base.path.name} "
                f"{list(own.info.shape)}\nan adapter changes no sizes; give the base the same vocabulary first"
            )
        return other is not None

    # ------------------------------------------------------------------------------------------ what is read

    def jobs(self) -> list[Job]:
        """One for each tensor of both, whose rows stay together."""
        if not self.names:
            raise UnmatchedTensor(f"{self.tuned.path}: has no tensor of a name that {self.base.path.name} has")
        found = []
        for name in self.names:
            tensor = replace(self.tuned.tensors[name], grain=max(1, self.tuned.tensors[name].info.n_rows))
            found.append(Job((tensor,), partial(self._look, name), tensor.row_work))
        return found

    def _look(self, name: str, start: int, stop: int) -> None:
        own, other = self.base.tensors[name], self.tuned.tensors[name]
        factored = self._is_factored(name)
        factors = nearest(own, other, self.rank) if factored else None
        differs = factors is not None if factored else any(True for _ in _differences(own, other))
        with self._lock:
            if factors is not None:
                self.factors[name] = factors
            if differs:
                self.changed.add(name)

    def _is_factored(self, name: str) -> bool:
        """Whether a tensor is a matrix that factors are smaller than, of a module that PEFT can wrap."""
        shape, module = self.base.tensors[name].info.shape, name.removesuffix(".weight")
        if len(shape) != 2 or module == name or module.rpartition(".")[2] in _ROUTERS:
            return False
        return self.rank * sum(shape) < math.prod(shape)

    # ------------------------------------------------------------------------------------------ what is made

    def done(self) -> Extracted:
        """The adapter, of what was read."""
        if not self.factors:
            what = (
                f"{len(self.changed)} tensors, none of them a matrix for factors of" if self.changed else "nothing at"
            )
            raise UsageError(f"{self.tuned.path}: differs from {self.base.path} in {what} rank {self.rank}")
        tensors: dict[str, LazyTensor] = {}
        fits, targets, saved, biases = list[Fit](), list[str](), list[str](), False
        for name in filter(self.changed.__contains__, self.names):
            module, _, leaf = name.rpartition(".")
            called = self._called(module)
            if name in self.factors:
                tensors |= self._pair(name, called)
                targets.append(called)
                found = self.factors[name]
                shape = self.base.tensors[name].info.shape
                fits.append(Fit(called, shape, self.rank, found.energy, found.noise))
            elif leaf == "bias" and f"{module}.weight" in self.names and self._is_factored(f"{module}.weight"):
                wrapped = ".base_layer" if f"{module}.weight" in self.factors else ""
                tensors |= self._as_it_is(name, f"{called}{wrapped}.bias")
                biases = True
            elif leaf in ("weight", "bias") and f"{module}.weight" in self.names:
                for part in ("weight", "bias"):
                    if f"{module}.{part}" in self.tuned.tensors:
                        tensors |= self._as_it_is(f"{module}.{part}", f"{called}.{part}")
                saved += [called] if called not in saved else []
            else:
                self.events.append(Dropped(name, "no weight or bias of a module, which is all that PEFT loads"))
        self._tell(targets)
        return Extracted(tensors, self._config(targets, saved, biases), tuple(fits), tuple(self.events))

    def _pair(self, name: str, called: str) -> dict[str, LazyTensor]:
        b, a = self.factors[name].b, self.factors[name].a
        embedding = is_embedding(name)
        if embedding or (self.turned and name != HEAD):
            b, a = a.T, b.T
        kinds = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        keys = [f"{_PREFIX}{called}.{kind}" for kind in kinds]
        return {key: from_array(key, each, F32, "an extraction") for key, each in zip(keys, (a, b), strict=True)}

    def _as_it_is(self, name: str, called: str) -> dict[str, LazyTensor]:
        return {f"{_PREFIX}{called}": self.tuned.tensors[name].renamed(f"{_PREFIX}{called}")}

    def _called(self, module: str) -> str:
        """What transformers calls a module, which may be in a part of the model that its file does not name."""
        name = f"{module}.weight"
        if self._known is None or self._known[1].find(name, _anywhere):
            return module
        architecture, rules = self._known
        longer = (each for each in spellings(architecture, name) if each.endswith(f".{name}"))
        return next((each for each in longer if rules.find(each, _anywhere)), name).removesuffix(".weight")

    @cached_property
    def _known(self) -> tuple[Architecture, RuleNames] | None:
        """The architecture and its names, where the base is of a class whose names these are."""
        try:
            architecture, kind = detect(self.base.config)
        except ArchitectureError:
            return None
        return (architecture, RuleNames(architecture.tensors, "hf")) if kind.head else None

    def _tell(self, targets: list[str]) -> None:
        for name in self.tuned.tensors:
            if name not in self.base.tensors and not (name == HEAD and tied(self.base)):
                self.events.append(Dropped(name, f"{self.base.path.name} has none that could be changed"))
        absent = [name for name in self.base.tensors if name not in self.tuned.tensors and name != HEAD]
        if absent:
            self.events.append(Note(f"{len(absent)} tensors of the base are not in {self.tuned.path}: {absent[0]}"))
        if experts := sum(1 for name in targets if _EXPERT.search(name)):
            told = f"{experts} matrices are of experts: --lora merges them, PEFT only where each is a module of its own"
            self.events.append(Note(told))

    def _config(self, targets: list[str], saved: list[str], biases: bool) -> dict[str, Any]:
        classes = self.base.config.get("architectures")
        name = str(classes[0]) if isinstance(classes, list) and classes else ""
        config = {
            "base_model_name_or_path": self.base.path.as_posix(),
            "bias": "all" if biases else "none",
            "fan_in_fan_out": self.turned,
            "inference_mode": True,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "modules_to_save": saved or None,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": targets,
            "task_type": next((task for end, task in _TASKS.items() if name.endswith(end)), None),
        }
        tie = tied(self.base) and any(is_embedding(f"{module}.weight") for module in saved)
        return config | ({"ensure_weight_tying": True} if tie else {})


def _anywhere(*_: object) -> bool:
    return True
