"""`convert check FILE...`: models by themselves, before a deploy."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from converter.cli.arguments import file_path, report_argument, source_path, threads_argument
from converter.cli.colour import say
from converter.cli.progress import showing
from converter.cli.verbs import Outcome, Verb
from converter.errors import FidelityError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

    from converter.check.check import Checked

VERB = Verb(
    name="check",
    group="prove what was made",
    arguments="FILE...",
    help="models by themselves, before a deploy; exit code 41 when one is not sound",
    description=(
        "Check models: structure, scales and values, metadata, tensors and tokenizer of their architecture. "
        "Exit code 0 when all are sound; else that of the first that is not: 41, or that of the error which kept it "
        "from being opened."
    ),
    examples=(
        ("convert check model.gguf", "is it sound? scales, metadata, tensors, tokenizer"),
        ("convert check *.gguf --report checks.xml", "all of them, for a CI"),
        ("convert check model.gguf --runtime --strict", "does it run, too? warnings fail"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to check, and how strictly."""
    add = parser.add_argument
    add("sources", metavar="FILE", nargs="+", type=source_path, help="files or folders to check")
    add("--from", dest="source_type", metavar="FORMAT", help="format, where the content does not tell")
    add("--runtime", action="store_true", help="also load it with what is installed, and generate a few tokens")
    add("--strict", action="store_true", help="fail on warnings, too")
    add("--junit", type=file_path, metavar="FILE", help="as --report, JUnit XML whatever the file's name")
    report_argument(add, ".json .md .xml or .txt")
    threads_argument(add)


def run(args: argparse.Namespace) -> Outcome:
    """Check models; exit code 0, or that of the first that is not sound: 41, or that of its error."""
    from converter.reports import checked
    from converter.reports.files import check_reports, report, write_report

    check_reports("check", args.report, inputs=args.sources)
    if args.junit is not None:
        check_reports("check", [args.junit], inputs=args.sources, extension=".xml")
    results = [_checked(args, source) for source in args.sources]
    for path in args.report:
        write_report("check", path, results)
    if args.junit is not None:
        write_report("check", args.junit, results, extension=".xml")

    def show() -> None:
        if text := checked.text(results, args.quiet):
            say(text)

    return Outcome(
        lambda: checked.data(results),
        show,
        next(filter(None, map(_code, results)), 0),
        partial(report, "check", results),
    )


def _checked(args: argparse.Namespace, source: Path) -> Checked:
    from converter.check.check import check, unopened

    try:
        with showing(args, VERB.name) as progress:
            return check(
                source,
                format=args.source_type,
                runtime=args.runtime,
                strict=args.strict,
                threads=args.threads,
                progress=progress,
            )
    except OutputError as error:  # the others are looked at, and reports are written
        return unopened(source, error, args.source_type, args.strict)


def _code(result: Checked) -> int:
    if result.error is not None:
        return result.error.exit_code
    return 0 if result.passed else FidelityError.exit_code
