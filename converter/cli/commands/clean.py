"""`convert clean [PLACE ...]`: what runs that were killed left there, named and removed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from converter.address import STORES, is_address, parse
from converter.cli.arguments import file_name, source_name
from converter.cli.console import print_table
from converter.cli.verbs import Outcome, Verb
from converter.text import printable

if TYPE_CHECKING:
    from converter.remote.parts import Begun
    from converter.storage.leftovers import Leftover

    Found = tuple[Leftover | Begun, Callable[[], None]]  # and what removes it

VERB = Verb(
    name="clean",
    group="convert",
    arguments="[PLACE ...]",
    help="remove what killed runs left in a folder, or began to upload",
    description="Name and remove temporary files of runs that were killed; those of runs that are at work stay. "
    "Without a place: those that lie here, and what runs with addresses left in TMPDIR. Of an address on S3 or Google: "
    "abort all uploads in parts, whoever began them, to this object or below it, that got nothing for a day; on Azure "
    "they are only named, and go by themselves within a week.",
    examples=(
        ("convert clean models/ --dry-run", "what killed runs left there"),
        ("convert clean s3://bucket/models/ --dry-run", "uploads there that were not completed"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which places."""
    add = parser.add_argument
    add(
        "places",
        metavar="PLACE",
        nargs="*",
        type=_place,
        help="folder where outputs were to go, or address of a store; default: here and TMPDIR",
    )
    add("--dry-run", action="store_true", help="only name them")


def _place(text: str) -> str:
    return source_name(text) if text.lower().startswith(tuple(f"{scheme}://" for scheme in STORES)) else file_name(text)


def run(args: argparse.Namespace) -> Outcome:
    """Find and remove them."""
    here = [Path(each) for each in args.places if not is_address(each)]
    found = _uploads([each for each in args.places if is_address(each)])
    if here or not args.places:
        found = _leftovers(here) + found
    dead = [(each, remove) for each, remove in found if not each.stays]
    if not args.dry_run:
        for _, remove in dead:
            remove()
    verdict = "would be removed" if args.dry_run else "removed"

    def show() -> None:
        rows = ([each.name, f"{each.nbytes:,}", each.why if each.stays else verdict] for each, _ in found)
        if found:
            print_table(["left", "bytes", ""], ([printable(cell) for cell in row] for row in rows), right=(1,))
        if not args.quiet:
            print(f"{len(dead)} {verdict}, {sum(each.nbytes for each, _ in dead):,} bytes")

    return Outcome(lambda: {"left": [each.as_dict() for each, _ in found], "removed": not args.dry_run}, show)


def _leftovers(folders: list[Path]) -> list[Found]:
    """Of this machine; without folders, here and in the folder for temporary files."""
    from converter.storage import leftovers

    every = [each for folder in folders or [Path()] for each in leftovers.found(folder)]
    if not folders:
        every += leftovers.of_addresses()
    once = {each.path.resolve(): each for each in every}
    return [(each, partial(leftovers.clean, each)) for each in once.values()]


def _uploads(addresses: list[str]) -> list[Found]:
    """Of stores."""
    if not addresses:
        return []
    from converter.remote import multipart

    once = {(each.name, each.id): each for address in addresses for each in multipart.begun(parse(address))}
    return [(each, partial(multipart.abort, each)) for each in once.values()]
