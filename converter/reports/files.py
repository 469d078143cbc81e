"""Reports as files: the verb's result and the extension say which."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from converter.address import shown
from converter.errors import OutputError, OutputExists, SameFile, UsageError
from converter.reports import (
    batch,
    certificate,
    checked,
    comparison,
    described,
    differences,
    html,
    importance,
    verification,
)
from converter.storage import output
from converter.storage.layout import Layout, whole_file

#: The one table: how the result of a verb is written, by the extension of the file.
REPORTS: Mapping[str, Mapping[str, Callable[[Any], str]]] = {
    "verify": {
        ".txt": verification.text,
        ".json": verification.as_json,
        ".md": verification.markdown,
        ".xml": verification.junit,
        ".html": html.page,
    },
    "certify": {
        ".txt": certificate.text,
        ".json": certificate.as_json,
        ".md": certificate.markdown,
        ".html": certificate.page,
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
    "imatrix": {
        ".html": importance.page,
        ".md": importance.markdown,
        ".json": importance.as_json,
        ".txt": importance.text,
    },
    "batch": {
        ".txt": batch.text,
        ".json": batch.as_json,
        ".md": batch.markdown,
        ".xml": batch.junit,
    },
    "card": {".md": batch.card},
    "inspect": {
        ".txt": described.text,
        ".json": described.as_json,
        ".html": described.page,
    },
    "diff": {
        ".txt": differences.text,
        ".json": differences.as_json,
        ".md": differences.markdown,
    },
}

#: The first line of those that have no sign of their own, by which they are known again; no reader shows Markdown's.
#: It stands after the front matter of a model card, which is one only where it begins the file.
_MARKS: Mapping[str, str] = {".txt": "# convert {verb}\n", ".md": "<!-- convert {verb} -->\n"}
#: How a report begins, by extension: what an existing file must begin with to be replaced.
_BEGINS: Mapping[str, re.Pattern[str]] = {
    ".json": re.compile(r'\s*\{\s*"schema": *\d+,\s*"verb":'),
    ".xml": re.compile(r'<\?xml [^>]*\?>\s*<testsuites name="convert '),
    ".md": re.compile(r"(?:---\n(?:\w+: .*\n)*---\n)?<!-- convert \w+ -->\n"),
    ".html": re.compile(f"<!DOCTYPE html>.*{re.escape(html.GENERATOR)}", re.DOTALL),
    ".txt": re.compile(r"# convert \w+\n"),
}
_HEAD = 4096


def check_reports(
    verb: str, paths: Iterable[Path], *, inputs: Iterable[Path] = (), extension: str | None = None
) -> None:
    """Refuse reports of an unknown kind, and those that would destroy what is no report, before the work begins.

    Args:
        inputs: files and folders that are read; no report replaces one of them, or a file in one.
        extension: as in `write_report`.

    Raises:
        UsageError: no report of this verb has this extension.
        OutputExists: something else than a report is there.
        SameFile: an input is there.
    """
    inputs = [path for path in inputs if path.exists()]
    for path in paths:
        kind = extension or kind_of(path)
        if kind not in REPORTS[verb]:
            raise UsageError(f"{path}: no report ends in {path.suffix!r}; there are {', '.join(REPORTS[verb])}")
        if not is_stdout(path):
            _check_replaceable(path, kind, inputs)


def _check_replaceable(path: Path, extension: str, inputs: Iterable[Path]) -> None:
    if not path.exists():
        return
    if not path.is_file():
        raise OutputExists(f"{path}: is a {'folder' if path.is_dir() else 'device or pipe'}; a report is a file")
    for each in inputs:
        if path.samefile(each) or (each.is_dir() and path.resolve().is_relative_to(each.resolve())):
            raise SameFile(f"{path}: is read, or belongs to what is; choose another name for the report")
    try:
        with open(path, "rb") as file:
            start = file.read(_HEAD).decode("utf-8", "replace")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    if start and not _BEGINS[extension].match(start):
        raise OutputExists(
            f"{path}: is no report of this program and is not replaced; choose another name, or remove it"
        )


def is_stdout(path: Path) -> bool:
    """Whether a report goes to stdout: `-` alone, or with an extension, `-.xml`."""
    return path.name == str(path) and path.stem == "-"


def kind_of(path: Path) -> str:
    """The extension of a report, one of the table's; on stdout it is Markdown unless it says another one."""
    return path.suffix.lower() or (".md" if is_stdout(path) else "")


def report(verb: str, result: Any, kind: str) -> str:
    """The report of a verb's result that the extension `kind` names."""
    text, mark = shown(REPORTS[verb][kind](result)).rstrip("\n") + "\n", _MARKS.get(kind, "").format(verb=verb)
    front, end, rest = text.partition("\n---\n") if text.startswith("---\n") else ("", "", text)
    return front + end + mark + rest


def write_report(verb: str, path: Path, result: Any, extension: str | None = None) -> None:
    """Write the report of a verb's result that the extension of `path` names; an earlier report is replaced. One for
    stdout is left to who prints.

    Args:
        extension: one of the table, where the name of the file does not say.

    Raises:
        UsageError, OutputExists: as `check_reports`.
        OutputError: the file cannot be written.
    """
    check_reports(verb, [path], extension=extension)
    if is_stdout(path):
        return
    content = report(verb, result, extension or kind_of(path))
    # Names of files need not be text; what UTF-8 has no sign for stands as an escape.
    layout = Layout((whole_file(path, content.encode("utf-8", "backslashreplace")),))
    output.write(layout, threads=1)
