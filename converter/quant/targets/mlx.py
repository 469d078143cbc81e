"""MLX folders: integers in groups of 64 with a scale and the number that code 0 stands for.

Source: mlx's `affine_quantize` (mlx/backend/cpu/quantized.cpp): the end of a group that is farther from zero is exact,
and the scale is changed a little so that zero is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.targets.packing import Floats, Target, computed, stream
from converter.tensors.tensor import LazyTensor

SIZE = 64
_LEAST = np.float32(1e-7)


def _affine(numbers: Floats, bits: int) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Scale and least number of each group, (n, groups), and the codes (n, row)."""
    groups = numbers.reshape(len(numbers), -1, SIZE)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    most = np.float32((1 << bits) - 1)
    scale = np.maximum((high - low) / most, _LEAST)
    below = np.abs(low) > np.abs(high)
    scale = np.where(below, scale, -scale)
    edge = np.where(below, low, high)
    at_zero = np.rint(edge / scale)
    scale = np.where(at_zero == 0, scale, edge / np.where(at_zero == 0, np.float32(1), at_zero)).astype(np.float32)
    least = np.where(at_zero == 0, np.float32(0), edge).astype(np.float32)
    codes = np.clip(np.rint((groups - least[..., None]) / scale[..., None]), 0, most)
    return scale, least, codes.astype(np.uint8).reshape(numbers.shape)


def _packed(bits: int) -> Callable[[LazyTensor, str], tuple[LazyTensor, ...]]:
    def words(numbers: Floats) -> NDArray[Any]:
        return stream(_affine(numbers, bits)[2], bits).view("<u4")

    def pack(weight: LazyTensor, module: str) -> tuple[LazyTensor, ...]:
        row, kept = weight.info.row, "BF16" if weight.info.dtype.name == "BF16" else "F16"
        groups = row // SIZE
        return (
            computed(weight, f"{module}.weight", "U32", row * bits // 32, words),
            computed(weight, f"{module}.scales", kept, groups, lambda numbers: _affine(numbers, bits)[0]),
            computed(weight, f"{module}.biases", kept, groups, lambda numbers: _affine(numbers, bits)[1]),
        )

    return pack


def _config(bits: int) -> Callable[[tuple[str, ...]], Mapping[str, Any]]:
    def made(left: tuple[str, ...]) -> Mapping[str, Any]:
        return {"group_size": SIZE, "bits": bits, "mode": "affine", **dict.fromkeys(left, False)}

    return made


TARGETS = tuple(
    Target(
        f"mlx-{bits}", f"{bits}-bit integers in groups of {SIZE}, as mlx_lm.convert makes them", SIZE, _packed(bits),
        _config(bits), embeddings=True, keys=("quantization", "quantization_config"),
    )
    for bits in (2, 3, 4, 5, 6, 8)
)  # fmt: skip
