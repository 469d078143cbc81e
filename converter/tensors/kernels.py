"""Encoding and decoding of every ggml type: the Python face of the C kernels.

Bytes equal those of `ggml_quantize_chunk` and values those of ggml's `to_float`, on every CPU and
for any number of threads. Casts to dense types round to nearest, ties to even:

- F16: overflow to infinity, every NaN to sign | 0x7E00 (as ggml).
- BF16: overflow to infinity, a NaN keeps its upper bits and becomes quiet (as ggml and gguf-py).
- F8_E4M3 (fn): beyond 464 to NaN, there is no infinity (as torch and ml_dtypes).
- F8_E5M2: overflow to infinity (as torch and ml_dtypes).

The instruction set is the best this machine has; the environment variable `CONVERTER_ISA` names
another (one of `available_isas()`). It changes speed, never bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from converter import _native, workers
from converter.errors import MissingImportance, QuantizationError, UsageError
from converter.tensors import dtypes as _dtypes
from converter.tensors import int8
from converter.tensors.dtypes import INT8, DType

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
_Scalar = TypeVar("_Scalar", bound=np.generic)

#: name -> (elements of a block, bytes of a block, can be encoded, needs importance weights)
TYPES: dict[str, tuple[int, int, bool, bool]] = _native.types()

#: Types that can be encoded with error feedback.
FEEDBACK = frozenset(_native.feedback_types())

#: Memory that one thread should hold for the rows it works on: a core's cache takes them with their encoded result.
SLAB_NBYTES = 2 << 20


def isa() -> str:
    """The instruction set that the kernels use: "scalar", "sse2", "avx2", "avx512" or "neon"."""
    return _native.isa()


def available_isas() -> tuple[str, ...]:
    """Instruction sets that this machine can run, best first."""
    return _native.available_isas()


def _apply_environment() -> None:
    wanted = os.environ.get("CONVERTER_ISA")
    if not wanted:
        return
    if wanted not in available_isas():
        raise UsageError(f"CONVERTER_ISA={wanted} cannot run here; choose one of {', '.join(available_isas())}")
    _native.select_isa(wanted)


_apply_environment()


def encodable(dtype: DType) -> bool:
    """Whether `encode` writes this type."""
    return (dtype.name in TYPES and TYPES[dtype.name][2]) or _by_numpy(dtype) or dtype is INT8


def needs_importance(dtype: DType) -> bool:
    """Whether ggml refuses to encode this type without importance weights (IQ2_XXS, IQ2_XS, IQ1_S)."""
    return dtype.name in TYPES and TYPES[dtype.name][3]


def encode(
    rows: Floats, dtype: DType, *, weights: Floats | None = None, effort: int = 0, out: Bytes | None = None
) -> Bytes:
    """Encode float32 rows; on the calling thread, with the GIL released.

    Args:
        rows: (n, row), C-contiguous or not.
        dtype: target encoding.
        weights: (row,), the importance of each column; ignored by types that do not use it.
        effort: 0 for the bytes of ggml, 1 for its codes with scales that shrink nothing (native/effort.c), 2 and 3 for
            scales that are searched for (native/effort_search.c), where the type can have them.
        out: (n, row_nbytes) uint8, C-contiguous, to write to; allocated when None.

    Returns:
        (n, row_nbytes) uint8; `out` if given.

    Raises:
        QuantizationError: the row does not divide into blocks, or the type cannot be encoded.
        MissingImportance: the type needs weights.
        ValueError, TypeError: an array has the wrong shape or type.
    """
    if rows.ndim != 2:
        raise ValueError(f"rows must be (n, row), not {rows.ndim}-dimensional")
    n, row = rows.shape
    out = _output(out, (n, dtype.row_nbytes(row)), np.uint8)
    if weights is not None and weights.shape != (row,):
        raise ValueError(f"weights must be ({row},), not {weights.shape}")
    if not encodable(dtype):
        raise QuantizationError(f"{dtype.name} cannot be encoded; choose another type")
    if needs_importance(dtype) and weights is None:
        raise MissingImportance(f"{dtype.name} cannot be encoded without an importance matrix; pass --imatrix FILE")
    if out.size == 0:
        return out
    if _by_numpy(dtype):
        out[...] = np.asarray(rows).astype(dtype.numpy).view(np.uint8).reshape(out.shape)
        return out
    if dtype is INT8:
        int8.encode(np.asarray(rows), out)
        return out
    given = None if weights is None else _aligned(weights, np.float32)
    _native.encode(dtype.name, _aligned(rows, np.float32), out, row, given, effort)
    return out


def encode_with_feedback(rows: Floats, dtype: DType, factor: Bytes, effort: int = 0) -> Bytes:
    """Encode float32 rows whose rounding errors the columns to the right make good; on the calling thread.

    Args:
        rows: (n, row), whole rows of a matrix, whose result does not depend on each other's.
        dtype: one of `FEEDBACK`.
        factor: uint8, the row * (row + 1) / 2 BF16 numbers that say how the matrix' inputs go together
            (native/feedback.c).
        effort: as of `encode`.

    Returns:
        (n, row_nbytes) uint8.

    Raises:
        QuantizationError: the row does not divide into blocks.
        ValueError: another type, or a factor of another size.
    """
    out = np.empty((len(rows), dtype.row_nbytes(rows.shape[1])), np.uint8)
    if out.size:
        numbers = _aligned(rows, np.float32)
        _native.feedback(dtype.name, numbers, out, rows.shape[1], np.require(factor, np.uint8, ("C",)), effort)
    return out


def decode(data: Bytes, dtype: DType, *, out: Floats | None = None) -> Floats:
    """Decode rows to float32; on the calling thread, with the GIL released.

    Args:
        data: (n, row_nbytes) uint8.
        dtype: any floating encoding.
        out: (n, row) float32, C-contiguous, to write to; allocated when None.

    Returns:
        (n, row) float32; `out` if given.

    Raises:
        QuantizationError: the bytes are not whole blocks, or the type is not a floating one.
    """
    if data.ndim != 2:
        raise ValueError(f"data must be (n, row_nbytes), not {data.ndim}-dimensional")
    n, nbytes = data.shape
    row = dtype.row_of(nbytes)
    if not dtype.floating:
        raise QuantizationError(f"{dtype.name} does not hold real numbers")
    out = _output(out, (n, row), np.float32)
    if out.size == 0:
        return out
    if _by_numpy(dtype):
        out[...] = _values(data, dtype)
        return out
    if dtype is INT8:
        int8.decode(data, out)
        return out
    _native.decode(dtype.name, np.ascontiguousarray(data), out)
    return out


def largest(x: Floats) -> float:
    """The largest magnitude in a float32 array: NaN where one is in it, 0 where it is empty."""
    return _native.largest(_aligned(x, np.float32))


def nonfinite(data: Bytes, dtype: DType) -> int:
    """How many values of (n, row_nbytes) uint8 `data` are NaN or infinite; dense floating types only.

    Raises:
        QuantizationError: the type is blocked or not a floating one.
    """
    if dtype.name in TYPES and dtype.block_size == 1:
        return _native.nonfinite(dtype.name, np.ascontiguousarray(data))
    if not _by_numpy(dtype):
        raise QuantizationError(f"{dtype.name} is not a dense floating type")
    values = _values(data, dtype).astype(np.float32)
    return int(values.size - np.count_nonzero(np.isfinite(values)))


class Differences(NamedTuple):
    """How far a candidate's numbers are from a reference's; sums are over what is finite on both sides.

    Attributes:
        noise, energy, energy_candidate, product: sums of (a - b)^2, a^2, b^2 and a * b; a is the reference.
        max_abs, max_rel: the largest |a - b|, and the largest |a - b| / |a| where a is not 0.
        worst, worst_at: the largest noise of 256 elements in a row, and the number of the first of them (-1: no noise).
        differing_values: elements that are not equal.
        nonfinite_reference, nonfinite: elements that are NaN or infinite, on either side.
        mismatched: elements that are so on one side only, or differently.
    """

    noise: float = 0.0
    energy: float = 0.0
    energy_candidate: float = 0.0
    product: float = 0.0
    max_abs: float = 0.0
    max_rel: float = 0.0
    worst: float = 0.0
    worst_at: int = -1
    differing_values: int = 0
    nonfinite_reference: int = 0
    nonfinite: int = 0
    mismatched: int = 0

    @classmethod
    def together(cls, parts: Sequence[Differences]) -> Differences:
        """Of all parts of a tensor, at least one; sums are rounded once, so that the order does not matter."""
        worst = max(parts, key=lambda part: (part.worst, -part.worst_at))
        return cls(
            noise=math.fsum(part.noise for part in parts),
            energy=math.fsum(part.energy for part in parts),
            energy_candidate=math.fsum(part.energy_candidate for part in parts),
            product=math.fsum(part.product for part in parts),
            max_abs=max(part.max_abs for part in parts),
            max_rel=max(part.max_rel for part in parts),
            worst=worst.worst,
            worst_at=worst.worst_at,
            differing_values=sum(part.differing_values for part in parts),
            nonfinite_reference=sum(part.nonfinite_reference for part in parts),
            nonfinite=sum(part.nonfinite for part in parts),
            mismatched=sum(part.mismatched for part in parts),
        )


#: Of two arrays that hold the same, or of nothing.
NO_DIFFERENCES = Differences()


def compare(
    reference: Floats, candidate: Floats, at: int = 0, histogram: NDArray[np.uint64] | None = None
) -> Differences:
    """Compare two C-contiguous float32 arrays of equally many elements, whose first is number `at` of its tensor.

    Args:
        histogram: (8192,), to which |a - b| of one group of 256 in four is added: its exponent and five bits.
    """
    counts = None if histogram is None else histogram.view(np.uint8)
    return Differences(*_native.compare(reference.reshape(-1), candidate.reshape(-1), at, counts))


def quantize(x: Floats, dtype: str, *, weights: Floats | None = None, threads: int | None = None) -> Bytes:
    """Encode an array along its last axis.

    Args:
        x: float32, any shape of at least one axis.
        dtype: name of the encoding, for instance "Q4_K"; any case.
        weights: (x.shape[-1],), the importance of each column.
        threads: number of threads; all cores when None. The result does not depend on it.

    Returns:
        uint8 of shape x.shape[:-1] + (bytes of a row,).

    Raises:
        QuantizationError: unknown type, rows that do not divide into blocks.
        MissingImportance: the type needs weights.
    """
    target = _dtypes.dtype(dtype)
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim == 0:
        raise TypeError(f"x must be a float32 array with at least one axis, not {x.dtype} of shape {x.shape}")
    rows = x.reshape(-1, x.shape[-1]) if x.size else np.empty((0, x.shape[-1]), np.float32)
    out = np.empty((len(rows), target.row_nbytes(x.shape[-1])), np.uint8)
    encode(rows[:0], target, weights=weights, out=out[:0])  # the checks, before any thread starts
    row_work = 4 * rows.shape[1] + out.shape[1]
    _by_slabs(len(rows), row_work, threads, lambda a, b: encode(rows[a:b], target, weights=weights, out=out[a:b]))
    return out.reshape(*x.shape[:-1], out.shape[1])


def dequantize(data: Bytes, dtype: str, shape: tuple[int, ...], *, threads: int | None = None) -> Floats:
    """Decode to a float32 array of `shape`, whose last axis holds the rows that were encoded.

    Raises:
        QuantizationError: unknown type, or `data` is not as long as `shape` needs.
    """
    source = _dtypes.dtype(dtype)
    flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if not shape or flat.nbytes != source.nbytes(shape):
        raise QuantizationError(f"{flat.nbytes} bytes of {source.name} do not hold shape {tuple(shape)}")
    out = np.empty(shape, np.float32)
    if out.size == 0:
        return out
    rows = flat.reshape(-1, source.row_nbytes(shape[-1]))
    target = out.reshape(-1, shape[-1])
    row_work = rows.shape[1] + 4 * shape[-1]
    _by_slabs(len(rows), row_work, threads, lambda a, b: decode(rows[a:b], source, out=target[a:b]))
    return out


def _by_slabs(n: int, row_work: int, threads: int | None, work: Callable[[int, int], object]) -> None:
    """Call `work(start, stop)` over row ranges that cover [0, n); `row_work` is the memory of one row."""
    step = max(1, SLAB_NBYTES // max(1, row_work))
    if n <= step:  # no thread is worth its start
        work(0, n)
    else:
        workers.run(range(0, n, step), lambda start: work(start, min(n, start + step)), threads)


def _by_numpy(dtype: DType) -> bool:
    """Floating dense types that C has no kernel for."""
    return dtype.name not in TYPES and dtype.numpy is not None and dtype.floating


def _values(data: Bytes, dtype: DType) -> NDArray[Any]:
    """The bytes of a dense type as numbers."""
    return np.ascontiguousarray(data).view(dtype.numpy or np.uint8)


def _aligned(array: NDArray[Any], dtype: type[_Scalar]) -> NDArray[_Scalar]:
    """The array as C-contiguous, aligned, native `dtype`; itself where it is."""
    if array.dtype != dtype:
        raise TypeError(f"expected {np.dtype(dtype).name}, got {array.dtype}")
    return np.require(array, dtype, ("C", "A"))


def _output(out: NDArray[_Scalar] | None, shape: tuple[int, int], dtype: type[_Scalar]) -> NDArray[_Scalar]:
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writable, C-contiguous {np.dtype(dtype).name} array of shape {shape}")
    return out
