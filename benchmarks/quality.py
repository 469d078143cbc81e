"""Bits per weight and error of every quantization type, on normal weights and on the trained fixture.

    python benchmarks/quality.py [--markdown]
    python benchmarks/quality.py --effort 1,2,3

The error is the root of the mean squared difference relative to the weights'. On the fixture it is taken over all
tensors whose rows are whole blocks, each encoded in the one type. With --effort, the change by each level of it, also
on weights with more outliers (Laplace, Student's t of 4 degrees).
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


def relative_error(weights: NDArray[np.float32], dtype: DType, effort: int = 0) -> float:
    """Root mean squared difference over root mean square; float32 (n, row)."""
    importance = np.ones(weights.shape[1], np.float32) if kernels.needs_importance(dtype) else None
    data = kernels.encode(weights, dtype, weights=importance, effort=effort)
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


def error_of_all(matrices: list[NDArray[np.float32]], dtype: DType, effort: int = 0) -> float:
    """That of several matrices together."""
    power = [float((weights**2).sum(dtype=np.float64)) for weights in matrices]
    lost = sum(relative_error(weights, dtype, effort) ** 2 * own for weights, own in zip(matrices, power, strict=True))
    return float((lost / sum(power)) ** 0.5)


def by_effort(
    efforts: list[int], types: list[DType], data: dict[str, list[NDArray[np.float32]]], markdown: bool
) -> None:
    """Print the error of each type, and the change of it by each effort, for each kind of data."""
    for dtype in types:
        cells = []
        for matrices in data.values():
            before = error_of_all(matrices, dtype)
            changes = [error_of_all(matrices, dtype, effort) / before - 1 for effort in efforts]
            cells.append(" ".join([f"{before:.3%}", *(f"{change:+.1%}" for change in changes)]))
        print(
            f"| {dtype.name} | {' | '.join(cells)} |" if markdown else f"{dtype.name:<8} {'   '.join(cells)}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="a table for docs/quantization.md")
    parser.add_argument("--effort", default="", metavar="A,B", help="what these levels of --effort change")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    normal = random.standard_normal((64, 4096), np.float32)
    real = fixture_weights()
    line = "| {} | {:.4g} | {} | {:.3%} | {:.3%} |" if args.markdown else "{:<8} {:>7.4g}  {:<8} {:>9.3%} {:>9.3%}"
    types = [each for each in DTYPES.values() if each.quantized and kernels.encodable(each)]
    types.sort(key=lambda each: -each.bits_per_weight)
    if args.effort:
        heavy = random.standard_t(4, normal.shape).astype(np.float32)
        data = {"normal": [normal], "laplace": [random.laplace(size=normal.shape).astype(np.float32)], "t": [heavy]}
        by_effort([int(level) for level in args.effort.split(",")], types, data | {"fixture": real}, args.markdown)
        return
    for dtype in types:
        needs = "needed" if kernels.needs_importance(dtype) else ""
        on_normal, on_real = relative_error(normal, dtype), error_of_all(real, dtype)
        print(line.format(dtype.name, dtype.bits_per_weight, needs, on_normal, on_real))


if __name__ == "__main__":
    main()
