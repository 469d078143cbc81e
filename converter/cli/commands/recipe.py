"""`convert recipe IN`: which tensors get which type, as a file that `--recipe` applies to another model."""

from __future__ import annotations

import argparse

from converter.cli.arguments import (
    file_path,
    found_mixture,
    goal_arguments,
    model_arguments,
    quant_arguments,
    request_of,
    source_path,
    threads_argument,
)
from converter.cli.commands.convert import mixture_data, show_mixture
from converter.cli.console import print_events, print_text
from converter.cli.verbs import Outcome, Verb
from converter.errors import UsageError
from converter.text import counted, printable

VERB = Verb(
    name="recipe",
    group="convert",
    arguments="IN",
    help="types tensor by tensor as a file: of a GGUF, or made to a size",
    description=(
        "Write which tensors get which type as rules by role and block (TOML, docs/recipes.md): the types that a GGUF "
        "has, or those with which a model of a given size loses least. `convert IN OUT.gguf --recipe FILE` applies it."
    ),
    examples=(
        ("convert recipe model.gguf -o mixture.toml", "the types of its tensors as rules"),
        ("convert recipe model.gguf", "printed"),
        ("convert recipe folder/ --target-size 4.6GB -o mixture.toml", "measured: what loses least in this size"),
        ("convert recipe folder/ --target-bpw 4.5 --text calibration.txt", "by a text of yours"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, how large it may be, and where the recipe goes."""
    add = parser.add_argument
    add("source", metavar="IN", type=source_path, help="GGUF whose types are read; with a size any model")
    add("-o", "--out", type=file_path, metavar="FILE", help="file to write (default: print it)")
    add("-f", "--force", action="store_true", help="replace an existing output")
    threads_argument(add)
    goal_arguments(parser.add_argument_group("a mixture of types to size"))
    quant_arguments(parser.add_argument_group("quantization, where it is measured"), quant=False)
    model_arguments(parser.add_argument_group("model"))


def run(args: argparse.Namespace) -> Outcome:
    """Read it or measure it; print it, or write it."""
    from converter.mixing.stored import saved, stored_recipe
    from converter.request import Request, Source

    searched = found_mixture(args, VERB.name, args.out)
    if searched is not None:
        found = saved(searched.mixture, args.out, Source(args.source), force=args.force)
    elif request_of(args) != Request():
        raise UsageError("options of quantization are for recipes that are measured: say --target-size SIZE")
    else:
        found = stored_recipe(Source(args.source, args.source_type), args.out, force=args.force)

    def show() -> None:
        if not args.quiet:
            print_events(found.events)
        if found.path is None:
            print_text(found.text)
        elif not args.quiet:
            if searched is not None:
                show_mixture(searched)
            print(f"{printable(str(found.path))}: {counted(len(found.mixture.rules), 'rule')}")

    return Outcome(lambda: found.as_dict() | mixture_data(searched), show)
