"""Ops on tensors that have not been read: the result is again a tensor that reads on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from converter.errors import QuantizationError
from converter.tensors import kernels
from converter.tensors.dtypes import F16, F32
from converter.tensors.ops import At, Chain, Op, Shape, apply, infer, reach
from converter.tensors.tensor import Beside, LazyTensor, Rows, TensorInfo


def decoded(tensor: LazyTensor) -> LazyTensor:
    """The same numbers in F32.

    Raises:
        QuantizationError: the tensor does not hold real numbers.
    """
    info = tensor.info
    if info.dtype is F32:
        return tensor
    if info.dtype.numpy is not None and not info.dtype.floating and info.dtype.numpy.kind not in "iu":
        raise QuantizationError(f"{info.name}: {info.dtype} values cannot become F32")

    def read(start: int, stop: int) -> Rows:
        return values(tensor, start, stop).view(np.uint8)

    return tensor.derived(TensorInfo(info.name, info.shape, F32), read, work_nbytes=tensor.row_work + 4 * info.row)


def values(tensor: LazyTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows [start, stop) as float32 of shape (stop - start, row)."""
    dtype, data = tensor.info.dtype, tensor.rows(start, stop)
    if dtype.floating:
        numbers = kernels.decode(data, dtype)
        if tensor.beside is not None:
            scale = np.array(tensor.beside.scale, np.float32)
            numbers *= scale[np.arange(start, stop) * len(scale) // tensor.info.n_rows, None]
        return numbers
    assert dtype.numpy is not None  # `decoded` admits floats and integers only
    return np.ascontiguousarray(data).view(dtype.numpy).astype(np.float32)


def compose(chain: Chain, sources: Sequence[LazyTensor], names: Sequence[str]) -> list[LazyTensor]:
    """Apply bound ops to lazy tensors.

    Row moves act on packed bytes and stream; value ops decode to F32 and stream; a chain that touches the last
    axis holds one tensor in memory. What is stored in F16 is calculated in F16, as torch does it: the F32 is rounded
    after each op.

    Raises:
        ShapeMismatch: an op does not fit the shapes.
    """
    shapes = tuple(source.info.shape for source in sources)
    infer(chain, shapes)
    tensors = list(sources)
    if reach(chain, shapes) == "whole":
        tensors = _whole(chain, tensors)
    else:
        for changes, ops in groupby(chain, _changes_values):
            tensors = (_changed if changes else _moved)(tuple(ops), tensors)
    return [tensor.renamed(name) for tensor, name in zip(tensors, names, strict=True)]


def _changes_values(op: Op) -> bool:
    return op.reach(2) == "values"


def _parts(sources: Sequence[LazyTensor]) -> tuple[str, ...]:
    return tuple(name for source in sources for name in (source.parts or (source.name,)))


@lru_cache(maxsize=32)
def _row_map(chain: Chain, shapes: tuple[Shape, ...]) -> tuple[NDArray[np.int64], ...]:
    """For each result, the source row of each of its rows, -1 for zeros; rows are counted through all sources.

    Blocks of a model share chain and shapes, so the cache holds a handful of these.
    """
    start, rows = 1, []
    for shape in shapes:
        n_rows = math.prod(shape[:-1])
        rows.append(np.arange(start, start + n_rows).reshape(*shape[:-1], 1))
        start += n_rows
    return tuple(np.ascontiguousarray(array).reshape(-1) - 1 for array in apply(chain, rows))


def _moved(chain: Chain, sources: Sequence[LazyTensor]) -> list[LazyTensor]:
    """Ops that only move rows, as gathers of stored rows."""
    shapes = tuple(source.info.shape for source in sources)
    beside = _moved_beside(chain, sources)
    if len({source.info.dtype for source in sources}) > 1 or beside is None:
        sources, beside = [decoded(source) for source in sources], None
    ends = np.cumsum([source.info.n_rows for source in sources])
    first = sources[0].info
    work = max(source.row_work for source in sources) + first.row_nbytes

    def taken(owner: int, rows: NDArray[np.int64]) -> Rows:
        if owner < 0:
            return np.zeros((len(rows), first.row_nbytes), np.uint8)
        return sources[owner].take(rows - (ends[owner] - sources[owner].info.n_rows))

    def gathered(which: int, shape: Shape) -> LazyTensor:
        def read(start: int, stop: int) -> Rows:
            rows = _row_map(chain, shapes)[which][start:stop]
            if not len(rows):
                return np.empty((0, first.row_nbytes), np.uint8)
            owner = np.where(rows < 0, -1, np.searchsorted(ends, rows, side="right"))
            cuts = np.flatnonzero(np.diff(owner)) + 1
            pieces = [taken(owner[at], part) for at, part in zip([0, *cuts], np.split(rows, cuts), strict=True)]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

        info = TensorInfo(first.name, shape, first.dtype)
        whole = any(source.indivisible for source in sources)
        made = sources[0].derived(info, read, parts=_parts(sources), work_nbytes=work, indivisible=whole)
        return replace(made, beside=beside[which] if beside else None)

    return [gathered(which, shape) for which, shape in enumerate(infer(chain, shapes))]


def _moved_beside(chain: Chain, sources: Sequence[LazyTensor]) -> list[Beside | None] | None:
    """What stands beside the blocks of each result; None where a matrix has rows of tensors with other numbers."""
    if all(source.beside is None for source in sources):
        return [None] * len(infer(chain, [source.info.shape for source in sources]))
    if any(source.beside is None for source in sources):
        return None
    own = [source.beside for source in sources if source.beside is not None]
    numbers = np.array([pair for each in own for pair in zip(each.scale, each.input_scale, strict=True)])
    runs = [
        source.info.n_rows // len(each.scale) for source, each in zip(sources, own, strict=True) for _ in each.scale
    ]
    shapes, free = tuple(source.info.shape for source in sources), all(each.prec_a4 for each in own)
    made: list[Beside | None] = []
    for rows, shape in zip(_row_map(chain, shapes), infer(chain, shapes), strict=True):
        found = numbers[np.searchsorted(np.cumsum(runs), rows, side="right")]
        matrices = found.reshape(math.prod(shape[:-2]), -1, 2)
        if (rows < 0).any() or (matrices != matrices[:, :1]).any():
            return None
        first = matrices[:, 0]
        first = first[:1] if (first == first[0]).all() and len(numbers) == 1 else first
        made.append(Beside(tuple(first[:, 0].tolist()), tuple(first[:, 1].tolist()), free))
    return made


def _changed(chain: Chain, tensors: Sequence[LazyTensor]) -> list[LazyTensor]:
    """Ops that change numbers one by one, each on all tensors in flight or, by `At`, on one."""
    result = []
    for index, tensor in enumerate(tensors):
        here = (op for op in chain if not isinstance(op, At) or op.index <= index < op.stop)
        ops = tuple(op.op if isinstance(op, At) else op for op in here)
        result.append(_calculated(ops, decoded(tensor), tensor.info.dtype is F16) if ops else tensor)
    return result


def _calculated(ops: Chain, tensor: LazyTensor, half: bool) -> LazyTensor:
    def read(start: int, stop: int) -> Rows:
        numbers = np.ascontiguousarray(tensor.rows(start, stop)).view(np.float32)
        with np.errstate(all="ignore"):  # values that are not finite are counted where they are encoded
            (array,) = apply(ops, [numbers], half)
        return np.ascontiguousarray(array, np.float32).view(np.uint8)

    work = tensor.row_work + tensor.info.row_nbytes
    return tensor.derived(read=read, parts=_parts([tensor]), work_nbytes=work)


def _whole(chain: Chain, sources: Sequence[LazyTensor]) -> list[LazyTensor]:
    """Any chain, on tensors held in memory."""
    as_numbers = len({source.info.dtype for source in sources}) > 1 or any(map(_changes_values, chain))
    half = as_numbers and all(source.info.dtype is F16 for source in sources)
    plain = [decoded(source) if as_numbers or source.info.dtype.quantized else source for source in sources]
    first = plain[0].info

    def computed(which: int, shape: Shape) -> LazyTensor:
        info = TensorInfo(first.name, shape, first.dtype)

        def read(start: int, stop: int) -> Rows:
            array = apply(chain, [source.array() for source in plain], half)[which]
            data = np.ascontiguousarray(array, first.dtype.numpy).view(np.uint8)
            return data.reshape(info.n_rows, info.row_nbytes)[start:stop]

        work = info.row_nbytes + sum(source.info.nbytes for source in plain) // max(1, info.n_rows)
        return sources[0].derived(info, read, parts=_parts(sources), work_nbytes=work, indivisible=True)

    return [computed(which, shape) for which, shape in enumerate(infer(chain, [source.info.shape for source in plain]))]
