"""Matrices of ggml's blocks as the tensors of a graph: codes, scales, and minima where a type has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converter.storage.slabs import row_ranges
from converter.tensors import int8
from converter.tensors.dtypes import DTYPES, F32
from converter.tensors.operands import KINDS, Floats, Kind, Unpacked, numbers, packed
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

U8 = DTYPES["U8"]


@dataclass(frozen=True)
class Parts:
    """The tensors that a matrix of blocks becomes: codes (rows, blocks, bytes), scales and minima (rows, blocks)."""

    kind: Kind
    codes: LazyTensor
    scales: LazyTensor
    minima: LazyTensor | None


def parts(tensor: LazyTensor, name: str) -> Parts:
    """A matrix (or a vector) of blocks of a type in KINDS as codes, scales and minima, called `name` and more."""
    kind = KINDS[tensor.info.dtype.name]
    inner = tensor.info.row // kind.block
    shape = (*tensor.info.shape[:-1], inner)
    ggml = tensor.info.dtype.type_size

    def unpacked(start: int, stop: int) -> Unpacked:
        return kind.unpack(np.ascontiguousarray(tensor.rows(start, stop)).reshape(-1, ggml))

    def codes(start: int, stop: int) -> Rows:
        first, last = start // inner, -(-stop // inner)
        return packed(unpacked(first, last).codes, kind.bits)[start - first * inner : stop - first * inner]

    def scales(start: int, stop: int) -> Rows:
        return unpacked(start, stop).scales.reshape(stop - start, inner).view(np.uint8)

    def minima(start: int, stop: int) -> Rows:
        found = unpacked(start, stop).minima
        assert found is not None
        return np.ascontiguousarray(found.reshape(stop - start, inner)).view(np.uint8)

    work = tensor.row_work + 4 * tensor.info.row
    info = TensorInfo(name, (*shape, kind.nbytes), U8)
    grain = max(tensor.grain * inner, inner)
    return Parts(
        kind,
        tensor.derived(info, codes, work_nbytes=work // inner + 1, grain=grain),
        tensor.derived(TensorInfo(f"{name}.scales", shape, F32), scales, work_nbytes=work),
        tensor.derived(TensorInfo(f"{name}.minima", shape, F32), minima, work_nbytes=work) if kind.minima else None,
    )


@dataclass(frozen=True)
class Coded:
    """The tensors that a matrix of INT8 becomes: codes (rows, row), whose zero is 128, and scales (rows,)."""

    codes: LazyTensor
    scales: LazyTensor


def coded(tensor: LazyTensor) -> Coded:
    """A matrix of INT8 as codes under its own name, and scales beside them."""
    name, shape, n_rows = tensor.name, tensor.info.shape, tensor.info.n_rows

    def codes(start: int, stop: int) -> Rows:
        return int8.codes_of(tensor.rows(start, stop))

    def scales(start: int, stop: int) -> Rows:
        found = np.empty((stop - start, n_rows), np.float32)  # a vector is one row, made of all rows of the matrix
        for low, high in row_ranges([tensor], tensor.row_work):
            found[:, low:high] = int8.scales_of(tensor.rows(low, high))
        return found.view(np.uint8)

    return Coded(
        tensor.derived(TensorInfo(name, shape, U8), codes, work_nbytes=tensor.row_work + tensor.info.row),
        tensor.derived(TensorInfo(f"{name}.scales", (n_rows,), F32), scales, work_nbytes=4 * n_rows, grain=1),
    )


def rounded(tensor: LazyTensor) -> LazyTensor:
    """The numbers of blocks whose scales and minima are those of a graph that calculates in F16."""
    kind, ggml = KINDS[tensor.info.dtype.name], tensor.info.dtype.type_size

    def half(numbers: Floats | None) -> Any:
        return None if numbers is None else numbers.astype(np.float16).astype(np.float32)

    def read(start: int, stop: int) -> Rows:
        found = kind.unpack(np.ascontiguousarray(tensor.rows(start, stop)).reshape(-1, ggml))
        made = numbers(replace(found, scales=half(found.scales), minima=half(found.minima)), kind)
        return made.view(np.uint8).reshape(stop - start, -1)

    info = replace(tensor.info, dtype=F32)
    return tensor.derived(info, read, work_nbytes=tensor.row_work + 16 * info.row)
