"""FP8: numbers of eight bits with a scale for the tensor, for each row, or for blocks of rows and columns.

The scale multiplies, whatever its name says (`weight_scale_inv` is the inverse of what the quantizer multiplied by).
Blocks at the edges are cut. Scales are F32, BF16, or powers of two as E8M0; 32 columns share one of these in MXFP8.
DeepSeek-V4 has its experts as MXFP4 beside: two codes a byte, in tensors of the type I8. Sources: transformers'
integrations `finegrained_fp8` and `fbgemm_fp8`, Mistral's consolidated files, DeepSeek's `inference/convert.py`.
"""

from __future__ import annotations

from functools import partial
from typing import TypeGuard

from converter.quant.sources.common import BYTES, FP8, UNUSED, eights, fours, holds_fours
from converter.quant.sources.grid import EXPONENTS
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Stored
from converter.tensors.dtypes import DTYPES

_BLOCK = [128, 128]


def _weight(main: str, scale: str, module: Module) -> Stored:
    in_bytes = module[main].info.dtype.name in BYTES
    if in_bytes and module[scale].info.dtype.name in EXPONENTS and holds_fours(module, main, scale):
        return fours(module, main, scale)
    said = module.settings.get("weight_block_size")
    tall, wide = said if _is_size(said) else _BLOCK
    contained = DTYPES["F8_E5M2" if module.settings.get("fmt") == "e5m2" else "F8_E4M3"] if in_bytes else None
    return eights(module, main, scale, [(tall, wide)], contained)


def _is_size(said: object) -> TypeGuard[list[int]]:
    return isinstance(said, list) and len(said) == 2 and all(type(each) is int and each > 0 for each in said)


def _form(main: str, scale: str, plain: str = ".weight") -> Form:
    """A weight with the scale of that name beside it."""
    return Form(main, (scale,), partial(_weight, main, scale), plain=plain, dtypes=FP8 + BYTES)


FORMS = (
    _form(".weight", ".weight_scale_inv"),
    _form(".weight", ".weight_scale"),
    _form(".weight", ".qscale_weight"),
    _form(".weight", ".scale"),
    _form("", "_scale_inv", plain=""),
)

SCHEME = Scheme("FP8", ("fp8", "fbgemm_fp8"), FORMS, unused=UNUSED)
