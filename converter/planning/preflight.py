"""What carrying out plans takes, told before it begins: time of the processors, room on the disk, memory.

Time is measured: every pair of types that the plans turn into each other, on some random rows. How fast the disk is
nobody knows without using it, so that the rate is told from which on it is the disk that one waits for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from converter import workers
from converter.errors import QuantizationError
from converter.planning.plan import Plan
from converter.planning.several import together
from converter.storage.shares import Share, shares
from converter.tensors import kernels
from converter.tensors.dtypes import dtype
from converter.text import human_bytes, human_seconds

SAMPLE = (16, 2048)  # numbers that a rate is measured on: multiples of every block
COPYING = 2e9  # bytes a second that a thread moves as they are: assumed, of any machine of these years
CGROUP = (  # limit and use, by version 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
TIGHT = 0.9  # of the memory that is there; more is worth a warning


@dataclass(frozen=True)
class Beforehand:
    """What is done before plans are carried out: a calibration is made.

    Attributes:
        seconds: that it takes at least, with all processors.
        readings: how often the model reads the text.
        disk_bytes: beside the file that is kept, this with it, of which `kept_bytes` stay.
        scratch_bytes: of the system's folder for temporary files, meanwhile.
        memory_bytes: at most, if that of one block at a time is all there is.
        spread: tensors whose encoders follow it.
    """

    seconds: float
    readings: int
    disk_bytes: int
    kept_bytes: int
    scratch_bytes: int
    memory_bytes: int
    spread: frozenset[str]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = {name: value for name, value in vars(self).items() if name != "spread"}
        return own | {"seconds": round(self.seconds, 3)}

    @property
    def words(self) -> str:
        """For people."""
        scratch = f", {human_bytes(self.scratch_bytes)} of temporary files" if self.scratch_bytes else ""
        return (
            f"calibrating takes at least {human_seconds(self.seconds)}, {human_bytes(self.memory_bytes)} of "
            f"memory, {human_bytes(self.disk_bytes)} of disk, of which {human_bytes(self.kept_bytes)} stay{scratch}"
        )


@dataclass(frozen=True)
class Preflight:
    """Costs of plans that are carried out together.

    Attributes:
        seconds: that the processors need at least.
        disk_rate: bytes a second, read and written, at which the disk takes as long.
        read_bytes, disk_bytes: what is read, and what is written, under temporary names first: outputs that are
            replaced are there until the end.
        disk_free: free where that goes, for this user, on all disks; None where the system does not tell.
        disks: what goes where.
        memory_bytes: resident at most.
        memory_free: of the machine, or of what this process may take of it; None where the system does not tell.
        calibration: what of `seconds` and `memory_bytes` is that of a calibration, which is made before.
    """

    seconds: float
    disk_rate: float
    read_bytes: int
    disk_bytes: int
    disk_free: int | None
    memory_bytes: int
    memory_free: int | None
    disks: tuple[Share, ...]
    calibration: Beforehand | None = None

    @property
    def fits(self) -> bool:
        """Whether there is room on every disk, as far as is known."""
        return not self.full

    @property
    def full(self) -> list[Share]:
        """The disks that have too little room."""
        return [share for share in self.disks if share.nbytes > share.free]

    @property
    def tight(self) -> bool:
        """Whether memory may not be enough."""
        return self.memory_free is not None and self.memory_bytes > TIGHT * self.memory_free

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        rounded = {"seconds": round(self.seconds, 3), "disk_rate": round(self.disk_rate)}
        disks = [{"folder": str(each.folder), "bytes": each.nbytes, "free": each.free, "files": list(each.names)}
                 for each in self.disks]  # fmt: skip
        before = None if self.calibration is None else self.calibration.as_dict()
        derived = {"disks": disks, "calibration": before, "fits": self.fits, "tight": self.tight}
        return asdict(self) | rounded | derived

    @property
    def needs(self) -> str:
        """Room and memory, for people."""
        room, memory = (
            f" ({human_bytes(free)} free)" if free is not None else "" for free in (self.disk_free, self.memory_free)
        )
        return (
            f"needs {human_bytes(self.disk_bytes)} of disk{room} "
            f"and about {human_bytes(self.memory_bytes)} of memory{memory}"
        )

    @property
    def takes(self) -> str:
        """Time, for people."""
        rate = f"{human_bytes(self.disk_rate)}/s"
        words = f"takes at least {human_seconds(self.seconds)}, longer where the disk reads and writes less than {rate}"
        return words if self.calibration is None else f"{words}\nof that {self.calibration.words}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may go wrong, for people."""
        few = "memory may not be enough; fewer --threads need less"
        full = ["the disk" if len(self.disks) == 1 else f"the disk of {share.folder}" for share in self.full]
        return (*(f"{disk} has too little room" for disk in full), *((few,) if self.tight else ()))


def preflight(plans: Sequence[Plan], threads: int | None = None, calibration: Beforehand | None = None) -> Preflight:
    """What it takes to carry out `plans`, of one source; some tenths of a second of measuring, no file is touched.

    `calibration` is made before them, and they follow it.
    """
    used = threads or workers.default_threads()
    following = calibration.spread if calibration is not None else frozenset()
    decoded, encoded, copied = Counter[str](), Counter[tuple[str, bool, int]](), 0
    spread = 0.0
    for plan in plans:
        for step in plan.steps:
            source, target = step.read.info, step.info
            if source.dtype == target.dtype and step.intermediate is step.read:
                copied += target.nbytes
                continue
            decoded[source.dtype.name] += source.n_elements
            if step.calibrated or step.name in following:
                spread += target.n_elements * spreading(target.dtype.name, target.row, step.effort)
            else:
                encoded[target.dtype.name, step.imatrix, step.effort] += target.n_elements
    read = sum(step.read.info.nbytes for step in plans[0].steps)
    work = sum(count * decoding(name) for name, count in decoded.items()) / len(plans)
    work += sum(count * encoding(*each) for each, count in encoded.items()) + copied / COPYING + spread
    written, seconds, disks = sum(plan.total_bytes for plan in plans), work / used, _disks(plans)
    before = (calibration.seconds, calibration.memory_bytes) if calibration is not None else (0.0, 0)
    return Preflight(
        seconds + before[0],
        (read + written) / seconds if seconds else 0.0,
        read,
        written,
        sum(share.free for share in disks) if disks else None,
        max(before[1], *(plan.memory(threads) for plan in plans)),
        memory_free(),
        disks,
        calibration,
    )


def _disks(plans: Sequence[Plan]) -> tuple[Share, ...]:
    try:
        return tuple(shares(together(plans)))
    except OSError:
        return ()


def memory_free() -> int | None:
    """Bytes that this process could still take: of the machine, and of its control group where that has a limit."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    for limit, taken in CGROUP:
        with suppress(OSError, ValueError):  # "max": there is none
            found.append(int(Path(limit).read_text("ascii")) - int(Path(taken).read_text("ascii")))
    return max(0, min(found)) if found else None


@cache
def _sample() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=SAMPLE).astype(np.float32)


def seconds_for_one(work: Callable[[], object], numbers: int = SAMPLE[0] * SAMPLE[1]) -> float:
    """Seconds that work with so many numbers takes for one, the better of two tries: the first one may load tables."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times) / numbers


@cache
def encoding(name: str, weighted: bool, effort: int = 0) -> float:
    """Seconds that one number takes a thread to be stored as this type; nothing for what no kernel encodes."""
    kind = dtype(name)
    if not kernels.encodable(kind):
        return 0.0
    weights = np.ones(SAMPLE[1], np.float32) if weighted else None
    return seconds_for_one(lambda: kernels.encode(_sample(), kind, weights=weights, effort=effort))


def spreading(name: str, row: int, effort: int = 0) -> float:
    """Seconds that one number of a row of so many takes a thread where its error is spread over the rest of the row."""
    first, second = (_spreading(name, each, effort) for each in _SPREAD)
    return max(0.0, first + (second - first) * (row - _SPREAD[0]) / (_SPREAD[1] - _SPREAD[0]))


_SPREAD = (512, SAMPLE[1])  # rows that it is measured on: of the others it follows, on a line


@cache
def _spreading(name: str, row: int, effort: int) -> float:
    rows = np.ascontiguousarray(_sample()[:, :row])
    column = np.arange(row)
    factor = np.zeros(row * (row + 1) // 2, np.uint16)
    factor[row * column - column * (column - 1) // 2] = 0x3F80  # 1.0 in BF16, on the diagonal
    return seconds_for_one(
        lambda: kernels.encode_with_feedback(rows, dtype(name), factor.view(np.uint8), effort), rows.size
    )


@cache
def decoding(name: str) -> float:
    """Seconds that one number of this type takes a thread to become F32."""
    kind = dtype(name)
    try:
        blocks = np.zeros((SAMPLE[0], kind.row_nbytes(SAMPLE[1])), np.uint8)
        return seconds_for_one(lambda: kernels.decode(blocks, kind))
    except QuantizationError:  # codes of other packages, which no kernel decodes
        return 0.0
