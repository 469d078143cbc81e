"""`convert diff A B`: what differs between two models."""

from __future__ import annotations

import argparse
from functools import partial

from converter.cli.arguments import report_argument, source_path, threads_argument
from converter.cli.colour import say
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import UsageError

VERB = Verb(
    name="diff",
    group="prove what was made",
    arguments="A B",
    help="metadata, tensors and values that differ; exit code 1 when something does",
    description=(
        "Show what differs between two models of any formats: metadata, small files, tensors and their values. "
        "Exit code 0 when nothing does, 1 when something does, others as for every command."
    ),
    examples=(
        ("convert diff llama-folder/ llama.gguf", "metadata, tensors and values that differ"),
        ("convert diff before.gguf after.gguf --stat", "one line per group of keys or tensors"),
    ),
    exit_codes=((1, "the two differ"),),
)

STYLES = {"+": "green", "-": "red", "~": "yellow", "@": "cyan"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Both models, and how they are compared."""
    add = parser.add_argument
    add("before", metavar="A", type=source_path, help="file or folder")
    add("after", metavar="B", type=source_path, help="file or folder to compare with it")
    add("--from", dest="before_type", metavar="FORMAT", help="format of A, where its content does not tell")
    add("--to", dest="after_type", metavar="FORMAT", help="format of B, where its content does not tell")
    add("--key", action="append", default=[], metavar="PATH",
        help="part of A, where it holds several (optimizer; `.` for all); a second one is for B")  # fmt: skip
    add("--metadata-only", action="store_true", help="leave the tensors out")
    add("--stat", action="store_true", help="one line per group of keys or tensors")
    add("--raw", action="store_true", help="compare names as they are, map no architecture")
    report_argument(add, ".json .md or .txt")
    threads_argument(add)


def run(args: argparse.Namespace) -> Outcome:
    """Compare the two; exit code 0 where they are equal, 1 where not."""
    from converter.diff import diff
    from converter.reports import differences
    from converter.reports.files import check_reports, report, write_report

    if len(args.key) > 2:
        raise UsageError("--key: one for A, and one for B")
    check_reports("diff", args.report, inputs=[args.before, args.after])
    with showing(args, VERB.name) as progress:
        found = diff(
            args.before,
            args.after,
            before_type=args.before_type,
            after_type=args.after_type,
            before_key=args.key[0] if args.key else None,
            after_key=args.key[1] if len(args.key) > 1 else None,
            raw=args.raw,
            metadata_only=args.metadata_only,
            threads=args.threads,
            progress=progress,
        )
    for path in args.report:
        write_report("diff", path, found)

    def show() -> None:
        for line in differences.lines(found, args.stat) if not args.quiet else ():
            say(line, style=STYLES.get(line[:1], "default"))

    return Outcome(found.as_dict, show, 0 if found.equal else 1, report=partial(report, "diff", found))
