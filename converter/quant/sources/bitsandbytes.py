"""bitsandbytes: codes of four bits through the flat weight, with a codebook; or int8 rows.

Four bits (nf4, fp4): weight holds two codes a byte, the first in the high half, in uint8 or in the bytes of another
type; absmax F32 to each block of `blocksize` numbers, wherever rows begin; quant_map F32 (16); the shape stands in a
JSON text, `quant_state.bitsandbytes__nf4`. Nested: absmax are codes of nested_quant_map (256) with scales
nested_absmax. Number = quant_map[code] * absmax. Int8: number = code * SCB / 127, SCB to each row.
Source: bitsandbytes 0.50's dequantize_4bit (backends/default) and int8_vectorwise_dequant.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from converter.errors import short
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Floats, Group, Values

_WEIGHT, _ABSMAX, _MAP = ".weight", ".weight.absmax", ".weight.quant_map"
_NESTED_ABSMAX, _NESTED_MAP = ".weight.nested_absmax", ".weight.nested_quant_map"
_STATE = ".weight.quant_state.bitsandbytes__"
_TYPES = ("nf4", "fp4")
_SCB, _LAYOUT = ".SCB", ".weight_format"
_MAX_STATE = 1 << 16
_LEVELS = 1 << 4


class _State(NamedTuple):
    """What the JSON text says, checked; `nested` is the block of the second quantization, 0 where there is none."""

    shape: tuple[int, ...]
    block: int
    nested: int
    offset: np.float32


def _state(module: Module, suffix: str) -> _State:
    text = module.array(suffix).tobytes() if module[suffix].info.nbytes <= _MAX_STATE else b""
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise module.corrupt("quant_state is no JSON object")

    def refuse(key: str) -> NoReturn:
        raise module.corrupt(f"quant_state says {key} = {short(said.get(key))}")

    def count(key: str) -> int:
        value = said.get(key)
        if type(value) is not int or not 0 < value <= 1 << 24:
            refuse(key)
        return value

    shape = said.get("shape")
    if not isinstance(shape, list) or len(shape) < 2 or not all(type(n) is int and 0 < n < 1 << 40 for n in shape):
        refuse("shape")
    if said.get("quant_type") != suffix.removeprefix(_STATE):
        refuse("quant_type")
    nested = count("nested_blocksize") if _NESTED_ABSMAX in module else 0
    offset = said.get("nested_offset", 0.0) if nested else 0.0
    if type(offset) not in (int, float) or not math.isfinite(offset) or abs(offset) > 1e30:
        refuse("nested_offset")
    return _State(tuple(shape), count("blocksize"), nested, np.float32(offset))


def _four_bits(module: Module, suffix: str) -> Values:
    state = _state(module, suffix)
    n, row = math.prod(state.shape), state.shape[-1]
    if module[_WEIGHT].info.nbytes != -(-n // 2):
        raise module.corrupt(
            f"weight has {module[_WEIGHT].info.nbytes} bytes, quant_state makes it {list(state.shape)}"
        )
    n_blocks = -(-n // state.block)
    module.expect(_ABSMAX, (n_blocks,))
    codebook = _floats(module, _MAP, _LEVELS)
    octet = np.arange(256)
    pairs = np.stack((codebook[octet >> 4], codebook[octet & _LEVELS - 1]), axis=1)  # of each byte
    if state.nested:
        if module[_ABSMAX].info.dtype.name != "U8" or _NESTED_MAP not in module:
            raise module.corrupt("absmax is nested, but is not U8 or has no nested_quant_map")
        module.expect(_NESTED_ABSMAX, (-(-n_blocks // state.nested),))
        second = _floats(module, _NESTED_MAP, 256)
        _floats(module, _NESTED_ABSMAX, -(-n_blocks // state.nested))
    elif module[_ABSMAX].info.dtype.name != "F32":
        raise module.corrupt(f"absmax is {module[_ABSMAX].info.dtype}, and nothing nested is beside it")

    def absmax(first: int, last: int) -> Floats:
        """Of blocks [first, last)."""
        stored = module.array(_ABSMAX)[first:last]
        if state.nested:
            at = np.arange(first, last) // state.nested
            stored = second[stored] * module.array(_NESTED_ABSMAX)[at] + state.offset
        if not np.isfinite(stored).all():
            raise module.corrupt("absmax is infinite or no number (NaN)")
        found: Floats = stored
        return found

    def read(start: int, stop: int) -> Floats:
        low, high = start * row, stop * row
        octets = module.octets(_WEIGHT, low // 2, -(-high // 2))
        numbers = pairs[octets].reshape(-1)[low % 2 :][: high - low]
        first = low // state.block
        scale = absmax(first, -(-high // state.block))
        if low % state.block == 0 == high % state.block:
            blocks = numbers.reshape(-1, state.block)
            blocks *= scale[:, None]
        else:
            numbers *= np.repeat(scale, state.block)[low - first * state.block :][: high - low]
        return numbers.reshape(stop - start, row)

    return Values(state.shape, read, 16 * row)


def _floats(module: Module, suffix: str, count: int) -> Floats:
    """A small tensor of finite numbers."""
    module.expect(suffix, (count,))
    if module[suffix].info.dtype.name != "F32":
        raise module.corrupt(f"{suffix.removeprefix(_WEIGHT + '.')} is {module[suffix].info.dtype}, not F32")
    found: NDArray[Any] = module.array(suffix)
    if not np.isfinite(found).all():
        raise module.corrupt(f"{suffix.removeprefix(_WEIGHT + '.')} holds infinite numbers or NaN")
    return found


def _eight_bits(module: Module) -> Affine:
    shape = module.shape(_WEIGHT)
    if len(shape) != 2 or 0 in shape:
        raise module.corrupt(f"{list(shape)} is no matrix")
    out, row = shape
    module.expect(_SCB, (out,))
    if _LAYOUT in module and module.array(_LAYOUT).reshape(-1).tolist() != [0]:
        raise module.unsupported("int8 in a layout of old GPUs (weight_format), which is not decoded here")

    def read(start: int, stop: int) -> Group:
        scale = module.array(_SCB)[start:stop].astype(np.float32)
        return Group(module.rows(_WEIGHT, start, stop), scale[:, None])

    after = np.float32(1 / 127)
    return Affine(module.where, shape, row, (-128, 127), read, scaled=lambda: "F32", after=after)


def _form(kind: str) -> Form:
    suffix = _STATE + kind
    extra = (_NESTED_ABSMAX, _NESTED_MAP)
    return Form(_WEIGHT, (_ABSMAX, _MAP, suffix), lambda module: _four_bits(module, suffix), extra)


SCHEME = Scheme(
    "bitsandbytes",
    ("bitsandbytes",),
    (*map(_form, _TYPES), Form(_WEIGHT, (_SCB,), _eight_bits, (_LAYOUT,), dtypes=("I8",))),
)
