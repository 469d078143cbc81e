"""`convert prune FILE OUT`: layers and experts left out, the rest as it is."""

from __future__ import annotations

import argparse

from converter.cli.arguments import file_name, rewrite_arguments, source_path
from converter.cli.console import rewritten
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb

VERB = Verb(
    name="prune",
    group="change what is there",
    arguments="FILE OUT",
    help="leave out layers and experts of GGUF or a folder, quantized or not, byte for byte",
    description=(
        "Leave out layers, experts or both; what stays is counted anew and keeps its bytes, so nothing is quantized "
        "again. A model whose layers compute by their number (windows in a pattern, a first few without experts) keeps "
        "that right or is refused."
    ),
    examples=(
        ("convert prune model.gguf small.gguf --drop-layers 20-27", "eight layers less"),
        ("convert prune moe.gguf less.gguf --experts 0-3,7", "the same five experts in every layer"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to leave out."""
    add = parser.add_argument
    add("source", metavar="FILE", type=source_path, help="GGUF, set of shards, or Hugging Face folder")
    add("target", metavar="OUT", type=file_name, help="file to write, or a folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--layers", metavar="LIST", help="layers that stay: 0-15,20")
    which.add_argument("--drop-layers", metavar="LIST", help="layers that go")
    add("--experts", metavar="LIST", help="experts that stay in every layer: 0-3,7; or how many, the first ones: 4")
    rewrite_arguments(add)


def run(args: argparse.Namespace) -> Outcome:
    """Write what stays."""
    from converter.housekeeping.prune import prune

    with showing(args, VERB.name) as progress:
        made = prune(
            args.source,
            args.target,
            layers=args.layers,
            drop_layers=args.drop_layers,
            experts=args.experts,
            force=args.force,
            threads=args.threads,
            progress=progress,
        )
    return rewritten(made, args.quiet)
