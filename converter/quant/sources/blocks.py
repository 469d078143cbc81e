"""Codes that a source stores already, as blocks of ggml: no number is rounded on the way but a scale.

ggml's own encoders choose scales from the numbers; here scale and code are given. Layouts: `ggml-common.h`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.tensors.dtypes import DTYPES
from converter.tensors.mxfp4 import regrouped
from converter.tensors.tensor import Rows

Integers = NDArray[np.signedinteger[Any]]
Floats = NDArray[np.float32]


class Holds(NamedTuple):
    """What a type holds: codes from `low` to `high`, each times a scale, plus the least number of the block or not.

    `size` codes are a block; the scale stands before its codes, or after them.
    """

    low: int
    high: int
    least: bool
    pack: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    size: int = 32
    after: bool = False


def _halves(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes (n, 32) as 16 bytes: the low half of byte k is code k, its high half code k + 16."""
    low = codes & np.uint8(0x0F)
    return low[:, :16] | low[:, 16:] << np.uint8(4)


def _fifth_and_halves(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate((np.packbits(codes >> np.uint8(4), axis=1, bitorder="little"), _halves(codes)), axis=1)


def _plain(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return codes + np.uint8(128)  # what was shifted to 0..255 as two's complement again


def _quarters(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes (n, 256) as 64 bytes: of each 128, bits 2k of byte m are code 32 * k + m."""
    a, b, c, d = (codes.reshape(-1, 2, 4, 32)[:, :, k] for k in range(4))
    made: NDArray[np.uint8] = a | b << np.uint8(2) | c << np.uint8(4) | d << np.uint8(6)
    return made.reshape(-1, 64)


#: By name, the smallest first; codes are shifted so that the lowest is 0 before they are packed.
HOLDS: dict[str, Holds] = {
    "TQ2_0": Holds(-1, 1, False, _quarters, size=256, after=True),
    "Q4_0": Holds(-8, 7, False, _halves),
    "Q5_0": Holds(-16, 15, False, _fifth_and_halves),
    "Q8_0": Holds(-128, 127, False, _plain),
    "Q4_1": Holds(0, 15, True, _halves),
    "Q5_1": Holds(0, 31, True, _fifth_and_halves),
}


def holding(low: int, high: int, columns: NDArray[np.integer[Any]], *, least: bool) -> str | None:
    """The type of the fewest bits that holds codes from `low` to `high`; `columns` is the group of each column.

    A block lies in one group, and blocks make up the row.
    """
    return next((name for name, t in HOLDS.items() if _fits(t, low, high, columns, least)), None)


def _fits(holds: Holds, low: int, high: int, columns: NDArray[np.integer[Any]], least: bool) -> bool:
    if holds.least is not least or low < holds.low or holds.high < high or len(columns) % holds.size:
        return False
    blocks = columns.reshape(-1, holds.size)
    return bool((blocks == blocks[:, :1]).all())


def packed(name: str, codes: Integers, scale: Floats, least: Floats | None) -> tuple[Rows, int]:
    """Rows of blocks, and how many of their scales are not what was given once they are F16.

    Args:
        name: of HOLDS.
        codes: (n, row), with the zero point taken off; row is a multiple of the block's size.
        scale: (n, blocks).
        least: the same, for types that have it.
    """
    n, row = codes.shape
    holds = HOLDS[name]
    shifted = (codes - holds.low).astype(np.uint8).reshape(-1, holds.size)
    given = [each.reshape(-1, 1) for each in (scale, least) if each is not None]
    with np.errstate(over="ignore"):
        halves = [each.astype("<f2") for each in given]
    rounded = sum(
        int(np.count_nonzero(half.astype(np.float32) != full)) for half, full in zip(halves, given, strict=True)
    )
    parts = [*(half.view(np.uint8) for half in halves), holds.pack(shifted)]
    made = np.concatenate(parts[::-1] if holds.after else parts, axis=1)
    return made.reshape(n, row // holds.size * DTYPES[name].type_size), rounded


def fours(name: str, codes: Rows, scales: Rows) -> Rows:
    """Rows of MXFP4 or NVFP4 blocks; bits are moved, none is changed.

    Args:
        name: of the two.
        codes: (n, row / 2) bytes of two codes, the low half first.
        scales: (n, groups) bytes.
    """
    dtype = DTYPES[name]
    n, groups = scales.shape
    size = 2 * codes.shape[1] // groups
    moved = regrouped(np.ascontiguousarray(codes).reshape(n, groups, size // 2), (size // 2, 2), (2, size // 2))
    per_block = dtype.block_size // size
    count = groups // per_block
    made = np.empty((n, count, dtype.type_size), np.uint8)
    made[..., :per_block] = scales.reshape(n, count, per_block)
    made[..., per_block:] = moved.reshape(n, count, -1)
    return made.reshape(n, -1)
