"""Where the scales of a block stand, and which blocks have one that is not finite.

Codes are small integers, so a value is finite when the scales of its block are. Offsets are those of the block structs
of ggml (ggml-common.h).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.tensors.dtypes import DType

# How a scale is stored -> unsigned type of its bytes, and the bits that are all set where it is infinite or NaN.
# "F16 in quarters" is IQ1_M's: the upper four bits of four 16-bit words, lowest quarter first. E4M3 has no sign here.
KINDS: dict[str, tuple[str, int]] = {
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F80_0000),
    "E8M0": ("u1", 0xFF),
    "E4M3": ("u1", 0x7F),
    "F16 in quarters": ("<u8", 0x7000_C000_0000_0000),
}


@dataclass(frozen=True)
class Scale:
    """One scale of a block: its name in ggml's struct, where it stands, and how it is stored (a row of KINDS)."""

    name: str
    offset: int
    kind: str = "F16"

    def broken(self, blocks: NDArray[np.uint8]) -> NDArray[np.intp]:
        """Indices of the blocks, of uint8 (n, type_size), where this scale is NaN or infinite."""
        code, mask = KINDS[self.kind]
        stored = np.ndarray(len(blocks), code, blocks.data, self.offset, (blocks.shape[1],))
        bits = stored & stored.dtype.type(mask)
        if not len(bits) or bits.max() != mask:  # the usual case, at the speed of memory
            return np.empty(0, np.intp)
        return np.flatnonzero(bits == mask)


_D, _D_M, _D_DMIN = (Scale("d", 0),), (Scale("d", 0), Scale("m", 2)), (Scale("d", 0), Scale("dmin", 2))

SCALES: dict[str, tuple[Scale, ...]] = {
    "Q4_0": _D, "Q4_1": _D_M, "Q5_0": _D, "Q5_1": _D_M, "Q8_0": _D, "Q8_1": (Scale("d", 0), Scale("s", 2)),
    "Q2_K": (Scale("d", 80), Scale("dmin", 82)), "Q3_K": (Scale("d", 108),), "Q4_K": _D_DMIN, "Q5_K": _D_DMIN,
    "Q6_K": (Scale("d", 208),), "Q8_K": (Scale("d", 0, "F32"),),
    "IQ4_NL": _D, "IQ4_XS": _D, "IQ3_XXS": _D, "IQ3_S": _D, "IQ2_XXS": _D, "IQ2_XS": _D, "IQ2_S": _D, "IQ1_S": _D,
    "IQ1_M": (Scale("scales", 48, "F16 in quarters"),), "TQ1_0": (Scale("d", 52),), "TQ2_0": (Scale("d", 64),),
    "MXFP4": (Scale("e", 0, "E8M0"),), "NVFP4": tuple(Scale(f"d[{i}]", i, "E4M3") for i in range(4)),
    "Q1_0": _D, "Q2_0": _D, "INT8": (Scale("scale", 0, "F32"),),
}  # fmt: skip


def broken_blocks(data: NDArray[np.uint8], dtype: DType) -> NDArray[np.intp]:
    """Indices of the blocks, of uint8 rows of a quantized type, that have a scale which is NaN or infinite."""
    blocks = dtype.blocks(data)
    return np.unique(np.concatenate([scale.broken(blocks) for scale in SCALES[dtype.name]]))
