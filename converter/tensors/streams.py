"""Ops on tensors that have not been read: the result is again a tensor that reads on demand."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from converter.errors import QuantizationError, ShapeMismatch
from converter.tensors import kernels
from converter.tensors.dtypes import F16, F32
from converter.tensors.ops import Chain, Op, Shape, apply, infer, reaches, taking
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


class _Memory(threading.local):
    """What a thread has as numbers already, while `once` lasts."""

    numbers: dict[tuple[int, int, int], NDArray[np.float32]] | None = None


_memory = _Memory()


@contextmanager
def once() -> Iterator[None]:
    """While it lasts, rows that this thread asks for again as numbers are neither read nor widened again.

    What such rows are made of is not kept.
    """
    _memory.numbers = {}
    try:
        yield
    finally:
        _memory.numbers = None


def values(tensor: LazyTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows [start, stop) as float32 of shape (stop - start, row)."""
    memory, key = _memory.numbers, (id(tensor), start, stop)
    if memory is None:
        return _values(tensor, start, stop)
    if key not in memory:
        _memory.numbers = None
        try:
            numbers = memory[key] = _values(tensor, start, stop)
        finally:
            _memory.numbers = memory
        numbers.flags.writeable = False
    return memory[key]


def _values(tensor: LazyTensor, start: int, stop: int) -> NDArray[np.float32]:
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

    Row moves act on packed bytes and stream; value ops decode to F32 and stream; ops within the indexes of the first
    axis stream index by index; a chain that touches a last axis which is also the first holds one tensor in memory.
    What is stored in F16 is calculated in F16, as torch does it: the F32 is rounded after each op.

    Raises:
        ShapeMismatch: an op does not fit the shapes.
    """
    shapes = tuple(source.info.shape for source in sources)
    kinds = reaches(chain, shapes)
    tensors = list(sources)
    if "whole" in kinds:
        tensors = _whole(chain, tensors)
    else:
        ops = iter(chain)
        for kind, group in groupby(kinds):
            tensors = _STREAMS[kind](tuple(islice(ops, len(list(group)))), tensors)
    return [tensor.renamed(name) for tensor, name in zip(tensors, names, strict=True)]


def _parts(sources: Sequence[LazyTensor]) -> tuple[str, ...]:
    return tuple(name for source in sources for name in (source.parts or (source.name,)))


def _as_rows(shape: Shape) -> Shape:
    """The last two axes as one: what lies under an index of the axes before them is a row."""
    return (*shape[:-2], math.prod(shape[-2:]))


def _moved_together(chain: Chain, shapes: tuple[Shape, ...]) -> tuple[int, tuple[Shape, ...]]:
    """How many rows in sequence the chain always moves together, and the shapes with those as one row.

    To stack matrices is to move matrices: a map of their rows, two million in a layer of experts, need not be there.
    """
    together, results = 1, infer(chain, shapes)
    while all(len(shape) > 1 for shape in (*shapes, *results)) and len({shape[-2] for shape in shapes}) == 1:
        wider, moved = tuple(map(_as_rows, shapes)), list(map(_as_rows, results))
        try:
            alike = set(reaches(chain, wider)) == {"rows"} and infer(chain, wider) == moved
        except ShapeMismatch:
            alike = False
        if not alike:
            break
        together *= shapes[0][-2]
        shapes, results = wider, moved
    return together, shapes


@lru_cache(maxsize=32)
def _row_map(chain: Chain, shapes: tuple[Shape, ...]) -> tuple[int, tuple[NDArray[np.int64], ...]]:
    """How many rows move together, and for each result the source of each of its groups of so many; -1 for zeros.

    Groups are counted through all sources. Blocks of a model share chain and shapes, so the cache holds few of these.
    """
    together, shapes = _moved_together(chain, shapes)
    start, rows = 1, []
    for shape in shapes:
        n_rows = math.prod(shape[:-1])
        rows.append(np.arange(start, start + n_rows).reshape(*shape[:-1], 1))
        start += n_rows
    return together, tuple(np.ascontiguousarray(array).reshape(-1) - 1 for array in apply(chain, rows))


def source_rows(chain: Chain, shapes: tuple[Shape, ...], which: int, start: int, stop: int) -> NDArray[np.int64]:
    """The source row of each of the rows [start, stop) of a result, -1 for zeros, counted through all sources."""
    together, maps = _row_map(chain, shapes)
    if together == 1:
        return maps[which][start:stop]
    group, row = np.divmod(np.arange(start, stop), together)
    source = maps[which][group]
    return np.where(source < 0, -1, source * together + row)


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

    def grain(which: int, shape: Shape) -> int:
        """The most rows in sequence that come from one grain of a source."""
        if all(source.grain == 1 for source in sources):
            return 1
        rows = source_rows(chain, shapes, which, 0, math.prod(shape[:-1]))
        owner = np.searchsorted(ends, rows, side="right")
        grains = np.array([source.grain for source in sources])
        starts = ends - [source.info.n_rows for source in sources]
        changes = np.diff(owner) | np.diff((rows - starts[owner]) // grains[owner])
        return int(np.diff(np.flatnonzero(changes), prepend=-1, append=len(rows) - 1).max())

    def gathered(which: int, shape: Shape) -> LazyTensor:
        def read(start: int, stop: int) -> Rows:
            rows = source_rows(chain, shapes, which, start, stop)
            if not len(rows):
                return np.empty((0, first.row_nbytes), np.uint8)
            owner = np.where(rows < 0, -1, np.searchsorted(ends, rows, side="right"))
            cuts = np.flatnonzero(np.diff(owner)) + 1
            pieces = [taken(owner[at], part) for at, part in zip([0, *cuts], np.split(rows, cuts), strict=True)]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

        info = TensorInfo(first.name, shape, first.dtype)
        made = sources[0].derived(info, read, parts=_parts(sources), work_nbytes=work, grain=grain(which, shape))
        return replace(made, beside=beside[which] if beside else None)

    return [gathered(which, shape) for which, shape in enumerate(infer(chain, shapes))]


@lru_cache(maxsize=32)
def _runs(chain: Chain, shapes: tuple[Shape, ...], runs: tuple[int, ...]) -> tuple[NDArray[np.int64], ...]:
    """For each result, of which run of source rows the rows of each matrix are: (matrices, 1) where each is of one."""
    found = []
    for which, shape in enumerate(infer(chain, shapes)):
        rows = source_rows(chain, shapes, which, 0, math.prod(shape[:-1]))
        owner = np.where(rows < 0, -1, np.searchsorted(np.cumsum(runs), rows, side="right"))
        owner = owner.reshape(math.prod(shape[:-2]), -1)
        found.append(owner[:, :1].copy() if (owner == owner[:, :1]).all() else owner)
    return tuple(found)


def _moved_beside(chain: Chain, sources: Sequence[LazyTensor]) -> list[Beside | None] | None:
    """What stands beside the blocks of each result; None where a matrix has rows of tensors with other numbers."""
    shapes = tuple(source.info.shape for source in sources)
    if all(source.beside is None for source in sources):
        return [None] * len(infer(chain, shapes))
    if any(source.beside is None for source in sources):
        return None
    own = [source.beside for source in sources if source.beside is not None]
    numbers = np.array([pair for each in own for pair in zip(each.scale, each.input_scale, strict=True)])
    each_run = zip(sources, own, strict=True)
    runs = tuple(source.info.n_rows // len(each.scale) for source, each in each_run for _ in each.scale)
    free, made = all(each.prec_a4 for each in own), list[Beside | None]()
    for owner in _runs(chain, shapes, runs):
        found = numbers[owner]
        if (owner < 0).any() or (found != found[:, :1]).any():
            return None
        first = found[:1, 0] if len(numbers) == 1 else found[:, 0]
        made.append(Beside(tuple(first[:, 0].tolist()), tuple(first[:, 1].tolist()), free))
    return made


def _changed(chain: Chain, tensors: Sequence[LazyTensor]) -> list[LazyTensor]:
    """Ops that change numbers one by one, each on all tensors in flight or, by `At`, on one."""
    result = []
    for index, tensor in enumerate(tensors):
        taken = (taking(op, len(tensors)) for op in chain)
        ops = tuple(op for op, start, stop in taken if start <= index < stop)
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


def _apart(chain: Chain, tensors: Sequence[LazyTensor]) -> list[LazyTensor]:
    """Ops that do the same to each index of the first axis, each on all tensors in flight or, by `At`, on some."""
    result = list(tensors)
    for each in chain:
        op, start, stop = taking(each, len(result))
        result[start:stop] = _by_index(op, result[start:stop])
    return result


def _by_index(op: Op, sources: Sequence[LazyTensor]) -> list[LazyTensor]:
    plain = _dense(sources)
    first, count = plain[0].info, max(1, plain[0].info.shape[0])
    kind = first.dtype.numpy
    assert kind is not None  # what is packed is decoded

    def part(source: LazyTensor, low: int, high: int) -> NDArray[np.generic]:
        """Indexes [low, high) of the first axis."""
        inner = source.info.n_rows // count
        data = np.ascontiguousarray(source.rows(low * inner, high * inner)).view(kind)
        return data.reshape(high - low, *source.info.shape[1:])

    def computed(which: int, shape: Shape) -> LazyTensor:
        info = TensorInfo(first.name, shape, first.dtype)
        inner = max(1, math.prod(shape[1:-1]))

        def read(start: int, stop: int) -> Rows:
            low, high = start // inner, -(-stop // inner)
            array = op.apply([part(source, low, high) for source in plain])[which]
            rows = array.reshape((high - low) * inner, info.row)[start - low * inner : stop - low * inner]
            return np.ascontiguousarray(rows).view(np.uint8)

        given = sum(source.row_work * source.info.n_rows for source in plain)
        work = info.row_nbytes + given // max(1, info.n_rows)
        grain = max(inner, *(source.grain * info.n_rows // max(1, source.info.n_rows) for source in plain))
        return sources[0].derived(info, read, parts=_parts(sources), work_nbytes=work, grain=grain)

    return [computed(which, shape) for which, shape in enumerate(op.infer([source.info.shape for source in plain]))]


def _dense(sources: Sequence[LazyTensor]) -> list[LazyTensor]:
    """The tensors in one type whose elements can be moved: their own, or F32 where they are packed or differ."""
    alike = len({source.info.dtype for source in sources}) == 1
    return [source if alike and not source.info.dtype.quantized else decoded(source) for source in sources]


def _whole(chain: Chain, sources: Sequence[LazyTensor]) -> list[LazyTensor]:
    """Any chain, on tensors held in memory."""
    as_numbers = any(op.computes for op in chain)
    half = as_numbers and all(source.info.dtype is F16 for source in sources)
    plain = [decoded(source) for source in sources] if as_numbers else _dense(sources)
    first = plain[0].info

    def computed(which: int, shape: Shape) -> LazyTensor:
        info = TensorInfo(first.name, shape, first.dtype)

        def read(start: int, stop: int) -> Rows:
            array = apply(chain, [source.array() for source in plain], half)[which]
            data = np.ascontiguousarray(array, first.dtype.numpy).view(np.uint8)
            return data.reshape(info.n_rows, info.row_nbytes)[start:stop]

        work = info.row_nbytes + sum(source.info.nbytes for source in plain) // max(1, info.n_rows)
        return sources[0].derived(info, read, parts=_parts(sources), work_nbytes=work, grain=info.n_rows)

    return [computed(which, shape) for which, shape in enumerate(infer(chain, [source.info.shape for source in plain]))]


#: How the ops of each reach stream.
_STREAMS = {"rows": _moved, "values": _changed, "outer": _apart}
