"""`convert split FILE OUT`: shards of a model, its tensors as they are."""

from __future__ import annotations

import argparse

from converter.cli.arguments import file_name, positive, rewrite_arguments, size, source_path
from converter.cli.console import rewritten
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb

VERB = Verb(
    name="split",
    group="change what is there",
    arguments="FILE OUT",
    help="cut GGUF or safetensors into shards, byte for byte",
    description=(
        "Cut a model into shards, its tensors as they are: GGUF as llama.cpp's gguf-split does, safetensors and "
        "Hugging Face folders with an index. A set that has shards already is cut anew."
    ),
    examples=(
        ("convert split model.gguf part.gguf --max-size 2G", "part-00001-of-0000N.gguf"),
        ("convert split model.safetensors shards/ --max-tensors 100", "with their index, in a folder"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to cut, and how large a shard may be."""
    add = parser.add_argument
    add("source", metavar="FILE", type=source_path, help="GGUF or safetensors file, set of shards, or folder")
    add("target", metavar="OUT", type=file_name, help="name of the whole, or a folder (name/)")
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--max-size", type=size, metavar="SIZE", help="bytes of tensors in a shard (2G, 500M)")
    limit.add_argument("--max-tensors", type=positive, metavar="N", help="tensors in a shard")
    rewrite_arguments(add)


def run(args: argparse.Namespace) -> Outcome:
    """Write the shards."""
    from converter.housekeeping.shards import split

    with showing(args, VERB.name) as progress:
        made = split(
            args.source,
            args.target,
            max_size=args.max_size,
            max_tensors=args.max_tensors,
            force=args.force,
            threads=args.threads,
            progress=progress,
        )
    return rewritten(made, args.quiet)
