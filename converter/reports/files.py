"""Reports as files: the extension says which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from converter.errors import OutputError, UsageError
from converter.reports.html import page, plotly_source
from converter.reports.verification import Histograms, as_json, junit, markdown, text
from converter.verify.results import Verification

WRITERS: dict[str, Callable[[Verification, Histograms], str]] = {
    ".txt": lambda verification, _: text(verification) + "\n",
    ".json": lambda verification, _: as_json(verification) + "\n",
    ".md": lambda verification, _: markdown(verification),
    ".xml": lambda verification, _: junit(verification),
    ".html": page,
}


def check_report(path: Path) -> None:
    """Refuse a report of an unknown kind before the work begins.

    Raises:
        UsageError: no report has this extension.
        MissingDependency: plotly is not there, and the report is a page.
    """
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"{path}: no report ends in {path.suffix!r}; there are {', '.join(WRITERS)}")
    if path.suffix.lower() == ".html":
        plotly_source()


def write_report(path: Path, verification: Verification, histograms: Histograms | None = None) -> None:
    """Write the report that the extension of `path` names; an existing file is replaced.

    Raises:
        UsageError, MissingDependency: as `check_report`.
        OutputError: the file cannot be written.
    """
    check_report(path)
    content = WRITERS[path.suffix.lower()](verification, histograms or {})
    try:
        path.write_text(content, "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
