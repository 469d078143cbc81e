"""Slabs: the rows of tensors in pieces of bounded memory, the same for all who write them and all who look at them.

A slab has an identity that depends on shapes and types alone, not on the process, the threads or the order: a journal
can name it, and a worker elsewhere can be told to do it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from converter import workers
from converter.errors import Cancelled, ConverterError
from converter.tensors import kernels
from converter.tensors.tensor import LazyTensor

Part = TypeVar("Part")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done, total: bytes, or what `unit` says.
        tensor: the one that was just written to, or looked at; `file` is the name of its file where one is written.
        resumed: bytes of those done that were there already, of a run that was stopped.
        job: which of several, in a batch.
        unit: what is counted, "" for bytes.
    """

    done: int
    total: int
    tensor: str
    file: str = ""
    resumed: int = 0
    job: str = ""
    unit: str = ""


# Called after every slab; returning False cancels the run.
ProgressCallback = Callable[[Progress], "bool | None"]


class Token(Protocol):
    """What says from anywhere that a run shall end: `threading.Event`, or that of multiprocessing or asyncio."""

    def is_set(self) -> bool:
        """Whether it shall."""


def until(token: Token | None, progress: ProgressCallback | None = None) -> ProgressCallback | None:
    """A progress callback, for whatever takes one, that cancels once `token` is set, and calls `progress` as well."""
    if token is None:
        return progress

    def told(now: Progress) -> bool | None:
        wanted = None if progress is None else progress(now)
        return False if token.is_set() else wanted

    return told


class Slab(NamedTuple):
    """Rows [start, stop) of a job, by its number. Sorts in the order of work; as JSON it is a list of three numbers."""

    job: int
    start: int
    stop: int


@dataclass(frozen=True)
class Job:
    """Something to do with every row of a tensor, or of several with equally many rows.

    `work(start, stop)` is called for row ranges that cover the tensors, from any thread and in any order; `row_work` is
    the memory that it needs for one row. `file` is the name of the file that it writes to, for who watches.
    """

    tensors: tuple[LazyTensor, ...]
    work: Callable[[int, int], None]
    row_work: int
    file: str = ""

    @property
    def row_nbytes(self) -> int:
        """Stored bytes of one row of all tensors."""
        return sum(tensor.info.row_nbytes for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(tensor.info.nbytes for tensor in self.tensors)


def gathering(
    tensors: tuple[LazyTensor, ...], look: Callable[[int, int], Part], done: Callable[[list[Part]], None], row_work: int
) -> Job:
    """A job that looks at row ranges, and at the end calls `done` once with what was seen, in the order of the rows.

    So what is made of it does not depend on the threads.
    """
    parts: dict[int, Part] = {}
    lock, left = threading.Lock(), [tensors[0].info.n_rows]

    def work(start: int, stop: int) -> None:
        part = look(start, stop)
        with lock:
            parts[start] = part
            left[0] -= stop - start
            if not left[0]:
                done([parts[at] for at in sorted(parts)])
                parts.clear()

    return Job(tensors, work, row_work)


def slab_rows(tensors: Sequence[LazyTensor], row_work: int) -> int:
    """Rows of a slab: what fits into the memory that the tensors state, or else into what suits the kernels.

    Rows that are computed together anyway stay together.
    """
    n_rows = max(1, tensors[0].info.n_rows)
    stated = [tensor.slab_nbytes for tensor in tensors if tensor.slab_nbytes is not None]
    rows = max(stated, default=kernels.SLAB_NBYTES) // max(1, row_work)
    together = math.lcm(*(max(1, tensor.grain) for tensor in tensors))
    return min(n_rows, max(1, rows // together) * together)


def row_ranges(tensors: Sequence[LazyTensor], row_work: int) -> Iterator[tuple[int, int]]:
    """The rows of tensors, which have equally many, slab by slab in order."""
    n_rows, step = tensors[0].info.n_rows, slab_rows(tensors, row_work)
    for start in range(0, n_rows, step):
        yield start, min(n_rows, start + step)


def slabs_of(jobs: Sequence[Job]) -> Iterator[Slab]:
    """All slabs in order; a job without bytes has none."""
    for number, job in enumerate(jobs):
        if job.nbytes:
            yield from (Slab(number, start, stop) for start, stop in row_ranges(job.tensors, job.row_work))


def run(
    jobs: Sequence[Job],
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    *,
    slabs: Sequence[Slab] | None = None,
    stop: Callable[[], ConverterError | None] = lambda: None,
) -> None:
    """Do `slabs` of the jobs, all by default; the first error that one raises ends the run.

    `stop` is asked after every slab; an error it returns ends the run, too.

    Raises:
        Cancelled: `progress` returned False.
        ConverterError: what a tensor raised while it was read.
    """
    if slabs is None:
        total = sum(job.nbytes for job in jobs)
    else:
        total = sum((slab.stop - slab.start) * jobs[slab.job].row_nbytes for slab in slabs)
    count = _Count(total, progress)

    def work(slab: Slab) -> None:
        job = jobs[slab.job]
        job.work(slab.start, slab.stop)
        if (error := stop()) is not None:
            raise error
        count.add((slab.stop - slab.start) * job.row_nbytes, job)

    tasks: Iterable[Slab] = slabs_of(jobs) if slabs is None else slabs
    workers.run(tasks, work, threads)


class _Count:
    """Adds up what all threads have done, and says so."""

    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, nbytes: int, job: Job) -> None:
        with self._lock:
            self._done += nbytes
            now = Progress(self._done, self._total, job.tensors[0].name, job.file)
            if self._progress is not None and self._progress(now) is False:
                raise Cancelled("cancelled")
