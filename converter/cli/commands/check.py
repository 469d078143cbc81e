"""`convert check FILE`: one model by itself, before a deploy."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from converter.cli.console import Parser, ProgressBar, common_arguments, human_bytes, positive
from converter.errors import FidelityError, OutputError
from converter.text import printable

if TYPE_CHECKING:
    from converter.check.check import Checked
    from converter.findings import Finding

# Findings of one kind that people are shown; --json has all.
_SHOWN_PER_CHECK = 10


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(
        prog="convert check",
        description=(
            "Check one model: structure, scales and values, metadata, tensors and tokenizer of its architecture. "
            "Exit code 0 when it is sound, 41 when not, that of the format's error when it cannot be opened."
        ),
    )
    add = parser.add_argument
    add("source", metavar="FILE", type=Path, help="file or folder to check")
    add("--from", dest="source_type", metavar="FORMAT", help="format, where the content does not tell")
    add("--runtime", action="store_true", help="also load it with what is installed, and generate a few tokens")
    add("--strict", action="store_true", help="fail on warnings, too")
    add("--junit", type=Path, metavar="FILE", help="write the result as JUnit XML")
    add("-j", "--threads", type=positive, metavar="N", help="workers (default: all processors)")
    common_arguments(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    from converter.check.check import check

    args = parser().parse_args(argv)
    with ProgressBar(args.quiet or args.json) as progress:
        result = check(
            args.source, format=args.source_type, runtime=args.runtime, threads=args.threads, progress=progress
        )
    failed = result.failed(args.strict)
    if args.junit is not None:
        _write_junit(args.junit, result, args.strict)
    if args.json:
        print(json.dumps(result.as_dict() | {"passed": not failed}))
    else:
        _print(result, args.strict, args.quiet)
    if result.error is not None:
        return result.error.exit_code
    return FidelityError.exit_code if failed else 0


def _print(result: Checked, strict: bool, quiet: bool) -> None:
    shown: dict[tuple[str, bool], int] = {}
    for finding in result.findings:
        kind = finding.check, finding.failed
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= _SHOWN_PER_CHECK and (finding.failed or strict or not quiet):
            print(f"{_word(finding, strict)}: {printable(' '.join(str(finding).splitlines()))}")
    for (name, _), count in shown.items():
        if count > _SHOWN_PER_CHECK:
            print(f"... {count - _SHOWN_PER_CHECK} more findings of {name} (--json has all)")
    if quiet:
        return
    failed = sum(finding.failed or strict for finding in result.findings)
    counts = f"{failed} failed, {len(result.findings) - failed} warnings" if result.findings else "nothing found"
    what = "".join(f"{part}, " for part in (result.format, result.architecture) if part)
    size = f"{result.tensors} tensors, {human_bytes(result.bytes)}" if result.error is None else "not opened"
    looked = "; ".join(filter(None, (", ".join(result.steps), result.ran, f"{result.seconds:.2f} s")))
    print(printable(f"{result.source}: {'FAILED' if failed else 'ok'}: {counts}"))
    print(f"({what}{size}; looked at {looked})")


def _word(finding: Finding, strict: bool) -> str:
    return "failed" if finding.failed or strict else "warning"


def _write_junit(path: Path, result: Checked, strict: bool) -> None:
    """A test case per kind of finding, and one that passes where there is none."""
    names = sorted({finding.check for finding in result.findings}) or ["all"]
    failed = {finding.check for finding in result.findings if finding.failed or strict}
    counts = {"tests": str(len(names)), "failures": str(len(failed)), "time": f"{result.seconds:.3f}"}
    suite = ElementTree.Element("testsuite", {"name": "convert check", **counts})
    for name in names:
        case = ElementTree.SubElement(suite, "testcase", {"classname": printable(result.source), "name": name})
        texts = [printable(str(each)) for each in result.findings if each.check == name]
        if texts:
            element = ElementTree.SubElement(case, "failure" if name in failed else "system-out")
            element.text = "\n".join(texts)
    try:
        ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
