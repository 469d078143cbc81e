"""GPTQ: codes packed along the input, zero points along the output. Of AutoGPTQ, GPTQModel, AutoRound.

qweight int32 (in * bits / 32, out), qzeros int32 (groups, out * bits / 32), scales (groups, out), g_idx int32 (in).
Number = scale * (code - zero). Three bits: 32 codes run through three words. Sources: GPTQModel 7.7's TorchLinear and
its conversion between formats 1 and 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.sources.bits import stream
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Group

_QWEIGHT, _QZEROS, _SCALES, _ORDER = ".qweight", ".qzeros", ".scales", ".g_idx"
# What format 1 took off each word of zero points; a zero of 0 borrowed from its neighbour, which the sum gives back.
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
_RUN = 32  # codes after which packing begins anew, whatever the bits


def _settings_of(module: Module) -> Mapping[str, Any]:
    """The settings of one module: `dynamic` has some for names that match, the first of them.

    AutoRound lists modules with settings of their own in `extra_config`.
    """
    extra = module.settings.get("extra_config")
    if isinstance(extra, dict) and isinstance(extra.get(module.name), dict):
        return {**module.settings, **extra[module.name]}
    dynamic = module.settings.get("dynamic")
    for pattern, own in dynamic.items() if isinstance(dynamic, dict) else ():
        if not pattern.startswith("-:") and isinstance(own, dict) and re.match(pattern.removeprefix("+:"), module.name):
            return {**module.settings, **own}
    return module.settings


def _read(module: Module) -> Affine:
    words, out = module.shape(_QWEIGHT) if len(module.shape(_QWEIGHT)) == 2 else (0, 0)
    settings = _settings_of(module)
    row = module.shape(_ORDER)[0] if _ORDER in module else _said(module, settings, "bits", words)
    bits = 32 * words // row if row else 0
    if bits not in (2, 3, 4, 8) or bits * row != 32 * words:
        raise module.corrupt(f"qweight has {words} words for {row} codes, which is not 2, 3, 4 or 8 bits for each")
    groups = module.shape(_SCALES)[0] if module.shape(_SCALES) else 0
    module.expect(_SCALES, (groups, out))
    module.expect(_QZEROS, (groups, -(-out * bits // 32)))
    size, order = _grouping(module, settings, row, groups)
    old = str(settings.get("checkpoint_format") or settings.get("format") or "gptq") == "gptq"

    def zeros(start: int, stop: int) -> NDArray[np.uint8]:
        """Zero points of outputs [start, stop): (stop - start, groups)."""
        first = start // _RUN * _RUN
        last = min(out, -(-stop // _RUN) * _RUN)
        packed = module.columns(_QZEROS, first * bits // 32, -(-last * bits // 32)).T
        if old and bits in _ONES:
            packed = np.ascontiguousarray(packed).view(np.uint32) + np.uint32(_ONES[bits])
        found = stream(np.ascontiguousarray(packed), bits, last - first)[:, start - first : stop - first]
        if old and bits not in _ONES:
            found = found + np.uint8(1) & np.uint8((1 << bits) - 1)
        return np.ascontiguousarray(found.T)

    def read(start: int, stop: int) -> Group:
        codes = stream(module.columns(_QWEIGHT, start, stop), bits, row)
        return Group(codes, module.columns(_SCALES, start, stop).astype(np.float32), zeros(start, stop))

    def extent() -> tuple[int, int]:
        found = zeros(0, out)
        return int(found.min()), int(found.max())

    return Affine(
        module.where, (out, row), size, (0, (1 << bits) - 1), read, extent,
        order=order, scaled=lambda: module.type(_SCALES),
    )  # fmt: skip


def _said(module: Module, settings: Mapping[str, Any], key: str, words: int) -> int:
    bits = settings.get(key, settings.get("w_bit"))
    if not isinstance(bits, int) or not 0 < bits <= 8:
        raise module.corrupt("neither g_idx nor the config's bits say how many columns there are")
    return 32 * words // bits


def _grouping(
    module: Module, settings: Mapping[str, Any], row: int, groups: int
) -> tuple[int, NDArray[np.int64] | None]:
    """How many columns share a scale, and the group of each column where that is not in order."""
    if not 0 < groups <= row:
        raise module.corrupt(f"{groups} groups of scales for {row} columns")
    said = settings.get("group_size", settings.get("q_group_size", -1))
    size = said if isinstance(said, int) and said > 0 else row
    if -(-row // size) != groups:
        size = -(-row // groups)
    if _ORDER not in module:
        return size, None
    order = module.array(_ORDER).reshape(-1).astype(np.int64)
    if order.min() < 0 or order.max() >= groups:
        raise module.corrupt(f"g_idx names group {order.min() if order.min() < 0 else order.max()} of {groups}")
    return size, None if (order == np.arange(row) // size).all() else order


def _refuse(settings: Mapping[str, Any]) -> str | None:
    said = str(settings.get("checkpoint_format") or settings.get("format") or "gptq")
    if settings.get("is_marlin_format") or said == "marlin":
        return "laid out for a kernel (Marlin)"
    if said not in ("gptq", "gptq_v2"):
        return f"in the format {said}"
    return None if settings.get("pack_dtype", "int32") == "int32" else f"packed in {settings['pack_dtype']}"


SCHEME = Scheme(
    "GPTQ",
    ("gptq",),
    (Form(_QWEIGHT, (_QZEROS, _SCALES), _read, extra=(_ORDER,)),),
    refuse=_refuse,
)
