"""`convert diff A B`: what differs between two models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converter.cli.console import Parser, ProgressBar, common_arguments, positive
from converter.text import printable

if TYPE_CHECKING:
    from converter.diff import Change, Differences

SIGNS = {"added": "+", "removed": "-", "changed": "~"}
STYLES = {"+": "green", "-": "red", "~": "yellow", "@": "cyan"}


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(
        prog="convert diff",
        description=(
            "Show what differs between two models of any formats: metadata, small files, tensors and their values. "
            "Exit code 0 when nothing does, 1 when something does, others as for every command."
        ),
    )
    add = parser.add_argument
    add("before", metavar="A", type=Path, help="file or folder")
    add("after", metavar="B", type=Path, help="file or folder to compare with it")
    add("--from", dest="before_type", metavar="FORMAT", help="format of A, where its content does not tell")
    add("--to", dest="after_type", metavar="FORMAT", help="format of B, where its content does not tell")
    add("--metadata-only", action="store_true", help="leave the tensors out")
    add("--stat", action="store_true", help="one line per group of keys or tensors")
    add("--raw", action="store_true", help="compare names as they are, map no architecture")
    add("-j", "--threads", type=positive, metavar="N", help="workers (default: all processors)")
    common_arguments(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    from converter.diff import diff

    args = parser().parse_args(argv)
    with ProgressBar(args.quiet or args.json) as progress:
        found = diff(
            args.before,
            args.after,
            before_type=args.before_type,
            after_type=args.after_type,
            raw=args.raw,
            metadata_only=args.metadata_only,
            threads=args.threads,
            progress=progress,
        )
    if args.json:
        print(json.dumps(found.as_dict()))
    elif not args.quiet:
        show = _painter()
        for line in _lines(found, args.stat):
            show(printable(line))
    return 0 if found.equal else 1


def _lines(found: Differences, stat: bool) -> Iterator[str]:
    if found.equal:
        return
    yield f"--- {found.before}"
    yield f"+++ {found.after}"
    for group, compared in found.compared.items():
        changes = [change for change in found.changes if change.group == group]
        if changes:
            mapped = " (Hugging Face names as in GGUF)" if found.mapped and group == "tensors" else ""
            yield f"@@ {group}: {len(changes)} of {compared} differ{mapped} @@"
            yield from _statistics(changes) if stat else (f"{SIGNS[each.kind]} {each}" for each in changes)


def _statistics(changes: list[Change]) -> Iterator[str]:
    from converter.diff import family, grouped

    for name, members in grouped(changes, family).items():
        kinds = grouped(members, lambda change: change.kind)
        counts = ", ".join(f"{len(each)} {kind}" for kind, each in kinds.items())
        worst = max((change.facts.get("max_abs", 0.0) for change in members), default=0.0)
        sign = SIGNS[next(iter(kinds))] if len(kinds) == 1 else "~"
        yield f"{sign} {name}: {counts}" + (f", max abs {worst:.4g}" if worst else "")


def _painter() -> Callable[[str], None]:
    """Prints a line, in the colour of its first character where that is a terminal."""
    if not sys.stdout.isatty():
        return print
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    return lambda line: console.print(Text(line, style=STYLES.get(line[:1], "")))
