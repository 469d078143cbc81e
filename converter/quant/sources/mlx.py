"""MLX: codes of 2 to 8 bits in one stream of bits a row, with a scale and a least number for each group of columns.

weight uint32 (..., out, in * bits / 32), scales and biases (..., out, in / group) in the model's type; number = scale *
code + bias. transformers' `metal` method has the same layout and names the least numbers qbiases. Embeddings and the
head are quantized, too, and experts are one tensor of three axes. Sources: mlx 0.32's mx.quantize, mlx-lm's config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from converter.quant.sources.bits import stream
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Floats, Group, Stored

_WEIGHT, _SCALES, _BIASES, _QBIASES = ".weight", ".scales", ".biases", ".qbiases"
_BITS = (2, 3, 4, 5, 6, 8)
_MODES = ("mxfp4", "nvfp4", "mxfp8")


def _settings_of(module: Module) -> Mapping[str, Any]:
    """The settings of one module, which config.json may have under its name, with another prefix perhaps."""
    said, name = module.settings, module.name
    own = said.get(name)
    if own is None:
        alike = [key for key in said if "." in key and (name.endswith("." + key) or key.endswith("." + name))]
        own = said[alike[0]] if len(alike) == 1 else None
    return {**said, **own} if isinstance(own, dict) else said


def _affine(module: Module, biases: str) -> Affine:
    *outer, words = module.shape(_WEIGHT)
    groups = module.shape(_SCALES)[-1] if module.shape(_SCALES) else 0
    if not outer or not groups:
        raise module.corrupt(f"weight is {list(module.shape(_WEIGHT))}, scales are {list(module.shape(_SCALES))}")
    module.expect(_SCALES, (*outer, groups))
    module.expect(biases, (*outer, groups))
    settings = _settings_of(module)
    bits, size = settings.get("bits"), settings.get("group_size")
    if type(bits) is not int or bits not in _BITS or type(size) is not int or size < 1:
        raise module.corrupt(f"config.json makes it {bits} bits in groups of {size}")
    row = groups * size
    if bits * row != 32 * words:
        raise module.corrupt(f"{words} words and {groups} groups are not {bits} bits in groups of {size}")

    def scales(start: int, stop: int) -> tuple[Floats, Floats]:
        scale, least = (module.rows(suffix, start, stop).astype(np.float32) for suffix in (_SCALES, biases))
        return scale, least

    def read(start: int, stop: int) -> Group:
        scale, least = scales(start, stop)
        return Group(stream(module.rows(_WEIGHT, start, stop), bits, row), scale, None, least)

    halves = module[_SCALES].info.dtype.name in ("F16", "BF16")
    shape, codes = (*outer, row), (0, (1 << bits) - 1)
    return Affine(module.where, shape, size, codes, read, least=True, halves=lambda: halves, scales=scales)


def _floating(module: Module) -> Stored:
    """A mode without least numbers, by its name."""
    mode = _settings_of(module).get("mode")
    if module[_SCALES].info.dtype.name != "U8" or mode not in _MODES:
        raise module.corrupt("scales are beside it, biases are not, and config.json names no mode that has none")
    raise module.unsupported(f"mode {mode} is not decoded here yet")


SCHEME = Scheme(
    "MLX",
    ("mlx", "metal"),
    (
        Form(_WEIGHT, (_SCALES, _BIASES), lambda module: _affine(module, _BIASES), dtypes=("U32",)),
        Form(_WEIGHT, (_SCALES, _QBIASES), lambda module: _affine(module, _QBIASES), dtypes=("U32",)),
        Form(_WEIGHT, (_SCALES,), _floating, dtypes=("U32",)),
    ),
)
