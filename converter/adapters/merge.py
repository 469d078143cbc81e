"""Merging adapters into the model that they are for: weights that are computed, row by row, when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converter.adapters.changes import Change
from converter.adapters.names import Module
from converter.adapters.resolve import HEAD, Resolved, is_embedding, resolve, tied
from converter.checkpoint import Checkpoint
from converter.errors import UsageError, short
from converter.events import Event, Merged, Note
from converter.storage.slabs import row_ranges
from converter.tensors.dtypes import F32, DType
from converter.tensors.encode import Watch, encoded
from converter.tensors.streams import decoded, values
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

# What is left of a change where one of these is all zeros.
_FACTORS = ("lora_A", "lora_B", "lora_a", "lora_b", "lora_embedding_A", "lora_embedding_B", "hada_", "lokr_")
# A row on its way: its numbers, B A in F64 and F32, and the sum.
_WORK = 24


def merged(
    base: Checkpoint, adapter: Checkpoint, strength: float, watch: Watch, *, wide: bool = False
) -> tuple[dict[str, LazyTensor], list[Event]]:
    """The tensors of a model with an adapter in them, and what was done; of the model nothing is read.

    Args:
        base, adapter: the model, and an adapter as its reader opened it.
        strength: what the factor of each product is multiplied by.
        watch: counts values that the type of a weight cannot hold.
        wide: weights that change are F32, and nothing is rounded; else they are of the base's types, as PEFT has them.
            What was packed becomes F32 in any case.

    Raises:
        UsageError: nothing would change, or there is nothing that a strength could scale.
        ConverterError: as `resolve`.
    """

    def type_of(own: LazyTensor) -> DType:
        return F32 if wide or own.info.dtype.quantized else own.info.dtype

    found = resolve(base, adapter, type_of, strength)
    _check_effect(adapter, found, strength)
    tensors = dict(base.tensors)
    for name, tensor in found.saved.items():
        tensors[name] = encoded(tensor.renamed(name), type_of(base.tensors[name]), watch)
    for name, changes in found.changes.items():
        tensors[name] = encoded(_changed(tensors[name], changes), type_of(base.tensors[name]), watch)
    ranks = (min(found.ranks), max(found.ranks)) if found.ranks else None
    changed = found.saved.keys() | found.changes.keys()
    events: list[Event] = [Merged(str(adapter.path), len(changed), ranks, strength)]
    events += _trained_on(base, found.settings.base)
    if HEAD in tensors.keys() - changed and tied(base) and any(map(is_embedding, changed)):
        del tensors[HEAD]
        events.append(Note(f"{HEAD}: left out, it is the embedding that was merged (tie_word_embeddings)"))
    return tensors, events


def _changed(own: LazyTensor, changes: Sequence[Change]) -> LazyTensor:
    """A tensor after changes, one after the other, in F32."""
    numbers = decoded(own)

    def read(start: int, stop: int) -> Rows:
        rows = numbers.rows(start, stop).view(np.float32)
        with np.errstate(all="ignore"):  # what is not finite is counted where it is encoded
            for change in changes:
                rows = change(rows, start)
        return np.ascontiguousarray(rows).view(np.uint8)

    info = TensorInfo(own.name, own.info.shape, F32)
    return numbers.derived(info, read, work_nbytes=numbers.row_work + _WORK * info.row)


def _check_effect(adapter: Checkpoint, found: Resolved, strength: float) -> None:
    if strength != 1 and not found.scaled:
        raise UsageError(f"{adapter.path}: nothing in it is multiplied by a strength; give it without :{strength:g}")
    if strength == 0 or not math.isfinite(strength):
        raise UsageError(f"{adapter.path}: a strength of {strength:g} is none; leave the adapter out, or give a number")
    if found.saved or not all(map(_idle, found.names.modules.values())):
        return
    why = "every product of its matrices is zero" if found.changes else "it holds nothing"
    raise UsageError(f"{adapter.path}: changes nothing, {why}\nwas it saved before it was trained?")


def _idle(module: Module) -> bool:
    """Whether a module's change is a product of which one part is zeros; reads of it what is needed to see that."""
    factors = [tensor for kind, tensor in module.parts.items() if kind.startswith(_FACTORS)]
    return len(factors) == len(module.parts) and any(map(_zeros, factors))


def _zeros(tensor: LazyTensor) -> bool:
    with np.errstate(invalid="ignore"):  # of NaN, which is not zero
        return not any(values(tensor, start, stop).any() for start, stop in row_ranges([tensor], tensor.row_work))


def _trained_on(base: Checkpoint, said: str | None) -> list[Event]:
    """A word where the base is not called what the adapter says that it was trained on."""
    own = base.path.resolve()
    own = own if own.is_dir() else own.parent
    if said is None or said.replace("\\", "/").rstrip("/").rpartition("/")[2].lower() == own.name.lower():
        return []
    return [Note(f"the adapter says that it was trained on {short(said)}; {base.path} is what it was merged into")]
