"""Tensors read in slabs of rows by several threads: what the fill engine does, for those who only look."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from converter.errors import Interrupted
from converter.storage.output import Progress, ProgressCallback, default_threads
from converter.tensors.tensor import LazyTensor

# Memory that one thread may hold for the rows it looks at; small enough to stay in a core's cache.
SLAB_NBYTES = 2 << 20


@dataclass(frozen=True)
class Job:
    """Something to do with every row of a tensor, or of several with equally many rows.

    `work(start, stop)` is called for row ranges that cover the tensors, from any thread and in any order; `row_work` is
    the memory that it needs for one row.
    """

    tensors: tuple[LazyTensor, ...]
    work: Callable[[int, int], None]
    row_work: int

    @property
    def row_nbytes(self) -> int:
        """Stored bytes of one row of all tensors."""
        return sum(tensor.info.row_nbytes for tensor in self.tensors)

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Row ranges in order; the whole at once where a tensor is computed whole anyway."""
        n_rows = self.tensors[0].info.n_rows
        whole = any(tensor.indivisible for tensor in self.tensors)
        step = max(1, n_rows if whole else SLAB_NBYTES // max(1, self.row_work))
        for start in range(0, n_rows, step):
            yield start, min(n_rows, start + step)


def run(jobs: Sequence[Job], threads: int | None = None, progress: ProgressCallback | None = None) -> None:
    """Do all jobs; the first error that one raises ends them.

    Raises:
        Interrupted: `progress` returned False.
        ConverterError: what a tensor raised while it was read.
    """
    shared = _Run(jobs, progress)
    workers = [threading.Thread(target=shared.work, daemon=True) for _ in range(threads or default_threads())]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():  # a join without end would keep Ctrl-C waiting
                worker.join(0.2)
    except BaseException as error:
        shared.fail(error)
        raise
    finally:
        for worker in workers:
            if worker.ident is not None:
                worker.join()
    if shared.error is not None:
        raise shared.error


class _Run:
    """What the workers share."""

    def __init__(self, jobs: Sequence[Job], progress: ProgressCallback | None) -> None:
        self._slabs = ((job, start, stop) for job in jobs for start, stop in job.slabs())
        self._progress = progress
        self._lock = threading.Lock()
        self._total = sum(tensor.info.nbytes for job in jobs for tensor in job.tensors)
        self._done = 0
        self.error: BaseException | None = None

    def work(self) -> None:
        while (slab := self._next()) is not None:
            job, start, stop = slab
            try:
                job.work(start, stop)
                self._report(job, stop - start)
            except BaseException as error:
                self.fail(error)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error

    def _next(self) -> tuple[Job, int, int] | None:
        with self._lock:
            return None if self.error else next(self._slabs, None)

    def _report(self, job: Job, rows: int) -> None:
        with self._lock:
            self._done += rows * job.row_nbytes
            if self._progress is None:
                return
            if self._progress(Progress(self._done, self._total, job.tensors[0].name)) is False:
                raise Interrupted("cancelled")
