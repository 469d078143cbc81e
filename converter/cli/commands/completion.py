"""`convert completion SHELL`: a completion script, made of the parsers of all verbs."""

from __future__ import annotations

import argparse

from converter.cli import verbs
from converter.cli.verbs import Outcome, Verb

VERB = Verb(
    name="completion",
    group="set up the shell",
    arguments="SHELL",
    help="completion script for bash, zsh or fish",
    description='Print a completion script, e.g.: eval "$(convert completion bash)"',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    from converter.cli.completion import SHELLS

    parser.add_argument("shell", choices=tuple(SHELLS))


def run(args: argparse.Namespace) -> Outcome:
    """Make the script."""
    from converter.cli.completion import script

    parsers = {verb.name: verbs.parser(verb.name) for verb in verbs.all_verbs()}
    made = script(args.shell, parsers.pop(verbs.DEFAULT), parsers)
    return Outcome(lambda: {"shell": args.shell, "script": made}, lambda: print(made))
