"""What is in a model, as text, JSON and one page that needs no script: tree, sizes, memory, metadata."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from html import escape
from importlib import resources
from itertools import count

from converter import __version__
from converter.inspection.describe import Description
from converter.inspection.running_memory import UBATCH
from converter.inspection.tree import Node
from converter.reports.html import GENERATOR
from converter.reports.json import as_json as write_json
from converter.text import human_bytes, human_count, printable, table

RUNNING = f"weights, F16 KV cache and compute buffers; one sequence, flash attention, batches of {UBATCH} tokens"
TUNING = (
    "AdamW in BF16 with F32 copies, one sequence a step, gradient checkpointing, flash attention;\n"
    "LoRA on every matrix of the layers, QLoRA's in NF4; without what the framework takes"
)
MAX_METADATA = 300  # rows of the page; --json --all has all
MAX_NODES = 3000  # of the page's tree


def memory(description: Description, limit: int | None = None) -> Iterator[str]:
    """Lines of the memory to run a model and to fine-tune it, with what they assume; none where unknown."""
    for what, assumed, (head, rows) in _memories(description, limit):
        if rows:
            yield ""
            yield f"memory to {what}, estimated"
            yield from table(head, rows, right=range(1, len(head)))
            yield from assumed.splitlines()
    if limit is not None and description.memory and description.memory.needs:
        yield f"* fits {human_bytes(limit)}"


def _memories(description: Description, limit: int | None) -> list[tuple[str, str, tuple[list[str], list[list[str]]]]]:
    return [
        ("run it", RUNNING, description.memory_table(limit)),
        ("fine-tune it", TUNING, description.tuning_table(limit)),
    ]


def tree_table(root: Node) -> tuple[list[str], list[list[str]], Sequence[int]]:
    """Head, rows and columns to the right of a tree of modules; `each` is of one of several that are alike."""
    head = ["module", "count", "each", "parameters", "bytes", "share", "shape", "type"]
    rows = [_row(depth, node, root) for depth, node in root.walk()]
    return head, rows, (1, 2, 3, 4, 5)


def _row(depth: int, node: Node, root: Node) -> list[str]:
    return [
        "  " * depth + (node.name or "model"),
        f"{node.count} x" if node.count > 1 else "",
        human_count(node.each) if node.count > 1 else "",
        human_count(node.parameters),
        human_bytes(node.bytes),
        _share(node, root),
        _shape(node),
        ", ".join(node.types),
    ]


def _share(node: Node, root: Node) -> str:
    return f"{100 * node.bytes / max(1, root.bytes):.1f} %"


def _shape(node: Node) -> str:
    return "" if node.shape is None else "x".join(map(str, node.shape)) or "scalar"


def text(description: Description) -> str:
    """Summary, memory and tree."""
    lines = [f"{key:<14}{value}" for key, value in description.summary()]
    head, rows, right = tree_table(description.tree)
    return "\n".join([*map(printable, lines), *memory(description), "", *table(head, rows, right)])


def as_json(description: Description) -> str:
    """What `convert inspect --tree --json` prints, indented."""
    return write_json("inspect", description.as_dict() | {"tree": description.tree.as_dict()}, indent=1)


# ------------------------------------------------------------------------------------------------ the page


def page(description: Description) -> str:
    """One page without scripts; what folds is HTML's own `details`."""
    sections = [
        _summary(description),
        *_parts(description),
        *(_memory_section(*each) for each in _memories(description, None) if each[2][1]),
        _tree_section(description.tree),
        _metadata_section(description),
    ]
    style = _style()
    policy = f"default-src 'none'; style-src 'sha256-{_sha256(style)}'; base-uri 'none'; form-action 'none'"
    name = _text(description.path.name or description.path)
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            GENERATOR,
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
            f"<header><h1>{name}</h1><p>{_text(description.path)}</p></header>",
            *sections,
            f"<footer>model-converter {_text(__version__)}; nothing but headers was read</footer>",
            "</main>\n</body>\n</html>\n",
        )
    )


def _text(value: object) -> str:
    return escape(printable(str(value)))


@cache
def _style() -> str:
    folder = resources.files("converter.reports")
    return "".join(folder.joinpath(name).read_text("utf-8") for name in ("page.css", "described.css"))


def _sha256(style: str) -> str:
    return base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")


def _summary(description: Description) -> str:
    parameters, nbytes = description.n_parameters, description.tensor_bytes
    cards = [
        ("format", description.format),
        ("architecture", description.architecture or "unknown"),
        ("parameters", human_count(parameters)),
        ("size", human_bytes(nbytes)),
        ("bits per weight", f"{8 * nbytes / parameters:.2f}" if parameters else "-"),
        ("tensors", f"{len(description.tensors):,}"),
    ]
    return '<dl class="facts">' + "".join(
        f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>" for label, value in cards
    ) + "</dl>"  # fmt: skip


def _parts(description: Description) -> list[str]:
    """What else the file holds."""
    if not description.parts:
        return []
    return [f"<section><h2>Other parts</h2><p>{_text(', '.join(map(str, description.parts)))}</p></section>"]


def _memory_section(what: str, assumed: str, columns: tuple[list[str], list[list[str]]]) -> str:
    words = _text(" ".join(assumed.splitlines()))
    return f"<section><h2>Memory to {what}</h2><p>Estimate: {words}.</p>{_table(*columns)}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first columns are names."""

    def cells(kind: str, row: Sequence[str]) -> str:
        plain = "plain " if kind == "th" else ""
        return "".join(
            f'<{kind} class="{plain}{"left" if at < left else ""}">{_text(cell)}</{kind}>'
            for at, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def _tree_section(root: Node) -> str:
    left = count(MAX_NODES, -1)
    shown = "".join(_branch(child, root, 0, left) for child in root.children)
    more = "<p>More is not shown; --json --tree has all.</p>" if next(left) < 0 else ""
    return (
        "<section><h2>Tensors</h2><p>Layers that are alike are one entry; the bar is the share of the bytes.</p>"
        f'<div class="modules">{shown}</div>{more}</section>'
    )


def _branch(node: Node, root: Node, depth: int, left: Iterator[int]) -> str:
    if next(left) <= 0:
        return ""
    row = _line(node, root)
    if not node.children:
        return f'<div class="leaf">{row}</div>'
    below = "".join(_branch(child, root, depth + 1, left) for child in node.children)
    return f"<details{' open' * (depth < 2)}><summary>{row}</summary>{below}</details>"


def _line(node: Node, root: Node) -> str:
    share = node.bytes / max(1, root.bytes)
    times = f" <small>{node.count} x {_text(human_count(node.each))}</small>" if node.count > 1 else ""
    shape = f" <small>{_text(_shape(node))}</small>" if node.shape is not None else ""
    bar = f'<svg class="bar" aria-hidden="true"><rect width="{100 * share:.2f}%" height="100%"/></svg>'
    return (
        f'<span class="name">{_text(node.name)}{times}{shape}</span>'
        f'<span class="types">{_text(", ".join(node.types))}</span>'
        f'<span class="number">{_text(human_count(node.parameters))}</span>'
        f'<span class="number">{_text(human_bytes(node.bytes))}</span>{bar}'
    )


def _metadata_section(description: Description) -> str:
    rows = list(description.metadata_rows(full=False))
    if not rows:
        return ""
    more = f"<p>{len(rows) - MAX_METADATA:,} more are not shown.</p>" if len(rows) > MAX_METADATA else ""
    return f"<section><h2>Metadata</h2>{_table(['key', 'type', 'value'], rows[:MAX_METADATA], left=3)}{more}</section>"
