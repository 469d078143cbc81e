"""optimum-quanto: int8 or FP8 rows, or codes of four or two bits in groups, packed along their first axis.

X.weight._data int8 or E4M3 (out, in) with X.weight._scale (out, 1): number = scale * code. Fewer bits:
X.weight._data._data uint8, the parts of the first axis in the bits of a byte, lowest first; _scale and _shift (groups,
1); number = scale * code - shift, or scale * (code - shift) where shifts are integers; groups stand in the order of the
flat weight, or are whole rows. Each step is rounded to the type of the scales. What the weight's shape was is not said.
Source: optimum-quanto 0.2.7's qbytes, qbits, packed and grouped.
"""

from __future__ import annotations

import numpy as np

from converter.quant.sources.parts import Parts
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Floats, Group, Scaled, Stored
from converter.tensors import kernels
from converter.tensors.dtypes import F32, DType

_CODES, _SCALE = ".weight._data", ".weight._scale"
_PACKED, _SHIFT = ".weight._data._data", ".weight._shift"
_BITS = {"qint4": 4, "qint2": 2}
_FLOATS = ("F8_E4M3", "F8_E5M2")
#: Last parts of names of layers that write the hidden state, and of those that read it.
_WRITE = frozenset(("o_proj", "out_proj", "down_proj", "dense", "dense_4h_to_h", "c_proj", "fc2", "w2", "wo", "fc_out"))
_READ = frozenset((
    "q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "query_key_value", "c_attn",
    "c_fc", "dense_h_to_4h", "fc1", "fc_in", "w1", "w3", "wq", "wk", "wv", "Wqkv", "gate", "lm_head", "embed_out",
))  # fmt: skip
_HIDDEN = ("hidden_size", "n_embd", "d_model")


def _own(module: Module) -> DType | None:
    """The type that its numbers are given in; None for F32."""
    dtype = module[_SCALE].info.dtype
    if dtype.name not in ("F16", "BF16", "F32"):
        raise module.corrupt(f"scales are {dtype}")
    return None if dtype is F32 else dtype


def _rows(module: Module) -> Stored:
    """Eight bits, a scale to each row."""
    shape, stored = module.shape(_CODES), module[_CODES]
    if len(shape) < 2 or 0 in shape:
        raise module.corrupt(f"{list(shape)} is no matrix")
    n_rows, row = stored.info.n_rows, shape[-1]
    module.expect(_SCALE, (shape[0], *(1 for _ in shape[1:])), (), (1,))
    own = _own(module)

    def scales(start: int, stop: int) -> Floats:
        stored_scales = module.array(_SCALE).reshape(-1)
        at = np.arange(start, stop) * len(stored_scales) // n_rows
        return stored_scales[at].astype(np.float32)[:, None]

    if stored.info.dtype.name in _FLOATS:

        def read(start: int, stop: int) -> Floats:
            return kernels.decode(stored.rows(start, stop), stored.info.dtype)

        return Scaled(module.where, shape, read, scales, row, own=own)
    if stored.info.dtype.name != "I8":
        raise module.corrupt(f"_data is {stored.info.dtype}, neither int8 nor FP8")

    def group(start: int, stop: int) -> Group:
        return Group(module.rows(_CODES, start, stop), scales(start, stop))

    return Affine(module.where, shape, row, (-128, 127), group, scaled=lambda: module.type(_SCALE), own=own)


def _groups(module: Module) -> Affine:
    """Four or two bits, in groups."""
    if len(module.shape(_PACKED)) != 2 or module[_PACKED].info.dtype.name != "U8" or 0 in module.shape(_PACKED):
        raise module.corrupt(f"_data is {module[_PACKED].info.dtype} {list(module.shape(_PACKED))}")
    packed, width = module.shape(_PACKED)
    count = module.shape(_SCALE)[0] if module.shape(_SCALE) else 0
    module.expect(_SCALE, (count, 1))
    module.expect(_SHIFT, (count, 1))
    said = module.settings.get(module.name)
    named = _BITS.get(str(said.get("weights"))) if isinstance(said, dict) else None
    bits = next((b for b in ((named,) if named else (4, 2)) if packed == -(-count * b // 8)), 0)
    if not count or not bits:
        raise module.corrupt(f"{packed} rows of bytes are not {count} groups of {named or '4 or 2'} bits")
    row = _row(module, count, width)
    codes = Parts(module, _PACKED, tuple(range(0, 8, bits)), bits, count, width)
    codes.check()
    across, own = row // width, _own(module)
    real = module[_SHIFT].info.dtype.floating

    def read(start: int, stop: int) -> Group:
        scale, shift = (
            module.array(suffix).reshape(-1)[start * across : stop * across].reshape(-1, across)
            for suffix in (_SCALE, _SHIFT)
        )
        numbers = codes.flat(start * row, stop * row).reshape(-1, row)
        zero, least = (None, -shift.astype(np.float32)) if real else (shift, None)
        return Group(numbers, scale.astype(np.float32), zero, least)

    def zeros() -> tuple[int, int]:
        found = module.array(_SHIFT)
        return int(found.min()), int(found.max())

    return Affine(
        module.where,
        (count // across, row),
        width,
        (0, (1 << bits) - 1),
        read,
        None if real else zeros,
        least=real,
        scaled=lambda: module.type(_SCALE),
        own=own,
    )


def _row(module: Module, count: int, width: int) -> int:
    """Columns of the weight: a group, or as many groups as quanto makes of the width that the model must have."""
    if width not in (32, 64, 96, 128):
        return width
    config, last = module.checkpoint.config, module.name.rsplit(".", 1)[-1]
    holders = (config, *(each for each in config.values() if isinstance(each, dict)))
    hidden = next((h[key] for h in holders for key in _HIDDEN if type(h.get(key)) is int), 0)
    if last in _READ:
        row = hidden
    else:
        out = hidden if last in _WRITE else 0
        row = count * width // out if out and count * width % out == 0 else 0
    if row < 1 or row % width or count * width % row:
        raise module.corrupt(f"{count} groups of {width}: how many make a row does not follow from config.json")
    return row


SCHEME = Scheme(
    "Quanto",
    ("quanto",),
    (Form(_PACKED, (_SCALE, _SHIFT), _groups), Form(_CODES, (_SCALE,), _rows)),
    unused=(".input_scale", ".output_scale"),
)
