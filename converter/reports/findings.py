"""Findings in the order in which people read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from converter.findings import Finding

SHOWN = 20  # findings of one check, where they are not all listed


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
