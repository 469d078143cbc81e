"""Ops on tensors that have not been read: the result is again a tensor that reads on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from converter import kernels
from converter.dtypes import F32
from converter.errors import QuantizationError
from converter.ops import Chain, Shape, apply, infer, reach
from converter.tensor import LazyTensor, Rows, TensorInfo


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

    work = tensor.row_work + 4 * info.row
    return LazyTensor(
        TensorInfo(info.name, info.shape, F32), read, tensor.source, tensor.parts, work, tensor.indivisible
    )


def values(tensor: LazyTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows [start, stop) as float32 of shape (stop - start, row)."""
    dtype, data = tensor.info.dtype, tensor.rows(start, stop)
    if dtype.floating:
        return kernels.decode(data, dtype)
    assert dtype.numpy is not None  # `decoded` admits floats and integers only
    return np.ascontiguousarray(data).view(dtype.numpy).astype(np.float32)


def compose(chain: Chain, sources: Sequence[LazyTensor], names: Sequence[str]) -> list[LazyTensor]:
    """Apply bound ops to lazy tensors.

    Row moves act on packed bytes and stream; value ops decode to F32 and stream; whatever touches the last
    axis holds one tensor in memory.

    Raises:
        ShapeMismatch: an op does not fit the shapes.
    """
    shapes = tuple(source.info.shape for source in sources)
    results = infer(chain, shapes)
    if not chain:
        return [source.renamed(name) for source, name in zip(sources, names, strict=True)]
    kind = reach(chain, shapes)
    if kind == "values" or len({source.info.dtype for source in sources}) > 1:
        sources = [decoded(source) for source in sources]
    if kind == "whole":
        return _whole(chain, sources, names, results)
    moves = tuple(op for op in chain if op.reach(2) == "rows")
    moved = _moved(moves, sources, names, results) if moves else [s.renamed(n) for s, n in zip(sources, names, strict=True)]
    changes = tuple(op for op in chain if op.reach(2) == "values")
    return [_changed(changes, tensor) for tensor in moved] if changes else moved


def _parts(sources: Sequence[LazyTensor]) -> tuple[str, ...]:
    return tuple(name for source in sources for name in (source.parts or (source.name,)))


@lru_cache(maxsize=32)
def _row_map(chain: Chain, shapes: tuple[Shape, ...]) -> tuple[NDArray[np.int64], ...]:
    """For each result, the source row of each of its rows; source rows are counted through all sources.

    Blocks of a model share chain and shapes, so the cache holds a handful of these.
    """
    start, rows = 0, []
    for shape in shapes:
        n_rows = math.prod(shape[:-1])
        rows.append(np.arange(start, start + n_rows).reshape(*shape[:-1], 1))
        start += n_rows
    return tuple(np.ascontiguousarray(array).reshape(-1) for array in apply(chain, rows))


def _moved(
    chain: Chain, sources: Sequence[LazyTensor], names: Sequence[str], results: Sequence[Shape]
) -> list[LazyTensor]:
    shapes = tuple(source.info.shape for source in sources)
    ends = np.cumsum([source.info.n_rows for source in sources])
    dtype = sources[0].info.dtype
    work = max(source.row_work for source in sources) + dtype.row_nbytes(sources[0].info.row)

    def gathered(which: int) -> LazyTensor:
        def read(start: int, stop: int) -> Rows:
            rows = _row_map(chain, shapes)[which][start:stop]
            owner = np.searchsorted(ends, rows, side="right")
            cuts = np.flatnonzero(np.diff(owner)) + 1
            pieces = [
                sources[owner[first]].take(part - (ends[owner[first]] - sources[owner[first]].info.n_rows))
                for first, part in zip([0, *cuts], np.split(rows, cuts), strict=True)
            ]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

        info = TensorInfo(names[which], results[which], dtype)
        return LazyTensor(info, read, sources[0].source, _parts(sources), work)

    return [gathered(which) for which in range(len(names))]


def _changed(chain: Chain, tensor: LazyTensor) -> LazyTensor:
    def read(start: int, stop: int) -> Rows:
        (array,) = apply(chain, [np.ascontiguousarray(tensor.rows(start, stop)).view(np.float32)])
        return np.ascontiguousarray(array, np.float32).view(np.uint8)

    return LazyTensor(
        tensor.info, read, tensor.source, tensor.parts or (tensor.name,), tensor.row_work + 4 * tensor.info.row
    )


def _whole(
    chain: Chain, sources: Sequence[LazyTensor], names: Sequence[str], results: Sequence[Shape]
) -> list[LazyTensor]:
    plain = [decoded(source) if source.info.dtype.quantized else source for source in sources]
    dtype = plain[0].info.dtype

    def computed(which: int) -> LazyTensor:
        info = TensorInfo(names[which], results[which], dtype)

        def read(start: int, stop: int) -> Rows:
            array = apply(chain, [source.array() for source in plain])[which]
            return np.ascontiguousarray(array).view(np.uint8).reshape(info.n_rows, info.row_nbytes)[start:stop]

        return LazyTensor(info, read, sources[0].source, _parts(sources), indivisible=True)

    return [computed(which) for which in range(len(names))]
