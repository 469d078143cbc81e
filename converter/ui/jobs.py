"""What takes its time: one job at a time in a thread of its own, watched by any number of pages, or by none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from converter.errors import Cancelled, ConverterError, UsageError
from converter.reports.json import failure
from converter.reports.progress import Objects
from converter.storage.slabs import ProgressCallback, until

KEPT = 20  # jobs whose results are kept
Work = Callable[[ProgressCallback | None, threading.Event], dict[str, Any]]


class Job:
    """One of them: its verb, what was asked for, how far it is, and what came of it."""

    def __init__(self, number: int, verb: str, asked: dict[str, Any]) -> None:
        self.number, self.verb, self.asked = number, verb, asked
        self.state = "running"
        self.result: dict[str, Any] = {}
        self.stop = threading.Event()
        self._last: dict[str, Any] = {}
        self._changes = 0
        self._changed = threading.Condition()

    def as_dict(self, result: bool = True) -> dict[str, Any]:
        """As JSON; the result may be large."""
        own = {"number": self.number, "verb": self.verb, "asked": self.asked, "state": self.state, "last": self._last}
        return own | ({"result": self.result} if result else {})

    def tell(self, said: dict[str, Any]) -> None:
        """Take an object of `--progress json`, for whoever watches."""
        with self._changed:
            self._last = said
            self._changes += 1
            self._changed.notify_all()

    def end(self, state: str, result: dict[str, Any]) -> None:
        """The job has come to its end."""
        with self._changed:
            self.state, self.result = state, result
            self._changes += 1
            self._changed.notify_all()

    def watch(self, patience: float) -> Iterator[dict[str, Any] | None]:
        """What is told of the job from now on, the last word at once; None after `patience` seconds of silence."""
        seen = -1
        while True:
            with self._changed:
                if self._changes <= seen:
                    self._changed.wait(patience)
                last = self._last if self._changes > seen else None
                seen, state = self._changes, self.state
            yield last
            if state != "running":
                return


class _Telling(Objects):
    shows = True
    seconds = 0.25

    def __init__(self, job: Job) -> None:
        super().__init__(job.verb, job.verb)
        self._job = job

    def tell(self, said: dict[str, Any]) -> None:
        self._job.tell(said)


class Jobs:
    """All jobs of a server."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> Job | None:
        return next((job for job in self.all() if job.state == "running"), None)

    def all(self) -> list[Job]:
        with self._lock:
            return list(self._jobs.values())

    def get(self, number: object) -> Job:
        """A job by its number.

        Raises:
            UsageError: there is none.
        """
        with self._lock:
            try:
                return self._jobs[int(str(number))]
            except (KeyError, ValueError):
                raise UsageError("no such job") from None

    def start(self, verb: str, asked: dict[str, Any], work: Work) -> Job:
        """Begin a job.

        Raises:
            UsageError: another one is at work.
        """
        with self._lock:
            if (other := next((each for each in self._jobs.values() if each.state == "running"), None)) is not None:
                raise UsageError(f"{other.verb} is at work; cancel it, or wait")
            job = Job(max(self._jobs, default=0) + 1, verb, asked)
            self._jobs[job.number] = job
            for old in list(self._jobs)[:-KEPT]:
                del self._jobs[old]
            self._thread = threading.Thread(target=_carry_out, args=(job, work), name=f"converter-{verb}")
            self._thread.start()
        return job

    def close(self) -> None:
        """Cancel what is at work, and wait until it has cleaned up."""
        if (job := self.running) is not None:
            job.stop.set()
        if self._thread is not None:
            self._thread.join()


def _carry_out(job: Job, work: Work) -> None:
    try:
        with _Telling(job) as progress:
            result = work(until(job.stop, progress), job.stop)
    except Cancelled:
        job.end("cancelled", {})
    except ConverterError as error:
        job.end("failed", failure(type(error).__name__, error.exit_code, str(error)))
    except Exception as error:  # a fault of ours ends the job, not the server
        job.end("failed", failure("InternalError", 70, f"internal error: {type(error).__name__}: {error}"))
    else:
        job.end("done", result)
