"""What differs between two models, as a diff shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from converter.reports import markdown as md
from converter.reports.json import as_json as write_json
from converter.reports.markdown import code, plain
from converter.text import printable

if TYPE_CHECKING:
    from converter.diff import Change, Differences

SIGNS = {"added": "+", "removed": "-", "changed": "~"}
SHOWN = 50  # changes of one group in Markdown


def lines(found: Differences, stat: bool = False) -> Iterator[str]:
    """Lines for a terminal, that of a change beginning with its sign; `stat`: one per group of keys or tensors."""
    if found.equal:
        return
    yield f"--- {printable(found.before)}"
    yield f"+++ {printable(found.after)}"
    for group, compared, changes in _groups(found):
        mapped = " (Hugging Face names as in GGUF)" if found.mapped and group == "tensors" else ""
        yield f"@@ {group}: {len(changes)} of {compared} differ{mapped} @@"
        shown = _statistics(changes) if stat else (f"{SIGNS[each.kind]} {each}" for each in changes)
        yield from map(printable, shown)


def text(found: Differences) -> str:
    """Every change; nothing where there is none."""
    return "\n".join(lines(found))


def as_json(found: Differences) -> str:
    """Every change, with its numbers."""
    return write_json("diff", found.as_dict(), indent=1)


def markdown(found: Differences) -> str:
    """For a job summary or a comment: of each group a few changes."""
    words = f"{code(found.after)} against {code(found.before)}"
    return md.document(
        (
            md.heading(found.equal, f"{'nothing differs' if found.equal else 'differences'}: {words}"),
            *(_section(group, compared, changes) for group, compared, changes in _groups(found)),
        )
    )


def _groups(found: Differences) -> Iterator[tuple[str, int, list[Change]]]:
    """Groups in which something differs: name, how many names were compared, the changes."""
    for group, compared in found.compared.items():
        changes = [change for change in found.changes if change.group == group]
        if changes:
            yield group, compared, changes


def _section(group: str, compared: int, changes: list[Change]) -> str:
    rows = [[SIGNS[each.kind], plain(str(each))] for each in changes[:SHOWN]]
    if len(changes) > SHOWN:
        rows.append(["", f"{len(changes) - SHOWN} more; the JSON report lists all"])
    return md.section(f"{group}: {len(changes)} of {compared} differ", ("", "what"), rows)


def _statistics(changes: list[Change]) -> Iterator[str]:
    from converter.diff import family, grouped

    for name, members in grouped(changes, family).items():
        kinds = grouped(members, lambda change: change.kind)
        counts = ", ".join(f"{len(each)} {kind}" for kind, each in kinds.items())
        worst = max((change.facts.get("max_abs", 0.0) for change in members), default=0.0)
        sign = SIGNS[next(iter(kinds))] if len(kinds) == 1 else "~"
        yield f"{sign} {name}: {counts}" + (f", max abs {worst:.4g}" if worst else "")
