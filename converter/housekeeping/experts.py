"""Some experts of a model, counted anew, the same in every layer: their matrices, and the router's rows for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature, short
from converter.housekeeping.blocks import Model, check_facts
from converter.mapping.names import Match, RuleNames
from converter.tensors.tensor import LazyTensor, Rows

_N_EXPERT, _USED, _GROUPS = "n_expert", "n_expert_used", "n_expert_group"


def only(checkpoint: Checkpoint, kept: Sequence[int]) -> Checkpoint:
    """The model with the experts `kept` alone, ascending, in all layers that have some.

    Raises:
        UnsupportedFeature: experts are chosen in groups, or something of them cannot be cut.
        ArchitectureError: the model says too little of itself.
    """
    model = Model.of(checkpoint)
    n_expert = model.hparams.get(_N_EXPERT) or 0
    if not isinstance(n_expert, int) or n_expert < 2:
        raise model.refused("has no experts" if not n_expert else "has another number of experts in each layer")
    used, groups = model.hparams.get(_USED) or 0, model.hparams.get(_GROUPS) or 1
    if isinstance(used, int) and used > len(kept):
        raise model.refused(f"sends each token to {used} experts; keep that many at least")
    if groups != 1:
        raise model.refused(f"chooses experts in {groups} groups, which would be of other sizes")
    settings = model.settings()
    settings.change(next(row for row in model.architecture.hparams if row.name == _N_EXPERT), len(kept))
    less = Model.of(settings.applied(checkpoint))
    tensors = _cut(model, less, n_expert, kept)
    pruned = settings.applied(checkpoint.replace(tensors=tensors))
    check_facts(model, Model.of(pruned), list(range(model.n_layer)), but=(_N_EXPERT,))
    return pruned


def _cut(model: Model, less: Model, n_expert: int, kept: Sequence[int]) -> dict[str, LazyTensor]:
    numbers = {old: new for new, old in enumerate(kept)}
    rules = RuleNames(model.architecture.tensors, "gguf" if model.hf is None else "hf")
    axes = _axes(model, less, n_expert, len(kept))
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in model.checkpoint.tensors.items():
        match = _match(model, rules, name)
        if match is not None and match.expert is not None:
            if match.expert in numbers:
                new = _renumbered(name, match.expert, numbers[match.expert])
                tensors[new] = tensor.renamed(new)
            continue
        canonical = next((each for each in model.spelled(name) if each in axes), None)
        if canonical is not None:
            tensors[name] = rows_of(model, tensor, axes[canonical], n_expert, kept)
        elif match is None and ("expert" in name or "_exps" in name) and n_expert in tensor.info.shape:
            raise model.refused(f"has {short(name)} {list(tensor.info.shape)}: how it holds the experts is not known")
        else:
            tensors[name] = tensor
    return tensors


def _match(model: Model, rules: RuleNames, name: str) -> Match | None:
    """The rule that a tensor belongs to; what stands beside a weight (scales, codes) goes with it."""
    for spelled in model.spelled(name):
        for each in (spelled, f"{spelled.rpartition('.')[0]}.weight"):
            if (match := rules.find(each, lambda rule, block: True)) is not None:
                return match
    return None


def _renumbered(name: str, old: int, new: int) -> str:
    """A name with another number for its expert, which is the last one that it has."""
    parts = name.split(".")
    place = max(at for at, part in enumerate(parts) if part == str(old))
    return ".".join([*parts[:place], str(new), *parts[place + 1 :]])


def _axes(model: Model, less: Model, n_expert: int, n_kept: int) -> dict[str, int]:
    """The axis along which tensors have an entry for each expert: the one that becomes shorter with their number.

    Raises:
        UnsupportedFeature: one does in another way.
    """
    axes: dict[str, int] = {}
    after = {name: shape for each in less.seen.instances(less.architecture, less.hparams)
             for name, shape in zip(each.names, each.shapes, strict=False)}  # fmt: skip
    for each in model.seen.instances(model.architecture, model.hparams):
        for name, shape in zip(each.names, each.shapes, strict=False):
            other = after.get(name, shape)
            changed = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=False)) if a != b]
            if not changed:
                continue
            if len(changed) > 1 or (shape[changed[0]], other[changed[0]]) != (n_expert, n_kept):
                raise model.refused(f"has {name} {list(shape)}: how it holds the experts is not known")
            axes[name] = changed[0]
        if each.rule.stacked and not each.shapes and model.hf is None:
            axes.update(dict.fromkeys(each.names, 0))
    return axes


def rows_of(model: Model, tensor: LazyTensor, axis: int, n_expert: int, kept: Sequence[int]) -> LazyTensor:
    """A tensor with some of its entries along an axis, bytes as they are."""
    info = tensor.info
    if len(info.shape) <= axis or info.shape[axis] != n_expert:
        raise UnsupportedFeature(
            f"{model.checkpoint.path}: {short(info.name)} {list(info.shape)} does not hold {n_expert} experts"
        )
    shape = (*info.shape[:axis], len(kept), *info.shape[axis + 1 :])
    if axis == len(info.shape) - 1:
        if info.dtype.block_size != 1:
            raise model.refused(f"has {short(info.name)} in blocks of {info.dtype.block_size}, which experts share")
        size = info.dtype.type_size

        def columns(start: int, stop: int) -> Rows:
            rows = tensor.rows(start, stop).reshape(stop - start, n_expert, size)
            return np.ascontiguousarray(rows[:, list(kept)]).reshape(stop - start, len(kept) * size)

        return tensor.derived(replace(info, shape=shape), columns, work_nbytes=2 * tensor.row_work)
    each = math.prod(info.shape[axis + 1 : -1])  # rows of an entry
    index = np.array(kept, np.int64)

    def read(start: int, stop: int) -> Rows:
        entries, rest = np.divmod(np.arange(start, stop, dtype=np.int64), each)
        outer, entry = np.divmod(entries, len(index))
        rows = (outer * n_expert + index[entry]) * each + rest
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        parts = [tensor.rows(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [tensor.rows(0, 0)])

    return tensor.derived(replace(info, shape=shape), read)


def in_words(kept: Sequence[int]) -> str:
    """Numbers as people write them: `0-3, 7`."""
    runs: list[list[int]] = []
    for number in kept:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
