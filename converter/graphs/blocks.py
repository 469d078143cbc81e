"""ggml's blocks as what MatMulNBits multiplies by: codes, scales, and minima where a type has them.

Every type here is a table of whole numbers times scales, less minima: `number = scale * (code - zero) - minimum`, the
same F32 product of the same factors as ggml's own decoding, so that no weight changes. Codes of 4 bits are two a byte,
the first in the low bits; a zero is what the operator takes for it by itself, half of the codes, except with minima.

Source: ggml's block layouts (ggml-common.h); com.microsoft.MatMulNBits of ONNX Runtime's contributed operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.tensors.dtypes import DTYPES, F32
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
U8 = DTYPES["U8"]


@dataclass(frozen=True)
class Unpacked:
    """Blocks of one type as arrays: codes (blocks, elements), scales and minima (blocks,)."""

    codes: Bytes
    scales: Floats
    minima: Floats | None = None


@dataclass(frozen=True)
class Kind:
    """How a type of ggml is multiplied by.

    Attributes:
        bits: of a code as the operator reads it.
        block: elements that share a scale.
        unpack: ggml's blocks as rows of bytes -> the operator's blocks.
        minima: whether a minimum is subtracted.
    """

    bits: int
    block: int
    unpack: Callable[[Bytes], Unpacked]
    minima: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of a block's codes."""
        return self.block * self.bits // 8


def _f16(data: Bytes) -> Floats:
    """Numbers of two bytes each, along the last axis."""
    found: Floats = np.ascontiguousarray(data).view(np.float16).astype(np.float32)
    return found


def _nibbles(data: Bytes) -> Bytes:
    """The low halves of all bytes, then the high ones."""
    return np.concatenate((data & 15, data >> 4), axis=-1)


def _shifted(high: Bytes) -> Bytes:
    """Bits above a nibble, in their place."""
    return np.left_shift(high, 4, dtype=np.uint8)


def _bits(data: Bytes, first: range) -> list[Bytes]:
    """Numbers of as many bits as the range steps, from each of its positions in every byte."""
    mask = np.uint8((1 << first.step) - 1)
    return [np.right_shift(data, bit, dtype=np.uint8) & mask for bit in first]


def _q4_0(data: Bytes) -> Unpacked:
    return Unpacked(_nibbles(data[:, 2:]), _f16(data[:, :2])[:, 0])


def _q4_1(data: Bytes) -> Unpacked:
    return Unpacked(_nibbles(data[:, 4:]), _f16(data[:, :2])[:, 0], -_f16(data[:, 2:4])[:, 0])


def _fifths(data: Bytes) -> Bytes:
    """Four high bits in a byte of 32 each, before the nibbles that they belong to."""
    high = np.unpackbits(data[:, :4], axis=-1, bitorder="little")
    return _nibbles(data[:, 4:]) | _shifted(high)


def _q5_0(data: Bytes) -> Unpacked:
    return Unpacked(_fifths(data[:, 2:]) + np.uint8(128 - 16), _f16(data[:, :2])[:, 0])


def _q5_1(data: Bytes) -> Unpacked:
    return Unpacked(_fifths(data[:, 4:]) + np.uint8(128), _f16(data[:, :2])[:, 0], -_f16(data[:, 2:4])[:, 0])


def _q8_0(data: Bytes) -> Unpacked:
    return Unpacked(data[:, 2:] ^ np.uint8(128), _f16(data[:, :2])[:, 0])


def _shared(d: Floats, small: NDArray[np.generic]) -> Floats:
    """A super-block's scale times those of its blocks, one after the other."""
    found: Floats = (d * small.astype(np.float32)).reshape(-1)
    return found


def _sixes(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits each, of 12 bytes."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (high & 15) | (low >> 6) << 4), axis=1)
    minima = np.concatenate((middle & 63, (high >> 4) | (middle >> 6) << 4), axis=1)
    return scales, minima


def _pairs(data: Bytes) -> Bytes:
    """(n, 128) bytes as (n, 8, 32) nibbles: of every 32 bytes the low halves, then the high ones."""
    runs = data.reshape(-1, 4, 32)
    return np.stack((runs & 15, runs >> 4), axis=2).reshape(-1, 8, 32)


def _q4_k(data: Bytes) -> Unpacked:
    scales, minima = _sixes(data[:, 4:16])
    codes = _pairs(data[:, 16:]).reshape(-1, 32)
    return Unpacked(codes, _shared(_f16(data[:, :2]), scales), _shared(_f16(data[:, 2:4]), minima))


def _q5_k(data: Bytes) -> Unpacked:
    scales, minima = _sixes(data[:, 4:16])
    high = np.stack(_bits(data[:, 16:48], range(8)), axis=1)
    codes = (_pairs(data[:, 48:]) | _shifted(high)).reshape(-1, 32) + np.uint8(128)
    return Unpacked(codes, _shared(_f16(data[:, :2]), scales), _shared(_f16(data[:, 2:4]), minima))


def _q6_k(data: Bytes) -> Unpacked:
    low = data[:, :128].reshape(-1, 2, 64)
    high = np.stack(_bits(data[:, 128:192].reshape(-1, 2, 32), range(0, 8, 2)), axis=2)
    nibbles = np.concatenate((low & 15, low >> 4), axis=2).reshape(-1, 2, 4, 32)
    codes = (nibbles | _shifted(high)).reshape(-1, 16) + np.uint8(128 - 32)
    return Unpacked(codes, _shared(_f16(data[:, 208:210]), data[:, 192:208].view(np.int8)))


def _crumbs(data: Bytes) -> Bytes:
    """(n, 64) bytes as (n, 256) numbers of two bits: of every 32 bytes the lowest bits first."""
    return np.stack(_bits(data.reshape(-1, 2, 32), range(0, 8, 2)), axis=2).reshape(-1, 256)


def _q2_k(data: Bytes) -> Unpacked:
    small, d = data[:, :16], _f16(data[:, 80:84])
    codes = _crumbs(data[:, 16:80]).reshape(-1, 16)
    return Unpacked(codes, _shared(d[:, :1], small & 15), _shared(d[:, 1:], small >> 4))


def _q3_k(data: Bytes) -> Unpacked:
    high = np.stack(_bits(data[:, :32], range(8)), axis=1).reshape(-1, 256)
    codes = (_crumbs(data[:, 32:96]) | np.left_shift(high, 2, dtype=np.uint8)).reshape(-1, 16) + np.uint8(8 - 4)
    low, top = data[:, 96:104], data[:, 104:108]
    tops = np.concatenate(_bits(top, range(0, 8, 2)), axis=1)
    small = _nibbles(low) | _shifted(tops)
    return Unpacked(codes, _shared(_f16(data[:, 108:110]), small.astype(np.int8) - np.int8(32)))


#: The numbers of IQ4_NL and IQ4_XS.
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)


def _iq4(nibbles: Bytes) -> Bytes:
    return (_IQ4 + 128).astype(np.uint8)[nibbles]


def _iq4_nl(data: Bytes) -> Unpacked:
    return Unpacked(_iq4(_nibbles(data[:, 2:])), _f16(data[:, :2])[:, 0])


def _iq4_xs(data: Bytes) -> Unpacked:
    high, low = data[:, 2:4], data[:, 4:8]
    tops = np.ascontiguousarray(high).view("<u2").astype(np.uint32) >> np.arange(0, 16, 2, dtype=np.uint32) & 3
    small = np.stack((low & 15, low >> 4), axis=2).reshape(-1, 8) | (tops << 4).astype(np.uint8)
    codes = _iq4(_nibbles(data[:, 8:].reshape(-1, 8, 16))).reshape(-1, 32)
    return Unpacked(codes, _shared(_f16(data[:, :2]), small.astype(np.int8) - np.int8(32)))


#: Twice the numbers of E2M1.
_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int16)


def _mxfp4(data: Bytes) -> Unpacked:
    codes = (_E2M1 + 128).astype(np.uint8)[_nibbles(data[:, 1:])]
    exponent = data[:, 0].astype(np.int32)
    return Unpacked(codes, np.ldexp(np.float32(1), exponent - 128).astype(np.float32))


KINDS: Mapping[str, Kind] = {
    "Q4_0": Kind(4, 32, _q4_0),
    "Q4_1": Kind(4, 32, _q4_1, minima=True),
    "Q5_0": Kind(8, 32, _q5_0),
    "Q5_1": Kind(8, 32, _q5_1, minima=True),
    "Q8_0": Kind(8, 32, _q8_0),
    "Q2_K": Kind(2, 16, _q2_k, minima=True),
    "Q3_K": Kind(4, 16, _q3_k),
    "Q4_K": Kind(4, 32, _q4_k, minima=True),
    "Q5_K": Kind(8, 32, _q5_k, minima=True),
    "Q6_K": Kind(8, 16, _q6_k),
    "IQ4_NL": Kind(8, 32, _iq4_nl),
    "IQ4_XS": Kind(8, 32, _iq4_xs),
    "MXFP4": Kind(8, 32, _mxfp4),
}


@dataclass(frozen=True)
class Parts:
    """The tensors that a matrix of blocks becomes: codes (rows, blocks, bytes), scales and minima (rows, blocks)."""

    kind: Kind
    codes: LazyTensor
    scales: LazyTensor
    minima: LazyTensor | None


def parts(tensor: LazyTensor, name: str) -> Parts:
    """A matrix (or a vector) of blocks of a type in KINDS as codes, scales and minima, called `name` and more."""
    kind = KINDS[tensor.info.dtype.name]
    inner = tensor.info.row // kind.block
    shape = (*tensor.info.shape[:-1], inner)
    ggml = tensor.info.dtype.type_size

    def unpacked(start: int, stop: int) -> Unpacked:
        return kind.unpack(np.ascontiguousarray(tensor.rows(start, stop)).reshape(-1, ggml))

    def codes(start: int, stop: int) -> Rows:
        first, last = start // inner, -(-stop // inner)
        return _packed(unpacked(first, last).codes, kind.bits)[start - first * inner : stop - first * inner]

    def scales(start: int, stop: int) -> Rows:
        return unpacked(start, stop).scales.reshape(stop - start, inner).view(np.uint8)

    def minima(start: int, stop: int) -> Rows:
        found = unpacked(start, stop).minima
        assert found is not None
        return np.ascontiguousarray(found.reshape(stop - start, inner)).view(np.uint8)

    work = tensor.row_work + 4 * tensor.info.row
    packed = TensorInfo(name, (*shape, kind.nbytes), U8)
    grain = max(tensor.grain * inner, inner)
    return Parts(
        kind,
        tensor.derived(packed, codes, work_nbytes=work // inner + 1, grain=grain),
        tensor.derived(TensorInfo(f"{name}.scales", shape, F32), scales, work_nbytes=work),
        tensor.derived(TensorInfo(f"{name}.minima", shape, F32), minima, work_nbytes=work) if kind.minima else None,
    )


def _packed(codes: Bytes, bits: int) -> Bytes:
    """Codes of a byte each in as many bits as they need, the first in the lowest."""
    if bits == 8:
        return codes
    apart = codes.reshape(len(codes), -1, 8 // bits)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    found: Bytes = np.bitwise_or.reduce(apart << shifts, axis=2)
    return found
