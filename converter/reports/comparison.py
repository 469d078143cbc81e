"""What a comparison of quants shows: the table, the plot and what to take, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from converter.reports import html
from converter.reports import markdown as md
from converter.reports.json import as_json as write_json
from converter.reports.markdown import plain
from converter.reports.numbers import decibels, increase, measured, number, percent
from converter.runtimes.behaviour import foreign_text
from converter.text import counted, human_bytes, printable, table

if TYPE_CHECKING:
    from converter.compare import Choice, Comparison, Quant
    from converter.runtimes.behaviour import Behaviour

_WIDTH, _HEIGHT = 64, 12  # of the plot, in characters
MEMORY = (
    "weights, F16 KV cache and compute buffers for one sequence of {context:,} tokens, flash attention, by estimate"
)


# ------------------------------------------------------------------------------------------------ the choice


def advice(choice: Choice) -> str:
    """One sentence that a person can act on."""
    found, limits = choice.comparison, _limits(choice)
    if not limits:
        best, least = found.best(), found.quants[-1]
        if best is None or best.bytes == least.bytes:
            return f"the closest and the smallest: {_brief(least)}; --quants names others"
        return f"closest: {_brief(best)}; smallest: {_brief(least)}; --fit SIZE names the best that fits"
    best = choice.best
    if best is None:
        return f"none fits {' and '.join(limits)}; the smallest is {_brief(found.quants[-1], found.context)}"
    return f"the least error within {' and '.join(limits)}: {_brief(best, found.context)}"


def _limits(choice: Choice) -> list[str]:
    """What was asked to fit, and what of it stays free."""
    limits = [f"a file of {human_bytes(choice.fit)}"] if choice.fit is not None else []
    if choice.fit_memory is not None:
        free = f" ({human_bytes(choice.kept_free)} of it left for the system)" if choice.kept_free else ""
        limits.append(f"{human_bytes(choice.fit_memory)} of memory{free}")
    return limits


def _brief(quant: Quant, context: int | None = None) -> str:
    error = "exact" if quant.sqnr_db == math.inf else f"{decibels(quant.sqnr_db)} dB"
    known = context is not None and quant.memory is not None
    memory = f", about {human_bytes(quant.memory or 0)} to run {context:,} tokens" if known else ""
    return f"{quant.name} ({human_bytes(quant.bytes)}, {error}{memory})"


def _notes(found: Comparison, quant: Quant) -> str:
    better = found.beaten_by(quant)
    notes = [
        f"{better.name} is no larger and closer" if better is not None else "",
        f"{len(quant.fallbacks)} tensors in a larger type, rows do not fit" if quant.fallbacks else "",
        f"{quant.nonfinite:,} values overflow" if quant.nonfinite else "",
    ]
    return "; ".join(filter(None, notes))


# ------------------------------------------------------------------------------------------------ text


def _table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows; a column of what nobody knows is left out."""
    columns: dict[str, Callable[[Quant], str]] = {
        "quant": lambda quant: quant.name,
        "size": lambda quant: human_bytes(quant.bytes),
        "bits": lambda quant: f"{quant.bits_per_weight:.2f}",
        "SQNR dB": lambda quant: decibels(quant.sqnr_db),
        "to run": lambda quant: "" if quant.memory is None else human_bytes(quant.memory),
        "mean KL": _of_behaviour(lambda ran: measured(ran.mean_kl, ran.mean_kl_error)),
        "same top token": _of_behaviour(lambda ran: percent(ran.top1)),
        "perplexity": _of_behaviour(lambda ran: measured(ran.candidate_ppl, ran.candidate_ppl_error)),
        "above the source": _of_behaviour(increase),
        "largest error": lambda quant: number(quant.max_abs),
        "worst dB": lambda quant: decibels(quant.worst_sqnr_db),
        "worst tensor": lambda quant: quant.worst_tensor or "",
        "": lambda quant: _notes(found, quant),
    }
    shown = {title: [text(quant) for quant in found.quants] for title, text in columns.items()}
    shown = {title: cells for title, cells in shown.items() if any(cells)}
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


def _of_behaviour(show: Callable[[Behaviour], str]) -> Callable[[Quant], str]:
    return lambda quant: show(quant.behaviour) if quant.behaviour else ""


def text(choice: Choice) -> str:
    """For a terminal: the table, the plot, and what to take."""
    found = choice.comparison
    head, rows = _table(found)
    right = [at for at, title in enumerate(head) if title not in ("quant", "worst tensor", "")]
    parts = [table(head, rows, right), plot(found.quants), _footer(found)]
    return "\n\n".join("\n".join(lines) for lines in (*parts, [advice(choice)]) if lines)


def _footer(found: Comparison) -> list[str]:
    lines = [f"{printable(found.source)}: {counted(len(found.quants), 'quant')} in {found.seconds:.2f} s"]
    if found.sample > 1:
        lines.append(f"errors by one of every {found.sample} parts of the rows; sizes are those of all")
    if any(quant.memory is not None for quant in found.quants):
        lines.append(f"to run: {MEMORY.format(context=found.context)}")
    ran = found.quants[0].behaviour
    if ran is not None and ran.reference_ppl is not None:
        perplexity = measured(ran.reference_ppl, ran.reference_ppl_error)
        lines.append(f"perplexity of the source: {perplexity} ({ran.reference_runtime}, {ran.tokens} tokens)")
        if ran.foreign:
            lines.append(f"warning: perplexity {foreign_text(ran)}; --text FILE gives it one of its kind")
    return lines


def plot(quants: Sequence[Quant]) -> list[str]:
    """SQNR over size in plain characters, `x` for a quant that another beats; nothing where it would not read well."""
    known = [quant for quant in quants if math.isfinite(quant.sqnr_db)]
    low, high = (pick((quant.sqnr_db for quant in known), default=0.0) for pick in (min, max))
    small, large = (pick((quant.bytes for quant in known), default=0) for pick in (min, max))
    if len(known) < 3 or low == high or small == large:
        return []
    grid = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT + 1)]
    for quant in known:
        row = round(_HEIGHT * (high - quant.sqnr_db) / (high - low))
        column = round(_WIDTH * (quant.bytes - small) / (large - small))
        mark = "x" if any(other.beats(quant) for other in quants) else "o"
        if not _written(grid[row], column, mark, quant.name):
            return []
    scale = {0: f"{high:.1f}", _HEIGHT: f"{low:.1f}"}
    lines = [f"{scale.get(at, ''):>7} | {''.join(cells)}".rstrip() for at, cells in enumerate(grid)]
    axis = f"{human_bytes(small)}{human_bytes(large):>{_WIDTH + 1 - len(human_bytes(small))}}"
    return ["SQNR dB", *lines, f"{'':>7} +-{'-' * (_WIDTH + 1)}", f"{'':>9} {axis}"]


def _written(cells: list[str], column: int, mark: str, label: str) -> bool:
    """Write a point and its label, which stands on the side where there is more room; False where something is."""
    text, start = f"{mark} {label}", column
    if column > _WIDTH // 2:
        text, start = f"{label} {mark}", column - len(label) - 1
    around = cells[max(0, start - 1) : start + len(text) + 1]
    if any(cell != " " for cell in around):
        return False
    cells[start : start + len(text)] = text
    return True


# ------------------------------------------------------------------------------------------------ reports


def as_json(choice: Choice) -> str:
    """Every number of it, and the best quant within the limits that were given."""
    return write_json("compare", choice.as_dict(), indent=1)


def markdown(choice: Choice) -> str:
    """For a job summary or a comment."""
    head, rows = _table(choice.comparison)
    cells = ([plain(cell) for cell in row] for row in rows)
    return md.document(
        (f"## Quants of {plain(choice.comparison.source)}", md.table(head, cells), plain(advice(choice)))
    )


def page(choice: Choice) -> str:
    """A page that shows size against error, and what to take."""
    found = choice.comparison
    best = choice.best if choice.fits else None
    return html.comparison(found, advice(choice), _footer(found), _table(found), best, choice.provenance)
