"""MXFP4 weights as Hugging Face stores them, in two tensors, and as ggml has them, in one.

A block is 32 values of four bits that share an exponent. Hugging Face: `NAME_blocks`, uint8 (..., row / 32, 16), byte k
of a block holds the values 2k (low half) and 2k + 1; `NAME_scales`, uint8 (..., row / 32). ggml: the scale byte, then
16 bytes of which byte k holds the values k and k + 16. No bit is lost either way. Sources: transformers'
`integrations/mxfp4.py`; `block_mxfp4` of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

MXFP4, U8 = DTYPES["MXFP4"], DTYPES["U8"]
BLOCKS, SCALES = "_blocks", "_scales"
_SIZE, _BYTES = 32, 16


def joined(tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
    """The tensors with each pair of blocks and scales as one MXFP4 tensor, under the name of the blocks."""
    pairs = {name: other for name in tensors if (other := _scales_of(name, tensors))}
    if not pairs:
        return tensors
    left_out = set(pairs.values())
    return {
        name: _joined(tensor, tensors[pairs[name]]) if name in pairs else tensor
        for name, tensor in tensors.items()
        if name not in left_out
    }


def parted(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """What `joined` joined, in two tensors again."""
    result: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        both = name.endswith(BLOCKS) and tensor.info.dtype is MXFP4
        result.update((each.name, each) for each in (_parted(tensor) if both else (tensor,)))
    return result


def _scales_of(name: str, tensors: Mapping[str, LazyTensor]) -> str | None:
    other = name.removesuffix(BLOCKS) + SCALES
    if not name.endswith(BLOCKS) or other not in tensors:
        return None
    blocks, scales = tensors[name].info, tensors[other].info
    fits = blocks.shape == (*scales.shape, _BYTES) and len(scales.shape) > 1 and 0 not in scales.shape
    return other if fits and blocks.dtype is scales.dtype is U8 else None


def _joined(blocks: LazyTensor, scales: LazyTensor) -> LazyTensor:
    *outer, count = scales.info.shape
    info = TensorInfo(blocks.name, (*outer, count * _SIZE), MXFP4)

    def read(start: int, stop: int) -> Rows:
        codes = blocks.rows(start * count, stop * count).reshape(stop - start, count, _BYTES)
        made = np.empty((stop - start, count, 1 + _BYTES), np.uint8)
        made[..., 0] = scales.rows(start, stop)
        made[..., 1:] = regrouped(codes, (_BYTES, 2), (2, _BYTES))
        return made.reshape(stop - start, info.row_nbytes)

    return blocks.derived(info, read, parts=(blocks.name, scales.name), work_nbytes=4 * info.row_nbytes)


def _parted(tensor: LazyTensor) -> tuple[LazyTensor, LazyTensor]:
    *outer, row = tensor.info.shape
    count = row // _SIZE
    stem = tensor.name.removesuffix(BLOCKS)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return tensor.rows(start, stop).reshape(stop - start, count, 1 + _BYTES)

    def codes(start: int, stop: int) -> Rows:
        first, last = start // count, -(-stop // count)
        made = regrouped(read(first, last)[..., 1:], (2, _BYTES), (_BYTES, 2)).reshape(-1, _BYTES)
        return made[start - first * count : stop - first * count]

    info = TensorInfo(stem + BLOCKS, (*outer, count, _BYTES), U8)
    blocks = tensor.derived(info, codes, work_nbytes=4 * row, grain=tensor.grain * count)
    info = TensorInfo(stem + SCALES, (*outer, count), U8)
    scales = tensor.derived(info, lambda start, stop: np.ascontiguousarray(read(start, stop)[..., 0]))
    return blocks, replace(scales, parts=tensor.parts or (tensor.name,))


def regrouped(codes: NDArray[np.uint8], old: tuple[int, int], new: tuple[int, int]) -> NDArray[np.uint8]:
    """Bytes of two values each, (..., 16), whose values stand in `old` order, with them in `new` order.

    (16, 2): a byte holds neighbours. (2, 16): a byte holds values 16 apart. The same of another size.
    """
    halves = np.stack((codes & 0x0F, codes >> 4))  # (2, ..., 16), the low half first
    values = np.moveaxis(halves, 0, -1 if old[1] == 2 else -2).reshape(*codes.shape[:-1], 2 * codes.shape[-1])
    again = np.moveaxis(values.reshape(*codes.shape[:-1], *new), -1 if new[1] == 2 else -2, 0)
    result: NDArray[np.uint8] = again[0] | again[1] << 4
    return result
