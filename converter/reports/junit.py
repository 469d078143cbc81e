"""JUnit XML, as CI systems read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree as xml

from converter.findings import Finding
from converter.text import printable


@dataclass(frozen=True)
class Case:
    """One test: the findings that fail it, none where it passed or was not made, and what else is to be said."""

    name: str
    failures: Sequence[Finding] = ()
    about: str = ""
    skipped: bool = False


@dataclass(frozen=True)
class Suite:
    """Tests of one kind."""

    name: str
    cases: Sequence[Case]
    seconds: float = 0.0
    properties: Sequence[tuple[str, str]] = field(default=())


def junit(name: str, suites: Sequence[Suite]) -> str:
    """The report of all suites; control characters in names are spelled out."""
    seconds = sum(suite.seconds for suite in suites)
    root = xml.Element("testsuites", {"name": name, **_counts(suites, seconds)})
    for suite in suites:
        _suite(root, suite)
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _suite(root: xml.Element, suite: Suite) -> None:
    name = printable(suite.name)
    element = xml.SubElement(root, "testsuite", {"name": name, **_counts((suite,), suite.seconds)})
    if suite.properties:
        properties = xml.SubElement(element, "properties")
        for key, value in suite.properties:
            xml.SubElement(properties, "property", {"name": key, "value": printable(value)})
    for case in suite.cases:
        test = xml.SubElement(element, "testcase", {"classname": name, "name": printable(case.name), "time": "0"})
        if case.failures:
            first = case.failures[0]
            failure = xml.SubElement(test, "failure", {"type": first.check, "message": printable(str(first))})
            failure.text = "\n".join(printable(str(finding)) for finding in case.failures)
        if case.skipped:
            xml.SubElement(test, "skipped", {"message": "not made"})
        if case.about:
            xml.SubElement(test, "system-out").text = "\n".join(map(printable, case.about.splitlines()))


def _counts(suites: Iterable[Suite], seconds: float) -> dict[str, str]:
    cases = [case for suite in suites for case in suite.cases]
    failures = sum(1 for case in cases if case.failures)
    counts = {"tests": len(cases), "failures": failures, "errors": 0, "skipped": sum(case.skipped for case in cases)}
    return {**{name: str(count) for name, count in counts.items()}, "time": f"{seconds:.3f}"}
