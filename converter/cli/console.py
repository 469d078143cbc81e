"""What the commands of the command line share: their parser, common arguments, progress, tables.

Everything heavy is imported inside the functions that need it, so that `convert --help` is instant.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from converter import __version__
from converter.errors import UsageError
from converter.text import human_bytes as human_bytes
from converter.text import printable, table

if TYPE_CHECKING:
    from converter.events import Event
    from converter.request import Request, Source
    from converter.storage.slabs import Progress


class Parser(argparse.ArgumentParser):
    """argparse with our error type, and without abbreviations: a later option must not change an old script."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n`{self.prog} --help` explains")


def size(text: str) -> int:
    """`2G`, `500MB`, `64K` or a plain number of bytes; decimal, as llama.cpp and Hugging Face count."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)B?", text.strip().upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2G, 500M or 64K")
    return int(match[1]) * {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}[match[2]]


def pattern(text: str) -> tuple[str, str]:
    """`PATTERN=TYPE` in its two parts."""
    pattern, equals, wanted = text.rpartition("=")
    if not equals or not pattern or not wanted:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=TYPE")
    return pattern, wanted


def positive(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


PRECISIONS = ("source", "f16", "bf16", "f32")


def quant_arguments(group: argparse._ArgumentGroup, via: bool = True) -> None:
    """What decides the types of the output; `via` False leaves that argument to the command."""
    add = group.add_argument
    add("-q", "--quant", metavar="TYPE", help="q4_k_m, Q8_0, f16, ... (`convert quants` lists them)")
    add(
        "--tensor-type",
        type=pattern,
        action="append",
        default=[],
        metavar="PATTERN=TYPE",
        help="type for tensors whose GGUF name matches the regular expression; may be repeated, the first match wins",
    )
    add("--output-type", metavar="TYPE", help="type of the output (lm_head) tensor")
    add("--embedding-type", metavar="TYPE", help="type of the token embedding")
    add("--leave-output", action="store_true", help="keep the output tensor in its source type")
    add("--pure", action="store_true", help="one type for all tensors, no mixture")
    add("--no-fallback", action="store_true", help="fail where a row does not fit the wanted type")
    add("--allow-requantize", action="store_true", help="encode tensors that are already quantized again")
    add("--imatrix", type=Path, metavar="FILE", help="importance matrix of llama-imatrix (GGUF or .dat)")
    add(
        "--include-weights",
        action="append",
        default=[],
        metavar="PART",
        help="use the importance matrix only for tensors with PART in their names; may be repeated",
    )
    add(
        "--exclude-weights",
        action="append",
        default=[],
        metavar="PART",
        help="do not use it for tensors with PART in their names; may be repeated",
    )
    if via:
        add(
            "--via",
            choices=PRECISIONS,
            default="source",
            help="precision of the implied intermediate (default: the source's own, nothing is rounded twice)",
        )
    add("--dtype", metavar="TYPE", help="f16, bf16 or f32 for plain outputs; decodes quantized tensors")


def model_arguments(group: argparse._ArgumentGroup) -> None:
    """What decides how the input is read."""
    add = group.add_argument
    add("--config", type=Path, metavar="DIR", help="folder to take config.json and tokenizer from")
    add("--arch", metavar="NAME", help="architecture, where config.json does not tell")
    add("--pre", metavar="NAME", help="pre-tokenizer, where the tokenizer does not tell")
    add("--name", help="general.name of the output")
    add("--key", metavar="PATH", help="part of a checkpoint that holds several (optimizer.state); `.` takes all")
    add("--no-tokenizer", action="store_true", help="write no tokenizer")
    add("--tensors-only", action="store_true", help="keep tensor names as they are, map no architecture")
    add("--from", dest="source_type", metavar="FORMAT", help="format of IN, where its content does not tell")
    add("--to", dest="target_type", metavar="FORMAT", help="format of OUT, where its extension does not tell")


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command has."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes")
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    parser.add_argument("--version", action="version", version=f"model-converter {__version__}")


def source_of(args: argparse.Namespace) -> Source:
    """The source that the arguments of a command name."""
    from converter.request import Source

    return Source(args.source, args.source_type, args.config, args.key)


def request_of(args: argparse.Namespace) -> Request:
    """The request that the arguments of a command make; what the command does not ask for has its default."""
    from converter.request import FIELDS, Request

    given = vars(args) | {"tensor_types": args.tensor_type, "format": args.target_type}
    return Request(**{name: given[name] for name in FIELDS if name in given})


# ------------------------------------------------------------------------------------------------ printing


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if isinstance(value, bool):
        return "yes" if value else "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(head: list[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Columns as wide as they need, on stdout."""
    print("\n".join(table(head, rows, right)))


class ProgressBar:
    """A progress bar with rate and time left on stderr; nothing when that is not a terminal."""

    def __init__(self, off: bool) -> None:
        self._off = off or not sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Callable[[Progress], None] | None:
        return None if self._off else self._update

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description:<28.28}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total)
        self._bar.start()

    def _update(self, progress: Progress) -> None:
        if self._bar is None:
            self._start(progress.total)
        self._bar.update(self._task, completed=progress.done, description=progress.tensor)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


_SHOWN_PER_KIND = 5


def print_events(events: Iterable[Event]) -> None:
    """Notes and warnings on stderr, a few of each kind."""
    seen: dict[str, int] = {}
    for event in events:
        seen[event.kind] = seen.get(event.kind, 0) + 1
        if seen[event.kind] <= _SHOWN_PER_KIND:
            print(f"{'warning' if event.loss else 'note'}: {printable(str(event))}", file=sys.stderr)
    for kind, count in seen.items():
        if count > _SHOWN_PER_KIND:
            print(f"note: {count - _SHOWN_PER_KIND} more {kind} events (--json lists all)", file=sys.stderr)
