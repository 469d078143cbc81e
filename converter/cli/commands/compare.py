"""`convert compare IN --quants a,b,c`: what each quant would cost and lose, so that a person can choose."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.cli.console import (
    Parser,
    ProgressBar,
    common_arguments,
    human_bytes,
    model_arguments,
    positive,
    print_events,
    quant_arguments,
    request_of,
    size,
    source_of,
)
from converter.errors import OutputError, UsageError
from converter.text import printable, table

if TYPE_CHECKING:
    from converter.compare import Comparison, Quant

EXAMPLES = """\
examples:
  convert compare llama-folder/                                     the usual quants
  convert compare llama-folder/ --quants q4_k_m,q5_k_m,q6_k,q8_0    these
  convert compare llama-folder/ --fit 5GB                           and the best whose file has at most 5 GB
  convert compare llama-folder/ --fit-memory 8GB --for-context 8192 the best that runs in 8 GB, by estimate
  convert compare llama-folder/ --imatrix i.gguf --report quants.html
  convert compare llama-folder/ --runtime --text eval.txt           also perplexity and KL, by llama.cpp
"""

_WIDTH, _HEIGHT = 64, 12  # of the plot, in characters


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = Parser(
        prog="convert compare", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",
        description="Size against error of several quants of one model: one read of it, nothing is written.",
    )  # fmt: skip
    made.add_argument("source", metavar="IN", type=Path, help="file or folder to read")
    choice = made.add_argument_group("choice")
    runtime = made.add_argument_group("behaviour").add_argument
    runtime("--runtime", action="store_true", help="convert each into a temporary folder and run it by llama.cpp")
    runtime("--text", type=Path, metavar="FILE", help="the text (default: a small built-in one)")
    runtime("--tokens", type=positive, default=512, metavar="N", help="tokens to read at most (512)")
    runtime("--context", type=positive, default=512, metavar="N", help="tokens of a window (512)")
    quant_arguments(made.add_argument_group("quantization, the same for all"))
    model_arguments(made.add_argument_group("model"))
    _choice_arguments(choice)
    common_arguments(made)
    return made


def _choice_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    # What a conversion has one of (-q) is here a list, and takes its place.
    add(
        "-q",
        "--quant",
        "--quants",
        dest="quants",
        metavar="A,B,C",
        help="quants to compare (default: Q8_0 and the usual ones from Q6_K to Q2_K)",
    )
    add("--fit", type=size, metavar="SIZE", help="name the best quant whose file has at most this (6G, 500MB)")
    add("--fit-memory", type=size, metavar="SIZE", help="name the best quant that runs in this, by estimate")
    add("--for-context", type=positive, metavar="N", help="tokens that memory is estimated for (4096)")
    add("--report", type=Path, action="append", default=[], metavar="FILE", help="write .html .md .json or .txt")
    add("-j", "--threads", type=positive, metavar="N", help="workers (default: all processors)")


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    _check(args)
    found = _compared(args)
    for path in args.report:
        _write(path, found, args)
    if args.json:
        print(_json(found, args))
        return 0
    if not args.quiet:
        print_events(found.events)
    print(_text(found, args))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.target_type not in (None, "gguf"):
        raise UsageError(f"--to {args.target_type}: quants are compared as GGUF files")
    if args.text is not None and not args.runtime:
        raise UsageError(f"--text {args.text}: is read by --runtime, which is not given")
    for path in args.report:
        if path.suffix.lower() not in _WRITERS:
            raise UsageError(f"{path}: no report ends in {path.suffix!r}; there are {', '.join(_WRITERS)}")
        if path.suffix.lower() == ".html":
            from converter.reports.html import plotly_source

            plotly_source()  # or say now that it is not there


def _compared(args: argparse.Namespace) -> Comparison:
    from converter.compare import CONTEXT, QUANTS, compare, with_behaviour

    quants = QUANTS if args.quants is None else [name for name in args.quants.split(",") if name.strip()]
    source, request, text = source_of(args), request_of(args), _text_of(args.text)
    with ProgressBar(args.quiet or args.json) as progress:
        context = args.for_context or CONTEXT
        found = compare(source, quants, request, context=context, threads=args.threads, progress=progress)
    if not args.runtime:
        return found
    with ProgressBar(args.quiet or args.json) as progress:
        return with_behaviour(
            found,
            request,
            source=source,
            text=text,
            tokens=args.tokens,
            window=args.context,
            threads=args.threads,
            progress=progress,
        )


def _text_of(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text") from error


# ------------------------------------------------------------------------------------------------ the choice


def advice(found: Comparison, fit: int | None, fit_memory: int | None) -> str:
    """One sentence that a person can act on."""
    if fit is None and fit_memory is None:
        best, least = found.best(), found.quants[-1]
        if best is None or best.bytes == least.bytes:
            return f"the closest and the smallest: {_brief(least)}; --quants names others"
        return f"closest: {_brief(best)}; smallest: {_brief(least)}; --fit SIZE names the best that fits"
    limits = [f"a file of {human_bytes(fit)}"] if fit is not None else []
    limits += [f"{human_bytes(fit_memory)} of memory"] if fit_memory is not None else []
    best = found.best(fit, fit_memory)
    if best is None:
        return f"none fits {' and '.join(limits)}; the smallest is {_brief(found.quants[-1], found.context)}"
    return f"the least error within {' and '.join(limits)}: {_brief(best, found.context)}"


def _brief(quant: Quant, context: int | None = None) -> str:
    from converter.reports.verification import decibels

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


# ------------------------------------------------------------------------------------------------ printing


def _table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows; a column of what nobody knows is left out."""
    from converter.reports.verification import decibels, number, percent

    columns: dict[str, Callable[[Quant], str]] = {
        "quant": lambda quant: quant.name,
        "size": lambda quant: human_bytes(quant.bytes),
        "bits": lambda quant: f"{quant.bits_per_weight:.2f}",
        "SQNR dB": lambda quant: decibels(quant.sqnr_db),
        "largest error": lambda quant: number(quant.max_abs),
        "perplexity": lambda quant: number(quant.behaviour.candidate_ppl) if quant.behaviour else "",
        "mean KL": lambda quant: number(quant.behaviour.mean_kl) if quant.behaviour else "",
        "same top token": lambda quant: percent(quant.behaviour.top1) if quant.behaviour else "",
        "to run": lambda quant: "" if quant.memory is None else human_bytes(quant.memory),
        "worst dB": lambda quant: decibels(quant.worst_sqnr_db),
        "worst tensor": lambda quant: quant.worst_tensor or "",
        "": lambda quant: _notes(found, quant),
    }
    shown = {title: [text(quant) for quant in found.quants] for title, text in columns.items()}
    shown = {title: cells for title, cells in shown.items() if any(cells)}
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


def _text(found: Comparison, args: argparse.Namespace) -> str:
    head, rows = _table(found)
    right = [at for at, title in enumerate(head) if title not in ("quant", "worst tensor", "")]
    parts = [table(head, rows, right), plot(found.quants), _footer(found)]
    advised = [advice(found, args.fit, args.fit_memory)]
    return "\n\n".join("\n".join(lines) for lines in (*parts, advised) if lines)


def _footer(found: Comparison) -> list[str]:
    lines = [f"{printable(found.source)}: {len(found.quants)} quants in {found.seconds:.2f} s"]
    if any(quant.memory is not None for quant in found.quants):
        lines.append(f"to run: weights, KV cache and compute buffers for {found.context:,} tokens, by estimate")
    ran = found.quants[0].behaviour
    if ran is not None and ran.reference_ppl is not None:
        lines.append(
            f"perplexity of the source: {ran.reference_ppl:.4g} ({ran.reference_runtime}, {ran.tokens} tokens)"
        )
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


def _json(found: Comparison, args: argparse.Namespace) -> str:
    best = found.best(args.fit, args.fit_memory)
    chosen: dict[str, Any] = {"fit": args.fit, "fit_memory": args.fit_memory, "best": best.name if best else None}
    return json.dumps(found.as_dict() | chosen, allow_nan=False)


def _markdown(found: Comparison, args: argparse.Namespace) -> str:
    head, rows = _table(found)
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    advised = _plain(advice(found, args.fit, args.fit_memory))
    return f"## Quants of {_plain(found.source)}\n\n{body}\n\n{advised}\n"


def _plain(text: str) -> str:
    """Text in which nothing is Markdown or HTML: what could be is a character reference."""
    return re.sub(r"[^\w\s.,:;()/%-]|(?<!\w)_|_(?!\w)|:(?=//)", lambda found: f"&#{ord(found[0])};", printable(text))


def _page(found: Comparison, args: argparse.Namespace) -> str:
    from converter.reports.html import Candidate, comparison

    candidates = []
    for quant in found.quants:
        did = quant.behaviour
        ppl, kl = (did.candidate_ppl, did.mean_kl) if did is not None else (None, None)
        candidates.append(Candidate(quant.name, quant.bytes, quant.bits_per_weight, quant.sqnr_db, ppl, kl))
    return comparison(found.source, candidates)


_WRITERS: dict[str, Callable[[Comparison, argparse.Namespace], str]] = {
    ".html": _page,
    ".md": _markdown,
    ".json": lambda found, args: _json(found, args) + "\n",
    ".txt": lambda found, args: _text(found, args) + "\n",
}


def _write(path: Path, found: Comparison, args: argparse.Namespace) -> None:
    try:
        path.write_text(_WRITERS[path.suffix.lower()](found, args), "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
