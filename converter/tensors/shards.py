"""A matrix that a folder has in pieces: `NAME.shard_0.weight`, `NAME.shard_1.weight` and so on, its rows in that order.

Source: transformers' `conversion_mapping.py`, of tables of n-grams that are too large for one tensor.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

_PIECE = re.compile(r"(.+\.)shard_(0|[1-9][0-9]{0,6})(\.[^.]+)")


def whole(tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
    """The tensors with the pieces of each matrix as one, under the name of the first."""
    pieces: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in tensors.items():
        if match := _PIECE.fullmatch(name):
            pieces.setdefault(f"{match[1]}shard_0{match[3]}", {})[int(match[2])] = tensor
    joined = {first: [parts[i] for i in sorted(parts)] for first, parts in pieces.items() if _fits(parts)}
    left_out = {part.name for parts in joined.values() for part in parts[1:]}
    if not left_out:
        return tensors
    return {
        name: _joined(joined[name]) if name in joined else tensor
        for name, tensor in tensors.items()
        if name not in left_out
    }


def _fits(parts: Mapping[int, LazyTensor]) -> bool:
    """Whether all pieces are there, and of one type and width."""
    infos = [part.info for part in parts.values()]
    alike = len({(info.dtype, info.shape[1:]) for info in infos}) == 1 and all(len(info.shape) == 2 for info in infos)
    return alike and parts.keys() == set(range(len(parts)))


def _joined(parts: Sequence[LazyTensor]) -> LazyTensor:
    first = parts[0]
    starts = [0, *accumulate(part.info.n_rows for part in parts)]
    info = TensorInfo(first.name, (starts[-1], *first.info.shape[1:]), first.info.dtype)

    def read(start: int, stop: int) -> Rows:
        if start >= stop:
            return np.empty((0, info.row_nbytes), np.uint8)
        found = []
        for which in range(bisect_right(starts, start) - 1, bisect_right(starts, stop - 1)):
            at, part = starts[which], parts[which]
            found.append(part.rows(max(start, at) - at, min(stop, starts[which + 1]) - at))
        return found[0] if len(found) == 1 else np.concatenate(found)

    work = max(part.row_work for part in parts) + info.row_nbytes
    return first.derived(info, read, parts=tuple(part.name for part in parts), work_nbytes=work)
