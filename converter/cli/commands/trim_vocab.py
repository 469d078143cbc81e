"""`convert trim-vocab FILE OUT`: a vocabulary cut to some of its tokens."""

from __future__ import annotations

import argparse

from converter.cli.arguments import file_name, file_path, positive, rewrite_arguments, source_path
from converter.cli.console import rewritten
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb

VERB = Verb(
    name="trim-vocab",
    group="change what is there",
    arguments="FILE OUT",
    help="keep the tokens of a list or a text; tokenizer and embedding together",
    description=(
        "Cut a vocabulary to the tokens of a list or a text, with special and byte tokens and what they are made of. "
        "Tokenizer, embedding and output lose the same rows, byte for byte, and ids are counted anew; a text whose "
        "tokens all stay is cut into the same ones as before."
    ),
    examples=(
        ("convert trim-vocab model.gguf small.gguf --text corpus.txt", "what the text needs"),
        ("convert trim-vocab folder/ small/ --text corpus.txt --most 8000", "its 8000 most frequent tokens"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stays."""
    add = parser.add_argument
    add("source", metavar="FILE", type=source_path, help="GGUF, set of shards, or Hugging Face folder")
    add("target", metavar="OUT", type=file_name, help="file to write, or a folder")
    add(
        "--tokens",
        type=file_path,
        metavar="FILE",
        help="tokens that stay, one a line, or a JSON list of them or of ids",
    )
    add("--text", type=file_path, metavar="FILE", help="a text whose tokens stay (needs the package tokenizers)")
    add("--most", type=positive, metavar="N", help="only the N most frequent tokens of the text")
    rewrite_arguments(add)


def run(args: argparse.Namespace) -> Outcome:
    """Write what stays."""
    from converter.housekeeping.trim import trim

    with showing(args, VERB.name) as progress:
        made = trim(
            args.source,
            args.target,
            tokens=args.tokens,
            text=args.text,
            most=args.most,
            force=args.force,
            threads=args.threads,
            progress=progress,
        )
    return rewritten(made, args.quiet)
