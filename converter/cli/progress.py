"""How far a run is, on stderr: a bar, a line now and then, or JSON for programs (docs/json.md).

Everything heavy is imported inside the functions that need it, so that `convert --help` is instant.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from converter.text import human_bytes, human_seconds, printable

if TYPE_CHECKING:
    from converter.storage.slabs import Progress, ProgressCallback

SCHEMA = 1
LOG_SECONDS, JSON_SECONDS = 30.0, 0.5  # between lines of a log, and between objects for programs
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
        """The first part is done."""

    def resumed(self, now: Progress) -> None:
        """A part was there already, of a run that was stopped."""

    def update(self, now: Progress) -> None:
        """A further part is done, and the last update is long enough ago."""

    def job(self, name: str, status: str, words: str) -> None:
        """A job of several has come to its end."""

    def end(self, passed: bool) -> None:
        """All is done, or an error ended it."""


class Log(Nothing):
    """A line every half minute: short runs say nothing."""

    shows = True
    seconds = LOG_SECONDS

    def resumed(self, now: Progress) -> None:
        _say(f"{self.stage}: resumed: {now.resumed:,} bytes are there")

    def update(self, now: Progress) -> None:
        rate, left = self.pace.rate, self.pace.left
        words = [f"{now.done / max(1, now.total):.0%} of {human_bytes(now.total)}"]
        words += [f"{human_bytes(rate)}/s"] if rate is not None else []
        words += [f"{human_seconds(left)} left"] if left is not None else []
        _say(f"{self.stage}: {', '.join(words)} ({now.job or now.tensor})")

    def job(self, name: str, status: str, words: str) -> None:
        _say(words)


class Bar(Nothing):
    """A bar with rate and time left."""

    shows = True

    def __init__(self, verb: str, stage: str, forced: bool) -> None:
        super().__init__(verb, stage)
        self._forced = forced
        self._bar: Any = None
        self._task: Any = None

    def start(self, now: Progress) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        bar = Progress(
            TextColumn("{task.description:<28.28}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, force_terminal=self._forced or None),
            transient=True,
        )
        self._task = bar.add_task("", total=now.total)
        try:
            bar.start()
        except RuntimeError:  # no thread to be had for it
            return
        self._bar = bar

    def resumed(self, now: Progress) -> None:
        if self._bar is not None:
            self._bar.console.print(f"{self.stage}: resumed: {now.resumed:,} bytes are there", highlight=False)

    def update(self, now: Progress) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=now.done, description=printable(now.job or now.tensor))

    def job(self, name: str, status: str, words: str) -> None:
        _say(words)

    def end(self, passed: bool) -> None:
        if self._bar is not None:
            self._bar.stop()


class Json(Nothing):
    """An object a line."""

    shows = True
    seconds = JSON_SECONDS

    def start(self, now: Progress) -> None:
        self._say("start")

    def resumed(self, now: Progress) -> None:
        self._say("resumed")

    def update(self, now: Progress) -> None:
        self._say("progress")

    def job(self, name: str, status: str, words: str) -> None:
        self._say("job", job=name, status=status)

    def end(self, passed: bool) -> None:
        self._say("end", ok=passed)

    def _say(self, event: str, **more: object) -> None:
        import json

        now, pace = self.now, self.pace
        said = {
            "schema": SCHEMA, "event": event, "verb": self.verb, "stage": self.stage,
            "done": now.done if now else 0, "total": now.total if now else 0, "resumed": now.resumed if now else 0,
            "rate": _rounded(pace.rate), "left": _rounded(pace.left), "elapsed": _rounded(pace.elapsed),
            "tensor": now.tensor if now else "", "file": now.file if now else "", "job": now.job if now else "",
        }  # fmt: skip
        _say(json.dumps(said | more))


KINDS = ("auto", "bar", "log", "json", "none")


def showing(args: argparse.Namespace, verb: str, stage: str = "") -> Nothing:
    """What shows the progress of a verb, or of one stage of it, as its arguments want it."""
    wanted, stage = args.progress, stage or verb
    if wanted == "auto":
        wanted = "none" if args.quiet or args.json else "bar" if sys.stderr.isatty() else "log"
    if wanted == "bar":
        return Bar(verb, stage, forced=args.progress == "bar")
    kinds = {"log": Log, "json": Json, "none": Nothing}
    return kinds[wanted](verb, stage)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
