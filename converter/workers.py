"""Threads that work through a list in order: the first error ends all of them, and Ctrl-C is heard."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

Task = TypeVar("Task")


def default_threads() -> int:
    """The processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def run(tasks: Iterable[Task], work: Callable[[Task], object], threads: int | None = None) -> None:
    """Call `work` once for each of `tasks`, which are taken in order, on `threads` threads (None: `default_threads`).

    Raises:
        Whatever the first call to fail raised; no task is taken after it, and all threads are at their end.
    """
    queue = _Queue(tasks, work)
    workers = [_Worker(queue.work) for _ in range(threads or default_threads())]
    try:
        started = _started(workers)
        if not started:
            queue.work()
        for worker in started:
            while not worker.ended.wait(0.2):  # a wait without end would keep Ctrl-C waiting on Windows
                pass
    except BaseException as error:  # Ctrl-C
        queue.fail(error)
    for worker in workers:
        if worker.ident is not None:
            worker.ended.wait()
            worker.join()
    if queue.error is not None:
        raise queue.error


def _started(workers: Iterable[_Worker]) -> list[_Worker]:
    """Those that the system has a thread for."""
    started: list[_Worker] = []
    with suppress(RuntimeError, MemoryError):
        for worker in workers:
            worker.start()
            started.append(worker)
    return started


class _Worker(threading.Thread):
    """A thread that says when its work has ended.

    `join` cannot be asked: before Python 3.13, one that Ctrl-C interrupts takes the thread for ended from then on.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self._work()
        finally:
            self.ended.set()


class _Queue(Generic[Task]):
    """What the threads share."""

    def __init__(self, tasks: Iterable[Task], work: Callable[[Task], object]) -> None:
        self._tasks = ((task,) for task in tasks)
        self._work = work
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    def work(self) -> None:
        try:
            while (taken := self._next()) is not None:
                self._work(*taken)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error

    def _next(self) -> tuple[Task] | None:
        with self._lock:
            return None if self.error else next(self._tasks, None)
