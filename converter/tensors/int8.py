"""Rows of codes of eight bits with one scale each, as integer products of matrices take them: `number = scale * code`.

A row is its scale, F32, and behind that its codes, whole numbers from -127 to 127. The largest magnitude of a row is
127 scales, and each number has the nearest code, of two as near the even one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

TOP = 127
_SCALE = 4  # bytes


def encode(rows: Floats, out: Bytes) -> None:
    """Rows (n, row) into `out` (n, 4 + row). A row that is not finite gets a scale that is not."""
    scales = np.abs(rows).max(axis=1, initial=0) / np.float32(TOP)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        steps = rows / scales[:, None]
    codes = np.clip(np.rint(np.nan_to_num(steps, copy=False), out=steps), -TOP, TOP, out=steps)
    out[:, :_SCALE] = scales.astype("<f4")[:, None].view(np.uint8)
    out[:, _SCALE:] = codes.astype(np.int8).view(np.uint8)


def decode(data: Bytes, out: Floats) -> None:
    """Rows (n, 4 + row) into `out` (n, row)."""
    with np.errstate(invalid="ignore"):
        np.multiply(data[:, _SCALE:].view(np.int8), scales_of(data)[:, None], out=out, dtype=np.float32)


def scales_of(data: Bytes) -> Floats:
    """The scales of rows (n, 4 + row): (n,)."""
    found: Floats = np.ascontiguousarray(data[:, :_SCALE]).view("<f4").reshape(-1)
    return found


def codes_of(data: Bytes) -> Bytes:
    """The codes of rows (n, 4 + row) as integer products read them, plus 128: (n, row)."""
    return data[:, _SCALE:] ^ np.uint8(128)


def joined(scales: Floats, codes: Bytes) -> Bytes:
    """Rows of scales and of codes as `scales_of` and `codes_of` give them."""
    return np.concatenate((scales.astype("<f4").reshape(-1, 1).view(np.uint8), codes ^ np.uint8(128)), axis=1)
