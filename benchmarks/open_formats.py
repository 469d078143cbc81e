"""Opening a file of each format: time, bytes read, memory.

    python benchmarks/open_formats.py [--megabytes 50] [FILE ...]

Makes a file of each format with that many MB of tensors of 256 KB each (a few large ones where the format's layout asks
for it), in memory where the system has /dev/shm, so that no disk is measured; then opens each, and every FILE, in a
process of its own. Columns: size of the file with those that belong to it; tensors found; milliseconds to open, the
best of seven; bytes read by system calls; bytes of the file that were mapped on the way (the kernel maps 64 KB around
each touch); resident memory of the whole process at its peak, Python and numpy included. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import samples

from converter.formats.registry import readers
from converter.tensors.dtypes import F32
from converter.tensors.tensor import LazyTensor, TensorInfo

MEMORY = Path("/dev/shm")
OPENED = """
import json, sys, time
from pathlib import Path
from converter.formats.registry import open_checkpoint

def rchar():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

def resident(folder):
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = folder in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total

path, name = sys.argv[1:]
folder = path if Path(path).is_dir() else str(Path(path).parent)
times = []
for _ in range(8):  # the first imports the reader and does not count
    before, start = rchar(), time.perf_counter()
    with open_checkpoint(Source(path, format=name or None)) as checkpoint:
        times.append(time.perf_counter() - start)
        found = {"read": rchar() - before, "mapped": resident(folder)}
        found |= {"tensors": len(checkpoint.tensors), "format": checkpoint.format}
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
print(json.dumps(found | {"ms": min(times[1:]) * 1e3, "peak": peak}))
"""


def made(folder: Path, megabytes: int) -> Iterator[tuple[str, Path]]:
    """A file of each format that is registered: its name and path, one at a time."""
    row = np.zeros(4 << 20, np.uint8)
    info = TensorInfo("w", (max(1, megabytes >> 2), 1 << 20), F32)
    large = LazyTensor(info, lambda start, stop: np.broadcast_to(row, (stop - start, len(row))), "made")
    for reader in readers():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            if reader.layout is not None and reader.name not in {*samples.LARGE, "npy"}:
                infos = [TensorInfo(f"layers.{i}.weight", (256, 256), F32) for i in range(4 * megabytes)]
                tensors = {info.name: LazyTensor(info, _zeros, "made") for info in infos}
                yield reader.name, samples.write(reader, tensors, Path(name) / f"made{reader.extensions[0]}", {})
            else:
                yield reader.name, samples.large(reader, large, Path(name))


def _zeros(start: int, stop: int) -> np.ndarray:
    """Rows of 256 numbers of F32."""
    return np.zeros((stop - start, 1024), np.uint8)


def report(name: str, path: Path, whole: Path) -> None:
    """Open `path` in a process of its own and print a row; its size is that of the file or folder `whole`."""
    done = subprocess.run([sys.executable, "-c", OPENED, str(path), name], capture_output=True, text=True)
    if done.returncode:
        print(f"{path.name}: {done.stderr.strip().splitlines()[-1]}")
        return
    found = json.loads(done.stdout)
    size = sum(file.stat().st_size for file in ([whole] if whole.is_file() else whole.rglob("*")) if file.is_file())
    print(
        f"{found['format']:12} {size / 1e6:9.2f} {found['tensors']:8} {found['ms']:9.2f} {found['read'] / 1e3:9.1f} "
        f"{found['mapped'] / 1e3:10.1f} {found['peak'] / 1e6:8.1f}  {path.name}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50, help="of tensors in each file that is made")
    parser.add_argument("files", nargs="*", type=Path, help="more files to open, such as real models")
    options = parser.parse_args()
    print(
        f"{'format':12} {'MB':>9} {'tensors':>8} {'open ms':>9} {'read KB':>9} {'mapped KB':>10} {'peak MB':>8}  file"
    )
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        for name, path in made(Path(folder), options.megabytes):
            report(name, path, path.parent)
    for path in options.files:
        report("", path, path)


if __name__ == "__main__":
    main()
