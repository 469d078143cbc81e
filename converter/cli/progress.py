"""How far a run is, on stderr: a bar, a line now and then, or JSON for programs (docs/json.md).

Everything heavy is imported inside the functions that need it, so that `convert --help` is instant.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from converter.reports.progress import Nothing, Objects
from converter.text import human_bytes, human_seconds, printable

if TYPE_CHECKING:
    from converter.storage.slabs import Progress

LOG_SECONDS = 30.0  # between lines of a log


class Log(Nothing):
    """A line every half minute: short runs say nothing."""

    shows = True
    seconds = LOG_SECONDS

    def resumed(self, now: Progress) -> None:
        _say(f"{self.stage}: resumed: {now.resumed:,} bytes are there")

    def update(self, now: Progress) -> None:
        rate, left = self.pace.rate, self.pace.left
        words = [f"{now.done / max(1, now.total):.0%} of {_amount(now, now.total)}"]
        words += [f"{_amount(now, rate)}/s"] if rate is not None else []
        words += [f"{human_seconds(left)} left"] if left is not None else []
        _say(f"{self.stage}: {', '.join(words)} ({now.job or now.tensor})")

    def job(self, name: str, status: str, words: str) -> None:
        _say(words)


WIDE = 76  # columns that the whole bar takes


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
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self.end(True)
        console = Console(stderr=True, force_terminal=self._forced or None)
        columns: list[ProgressColumn] = [TextColumn("{task.description:<28.28}", markup=False), BarColumn()]
        amounts: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
        columns += amounts if now.unit else [DownloadColumn(), TransferSpeedColumn()]
        columns.append(TimeRemainingColumn())
        if console.width < WIDE:  # a line that does not fit would be wrapped, and left behind
            columns = [TaskProgressColumn(), BarColumn(max(4, console.width - 16)), TimeRemainingColumn(compact=True)]
        bar = Progress(*columns, console=console, transient=True)
        self._task = bar.add_task("", total=now.total, rate="")
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
            rate = f"{_amount(now, self.pace.rate)}/s" if self.pace.rate is not None else ""
            self._bar.update(self._task, completed=now.done, description=printable(now.job or now.tensor), rate=rate)

    def job(self, name: str, status: str, words: str) -> None:
        _say(words)

    def end(self, passed: bool) -> None:
        if self._bar is not None:
            self._bar.stop()


class Json(Objects):
    """An object a line."""

    def tell(self, said: dict[str, Any]) -> None:
        import json

        _say(json.dumps(said))


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


def _amount(now: Progress, count: float) -> str:
    """So many bytes, or what is counted instead."""
    return f"{count:,.0f} {now.unit}" if now.unit else human_bytes(count)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
