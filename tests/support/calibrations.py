"""Calibrations for error feedback, written without our own writer, and their factors by the textbook."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Doubles = NDArray[np.float64]


def inputs(row: int, tokens: int = 512, seed: int = 0) -> NDArray[np.float32]:
    """Activations (tokens, row) whose columns go together, some of them far larger than others."""
    random = np.random.default_rng(seed)
    near = np.exp(-np.abs(np.subtract.outer(np.arange(row), np.arange(row))) / 8)
    rows = random.standard_normal((tokens, row)) @ near
    rows[:, random.choice(row, max(1, row // 64), replace=False)] *= 30
    return rows.astype(np.float32)


def factor(rows: NDArray[np.float32], damping: float = 0.01) -> Doubles:
    """V with D^-1 on its diagonal, H^-1 = V^T D V, by the inverse and its Cholesky factor."""
    x = rows.astype(np.float64)
    h = x.T @ x / len(x)
    h += damping * np.mean(np.diag(h)) * np.eye(len(h))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    own = np.diag(upper)
    v = upper / own[:, None]
    np.fill_diagonal(v, own**-2.0 / np.mean(own**-2.0))
    return v


def packed(v: Doubles) -> NDArray[np.uint8]:
    """Upper triangle row by row, BF16, as bytes."""
    return v[np.triu_indices(len(v))].astype(ml_dtypes.bfloat16).view(np.uint8)


def write_calibration(
    path: Path, factors: Mapping[str, Sequence[Doubles]], uses: Mapping[str, object], **changed: str
) -> Path:
    """A file with stacks of factors, and for each tensor its factor and which of that its matrices have."""
    tensors = {
        name: np.stack([packed(each) for each in stack]).view(ml_dtypes.bfloat16) for name, stack in factors.items()
    }
    digests = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in tensors.items()}
    said = {
        "converter.calibration": "1", "kind": "text", "text_sha256": "00", "tokens": "512", "context": "256",
        "damping": "0.01", "tensors": json.dumps(uses), "digests": json.dumps(digests),
    } | changed  # fmt: skip
    save_file(tensors, path, metadata=said)
    return path
