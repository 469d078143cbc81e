"""How weights are stored that several schemes share: integers, floats of eight and four bits, with their scales."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from converter.quant.sources.floats import MICRO
from converter.quant.sources.grid import EXPONENTS, grid
from converter.quant.sources.scheme import Module
from converter.quant.sources.stored import Affine, Factor, Floats, Fours, Group, Scaled
from converter.tensors import kernels
from converter.tensors.dtypes import DType

FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
BYTES = ("I8", "U8")
NVFP4 = 16  # columns that share a scale there
#: Of activations and of keys and values: for those who calculate in eight bits.
UNUSED = (
    ".activation_scale", "_activation_scale", ".input_scale", ".qscale_act", ".k_scale", ".v_scale", ".q_scale",
    ".kv_scale", ".input_scale_ub", ".output_scale", ".input_global_scale", ".prob_scale", ".input_zero_point",
    ".output_zero_point", ".k_zero_point", ".v_zero_point", ".q_zero_point", ".k_global_scale", ".v_global_scale",
)  # fmt: skip


def matrix(module: Module, main: str) -> tuple[int, ...]:
    """The shape of a tensor that holds matrices.

    Raises:
        CorruptFile: it does not.
    """
    shape = module.shape(main)
    if len(shape) < 2 or 0 in shape:
        raise module.corrupt(f"{list(shape)} is no matrix")
    return shape


def eights(
    module: Module, main: str, scale: str, said: Iterable[tuple[int, int]] = (), dtype: DType | None = None
) -> Scaled:
    """The weight in `main`, (..., rows, row), with scales in `scale`: (), (1), (rows), (rows, 1) or a grid.

    `said` as `grid.grid`; `dtype` is the type that the bytes have, where they are in a tensor of another.
    """
    shape, stored = matrix(module, main), module[main]
    scales = grid(module, scale, shape, said)
    type_ = dtype or stored.info.dtype

    def read(start: int, stop: int) -> Floats:
        return kernels.decode(stored.rows(start, stop), type_)

    def powers() -> bool:
        if module[scale].info.dtype.name in EXPONENTS:
            return True
        if module.settings.get("scale_fmt") != "ue8m0":
            return False
        found = np.asarray(module.array(scale)).astype(np.float32)
        return bool((np.isfinite(found) & (found.view(np.uint32) & 0x007FFFFF == 0)).all())

    return Scaled(module.where, shape, read, scales.numbers, scales.wide, powers)


def fours(module: Module, main: str, scale: str, size: int = MICRO, **more: Any) -> Fours:
    """The weight in `main`, (..., rows, row / 2) bytes of two E2M1 codes, with a byte of scale for `size` columns."""
    *outer, half = matrix(module, main)
    shape, stored, scales = (*outer, 2 * half), module[main], module[scale]
    module.expect(scale, (*outer, -(-shape[-1] // size)))
    return Fours(module.where, shape, stored.rows, scales.rows, size, **more)


def factor(module: Module, main: str, suffix: str, *, divides: bool = False) -> Factor | None:
    """The number in `suffix` for the whole of a weight, or one for each of its matrices; None where it is not there."""
    if suffix not in module:
        return None
    numbers = module.array(suffix).astype(np.float32)
    if numbers.size not in (1, math.prod(matrix(module, main)[:-2])):
        raise module.corrupt(f"{suffix.lstrip('._')} is {list(module.shape(suffix))}, not one number")
    return Factor(numbers, divides)


def holds_fours(module: Module, main: str, scale: str, size: int = MICRO) -> bool:
    """Whether bytes hold two codes each, by how many scales there are."""
    return module.shape(scale) == (*module.shape(main)[:-1], -(-2 * module.shape(main)[-1] // size))


def integers(
    module: Module, main: str, scale: str, zero: str | None, said: Iterable[tuple[int, int]] = (), bits: int = 8
) -> Affine:
    """The weight in `main`, (..., rows, row) signed integers of up to 8 bits, with zero points of the same kind."""
    shape, stored = matrix(module, main), module[main]
    sizes = tuple(said)
    scales = grid(module, scale, shape, sizes)
    if zero is not None and module[zero].info.dtype.name not in BYTES:
        raise module.corrupt(f"zero points are {module[zero].info.dtype}, not integers of a byte")
    zeros = grid(module, zero, shape, sizes) if zero is not None else None
    if zeros is not None and (zeros.tall, zeros.wide) != (scales.tall, scales.wide):
        raise module.corrupt(f"zero points are {list(module.shape(zeros.suffix))}, scales {list(module.shape(scale))}")
    lowest, highest = -(1 << bits - 1), (1 << bits - 1) - 1

    def read(start: int, stop: int) -> Group:
        codes = np.ascontiguousarray(stored.rows(start, stop)).view(np.int8)
        if codes.size and not lowest <= codes.min() <= codes.max() <= highest:
            raise module.corrupt(f"holds codes beyond the {bits} bits that the config says")
        return Group(codes, scales.numbers(start, stop), None if zeros is None else zeros.stored(start, stop))

    def extent() -> tuple[int, int]:
        found = module.array(zeros.suffix if zeros is not None else scale)
        return int(found.min()), int(found.max())

    return Affine(
        module.where, shape, scales.wide, (lowest, highest), read,
        zeros=None if zeros is None else extent, scaled=lambda: module.type(scale),
    )  # fmt: skip
