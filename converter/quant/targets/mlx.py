"""MLX folders: integers in groups of 64 with a scale and the number that code 0 stands for.

Source: mlx's `affine_quantize` (mlx/backend/cpu/quantized.cpp): the end of a group that is farther from zero is exact,
and the scale is changed a little so that zero is. Blocks of ggml that hold as many bits (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)
are the same kind of numbers and are taken over, not decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.quant.targets.packing import CLIPPED, Floats, Grid, Ratios, Target, computed, stream
from converter.tensors.bound import Bound, within
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, Rows

SIZE = 64
_LEAST = np.float32(1e-7)


def _affine(groups: Floats, ratio: np.float32, most: np.float32) -> Floats:
    """Scale and least number of each group, (n, groups, 2), for codes up to `most`."""
    low, high = groups.min(axis=-1, keepdims=True) * ratio, groups.max(axis=-1, keepdims=True) * ratio
    scale = np.maximum((high - low) / most, _LEAST)
    below = np.abs(low) > np.abs(high)
    scale = np.where(below, scale, -scale)
    edge = np.where(below, low, high)
    at_zero = np.rint(edge / scale)
    scale = np.where(at_zero == 0, scale, edge / np.where(at_zero == 0, np.float32(1), at_zero))
    least = np.where(at_zero == 0, np.float32(0), edge)
    return np.concatenate((scale, least), axis=-1, dtype=np.float32)


def _grid(bits: int, half: str) -> Grid:
    """Codes are those of the scales before these are rounded to `half`, as mlx has it."""
    most, kind = np.float32((1 << bits) - 1), DTYPES[half].numpy

    def numbers(codes: NDArray[np.uint8], scales: Floats) -> Floats:
        stored = scales.astype(kind).astype(np.float32)
        return codes * stored[..., :1] + stored[..., 1:]

    return Grid(
        SIZE,
        partial(_affine, most=most),
        lambda groups, s: np.clip(np.rint((groups - s[..., 1:]) / s[..., :1]), 0, most).astype(np.uint8),
        numbers,
    )


class _Blocks(NamedTuple):
    """Blocks of ggml that are MLX's own kind of numbers, in groups of 32.

    The code that stands for zero, or None where the block has a least number; where a fifth bit stands, if any does.
    """

    bits: int
    zero: int | None = None
    fifth: int | None = None

    @property
    def codes(self) -> int:
        """Where the codes begin, after scale, least number and fifth bits."""
        return (2 if self.zero is not None else 4) + (4 if self.fifth else 0)


_KEPT = {
    "Q4_0": _Blocks(4, 8), "Q4_1": _Blocks(4), "Q5_0": _Blocks(5, 16, fifth=2), "Q5_1": _Blocks(5, fifth=4),
    "Q8_0": _Blocks(8, 128),
}  # fmt: skip


def _taken(rows: Rows, name: str) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.uint8]]:
    """Scale and least number of each block, (n, blocks), and the codes (n, row), of blocks as they are stored."""
    kind, n = _KEPT[name], len(rows)
    blocks = rows.reshape(-1, DTYPES[name].type_size)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2")
    least = scale * np.float16(-(kind.zero or 0)) if kind.zero is not None else blocks[:, 2:4].copy().view("<f2")
    stored = blocks[:, kind.codes :]
    codes = stored + np.uint8(128) if kind.bits == 8 else np.concatenate((stored & 15, stored >> 4), axis=1)
    if kind.fifth is not None:
        fifth = np.unpackbits(blocks[:, kind.fifth : kind.fifth + 4], axis=1, bitorder="little")
        codes = codes | fifth << np.uint8(4)
    return scale.reshape(n, -1), least.reshape(n, -1), codes.reshape(n, -1)


def _is_kept(weight: LazyTensor, bits: int) -> bool:
    kind = _KEPT.get(weight.info.dtype.name)
    return kind is not None and kind.bits == bits


def _packed(bits: int) -> Callable[[LazyTensor, str, Ratios], tuple[LazyTensor, ...]]:
    """Scales, biases and words; of blocks with as many bits, their own, which are the same numbers."""

    def pack(weight: LazyTensor, module: str, ratios: Ratios) -> tuple[LazyTensor, ...]:
        type_, row = weight.info.dtype.name, weight.info.row
        kept = _is_kept(weight, bits)
        groups, half = row // (32 if kept else SIZE), "BF16" if type_ == "BF16" else "F16"
        grid = _grid(bits, half)

        def part(which: int, rows: Any) -> Any:
            return _taken(rows, type_)[which] if kept else grid.best(rows, ratios)[..., which]

        def words(rows: Any) -> NDArray[Any]:
            return stream(_taken(rows, type_)[2] if kept else grid.encoded(rows, ratios), bits).view("<u4")

        return (
            computed(weight, f"{module}.weight", "U32", row * bits // 32, words, stored=kept),
            computed(weight, f"{module}.scales", half, groups, partial(part, 0), stored=kept),
            computed(weight, f"{module}.biases", half, groups, partial(part, 1), stored=kept),
        )

    return pack


def _own(bits: int) -> Callable[[LazyTensor], Mapping[str, Any] | None]:
    return lambda weight: {"group_size": 32, "bits": bits, "mode": "affine"} if _is_kept(weight, bits) else None


def _config(bits: int) -> Callable[[tuple[str, ...]], Mapping[str, Any]]:
    def made(left: tuple[str, ...]) -> Mapping[str, Any]:
        return {"group_size": SIZE, "bits": bits, "mode": "affine", **dict.fromkeys(left, False)}

    return made


def _bound(bits: int) -> Bound:
    """A step, for zero is made a code by a change of the scale; scale and least number are BF16 at worst."""
    half = 2.0**-8
    return within((1 / ((1 << bits) - 1) + half, "the range of its group"), (half, "the largest of its group"))


TARGETS = tuple(
    Target(
        f"mlx-{bits}", SIZE, _packed(bits),
        _config(bits), _bound(bits), _own(bits), embeddings=True, keys=("quantization", "quantization_config"),
        searched=CLIPPED if bits < 8 else (),
    )
    for bits in (2, 3, 4, 5, 6, 8)
)  # fmt: skip
