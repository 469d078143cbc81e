"""AWQ: four bits in words, with a zero point for each group of inputs. Of AutoAWQ, llm-awq, GPTQModel, AutoRound.

Number = scale * (code - zero). Three layouts, told apart by what is stored; llm-awq has written each of them, and its
config says gemv of all. gemm: qweight int32 (in, out / 8), qzeros int32 (groups, out / 8), scales (groups, out); a
word's nibbles are outputs in an order of their own. gemv: qweight (out, in / 8), qzeros (out, w), scales (out, 8 w) in
plain order, w being padded. gemv_fast: qweight int16 (out / 4, in), scales (8 w, out), and of their shape scaled_zeros,
-scale * zero; AutoAWQ names these qzeros. Sources: AutoAWQ 0.2.9's WQLinear_GEMM, _GEMV and _GEMVFast, llm-awq's
`qmodule.py` and `offline-weight-repacker.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.sources.bits import stream
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Floats, Group

_QWEIGHT, _QZEROS, _SCALED_ZEROS, _SCALES = ".qweight", ".qzeros", ".scaled_zeros", ".scales"
_BITS, _WORD = 4, 8  # codes of a word
_NIBBLE_OF = np.argsort((0, 2, 4, 6, 1, 3, 5, 7))  # by output of a word
_INTERLEAVED, _RUN = 4, 64  # rows of gemv_fast that alternate, and after how many columns
# By column of 32, 8 a + 2 b + c: its place there, 8 b + 4 c + a.
_PLACE_OF = np.arange(32).reshape(4, 2, 4).transpose(2, 0, 1).reshape(-1)
_WORDS, _HALF_WORDS = ("I32", "U32"), ("I16", "U16")
_VERSIONS = ("gemm", "gemv", "gemv_fast", "llm-awq")
_HIGHEST = (1 << _BITS) - 1


def _version(settings: Mapping[str, Any]) -> str:
    said = settings.get("version") or settings.get("checkpoint_format") or settings.get("format") or "gemm"
    return str(said).lower()


def _read(module: Module) -> Affine:
    layout = _layout(module)
    if layout is None:
        stored = ", ".join(
            f"{suffix.lstrip('.')} {module.type(suffix)} {list(module.shape(suffix))}" for suffix in module.tensors
        )
        raise module.corrupt(f"is in none of the layouts of AWQ: {stored}")
    return layout(module)


def _layout(module: Module) -> Callable[[Module], Affine] | None:
    """What reads the layout that types and shapes are of; None where they are of none."""
    codes, scales = module.shape(_QWEIGHT), module.shape(_SCALES)
    types = (module.type(_QWEIGHT), module.type(_zeros(module)))
    if len(codes) != 2 or len(scales) != 2 or 0 in (*codes, *scales):
        return None
    if types[0] in _HALF_WORDS and types[1] == module.type(_SCALES):
        return _gemv_fast if scales[1] == _INTERLEAVED * codes[0] else None
    if not set(types) <= set(_WORDS):
        return None
    if scales[1] == _WORD * codes[1]:
        return _gemm
    return _gemv if scales[0] == codes[0] else None


def _zeros(module: Module) -> str:
    return _SCALED_ZEROS if _SCALED_ZEROS in module else _QZEROS


def _gemm(module: Module) -> Affine:
    row, words = module.shape(_QWEIGHT)
    out = words * _WORD
    groups = module.shape(_SCALES)[0] if module.shape(_SCALES) else 0
    module.expect(_SCALES, (groups, out))
    module.expect(_QZEROS, (groups, words))

    def codes(suffix: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Of outputs [start, stop): (stop - start, inputs or groups)."""
        first = start // _WORD
        packed = module.columns(suffix, first, -(-stop // _WORD)).view(np.uint32)
        nibbles = packed[:, None] >> (4 * _NIBBLE_OF[:, None]).astype(np.uint32) & np.uint32(_HIGHEST)
        found = nibbles.astype(np.uint8).reshape(-1, packed.shape[1])
        return found[start - first * _WORD : stop - first * _WORD]

    return _affine(module, (out, row), groups, codes, module.columns)


def _gemv(module: Module) -> Affine:
    out, words = module.shape(_QWEIGHT)
    row = words * _WORD
    groups = _groups(module, row, lambda: module.rows(_SCALES, 0, 1))
    wide = _wide(row, groups)
    module.expect(_QZEROS, (out, wide))
    module.expect(_SCALES, (out, wide * _WORD))

    def codes(suffix: str, start: int, stop: int) -> NDArray[np.uint8]:
        return stream(module.rows(suffix, start, stop), _BITS, row if suffix == _QWEIGHT else groups)

    def scales(suffix: str, start: int, stop: int) -> NDArray[Any]:
        return module.rows(suffix, start, stop)[:, :groups]

    return _affine(module, (out, row), groups, codes, scales)


def _gemv_fast(module: Module) -> Affine:
    fours, row = module.shape(_QWEIGHT)
    out = _INTERLEAVED * fours
    if row % _RUN:
        raise module.corrupt(f"{row} columns, which are no runs of {_RUN}")
    zeros = _zeros(module)
    groups = _groups(module, row, lambda: module.columns(_SCALES, 0, 1))
    for suffix in (_SCALES, zeros):
        module.expect(suffix, (_wide(row, groups) * _WORD, out))

    def codes(start: int, stop: int) -> NDArray[np.uint8]:
        first = start // _INTERLEAVED
        words = module.rows(_QWEIGHT, first, -(-stop // _INTERLEAVED))
        rows = words.reshape(len(words), row // _RUN, _INTERLEAVED, -1).swapaxes(1, 2)
        places = stream(rows.reshape(len(words) * _INTERLEAVED, -1), _BITS, row).reshape(-1, row // 32, 32)
        first *= _INTERLEAVED
        return places[start - first : stop - first, :, _PLACE_OF].reshape(-1, row)

    def scales(start: int, stop: int) -> tuple[Floats, Floats]:
        scale, least = (
            module.columns(suffix, start, stop)[:, :groups].astype(np.float32) for suffix in (_SCALES, zeros)
        )
        return scale, least

    def read(start: int, stop: int) -> Group:
        scale, least = scales(start, stop)
        return Group(codes(start, stop), scale, None, least)

    return Affine(
        module.where, (out, row), _size(module, row, groups), (0, _HIGHEST), read,
        least=True, scaled=lambda: module.type(_SCALES), scales=scales,
    )  # fmt: skip


def _groups(module: Module, row: int, first: Callable[[], NDArray[Any]]) -> int:
    """Groups of a row: as the config says, else as many as the first output has scales that are not padding."""
    said = module.settings.get("group_size", module.settings.get("q_group_size"))
    if isinstance(said, int):
        return -(-row // said) if said > 0 else 1
    return int(np.count_nonzero(first()))


def _wide(row: int, groups: int) -> int:
    """Words of zero points that a row of so many groups has, where they are padded."""
    step = {32: 4, 64: 2}.get(row // max(groups, 1), 1)
    return -(-groups // (_WORD * step)) * step


_Part = Callable[[str, int, int], NDArray[Any]]


def _affine(module: Module, shape: tuple[int, int], groups: int, codes: _Part, scales: _Part) -> Affine:
    """`codes` and `scales` give rows of a tensor by suffix."""
    out, row = shape
    size = _size(module, row, groups)

    def read(start: int, stop: int) -> Group:
        scale = scales(_SCALES, start, stop).astype(np.float32)
        return Group(codes(_QWEIGHT, start, stop), scale, codes(_QZEROS, start, stop))

    def zeros() -> tuple[int, int]:
        found = codes(_QZEROS, 0, out)
        return int(found.min()), int(found.max())

    return Affine(module.where, shape, size, (0, _HIGHEST), read, zeros, scaled=lambda: module.type(_SCALES))


def _size(module: Module, row: int, groups: int) -> int:
    """Columns of a group."""
    if not 0 < groups <= row or row % groups:
        raise module.corrupt(f"{groups} groups of scales for {row} columns")
    return row // groups


def _refuse(settings: Mapping[str, Any]) -> str | None:
    bits = settings.get("bits", settings.get("w_bit", _BITS))
    if bits != _BITS:
        return f"with {bits} bits, which AWQ has no layout for"
    version = _version(settings)
    return None if version in _VERSIONS else f"laid out for a kernel ({version}), which is not decoded here"


SCHEME = Scheme(
    "AWQ",
    ("awq",),
    (Form(_QWEIGHT, (_QZEROS, _SCALES), _read), Form(_QWEIGHT, (_SCALED_ZEROS, _SCALES), _read)),
    refuse=_refuse,
    told=lambda module: _layout(module) is not None,
)
