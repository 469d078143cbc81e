"""compressed-tensors, of llm-compressor and vLLM: integers of 1 to 8 bits, FP8, NVFP4, MXFP4, MXFP6, MXFP8, also mixed.

pack-quantized: weight_packed int32 (out, words), weight_shape, weight_scale (out, groups), weight_zero_point int32
packed along out, weight_g_idx (in) in old files. Fields are unsigned, code + 2^(bits - 1), zero points too. Until 0.20
a word holds 32 // bits codes, since then codes run through the words; the number of words tells.
nvfp4-pack-quantized: weight_packed uint8, weight_scale E4M3 (out, in / 16), weight_global_scale, which divides.
The others: weight of the type itself, weight_scale for the tensor, rows, groups or blocks. Source: its 0.20.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.sources.bits import fields, stream
from converter.quant.sources.common import FP8, NVFP4, UNUSED, eights, factor, fours, integers, matrix
from converter.quant.sources.floats import E2M3, E8M0, MICRO
from converter.quant.sources.grid import grid
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Floats, Group, Scaled, Stored, Values
from converter.tensors.dtypes import BF16, DTYPES

_WEIGHT, _PACKED, _SCALE, _SHAPE, _ZERO, _ORDER, _GLOBAL, _INPUT = (
    ".weight", ".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx",
    ".weight_global_scale", ".input_global_scale",
)  # fmt: skip
_PLAIN = ("BF16", "F16", "F32")
_SPARSE = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
_FUSED = ("weight_input", "weight_output")
_OTHER = 3
_RUN = 32  # codes after which dense packing begins anew


# ------------------------------------------------------------------------------------------ what the config says


def _groups(module: Module) -> list[Mapping[str, Any]]:
    """What groups of the config say of weights, those first that name this module; others where none does."""
    groups = module.settings.get("config_groups")
    found: list[tuple[int, Mapping[str, Any]]] = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            found.append((_rank(module.name, group.get("targets")), weights))
    named = [each for each in found if each[0] < _OTHER] or found
    return [weights for _, weights in sorted(named, key=lambda each: each[0])]


def _rank(name: str, targets: object) -> int:
    """0: named; 1: by an expression; 2: by a class, which the tensors do not tell."""
    ranks = [_OTHER]
    for target in targets if isinstance(targets, list) else ():
        if target == name:
            ranks.append(0)
        elif isinstance(target, str) and target.startswith("re:"):
            ranks += [1] if _matches(target[3:], name) else []
        elif isinstance(target, str) and "." not in target:
            ranks.append(2)
    return min(ranks)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.match(pattern, name) is not None
    except re.error:
        return False


def _sizes(module: Module) -> Iterator[tuple[int, int]]:
    """Rows and columns to a scale, of every group that says them."""
    rows = module.shape(_WEIGHT)[-2] if _WEIGHT in module else 1
    for weights in _groups(module):
        block, size = weights.get("block_structure"), weights.get("group_size")
        if isinstance(block, str):  # until 0.10
            block = [int(each) if each.isdecimal() else 0 for each in block.split("x")]
        if isinstance(block, list) and len(block) == 2 and all(type(each) is int and each > 0 for each in block):
            yield block[0], block[1]
        elif type(size) is int and size > 0:
            yield 1, size
        elif weights.get("strategy") == "tensor":
            yield rows, module.shape(_WEIGHT)[-1]


# ------------------------------------------------------------------------------------------------ pack-quantized


def _packed(module: Module) -> Affine:
    rows, words = module.shape(_PACKED) if len(module.shape(_PACKED)) == 2 else (0, 0)
    said = module.array(_SHAPE).reshape(-1).tolist()
    row = said[1] if len(said) == 2 else 0
    if not rows or said[0] != rows or not 0 < row <= 32 * words:
        raise module.corrupt(f"weight_shape is {said}, weight_packed {list(module.shape(_PACKED))}")
    bits, dense = _packing(module, row, words)
    size, across = _group_size(module, rows, row)
    scales = grid(module, _SCALE, (rows, row), [(1, size)])
    order = _order(module, row, size, across)
    zeros = _zeros(module, rows, across, bits, dense) if _ZERO in module else None
    unpack = stream if dense else fields
    middle = 1 << bits - 1

    def read(start: int, stop: int) -> Group:
        codes: NDArray[Any] = unpack(module.rows(_PACKED, start, stop), bits, row)
        if zeros is None:
            codes = codes.astype(np.int16) - np.int16(middle)
        return Group(codes, scales.numbers(start, stop), None if zeros is None else zeros(start, stop))

    def extent() -> tuple[int, int]:
        assert zeros is not None
        found = zeros(0, rows)
        return int(found.min()), int(found.max())

    least = 0 if zeros is not None else -middle
    return Affine(
        module.where, (rows, row), size, (least, least + (1 << bits) - 1), read,
        zeros=None if zeros is None else extent, order=order, scaled=lambda: module.type(_SCALE),
    )  # fmt: skip


def _packing(module: Module, row: int, words: int) -> tuple[int, bool]:
    """Bits of a code, and whether codes run through words; by what the config says and the number of words fits."""
    for weights in _groups(module):
        bits = weights.get("num_bits")
        if type(bits) is not int or not 1 <= bits <= 8 or weights.get("type", "int") != "int":
            continue
        dense, old = -(-row * bits // 32) == words, -(-row // (32 // bits)) == words
        if dense and old and 32 % bits and row > 32 // bits:
            raise module.unsupported(f"{words} words of {row} codes of {bits} bits may be packed in two ways")
        if dense or old:
            return bits, dense
    raise module.corrupt(f"{words} words for {row} codes: no group of the config says so many bits")


def _group_size(module: Module, rows: int, row: int) -> tuple[int, int]:
    """Columns to a scale, and how many scales a row has."""
    given = module.shape(_SCALE)
    across = given[1] if len(given) == 2 else 1
    if math.prod(given) == 1 or across == 1:
        return row, 1
    if given[0] != rows or not 0 < across <= row:
        raise module.corrupt(f"weight_scale is {list(given)}, the weight [{rows}, {row}]")
    said = (size for tall, size in _sizes(module) if tall == 1 and -(-row // size) == across)
    return next(said, -(-row // across)), across


def _order(module: Module, row: int, size: int, across: int) -> NDArray[np.int64] | None:
    if _ORDER not in module:
        return None
    order = module.array(_ORDER).reshape(-1).astype(np.int64)
    if len(order) != row:
        raise module.corrupt(f"weight_g_idx has {len(order)} entries for {row} columns")
    if (order == -1).any() or (order == np.arange(row) // size).all():
        return None  # -1: written before it was filled, as the library itself takes it
    if order.min() < 0 or order.max() >= across:
        raise module.corrupt(f"weight_g_idx names group {order.min() if order.min() < 0 else order.max()} of {across}")
    return order


def _zeros(module: Module, rows: int, across: int, bits: int, dense: bool) -> Any:
    """Zero points of rows [start, stop) as unsigned fields, (n, groups)."""
    if module[_ZERO].info.dtype.name not in ("I8", "I32"):
        raise module.corrupt(f"zero points are {module[_ZERO].info.dtype}")
    if module[_ZERO].info.dtype.name == "I8":  # not packed, signed
        stored = grid(module, _ZERO, (rows, across), [(1, 1)])
        return lambda start, stop: stored.stored(start, stop).astype(np.int16) + np.int16(1 << bits - 1)
    each = 32 // bits
    module.expect(_ZERO, (-(-rows * bits // 32) if dense else -(-rows // each), across))

    def read(start: int, stop: int) -> NDArray[Any]:
        run = _RUN if dense else each
        first, last = start // run * run, min(rows, -(-stop // run) * run)
        low, high = (first * bits // 32, -(-last * bits // 32)) if dense else (first // each, -(-last // each))
        words = np.ascontiguousarray(module.rows(_ZERO, low, high).T)
        found = (stream if dense else fields)(words, bits, last - first)
        return np.ascontiguousarray(found[:, start - first : stop - first].T)

    return read


# --------------------------------------------------------------------------------------------------- the others


def _small(module: Module) -> Stored:
    """Floats of four or six bits, packed in bytes."""
    if module[_SCALE].info.dtype.name == "F8_E4M3":
        if _GLOBAL not in module:
            raise module.corrupt("weight_global_scale is not there, by which all of NVFP4 is divided")
        whole, inputs = (factor(module, _PACKED, suffix, divides=True) for suffix in (_GLOBAL, _INPUT))
        return fours(module, _PACKED, _SCALE, NVFP4, factor=whole, inputs=inputs)
    *_, columns = matrix(module, _PACKED)
    if any(weights.get("num_bits") == 6 for weights in _groups(module)) and columns % 3 == 0:
        rows, groups = module.shape(_PACKED)[0], -(-columns // 3 * 4 // MICRO)
        if module.shape(_SCALE) == (rows, groups):
            return _sixes(module, rows, columns // 3 * 4)
    return fours(module, _PACKED, _SCALE)


def _sixes(module: Module, rows: int, row: int) -> Scaled:
    def read(start: int, stop: int) -> Floats:
        numbers: Floats = E2M3[stream(module.rows(_PACKED, start, stop), 6, row)]
        return numbers

    def scales(start: int, stop: int) -> Floats:
        numbers: Floats = E8M0[module.rows(_SCALE, start, stop)]
        return numbers

    return Scaled(module.where, (rows, row), read, scales, MICRO, lambda: True)


def _typed(module: Module) -> Stored:
    """A weight whose tensor has the type of its codes."""
    own = module[_WEIGHT].info.dtype.name
    if own in _PLAIN:  # frozen: scales are there, and not applied
        return _frozen(module)
    if own in FP8:
        if _ZERO in module and np.asarray(module.array(_ZERO)).astype(np.float32).any():
            raise module.unsupported("FP8 with zero points")
        return eights(module, _WEIGHT, _SCALE, _sizes(module))
    said = [weights.get("num_bits") for weights in _groups(module) if weights.get("type", "int") == "int"]
    bits = said[0] if said and type(said[0]) is int and 1 <= said[0] <= 8 else 8
    return integers(module, _WEIGHT, _SCALE, _ZERO if _ZERO in module else None, _sizes(module), bits)


def _frozen(module: Module) -> Values:
    from converter.tensors.streams import values

    tensor = module[_WEIGHT]
    type_ = DTYPES[tensor.info.dtype.name]
    return Values(
        matrix(module, _WEIGHT), lambda start, stop: values(tensor, start, stop), 8 * tensor.info.row,
        type_ if type_ is BF16 or type_.name == "F16" else None,
    )  # fmt: skip


def _refuse(settings: Mapping[str, Any]) -> str | None:
    groups = settings.get("config_groups")
    own = groups.values() if isinstance(groups, dict) else ()
    said = [settings.get("format"), *(each.get("format") for each in own if isinstance(each, dict))]
    sparsity = settings.get("sparsity_config")
    said.append(sparsity.get("format") if isinstance(sparsity, dict) else None)
    if found := next((each for each in said if each in _SPARSE), None):
        return f"in the format {found}, which the library itself has dropped"
    transforms = settings.get("transform_config")
    schemes = transforms.get("config_groups") if isinstance(transforms, dict) else None
    for name, scheme in schemes.items() if isinstance(schemes, dict) else ():
        applied = scheme.get("apply") if isinstance(scheme, dict) else None
        if not isinstance(applied, list) or any(_online(each) for each in applied):
            return f"with a transform of activations ({name}), which plain weights do without"
    return None


def _online(applied: object) -> bool:
    return not isinstance(applied, dict) or applied.get("location") not in _FUSED


SCHEME = Scheme(
    "compressed-tensors",
    ("compressed-tensors",),
    (
        Form(_PACKED, (_SCALE, _SHAPE), _packed, extra=(_ZERO, _ORDER, _INPUT), dtypes=("I32",)),
        Form(_PACKED, (_SCALE,), _small, extra=(_GLOBAL, _INPUT, _SHAPE), dtypes=("U8", "I8")),
        Form(_WEIGHT, (_SCALE,), _typed, extra=(_ZERO, _ORDER), dtypes=(*FP8, "I8", *_PLAIN)),
    ),
    unused=UNUSED,
    refuse=_refuse,
)
