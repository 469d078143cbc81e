"""HQQ: codes of a few bits whose zero points are real numbers; every module says its own settings, in tensors.

The weight is seen as a matrix of groups: one to a row of it (axis 1) or one to a column (axis 0). Codes are packed
along its first axis in equal parts, the first part in the highest bits: W_q (rows / parts, width), uint8 or int32, or
the same bytes in another type. Number = (code - zero) * scale, in F32. Source: hqq 0.2.8's BitPack, Quantizer and
HQQLinear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.sources.parts import Parts
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Floats, Group, Stored, Values, check

_CODES, _SCALE, _ZERO, _SHAPE = ".W_q", ".scale", ".zero", ".shape"
#: Settings that are read; what else the library stores is for those who calculate with codes.
_READ = (".nbits", ".group_size", ".axis", ".packing", ".quant_scale", ".quant_zero")
_REST = (
    ".channel_wise", ".compute_dtype", ".encoded_state_dict", ".offload_meta", ".optimize", ".round_zero",
    ".stores_quant_config", ".unpack_view_dtype", ".view_as_float",
)  # fmt: skip
_MAX_SETTING = 1 << 10


def _parts(count: int, bits: int) -> tuple[int, ...]:
    """The lowest bits of parts, of which the first has the highest."""
    return tuple(bits * part for part in reversed(range(count)))


#: Bytes of a word, bits of a code, where the parts lie.
_PACKINGS = {
    "8bit_u8": (1, 8, (0,)), "4bit_u8": (1, 4, _parts(2, 4)), "3bit_32": (4, 3, _parts(10, 3)),
    "2bit_u8": (1, 2, _parts(4, 2)), "1bit_u8": (1, 1, _parts(8, 1)),
}  # fmt: skip


def _read(module: Module) -> Stored:
    shape = tuple(int(n) for n in _small(module, _SHAPE).reshape(-1)) if _SHAPE in module else ()
    n = math.prod(shape)
    if len(shape) < 2 or min(shape) < 1 or n > 1 << 48:
        raise module.corrupt(f"shape says {list(shape)}")
    if any(_number(module, suffix, 0) for suffix in (".quant_scale", ".quant_zero")):
        raise module.unsupported("HQQ with scales or zero points that are quantized again, which is not decoded here")
    axis, bits = _number(module, ".axis"), _number(module, ".nbits")
    size = _number(module, ".group_size", shape[-1] if axis == 1 else shape[0])
    packing = _PACKINGS.get(_packing(module, bits))
    if axis not in (0, 1) or not 1 <= bits <= 8 or packing is None or not 0 < size <= n or n % size:
        raise module.corrupt(f"axis {axis}, {bits} bits in groups of {size} for {list(shape)} cannot be")
    rows, width = (size, n // size) if axis == 0 else (n // size, size)
    word, packed_bits, shifts = packing
    codes = Parts(module, _CODES, shifts, packed_bits, rows, width, word)
    codes.check()
    for suffix in (_SCALE, _ZERO):
        module.expect(suffix, (n // size, 1) if axis == 1 else (1, n // size))
    row = shape[-1]

    def by_group(suffix: str, index: Any) -> Floats:
        found: Floats = module.array(suffix).reshape(-1)[index].astype(np.float32)
        return found

    def groups(start: int, stop: int) -> Group:
        count = row // size
        at = slice(start * count, stop * count)
        scale, zero = (by_group(suffix, at).reshape(-1, count) for suffix in (_SCALE, _ZERO))
        return Group(codes.flat(start * row, stop * row).reshape(-1, row), scale, zero)

    def values(start: int, stop: int) -> Floats:
        low, high = start * row, stop * row
        at = np.arange(low, high)
        group = at // width if axis == 1 else at % width
        scale = by_group(_SCALE, group)
        numbers = codes.flat(low, high).astype(np.float32) - by_group(_ZERO, group)
        check(module.where, scale, lambda none: numbers[none], numbers)
        numbers *= scale
        return numbers.reshape(-1, row)

    if axis == 1 and row % size == 0:
        return Affine(
            module.where, shape, size, (0, (1 << bits) - 1), groups, real=True, scaled=lambda: module.type(_SCALE)
        )
    return Values(shape, values, 40 * row)


def _small(module: Module, suffix: str) -> NDArray[Any]:
    """A setting, which is a tensor."""
    if module[suffix].info.nbytes > _MAX_SETTING or module[suffix].info.dtype.floating:
        raise module.corrupt(f"{suffix[1:]} is {module[suffix].info.dtype} {list(module.shape(suffix))}")
    return module.array(suffix)


def _number(module: Module, suffix: str, default: int | None = None) -> int:
    """A setting that is a number: in a tensor, else in the config, else `default`."""
    if suffix in module:
        stored = _small(module, suffix).reshape(-1)
        if len(stored) != 1:
            raise module.corrupt(f"{suffix[1:]} is no number")
        return int(stored[0])
    said = _said(module).get(suffix[1:], default)
    if not isinstance(said, int):
        raise module.corrupt(f"neither a tensor nor the config says its {suffix[1:]}")
    return said


def _packing(module: Module, bits: int) -> str:
    if ".packing" in module:
        return bytes(_small(module, ".packing").reshape(-1).astype(np.uint8)).decode("ascii", "replace")
    return {3: "3bit_32", 8: "8bit_u8", 6: "8bit_u8", 5: "8bit_u8"}.get(bits, f"{bits}bit_u8")


def _said(module: Module) -> Mapping[str, Any]:
    """What the config says for a module: for all, or by the end of its name."""
    given = module.settings.get("quant_config", module.settings)
    given = given if isinstance(given, dict) else {}
    own = next((each for tag, each in given.items() if module.name.endswith("." + tag)), given)
    inner = own.get("weight_quant_params", own) if isinstance(own, dict) else {}
    return inner if isinstance(inner, dict) else {}


SCHEME = Scheme("HQQ", ("hqq",), (Form(_CODES, (_SCALE, _ZERO, _SHAPE), _read, (*_READ, *_REST)),))
