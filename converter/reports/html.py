"""The report as one HTML page with plots: no network, no other file, and no script but the one it names.

Names of tensors come out of files that may be hostile. They are escaped wherever they go, and the page's
Content-Security-Policy allows exactly one script, by its hash: page.js beside this file, which sorts and filters. Plots
are SVG in the page (plots.py), so that a page of a model of 8 B has some 200 kB.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from converter import __version__
from converter.findings import CHECKS, Finding
from converter.reports.findings import failures_first
from converter.reports.numbers import decibels, increase, measured, number, percent
from converter.reports.plots import Axis, Cell, Frame, bytes_axis, figure, heatmap, legend, share, size, text
from converter.reports.verification import COLUMNS, MORE_COLUMNS, NAME, TYPE_HEAD, Column, type_rows, verdict
from converter.runtimes.behaviour import Behaviour
from converter.text import counted, human_bytes
from converter.verify.provenance import Provenance
from converter.verify.results import Fidelity, Histogram, Verification, sqnr_db

if TYPE_CHECKING:
    from converter.calibration.statistics import Statistics
    from converter.certify.results import Certificate
    from converter.compare import Comparison, Quant

# Distinct for the colour-blind and on both backgrounds (after Okabe and Ito, and Tableau); none is red.
PALETTE = (
    "#2f7ed8", "#e69f00", "#009e73", "#9b6dd0", "#56b4e9", "#b5a42e", "#8c6d4f", "#c774a8", "#7f8c99",
)  # fmt: skip
MAX_FINDINGS = 500  # on the page; the JSON report has all
MAX_POINTS = 600  # of a line
MAX_ROLES = 60  # rows of the map
MAX_LABEL = 24  # characters of its labels
MAX_NAMED = 8  # points that fail and have their names beside them
#: Decibels below what is expected that are nothing, and those that are as red as it gets.
CALM, WORST = 0.1, 6.0
EXACT = 100.0  # decibels that nothing is worth telling apart from
#: What tells a page of ours from others.
GENERATOR = '<meta name="generator" content="model-converter">'


def page(verification: Verification) -> str:
    """The report of one verification."""
    inexact = [tensor for tensor in verification.tensors if math.isfinite(tensor.sqnr_db)]
    sections = [_findings(verification), _cards(_facts(verification))]
    if inexact:
        sections += [_layers(verification, inexact), _sizes(verification, inexact)]
    named = {tensor.name: tensor for tensor in verification.tensors}
    values = {name: bins for name, bins in verification.distributions.items() if name in named}
    if values:
        sections.append(_values(values, named))
    if verification.behaviour and verification.behaviour.kl_by_position:
        sections.append(_positions(verification.behaviour))
    if verification.tensors:
        sections.append(_tensor_table(verification))
    sections.append(_provenance(verification.provenance, verification.thresholds))
    word = verdict(verification)
    header = (
        f'<span class="verdict {word.lower()}">{word}</span><h1>{text(verification.target)}</h1>'
        f"<p>measured against {text(verification.source)}</p>"
    )
    return _document(f"{word}: {verification.target}", header, sections)


def comparison(
    found: Comparison, advice: str, notes: Sequence[str], table: tuple[Sequence[str], Sequence[Sequence[str]]],
    best: Quant | None, provenance: Provenance | None,
) -> str:  # fmt: skip
    """A page that shows quants of one source, size against error, so that a person can choose.

    Args:
        advice: what to take, in a sentence.
        notes: what the figures are.
        table: head and rows, as on a terminal.
        best: the quant that is the advice, if one is.
    """
    figures = [_quants(found, best, "quants", "SQNR in dB", _sqnr)]
    if any(quant.behaviour for quant in found.quants):
        figures.append(_quants(found, best, "kl", "mean KL in nats", _mean_kl, log=True))
    marks = {quant.name: " class=best" for quant in (best,) if quant is not None}
    sections = [
        f'<p class="advice">{text(advice)}</p>',
        _section(
            "Quants",
            "<br>".join(map(text, notes)),
            _table(*table, marks=marks),
        ),
        _section(
            "Size against error",
            "To the left is smaller; up is less error, and down less divergence. Hollow ones are beaten: another is no "
            "larger and closer.",
            _pair(figures),
        ),
        _provenance(provenance, ()),
    ]
    return _document(f"quants of {found.source}", f"<h1>Quants of {text(found.source)}</h1>", sections)


def importance(
    title: str, weights: Sequence[Statistics], plots: Iterable[tuple[str, str, Callable[[Statistics], float], bool]],
    table: tuple[Sequence[str], Sequence[Sequence[str]]], notes: str,
) -> str:  # fmt: skip
    """A page that shows what an importance matrix is like.

    Args:
        title: what it is, in a line.
        weights: of it.
        plots: name, title of the axis, figure of a weight, and whether the axis is logarithmic, of each.
        table: head and rows, as on a terminal.
        notes: what the figures are.
    """
    in_layers = [each for each in weights if each.layer is not None]
    figures = [_by_role(in_layers, *plot) for plot in plots] if in_layers else []
    sections = [
        _section("Importance by layer", "A point is a weight; pointing at it shows which.", _pair(figures)),
        _section("Weights", text(notes), _table(*table)),
    ]
    return _document("importance matrix", f"<h1>Importance</h1><p>{text(title)}</p>", sections)


def _by_role(weights: Sequence[Statistics], name: str, title: str, of: Callable[[Statistics], float], log: bool) -> str:
    """A figure of every weight over its layer, the same weights of all layers in one colour."""
    roles = list(dict.fromkeys(each.role for each in weights))
    kinds = {role: f"t{at % len(PALETTE)}" for at, role in enumerate(roles)}
    known = [(each, value) for each in weights if math.isfinite(value := of(each)) and (value > 0 or not log)]
    frame = Frame(_layer_axis(max(each.layer or 0 for each in weights)), Axis.around(title, (v for _, v in known), log))
    marks = []
    for role in roles:
        own = [(float(each.layer or 0), value) for each, value in known if each.role == role]
        marks += [frame.line(own, f"soft {kinds[role]}")] if len(own) > 1 else []
    for each, value in known:
        marks.append(frame.dot(float(each.layer or 0), value, kinds[each.role], f"{each.name}: {value:.4g}"))
    shown = legend([(kind, role) for role, kind in list(kinds.items())[:MAX_ROLES]])
    return figure(name, frame.drawn(marks, title), shown)


def _layer_axis(last: int) -> Axis:
    every = max(1, -(-(last + 1) // 8))
    return Axis("layer", -0.6, last + 0.6, marks=tuple((float(at), str(at)) for at in range(0, last + 1, every)))


def certificate(found: Certificate, facts: Sequence[tuple[str, str]]) -> str:
    """A page that shows which bytes of a model follow from its source.

    Args:
        facts: the model as a whole, label and text.
    """
    kind = {"proven": "passed", "not from this source": "failed"}.get(found.verdict, "partly")
    header = (
        f'<span class="verdict {kind}">{text(found.headline)}</span><h1>{text(found.target)}</h1>'
        f"<p>derived again from {text(found.source)}</p>"
    )
    unproven = [(each.name, each.type, each.status, each.reason) for each in found.unproven]
    shown = "".join(_finding(each, None) for each in failures_first(found.findings)[:MAX_FINDINGS])
    tensors = [(each.name, each.type, each.status, f"{each.differing.count:,}", each.sha256) for each in found.tensors]
    files = [(each.name, each.role or "model", each.sha256) for each in (*found.subjects, *found.materials)]
    sections = [
        _cards([(label, value, "") for label, value in facts]),
        _section("Not proven", _BLAME, _table(("tensor", "type", "verdict", "what"), unproven[:MAX_FINDINGS]))
        if unproven
        else "",
        _section("Keys, tokenizer, template", "", f'<ul class="findings">{shown}</ul>') if shown else "",
        _section("Tensors", "", _table(("tensor", "type", "verdict", "blocks off", "SHA-256"), tensors)),
        _section("Files", "", _table(("file", "what", "SHA-256"), files)),
    ]
    return _document(f"{found.headline}: {found.target}", header, filter(None, sections))


_BLAME = (
    "Blocks that the encoder does not make of this source. Other arithmetic (fused multiply-adds) may have written "
    "those of tensors that are proven but for some; nobody can tell them from blocks that were changed as little."
)


# ------------------------------------------------------------------------------------------------ the document


def _document(title: str, header: str, sections: Iterable[str]) -> str:
    script = resource("page.js")
    policy = f"default-src 'none'; script-src 'sha256-{_sha256(script)}'; style-src 'unsafe-inline'; base-uri 'none'"
    colours = "".join(f".t{at}{{--own:{colour}}}" for at, colour in enumerate(PALETTE))
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            GENERATOR,
            f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>\n<style>\n{resource('page.css')}{colours}\n</style>\n</head>\n<body>\n<main>",
            f"<header>{header}</header>",
            *sections,
            f"<footer>model-converter {text(__version__)}</footer>\n</main>",
            f"<script>{script}</script>",
            "</body>\n</html>\n",
        )
    )


@cache
def resource(name: str) -> str:
    """A file that lies beside this one."""
    return resources.files("converter.reports").joinpath(name).read_text("utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _section(title: str, about: str, *content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n<p>{about}</p>\n" + "\n".join(content) + "\n</section>"


def _pair(figures: Iterable[str]) -> str:
    return f'<div class="pair">{"".join(figures)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], marks: Mapping[str, str] | None = None) -> str:
    """A small table whose first column is a name; `marks` are attributes of rows, by it."""
    titles = "".join(f'<th class="plain{" left" * (not at)}">{text(title)}</th>' for at, title in enumerate(head))
    body = "".join(
        f"<tr{(marks or {}).get(row[0], '')}>"
        + "".join(f"<td{' class=left' * (not at)}>{text(c)}</td>" for at, c in enumerate(row))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _breakable(name: str) -> str:
    """A name that may go on in the next line after its dots, and nowhere else."""
    return text(name).replace(".", ".<wbr>")


# ------------------------------------------------------------------------------------------------ findings, cards


def _findings(verification: Verification) -> str:
    findings = verification.findings
    checks = verification.checks
    listed = "".join(f"<li><b>{name}</b> {text(CHECKS[name])}</li>" for name in checks)
    left = [name for name in CHECKS if name not in checks]
    rest = f"<p>Not made: {', '.join(left)}.</p>" if left else ""
    made = f"<details><summary>{counted(len(checks), 'check')}</summary><ul>{listed}</ul>{rest}</details>"
    if not findings:
        return _section("Findings", "None: nothing is wrong, and nothing else worth knowing.", made)
    rows = {tensor.name: at for at, tensor in enumerate(verification.worst_first)}
    ordered = failures_first(findings)
    failed = sum(finding.failed for finding in findings)
    more = f"<li>{len(ordered) - MAX_FINDINGS} more; the JSON report has all</li>" * (len(ordered) > MAX_FINDINGS)
    shown = "".join(_finding(finding, rows.get(finding.subject)) for finding in ordered[:MAX_FINDINGS])
    return _section(
        "Findings",
        f"{failed} failed, {len(findings) - failed} worth knowing.",
        f'<ul class="findings">{shown}{more}</ul>',
        made,
    )


def _finding(finding: Finding, row: int | None) -> str:
    hint = f"<small>{text(finding.hint)}</small>" if finding.hint else ""
    mark = ' class="failed"' if finding.failed else ""
    name = f"<code>{text(finding.subject)}</code>"
    name = name if row is None else f'<a href="#r{row}">{name}</a>'
    return f"<li{mark}><b>{text(finding.check)}</b>{name} {text(finding.message)}{hint}</li>"


Card = tuple[str, str, str]  # label, figure, small words


def _facts(verification: Verification) -> list[Card]:
    """The model as a whole; the words of a card are HTML."""
    of = verification.summary()
    if not verification.tensors:
        return []
    cards: list[Card] = [
        ("tensors", f"{of['tensors']:,}", f"{of['exact']} exact, {of['reproduced']} reproduced, {of['failed']} failed"),
        ("size", human_bytes(of["bytes"]), f"{of['bits_per_weight']:.2f} bits per weight"),
        ("SQNR", _db(of["sqnr_db"]), "of all tensors together"),
        ("largest error", number(of["max_abs"]), "of a single value"),
    ]
    if of["exact"] < of["tensors"]:
        worst = verification.worst_first[0]
        cards.append(("worst tensor", _db(worst.sqnr_db), f'<a href="#r0">{_breakable(worst.name)}</a>'))
    return [*cards, *_ran(verification.behaviour), ("time", f"{verification.seconds:.2f} s", "by the clock")]


def _ran(behaviour: Behaviour | None) -> list[Card]:
    if behaviour is None:
        return []
    runtimes = f"{text(behaviour.reference_runtime)} and {text(behaviour.candidate_runtime)}"
    cards: list[Card] = []
    if behaviour.mean_kl is not None:
        cards.append(("mean KL", measured(behaviour.mean_kl, behaviour.mean_kl_error), "nats, of the next token"))
        cards.append(("same top token", percent(behaviour.top1), f"of {behaviour.tokens:,} tokens; {runtimes}"))
    if behaviour.ppl_increase is not None:
        now = measured(behaviour.candidate_ppl, behaviour.candidate_ppl_error)
        before = measured(behaviour.reference_ppl, behaviour.reference_ppl_error)
        cards.append(("perplexity", now, f"the source has {before}: {increase(behaviour)}"))
    if behaviour.cosine is not None:
        cards.append(("smallest cosine", number(behaviour.cosine), runtimes))
    return cards


def _db(value: float) -> str:
    return decibels(value) + (" dB" if math.isfinite(value) else "")


def _cards(cards: Iterable[Card]) -> str:
    shown = "".join(f"<div><dt>{label}</dt><dd>{text(big)}</dd><dd>{small}</dd></div>" for label, big, small in cards)
    return f'<dl class="facts">{shown}</dl>' if shown else ""


# ------------------------------------------------------------------------------------------------ error by layer

_NUMBER = re.compile(r"(?:(?<=^)|(?<=[./]))\d+(?=[./]|$)")


def _layer(name: str) -> int | None:
    """The block a tensor belongs to: the first number that is a whole part of its name."""
    found = _NUMBER.search(name)
    return int(found[0]) if found and len(found[0]) < 6 else None


def _role(name: str) -> str:
    """A name without its numbers, and without what nearly all begin or end with."""
    role = _NUMBER.sub("*", name)
    return re.sub(r"^(blk|model\.layers|layers|h|transformer\.h)\.\*\.|\.weight$", "", role)


def _types(tensors: Iterable[Fidelity]) -> dict[str, str]:
    """A colour (its class) for each type, the most frequent first."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.type] = counts.get(tensor.type, 0) + 1
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return {name: f"t{at % len(PALETTE)}" for at, name in enumerate(ordered)}


def _expected(tensor: Fidelity) -> float | None:
    """SQNR that it should have at least, where that is finite."""
    return sqnr_db(tensor.bound) if tensor.bound else None


def _hover(tensor: Fidelity) -> str:
    expected = _expected(tensor)
    at_least = f", expected {decibels(expected)}" if expected is not None else ""
    error = f"error {100 * math.sqrt(tensor.nmse):.3g} %"
    return (
        f"{tensor.name}: {tensor.type}, {human_bytes(tensor.bytes)}, {decibels(tensor.sqnr_db)} dB{at_least}, {error}"
    )


def _dots(
    frame: Frame, tensors: Iterable[Fidelity], places: Mapping[str, tuple[float, float]], failed: set[str]
) -> list[str]:
    """Points in the colours of their types; those that fail in red, on top, the first with their names."""
    tensors = list(tensors)
    types = _types(tensors)
    dots: dict[str, str] = {}  # by place and kind, so that points on top of each other are one
    for tensor in (each for each in tensors if each.name not in failed):
        dot = frame.dot(*places[tensor.name], types[tensor.type], _hover(tensor))
        dots.setdefault(dot.partition("<title>")[0], dot)
    bad = [each for each in tensors if each.name in failed]
    marks = [*dots.values(), *(frame.dot(*places[each.name], "bad", _hover(each), 6) for each in bad)]
    named = (frame.label(*places[each.name], _clipped(each.name), "bad") for each in bad[:MAX_NAMED])
    return [*marks, *named]


def _kinds(tensors: Iterable[Fidelity], failed: set[str]) -> list[tuple[str, str]]:
    tensors = list(tensors)
    bad = [("bad", "failed")] if any(tensor.name in failed for tensor in tensors) else []
    return [*((kind, name) for name, kind in _types(tensors).items()), *bad]


def _layers(verification: Verification, inexact: Sequence[Fidelity]) -> str:
    figures = [_by_layer(inexact, verification.failed_tensors())]
    whole = _map(inexact)
    if whole:
        figures.append(whole)
    left_out = len(verification.tensors) - len(inexact)
    note = f" {counted(left_out, 'tensor')} without a finite SQNR, such as exact ones, are not shown." * bool(left_out)
    about = "Signal over quantization noise (SQNR) of every tensor; 6 dB more is half the error." + note
    return _section("Error by layer", about, _pair(figures))


def _by_layer(tensors: Sequence[Fidelity], failed: set[str]) -> str:
    """SQNR of every tensor over its layer, with what a correct encoder reaches at least."""
    bounds = {tensor.name: expected for tensor in tensors if (expected := _expected(tensor)) is not None}
    places = {tensor.name: (float(_layer_of(tensor)), tensor.sqnr_db) for tensor in tensors}
    last = max(int(x) for x, _ in places.values())
    every = max(1, -(-(last + 1) // 8))
    marks = ((-1.0, "none"), *((float(at), str(at)) for at in range(0, last + 1, every)))
    frame = Frame(
        Axis("layer", -1.6, last + 0.6, marks=marks),
        Axis.around("SQNR in dB", [*bounds.values(), *(tensor.sqnr_db for tensor in tensors)]),
    )
    drawn = {frame.tick(places[name][0], level, "soft") for name, level in bounds.items()}
    down = [frame.line((places[name], (places[name][0], bounds[name])), "bad") for name in bounds if name in failed]
    points = [*sorted(drawn), *down, *_dots(frame, tensors, places, failed)]
    kinds = [*_kinds(tensors, failed), *([("bound", "expected, at least")] if bounds else [])]
    return figure("layers", frame.drawn(points, "SQNR by layer"), legend(kinds))


def _layer_of(tensor: Fidelity) -> int:
    layer = _layer(tensor.name)
    return -1 if layer is None else layer


def _map(tensors: Sequence[Fidelity]) -> str:
    """Layer by role, red where a tensor is further off than it should be; the worst where several share a field.

    Nothing for fewer than two layers, and where nobody knows what to expect.
    """
    fields: dict[tuple[str, int], Cell] = {}
    for tensor in tensors:
        layer, expected = _layer(tensor.name), _expected(tensor)
        if layer is None or expected is None:
            continue
        below = expected - tensor.sqnr_db
        cell = Cell(below if below > CALM else 0.0, f"{_hover(tensor)}: {below:.1f} dB less than expected")
        key = (_role(tensor.name), layer)
        fields[key] = max(fields.get(key, cell), cell, key=lambda each: each.off)
    roles = sorted({role for role, _ in fields})[:MAX_ROLES]
    layers = sorted({layer for _, layer in fields})
    if len(layers) < 2:
        return ""
    rows = [(_clipped(role), [fields.get((role, layer)) for layer in layers]) for role in roles]
    kinds = legend([("calm", "as expected"), ("off", f"worse, full red by {WORST:g} dB")])
    return figure("map", heatmap(rows, [str(layer) for layer in layers], WORST), kinds)


def _clipped(name: str) -> str:
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"


# ------------------------------------------------------------------------------------------------ size against error


def _sizes(verification: Verification, inexact: Sequence[Fidelity]) -> str:
    failed = verification.failed_tensors()
    places = {tensor.name: (float(tensor.bytes), 100 * math.sqrt(tensor.nmse)) for tensor in inexact}
    frame = Frame(
        bytes_axis(x for x, _ in places.values()),
        Axis.around("error, % of the values", (y for _, y in places.values()), True, show=share),
    )
    plot = frame.drawn(_dots(frame, inexact, places, failed), "size against error")
    return _section(
        "Size against error",
        "Every tensor by its bytes and its relative error (root mean square). A large tensor high up is where a larger "
        "type helps most; a large one low down is where a smaller type costs least.",
        _pair((figure("sizes", plot, legend(_kinds(inexact, failed))), _table(TYPE_HEAD, type_rows(verification)))),
    )


def _sqnr(quant: Quant) -> float:
    """What is as good as exact is not drawn: all others would be one point."""
    return quant.sqnr_db if quant.sqnr_db < EXACT else math.inf


def _mean_kl(quant: Quant) -> float:
    found = quant.behaviour.mean_kl if quant.behaviour else None
    return math.nan if found is None else found


def _quants(
    found: Comparison, best: Quant | None, name: str, title: str, of: Callable[[Quant], float], *, log: bool = False
) -> str:
    """Quants by the size of their files and a figure; with names, the best first, where there is room for them."""
    known = [(quant, value) for quant in found.quants if math.isfinite(value := of(quant)) and (value > 0 or not log)]
    frame = Frame(
        Axis.around("size of the file", (quant.bytes for quant, _ in known), show=size),
        Axis.around(title, (value for _, value in known), log),
    )
    marks = []
    for quant, value in sorted(known, key=lambda pair: pair[0].bytes):
        kind = "beaten" if found.beaten_by(quant) else "best" if best is not None and quant.name == best.name else "t0"
        words = f"{quant.name}: {human_bytes(quant.bytes)}, {quant.bits_per_weight:.2f} bits, {value:.4g}"
        marks.append(frame.dot(quant.bytes, value, kind, words, 5))
    taken: list[tuple[float, float]] = []
    for quant, value in sorted(known, key=lambda pair: (pair[0] is not best, found.beaten_by(pair[0]) is not None)):
        x, y = frame.at(quant.bytes, value)
        if all(abs(x - a) > 60 or abs(y - b) > 13 for a, b in taken):
            taken.append((x, y))
            marks.append(frame.label(quant.bytes, value, quant.name, above=True))
    return figure(name, frame.drawn(marks, title))


# ------------------------------------------------------------------------------------------------ values


def _values(histograms: Mapping[str, Histogram], tensors: Mapping[str, Fidelity]) -> str:
    """Of each tensor its distributions and its errors; the page shows those of the chosen one."""
    options = "".join(f'<option value="{at}">{text(name)}</option>' for at, name in enumerate(histograms))
    shown = [
        f'<div class="pair choice" data-of="{at}"{" hidden" * bool(at)}>'
        f"{_distribution(bins, log=False)}{_distribution(bins, log=True)}{_exceeding(tensors[name])}</div>"
        for at, (name, bins) in enumerate(histograms.items())
    ]
    return _section(
        "Values before and after",
        "How the values of the worst tensors are distributed in the source and in the target, and how large their "
        "errors are.",
        f'<div class="controls"><label>tensor <select id="tensor">{options}</select></label>'
        '<label><input type="checkbox" id="logarithmic"> logarithmic</label></div>',
        f'<div id="values">{"".join(shown)}</div>',
    )


def _distribution(bins: Histogram, *, log: bool) -> str:
    edges, before, after = bins
    sides = [[count / (sum(map(float, counts)) or 1.0) for count in counts] for counts in (before, after)]
    shares = [share for side in sides for share in side]
    frame = Frame(
        Axis("value", float(edges[0]), float(edges[-1])),
        Axis.around("share of the values", shares, True) if log else Axis("share of the values", 0, max(shares) * 1.05),
    )
    lines = [frame.steps(edges, side, kind) for side, kind in zip(sides, ("area", "after"), strict=True)]
    plot = frame.drawn(lines, "values before and after")
    kinds = legend([("area", "source"), ("after", "target")])
    return f'<figure class="plot {"log" if log else "plain"}"{" hidden" * log}>{kinds}{plot}</figure>'


def _exceeding(tensor: Fidelity) -> str:
    """The share of values whose error is larger than x."""
    total = sum(count for _, count in tensor.histogram)
    above, points = total, []
    for edge, count in tensor.histogram:
        above -= count
        if above > 0:
            points.append((float(edge), above / total))
    least = points[-1][0] / 1000 if points else 0.0  # most buckets are too close to zero to be seen
    points = [point for point in points if point[0] >= least]
    if len(points) < 2:
        return ""
    frame = Frame(
        Axis.around("absolute error", (x for x, _ in points), True),
        Axis.around("share with a larger error", (y for _, y in points), True, show=lambda part: share(100 * part)),
    )
    return f'<figure class="plot">{frame.drawn([frame.line(points, "after")], "errors")}</figure>'


# ------------------------------------------------------------------------------------------------ behaviour


def _positions(behaviour: Behaviour) -> str:
    """KL divergence over the position in the text; long texts in stretches, by their largest and their mean."""
    kl = [value if math.isfinite(value) else 0.0 for value in behaviour.kl_by_position]
    stretch = -(-len(kl) // MAX_POINTS)
    parts = [kl[start : start + stretch] for start in range(0, len(kl), stretch)]
    means = _running([sum(part) / len(part) for part in parts], max(1, len(parts) // 40))
    largest = [max(part) for part in parts]
    frame = Frame(
        Axis("position in the text", 0, max(1, len(kl))),
        Axis.around("KL divergence in nats", [*largest, *means], True),
        260,
    )
    lines = [
        frame.line(((at * stretch, y) for at, y in enumerate(series) if y > 0), kind)
        for series, kind in ((largest, "soft"), (means, "after"))
    ]
    kinds = [
        ("soft", "each position" if stretch == 1 else f"largest of {stretch} positions"),
        ("after", "running mean"),
    ]
    about = (
        f"How far the next token's distribution of {text(behaviour.candidate_runtime)} (target) is from that of "
        f"{text(behaviour.reference_runtime)} (source), at each position."
    )
    return _section(
        "Divergence by position", about, figure("positions", frame.drawn(lines, "divergence"), legend(kinds))
    )


def _running(values: Sequence[float], reach: int) -> list[float]:
    """Mean over `reach` values to both sides."""
    windows = [values[max(0, at - reach) : at + reach + 1] for at in range(len(values))]
    return [sum(window) / len(window) for window in windows]


# ------------------------------------------------------------------------------------------------ the table


def _tensor_table(verification: Verification) -> str:
    columns = (*COLUMNS, *MORE_COLUMNS)
    failed = verification.failed_tensors()
    numbers = [
        any(isinstance(_sort_key(column, each), int | float) for each in verification.tensors) for column in columns
    ]
    heads = "".join(_head(column, number) for column, number in zip(columns, numbers, strict=True))
    rows = "\n".join(
        _row(at, tensor, columns, tensor.name in failed) for at, tensor in enumerate(verification.worst_first)
    )
    return _section(
        "Tensors",
        "The worst first; a click on a column sorts by it, another the other way round.",
        '<div class="controls"><label><input type="search" id="filter" placeholder="filter: attn q4_k" '
        'aria-label="filter"></label><label><input type="checkbox" id="failed"> failed only</label>'
        '<span id="count" role="status"></span></div>',
        f'<div class="tall"><table id="tensors"><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>',
    )


def _head(column: Column, number: bool) -> str:
    kind = " data-number" if number else ' class="left"'
    return f'<th{kind} title="{text(column.help)}"><button type="button">{text(column.title)}</button></th>'


def _row(at: int, tensor: Fidelity, columns: Iterable[Column], failed: bool) -> str:
    cells = "".join(_cell(column, tensor) for column in columns)
    return f'<tr id="r{at}"{" class=failed" * failed}>{cells}</tr>'


def _cell(column: Column, tensor: Fidelity) -> str:
    """A cell; what it sorts by stands in it where that is another text."""
    key, shown = _sort_key(column, tensor), column.text(tensor)
    kind = "" if isinstance(key, int | float) or key == "" else " class=left"
    value = (
        "Infinity"
        if key == math.inf
        else "-Infinity"
        if key == -math.inf
        else f"{key:.6g}"
        if isinstance(key, float)
        else str(key)
    )
    sort = "" if value == shown else f' data-value="{text(value)}"'
    return f"<td{kind}{sort}>{f'<code>{text(shown)}</code>' if column is NAME else text(shown)}</td>"


def _sort_key(column: Column, tensor: Fidelity) -> str | float:
    """What a cell sorts by; "" for nothing, which goes to the end."""
    value = column.value(tensor)
    if column.title == "shape":
        return tensor.elements
    if value is None or value != value:
        return ""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else column.text(tensor)


# ------------------------------------------------------------------------------------------------ how it was made


def _provenance(made: Provenance | None, thresholds: Sequence[str]) -> str:
    """What an audit asks for: command, date, version, the gate, and which bytes were read."""
    if made is None:
        return ""
    rows = [
        ("command", f"<code>{text(made.command)}</code>"),
        ("made", text(made.made)),
        ("by", f"model-converter {text(made.version)}"),
    ]
    rows += [("gate" if not at else "", text(line)) for at, line in enumerate(thresholds)]
    facts = "".join(f"<dt>{label}</dt><dd>{words}</dd>" for label, words in rows)
    head = ("file", "bytes", "SHA-256")
    files = [[each.path, f"{each.bytes or 0:,}", each.sha256] for each in made.files if each.sha256 is not None]
    return _section("How this was made", "", f'<dl class="made">{facts}</dl>', _table(head, files) if files else "")
