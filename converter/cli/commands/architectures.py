"""`convert architectures`: model families that can be mapped to GGUF and back."""

from __future__ import annotations

import argparse

from converter.cli.console import listed
from converter.cli.verbs import Outcome, Verb

VERB = Verb(
    name="architectures",
    group="look at what is there",
    arguments="",
    help="model families that can be mapped to GGUF and back",
    description="Model families that can be mapped to GGUF and back.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> Outcome:
    """List them."""
    from converter.inspection.tables import architecture_rows

    return listed("architectures", architecture_rows())
