"""`convert inspect FILE`: what is in a model file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from converter.cli.arguments import source_path
from converter.cli.console import print_table
from converter.cli.verbs import Outcome, Verb
from converter.text import printable

if TYPE_CHECKING:
    from converter.inspection.describe import Description

VERB = Verb(
    name="inspect",
    group="look at what is there",
    arguments="FILE",
    help="format, metadata, tensors, memory to run it",
    description="What is in a model file; reads no weights.",
    examples=(("convert inspect model.gguf", "what is in a file"),),
)

_MAX_TENSORS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to look at, and how much of it is shown."""
    parser.add_argument("source", metavar="FILE", type=source_path)
    parser.add_argument("--from", dest="source_type", metavar="FORMAT", help="format, where the content does not tell")
    parser.add_argument("--all", action="store_true", help="every tensor and the full metadata values")


def run(args: argparse.Namespace) -> Outcome:
    """Describe a file or folder."""
    from converter.inspection.describe import inspect

    description = inspect(args.source, format=args.source_type)
    return Outcome(lambda: description.as_dict(full=args.all), lambda: _show(description, args.all))


def _show(description: Description, full: bool) -> None:
    for key, value in description.summary():
        print(f"{key:<14}{printable(str(value))}")
    if description.metadata:
        print()
        print_table(["key", "type", "value"], description.metadata_rows(full))
    print()
    shown = description.tensors if full else description.tensors[:_MAX_TENSORS]
    print_table(["tensor", "shape", "type", "bytes"], (tensor.row() for tensor in shown), right=(3,))
    if len(shown) < len(description.tensors):
        print(f"... {len(description.tensors) - len(shown)} more (--all shows them)")
    head, rows = description.memory_table()
    if rows:
        print("\nestimated memory to run it (weights, KV cache and compute buffers)")
        print_table(head, rows, right=range(1, len(head)))
