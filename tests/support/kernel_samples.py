"""Data of many shapes, and weights for it, to encode."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from converter.tensors import kernels
from converter.tensors.dtypes import DType

ROW = 512


def uniform(n: int, seed: int) -> np.ndarray:
    """Exact multiples of 2^-16 in [0, 1); the raw stream of Philox does not change between numpy versions."""
    raw = np.random.Philox(key=seed).random_raw(n)
    return (raw >> np.uint64(48)).astype(np.float32) / np.float32(65536)


def _normal(n: int, seed: int) -> np.ndarray:
    """Near normal, unit variance: every sum below is exact in float32."""
    total = sum(uniform(n, 1000 * seed + i) for i in range(12))
    return (total - np.float32(6)).reshape(-1, ROW)


def _half_flat(x: np.ndarray) -> np.ndarray:
    x[:, np.arange(ROW) // 16 % 2 == 0] = 0.25
    return x


def _sparse(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) > 2, x, np.float32(0))


def _mixed(x: np.ndarray) -> np.ndarray:
    powers = np.exp2(np.arange(x.size // 32) % 31 - 24).astype(np.float32)
    return (x.reshape(-1, 32) * powers[:, None]).reshape(x.shape)


SHAPES = {
    "normal": lambda x: x * np.float32(0.03125),
    "heavy-tailed": lambda x: x * x * x,
    "positive": np.abs,
    "negative": lambda x: -np.abs(x) - np.float32(0.5),
    "constant": lambda x: np.repeat(x[:, :1], ROW, axis=1),
    "zero": np.zeros_like,
    "tiny": lambda x: x * np.float32(2.0**-66),
    "huge": lambda x: x * np.float32(2.0**20),
    "half-flat": _half_flat,
    "subnormal": lambda x: x * np.float32(2.0**-133),
    "sparse": _sparse,
    "ties": lambda x: np.round(x * 8) / np.float32(8),
    "mixed": _mixed,
}


def sample(shape: str, blocks: int) -> np.ndarray:
    return np.ascontiguousarray(SHAPES[shape](_normal(256 * blocks, list(SHAPES).index(shape))), np.float32)


def importance(zeros: bool) -> np.ndarray:
    weights = uniform(ROW, 77) ** 2
    return np.where(uniform(ROW, 78) < 0.3, np.float32(0), weights) if zeros else weights


def weightings(dtype: DType) -> Iterator[tuple[str, np.ndarray | None]]:
    if not kernels.needs_importance(dtype):
        yield "plain", None
    yield "weighted", importance(zeros=False)
    yield "some zero", importance(zeros=True)
