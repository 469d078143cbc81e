"""AWQ: four bits in words, with a zero point for each group of inputs. Of AutoAWQ, GPTQModel, AutoRound.

Number = scale * (code - zero). gemm: qweight int32 (in, out / 8), qzeros int32 (groups, out / 8), scales (groups, out);
a word's nibbles are outputs in an order of their own. gemv: qweight (out, in / 8), qzeros (out, w), scales (out, 8 w)
in plain order, w being padded. Sources: AutoAWQ 0.2.9's WQLinear_GEMM and WQLinear_GEMV.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.sources.bits import stream
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Group

_QWEIGHT, _QZEROS, _SCALES = ".qweight", ".qzeros", ".scales"
_BITS, _WORD = 4, 8  # codes of a word
_NIBBLE_OF = np.argsort((0, 2, 4, 6, 1, 3, 5, 7))  # by output of a word
_VERSIONS = ("gemm", "gemv")
_HIGHEST = (1 << _BITS) - 1


def _version(settings: Mapping[str, Any]) -> str:
    said = settings.get("version") or settings.get("checkpoint_format") or settings.get("format") or "gemm"
    return str(said).lower()


def _read(module: Module) -> Affine:
    if module[_QWEIGHT].info.dtype.name not in ("I32", "U32") or len(module.shape(_QWEIGHT)) != 2:
        raise module.unsupported("AWQ laid out for a kernel (gemv_fast, llm-awq), which is not decoded here")
    return (_gemv if _version(module.settings) == "gemv" else _gemm)(module)


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
    said = module.settings.get("group_size", module.settings.get("q_group_size"))
    size = said if isinstance(said, int) and said > 0 else row
    groups = -(-row // size)
    step = {32: 4, 64: 2}.get(size, 1)
    wide = -(-groups // (_WORD * step)) * step
    module.expect(_QZEROS, (out, wide))
    module.expect(_SCALES, (out, wide * _WORD))

    def codes(suffix: str, start: int, stop: int) -> NDArray[np.uint8]:
        return stream(module.rows(suffix, start, stop), _BITS, row if suffix == _QWEIGHT else groups)

    def scales(suffix: str, start: int, stop: int) -> NDArray[Any]:
        return module.rows(suffix, start, stop)[:, :groups]

    return _affine(module, (out, row), groups, codes, scales)


_Part = Callable[[str, int, int], NDArray[Any]]


def _affine(module: Module, shape: tuple[int, int], groups: int, codes: _Part, scales: _Part) -> Affine:
    """`codes` and `scales` give rows of a tensor by suffix."""
    out, row = shape
    if not 0 < groups <= row or row % groups:
        raise module.corrupt(f"{groups} groups of scales for {row} columns")

    def read(start: int, stop: int) -> Group:
        scale = scales(_SCALES, start, stop).astype(np.float32)
        return Group(codes(_QWEIGHT, start, stop), scale, codes(_QZEROS, start, stop))

    def zeros() -> tuple[int, int]:
        found = codes(_QZEROS, 0, out)
        return int(found.min()), int(found.max())

    return Affine(module.where, shape, row // groups, (0, _HIGHEST), read, zeros, scaled=lambda: module.type(_SCALES))


def _refuse(settings: Mapping[str, Any]) -> str | None:
    bits = settings.get("bits", settings.get("w_bit", _BITS))
    if bits != _BITS:
        return f"with {bits} bits, which AWQ has no layout for"
    version = _version(settings)
    return None if version in _VERSIONS else f"laid out for a kernel ({version}), which is not decoded here"


SCHEME = Scheme("AWQ", ("awq",), (Form(_QWEIGHT, (_QZEROS, _SCALES), _read),), refuse=_refuse)
