"""Threads that work through a list."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from converter import workers


@pytest.mark.parametrize("threads", [1, 2, 9, None])
def test_every_task_is_done_once_and_taken_in_order(threads: int | None) -> None:
    taken, done, lock, before = [], [], threading.Lock(), threading.active_count()

    def tasks() -> Iterator[int]:
        for task in range(200):
            taken.append(task)
            yield task

    def work(task: int) -> None:
        with lock:
            done.append(task)

    workers.run(tasks(), work, threads)
    assert taken == list(range(200)) and sorted(done) == taken
    assert threads != 1 or done == taken
    assert threading.active_count() == before


def test_none_is_a_task_as_any_other() -> None:
    done: list[None] = []
    workers.run([None, None], done.append, 1)
    assert done == [None, None]


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_error_ends_all(threads: int) -> None:
    done, before = [], threading.active_count()

    def work(task: int) -> None:
        if task == 5:
            raise LookupError(task)
        done.append(task)
        time.sleep(0.001)

    with pytest.raises(LookupError, match="5"):
        workers.run(range(10_000), work, threads)
    assert len(done) < 5 + 2 * threads
    assert threading.active_count() == before


def test_tasks_that_cannot_be_had() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        workers.run((1 // task for task in (1, 0)), lambda task: None, 2)
    assert threading.active_count() == before


def test_an_interrupt_is_heard_at_once() -> None:
    done, before = [], threading.active_count()

    def work(task: int) -> None:
        done.append(task)
        if task == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        workers.run(range(100_000), work, 2)
    assert len(done) < 200
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_waits_for_the_work_that_has_begun(threads: int) -> None:
    """Its files may be closed, and its buffers given away, as soon as the call is back."""
    begun, ended = [], []

    def work(task: int) -> None:
        begun.append(task)
        if task == 2:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        ended.append(task)

    with pytest.raises(KeyboardInterrupt):
        workers.run(range(1000), work, threads)
    assert sorted(ended) == sorted(begun) and len(begun) <= 2 + threads


def test_an_interrupt_after_an_error_does_not_hide_it() -> None:
    """What failed first is told, when all are at their end."""
    failed, before = threading.Event(), threading.active_count()

    def work(task: int) -> None:
        if task == 0:
            failed.set()
            raise LookupError("first")
        failed.wait()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)

    with pytest.raises(LookupError, match="first"):
        workers.run(range(2), work, 2)
    assert threading.active_count() == before


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_threads_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """Those that there are do all, or else the caller does."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    done: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    workers.run(range(1000), done.append, 3)
    assert sorted(done) == list(range(1000))
    assert len(started) == allowed and not any(thread.is_alive() for thread in started)
    with pytest.raises(ZeroDivisionError):
        workers.run(range(10), lambda task: 1 // (task - 5), 3)


def test_workers_do_not_keep_a_program_that_wants_to_end() -> None:
    seen: list[bool] = []
    workers.run([0], lambda _: seen.append(threading.current_thread().daemon), 1)
    assert seen == [True]


@pytest.mark.parametrize(("count", "threads"), [(12, 12), (None, 1)])
def test_processors_where_the_system_does_not_say_which(
    monkeypatch: pytest.MonkeyPatch, count: int | None, threads: int
) -> None:
    """As on macOS and Windows, or nowhere."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert workers.default_threads() == threads


def test_processors_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: asked.append(process) or {3, 5, 7}, raising=False)
    assert (workers.default_threads(), asked) == (3, [0])
