"""Weights that a graph computes with as codes, as the numbers that they mean: (code - zero) * scale, in F32.

Sources: com.microsoft.MatMulNBits of ONNX Runtime's contributed operators; DequantizeLinear and MatMulInteger of ONNX;
for the scale of the latter, which stands behind it in the graph, the names that ONNX Runtime's quantizer gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from converter.formats.onnx.model import Operator
from converter.tensors.dtypes import F16, F32
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

Floats = NDArray[np.float32]
#: How ONNX Runtime's quantizer ends the names of codes and of their scale.
CODES, SCALE = "_quantized", "_scale"
BITS = (2, 4, 8)


def decoded(operators: Iterable[Operator], tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """By the names of codes, the numbers; `parts` are the tensors that they are made of. Other codes are left out."""
    found: dict[str, LazyTensor] = {}
    for node in operators:
        if (how := _HOW.get(node.op)) is not None:
            found.update((made.name, made) for made in how(node, _Inputs(node, tensors)))
    return found


@dataclass(frozen=True)
class _Inputs:
    """The inputs of a node that are tensors of the file."""

    node: Operator
    tensors: Mapping[str, LazyTensor]

    def name(self, index: int) -> str:
        return self.node.inputs[index] if index < len(self.node.inputs) else ""

    def __getitem__(self, index: int) -> LazyTensor | None:
        return self.tensors.get(self.name(index))


def _numbers(
    codes: LazyTensor, shape: tuple[int, ...], read: Callable[[int, int], Floats], *others: LazyTensor | None
) -> LazyTensor:
    """A tensor of F32 that is made of codes and of others, by rows."""
    info = TensorInfo(codes.name, shape, F32)

    def rows(start: int, stop: int) -> Rows:
        numbers = np.ascontiguousarray(read(start, stop), np.float32)
        return numbers.view(np.uint8).reshape(stop - start, info.row_nbytes)

    parts = (codes.name, *(each.name for each in others if each is not None))
    return LazyTensor(info, rows, codes.source, parts, work_nbytes=4 * info.row_nbytes)


def _blocks(node: Operator, inputs: _Inputs) -> Iterator[LazyTensor]:
    """MatMulNBits: rows of blocks of codes, with a scale and maybe a zero for each block."""
    codes, scales, zeros = inputs[1], inputs[2], inputs[3]
    n, k, bits, block = (node.numbers.get(key, (0,))[0] for key in ("N", "K", "bits", "block_size"))
    if codes is None or scales is None or bits not in BITS or block <= 0 or k <= 0 or n <= 0 or inputs.name(4):
        return
    count = -(-k // block)
    packed = -(-count * bits // 8)
    if codes.info.shape != (n, count, block * bits // 8) or prod(scales.info.shape) != n * count:
        return
    if scales.info.dtype not in (F32, F16) or bool(inputs.name(3)) != (zeros is not None):
        return
    floats = zeros is not None and zeros.info.dtype in (F32, F16)
    if zeros is not None and prod(zeros.info.shape) != n * (count if floats else packed):
        return

    def read(start: int, stop: int) -> Floats:
        found = _unpacked(codes.rows(start * count, stop * count), bits).reshape(stop - start, count, block)
        zero: NDArray[np.float32] = np.float32(1 << bits - 1) * np.ones((1, 1), np.float32)
        if zeros is not None and floats:
            zero = _some(zeros, start, stop, count)
        elif zeros is not None:
            rows = zeros.array().reshape(n, packed)[start:stop].view(np.uint8)
            zero = _unpacked(rows, bits)[:, :count].astype(np.float32)
        scale = _some(scales, start, stop, count)
        numbers: Floats = (found.astype(np.float32) - zero[..., None]) * scale[..., None]
        return numbers.reshape(stop - start, -1)[:, :k]

    yield _numbers(codes, (n, k), read, scales, zeros)


def _unpacked(packed: Rows, bits: int) -> Rows:
    """Codes of so many bits, the first in the lowest of a byte."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    found: Rows = ((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)
    return found


def _flat(tensor: LazyTensor) -> Floats:
    return values(tensor, 0, tensor.info.n_rows).reshape(-1)


def _some(tensor: LazyTensor, start: int, stop: int, count: int) -> Floats:
    """Rows [start, stop) of so many numbers each, of a tensor of whatever shape."""
    if tensor.info.row == count:
        return values(tensor, start, stop)
    return _flat(tensor)[start * count : stop * count].reshape(-1, count)


def _linear(node: Operator, inputs: _Inputs) -> Iterator[LazyTensor]:
    """DequantizeLinear: one scale, or one for each index of an axis."""
    if node.numbers.get("block_size", (0,)) == (0,):
        yield from _along(inputs[0], inputs[1], inputs[2], node.numbers.get("axis", (1,))[0], bool(inputs.name(2)))


def _integers(node: Operator, inputs: _Inputs) -> Iterator[LazyTensor]:
    """MatMulInteger: codes whose scale is multiplied later, of the columns or of all."""
    codes = inputs[1]
    if codes is not None and codes.name.endswith(CODES):
        scale = inputs.tensors.get(codes.name.removesuffix(CODES) + SCALE)
        yield from _along(codes, scale, inputs[3], 1, bool(inputs.name(3)))


def _along(
    codes: LazyTensor | None, scale: LazyTensor | None, zero: LazyTensor | None, axis: int, has_zero: bool
) -> Iterator[LazyTensor]:
    if codes is None or scale is None or scale.info.dtype not in (F32, F16) or has_zero != (zero is not None):
        return
    shape, count = codes.info.shape, prod(scale.info.shape)
    if codes.info.dtype.numpy is None or codes.info.dtype.numpy.kind not in "iu" or not shape:
        return
    if any(each is not None and prod(each.info.shape) != count for each in (scale, zero)):
        return
    axis = axis + len(shape) if axis < 0 else axis
    if count != 1 and (not 0 <= axis < len(shape) or shape[axis] != count):
        return
    under = prod(shape[axis + 1 : -1]) if count > 1 else 1  # rows in a row that have the same index of the axis

    def read(start: int, stop: int) -> Floats:
        scales = _flat(scale)
        zeros = _flat(zero) if zero is not None else np.zeros(1, np.float32)
        if count > 1 and axis < len(shape) - 1:
            index = np.arange(start, stop) // under % count
            scales, zeros = scales[index, None], zeros[index, None] if zero is not None else zeros
        numbers: Floats = (values(codes, start, stop) - zeros) * scales
        return numbers

    yield _numbers(codes, shape, read, scale, zero)


_HOW = {"MatMulNBits": _blocks, "DequantizeLinear": _linear, "MatMulInteger": _integers}
