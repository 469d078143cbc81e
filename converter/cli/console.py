"""What the verbs print with: tables and events.

Everything heavy is imported inside the functions that need it, so that `convert --help` is instant.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from converter.cli.colour import say
from converter.cli.verbs import Outcome
from converter.errors import OutputError
from converter.text import counted, human_bytes, printable, table

if TYPE_CHECKING:
    from pathlib import Path

    from converter.events import Event
    from converter.housekeeping.rewrite import Rewritten


def say_anything() -> None:
    """Let both streams carry any text: what a console's encoding has no sign for is written as an escape.

    A redirect on Windows (cp1252), an ASCII locale, or a file name that is no text would end a run by what it says.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def delivering() -> Iterator[None]:
    """What is printed in here reaches its readers, or nobody: a reader that has seen enough (`| head`) is no fault.

    Raises:
        OutputError: a stream takes no more, a full disk's say.
    """
    try:
        yield
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        _give_up_streams()
        if not isinstance(error, BrokenPipeError) and error.errno != errno.EINVAL:  # a broken pipe on Windows
            raise OutputError(f"the output could not be printed: {error.strerror or error}") from error


def _give_up_streams() -> None:
    """What cannot be flushed now must not be tried again, when the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def print_table(head: list[str], rows: Iterable[Sequence[str]], right: Sequence[int] = (), full: bool = False) -> None:
    """Columns on stdout, as wide as they need; as wide as the terminal where there is one, unless `full`."""
    import shutil

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() and not full else None
    print("\n".join(table(head, rows, right, width)))


def print_events(events: Iterable[Event]) -> None:
    """Notes and warnings on stderr, a few lines for each kind."""
    from converter.events import told

    for loss, line in told(events):
        say(f"{'warning' if loss else 'note'}: {printable(line)}", sys.stderr)


def write_reports(verb: str, paths: Iterable[Path], result: Any) -> None:
    """The reports of a result that an error ends with: files, and what goes to stdout."""
    from converter.reports.files import is_stdout, kind_of, report, write_report

    for path in paths:
        if is_stdout(path):
            print(report(verb, result, kind_of(path)), end="")
        else:
            write_report(verb, path, result)


def warn(warnings: Iterable[str]) -> None:
    """Warnings on stderr."""
    for each in warnings:
        say(f"warning: {printable(each)}", sys.stderr)


def rewritten(made: Rewritten, quiet: bool) -> Outcome:
    """The outcome of a verb that writes a checkpoint again: its files, a line each."""

    def show() -> None:
        if quiet:
            return
        print_events(made.events)
        for path, size in made.files:
            print(f"{printable(str(path))}: {human_bytes(size)}")
        print(f"{counted(made.tensors, 'tensor')}, {human_bytes(made.nbytes)}, {made.seconds:.2f} s")

    return Outcome(made.as_dict, show)


def listed(verb: str, rows: Sequence[Mapping[str, Any]]) -> Outcome:
    """The outcome of a verb that lists something: rows that all have the same keys."""

    def show() -> None:
        print_table(list(rows[0]), ([_cell(value) for value in row.values()] for row in rows))

    return Outcome(data=lambda: {verb: rows}, show=show)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_text(text: str) -> None:
    """To a file or a program as it would be written, whatever the console's encoding."""
    if sys.stdout.isatty() or not isinstance(sys.stdout, TextIOWrapper):
        print(text, end="")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
