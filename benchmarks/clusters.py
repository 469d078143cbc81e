"""Workers of Dask and Ray against threads, on a model of 1.1 B; and what that means on paper for more machines.

    python benchmarks/clusters.py [--runs 1] [--engines dask,ray] [--work DIR] [--size 1.1b]

Seconds of the conversion to Q4_K_M by one and by two, and what starting a cluster takes, which is counted apart; the
bytes must be those of threads, also where one of two workers is killed in the middle. Then `wall` is fitted to one and
two workers of each engine, and told for 1 to 100 machines under stated assumptions.
"""

from __future__ import annotations

import filecmp
import os
import signal
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import whole_job

import converter
from converter import engines


@dataclass(frozen=True)
class Machines:
    """What is assumed of a cluster: cores a machine, bytes a second of its network and of the storage for all."""

    cores: int = 32
    network: float = 3e9  # 25 Gbit/s
    storage: float = 20e9
    start: float = 30.0  # seconds until all workers have planned


@dataclass(frozen=True)
class Job:
    """What is to be done: numbers in the model, bytes that are read and written."""

    parameters: float
    read: float
    written: float


def wall(job: Job, machines: int, rate: float, serial: float, given: Machines) -> tuple[float, str]:
    """Seconds on so many machines, and what binds: cores, network or storage.

    Args:
        rate: numbers a second and core, from the fit.
        serial: seconds that the coordinator alone takes, plan and publication, from the fit.
    """
    moved = job.read + job.written
    seconds = {
        "cores": job.parameters / (rate * given.cores * machines),
        "network": moved / (given.network * machines),
        "storage": moved / given.storage,
    }
    binds = max(seconds, key=lambda each: seconds[each])
    return given.start + serial + seconds[binds], binds


def fitted(one: float, two: float, parameters: float) -> tuple[float, float]:
    """Numbers a second of a worker, and serial seconds: `serial + parameters / (rate * workers)` is the wall."""
    parallel = max(2 * (one - two), 1e-9)
    return parameters / parallel, max(one - parallel, 0.0)


def main() -> None:
    parser = whole_job.arguments(__doc__, runs=1)
    parser.add_argument("--engines", default="local,dask,ray")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        model = whole_job.made(work, args.size)
        wanted = work / "wanted.gguf"
        plan = converter.convert(model, wanted, converter.Request(quant="q4_k_m"), force=True)
        print("| engine | workers | start | conversion | load | same bytes |\n|---|---|---|---|---|---|", flush=True)
        taken = {}
        for name in args.engines.split(","):
            for count in (1, 2):
                runs = [timed(name, count, model, wanted) for _ in range(args.runs)]
                start, seconds = (statistics.median(each[at] for each in runs) for at in (0, 1))
                taken[name, count] = seconds
                cells = (
                    f"{start:.1f} s",
                    f"{seconds:.1f} s",
                    f"{os.getloadavg()[0]:.1f}",
                    all(each[2] for each in runs),
                )
                print(f"| {name} | {count} | {' | '.join(map(str, cells))} |", flush=True)
            if name != "local":
                start, seconds, same = timed(name, 2, model, wanted, kill=True)
                print(f"| {name} | 2, one killed | {start:.1f} s | {seconds:.1f} s | | {same} |", flush=True)
        paper(taken, float(plan.n_parameters))


def timed(name: str, count: int, model: Path, wanted: Path, kill: bool = False) -> tuple[float, float, bool]:
    """Seconds to start and to convert, and whether the bytes are those that are wanted."""
    out, request = wanted.with_name("engine.gguf"), converter.Request(quant="q4_k_m")
    killed = [not kill]

    def progress(now: converter.Progress) -> None:
        if not killed[0] and now.done > now.total / 3:
            killed[0] = True
            os.kill(worker(), signal.SIGKILL)

    began = time.monotonic()
    with engines.opened(name, count) as engine:
        started = time.monotonic()
        converter.convert(model, out, request, engine=engine, threads=count, force=True, progress=progress)
        ended = time.monotonic()
    return started - began, ended - started, filecmp.cmp(out, wanted, shallow=False)


def worker() -> int:
    """A process of Ray's or Dask's that works; there is one cluster at a time."""
    found = subprocess.run(["pgrep", "-f", "^ray::fill|multiprocessing.spawn"], capture_output=True, text=True)
    return int(found.stdout.split()[-1])


def paper(taken: dict[tuple[str, int], float], parameters: float) -> None:
    """Llama 405B in BF16 to Q4_K_M, on machines that are assumed."""
    job, given = Job(405.9e9, 811.7e9, 243.1e9), Machines()
    print(f"\n{given}, {job}\n\n| engine | machines | wall | binds |\n|---|---|---|---|")
    for name in dict.fromkeys(name for name, _ in taken if name != "local"):
        rate, serial = fitted(taken[name, 1], taken[name, 2], parameters)
        print(f"fit of {name}: {rate / 1e6:.0f} M numbers a second and worker, {serial:.1f} s serial")
        for machines in (1, 2, 5, 10, 20, 50, 100):
            seconds, binds = wall(job, machines, rate, serial, given)
            print(f"| {name} | {machines} | {seconds:.0f} s | {binds} |")


if __name__ == "__main__":
    main()
