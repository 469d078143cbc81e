"""What an importance matrix is like, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from converter.reports import html
from converter.reports import markdown as md
from converter.reports.json import as_json as write_json
from converter.reports.markdown import plain
from converter.reports.numbers import number, percent
from converter.text import counted, printable, table

if TYPE_CHECKING:
    from converter.calibration.matrices import Looked
    from converter.calibration.statistics import Statistics

#: A weight's columns in the table, by their titles.
_COLUMNS: dict[str, Callable[[Statistics], str]] = {
    "layer": lambda each: "-" if each.layer is None else str(each.layer),
    "weight": lambda each: printable(each.role),
    "sum": lambda each: number(each.total),
    "min": lambda each: number(each.least),
    "max": lambda each: number(each.most),
    "mean": lambda each: number(each.mean),
    "deviation": lambda each: number(each.deviation),
    "active": lambda each: percent(each.active),
    "columns": lambda each: f"{each.columns:,}",
    "entropy": lambda each: f"{each.entropy:.3f}",
    "even": lambda each: percent(each.evenness),
    "above": lambda each: percent(each.above),
    "as before": lambda each: "" if each.similarity is None else f"{each.similarity:.4f}",
    "in 1 %": lambda each: percent(each.outliers),
    "top columns": lambda each: ", ".join(f"{column}: {percent(share)}" for column, share in each.top[:3]),
    "silent": lambda each: str(each.silent or ""),
}
_WORDS = ("weight", "top columns")
NOTES = (
    "of the means of squares of what each column is multiplied by; even: entropy of the most there can be; above: "
    "columns more than a deviation above the mean; as before: cosine with the layer before; in 1 %: what the "
    "hundredth part of the columns has of the sum"
)


def _rows(looked: Looked) -> tuple[list[str], list[list[str]]]:
    shown = {title: [cell(each) for each in looked.weights] for title, cell in _COLUMNS.items()}
    shown = {title: cells for title, cells in shown.items() if any(cells)}
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


def _layers(looked: Looked) -> tuple[list[str], list[list[str]]]:
    rows = [
        [str(each.layer), number(each.total), percent(each.above), f"{each.similarity:.4f}"] for each in looked.layers
    ]
    return ["layer", "sum", "above", "as before"], rows


def _summary(looked: Looked) -> str:
    made = looked.importance
    words = f"{counted(len(made.entries), 'weight')}, {counted(made.chunks, 'chunk')} of {made.chunk_size} tokens"
    names = ", ".join(name if isinstance(name, str) else name.decode("utf-8", "replace") for name in made.datasets)
    return f"{printable(looked.file)}: {words}" + (f"; {printable(names)}" if names else "")


def text(looked: Looked) -> str:
    """For a terminal: every weight, every layer."""
    head, rows = _rows(looked)
    right = [at for at, title in enumerate(head) if title not in _WORDS]
    own, means = _layers(looked)
    parts = [[_summary(looked)], table(head, rows, right), table(own, means, range(len(own))) if means else [], [NOTES]]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def as_json(looked: Looked) -> str:
    """Every number of it."""
    return write_json("imatrix", looked.as_dict(), indent=1)


def markdown(looked: Looked) -> str:
    """For a summary or a comment."""
    (head, rows), (own, means) = _rows(looked), _layers(looked)
    return md.document(
        (
            f"## Importance: {plain(_summary(looked))}",
            md.table(head, ([plain(cell) for cell in row] for row in rows)),
            md.table(own, means) if means else "",
            plain(NOTES),
        )
    )


def page(looked: Looked) -> str:
    """A page that shows importance over layers."""
    plots: Sequence[tuple[str, str, Callable[[Statistics], float], bool]] = (
        ("mean", "mean of squares", lambda each: each.mean, True),
        ("outliers", "share of the sum in 1 % of the columns, in %", lambda each: 100 * each.outliers, False),
        ("evenness", "entropy, in % of the most there can be", lambda each: 100 * each.evenness, False),
        ("similarity", "cosine with the layer before", lambda each: _or_nan(each.similarity), False),
    )
    return html.importance(_summary(looked), looked.weights, plots, _rows(looked), NOTES)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
