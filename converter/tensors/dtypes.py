"""Every stored encoding in one table, dense or blocked: F32 and Q4_K are the same kind of thing.

Block sizes and GGUF ids: `enum ggml_type` of ggml (see docs of the GGUF format). Names of dense
types are those of safetensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import QuantizationError
from converter.text import did_you_mean


@dataclass(frozen=True)
class DType:
    """One encoding: `block_size` elements of a row share `type_size` bytes.

    `numpy` is the element type of dense encodings, None for blocked ones. `gguf` is the ggml type
    id and `safetensors` the header name, None where the format cannot hold the encoding.
    `scale_nbytes` are bytes in front of each row, whose one scale they hold: then the row is the block.
    """

    name: str
    block_size: int
    type_size: int
    numpy: np.dtype | None = None
    gguf: int | None = None
    safetensors: str | None = None
    scale_nbytes: int = 0

    @property
    def quantized(self) -> bool:
        """True for block-quantized encodings (scales and codes), False for plain numbers."""
        return self.numpy is None

    @property
    def floating(self) -> bool:
        """True where the stored values are real numbers, whatever the encoding."""
        return self.numpy is None or self.name in _FLOATS

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size

    def fits(self, row: int) -> bool:
        """Whether rows of `row` elements divide into whole blocks."""
        return row % self.block_size == 0

    def row_nbytes(self, row: int) -> int:
        """Bytes of a row of `row` elements.

        Raises:
            QuantizationError: the row does not divide into blocks.
        """
        if not self.fits(row):
            raise QuantizationError(
                f"rows of {row} elements do not divide into {self.name} blocks of {self.block_size}"
            )
        return self.scale_nbytes + row // self.block_size * self.type_size

    def row_of(self, nbytes: int) -> int:
        """Elements of a row of `nbytes` bytes.

        Raises:
            QuantizationError: these are no whole blocks.
        """
        n, odd = divmod(nbytes - self.scale_nbytes, self.type_size)
        if odd or n < 0:
            raise QuantizationError(f"rows of {nbytes} bytes are not whole {self.name} blocks of {self.type_size}")
        return n * self.block_size

    def block_of(self, row: int) -> int:
        """Elements that share scales, in rows of `row` elements."""
        return max(1, row) if self.scale_nbytes else self.block_size

    def blocks(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Rows of bytes, uint8 (n, row_nbytes), as blocks: (n, bytes of a block)."""
        return rows if self.scale_nbytes else rows.reshape(-1, self.type_size)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape` (row-major; the last axis is the row)."""
        if not shape:
            return self.row_nbytes(1)
        return math.prod(shape[:-1]) * self.row_nbytes(shape[-1])

    def __str__(self) -> str:
        return self.name


def _dense(name: str, numpy: object, gguf: int | None = None, safetensors: str | None = None) -> DType:
    dtype = np.dtype(numpy)  # type: ignore[call-overload]
    return DType(name, 1, dtype.itemsize, dtype, gguf, safetensors or name)


_DENSE = (
    _dense("F32", "<f4", gguf=0),
    _dense("F16", "<f2", gguf=1),
    _dense("BF16", ml_dtypes.bfloat16, gguf=30),
    _dense("F64", "<f8", gguf=28),
    _dense("I8", "i1", gguf=24),
    _dense("I16", "<i2", gguf=25),
    _dense("I32", "<i4", gguf=26),
    _dense("I64", "<i8", gguf=27),
    _dense("U8", "u1"),
    _dense("U16", "<u2"),
    _dense("U32", "<u4"),
    _dense("U64", "<u8"),
    _dense("BOOL", "?"),
    _dense("F8_E4M3", ml_dtypes.float8_e4m3fn),
    _dense("F8_E5M2", ml_dtypes.float8_e5m2),
    _dense("F8_E8M0", ml_dtypes.float8_e8m0fnu),
    _dense("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
    _dense("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
    _dense("C64", "<c8"),
    DType("C128", 1, 16, np.dtype("<c16")),
)

# name, elements per block, bytes per block, ggml id
_BLOCKED = tuple(
    DType(name, elements, size, gguf=gguf)
    for name, elements, size, gguf in (
        ("Q4_0", 32, 18, 2),
        ("Q4_1", 32, 20, 3),
        ("Q5_0", 32, 22, 6),
        ("Q5_1", 32, 24, 7),
        ("Q8_0", 32, 34, 8),
        ("Q8_1", 32, 36, 9),
        ("Q2_K", 256, 84, 10),
        ("Q3_K", 256, 110, 11),
        ("Q4_K", 256, 144, 12),
        ("Q5_K", 256, 176, 13),
        ("Q6_K", 256, 210, 14),
        ("Q8_K", 256, 292, 15),
        ("IQ2_XXS", 256, 66, 16),
        ("IQ2_XS", 256, 74, 17),
        ("IQ3_XXS", 256, 98, 18),
        ("IQ1_S", 256, 50, 19),
        ("IQ4_NL", 32, 18, 20),
        ("IQ3_S", 256, 110, 21),
        ("IQ2_S", 256, 82, 22),
        ("IQ4_XS", 256, 136, 23),
        ("IQ1_M", 256, 56, 29),
        ("TQ1_0", 256, 54, 34),
        ("TQ2_0", 256, 66, 35),
        ("MXFP4", 32, 17, 39),
        ("NVFP4", 64, 36, 40),
        ("Q1_0", 128, 18, 41),
        ("Q2_0", 64, 18, 42),
    )
)

#: What a graph multiplies by beside ggml's blocks: of each row a scale, then codes of eight bits (tensors/int8.py).
INT8 = DType("INT8", 1, 1, scale_nbytes=4)

_FLOATS = frozenset(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"))

DTYPES: dict[str, DType] = {d.name: d for d in (*_DENSE, *_BLOCKED, INT8)}
BY_GGUF: dict[int, DType] = {d.gguf: d for d in DTYPES.values() if d.gguf is not None}
BY_SAFETENSORS: dict[str, DType] = {d.safetensors: d for d in DTYPES.values() if d.safetensors is not None}
BY_NUMPY: dict[np.dtype, DType] = {d.numpy: d for d in DTYPES.values() if d.numpy is not None}

F32, F16, BF16 = DTYPES["F32"], DTYPES["F16"], DTYPES["BF16"]


def dtype(name: str) -> DType:
    """Look up an encoding by name in any case.

    Raises:
        QuantizationError: there is no such type; the message lists those there are.
    """
    found = DTYPES.get(name.upper())
    if found is None:
        meant = did_you_mean(name, DTYPES) or f"; known: {', '.join(DTYPES)}"
        raise QuantizationError(f"unknown type {name!r}{meant}")
    return found
