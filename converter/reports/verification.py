"""Reports of a verification: text for a terminal, Markdown for a job summary, JUnit XML, JSON.

HTML is in html.py; writing.py makes files of them.

All of them show names out of files that may be hostile: control characters are spelled out, and each writer escapes
what its format gives a meaning to.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as xml

from converter.findings import CHECKS, Finding
from converter.runtimes.behaviour import Behaviour
from converter.text import human_bytes, printable, table
from converter.verify.results import Fidelity, Verification, sqnr_db

WORST = 10  # tensors in a report that does not list all
SHOWN = 20  # findings of one check, where they are not all listed


# ------------------------------------------------------------------------------------------------ what is shown


def decibels(value: float | None) -> str:
    """23.45; an infinite ratio is an exact tensor."""
    return "" if value is None else "exact" if value == math.inf else f"{value:.2f}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g} %"


@dataclass(frozen=True)
class Column:
    """One column of the table of tensors: the value it sorts by, and its text."""

    title: str
    value: Callable[[Fidelity], Any]
    show: Callable[[Any], str] = str
    #: what the number is, for those who ask
    help: str = ""

    def text(self, tensor: Fidelity) -> str:
        return self.show(self.value(tensor))


def _expected(tensor: Fidelity) -> float | None:
    return None if tensor.bound is None else sqnr_db(tensor.bound)


def _block(tensor: Fidelity) -> str:
    return f"row {tensor.worst.row}, column {tensor.worst.column}" if tensor.worst else ""


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


_MARKS = {None: "", True: "yes", False: "no"}
NAME = Column("tensor", lambda tensor: tensor.name)
COLUMNS = (
    NAME,
    Column("type", lambda tensor: tensor.type),
    Column("from", lambda tensor: tensor.reference_type, help="type in the source"),
    Column("SQNR dB", lambda tensor: tensor.sqnr_db, decibels, "signal over quantization noise"),
    Column("expected", _expected, decibels, "SQNR that a correct encoder reaches on this tensor, at least"),
    Column("max abs", lambda tensor: tensor.max_abs, number, "largest absolute error"),
    Column("p99.9", lambda tensor: tensor.p999, number, "absolute error that one value in a thousand exceeds"),
    Column("cosine", lambda tensor: tensor.cosine, lambda value: f"{value:.6f}"),
    Column("worst block", _block),
)
MORE_COLUMNS = (
    Column("shape", lambda tensor: tensor.shape, _shape),
    Column("bytes", lambda tensor: tensor.bytes, "{:,}".format),
    Column("RMSE", lambda tensor: tensor.rmse, number, "root of the mean squared error"),
    Column("max rel", lambda tensor: tensor.max_rel, number, "largest error relative to its value"),
    Column("reproduced", lambda tensor: _MARKS[tensor.reproduced], help="encoding the source again gives these bytes"),
)


def verdict(verification: Verification) -> str:
    return "PASSED" if verification.passed else "FAILED"


def facts(verification: Verification) -> list[tuple[str, str]]:
    """The model as a whole: label and text."""
    of = verification.summary()
    rows = [
        ("tensors", f"{of['tensors']}: {of['exact']} exact, {of['reproduced']} reproduced, {of['failed']} failed"),
        ("size", f"{human_bytes(of['bytes'])}, {of['bits_per_weight']:.2f} bits per weight"),
        ("SQNR", f"{decibels(of['sqnr_db'])}{'' if of['sqnr_db'] == math.inf else ' dB'}"),
        ("largest error", number(of["max_abs"])),
        ("worst tensor", of["worst_tensor"] if of["exact"] < of["tensors"] else "none"),
    ]
    behaviour = behaviour_facts(verification.behaviour) if verification.behaviour else []
    return [*rows, *behaviour, ("time", f"{verification.seconds:.2f} s")]


def behaviour_facts(behaviour: Behaviour) -> list[tuple[str, str]]:
    """What the runtimes did: label and text, without what was not measured."""
    perplexity = f"{number(behaviour.reference_ppl)} to {number(behaviour.candidate_ppl)}"
    rows = [
        ("runtimes", f"{behaviour.reference_runtime} and {behaviour.candidate_runtime}, {behaviour.tokens} tokens"),
        ("mean KL", behaviour.mean_kl is not None and f"{number(behaviour.mean_kl)} nats"),
        ("largest KL", behaviour.max_kl is not None and f"{number(behaviour.max_kl)} nats"),
        ("same top token", percent(behaviour.top1)),
        ("largest logit error", number(behaviour.max_abs)),
        ("perplexity", behaviour.ppl_increase is not None and f"{perplexity} ({behaviour.ppl_increase:+.2%})"),
        ("smallest cosine", number(behaviour.cosine)),
    ]
    return [(label, text) for label, text in rows if text]


def by_type(verification: Verification) -> list[tuple[str, int, int, float, float, float]]:
    """Per stored type, the largest first: name, tensors, bytes, bits per weight, SQNR of all and of the worst (dB)."""
    rows = []
    for name in {tensor.type for tensor in verification.tensors}:
        own = [tensor for tensor in verification.tensors if tensor.type == name]
        part = Verification("", "", tuple(own), ()).summary()
        worst = min(tensor.sqnr_db for tensor in own)
        rows.append((name, len(own), part["bytes"], part["bits_per_weight"], part["sqnr_db"], worst))
    return sorted(rows, key=lambda row: (-row[2], row[0]))


TYPE_HEAD = ("type", "tensors", "size", "bits per weight", "SQNR dB", "worst dB")


def type_rows(verification: Verification) -> list[list[str]]:
    """`by_type` as texts, under TYPE_HEAD."""
    return [
        [name, str(count), human_bytes(nbytes), f"{bits:.3f}", decibels(whole), decibels(worst)]
        for name, count, nbytes, bits, whole, worst in by_type(verification)
    ]


def failures_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: not finding.failed)


def bounded(findings: Iterable[Finding]) -> Iterator[Finding | str]:
    """Findings, failures first, at most SHOWN of each check; then a line for each check that has more."""
    seen: dict[str, int] = {}
    for finding in failures_first(findings):
        seen[finding.check] = seen.get(finding.check, 0) + 1
        if seen[finding.check] <= SHOWN:
            yield finding
    for check, count in seen.items():
        if count > SHOWN:
            yield f"{count - SHOWN} more of {check}; the JSON report lists all"


# ------------------------------------------------------------------------------------------------ text


def text(verification: Verification) -> str:
    """For a terminal: findings, the worst tensors, the verdict last, where the eye is."""
    parts: list[list[str]] = [list(_finding_lines(verification.findings))]
    inexact = [tensor for tensor in verification.worst_first if not tensor.exact]
    if inexact:
        rows = [[column.text(tensor) for column in COLUMNS] for tensor in inexact[:WORST]]
        parts.append(table([column.title for column in COLUMNS], rows, right=range(3, 8)))
    if verification.tensors:
        parts.append(table(TYPE_HEAD, type_rows(verification), right=range(1, 6)))
    parts.append([f"{label:<20}{printable(value)}" for label, value in facts(verification)])
    parts.append([printable(f"{verdict(verification)}: {verification.target} against {verification.source}")])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _finding_lines(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in bounded(findings):
        if isinstance(finding, str):
            yield f"        {finding}"
        else:
            yield printable(f"{'failed' if finding.failed else 'note':<8}{finding.check:<12}{finding}")


def as_json(verification: Verification) -> str:
    """The report of schema `SCHEMA` (docs/verify.md)."""
    return json.dumps(verification.as_dict(), indent=1, allow_nan=False)


# ------------------------------------------------------------------------------------------------ Markdown


def markdown(verification: Verification) -> str:
    """For a job summary or a comment: at most WORST tensors and SHOWN findings of each check."""
    inexact = [tensor for tensor in verification.worst_first if not tensor.exact][:WORST]
    worst = [[_code(tensor.name), *(_plain(column.text(tensor)) for column in COLUMNS[1:])] for tensor in inexact]
    sections = [
        f"## {'✅' if verification.passed else '❌'} {verdict(verification)}: "
        f"{_code(verification.target)} against {_code(verification.source)}",
        _markdown_table(("", ""), [[label, _fact(label, value)] for label, value in facts(verification)]),
        _section("Findings", ("", "check", "subject", "what"), _markdown_findings(verification.findings)),
        _section("Worst tensors", [column.title for column in COLUMNS], worst),
        _section("Types", TYPE_HEAD, type_rows(verification)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _fact(label: str, value: str) -> str:
    return _code(value) if label == "worst tensor" else _plain(value)


def _markdown_findings(findings: Iterable[Finding]) -> list[list[str]]:
    rows = []
    for finding in bounded(findings):
        if isinstance(finding, str):
            rows.append(["", "", "", _plain(finding)])
        else:
            hint = f" ({_plain(finding.hint)})" if finding.hint else ""
            mark = "❌" if finding.failed else "ℹ️"  # noqa: RUF001
            rows.append([mark, finding.check, _code(finding.subject), _plain(finding.message) + hint])
    return rows


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"### {title}\n\n{_markdown_table(head, rows)}" if rows else ""


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_HARMLESS = re.compile(r"[\w ./:+-]+", re.ASCII)


def _plain(value: str) -> str:
    """Text in which nothing is Markdown or HTML: what could be is a character reference."""
    return re.sub(
        r"[^\w\s.,;:=+%/()'-]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.",
        lambda found: f"&#{ord(found[0])};",
        printable(value),
    )


def _code(value: str) -> str:
    """A name as code."""
    return f"`{value}`" if _HARMLESS.fullmatch(value) and value.strip() else f"<code>{_plain(value)}</code>"


# ------------------------------------------------------------------------------------------------ JUnit


def junit(verification: Verification) -> str:
    """JUnit XML, as CI systems read it: a test per check and one per tensor, failed where a finding failed."""
    failed = [finding for finding in verification.findings if finding.failed]
    names = {tensor.name for tensor in verification.tensors}
    checks = {name: [finding for finding in failed if finding.check == name] for name in CHECKS}
    tensors: dict[str, list[Finding]] = {tensor.name: [] for tensor in verification.tensors}
    for finding in failed:
        if finding.subject in names:
            tensors[finding.subject].append(finding)
    root = xml.Element("testsuites", {"name": "convert verify", **_counts((checks, tensors), verification.seconds)})
    _properties(_suite(root, "checks", checks, CHECKS.get, verification.seconds), verification)
    details = {tensor.name: _details(tensor) for tensor in verification.tensors}
    _suite(root, "tensors", tensors, details.get, 0.0)
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _suite(
    root: xml.Element, name: str, cases: Mapping[str, list[Finding]], about: Callable[[str], str | None], seconds: float
) -> xml.Element:
    suite = xml.SubElement(root, "testsuite", {"name": name, **_counts((cases,), seconds), "skipped": "0"})
    for subject, findings in cases.items():
        case = xml.SubElement(suite, "testcase", {"classname": name, "name": printable(subject), "time": "0"})
        if findings:
            kind = findings[0].check
            failure = xml.SubElement(case, "failure", {"type": kind, "message": printable(str(findings[0]))})
            failure.text = "\n".join(printable(str(finding)) for finding in findings)
        xml.SubElement(case, "system-out").text = printable(about(subject) or "")
    return suite


def _counts(suites: Iterable[Mapping[str, list[Finding]]], seconds: float) -> dict[str, str]:
    cases = [findings for suite in suites for findings in suite.values()]
    failures = sum(1 for findings in cases if findings)
    return {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "time": f"{seconds:.3f}"}


def _properties(suite: xml.Element, verification: Verification) -> None:
    properties = xml.Element("properties")
    suite.insert(0, properties)
    for name, value in (("source", verification.source), ("target", verification.target), *facts(verification)):
        xml.SubElement(properties, "property", {"name": name, "value": printable(value)})


def _details(tensor: Fidelity) -> str:
    return ", ".join(f"{column.title}: {column.text(tensor)}" for column in COLUMNS[1:] if column.text(tensor))


# ------------------------------------------------------------------------------------------------ files

#: Value histograms of some tensors, for plots: name -> (edges, counts of the source, counts of the target).
Histograms = Mapping[str, tuple[Sequence[float], Sequence[int], Sequence[int]]]
