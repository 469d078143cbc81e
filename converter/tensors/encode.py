"""The Encode stage: each tensor in the type that was chosen for it, still unread."""

from __future__ import annotations

import threading
from collections import Counter
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from converter.errors import MissingImportance, QuantizationError
from converter.events import BlocksOverflow, Event, NotFinite, Overflow, ScalesRounded
from converter.tensors import kernels
from converter.tensors.dtypes import F32, DType
from converter.tensors.scales import broken_blocks
from converter.tensors.streams import decoded, values
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo


class Importance(Protocol):
    """How much each column matters: float32 (row,) for each of the matrices that a tensor stacks (its experts).

    `matrix` is what messages call the importance matrix that it is of.
    """

    @property
    def matrix(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, matrix: int, /) -> NDArray[np.float32]: ...


@runtime_checkable
class Feedback(Importance, Protocol):
    """Importance that also says what an error of a column is worth in those to the right of it (native/feedback.c)."""

    def factor(self, matrix: int, /) -> Rows: ...


@dataclass(frozen=True)
class Alike:
    """Importance of columns that all matter alike."""

    row: int
    matrix: str = "no matrix"

    def __len__(self) -> int:
        return 1

    def __getitem__(self, matrix: int) -> NDArray[np.float32]:
        return np.ones(self.row, np.float32)


Counts = tuple[dict[Any, int], dict[Any, int], dict[Any, int], dict[Any, int]]


class Watch:
    """Counts, from all workers, of values that are not finite or that a cast pushed out of range.

    Under `strict` the first such value ends the run.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._first = True
        self._lock = threading.Lock()
        self._not_finite: Counter[str] = Counter()
        self._overflow: Counter[tuple[str, str]] = Counter()
        self._blocks: Counter[tuple[str, str]] = Counter()
        self._scales: Counter[tuple[str, str]] = Counter()

    def again(self) -> Watch:
        """The same watch for a second encoding of the same numbers: what the source held is counted already."""
        second = copy(self)
        second._first = False
        return second

    def beside(self) -> Watch:
        """The watch of another output of the same numbers: what the source held is shared, what is lost its own."""
        second = self.again()
        second._overflow, second._blocks, second._scales = Counter(), Counter(), Counter()
        return second

    def not_finite(self, tensor: str, count: int) -> None:
        with self._lock:
            if count and self._first:
                self._not_finite[tensor] += count

    def overflow(self, tensor: str, target: str, count: int) -> None:
        with self._lock:
            if count:
                self._overflow[tensor, target] += count

    def blocks(self, tensor: str, target: str, count: int) -> None:
        with self._lock:
            self._blocks[tensor, target] += count

    def scales(self, tensor: str, target: str, count: int) -> None:
        with self._lock:
            if count:
                self._scales[tensor, target] += count

    def take(self) -> Counts:
        """What was counted so far, to be added to the watch of another process; it counts from nothing again."""
        with self._lock:
            taken = self._not_finite, self._overflow, self._blocks, self._scales
            counts = dict(taken[0]), dict(taken[1]), dict(taken[2]), dict(taken[3])
            for each in taken:
                each.clear()
        return counts

    def add(self, counts: Counts) -> None:
        """Count what the watch of another process did."""
        with self._lock:
            own: tuple[Counter[Any], ...] = self._not_finite, self._overflow, self._blocks, self._scales
            for counter, each in zip(own, counts, strict=True):
                counter.update(each)

    @property
    def tripped(self) -> bool:
        """Whether a strict run must stop."""
        return self.strict and bool(self._not_finite or self._overflow or self._blocks or self._scales)

    def events(self) -> list[Event]:
        """What was seen, by tensor."""
        return [
            *(NotFinite(name, count) for name, count in sorted(self._not_finite.items())),
            *(Overflow(name, target, count) for (name, target), count in sorted(self._overflow.items())),
            *(BlocksOverflow(name, target, count) for (name, target), count in sorted(self._blocks.items())),
            *(ScalesRounded(name, target, count) for (name, target), count in sorted(self._scales.items())),
        ]


def _whole_numbers(tensor: LazyTensor, dtype: DType, old: np.dtype[Any], new: np.dtype[Any]) -> LazyTensor:
    """Whole numbers in another type of them, which holds each."""

    def read(start: int, stop: int) -> Rows:
        given = np.ascontiguousarray(tensor.rows(start, stop)).view(old)
        made = given.astype(new)
        if (made != given).any():
            raise QuantizationError(f"{tensor.name}: a value does not fit {dtype}")
        return made.view(np.uint8)

    return tensor.derived(TensorInfo(tensor.name, tensor.info.shape, dtype), read, work_nbytes=2 * tensor.row_work)


def encoded(
    tensor: LazyTensor, dtype: DType, watch: Watch, weights: Importance | None = None, effort: int = 0
) -> LazyTensor:
    """`tensor` in encoding `dtype`.

    Rows already in `dtype` pass untouched, bit for bit. Others are decoded to F32 and encoded by the kernels.
    `weights` is the importance of the columns of each stacked matrix: `tensor.info.shape[-3]`, or 1 for a 2-D tensor;
    `effort` is that of `kernels.encode`.

    Raises:
        QuantizationError: rows do not divide into blocks, or the tensor does not hold real numbers.
        MissingImportance: nothing can be encoded as `dtype` without weights.
    """
    info = tensor.info
    result = TensorInfo(info.name, info.shape, dtype)
    row_nbytes = result.row_nbytes  # raises where the row does not fit
    if info.dtype is dtype:
        return _watched(tensor, watch)
    if not dtype.floating and not info.dtype.floating and dtype.numpy is not None and info.dtype.numpy is not None:
        return _whole_numbers(tensor, dtype, info.dtype.numpy, dtype.numpy)
    if not dtype.floating:
        raise QuantizationError(f"{info.name}: {info.dtype} cannot be stored as {dtype}")
    decoded(tensor)  # raises where there are no numbers
    if weights is None and kernels.needs_importance(dtype):
        raise MissingImportance(
            f"{info.name}: {dtype} cannot be encoded without importance, and no matrix has an entry for this tensor\n"
            "pass --imatrix FILE, or choose another type"
        )
    rows_per_matrix = max(1, info.shape[-2]) if len(info.shape) > 1 else 1

    # Without importance, tens of thousands of tensors go without a cache each.
    moderate = _always if weights is None else cache(partial(_is_moderate, weights))

    def read(start: int, stop: int) -> Rows:
        numbers = values(tensor, start, stop)
        data = encode_rows(numbers, dtype, weights, start, rows_per_matrix, effort)
        ordinary = _ordinary(numbers)
        if ordinary and moderate() and dtype.name != _WRAPS:
            return data
        if not ordinary:
            watch.not_finite(info.name, kernels.nonfinite(numbers.view(np.uint8), F32))
        if not dtype.quantized:
            watch.overflow(info.name, dtype.name, _newly_nonfinite(numbers, data, dtype))
        elif len(lost := _lost_blocks(numbers, data, dtype)):
            if weights is not None and not isinstance(weights, Feedback):
                alike = encode_rows(numbers, dtype, Alike(info.row), start, rows_per_matrix, effort)
                made = np.setdiff1d(lost, _lost_blocks(numbers, alike, dtype))
                _refuse_matrix(info.name, weights.matrix, len(made), dtype)
            watch.blocks(info.name, dtype.name, len(lost))
        return data

    work = tensor.row_work + 4 * info.row + row_nbytes
    return tensor.derived(result, read, work_nbytes=work)


# No type fails to hold numbers up to this one, the largest of F8_E4M3, be they ever so mixed, where no column's
# importance is larger than that; but the scale of an MXFP4 block wraps around where all its numbers are below 2^-124.
_ORDINARY, _MODERATE, _WRAPS = 448.0, 1e24, "MXFP4"
# A block that holds its numbers has one that is not this much smaller than the largest of them; types that can be too
# coarse for numbers below the second are not blamed for it.
_SHRUNK, _SMALL = 1 / 1024, 0.125


def _is_moderate(weights: Importance) -> bool:
    return all(weights[at].max() <= _MODERATE for at in range(len(weights)))


def _always() -> bool:
    return True


def _ordinary(numbers: NDArray[np.float32]) -> bool:
    """Whether all are so small that no type has trouble with them."""
    return kernels.largest(numbers) <= _ORDINARY  # a NaN is not


def _newly_nonfinite(numbers: NDArray[np.float32], data: Rows, dtype: DType) -> int:
    """How many numbers a cast pushed out of range."""
    return kernels.nonfinite(data, dtype) - kernels.nonfinite(numbers.view(np.uint8), F32)


def _lost_blocks(numbers: NDArray[np.float32], data: Rows, dtype: DType) -> NDArray[np.intp]:
    """The blocks that do not hold their numbers, which are finite: a scale is not, or they are next to nothing now."""
    blocks = numbers.reshape(-1, dtype.block_of(numbers.shape[1]))
    large = np.abs(blocks).max(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        held = np.abs(kernels.decode(data, dtype).reshape(blocks.shape)).max(axis=1) >= large * np.float32(_SHRUNK)
    lost = (large >= _SMALL) & ~held
    lost[broken_blocks(data, dtype)] = True
    return np.flatnonzero(lost & np.isfinite(large))


def _refuse_matrix(tensor: str, matrix: str, count: int, dtype: DType) -> None:
    """Refuse an importance matrix without which blocks would hold their numbers.

    Raises:
        QuantizationError: there are such blocks.
    """
    if count:
        raise QuantizationError(
            f"{tensor}: {matrix} makes {count} blocks of {dtype} that do not hold their numbers, and do without it: "
            "its values for this tensor are too large\n"
            f"--exclude-weights {tensor} does without them; nothing was written"
        )


def encode_rows(
    numbers: NDArray[np.float32],
    dtype: DType,
    weights: Importance | None,
    start: int,
    rows_per_matrix: int,
    effort: int = 0,
) -> Rows:
    """Rows [start, start + len(numbers)) of a tensor, encoded; each of the matrices it stacks by its own importance."""
    if weights is None:
        return kernels.encode(numbers, dtype, effort=effort)
    pieces: list[Rows] = []
    row, stop = start, start + len(numbers)
    while not pieces or row < stop:
        matrix = row // rows_per_matrix
        end = min(stop, (matrix + 1) * rows_per_matrix)
        pieces.append(_encode_matrix(numbers[row - start : end - start], dtype, weights, matrix % len(weights), effort))
        row = end
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _encode_matrix(numbers: NDArray[np.float32], dtype: DType, weights: Importance, matrix: int, effort: int) -> Rows:
    if isinstance(weights, Feedback) and dtype.name in kernels.FEEDBACK:
        return kernels.encode_with_feedback(numbers, dtype, weights.factor(matrix), effort)
    return kernels.encode(numbers, dtype, weights=weights[matrix], effort=effort)


def _watched(tensor: LazyTensor, watch: Watch) -> LazyTensor:
    info = tensor.info
    if info.dtype.quantized or info.dtype.name not in ("F32", "F16", "BF16", "F64"):
        return tensor

    def read(start: int, stop: int) -> Rows:
        data = tensor.rows(start, stop)
        bad = kernels.nonfinite(data, info.dtype)
        if bad:
            watch.not_finite(info.name, bad)
        return data

    return tensor.derived(read=read)
