"""`convert recipe FILE`: the mixture of types of a GGUF, as a file that `--recipe` applies to another model."""

from __future__ import annotations

import argparse

from converter.cli.arguments import file_path, source_path
from converter.cli.console import print_events, print_text
from converter.cli.verbs import Outcome, Verb
from converter.text import counted, printable

VERB = Verb(
    name="recipe",
    group="convert",
    arguments="FILE",
    help="the types of a GGUF's tensors as a recipe, which `--recipe` applies to another model",
    description=(
        "Print the types that a GGUF's tensors have as rules, by role and block, or write them to a file (TOML, "
        "docs/recipes.md). `convert IN OUT.gguf --recipe FILE` gives them to another model."
    ),
    examples=(
        ("convert recipe model.gguf -o mixture.toml", "the types of its tensors as rules"),
        ("convert recipe model.gguf", "printed"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which file, and where its recipe goes."""
    add = parser.add_argument
    add("source", metavar="FILE", type=source_path, help="GGUF, or one of its shards")
    add("-o", "--out", type=file_path, metavar="FILE", help="file to write (default: print it)")
    add("-f", "--force", action="store_true", help="replace an existing output")


def run(args: argparse.Namespace) -> Outcome:
    """Read it; print it, or write it."""
    from converter.mixing.stored import stored_recipe

    found = stored_recipe(args.source, args.out, force=args.force)

    def show() -> None:
        if not args.quiet:
            print_events(found.events)
        if found.path is None:
            print_text(found.text)
        elif not args.quiet:
            print(f"{printable(str(found.path))}: {counted(len(found.mixture.rules), 'rule')}")

    return Outcome(found.as_dict, show)
