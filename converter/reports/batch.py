"""What a batch shows: a table for a terminal, Markdown and a model card, JUnit XML, JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from converter import __version__
from converter.address import address_of
from converter.findings import Finding
from converter.mapping.model_card import with_entries
from converter.reports import markdown as md
from converter.reports.json import as_json as write_json
from converter.reports.junit import Case, Suite
from converter.reports.junit import junit as write_junit
from converter.reports.markdown import code, plain
from converter.text import human_bytes, printable, table

if TYPE_CHECKING:
    from converter.batch.run import Batch, Made, Result

HEAD = ["model", "output", "size", "bits", "error", "time", ""]


def text(batch: Batch) -> str:
    """For a terminal: a row for every output, then errors, then how many of what."""
    lines = table(HEAD, (row for result in batch.results for row in _rows(result)), right=(2, 3, 4, 5))
    lines += [printable(f"{place(each)}{each.error}") for each in batch.results if each.error is not None]
    return "\n".join((*lines, "", counts(batch)))


def place(result: Result) -> str:
    """What begins a message about a job."""
    return f"{result.job.place or result.job.name}: "


def counts(batch: Batch) -> str:
    """How many of what, and how long it took."""
    words = [each.status for each in batch.results]
    said = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return f"{said} in {batch.seconds:.1f} s"


def _rows(result: Result) -> Iterator[list[str]]:
    if not result.made:
        yield [result.job.name, "", "", "", "", f"{result.seconds:.1f} s", result.status]
    for each in result.made:
        size, bits = human_bytes(each.bytes), f"{each.bits_per_weight:.2f}"
        yield [result.job.name, each.path.name, size, bits, _error(each), f"{result.seconds:.1f} s", result.status]


def _error(made: Made) -> str:
    if made.sqnr_db is None:
        return ""
    return "none" if made.sqnr_db == float("inf") else f"{made.sqnr_db:.2f} dB"


def as_json(batch: Batch) -> str:
    """Everything."""
    return write_json("batch", batch.as_dict(), indent=1)


def markdown(batch: Batch) -> str:
    """For a job summary or a comment."""
    rows = [[plain(cell) for cell in row] for result in batch.results for row in _rows(result)]
    errors = [f"- {plain(place(each))}{plain(str(each.error))}" for each in batch.results if each.error is not None]
    words = plain(f"convert batch: {counts(batch)}")
    return md.document((md.heading(batch.passed, words), md.table(HEAD, rows), "\n".join(errors)))


def junit(batch: Batch) -> str:
    """A test for every job."""
    cases = [Case(each.job.name, _failures(each), "\n".join(each.events)) for each in batch.results]
    return write_junit("convert batch", [Suite("convert batch", cases, batch.seconds)])


def _failures(result: Result) -> list[Finding]:
    if result.error is None:
        return [] if result.status != "stopped" else [Finding("stopped", result.job.name, "was not begun", failed=True)]
    return [Finding(type(result.error).__name__, result.job.name, str(result.error), failed=True)]


def card(results: Sequence[Result]) -> str:
    """A model card that lists the outputs of a folder: sizes, and errors where they were measured.

    Its front matter says what the Hub asks of quants: their library, and the model of the Hub that they are made of.
    """
    rows = [
        [code(each.path.name), plain(each.quant), human_bytes(each.bytes), f"{each.bits_per_weight:.2f}", _error(each)]
        for result in results
        for each in result.made
    ]
    names = ", ".join(sorted({code(result.job.name) for result in results}))
    head = ["file", "type", "size", "bits per weight", "error (SQNR)"]
    text = md.document((f"# {names}", md.table(head, rows), f"Made by model-converter {__version__}."))
    entries = dict(_entries(results))
    return with_entries(text, entries) if entries else text


def _entries(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    if all(each.path.suffix == ".gguf" for result in results for each in result.made):
        yield "library_name", "gguf"
    addresses = [address_of(result.job.source.path) for result in results]
    models = {found[0].where for found in addresses if found is not None and found[0].scheme == "hf"}
    if len(models) == 1 and all(addresses):
        yield "base_model", models.pop()
        yield "base_model_relation", "quantized"
