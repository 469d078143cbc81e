"""NVIDIA's ModelOpt: FP8, NVFP4, MXFP8, MXFP4 and eight-bit integers, also mixed, told apart by what is stored.

NVFP4: weight uint8 (out, in / 2), weight_scale E4M3 (out, in / 16), weight_scale_2 F32; number = code * (weight_scale *
weight_scale_2). With pre_quant_scale (in) activations are multiplied first, which goes into the weight. config.json or
hf_quant_config.json says for which modules activations stay wide. Source: `torch/export` of ModelOpt 0.47.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from converter.quant.sources.common import BYTES, FP8, NVFP4, UNUSED, eights, factor, fours, holds_fours, integers
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Floats, Stored, Values
from converter.tensors.dtypes import DTYPES

_WEIGHT, _SCALE, _SCALE_2, _INPUT, _BEFORE = (
    ".weight", ".weight_scale", ".weight_scale_2", ".input_scale", ".pre_quant_scale",
)  # fmt: skip
_BLOCKS = ((128, 128), (1, 128), (1, 64))
_WIDE_ACTIVATIONS = "W4A16_NVFP4"
_REFUSED = ("W4A16_AWQ", "W4A8_AWQ", "NVFP4_SVD")


def _read(module: Module) -> Stored:
    stored = _stored(module)
    if _BEFORE not in module:
        return stored
    row = stored.shape[-1]
    module.expect(_BEFORE, (row,), (1, row))
    before = module.array(_BEFORE).reshape(-1).astype(np.float32)
    if not np.isfinite(before).all():
        raise module.corrupt("pre_quant_scale is infinite or no number (NaN)")

    def read(start: int, stop: int) -> Floats:
        numbers = stored.values(start, stop)
        numbers *= before
        return numbers

    return Values(stored.shape, read, stored.work)


def _stored(module: Module) -> Stored:
    own, scale = module[_WEIGHT].info.dtype.name, module[_SCALE].info.dtype.name
    if scale == "F8_E4M3":
        return _nvfp4(module)
    if own in BYTES and scale == "U8" and holds_fours(module, _WEIGHT, _SCALE):
        return fours(module, _WEIGHT, _SCALE)
    if own == "I8" and _algorithm(module).startswith("W8"):
        return integers(module, _WEIGHT, _SCALE, None)
    return eights(module, _WEIGHT, _SCALE, _BLOCKS, DTYPES["F8_E4M3"] if own in BYTES else None)


def _nvfp4(module: Module) -> Stored:
    if _SCALE_2 not in module:
        raise module.corrupt("weight_scale_2 is not there, by which all of NVFP4 is multiplied")
    given = module[_WEIGHT].info.dtype.name
    if given not in BYTES:
        raise module.corrupt(f"NVFP4 in a tensor of {given}")
    return fours(
        module, _WEIGHT, _SCALE, NVFP4,
        factor=factor(module, _WEIGHT, _SCALE_2), inputs=factor(module, _WEIGHT, _INPUT), signed_zero=False,
        prec_a4=_algorithm(module) != _WIDE_ACTIVATIONS,
    )  # fmt: skip


def _algorithm(module: Module) -> str:
    """What is said of the module, of one that it is part of, or of all."""
    layers = module.settings.get("quantized_layers")
    name = module.name
    while isinstance(layers, dict) and name:
        if isinstance(said := layers.get(name), dict):
            return str(said.get("quant_algo"))
        name = name.rpartition(".")[0]
    return str(module.settings.get("quant_algo"))


def _refuse(settings: Mapping[str, Any]) -> str | None:
    layers = settings.get("quantized_layers")
    said = [settings, *(layers.values() if isinstance(layers, dict) else ())]
    found = next(
        (each["quant_algo"] for each in said if isinstance(each, dict) and each.get("quant_algo") in _REFUSED), 0
    )
    return f"as {found}, which is not decoded here" if found else None


SCHEME = Scheme(
    "ModelOpt",
    ("modelopt", "modelopt_fp4", "modelopt_mixed"),
    (Form(_WEIGHT, (_SCALE,), _read, extra=(_SCALE_2, _INPUT, _BEFORE), dtypes=FP8 + BYTES),),
    unused=UNUSED,
    refuse=_refuse,
)
