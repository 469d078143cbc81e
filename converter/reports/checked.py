"""What a check of one model shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from converter.reports import markdown as md
from converter.reports.json import as_json as write_json
from converter.reports.json import failure
from converter.reports.junit import Case, Suite
from converter.reports.junit import junit as write_junit
from converter.reports.markdown import code, plain
from converter.text import human_bytes, printable

if TYPE_CHECKING:
    from converter.check.check import Checked

SHOWN = 10  # findings of one kind on a terminal


def text(checked: Checked, quiet: bool = False) -> str:
    """For a terminal: a few findings of each kind, then the verdict; `quiet`: what failed, and nothing else."""
    lines = list(_finding_lines(checked, quiet))
    if not quiet:
        lines.append(printable(f"{checked.source}: {_verdict(checked)}: {_counts(checked)}"))
        lines.append(printable(f"({', '.join(_about(checked))})"))
    return "\n".join(lines)


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
    return f"{failed} failed, {len(checked.findings) - failed} warnings"


def _about(checked: Checked) -> Iterator[str]:
    """Format, architecture, size, and what was looked at."""
    yield from filter(None, (checked.format, checked.architecture))
    size = f"{checked.tensors} tensors, {human_bytes(checked.bytes)}" if checked.error is None else "not opened"
    looked = "; ".join(filter(None, (", ".join(checked.steps), checked.ran, f"{checked.seconds:.2f} s")))
    yield f"{size}; looked at {looked}"


def data(checked: Checked) -> dict[str, object]:
    """As JSON; with what kept the file from being opened as an error."""
    error = checked.error
    kept = failure(type(error).__name__, error.exit_code, str(error)) if error is not None else {}
    return checked.as_dict() | kept


def as_json(checked: Checked) -> str:
    """Everything that was found."""
    return write_json("check", data(checked), indent=1)


def markdown(checked: Checked) -> str:
    """For a job summary or a comment."""
    words = f"{_verdict(checked)}: {code(checked.source)}: {plain(_counts(checked))}"
    strict = [replace(finding, failed=checked.fails(finding)) for finding in checked.findings]
    return md.document((md.heading(checked.passed, words), plain(", ".join(_about(checked))), md.findings(strict)))


def junit(checked: Checked) -> str:
    """A test for every kind of finding, and one that passes where there is none."""
    cases = []
    for name in sorted({finding.check for finding in checked.findings}) or ["all"]:
        own = [finding for finding in checked.findings if finding.check == name]
        fails = any(map(checked.fails, own))
        cases.append(Case(name, own if fails else (), "" if fails else "\n".join(map(str, own))))
    return write_junit("convert check", [Suite(checked.source, cases, checked.seconds)])
