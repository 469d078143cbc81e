"""MLX: codes of 2 to 8 bits in one stream of bits a row, with a scale and a least number for each group of columns.

weight uint32 (..., out, in * bits / 32), scales and biases (..., out, in / group) in the model's type; number = scale *
code + bias. transformers' `metal` method has the same layout and names the least numbers qbiases. Embeddings and the
head are quantized, too; mlx-lm stacks experts, as `switch_mlp`. Modes mxfp4, nvfp4 and mxfp8 have no least numbers:
small floats with a byte of scale to 32 columns (2^(b - 127)) or 16 (E4M3). Sources: mlx 0.32's mx.quantize; the config
that mlx-lm writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from converter.quant.sources.bits import stream
from converter.quant.sources.common import NVFP4, matrix
from converter.quant.sources.floats import E8M0, MICRO
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Floats, Fours, Group, Scaled, Stored
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo

_WEIGHT, _SCALES, _BIASES, _QBIASES = ".weight", ".scales", ".biases", ".qbiases"
_BITS = (2, 3, 4, 5, 6, 8)
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
#: Modes without least numbers: bits, and columns that share a scale.
_MODES = {"mxfp4": (4, MICRO), "nvfp4": (4, NVFP4), "mxfp8": (8, MICRO)}


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

    return Affine(
        module.where, (*outer, row), size, (0, (1 << bits) - 1), read,
        least=True, scaled=lambda: module.type(_SCALES), scales=scales,
    )  # fmt: skip


def _floating(module: Module) -> Stored:
    """A mode without least numbers, which config.json names: its scales are bytes."""
    *outer, words = matrix(module, _WEIGHT)
    mode, stored, scales = _settings_of(module).get("mode"), module[_WEIGHT], module[_SCALES]
    if scales.info.dtype.name != "U8" or mode not in _MODES:
        raise module.corrupt("scales are beside it, least numbers are not, and config.json names no mode without them")
    bits, size = _MODES[mode]
    shape = (*outer, 32 * words // bits)
    module.expect(_SCALES, (*outer, -(-shape[-1] // size)))
    if bits == 4:
        return Fours(module.where, shape, stored.rows, scales.rows, size)

    def read(start: int, stop: int) -> Floats:
        return kernels.decode(stored.rows(start, stop), DTYPES["F8_E4M3"])

    def exponents(start: int, stop: int) -> Floats:
        found: Floats = E8M0[scales.rows(start, stop)]
        return found

    return Scaled(module.where, shape, read, exponents, size, lambda: True)


def _parted(tensor: LazyTensor) -> tuple[LazyTensor, ...]:
    """Experts one by one, under the names that Hugging Face has for them."""
    before, stacked, after = tensor.name.partition(".switch_mlp.")
    if not stacked or len(tensor.info.shape) != 3:
        return (tensor,)
    experts, rows, row = tensor.info.shape
    layer, _, rest = after.partition(".")
    layer = _MIXTRAL.get(layer, layer) if before.endswith(".block_sparse_moe") else layer

    def one(expert: int) -> LazyTensor:
        info = TensorInfo(f"{before}.experts.{expert}.{layer}.{rest}", (rows, row), tensor.info.dtype)
        first = expert * rows
        return tensor.derived(info, lambda start, stop: tensor.rows(first + start, first + stop))

    return tuple(map(one, range(experts)))


SCHEME = Scheme(
    "MLX",
    ("mlx", "metal"),
    (
        Form(_WEIGHT, (_SCALES, _BIASES), lambda module: _affine(module, _BIASES), dtypes=("U32",)),
        Form(_WEIGHT, (_SCALES, _QBIASES), lambda module: _affine(module, _QBIASES), dtypes=("U32",)),
        Form(_WEIGHT, (_SCALES,), _floating, dtypes=("U32",)),
    ),
    parted=_parted,
)
