"""Experts in tensors of their own: llama.cpp's files of models with experts were so until April 2024."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from converter.checkpoint import Checkpoint
from converter.planning.draft import Draft
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

_STACKED = re.compile(r"(blk\.[0-9]+\.ffn_(?:gate|up|down))_exps\.weight")


def as_in(target: Checkpoint, draft: Draft) -> Draft:
    """The draft with the experts of its stacks apart, where the target has them so: `blk.0.ffn_gate.3.weight`."""
    if draft.dialect != "gguf":
        return draft
    read, intermediate = (_apart(each, target) for each in (draft.read, draft.intermediate))
    checkpoint = draft.checkpoint.replace(tensors=_apart(draft.checkpoint.tensors, target))
    return replace(draft, checkpoint=checkpoint, read=read, intermediate=intermediate)


def _apart(tensors: Mapping[str, LazyTensor], target: Checkpoint) -> dict[str, LazyTensor]:
    made: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        found = _STACKED.fullmatch(name)
        is_apart = found is not None and name not in target.tensors and f"{found[1]}.0.weight" in target.tensors
        made |= {each.name: each for each in _experts(found[1], tensor)} if found and is_apart else {name: tensor}
    return made


def _experts(stem: str, stack: LazyTensor) -> Iterator[LazyTensor]:
    """The matrices of a stack, each with the tensor of the source that it is where that is told."""
    count, *shape = stack.info.shape
    for expert in range(count):
        info = TensorInfo(f"{stem}.{expert}.weight", tuple(shape), stack.info.dtype)
        first = expert * info.n_rows
        parts = (stack.parts[expert],) if len(stack.parts) == count else stack.parts

        def read(start: int, stop: int, first: int = first) -> Rows:
            return stack.rows(first + start, first + stop)

        yield stack.derived(info, read, parts=parts)
