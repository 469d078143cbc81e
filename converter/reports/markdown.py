"""Markdown for the summary of a CI job or for a comment: tables in which names out of files are nothing but text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from converter.findings import Finding
from converter.reports.findings import bounded
from converter.text import printable

_HARMLESS = re.compile(r"[\w ./:+-]+", re.ASCII)


def plain(value: str) -> str:
    """Text in which nothing is Markdown or HTML: what could be is a character reference."""
    return re.sub(
        r"[^\w\s.,;:=+%/()'-]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.",
        lambda found: f"&#{ord(found[0])};",
        printable(value),
    )


def code(value: str) -> str:
    """A name as code."""
    return f"`{value}`" if _HARMLESS.fullmatch(value) and value.strip() else f"<code>{plain(value)}</code>"


def heading(passed: bool, words: str) -> str:
    """The first line of what has a verdict; `words` are Markdown."""
    return f"## {'✅' if passed else '❌'} {words}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown already."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table under a heading; nothing where it has no rows."""
    return f"### {title}\n\n{table(head, rows)}" if rows else ""


def findings(found: Iterable[Finding]) -> str:
    """Findings, failures first; of each check a few."""
    rows = []
    for finding in bounded(found):
        if isinstance(finding, str):
            rows.append(["", "", "", plain(finding)])
        else:
            hint = f" ({plain(finding.hint)})" if finding.hint else ""
            mark = "❌" if finding.failed else "ℹ️"  # noqa: RUF001
            rows.append([mark, finding.check, code(finding.subject), plain(finding.message) + hint])
    return section("Findings", ("", "check", "subject", "what"), rows)


def document(parts: Iterable[str]) -> str:
    """The parts that are not empty, one below the other."""
    return "\n\n".join(filter(None, parts)) + "\n"
