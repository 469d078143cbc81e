"""Five quants of one model: from one read, by five runs of ours, and by five of llama-quantize's.

    python benchmarks/several.py [--runs 3] [--llama-cpp DIR] [--work DIR] [--size 1.1b]

Wall seconds and bytes read from the disk, whose cache is emptied of the input before every run (Linux). What
llama-quantize reads is the BF16 GGUF that llama.cpp's converter makes; with --llama-cpp its time is told as well, else
ours makes that file. The quantizer is the library inside llama-cpp-python, as in whole_job.py.
"""

from __future__ import annotations

import filecmp
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import whole_job

QUANTS = {"q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "q8_0": 7, "q3_k_m": 12}  # llama.cpp's numbers of file types
QUANTIZE = whole_job.QUANTIZE.replace("= 15, 2", "= int(sys.argv[3]), 2")


@dataclass(frozen=True)
class Run:
    """Wall seconds, bytes that came from the disk, peak resident bytes of the largest process."""

    seconds: float
    read: int
    peak: int


def run(*commands: list[str], cold: Path) -> Run:
    """Run commands one after the other, each with nothing of `cold` in the cache."""
    seconds, read, peak = 0.0, 0, 0
    for command in commands:
        forget(cold)
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds += time.monotonic() - started
        counted = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
        read += int(counted["read_bytes"])
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"failed: {' '.join(command)}")
        peak = max(peak, usage.ru_maxrss << 10)
    return Run(seconds, read, peak)


def forget(path: Path) -> None:
    """Empty the page cache of the files there."""
    for file in path.iterdir() if path.is_dir() else [path]:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    parser = whole_job.arguments(__doc__)
    parser.add_argument("--llama-cpp", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        model = whole_job.made(work, args.size)
        middle = work / "middle.gguf"
        ours = [sys.executable, "-m", "converter", str(model)]
        making = [*ours, str(middle), "-q", "bf16", "-f"]
        if args.llama_cpp:
            script = str(args.llama_cpp / "convert_hf_to_gguf.py")
            making = [sys.executable, script, str(model), "--outtype", "bf16", "--outfile", str(middle)]
        made = run(making, cold=model)
        runs: dict[str, list[Run]] = {"one read": [], "five runs": [], "llama-quantize": []}
        for _ in range(args.runs):
            together = [*ours, str(work / "one-{quant}.gguf"), "-q", ",".join(QUANTS), "-f"]
            runs["one read"].append(run(together, cold=model))
            each = [[*ours, str(work / f"five-{quant}.gguf"), "-q", quant, "-f"] for quant in QUANTS]
            runs["five runs"].append(run(*each, cold=model))
            quantize = [sys.executable, "-c", QUANTIZE, str(middle)]
            theirs = [[*quantize, str(work / f"theirs-{quant}.gguf"), str(number)] for quant, number in QUANTS.items()]
            runs["llama-quantize"].append(run(*theirs, cold=middle))
        print(
            f"load {os.getloadavg()[0]:.1f}; the BF16 GGUF for llama-quantize: {made.seconds:.1f} s, not counted below"
        )
        report(runs, work)


def report(runs: dict[str, list[Run]], work: Path) -> None:
    """Medians, ratios to the first way, and whether the files are the same."""
    base = runs["one read"]
    for name, each in runs.items():
        seconds, read = statistics.median(run.seconds for run in each), statistics.median(run.read for run in each)
        peak = max(run.peak for run in each)
        ratio = statistics.median(b.seconds / a.seconds for a, b in zip(base, each, strict=True))
        print(f"{name:<15} {seconds:7.1f} s ({ratio:.2f})  {read / 1e9:6.2f} GB read  {peak / 1e6:6.0f} MB peak")
    for quant in QUANTS:
        one = work / f"one-{quant.upper()}.gguf"
        same = [filecmp.cmp(one, work / f"{name}-{quant}.gguf", shallow=False) for name in ("five", "theirs")]
        print(f"{quant}: same bytes as our single run {same[0]}, as llama-quantize's {same[1]}")


if __name__ == "__main__":
    main()
