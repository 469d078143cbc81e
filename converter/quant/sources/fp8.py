"""FP8: numbers of eight bits with a scale for the tensor, for each row, or for blocks of rows and columns.

The scale multiplies, whatever its name says (`weight_scale_inv` is the inverse of what the quantizer multiplied by).
Blocks at the edges are cut. Scales are F32, BF16, or powers of two as E8M0. Sources: transformers' integrations
`finegrained_fp8` and `fbgemm_fp8`, ModelOpt's and compressed-tensors' float-quantized, Mistral's consolidated files.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Floats, Scaled
from converter.tensors import kernels

FP8 = ("F8_E4M3", "F8_E5M2")
EXPONENTS = ("F8_E8M0", "U8")
_BLOCK = 128
#: Of activations and of keys and values: for those who calculate in eight bits.
UNUSED = (
    ".activation_scale", ".input_scale", ".qscale_act", ".k_scale", ".v_scale", ".q_scale", ".kv_scale",
    ".input_scale_ub", ".output_scale", ".input_global_scale", ".prob_scale",
)  # fmt: skip


def weight(module: Module, main: str, scale: str) -> Scaled:
    """The weight in `main`, (..., rows, row), with scales in `scale`: (), (1), (rows), (rows, 1) or one to a block."""
    shape = module.shape(main)
    if len(shape) < 2 or 0 in shape:
        raise module.corrupt(f"{list(shape)} is no matrix")
    *outer, rows, row = shape
    tall, wide = _grid(module, scale, tuple(outer), rows, row)
    down, across = -(-rows // tall), -(-row // wide)
    stored = module[main]

    def everything() -> Floats:
        return np.broadcast_to(scale_numbers(module, scale).reshape(-1, across), (math.prod(outer) * down, across))

    def scales(start: int, stop: int) -> Floats:
        at = np.arange(start, stop)
        found: Floats = everything()[at // rows * down + at % rows // tall]
        return found

    def read(start: int, stop: int) -> Floats:
        return kernels.decode(stored.rows(start, stop), stored.info.dtype)

    def powers() -> bool:
        if module[scale].info.dtype.name in EXPONENTS:
            return True
        found = everything() if module.settings.get("scale_fmt") == "ue8m0" else np.full(1, np.nan, np.float32)
        return bool((np.isfinite(found) & (found.view(np.uint32) & 0x007FFFFF == 0)).all())

    return Scaled(module.where, shape, read, scales, wide, powers)


def scale_numbers(module: Module, suffix: str) -> Floats:
    """Scales as F32; bytes are exponents, 2^(b - 127)."""
    stored = module.array(suffix)
    if stored.dtype == np.uint8:
        stored = stored.view(ml_dtypes.float8_e8m0fnu)
    numbers: NDArray[Any] = np.asarray(stored).astype(np.float32)
    return numbers


def _grid(module: Module, suffix: str, outer: tuple[int, ...], rows: int, row: int) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    given = module.shape(suffix)
    if math.prod(given) == 1:
        return rows, row
    stripped = given[len(outer) :] if given[: len(outer)] == outer else None
    if stripped in ((), (1,), (1, 1)):
        return rows, row
    if stripped in ((rows,), (rows, 1)):
        return 1, row
    if stripped is None or len(stripped) != 2:
        raise module.corrupt(f"{suffix.lstrip('._')} is {list(given)}, which fits no part of {[*outer, rows, row]}")
    said = module.settings.get("weight_block_size")
    tall, wide = said if _is_size(said) else (_BLOCK, _BLOCK)
    module.expect(suffix, (*outer, -(-rows // tall), -(-row // wide)))
    return tall, wide


def _is_size(said: object) -> TypeGuard[list[int]]:
    return isinstance(said, list) and len(said) == 2 and all(type(each) is int and each > 0 for each in said)


def form(main: str, scale: str, plain: str = ".weight", dtypes: tuple[str, ...] = FP8) -> Form:
    """A weight with the scale of that name beside it."""
    return Form(main, (scale,), lambda module: weight(module, main, scale), plain=plain, dtypes=dtypes)


FORMS = (
    form(".weight", ".weight_scale_inv"),
    form(".weight", ".weight_scale"),
    form(".weight", ".qscale_weight"),
    form(".weight", ".scale"),
    form("", "_scale_inv", plain=""),
)

SCHEME = Scheme("FP8", ("fp8", "fbgemm_fp8"), FORMS, unused=UNUSED)
