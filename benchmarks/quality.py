"""Bits per weight and error of every quantization type, on normal weights and on the trained fixture.

    python benchmarks/quality.py [--markdown]

The error is the root of the mean squared difference relative to the weights'. On the fixture it is taken over all
tensors whose rows are whole blocks, each encoded in the one type.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import converter
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, DType

MODEL = Path(__file__).resolve().parent.parent / "fixtures" / "kjv-llama"


def relative_error(weights: NDArray[np.float32], dtype: DType) -> float:
    """Root mean squared difference over root mean square; float32 (n, row)."""
    importance = np.ones(weights.shape[1], np.float32) if kernels.needs_importance(dtype) else None
    data = kernels.encode(weights, dtype, weights=importance)
    difference = kernels.decode(data, dtype) - weights
    return float(np.sqrt((difference**2).mean(dtype=np.float64) / (weights**2).mean(dtype=np.float64)))


def fixture_weights() -> list[NDArray[np.float32]]:
    """The fixture's matrices as float32."""
    with converter.open_checkpoint(MODEL) as source:
        return [
            kernels.decode(np.ascontiguousarray(tensor.rows(0, tensor.info.n_rows)), tensor.info.dtype)
            for tensor in source.tensors.values()
            if len(tensor.info.shape) == 2 and tensor.info.row % 256 == 0
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="a table for docs/quantization.md")
    args = parser.parse_args()
    normal = np.random.default_rng(0).standard_normal((64, 4096), np.float32)
    real = fixture_weights()
    line = "| {} | {:.4g} | {} | {:.3%} | {:.3%} |" if args.markdown else "{:<8} {:>7.4g}  {:<8} {:>9.3%} {:>9.3%}"
    types = [each for each in DTYPES.values() if each.quantized and kernels.encodable(each)]
    for dtype in sorted(types, key=lambda each: -each.bits_per_weight):
        errors = [(relative_error(weights, dtype), weights) for weights in real]
        power = sum(float((weights**2).sum(dtype=np.float64)) for _, weights in errors)
        lost = sum(error**2 * float((weights**2).sum(dtype=np.float64)) for error, weights in errors)
        needs = "needed" if kernels.needs_importance(dtype) else ""
        on_normal, on_real = relative_error(normal, dtype), (lost / power) ** 0.5
        print(line.format(dtype.name, dtype.bits_per_weight, needs, on_normal, on_real))


if __name__ == "__main__":
    main()
