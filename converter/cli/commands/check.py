"""`convert check FILE`: one model by itself, before a deploy."""

from __future__ import annotations

import argparse

from converter.cli.arguments import file_path, report_argument, source_path, threads_argument
from converter.cli.colour import say
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import FidelityError

VERB = Verb(
    name="check",
    group="prove what was made",
    arguments="FILE",
    help="one model by itself, before a deploy; exit code 41 when it is not sound",
    description=(
        "Check one model: structure, scales and values, metadata, tensors and tokenizer of its architecture. "
        "Exit code 0 when it is sound, 41 when not, that of the format's error when it cannot be opened."
    ),
    examples=(
        ("convert check model.gguf", "is it sound? scales, metadata, tensors, tokenizer"),
        ("convert check model.gguf --runtime --strict", "does it run, too? warnings fail"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to check, and how strictly."""
    add = parser.add_argument
    add("source", metavar="FILE", type=source_path, help="file or folder to check")
    add("--from", dest="source_type", metavar="FORMAT", help="format, where the content does not tell")
    add("--runtime", action="store_true", help="also load it with what is installed, and generate a few tokens")
    add("--strict", action="store_true", help="fail on warnings, too")
    add("--junit", type=file_path, metavar="FILE", help="write the result as JUnit XML, whatever the file's name")
    report_argument(add, ".json .md .xml or .txt")
    threads_argument(add)


def run(args: argparse.Namespace) -> Outcome:
    """Check one model; exit code 0, 41 where it is not sound, or that of the error that kept it from being opened."""
    from converter.check.check import check
    from converter.reports import checked
    from converter.reports.files import check_reports, write_report

    check_reports("check", args.report, inputs=[args.source])
    if args.junit is not None:
        check_reports("check", [args.junit], inputs=[args.source], extension=".xml")
    with showing(args, VERB.name) as progress:
        result = check(
            args.source,
            format=args.source_type,
            runtime=args.runtime,
            strict=args.strict,
            threads=args.threads,
            progress=progress,
        )
    for path in args.report:
        write_report("check", path, result)
    if args.junit is not None:
        write_report("check", args.junit, result, extension=".xml")

    def show() -> None:
        if text := checked.text(result, args.quiet):
            say(text)

    code = result.error.exit_code if result.error is not None else 0 if result.passed else FidelityError.exit_code
    return Outcome(lambda: checked.data(result), show, code)
