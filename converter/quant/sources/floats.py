"""Small floats as F32, by table: E2M1 in half a byte, E4M3 and E8M0 as scales.

Sources: the OCP specification of microscaling formats; NVIDIA's NVFP4.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

MICRO = 32  # columns that share an exponent in the microscaling formats
_BYTES = np.arange(256, dtype=np.uint8)
#: Scales that are exponents: 2^(b - 127); 255 is no number.
E8M0: Floats = _BYTES.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
E4M3: Floats = _BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
#: The 16 numbers of four bits, by code.
E2M1: Floats = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_SIX = np.array([m / 8 for m in range(8)] + [(1 + m / 8) * (1 << e) for e in range(3) for m in range(8)], np.float32)
#: The 64 numbers of six bits that have three of fraction.
E2M3: Floats = np.concatenate((_SIX, -_SIX))
_PAIRS = np.stack((E2M1[_BYTES & 15], E2M1[_BYTES >> 4]), axis=1)


def fours(data: Bytes) -> Floats:
    """Two E2M1 numbers of each byte, the low half first: (n, bytes) to (n, 2 * bytes)."""
    return _PAIRS[data].reshape(len(data), -1)
