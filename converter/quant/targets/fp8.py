"""FP8 folders: E4M3 with a scale for each block of 128 x 128, or for each row.

Sources: transformers' `finegrained_fp8` (quantize: scale = 448 / largest, stored as its inverse) and `fbgemm_fp8`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.targets.packing import Floats, Target, computed, constant, largest
from converter.tensors import kernels
from converter.tensors.bound import Bound, within
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor

E4M3, LARGEST, BLOCK = DTYPES["F8_E4M3"], np.float32(448), 128


def codes(numbers: Floats) -> NDArray[Any]:
    """Numbers as E4M3; what lies beyond its largest becomes that."""
    assert E4M3.numpy is not None
    return kernels.encode(np.clip(numbers, -LARGEST, LARGEST), E4M3).view(E4M3.numpy)


def _per_block(numbers: Floats) -> tuple[Floats, Floats]:
    """Of whole blocks of rows: the inverse scale of each block of 128 x 128, and the numbers times the scale."""
    n, row = numbers.shape
    down, across = -(-n // BLOCK), -(-row // BLOCK)
    padded = np.zeros((down * BLOCK, across * BLOCK), np.float32)
    padded[:n, :row] = numbers
    blocks = padded.reshape(down, BLOCK, across, BLOCK)
    most = np.abs(blocks).max(axis=(1, 3))
    scale = np.where(most == 0, np.float32(1), LARGEST / np.where(most == 0, np.float32(1), most)).astype(np.float32)
    blocks *= scale[:, None, :, None]
    return np.float32(1) / scale, padded[:n, :row]


def _blocks(weight: LazyTensor, module: str) -> tuple[LazyTensor, ...]:
    row = weight.info.row
    across = -(-row // BLOCK)
    return (
        computed(weight, f"{module}.weight", "F8_E4M3", row, lambda n: codes(_per_block(n)[1]), tall=BLOCK),
        computed(
            weight, f"{module}.weight_scale_inv", "F32", across, lambda n: _per_block(n)[0], tall=BLOCK, per=BLOCK
        ),
    )


def row_scale(numbers: Floats) -> Floats:
    """The scale of each row (n, 1): its largest magnitude becomes E4M3's."""
    most = largest(numbers)
    return np.where(most == 0, np.float32(1), most / LARGEST).astype(np.float32)


def _rows(weight: LazyTensor, module: str) -> tuple[LazyTensor, ...]:
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
        "fp8", 1, _blocks,
        _config("fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[BLOCK, BLOCK]),
        bound("block"),
    ),
    Target("fp8-row", 1, _rows, _config("fbgemm_fp8", activation_scale_ub=_BOUND), bound("row")),
)  # fmt: skip
