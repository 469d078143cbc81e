"""`convert completion SHELL`: a completion script, made of the parsers of all verbs."""

from __future__ import annotations

import argparse

from converter.cli.verbs import Outcome, Verb

VERB = Verb(
    name="completion",
    group="set up the shell",
    arguments="SHELL",
    help="completion script for bash, zsh, fish or PowerShell",
    description=(
        'Print a completion script. bash and zsh: eval "$(convert completion bash)"; fish: convert completion fish | '
        "source; PowerShell: convert completion powershell | Out-String | Invoke-Expression"
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    from converter.cli.shells import SHELLS

    parser.add_argument("shell", choices=tuple(SHELLS))


def run(args: argparse.Namespace) -> Outcome:
    """Make the script."""
    from converter.cli.completion import commands
    from converter.cli.shells import script

    made = script(args.shell, commands())
    return Outcome(lambda: {"shell": args.shell, "script": made}, lambda: print(made))
