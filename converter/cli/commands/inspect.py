"""`convert inspect FILE`: what is in a model file."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from converter.cli.arguments import positive, report_argument, size, source_path
from converter.cli.console import print_table
from converter.cli.verbs import Outcome, Verb
from converter.text import printable

if TYPE_CHECKING:
    from converter.inspection.describe import Description

VERB = Verb(
    name="inspect",
    group="look at what is there",
    arguments="FILE",
    help="format, metadata, tensors, memory to run and to fine-tune it",
    description="What is in a model file; reads no weights.",
    examples=(
        ("convert inspect model.gguf", "what is in a file"),
        ("convert inspect llama-folder/ --tree --memory 8GiB", "its modules with their sizes, and what fits 8 GiB"),
        ("convert inspect model.gguf --report model.html", "the same as a page"),
        ("convert inspect checkpoint.pt --key optimizer", "another part of a checkpoint"),
    ),
)

_MAX_TENSORS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to look at, and how much of it is shown."""
    add = parser.add_argument
    add("source", metavar="FILE", type=source_path)
    add("--from", dest="source_type", metavar="FORMAT", help="format, where the content does not tell")
    add("--key", metavar="PATH", help="part of a file that holds several (optimizer); `.` takes all")
    add("--all", action="store_true", help="every tensor and the full metadata values")
    add("--tree", action="store_true", help="tensors as modules, layers that are alike as one, in place of a list")
    add("--memory", type=size, metavar="SIZE", help="mark what runs, or is fine-tuned, in this (8GiB)")
    add("--rank", type=positive, metavar="N", help="of LoRA's factors, for the memory of fine-tuning (16)")
    report_argument(add, ".html .json or .txt")


def run(args: argparse.Namespace) -> Outcome:
    """Describe a file or folder."""
    from converter.inspection.describe import inspect
    from converter.reports.files import check_reports, report, write_report

    check_reports("inspect", args.report, inputs=[args.source])
    description = inspect(args.source, format=args.source_type, key=args.key, rank=args.rank)
    for path in args.report:
        write_report("inspect", path, description)

    def data() -> dict[str, Any]:
        return description.as_dict(full=args.all) | ({"tree": description.tree.as_dict()} if args.tree else {})

    return Outcome(data, lambda: _show(description, args), report=partial(report, "inspect", description))


def _show(description: Description, args: argparse.Namespace) -> None:
    from converter.reports import described

    for key, value in description.summary():
        print(f"{key:<14}{printable(str(value))}")
    for line in described.memory(description, args.memory):
        print(printable(line))
    if args.tree:
        print()
        print_table(*described.tree_table(description.tree))
        return
    if description.metadata:
        print()
        print_table(["key", "type", "value"], description.metadata_rows(args.all), full=args.all)
    print()
    shown = description.tensors if args.all else description.tensors[:_MAX_TENSORS]
    print_table(["tensor", "shape", "type", "bytes"], (tensor.row() for tensor in shown), right=(3,), full=args.all)
    if len(shown) < len(description.tensors):
        print(f"... {len(description.tensors) - len(shown)} more (--all shows them, --tree sums them up)")
