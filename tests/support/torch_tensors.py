"""Tensors of every type that PyTorch stores, with random bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint import Checkpoint
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, from_array


def read(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every value, and the checks that a conversion makes at its end."""
    arrays = {name: each.array().copy() for name, each in checkpoint.tensors.items()}
    checkpoint.check()
    return arrays


TYPES = [
    "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C128", "C64",
    "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
]  # fmt: skip


def of_type(name: str, seed: int, shape: tuple[int, ...]) -> LazyTensor:
    """Random bits, as far as the type has them."""
    dtype = DTYPES[name]
    assert dtype.numpy is not None
    raw = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * dtype.type_size, np.uint8)
    raw = raw & 1 if name == "BOOL" else raw
    return from_array(f"{name}.{seed}", raw.view(dtype.numpy).reshape(shape), dtype, "test")


def checkpoint_of(tensors: list[LazyTensor]) -> Checkpoint:
    return Checkpoint("test", Path("test"), None, {each.name: each for each in tensors})


SHAPES: list[tuple[int, ...]] = [(2, 3), (), (5,), (0, 3), (1, 2, 1, 4), (3, 0), (300, 7)]
ALL_TYPES = [of_type(name, seed, shape) for name in TYPES for seed, shape in enumerate(SHAPES)]
