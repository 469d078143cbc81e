"""FP8 folders: E4M3 with a scale for each block of 128 x 128, or for each row.

Sources: transformers' `finegrained_fp8` (quantize: scale = 448 / largest, stored as its inverse) and `fbgemm_fp8`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.targets.packing import Floats, Ratios, Target, computed, constant, largest
from converter.tensors import kernels
from converter.tensors.bound import Bound, within
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor

E4M3, LARGEST, BLOCK = DTYPES["F8_E4M3"], np.float32(448), 128


def codes(numbers: Floats) -> NDArray[Any]:
    """Numbers as E4M3; what lies beyond its largest becomes that."""
    assert E4M3.numpy is not None
    return kernels.encode(np.clip(numbers, -LARGEST, LARGEST), E4M3).view(E4M3.numpy)


#: Of blocks, (down, 128, across, 128), and the largest magnitude of each: the scales that are stored, and what the
#: numbers are in units of these.
Scaled = Callable[[Floats, Floats], tuple[Floats, Floats]]


def _per_block(numbers: Floats, scaled: Scaled) -> tuple[Floats, Floats]:
    """Of whole blocks of rows: the scale of each block of 128 x 128, and the numbers in its units."""
    n, row = numbers.shape
    down, across = -(-n // BLOCK), -(-row // BLOCK)
    padded = np.zeros((down * BLOCK, across * BLOCK), np.float32)
    padded[:n, :row] = numbers
    blocks = padded.reshape(down, BLOCK, across, BLOCK)
    scale, units = scaled(blocks, np.abs(blocks).max(axis=(1, 3), keepdims=True))
    return scale.reshape(down, across), units.reshape(padded.shape)[:n, :row]


def in_blocks(suffix: str, dtype: str, scaled: Scaled) -> Callable[[LazyTensor, str, Ratios], tuple[LazyTensor, ...]]:
    """Codes with a scale for each block of 128 x 128, in a tensor of that suffix and type."""

    def pack(weight: LazyTensor, module: str, _: Ratios) -> tuple[LazyTensor, ...]:
        row, across = weight.info.row, -(-weight.info.row // BLOCK)

        def part(which: int, numbers: Floats) -> Floats:
            return _per_block(numbers, scaled)[which]

        return (
            computed(weight, f"{module}.weight", "F8_E4M3", row, lambda n: codes(part(1, n)), tall=BLOCK),
            computed(weight, module + suffix, dtype, across, partial(part, 0), tall=BLOCK, per=BLOCK),
        )

    return pack


def _inverse(blocks: Floats, most: Floats) -> tuple[Floats, Floats]:
    """As transformers has it: numbers are multiplied by 448 / largest, whose inverse is the scale."""
    factor = np.where(most == 0, np.float32(1), LARGEST / np.where(most == 0, np.float32(1), most)).astype(np.float32)
    return np.float32(1) / factor, blocks * factor


def scale_of(most: Floats) -> Floats:
    """The scale with which a largest magnitude becomes E4M3's."""
    return np.where(most == 0, np.float32(1), most / LARGEST).astype(np.float32)


def row_scale(numbers: Floats) -> Floats:
    """The scale of each row (n, 1)."""
    return scale_of(largest(numbers))


def _rows(weight: LazyTensor, module: str, _: Ratios) -> tuple[LazyTensor, ...]:
    return (
        computed(weight, f"{module}.weight", "F8_E4M3", weight.info.row, lambda n: codes(n / row_scale(n))),
        computed(weight, f"{module}.weight_scale", "F32", 1, row_scale),
        constant(weight, f"{module}.input_scale_ub", np.array([_BOUND], np.float32)),
    )


def bound(group: str) -> Bound:
    """Half a unit in E4M3's last place, and half of its least number, with the largest of a group as its largest."""
    return within((2.0**-4, "itself"), (2.0**-10 / float(LARGEST), f"the largest of its {group}"))


_BOUND = 1200.0  # of activations, as transformers sets it


def _config(method: str, **said: Any) -> Any:
    return lambda left: {"quant_method": method, **said, "modules_to_not_convert": list(left)}


TARGETS = (
    Target(
        "fp8", 1, in_blocks(".weight_scale_inv", "F32", _inverse),
        _config("fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[BLOCK, BLOCK]),
        bound("block"),
    ),
    Target("fp8-row", 1, _rows, _config("fbgemm_fp8", activation_scale_ub=_BOUND), bound("row")),
)  # fmt: skip
