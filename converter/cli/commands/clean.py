"""`convert clean [FOLDER ...]`: what runs that were killed left there, named and removed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from converter.cli.arguments import file_path
from converter.cli.console import print_table
from converter.cli.verbs import Outcome, Verb
from converter.text import printable

if TYPE_CHECKING:
    from converter.storage.leftovers import Leftover

VERB = Verb(
    name="clean",
    group="convert",
    arguments="[FOLDER ...]",
    help="remove what runs that were killed left in a folder",
    description="Name and remove temporary files of runs that were killed; those of runs that are at work stay. "
    "Without a folder: those that lie here, and what runs with addresses left in TMPDIR.",
    examples=(("convert clean models/ --dry-run", "what killed runs left there"),),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which folders."""
    add = parser.add_argument
    add(
        "folders",
        metavar="FOLDER",
        nargs="*",
        type=file_path,
        help="where outputs were to go; default: here and TMPDIR",
    )
    add("--dry-run", action="store_true", help="only name them")


def run(args: argparse.Namespace) -> Outcome:
    """Find and remove them."""
    from converter.storage import leftovers

    every = [each for folder in args.folders or [Path()] for each in leftovers.found(folder)]
    if not args.folders:
        every += leftovers.of_addresses()
    found = list({each.path.resolve(): each for each in every}.values())
    dead = [each for each in found if not each.stays]
    if not args.dry_run:
        for each in dead:
            leftovers.clean(each)
    verdict = "would be removed" if args.dry_run else "removed"

    def show() -> None:
        rows = ([str(each.path), f"{each.nbytes:,}", _why(each) if each.stays else verdict] for each in found)
        if found:
            print_table(["left", "bytes", ""], ([printable(name), *more] for name, *more in rows), right=(1,))
        if not args.quiet:
            print(f"{len(dead)} {verdict}, {sum(each.nbytes for each in dead):,} bytes")

    return Outcome(lambda: {"left": [each.as_dict() for each in found], "removed": not args.dry_run}, show)


def _why(left: Leftover) -> str:
    """Why it stays."""
    return "at work" if left.running else f"stays: no link in {printable(str(left.unlinked_from))} leads to it"
