"""Measured error of every type against what converter/verify/bounds.py expects and allows, as signal to noise in dB.

    python benchmarks/bounds.py [--markdown] [MODEL ...]

On normal weights, on heavy-tailed ones (Student's t with 3 degrees of freedom) and on the matrices of models (the
trained fixture, unless others are named: any format that can be read). Types that need an importance matrix have a
flat one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import converter
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.streams import values
from converter.verify.bounds import TYPES, Cast, expected_noise, noise_bound

Floats = NDArray[np.float32]
FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "kjv-llama"
HEAD = "| type | bits | search | normal | | | heavy-tailed | | | real | | |"


def types() -> list[DType]:
    """Those with a bound that can be encoded, by size."""
    found = [DTYPES[name] for name in TYPES if kernels.encodable(DTYPES[name]) and name not in ("F32", "F8_E8M0")]
    return sorted(found, key=lambda each: -each.bits_per_weight)


def drawn() -> dict[str, list[Floats]]:
    """Weights from stable generators, by the name of their distribution."""
    rng = np.random.Generator(np.random.PCG64(0))
    normal = rng.standard_normal((64, 4096), np.float32)
    return {"normal": [normal], "heavy-tailed": [rng.standard_t(3, (64, 4096)).astype(np.float32)]}


def matrices(model: Path) -> Iterator[Floats]:
    """A model's matrices of whole blocks, float32 (n, row)."""
    with converter.open_checkpoint(model) as source:
        for tensor in source.tensors.values():
            if tensor.info.dtype.floating and len(tensor.info.shape) >= 2 and tensor.info.row % 256 == 0:
                yield values(tensor, 0, tensor.info.n_rows)


def measured_noise(rows: Floats, dtype: DType) -> float:
    """Sum of squared errors of our own encoder, which makes ggml's bytes."""
    importance = np.ones(rows.shape[1], np.float32) if kernels.needs_importance(dtype) else None
    difference = kernels.decode(kernels.encode(rows, dtype, weights=importance), dtype) - rows
    return float(np.square(difference, dtype=np.float64).sum())


def decibels(noise: float, energy: float) -> str:
    return f"{round(10 * math.log10(energy / noise), 1) + 0.0:.1f}" if noise else "exact"


def derived(tensors: Sequence[Floats], dtype: DType) -> tuple[str, str]:
    """Signal to noise that is expected, and the least that is allowed."""
    energy = _energy(tensors)
    expected, most = (sum(each(rows, dtype) for rows in tensors) for each in (expected_noise, noise_bound))
    return decibels(expected, energy), decibels(most, energy)


def _energy(tensors: Sequence[Floats]) -> float:
    return sum(float(np.square(rows, dtype=np.float64).sum()) for rows in tensors)


def row(dtype: DType, data: Sequence[Sequence[Floats]]) -> list[str]:
    """One line of the table: per kind of data what is measured, expected, and at least."""
    facts = TYPES[dtype.name]
    cells = [dtype.name, f"{dtype.bits_per_weight:.4g}", "" if isinstance(facts, Cast) or not facts.searched else "yes"]
    for tensors in data:
        noise = sum(measured_noise(rows, dtype) for rows in tensors)
        cells += [decibels(noise, _energy(tensors)), *derived(tensors, dtype)]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="*", default=[FIXTURE])
    parser.add_argument("--markdown", action="store_true", help="the table of docs/bounds.md")
    args = parser.parse_args()
    data = [*drawn().values(), [rows for model in args.models for rows in matrices(model)]]
    second = ["", "", "", *("measured", "expected", "at least") * 3]
    if args.markdown:
        print(HEAD, "|---" * 12 + "|", "| " + " | ".join(second) + " |", sep="\n")
    for cells in [row(dtype, data) for dtype in types()]:
        print("| " + " | ".join(cells) + " |" if args.markdown else "".join(f"{cell:>9}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
