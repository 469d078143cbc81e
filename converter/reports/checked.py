"""What a check of models shows, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from converter.reports import markdown as md
from converter.reports.json import as_json as write_json
from converter.reports.json import failure
from converter.reports.junit import Case, Suite
from converter.reports.junit import junit as write_junit
from converter.reports.markdown import code, plain
from converter.text import counted, human_bytes, printable

if TYPE_CHECKING:
    from converter.check.check import Checked

SHOWN = 10  # findings of one kind on a terminal


def text(results: Sequence[Checked], quiet: bool = False) -> str:
    """For a terminal: a few findings of each kind, then the verdict; `quiet`: what failed, and nothing else."""
    return "\n".join(line for checked in results for line in _lines(checked, quiet))


def _lines(checked: Checked, quiet: bool) -> Iterator[str]:
    yield from _finding_lines(checked, quiet)
    if not quiet:
        yield printable(f"{checked.source}: {_verdict(checked)}: {_counts(checked)}")
        yield printable(f"({', '.join(_about(checked))})")


def _finding_lines(checked: Checked, quiet: bool) -> Iterator[str]:
    shown: dict[tuple[str, bool], int] = {}
    for finding in checked.findings:
        kind = finding.check, finding.failed
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= SHOWN and (checked.fails(finding) or not quiet):
            word = "failed" if checked.fails(finding) else "warning"
            yield f"{word}: {printable(' '.join(str(finding).splitlines()))}"
    for (name, _), count in shown.items():
        if count > SHOWN:
            yield f"... {count - SHOWN} more findings of {name} (--json has all)"


def _verdict(checked: Checked) -> str:
    return "ok" if checked.passed else "FAILED"


def _counts(checked: Checked) -> str:
    if not checked.findings:
        return "nothing found"
    failed = sum(map(checked.fails, checked.findings))
    return f"{failed} failed, {counted(len(checked.findings) - failed, 'warning')}"


def _about(checked: Checked) -> Iterator[str]:
    """Format, architecture, size, and what was looked at."""
    yield from filter(None, (checked.format, checked.architecture))
    size = "not opened"
    if checked.error is None:
        size = f"{counted(checked.tensors, 'tensor')}, {human_bytes(checked.bytes)}"
    looked = "; ".join(filter(None, (", ".join(checked.steps), checked.ran, f"{checked.seconds:.2f} s")))
    yield f"{size}; looked at {looked}"


def data(results: Sequence[Checked]) -> dict[str, object]:
    """As JSON; what kept a file from being opened is an error in its result."""
    if len(results) == 1:
        return _data(results[0])
    seconds = round(sum(checked.seconds for checked in results), 3)
    passed = all(checked.passed for checked in results)
    return {"files": [_data(checked) for checked in results], "passed": passed, "seconds": seconds}


def _data(checked: Checked) -> dict[str, object]:
    error = checked.error
    kept = failure(type(error).__name__, error.exit_code, str(error)) if error is not None else {}
    return checked.as_dict() | kept


def as_json(results: Sequence[Checked]) -> str:
    """Everything that was found."""
    return write_json("check", data(results), indent=1)


def markdown(results: Sequence[Checked]) -> str:
    """For a job summary or a comment."""
    return md.document(part for checked in results for part in _markdown(checked))


def _markdown(checked: Checked) -> Iterator[str]:
    yield md.heading(checked.passed, f"{_verdict(checked)}: {code(checked.source)}: {plain(_counts(checked))}")
    yield plain(", ".join(_about(checked)))
    yield md.findings([replace(finding, failed=checked.fails(finding)) for finding in checked.findings])


def junit(results: Sequence[Checked]) -> str:
    """A suite for every file: a test for every kind of finding, and one that passes where there is none."""
    return write_junit("convert check", list(map(_suite, results)))


def _suite(checked: Checked) -> Suite:
    cases = []
    for name in sorted({finding.check for finding in checked.findings}) or ["all"]:
        own = [finding for finding in checked.findings if finding.check == name]
        fails = any(map(checked.fails, own))
        cases.append(Case(name, own if fails else (), "" if fails else "\n".join(map(str, own))))
    about = [
        ("format", checked.format),
        ("architecture", checked.architecture),
        ("looked at", ", ".join(checked.steps)),
    ]
    return Suite(checked.source, cases, checked.seconds, [(key, value) for key, value in about if value])
