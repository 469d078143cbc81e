"""Speed of the kernels against ggml's, in one run, on the same data, on one core.

    python benchmarks/bench_kernels.py [--types Q4_K,Q6_K] [--isas avx512,avx2] [--effort 2] [--repeats 7] [--json FILE]

Prints millions of weights per second: ours for each instruction set, ggml's `ggml_quantize_chunk` or
`to_float`, and the ratio; for decoding also gguf-py's `dequantize` where that package is installed. Each
figure is the median of several runs, in CPU time of the calling thread, so that other processes on the
machine disturb it less; the runs of ours and ggml's alternate. Building ggml's tables for the grid types
takes it up to a minute each and is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import ggml_oracle

from converter import _native
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, DType

ROW = 4096
Speeds = dict[str, float]
# Enough rows for a few milliseconds of ours, and of ggml, which is slower.
OUR_ROWS, GGML_ROWS = 64, 8


def seconds(work: Callable[[], object]) -> float:
    start = time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)
    work()
    return time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID) - start


def race(works: dict[str, tuple[Callable[[], object], int]], repeats: int) -> Speeds:
    """Millions of elements per second of each work, which does so many elements; taking turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, (work, _) in works.items():
            work()  # warm: tables, pages, and the caches that the one before has filled with its own
            times[name].append(seconds(work))
    return {name: works[name][1] / statistics.median(t) / 1e6 for name, t in times.items()}


def with_isa(isa: str, work: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        _native.select_isa(isa)
        work()

    return run


def gguf_dequantize(data: np.ndarray, dtype: DType) -> Callable[[], object] | None:
    """gguf-py's decoder of this type, if the package is there and has one."""
    try:
        import gguf
    except ImportError:
        return None
    kind = gguf.GGMLQuantizationType(dtype.gguf) if dtype.gguf in list(gguf.GGMLQuantizationType) else None
    if kind is None:
        return None
    try:
        gguf.dequantize(data[:1], kind)
    except NotImplementedError:
        return None
    return lambda: gguf.dequantize(data, kind)


def bench_encode(
    dtype: DType, isas: list[str], weights: np.ndarray | None, x: np.ndarray, repeats: int, effort: int = 0
) -> Speeds:
    out = np.empty((len(x), dtype.row_nbytes(ROW)), np.uint8)

    def encode() -> None:
        kernels.encode(x, dtype, weights=weights, effort=effort, out=out)

    works: dict[str, tuple[Callable[[], object], int]] = {isa: (with_isa(isa, encode), x.size) for isa in isas}
    works["ggml"] = (lambda: ggml_oracle.quantize(x[:GGML_ROWS], dtype, weights), GGML_ROWS * ROW)
    return race(works, repeats)


def bench_decode(dtype: DType, isas: list[str], x: np.ndarray, weights: np.ndarray, repeats: int) -> Speeds:
    data, out = kernels.encode(x, dtype, weights=weights), np.empty_like(x)
    works = {isa: (with_isa(isa, lambda: kernels.decode(data, dtype, out=out)), x.size) for isa in isas}
    works["ggml"] = (lambda: ggml_oracle.dequantize(data, dtype), x.size)
    peer = gguf_dequantize(data[:GGML_ROWS], dtype)
    if peer:
        works["gguf-py"] = (peer, GGML_ROWS * ROW)
    return race(works, repeats)


def report(label: str, speeds: dict[str, float], isas: list[str]) -> None:
    ours = "  ".join(f"{isa} {speeds[isa]:8.1f} ({speeds[isa] / speeds['ggml']:5.1f}x)" for isa in isas)
    peer = f"  gguf-py {speeds['gguf-py']:7.1f}" if "gguf-py" in speeds else ""
    print(f"{label:20s} ggml {speeds['ggml']:7.1f}  {ours}{peer}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    encodable = [
        name for name, (_, _, encodes, _) in kernels.TYPES.items() if encodes and DTYPES[name].gguf is not None
    ]
    parser.add_argument("--types", default=",".join(n for n in encodable if n not in ("F32", "F64")))
    parser.add_argument("--isas", default=",".join(i for i in kernels.available_isas() if i != "scalar") or "scalar")
    parser.add_argument("--effort", default="", help="also encoders that try harder than ggml's, which they race")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    isas = args.isas.split(",")
    random = np.random.default_rng(0)
    x = (random.standard_normal((OUR_ROWS, ROW)) * 0.02).astype(np.float32)
    importance = (random.random(ROW) + 0.1).astype(np.float32)
    figures: dict[str, dict[str, float]] = {}
    for name in args.types.split(","):
        dtype = DTYPES[name]
        for effort in (0, *map(int, filter(None, args.effort.split(",")))):
            label = f"{name} encode, effort {effort}" if effort else f"{name} encode"
            if not kernels.needs_importance(dtype):
                figures[label] = bench_encode(dtype, isas, None, x, args.repeats, effort)
            if dtype.quantized:
                figures[f"{label}, imatrix"] = bench_encode(dtype, isas, importance, x, args.repeats, effort)
        figures[f"{name} decode"] = bench_decode(dtype, isas, x, importance, args.repeats)
        for label in [f for f in figures if f.split()[0] == name]:
            report(label, figures[label], isas)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
