"""BitNet: -1, 0 and 1 in two bits each; a quarter of the rows in each two bits of a byte.

X.weight uint8 (out / 4, in), part k of the rows in bits 2k, a code is the number plus one; X.weight_scale (1). A
`bitlinear` (also what is meant where config.json says nothing) divides by the scale, an `autobitlinear` multiplies.
Source: transformers' integrations/bitnet.py.
"""

from __future__ import annotations

import numpy as np

from converter.quant.sources.parts import Parts
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Affine, Group

_WEIGHT, _SCALE = ".weight", ".weight_scale"
_PARTS = (0, 2, 4, 6)


def _read(module: Module) -> Affine:
    if len(module.shape(_WEIGHT)) != 2 or 0 in module.shape(_WEIGHT):
        raise module.corrupt(f"{list(module.shape(_WEIGHT))} is no matrix")
    module.expect(_SCALE, (1,), ())
    stored, row = module.shape(_WEIGHT)
    out = stored * len(_PARTS)
    codes = Parts(module, _WEIGHT, _PARTS, 2, out, row)
    multiplies = module.settings.get("linear_class") == "autobitlinear"

    def scale() -> np.float32:
        given = np.float32(module.array(_SCALE).reshape(-1)[0])
        if not np.isfinite(given) or given == 0:
            raise module.corrupt(f"weight_scale is {given}")
        return given if multiplies else np.float32(1) / given

    def read(start: int, stop: int) -> Group:
        found = codes.flat(start * row, stop * row)
        if (found == 3).any():
            raise module.corrupt("holds codes that are neither -1, 0 nor 1")
        numbers = found.astype(np.int8).reshape(-1, row) - np.int8(1)
        return Group(numbers, np.full((stop - start, 1), scale(), np.float32))

    def scaled() -> str:
        with np.errstate(over="ignore"):
            return "F16" if np.float32(np.float16(scale())) == scale() else "F32"

    return Affine(module.where, (out, row), row, (-1, 1), read, scaled=scaled)


SCHEME = Scheme("BitNet", ("bitnet",), (Form(_WEIGHT, (_SCALE,), _read, dtypes=("U8",)),))
