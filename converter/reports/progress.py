"""How far a run is, as values: its pace, and what a program is told of it (docs/json.md)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.storage.slabs import Progress, ProgressCallback

SCHEMA = 1
JSON_SECONDS = 0.5  # between objects for programs
WINDOW = 30.0  # seconds that a rate is of


class Pace:
    """Bytes a second over the last while. What a stopped run had done took no time of this one and does not count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self.started = clock, clock()
        self._seen = deque([(self.started, 0)])
        self._now: Progress | None = None

    def add(self, now: Progress) -> None:
        """Take in how far the run is."""
        at, self._now = self._clock(), now
        while len(self._seen) > 1 and self._seen[1][0] <= at - WINDOW:
            self._seen.popleft()
        if at - self._seen[-1][0] >= WINDOW / 300 or len(self._seen) == 1:
            self._seen.append((at, now.done - now.resumed))

    @property
    def elapsed(self) -> float:
        return self._clock() - self.started

    @property
    def rate(self) -> float | None:
        """None where nothing was done yet."""
        (first, before), at = self._seen[0], self._clock()
        done = 0 if self._now is None else self._now.done - self._now.resumed - before
        return done / (at - first) if done > 0 and at > first else None

    @property
    def left(self) -> float | None:
        """Seconds, at that rate."""
        rate, now = self.rate, self._now
        return (now.total - now.done) / rate if rate is not None and now is not None else None


class Nothing:
    """Shows nothing; the base of what shows something.

    `with showing(args) as progress`: what is entered is the callback, or None.
    """

    shows = False
    seconds = 0.0  # between two updates

    def __init__(self, verb: str, stage: str) -> None:
        self.verb, self.stage, self.pace = verb, stage, Pace()
        self.now: Progress | None = None
        self._resumed, self._next = 0, 0.0

    def __enter__(self) -> ProgressCallback | None:
        return self._take if self.shows else None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(kind is None)

    def _take(self, now: Progress) -> None:
        before, self.now = self.now, now
        if before is not None and before.unit != now.unit:  # bytes were converted, now tokens are read
            before, self.pace = None, Pace()
        self.pace.add(now)
        if before is None:
            self._next = self.pace.started + self.seconds
            self.start(now)
        still = before is not None and before.resumed == now.resumed
        if now.resumed > self._resumed and (still or now.done == now.total):
            self._resumed = now.resumed
            self.resumed(now)
        if (at := self.pace.started + self.pace.elapsed) >= self._next:
            self._next = at + self.seconds
            self.update(now)

    def start(self, now: Progress) -> None:
        """The first part is done, of all or of what is counted in another unit."""

    def resumed(self, now: Progress) -> None:
        """A part was there already, of a run that was stopped."""

    def update(self, now: Progress) -> None:
        """A further part is done, and the last update is long enough ago."""

    def job(self, name: str, status: str, words: str) -> None:
        """A job of several has come to its end."""

    def end(self, passed: bool) -> None:
        """All is done, or an error ended it."""


class Objects(Nothing):
    """An object for every event; `tell` is what becomes of it."""

    shows = True
    seconds = JSON_SECONDS

    def start(self, now: Progress) -> None:
        self._told("start")

    def resumed(self, now: Progress) -> None:
        self._told("resumed")

    def update(self, now: Progress) -> None:
        self._told("progress")

    def job(self, name: str, status: str, words: str) -> None:
        self._told("job", job=name, status=status)

    def end(self, passed: bool) -> None:
        self._told("end", ok=passed)

    def _told(self, event: str, **more: object) -> None:
        now, pace = self.now, self.pace
        said = {
            "schema": SCHEMA, "event": event, "verb": self.verb, "stage": self.stage,
            "done": now.done if now else 0, "total": now.total if now else 0, "resumed": now.resumed if now else 0,
            "unit": (now and now.unit) or "bytes",
            "rate": _rounded(pace.rate), "left": _rounded(pace.left), "elapsed": _rounded(pace.elapsed),
            "tensor": now.tensor if now else "", "file": now.file if now else "", "job": now.job if now else "",
        }  # fmt: skip
        self.tell(said | more)

    def tell(self, said: dict[str, Any]) -> None:
        """Take one object; a subclass says where it goes."""
        raise NotImplementedError


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
