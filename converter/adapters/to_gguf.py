"""A GGUF adapter: the matrices of an adapter under the names, and in the layout, of its base's GGUF tensors.

Source: llama.cpp's `llama-adapter.cpp` for keys, names, shapes and the strength, which is alpha / rank, of one alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from converter.adapters.carry import Carried, carried
from converter.adapters.changes import Change, Dora, LowRank
from converter.adapters.resolve import HEAD, Resolved, resolve, tied
from converter.architectures.spec import Architecture
from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature, short
from converter.events import Dropped, Event, Note
from converter.mapping.tensors import Rewriting, rewritings
from converter.tensors.dtypes import F32
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

EMBEDDING = "token_embd.weight"
_ADVICE = "a GGUF adapter has no place for it; --lora merges it"


@dataclass(frozen=True)
class GGUFAdapter:
    """The tensors of a GGUF adapter, the one alpha of its file, and what it does without."""

    architecture: Architecture
    alpha: float
    tensors: dict[str, LazyTensor]
    events: tuple[Event, ...]


def adapter_to_gguf(adapter: Checkpoint, base: Checkpoint, arch: str | None = None) -> GGUFAdapter:
    """What llama.cpp runs beside the GGUF of `base` with the results of `adapter`; values are read when asked for.

    Raises:
        UnsupportedFeature: nothing of the adapter fits in, or a weight is rearranged as its factors cannot be.
        ConverterError: as `resolve` and `mapping.tensors.to_gguf`.
    """
    found = resolve(base, adapter)
    events, changes = list[Event](_losses(found)), dict[str, Carried]()
    for name, own in found.changes.items():
        low_rank = [plain for change in own if (plain := _plain(change)) is not None]
        if low_rank:
            changes[name] = Carried(low_rank[0].pair, low_rank[0].factor)
    if not changes:
        raise UnsupportedFeature(
            f"{adapter.path}: holds no product of two matrices, which is all that a GGUF adapter can be\n"
            "merge it into the model: convert BASE OUT --lora FOLDER"
        )
    architecture, steps = rewritings(base, arch)
    made: dict[str, Carried] = {}
    for step in steps:
        made.update(_through(adapter, step, [changes.pop(source.name, None) for source in step.sources]))
    if changes:
        raise UnsupportedFeature(f"{adapter.path}: {short(next(iter(changes)))} has no place in a GGUF of the model")
    if EMBEDDING in made and (tied(base) or HEAD not in base.tensors):
        raise UnsupportedFeature(
            f"{adapter.path}: changes the embedding, which is the head, too; llama.cpp's adapters cannot change both\n"
            "merge it into the model: convert BASE OUT --lora FOLDER"
        )
    alpha = found.settings.alpha or next((each.factor * each.pair.rank for each in made.values() if each.factor), 1.0)
    tensors, n_folded = dict[str, LazyTensor](), 0
    for name, change in made.items():
        fold = change.factor * change.pair.rank / alpha
        fold = 1.0 if math.isclose(fold, 1, rel_tol=1e-12) else fold
        n_folded += fold != 1
        tensors.update((tensor.name, tensor) for tensor in _tensors(name, change, fold))
    if n_folded:
        why = "a GGUF adapter has one alpha for all, and no square roots of ranks"
        events.append(Note(f"{n_folded} of {len(made)} lora_b are multiplied by what their strength differs by: {why}"))
    return GGUFAdapter(architecture, alpha, tensors, tuple(events))


def _plain(change: Change) -> LowRank | None:
    """The product of a change, less what a GGUF adapter has no place for."""
    return change.low_rank if isinstance(change, Dora) else change if isinstance(change, LowRank) else None


def _losses(found: Resolved) -> Iterator[Event]:
    for name in found.saved:
        yield Dropped(name, f"saved whole: {_ADVICE}")
    for name, changes in found.changes.items():
        for change in changes:
            if isinstance(change, Dora):
                yield Dropped(f"{name}, its lengths", f"DoRA: {_ADVICE}")
            elif not isinstance(change, LowRank):
                yield Dropped(name, f"changed otherwise than by two matrices: {_ADVICE}")


def _through(adapter: Checkpoint, step: Rewriting, changes: Sequence[Carried | None]) -> dict[str, Carried]:
    """What becomes of the changes of a rule's tensors."""
    if not any(changes):
        return {}
    try:
        made = carried(step.chain, [source.info.shape for source in step.sources], changes)
    except UnsupportedFeature as error:
        raise UnsupportedFeature(
            f"{adapter.path}: {step.sources[0].name}: {error}\nmerge it into the model: convert BASE OUT --lora FOLDER"
        ) from error
    return {name: change for name, change in zip(step.names, made, strict=True) if change is not None}


def _tensors(name: str, change: Carried, fold: float) -> tuple[LazyTensor, LazyTensor]:
    """`lora_a` and `lora_b` of a tensor; an embedding is looked up by the rows of its `lora_a`, (vocabulary, rank)."""
    pair = change.pair.turned() if name == EMBEDDING else change.pair
    stacks, (rows, columns), rank = pair.shape[:-2], pair.shape[-2:], pair.rank

    def read_a(start: int, stop: int) -> Rows:
        if name == EMBEDDING:
            return np.ascontiguousarray(pair.a(0).T[start:stop]).view(np.uint8)
        pieces = [pair.a(which)[_within(start, stop, which, rank)] for which in range(start // rank, -(-stop // rank))]
        return np.ascontiguousarray(np.concatenate(pieces)).view(np.uint8)

    def read_b(start: int, stop: int) -> Rows:
        with np.errstate(all="ignore"):  # what is not finite is counted where it is encoded
            return np.ascontiguousarray(pair.b(start, stop) * np.float32(fold)).view(np.uint8)

    shape_a = (columns, rank) if name == EMBEDDING else (*stacks, rank, columns)
    a = TensorInfo(f"{name}.lora_a", shape_a, F32)
    b = TensorInfo(f"{name}.lora_b", (*stacks, rows, rank), F32)
    return LazyTensor(a, read_a, "A of an adapter"), LazyTensor(b, read_b, "B of an adapter")


def _within(start: int, stop: int, which: int, rank: int) -> slice:
    return slice(max(0, start - which * rank), min(rank, stop - which * rank))
