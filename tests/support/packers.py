"""Weights packed as schemes pack them, in plain numpy: bits are put where a layout says, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that each nibble of a word holds


def bits_of(codes: Array, bits: int) -> Array:
    """Codes (n, count) as bits (n, count * bits), the lowest first."""
    return np.unpackbits(codes.astype(np.uint8)[..., None], axis=2, count=bits, bitorder="little").reshape(
        len(codes), -1
    )


def words_of(codes: Array, bits: int) -> Array:
    """Codes (n, count) as one stream of bits a row, uint32 (n, words); the last word is filled up with zeros."""
    stream = bits_of(codes, bits)
    whole = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return np.packbits(whole, axis=1, bitorder="little").view("<u4")


def gptq(
    codes: Array, zeros: Array, scales: Array, order: Array | None, bits: int, *, version: int
) -> dict[str, Array]:
    """codes (out, in), zeros and scales (out, groups); `order` is the group of each column.

    Version 1 takes one off each zero point: from whole words, so that a zero of 0 borrows from its neighbour; three
    bits one by one.
    """
    stored = words_of((zeros.T - 1 if version == 1 and bits == 3 else zeros.T) % (1 << bits), bits)
    if version == 1 and bits != 3:
        stored -= np.uint32(sum(1 << place for place in range(0, 32, bits)))
    made = {
        "qweight": np.ascontiguousarray(words_of(codes, bits).T).view(np.int32),
        "qzeros": stored.view(np.int32),
        "scales": np.ascontiguousarray(scales.T),
    }
    return made if order is None else made | {"g_idx": order.astype(np.int32)}


def awq_gemm(codes: Array, zeros: Array, scales: Array) -> dict[str, Array]:
    """codes (out, in), zeros and scales (out, groups)."""

    def ordered(array: Array) -> Array:
        return words_of(array.T.reshape(array.shape[1], -1, 8)[:, :, AWQ_ORDER].reshape(array.shape[1], -1), 4)

    return {
        "qweight": ordered(codes).view(np.int32),
        "qzeros": ordered(zeros).view(np.int32),
        "scales": np.ascontiguousarray(scales.T),
    }


def awq_gemv(codes: Array, zeros: Array, scales: Array, wide: int) -> dict[str, Array]:
    """`wide` words of zero points to a row, eight times as many scales; what is too much is no number of the weight."""
    padding = wide * 8 - zeros.shape[1]
    return {
        "qweight": words_of(codes, 4).view(np.int32),
        "qzeros": words_of(np.pad(zeros, ((0, 0), (0, padding)), constant_values=5), 4).view(np.int32),
        "scales": np.pad(scales, ((0, 0), (0, padding)), constant_values=7),
    }


def awq_gemv_fast(codes: Array, zeros: Array, scales: Array, wide: int) -> dict[str, Array]:
    """As `awq_gemv`, its padding zeros: four rows share a row of int16, and alternate after 64 columns in 16 words.

    Of 32 columns, a word of 32 bits holds, the lowest nibble first, 0, 8, 16, 24 and the four beside them on the
    right, the next word those two columns further on. Zero points are numbers, -scale * zero in F16.
    """
    out, row = codes.shape
    packed = np.zeros((out // 4, row), np.uint16)
    for output in range(out):
        for column in range(row):
            run, within = divmod(column, 64)
            half, place = divmod(within, 32)
            pair, odd = divmod(place % 8, 2)
            nibble = 8 * pair + 4 * odd + place // 8
            word = 64 * run + 16 * (output % 4) + 8 * half + nibble // 4
            packed[output // 4, word] |= int(codes[output, column]) << 4 * (nibble % 4)
    padding = ((0, wide * 8 - zeros.shape[1]), (0, 0))
    least = -(scales.astype(np.float32) * zeros).astype(np.float16)
    return {
        "qweight": packed.view(np.int16),
        "scales": np.pad(scales.T, padding),
        "scaled_zeros": np.pad(least.T, padding),
    }


def parts(codes: Array, shifts: Sequence[int]) -> Array:
    """Codes (rows, width) whose rows are cut into parts, each in its own bits: (rows / parts, width), int64."""
    step = -(-len(codes) // len(shifts))
    whole = np.zeros((step * len(shifts), codes.shape[1]), np.int64)
    whole[: len(codes)] = codes
    return sum(whole[k * step :][:step] << shift for k, shift in enumerate(shifts))
