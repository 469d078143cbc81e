"""Reports as files: the verb's result and the extension say which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from converter.errors import OutputError, UsageError
from converter.reports import checked, comparison, differences, html, verification

#: The one table: how the result of a verb is written, by the extension of the file.
REPORTS: Mapping[str, Mapping[str, Callable[[Any], str]]] = {
    "verify": {
        ".txt": verification.text,
        ".json": verification.as_json,
        ".md": verification.markdown,
        ".xml": verification.junit,
        ".html": html.page,
    },
    "compare": {
        ".html": comparison.page,
        ".md": comparison.markdown,
        ".json": comparison.as_json,
        ".txt": comparison.text,
    },
    "check": {
        ".txt": checked.text,
        ".json": checked.as_json,
        ".md": checked.markdown,
        ".xml": checked.junit,
    },
    "diff": {
        ".txt": differences.text,
        ".json": differences.as_json,
        ".md": differences.markdown,
    },
}


def check_reports(verb: str, paths: Iterable[Path]) -> None:
    """Refuse reports of an unknown kind before the work begins.

    Raises:
        UsageError: no report of this verb has this extension.
        MissingDependency: plotly is not there, and the report is a page.
    """
    for path in paths:
        if path.suffix.lower() not in REPORTS[verb]:
            raise UsageError(f"{path}: no report ends in {path.suffix!r}; there are {', '.join(REPORTS[verb])}")
        if path.suffix.lower() == ".html":
            html.plotly_source()


def write_report(verb: str, path: Path, result: Any, extension: str | None = None) -> None:
    """Write the report of a verb's result that the extension of `path` names; an existing file is replaced.

    Args:
        extension: one of the table, where the name of the file does not say.

    Raises:
        UsageError, MissingDependency: as `check_reports`.
        OutputError: the file cannot be written.
    """
    if extension is None:
        check_reports(verb, [path])
    content = REPORTS[verb][extension or path.suffix.lower()](result)
    try:
        path.write_text(content.rstrip("\n") + "\n", "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
