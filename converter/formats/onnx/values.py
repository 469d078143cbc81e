"""Tensors of an ONNX model as it stores them: types, where their bytes lie, and how they are read.

Source: onnx.proto of the ONNX project (TensorProto).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile, short
from converter.storage.files import Bytes
from converter.storage.protobuf import varints
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

Span = tuple[int, int]

# TensorProto.DataType -> our type, and the field that holds its values where raw_data does not.
TYPES = {
    1: ("F32", "float_data"), 2: ("U8", "int32_data"), 3: ("I8", "int32_data"), 4: ("U16", "int32_data"),
    5: ("I16", "int32_data"), 6: ("I32", "int32_data"), 7: ("I64", "int64_data"), 9: ("BOOL", "int32_data"),
    10: ("F16", "int32_data"), 11: ("F64", "double_data"), 12: ("U32", "uint64_data"), 13: ("U64", "uint64_data"),
    14: ("C64", "float_data"), 15: ("C128", "double_data"), 16: ("BF16", "int32_data"),
    17: ("F8_E4M3", "int32_data"), 18: ("F8_E4M3FNUZ", "int32_data"), 19: ("F8_E5M2", "int32_data"),
    20: ("F8_E5M2FNUZ", "int32_data"), 24: ("F8_E8M0", "int32_data"),
}  # fmt: skip
CODES = {name: code for code, (name, _) in TYPES.items()}
STRING, BOOL = 8, 9


@dataclass(frozen=True)
class _Packed:
    """A type of less than a byte: its name, its width in bits, and the value of every code in a type of ours."""

    name: str
    bits: int
    dtype: DType
    values: NDArray[np.generic]


def _packed(name: str, bits: int, ours: str, values: Iterable[float]) -> _Packed:
    return _Packed(name, bits, DTYPES[ours], np.array(list(values)).astype(DTYPES[ours].numpy))


# The first element lies in the lowest bits of a byte.
PACKED = {
    21: _packed("UINT4", 4, "U8", range(16)),
    22: _packed("INT4", 4, "I8", (*range(8), *range(-8, 0))),
    23: _packed("FLOAT4E2M1", 4, "F32", np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)),
    25: _packed("UINT2", 2, "U8", range(4)),
    26: _packed("INT2", 2, "I8", (0, 1, -2, -1)),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's shape, its TensorProto.DataType, and where its bytes lie.

    `pieces` are (offset, bytes) in `file`, one after the other; `coded` says that they are varints.
    """

    shape: tuple[int, ...]
    code: int
    file: Bytes
    pieces: tuple[Span, ...]
    coded: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of what raw_data is or would be."""
        return stored_nbytes(self.shape, self.code)


def stored_nbytes(shape: tuple[int, ...], code: int) -> int:
    n = math.prod(shape)
    return -(-n * PACKED[code].bits // 8) if code in PACKED else n * DTYPES[TYPES[code][0]].type_size


def lazy(name: str, stored: Stored) -> LazyTensor:
    """The tensor as others see it: decoded where its type is of less than a byte."""
    packed = PACKED.get(stored.code)
    info = TensorInfo(name, stored.shape, packed.dtype if packed else DTYPES[TYPES[stored.code][0]])
    what = f"tensor {short(name)}"

    def read(start: int, stop: int) -> Rows:
        if packed is None:
            data = _numbers(stored, what, start * info.row_nbytes, stop * info.row_nbytes)
        else:
            data = _unpacked(packed, partial(_numbers, stored, what), start * info.row, stop * info.row)
        return data.reshape(stop - start, info.row_nbytes)

    offset = stored.pieces[0][0] if stored.pieces else 0
    return LazyTensor(info, read, f"{stored.file.path}@{offset}", grain=info.n_rows if whole_only(stored) else 1)


def as_stored(name: str, stored: Stored) -> LazyTensor:
    """The bytes that raw_data has or would have, one in a row."""
    info = TensorInfo(name, (stored.nbytes, 1), DTYPES["U8"])

    def read(start: int, stop: int) -> Rows:
        return _numbers(stored, f"tensor {short(name)}", start, stop).reshape(-1, 1)

    return LazyTensor(info, read, str(stored.file.path), grain=info.n_rows if whole_only(stored) else 1)


def whole_only(stored: Stored) -> bool:
    """Whether a part of the values can only be had with all of them."""
    return stored.coded or len(stored.pieces) > 1


def _numbers(stored: Stored, what: str, low: int, high: int) -> Rows:
    """Bytes [low, high) of what raw_data would be."""
    if stored.pieces and not whole_only(stored):
        return stored.file.view(stored.pieces[0][0] + low, high - low, what)
    pieces = [stored.file.view(*piece, what) for piece in stored.pieces] or [np.empty(0, np.uint8)]
    data = np.concatenate(pieces)
    return (_decoded(data, stored, what) if stored.coded else data)[low:high]


def _decoded(data: NDArray[np.uint8], stored: Stored, what: str) -> Rows:
    """Varints as the bytes of the type they are values (or bit patterns) of.

    Raises:
        CorruptFile: too many or too few, or a value that the type does not hold.
    """
    path = stored.file.path
    values = varints(data, path)
    storage = _storage(stored.code)
    wanted = stored.nbytes // storage.itemsize
    if len(values) != wanted:
        raise CorruptFile(f"{path}: {what} has {len(values)} values where its shape wants {wanted}")
    low, high = np.iinfo(storage).min, 1 if stored.code == BOOL else np.iinfo(storage).max
    known = values if storage == np.uint64 else values.view(np.int64)
    if len(known) and (int(known.min()) < low or int(known.max()) > high):
        raise CorruptFile(f"{path}: {what} has a value that its type does not hold")
    stored_values: NDArray[np.generic] = known.astype(storage)
    return stored_values.view(np.uint8)


def _storage(code: int) -> np.dtype[np.integer[Any]]:
    """The whole numbers that a type's varints are: its own, or bit patterns."""
    own = DTYPES[TYPES[code][0]].numpy if code in TYPES else None
    if own is not None and own.kind in "iu":
        return own
    return np.dtype(f"<u{own.itemsize if own is not None else 1}")


def _unpacked(packed: _Packed, numbers: Callable[[int, int], Rows], low: int, high: int) -> Rows:
    """Elements [low, high) as bytes of the type they are decoded to."""
    per = 8 // packed.bits
    first = low // per
    data = numbers(first, -(-high // per))
    shifts = np.arange(per, dtype=np.uint8) * packed.bits
    codes = ((data[:, None] >> shifts) & ((1 << packed.bits) - 1)).reshape(-1)
    values = packed.values[codes[low - first * per : high - first * per]]
    return np.frombuffer(values, np.uint8)
