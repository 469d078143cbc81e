"""torchao: tensors of a subclass taken apart; the header of the file says in JSON how each is put together.

Under the name of the weight, `X.weight`: {"_type", "_data": {"block_size", "dtype", ...}}. Its parts are
X._weight_qdata int8 or FP8 (out, in), X._weight_scale and X._weight_zero_point, one to a block; number = (qdata -
zero) * scale in F32, rounded to `dtype`. Int4Tensor: two signed codes a byte, the low half first; scale and zero point
(in / group, out); number = code * scale + zero. Sources: torchao 0.18's prototype.safetensors and dequantize_affine,
FBGEMM's int4_row_quantize_zp.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from converter.errors import short
from converter.quant.sources.bits import nibbles
from converter.quant.sources.grid import Grid
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Floats, Group, Scaled, Stored
from converter.tensors import kernels
from converter.tensors.dtypes import BF16, DTYPES, F32, DType

_CODES, _SCALE, _ZERO, _PRE = "._weight_qdata", "._weight_scale", "._weight_zero_point", "._weight_act_pre_scale"
_OTHERS = ("._weight_act_quant_scale", "._weight_act_quant_zero_point")
_TYPES: Mapping[str, DType] = {"float32": F32, "bfloat16": BF16, "float16": DTYPES["F16"]}


def _read(module: Module) -> Stored:
    if _SCALE not in module:
        raise module.unsupported("torchao with other parts than a scale beside the codes, which is not decoded here")
    text = module.checkpoint.metadata.get(module.name + ".weight")
    try:
        described = json.loads(text or "")
    except ValueError:
        described = None
    if not isinstance(described, dict) or not isinstance(described.get("_data"), dict):
        raise module.corrupt("the file's header does not say how torchao puts it together")
    kind = str(described.get("_type"))
    if kind not in _KINDS:
        raise module.unsupported(f"torchao's {short(kind)}, which is not decoded here")
    if _PRE in module:
        raise module.unsupported("torchao with scales of activations inside the weight (act_pre_scale)")
    return _KINDS[kind](module, described["_data"])


def _name(said: object) -> object:
    """A type's name: {"_type": "torch.dtype", "_data": "bfloat16"}."""
    return said.get("_data") if isinstance(said, dict) else said


def _own(module: Module, said: Mapping[str, Any]) -> DType | None:
    """The type that its numbers are given in; None for F32."""
    name = _name(said.get("dtype", "bfloat16"))
    if not isinstance(name, str) or name not in _TYPES:
        raise module.corrupt(f"its numbers are of the type {short(name)}")
    return None if _TYPES[name] is F32 else _TYPES[name]


def _grid(module: Module, said: Mapping[str, Any], shape: tuple[int, ...], suffix: str) -> Grid:
    """Which numbers share what is in `suffix`: blocks, as the header says."""
    size = said.get("block_size")
    if not isinstance(size, list) or len(size) != len(shape) or not all(type(n) is int and n > 0 for n in size):
        raise module.corrupt(f"block_size is {short(size)} for {list(shape)}")
    whole = len(shape) >= 2 and 0 not in shape and not any(n % each for n, each in zip(shape, size, strict=True))
    if not whole or any(n != 1 for n in size[:-2]):
        raise module.corrupt(f"{list(shape)} is not made of blocks of {size}")
    found = Grid(module, suffix, shape[-2], size[-2], size[-1], shape[-1] // size[-1])
    count = math.prod(shape) // math.prod(size)
    if module[suffix].info.n_elements != count:
        raise module.corrupt(f"{suffix.lstrip('._')} is {list(module.shape(suffix))}, blocks of {size} make it {count}")
    return found


def _integers(module: Module, said: Mapping[str, Any]) -> Affine:
    """Int8Tensor and IntxUnpackedToInt8Tensor: a byte to a code, of fewer bits perhaps."""
    shape = module.shape(_CODES)
    scales = _grid(module, said, shape, _SCALE)
    zeros = _grid(module, said, shape, _ZERO) if _ZERO in module else None
    target = str(_name(said.get("target_dtype", "int8")))
    bits = int(target[3:]) if target in {f"int{n}" for n in range(1, 9)} else 0
    if not bits or module[_CODES].info.dtype.name != "I8":
        raise module.corrupt(f"codes of the type {short(target)} are {module[_CODES].info.dtype}")
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    if zeros is not None and module[_ZERO].info.dtype.floating:
        raise module.unsupported("torchao with zero points that are real numbers, which is not decoded here")

    def read(start: int, stop: int) -> Group:
        codes = module.rows(_CODES, start, stop)
        if codes.min() < low or codes.max() > high:
            raise module.corrupt(f"holds codes that are not of the type {target}")
        return Group(codes, scales.numbers(start, stop), None if zeros is None else zeros.stored(start, stop))

    def extent() -> tuple[int, int]:
        found = module.array(_ZERO)
        return int(found.min()), int(found.max())

    return Affine(
        module.where,
        shape,
        scales.wide,
        (low, high),
        read,
        None if zeros is None else extent,
        scaled=lambda: module.type(_SCALE),
        own=_own(module, said),
    )


def _floats(module: Module, said: Mapping[str, Any]) -> Scaled:
    shape, stored = module.shape(_CODES), module[_CODES]
    if stored.info.dtype.name not in ("F8_E4M3", "F8_E5M2"):
        raise module.corrupt(f"a Float8Tensor of {stored.info.dtype}")
    scales = _grid(module, said, shape, _SCALE)

    def read(start: int, stop: int) -> Floats:
        return kernels.decode(stored.rows(start, stop), stored.info.dtype)

    return Scaled(module.where, shape, read, scales.numbers, scales.wide, own=_own(module, said))


def _nibbles(module: Module, said: Mapping[str, Any]) -> Affine:
    """Int4Tensor: scale and zero point stand across, (groups, rows)."""
    *outer, half = module.shape(_CODES)
    shape = (*outer, 2 * half)
    if len(shape) != 2 or module[_CODES].info.dtype.name not in ("I8", "U8"):
        raise module.unsupported(f"torchao's Int4Tensor of {list(module.shape(_CODES))}, which is not decoded here")
    groups = _grid(module, said, shape, _SCALE)
    if groups.tall != 1:
        raise module.corrupt("blocks of more than one row")
    for suffix in (_SCALE, _ZERO):
        module.expect(suffix, (groups.across, shape[0]))

    def read(start: int, stop: int) -> Group:
        codes = (nibbles(module.rows(_CODES, start, stop).view(np.uint8)) ^ np.uint8(8)).astype(np.int8) - np.int8(8)
        scale, least = (module.columns(suffix, start, stop).astype(np.float32) for suffix in (_SCALE, _ZERO))
        return Group(codes, scale, None, least)

    return Affine(module.where, shape, groups.wide, (-8, 7), read, least=True, scaled=lambda: module.type(_SCALE))


_KINDS: Mapping[str, Callable[[Module, Mapping[str, Any]], Stored]] = {
    "Int8Tensor": _integers,
    "IntxUnpackedToInt8Tensor": _integers,
    "Float8Tensor": _floats,
    "Int4Tensor": _nibbles,
}

SCHEME = Scheme(
    "torchao",
    ("torchao",),
    (Form(_CODES, (), _read, (_SCALE, _ZERO, _PRE, *_OTHERS)),),
    labels=lambda name, text: name == "tensor_names" or text.startswith('{"_type"'),
)
