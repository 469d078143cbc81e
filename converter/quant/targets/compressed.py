"""compressed-tensors folders: integers in groups, FP8 by rows or blocks, NVFP4, MXFP4.

Scales of integers and of FP8 are BF16, as in BF16 models; the codes are chosen for the scale as it is stored. Source:
compressed-tensors 0.20 (`quantization.utils.helpers.calculate_qparams`, compressors of each format).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.quant.sources.floats import E2M1, E8M0, MICRO
from converter.quant.targets import fp8
from converter.quant.targets.packing import (
    CLIPPED,
    NEAREST,
    Floats,
    Grid,
    Ratios,
    Target,
    computed,
    constant,
    largest,
    late,
    stream,
)
from converter.storage.slabs import row_ranges
from converter.tensors import kernels
from converter.tensors.bound import Bound, within
from converter.tensors.dtypes import DTYPES
from converter.tensors.mxfp4 import regrouped
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor

Pack = Callable[[LazyTensor, str, Ratios], tuple[LazyTensor, ...]]
_MIDDLES = (E2M1[1:8] + E2M1[:7]) / 2


def _bf16(numbers: Floats) -> Floats:
    return numbers.astype(ml_dtypes.bfloat16).astype(np.float32)


# ------------------------------------------------------------------------------------------------ integers


def _integers(bits: int, size: int) -> Pack:
    """Symmetric codes of a few bits in groups of `size` columns, packed in words."""
    span, half = np.float32((1 << bits) - 1) / 2, 1 << bits - 1

    def scales(groups: Floats, ratio: np.float32) -> Floats:
        most = largest(groups) * ratio
        return _bf16(np.where(most == 0, np.float32(1), most / span).astype(np.float32))

    grid = Grid(
        size,
        scales,
        lambda groups, scale: np.clip(np.rint(groups / scale), -half, half - 1),
        lambda codes, scale: codes * scale,
    )

    def pack(weight: LazyTensor, module: str, ratios: Ratios) -> tuple[LazyTensor, ...]:
        row = weight.info.row

        def words(numbers: Floats) -> NDArray[Any]:
            return stream((grid.encoded(numbers, ratios) + half).astype(np.uint8), bits).view("<i4")

        return (
            computed(weight, f"{module}.weight_packed", "I32", row * bits // 32, words),
            computed(weight, f"{module}.weight_scale", "BF16", row // size, lambda n: grid.best(n, ratios)[..., 0]),
            constant(weight, f"{module}.weight_shape", np.array(weight.info.shape, np.int64)),
        )

    return pack


# ----------------------------------------------------------------------------------------------------- FP8


def _fp8_rows(weight: LazyTensor, module: str, _: Ratios) -> tuple[LazyTensor, ...]:
    return (
        computed(
            weight, f"{module}.weight", "F8_E4M3", weight.info.row, lambda n: fp8.codes(n / _bf16(fp8.row_scale(n)))
        ),
        computed(weight, f"{module}.weight_scale", "BF16", 1, fp8.row_scale),
    )


def _per_block(blocks: Floats, most: Floats) -> tuple[Floats, Floats]:
    scale = _bf16(fp8.scale_of(most))
    return scale, blocks / scale


# ------------------------------------------------------------------------------------------------ four bits


def _e2m1(numbers: Floats) -> NDArray[np.uint8]:
    """The nearest codes; halfway to the even code, beyond 6 to 6."""
    size = np.abs(numbers)
    code = np.searchsorted(_MIDDLES, size, side="left")
    halfway = (code < len(_MIDDLES)) & (size == _MIDDLES[np.minimum(code, len(_MIDDLES) - 1)]) & (code % 2 == 1)
    code = code + halfway
    signed: NDArray[np.uint8] = code.astype(np.uint8) | np.signbit(numbers).astype(np.uint8) << np.uint8(3)
    return signed


def _nvfp4(weight: LazyTensor, module: str, ratios: Ratios) -> tuple[LazyTensor, ...]:
    """Groups of 16 with scales in E4M3, and one scale of these for the whole weight, which has to be read first."""
    lock, found = threading.Lock(), list[np.float32]()

    def whole() -> np.float32:
        with lock:
            if not found:
                found.append(_global_scale(weight))
            return found[0]

    def scales(groups: Floats, ratio: np.float32) -> Floats:
        stored = fp8.codes((largest(groups) * ratio / np.float32(6) * whole())[..., 0]).astype(np.float32)
        stored[stored == 0] = np.float32(2.0**-9)  # the least there is: a group of zeros has a scale, too
        return stored[..., None]

    def step(scale: Floats) -> Floats:
        return np.divide(scale, whole(), dtype=np.float32)

    grid = Grid(
        16,
        scales,
        lambda groups, scale: _e2m1(groups / step(scale)),
        lambda codes, scale: E2M1[codes] * step(scale),
    )
    row = weight.info.row
    return (
        computed(weight, f"{module}.weight_packed", "U8", row // 2, lambda n: stream(grid.encoded(n, ratios), 4)),
        computed(weight, f"{module}.weight_scale", "F8_E4M3", row // 16, lambda n: grid.best(n, ratios)[..., 0]),
        late(weight, f"{module}.weight_global_scale", "F32", whole),
    )


def _global_scale(weight: LazyTensor) -> np.float32:
    parts = (values(weight, start, stop) for start, stop in row_ranges([weight], weight.row_work))
    most = max((np.abs(part).max() for part in parts), default=np.float32(0))
    return np.float32(448 * 6) / most if most > 0 else np.float32(1)


def _blocks(numbers: Floats) -> NDArray[np.uint8]:
    """Blocks of ggml, (..., blocks, bytes): the exponent, then codes k and k + 16 in byte k."""
    kind = DTYPES["MXFP4"]
    return kernels.encode(numbers, kind).reshape(*numbers.shape[:-1], -1, kind.type_size)


def _exponents(groups: Floats, ratio: np.float32) -> NDArray[np.uint8]:
    """ggml's own for a ratio of 1, and so many powers of two more."""
    steps = np.int16(math.frexp(ratio)[1] - 1)
    own = _blocks(groups.reshape(len(groups), -1)).reshape(*groups.shape[:2], -1)[..., :1]
    moved: NDArray[np.uint8] = np.clip(own + steps, 0, 254).astype(np.uint8)
    return moved


_MX = Grid(
    MICRO,
    _exponents,
    lambda groups, exponents: _e2m1(groups / E8M0[exponents]),
    lambda codes, exponents: E2M1[codes] * E8M0[exponents],
)


def _mxfp4(weight: LazyTensor, module: str, ratios: Ratios) -> tuple[LazyTensor, ...]:
    """Groups of 32 with an exponent each; the nearest are ggml's own blocks, its codes in another order."""
    row = weight.info.row

    def codes(numbers: Floats) -> NDArray[np.uint8]:
        if ratios == NEAREST:
            return regrouped(_blocks(numbers)[..., 1:], (2, 16), (16, 2))
        return stream(_MX.encoded(numbers, ratios), 4)

    return (
        computed(weight, f"{module}.weight_packed", "U8", row // 2, codes),
        computed(weight, f"{module}.weight_scale", "U8", row // 32, lambda n: _MX.best(n, ratios)[..., 0]),
    )


# -------------------------------------------------------------------------------------------------- config


def _config(
    format: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None = None
) -> Callable[[tuple[str, ...]], Mapping[str, Any]]:
    def made(left: tuple[str, ...]) -> Mapping[str, Any]:
        group = {
            "targets": ["Linear"],
            "weights": {"dynamic": False, "symmetric": True, **weights},
            "input_activations": activations,
            "output_activations": None,
            "format": format,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(left),
            "kv_cache_scheme": None,
        }

    return made


def _int(bits: int, size: int) -> Callable[[tuple[str, ...]], Mapping[str, Any]]:
    return _config("pack-quantized", {"num_bits": bits, "type": "int", "strategy": "group", "group_size": size})


_FLOAT8 = {"num_bits": 8, "type": "float"}
_BY_TOKEN = {**_FLOAT8, "dynamic": True, "symmetric": True, "strategy": "token"}
_BY_BLOCK = {**_BY_TOKEN, "strategy": "group", "group_size": fp8.BLOCK}
_FLOAT4 = {"num_bits": 4, "type": "float"}


def _within_half(bits: int) -> Bound:
    """Half a step of the largest number, and what a scale in BF16 is off."""
    return within((1 / ((1 << bits) - 1) + 2.0**-8, "the largest of its group"))


TARGETS = (
    Target("w4a16", 128, _integers(4, 128), _int(4, 128), _within_half(4), searched=CLIPPED),
    Target("w8a16", 128, _integers(8, 128), _int(8, 128), _within_half(8)),
    Target(
        "ct-fp8", 1, _fp8_rows,
        _config("float-quantized", {**_FLOAT8, "strategy": "channel"}, _BY_TOKEN),
        fp8.bound("row"),
    ),
    Target(
        "ct-fp8-block", fp8.BLOCK, fp8.in_blocks(".weight_scale", "BF16", _per_block),
        _config(
            "float-quantized", {**_FLOAT8, "strategy": "block", "block_structure": [fp8.BLOCK, fp8.BLOCK]}, _BY_BLOCK
        ),
        fp8.bound("block"),
    ),
    Target(
        "nvfp4", 16, _nvfp4,
        _config("nvfp4-pack-quantized", {
            **_FLOAT4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn",
        }),
        # Half of the widest gap, 4 to 6, of a scale that is rounded up by 1/16; the least scale of a weight's largest.
        within((17 / 96, "the largest of its group"), (2.0**-10 / 448, "the largest of the weight")),
        # Uneven steps: with 1.5 the largest number becomes 4, where they are narrower.
        searched=tuple(4 / 5 + step / 20 for step in range(16)),
    ),
    Target(
        "mxfp4", 32, _mxfp4,
        _config("mxfp4-pack-quantized", {
            **_FLOAT4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8",
        }),
        within((1 / 4, "the largest of its group")),  # which is 4 to 8 of the scale, and the largest code 6
        searched=(2.0,),
    ),
)  # fmt: skip
