"""The whole job: a 1.1 B BF16 Llama folder to Q4_K_M, against llama.cpp's converter and quantizer.

    python benchmarks/whole_job.py --llama-cpp DIR [--runs 3] [--work DIR]

DIR is a llama.cpp source tree (its convert_hf_to_gguf.py runs in this interpreter's environment); the quantizer is the
library inside llama-cpp-python, which is what llama-quantize calls. Without --llama-cpp only ours runs. Wall seconds,
peak resident memory of the largest process, and bytes of intermediate files; both sides in turn, in one run. "verify"
is our check of the result against its source, every tensor encoded again.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support import sparse  # noqa: E402

QUANTIZE = """
import ctypes, llama_cpp, sys
llama_cpp.llama_backend_init()
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype, settings.nthread = 15, 2
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(settings)))
"""


@dataclass(frozen=True)
class Run:
    """One timed run: wall seconds, peak resident bytes of its largest process."""

    seconds: float
    peak: int


def make_model(folder: Path, size: str) -> Path:
    """A folder of seeded normal weights in BF16, filled by repeating 32 Mi of them."""
    sparse.folder(sparse.LLAMAS[f"llama-{size}"], folder, tokenizer=ROOT / "fixtures" / "stories260K")
    normal = np.random.default_rng(0).standard_normal(32 << 20, np.float32) * np.float32(0.02)
    pattern = (normal.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    path = folder / "model.safetensors"
    with open(path, "rb+") as file:
        position = 8 + int.from_bytes(file.read(8), "little")
        file.seek(position)
        while position < path.stat().st_size:
            part = pattern[: path.stat().st_size - position]
            file.write(part)
            position += len(part)
    return folder


def made(work: Path, size: str) -> Path:
    """The model in `work`; made in a process of its own, as the peak of a child starts at its parent's."""
    model = work / f"llama-{size}"
    if not model.exists():
        code = "import sys, pathlib, whole_job as w; w.make_model(pathlib.Path(sys.argv[1]), sys.argv[2])"
        subprocess.run([sys.executable, "-c", code, str(model), size], check=True, cwd=Path(__file__).parent)
    return model


def timed(*commands: list[str]) -> Run:
    """Run commands one after the other."""
    started, peak = time.monotonic(), 0
    for command in commands:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"failed: {' '.join(command)}")
        peak = max(peak, usage.ru_maxrss << 10)
    return Run(time.monotonic() - started, peak)


def ours(model: Path, work: Path) -> Run:
    flags = ["-q", "q4_k_m", "--force", "--quiet"]
    return timed([sys.executable, "-m", "converter", str(model), str(work / "ours.gguf"), *flags])


def verified(model: Path, work: Path) -> Run:
    return timed([sys.executable, "-m", "converter", "verify", str(model), str(work / "ours.gguf"), "--quiet"])


def theirs(model: Path, work: Path, llama_cpp: Path) -> Run:
    middle, result = work / "middle.gguf", work / "theirs.gguf"
    convert = [sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), str(model), "--outtype", "bf16"]
    return timed([*convert, "--outfile", str(middle)], [sys.executable, "-c", QUANTIZE, str(middle), str(result)])


def arguments(description: str | None, runs: int = 3) -> argparse.ArgumentParser:
    """What benchmarks of such a model are asked for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--size", choices=("8b", "1b", "1.1b"), default="1.1b")
    parser.add_argument("--work", type=Path, help="where the model is kept for another time")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--llama-cpp", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        model = made(work, args.size)
        runs: dict[str, list[Run]] = {"ours": [], "verify": [], "llama.cpp": []}
        for _ in range(args.runs):
            runs["ours"].append(ours(model, work))
            runs["verify"].append(verified(model, work))
            if args.llama_cpp:
                runs["llama.cpp"].append(theirs(model, work, args.llama_cpp))
        report(runs, work)


def report(runs: dict[str, list[Run]], work: Path) -> None:
    """Medians, and whether the files are the same."""
    for name, each in runs.items():
        if each:
            seconds, peak = statistics.median(run.seconds for run in each), max(run.peak for run in each)
            print(f"{name:<10} {seconds:7.2f} s  {peak / 1e6:7.0f} MB peak")
    if runs["llama.cpp"]:
        ratios = [b.seconds / a.seconds for a, b in zip(runs["ours"], runs["llama.cpp"], strict=True)]
        middle = (work / "middle.gguf").stat().st_size
        same = filecmp.cmp(work / "ours.gguf", work / "theirs.gguf", shallow=False)
        print(f"ratio      {statistics.median(ratios):7.2f}; intermediate {middle / 1e9:.2f} GB; same bytes: {same}")


if __name__ == "__main__":
    main()
