"""`convert merge SHARD OUT`: one file of a set of shards, its tensors as they are."""

from __future__ import annotations

import argparse

from converter.cli.arguments import file_name, rewrite_arguments, source_path
from converter.cli.console import rewritten
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb

VERB = Verb(
    name="merge",
    group="change what is there",
    arguments="SHARD OUT",
    help="join the shards of GGUF or safetensors, byte for byte",
    description=(
        "Join a set of shards into one file, its tensors as they are. Any file of the set stands for all of it, as do "
        "the index and the folder of a Hugging Face model."
    ),
    examples=(
        ("convert merge part-00001-of-00003.gguf whole.gguf", "the file that was cut"),
        ("convert merge model.safetensors.index.json whole.safetensors", "by the index"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to join."""
    add = parser.add_argument
    add("source", metavar="SHARD", type=source_path, help="a shard, the index, or a folder")
    add("target", metavar="OUT", type=file_name, help="file to write, or a folder (name/)")
    rewrite_arguments(add)


def run(args: argparse.Namespace) -> Outcome:
    """Write the whole."""
    from converter.housekeeping.shards import merge

    with showing(args, VERB.name) as progress:
        made = merge(args.source, args.target, force=args.force, threads=args.threads, progress=progress)
    return rewritten(made, args.quiet)
