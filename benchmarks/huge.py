"""A model far larger than memory and disk: Llama-3.1-405B in BF16 (810 GB) to Q4_K_M, on a disk that is not there.

    sudo python benchmarks/huge.py [--minutes 10] [--model llama-3.1-405b] [--work DIR]

Linux, as root, with xfsprogs: the disk is a sparse file with XFS in it. The weights are one GiB of seeded normal
numbers that all shards share (reflinks), and what is written is given back by punching holes behind the writer, so that
some 10 GB hold it all. Told are the peak of resident memory, beside that for a model of 1 B; and the rate, beside
what the kernels alone do on as many threads with the same mix of types, measured before and after, in the same run:
by the clock, which waits for this disk and for what the system does for it, and by the time that the processors worked
for the conversion.
With --minutes the conversion is interrupted after so many, which must leave nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import whole_job

from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES

sys.path.insert(0, str(whole_job.ROOT / "tests"))
from support import sparse

LLAMA_405B = sparse.llama(
    hidden_size=16384, num_hidden_layers=126, num_attention_heads=128, num_key_value_heads=8, intermediate_size=53248,
    vocab_size=128256, rope_scaling=sparse.LLAMA3, max_position_embeddings=131072,
)  # fmt: skip
MODELS = {"llama-3.1-405b": LLAMA_405B, "deepseek-v3.1": sparse.CONFIGS["deepseek-v3.1"], **sparse.LLAMAS}
OPTIONS = {"deepseek-v3.1": ["--pre", "deepseek-v3"]}  # all have the same small tokenizer
SHARED = 1 << 30
BLOCK = 4096
FICLONERANGE = 0x4020940D
PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
BEHIND = 2 << 30  # what the writer may still be at
libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def disk(work: Path) -> Iterator[Path]:
    """A folder with 4 TB of room, for as long as what is in it holds little."""
    image, place = work / "disk.img", work / "disk"
    with image.open("wb") as file:
        file.truncate(4 << 40)
    place.mkdir(exist_ok=True)
    subprocess.run(["mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1", str(image)], check=True)
    # Without direct I/O everything would be in the system's cache twice, and copied from one to the other.
    attach = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["mount", "-o", "discard", device, str(place)], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()


def fill(folder: Path) -> None:
    """Let every shard have numbers: headers are padded to whole blocks, so that the data can be shared."""
    pattern = folder / "pattern"
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length)
        data = path.stat().st_size - 8 - length
        text += b" " * (-(8 + length) % BLOCK)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.flush()
            file.truncate(8 + len(text) + data + (-data % BLOCK))
            with pattern.open("rb") as shared:
                for at in range(0, data, SHARED):
                    part = min(SHARED, data - at)
                    where = (shared.fileno(), 0, part + (-part % BLOCK), 8 + len(text) + at)
                    fcntl.ioctl(file.fileno(), FICLONERANGE, struct.pack("qQQQ", *where))
            file.truncate(8 + len(text) + data)


def make(folder: Path, name: str) -> Path:
    """The model of that name, in shards of 20 GB."""
    config = MODELS[name]
    folder.mkdir()
    sparse.shards(folder, sparse.shapes(config), {}, size=20 << 30)
    (folder / "config.json").write_text(json.dumps(config))
    for file in (whole_job.ROOT / "fixtures" / "stories260K").glob("tokenizer*"):
        shutil.copy(file, folder)
    normal = np.random.default_rng(0).standard_normal(32 << 20, np.float32) * np.float32(0.02)
    values = (normal.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (folder / "pattern").open("wb") as file:
        for _ in range(SHARED // len(values)):
            file.write(values)
    fill(folder)
    return folder


def punch(place: Path, stop: threading.Event) -> None:
    """Give back what is written, but for the last 2 GiB of every file."""
    while not stop.wait(1):
        for path in place.glob(".*.part"):
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDWR)
                try:
                    _punch(handle, os.fstat(handle).st_size)
                finally:
                    os.close(handle)


def _punch(handle: int, size: int) -> None:
    extents, at = [], 0
    while at < size:
        try:
            start = os.lseek(handle, at, os.SEEK_DATA)
        except OSError:
            break  # no more data
        at = os.lseek(handle, start, os.SEEK_HOLE)
        extents.append((start, at))
    last = extents[-1][1] if extents else 0
    for start, end in extents:
        end = min(end, last - BEHIND)
        if end > start:
            libc.fallocate(handle, PUNCH, ctypes.c_int64(start), ctypes.c_int64(end - start))


def kernel_rate(counts: dict[str, int], threads: int) -> float:
    """Numbers a second that the kernels encode on as many threads, of a mix of types (name to numbers)."""
    x = (np.random.default_rng(0).standard_normal((1024, 4096), np.float32) * np.float32(0.02)).astype(np.float32)
    seconds = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for name, count in counts.items():
            dtype, best = DTYPES[name], float("inf")
            outs = [np.empty((len(x), dtype.row_nbytes(x.shape[1])), np.uint8) for _ in range(threads)]
            for _ in range(5):
                started = time.perf_counter()
                list(pool.map(lambda out, dtype=dtype: [kernels.encode(x, dtype, out=out) for _ in range(4)], outs))
                best = min(best, (time.perf_counter() - started) / (4 * threads * x.size))
            seconds += best * count
    return sum(counts.values()) / seconds


class Run(NamedTuple):
    """Bytes of the output a second of the clock, and of a processor, after the first ten; peak bytes resident; the
    share that was done, and whether that was to be all."""

    by_clock: float
    by_processor: float
    peak: int
    share: float
    ended: bool


def convert(model: Path, out: Path, minutes: float | None) -> Run:
    """Run it, for so many minutes at most."""
    command = [sys.executable, "-m", "converter", str(model), str(out), "-q", "q4_k_m", "-f", "--progress", "json"]
    command += OPTIONS.get(model.name, [])
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    if minutes:
        threading.Timer(60 * minutes, process.send_signal, [signal.SIGINT]).start()
    seen, peak = [], 0
    for line in process.stderr:
        if line.startswith('{"schema"'):
            event = json.loads(line)
            if event["event"] == "progress":
                seen.append((event["elapsed"], event["done"], event["total"], processor_time(process.pid)))
                peak = max(peak, high_water(process.pid))
        else:
            print(line.rstrip(), file=sys.stderr)
    code = process.wait()
    if code not in (0, 130):
        raise SystemExit(f"failed: {code}")
    warm = next((each for each in seen if each[0] > 10), seen[0])
    done = seen[-1][1] - warm[1]
    by_clock, by_processor = (done / max(seen[-1][at] - warm[at], 1e-9) for at in (0, 3))
    return Run(by_clock, by_processor, peak, seen[-1][1] / seen[-1][2], code == 0)


def processor_time(pid: int) -> float:
    """Seconds that processors worked for a process, the system's included."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def high_water(pid: int) -> int:
    """Peak resident bytes of a process so far; what rusage tells would begin at its parent's."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0


def planned(model: Path, out: Path) -> tuple[Counter[str], int]:
    """How many numbers of each type the output has, and its bytes."""
    command = [sys.executable, "-m", "converter", "plan", str(model), str(out), "-q", "q4_k_m", "--json"]
    command += OPTIONS.get(model.name, [])
    plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    counts = Counter[str]()
    for tensor in plan["tensors"]:
        counts[tensor["type"]] += int(np.prod(tensor["shape"]))
    return counts, plan["total_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-405b")
    parser.add_argument("--beside", choices=MODELS, default="llama-1b", help="the small one, of the same vocabulary")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as temporary, disk(Path(temporary)) as place:
        columns = ("model", "BF16", "out", "peak", "rate", "kernels alone", "share", "of processors' time", "done")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        for name in (args.beside, args.model):
            started = time.monotonic()
            model = make(place / name, name)
            counts, total = planned(model, place / "out.gguf")
            made = time.monotonic() - started
            encoded = {name: count for name, count in counts.items() if DTYPES[name].quantized}
            before, stop = kernel_rate(encoded, 2), threading.Event()
            punching = threading.Thread(target=punch, args=(place, stop))
            punching.start()
            run = convert(model, place / "out.gguf", args.minutes)
            stop.set()
            punching.join()
            alone = (before + kernel_rate(encoded, 2)) / 2
            rate, worked = (each / total * sum(counts.values()) for each in (run.by_clock, 2 * run.by_processor))
            cells = [
                f"{2 * sum(counts.values()) / 1e9:.1f} GB", f"{total / 1e9:.2f} GB", f"{run.peak / 1e6:.0f} MB",
                f"{rate / 1e6:.0f} M/s", f"{alone / 1e6:.0f} M/s", f"{rate / alone:.0%}", f"{worked / alone:.0%}",
                f"{run.share:.0%}{'' if run.ended else ', interrupted'}",
            ]  # fmt: skip
            print(f"| {name} | {' | '.join(cells)} |  made and planned in {made:.0f} s", flush=True)
            if left := [path.name for path in place.iterdir() if path.name.endswith(".part")]:
                raise SystemExit(f"left behind: {left}")
            shutil.rmtree(model)
            (place / "out.gguf").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
