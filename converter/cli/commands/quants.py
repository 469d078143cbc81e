"""`convert quants`: quantization types, and what they cost."""

from __future__ import annotations

import argparse

from converter.cli.console import listed
from converter.cli.verbs import Outcome, Verb

VERB = Verb(
    name="quants",
    group="look at what is there",
    arguments="",
    help="quantization types, and what they cost",
    description="Quantization types.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> Outcome:
    """List them."""
    from converter.inspection.tables import quant_rows

    return listed("quants", quant_rows())
