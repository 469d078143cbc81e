"""`convert formats`: formats that can be read and written."""

from __future__ import annotations

import argparse

from converter.cli.console import listed
from converter.cli.verbs import Outcome, Verb

VERB = Verb(
    name="formats",
    group="look at what is there",
    arguments="",
    help="formats that can be read and written",
    description="Formats that can be read and written.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> Outcome:
    """List them."""
    from converter.inspection.tables import format_rows

    return listed("formats", format_rows())
