"""The report as one HTML page with plots: no network, no other file, nothing in it runs but the two scripts it names.

Names of tensors come out of files that may be hostile. They are escaped wherever they go (elements, attributes, data,
and the labels of plots, which plotly reads as a little HTML), and the page's Content-Security-Policy allows exactly
two scripts, by their hashes: plotly and page.js beside this file. plotly's Python package brings plotly.min.js
(4.8 MB), and the page carries all of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from itertools import pairwise
from typing import Any

from converter import __version__
from converter.extras import package
from converter.findings import Finding
from converter.reports.findings import failures_first
from converter.reports.numbers import decibels
from converter.reports.verification import (
    COLUMNS,
    MORE_COLUMNS,
    NAME,
    TYPE_HEAD,
    Column,
    facts,
    type_rows,
    verdict,
)
from converter.runtimes.behaviour import Behaviour
from converter.storage.json import finite
from converter.text import human_bytes, printable
from converter.verify.results import Fidelity, Histogram, Verification

# Distinct for the colour-blind and on both backgrounds (after Okabe and Ito, and Tableau).
PALETTE = (
    "#2f7ed8", "#e69f00", "#009e73", "#d55e6a", "#9b6dd0", "#56b4e9", "#b5a42e", "#8c6d4f", "#c774a8", "#7f8c99",
)  # fmt: skip
MAX_FINDINGS = 500  # on the page; the JSON report has all
MAX_POINTS = 1500  # of a line
MAX_ROLES = 60  # rows of the map
MAX_LABEL = 28  # characters of its labels

Plot = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One quant of a comparison: its size in bytes and its error; perplexity where a runtime measured it."""

    name: str
    bytes: int
    bits_per_weight: float
    sqnr_db: float
    perplexity: float | None = None
    mean_kl: float | None = None


@cache
def plotly_source() -> str:
    """plotly.min.js, of the installed package.

    Raises:
        MissingDependency: plotly is not installed.
    """
    return str(package("plotly.offline", "an HTML report (others do without)").get_plotlyjs())


#: What tells a page of ours from others.
GENERATOR = '<meta name="generator" content="model-converter">'


def page(verification: Verification) -> str:
    """The report of one verification.

    Raises:
        MissingDependency: plotly is not installed.
    """
    named = {tensor.name: tensor for tensor in verification.tensors}
    values = {name: bins for name, bins in verification.distributions.items() if name in named}
    inexact = [tensor for tensor in verification.tensors if math.isfinite(tensor.sqnr_db)]
    plots: dict[str, Plot] = {}
    sections = [_facts(facts(verification)), _findings(verification.findings)]
    if inexact:
        plots |= {"layers": _by_layer(inexact), "sizes": _size_against_error(inexact)}
        sections += [_layer_section(verification, plots, inexact)]
    if values:
        plots["values"] = _value_plot(values)
        plots["errors"] = _error_plot([named[name] for name in values])
        sections.append(_value_section(list(values)))
    if inexact:
        sections.append(_size_section(verification))
    if verification.behaviour and verification.behaviour.kl_by_position:
        plots["positions"] = _by_position(verification.behaviour)
        sections.append(_position_section(verification.behaviour))
    if verification.tensors:
        sections.append(_tensor_table(verification))
    return _document(
        f"{verdict(verification)}: {verification.target}",
        f'<span class="verdict {verdict(verification).lower()}">{verdict(verification)}</span>'
        f"<h1>{_text(verification.target)}</h1><p>measured against {_text(verification.source)}</p>",
        sections,
        plots,
    )


def comparison(source: str, candidates: Sequence[Candidate]) -> str:
    """A page that shows quants of one source, size against error, so that a person can choose.

    Raises:
        MissingDependency: plotly is not installed.
    """
    plots = {"quants": _quants(candidates, "SQNR in dB", [quant.sqnr_db for quant in candidates])}
    figures = [_plot("quants")]
    if any(quant.perplexity for quant in candidates):
        plots["perplexity"] = _quants(candidates, "perplexity", [quant.perplexity for quant in candidates])
        figures.append(_plot("perplexity"))
    head = ("quant", "size", "bits per weight", "SQNR dB", "perplexity", "mean KL")
    rows = [
        [quant.name, human_bytes(quant.bytes), f"{quant.bits_per_weight:.2f}", decibels(quant.sqnr_db)]
        + ["" if value is None else f"{value:.4g}" for value in (quant.perplexity, quant.mean_kl)]
        for quant in candidates
    ]
    section = _section(
        "Size against error",
        "To the left is smaller; up is less error, and down the lower perplexity.",
        _pair(figures),
        _table(head, rows),
    )
    return _document(f"quants of {source}", f"<h1>Quants of {_text(source)}</h1>", [section], plots)


# ------------------------------------------------------------------------------------------------ the document


def _text(value: object) -> str:
    """Text in HTML, in an element or a quoted attribute; control characters are spelled out."""
    return escape(printable(str(value)))


_label = _text  # plotly reads labels as HTML of a few tags, and what is escaped as text


def _document(title: str, header: str, sections: Iterable[str], plots: Mapping[str, Plot]) -> str:
    scripts = [plotly_source(), _resource("page.js")]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            GENERATOR,
            f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title>\n<style>\n{_resource('page.css')}</style>\n</head>\n<body>\n<main>",
            f"<header>{header}</header>",
            *sections,
            f"<footer>model-converter {_text(__version__)}; plots by plotly.js</footer>\n</main>",
            f'<script type="application/json" id="plots">{_json(plots)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        )
    )


@cache
def _resource(name: str) -> str:
    return resources.files("converter.reports").joinpath(name).read_text("utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(finite(value)).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _section(title: str, about: str, *content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n<p>{about}</p>\n" + "\n".join(content) + "\n</section>"


def _plot(name: str) -> str:
    return f'<div class="plot" id="{name}"></div>'


def _pair(figures: Iterable[str]) -> str:
    return f'<div class="pair">{"".join(figures)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A small table whose first column is a name."""
    titles = "".join(f'<th class="plain{" left" * (not at)}">{_text(title)}</th>' for at, title in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=left' * (not at)}>{_text(c)}</td>" for at, c in enumerate(row)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    cards = "".join(f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>" for label, value in rows)
    return f'<dl class="facts">{cards}</dl>'


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return _section("Findings", "None.")
    ordered = failures_first(findings)
    failed = sum(finding.failed for finding in findings)
    more = f"<li>{len(ordered) - MAX_FINDINGS} more; the JSON report has all</li>" * (len(ordered) > MAX_FINDINGS)
    return _section(
        "Findings",
        f"{failed} failed, {len(findings) - failed} worth knowing.",
        f'<ul class="findings">{"".join(map(_finding, ordered[:MAX_FINDINGS]))}{more}</ul>',
    )


def _finding(finding: Finding) -> str:
    hint = f"<small>{_text(finding.hint)}</small>" if finding.hint else ""
    mark = ' class="failed"' if finding.failed else ""
    subject = f"<b>{_text(finding.check)}</b><code>{_text(finding.subject)}</code>"
    return f"<li{mark}>{subject} {_text(finding.message)}{hint}</li>"


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
    """A colour for each type, the most frequent first."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.type] = counts.get(tensor.type, 0) + 1
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return {name: PALETTE[at % len(PALETTE)] for at, name in enumerate(ordered)}


def _hover(tensor: Fidelity) -> str:
    return (
        f"{_label(tensor.name)}<br>{_label(tensor.type)}, {human_bytes(tensor.bytes)}"
        f"<br>SQNR {decibels(tensor.sqnr_db)} dB, error {100 * math.sqrt(tensor.nmse):.3g} %"
    )


def _by_layer(tensors: Sequence[Fidelity]) -> Plot:
    """SQNR of every tensor over its layer, coloured by type; grey dashes where a correct encoder would be at least."""
    traces = [_bounds(tensors)] if any(tensor.bound for tensor in tensors) else []
    for name, colour in _types(tensors).items():
        own = [tensor for tensor in tensors if tensor.type == name]
        marker = {"size": 9, "color": colour, "opacity": 0.85}
        traces.append(_dots(name, [_layer_of(tensor) for tensor in own], [t.sqnr_db for t in own], own, marker))
    layers = [layer for tensor in tensors if (layer := _layer(tensor.name)) is not None]
    ticks = range(0, max(layers, default=-1) + 1, max(1, (max(layers, default=0) + 1) // 8))
    axis = {"title": "layer", "tickvals": [-1, *ticks], "ticktext": ["-", *map(str, ticks)], "tickangle": 0}
    return {"traces": traces, "layout": {"xaxis": axis, "yaxis": {"title": "SQNR in dB"}, "height": 430}}


def _layer_of(tensor: Fidelity) -> int:
    layer = _layer(tensor.name)
    return -1 if layer is None else layer


def _dots(name: str, x: Sequence[float], y: Sequence[float], tensors: Sequence[Fidelity], marker: Plot) -> Plot:
    return {
        "type": "scatter", "mode": "markers", "name": _label(name), "x": list(x), "y": list(y), "marker": marker,
        "text": [_hover(tensor) for tensor in tensors], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _bounds(tensors: Iterable[Fidelity]) -> Plot:
    known = [tensor for tensor in tensors if tensor.bound]
    return {
        "type": "scatter", "mode": "markers", "name": "expected, at least", "hoverinfo": "skip",
        "x": [_layer_of(tensor) for tensor in known],
        "y": [-10 * math.log10(tensor.bound) for tensor in known if tensor.bound],
        "marker": {"symbol": "line-ew-open", "size": 12, "line": {"width": 1.5}},
        "meta": {"colours": {"marker.color": "--soft"}},
    }  # fmt: skip


def _map(tensors: Sequence[Fidelity]) -> Plot | None:
    """SQNR as a map, layer by role; the worst where several tensors share a field. None for fewer than two layers."""
    fields: dict[tuple[str, int], Fidelity] = {}
    for tensor in tensors:
        layer = _layer(tensor.name)
        if layer is not None:
            key = (_role(tensor.name), layer)
            fields[key] = min(fields.get(key, tensor), tensor, key=lambda t: t.sqnr_db)
    roles = sorted({role for role, _ in fields})[:MAX_ROLES]
    layers = sorted({layer for _, layer in fields})
    if len(layers) < 2:
        return None
    rows = [[fields.get((role, layer)) for layer in layers] for role in roles]
    trace = {
        "type": "heatmap", "x": layers, "y": [_label(_clipped(role)) for role in roles],
        "z": [[tensor and tensor.sqnr_db for tensor in row] for row in rows],
        "text": [[_hover(tensor) if tensor else "" for tensor in row] for row in rows],
        "hovertemplate": "%{text}<extra></extra>", "hoverongaps": False, "xgap": 1, "ygap": 1,
        "colorscale": "Viridis", "colorbar": {"title": {"text": "dB"}, "thickness": 12, "outlinewidth": 0},
    }  # fmt: skip
    axes = {"xaxis": {"title": "layer"}, "yaxis": {"autorange": "reversed", "type": "category"}}
    return {"traces": [trace], "layout": {**axes, "height": max(430, 26 * len(roles) + 90)}}


def _clipped(name: str) -> str:
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"


def _layer_section(verification: Verification, plots: dict[str, Plot], inexact: Sequence[Fidelity]) -> str:
    figures = [_plot("layers")]
    whole = _map(inexact)
    if whole:
        plots["map"] = whole
        figures.append(_plot("map"))
    left_out = len(verification.tensors) - len(inexact)
    note = f" {left_out} tensors without a finite SQNR, such as exact ones, are not shown." if left_out else ""
    about = "Signal over quantization noise (SQNR) of every tensor; 6 dB more is half the error." + note
    return _section("Error by layer and type", about, _pair(figures))


# ------------------------------------------------------------------------------------------------ size against error


def _size_against_error(tensors: Sequence[Fidelity]) -> Plot:
    traces = []
    for name, colour in _types(tensors).items():
        own = [tensor for tensor in tensors if tensor.type == name]
        marker = {"size": 10, "color": colour, "opacity": 0.75, "line": {"width": 1}}
        trace = _dots(name, [t.bytes for t in own], [100 * math.sqrt(t.nmse) for t in own], own, marker)
        traces.append({**trace, "meta": {"colours": {"marker.line.color": "--panel"}}})
    axes = {
        "xaxis": {"title": "bytes", "type": "log"},
        "yaxis": {"title": "error, % of the values", "type": "log"},
    }
    return {"traces": traces, "layout": {**axes, "height": 430}}


def _size_section(verification: Verification) -> str:
    return _section(
        "Size against error",
        "Every tensor by its bytes and its relative error (root mean square). A large tensor high up is where a larger "
        "type helps most; a large one low down is where a smaller type costs least.",
        _plot("sizes"),
        _table(TYPE_HEAD, type_rows(verification)),
    )


def _quants(candidates: Sequence[Candidate], title: str, values: Sequence[float | None]) -> Plot:
    known = [(quant, value) for quant, value in zip(candidates, values, strict=True) if value is not None]
    known.sort(key=lambda pair: pair[0].bytes)
    trace = {
        "type": "scatter", "mode": "lines+markers+text", "showlegend": False,
        "x": [quant.bytes for quant, _ in known], "y": [value for _, value in known],
        "text": [_label(quant.name) for quant, _ in known], "textposition": "top center",
        "customdata": [f"{human_bytes(quant.bytes)}, {quant.bits_per_weight:.2f} bits" for quant, _ in known],
        "hovertemplate": "%{text}: %{y:.4g}<br>%{customdata}<extra></extra>",
        "line": {"width": 1, "dash": "dot"}, "marker": {"size": 11},
        "meta": {"colours": {"marker.color": "--accent", "line.color": "--soft"}},
    }  # fmt: skip
    return {"traces": [trace], "layout": {"xaxis": {"title": "bytes"}, "yaxis": {"title": title}, "height": 430}}


# ------------------------------------------------------------------------------------------------ values


def _value_plot(histograms: Mapping[str, Histogram]) -> Plot:
    """One pair of distributions per tensor; the page shows the chosen one."""
    return {
        "traces": [
            [
                {**_steps("source", edges, before), "fill": "tozeroy", "meta": {"colours": {"line.color": "--soft"}}},
                {**_steps("target", edges, after), "meta": {"colours": {"line.color": "--accent"}}},
            ]
            for edges, before, after in histograms.values()
        ],
        "chooser": "tensor",
        "layout": {"xaxis": {"title": "value"}, "yaxis": {"title": "share of the values"}, "height": 400},
    }


def _steps(name: str, edges: Sequence[float], counts: Sequence[int]) -> Plot:
    total = sum(map(float, counts)) or 1.0
    return {
        "type": "scatter", "mode": "lines", "name": name, "line": {"shape": "hvh", "width": 1.6},
        "x": [(float(a) + float(b)) / 2 for a, b in pairwise(edges)],
        "y": [float(count) / total for count in counts],
        "hovertemplate": "%{x:.4g}: %{y:.3%}<extra>" + name + "</extra>",
    }  # fmt: skip


def _error_plot(tensors: Sequence[Fidelity]) -> Plot:
    """Per tensor the share of values whose error is larger than x."""
    axes = {
        "xaxis": {"title": "absolute error", "type": "log", "exponentformat": "power", "dtick": 1},
        "yaxis": {"title": "share with a larger error", "type": "log", "tickformat": ".2~p", "dtick": 1},
    }
    traces = [[_exceeding(tensor)] if tensor.histogram else [] for tensor in tensors]
    return {"traces": traces, "chooser": "tensor", "layout": {**axes, "height": 400}}


def _exceeding(tensor: Fidelity) -> Plot:
    total = sum(count for _, count in tensor.histogram) or 1
    above, points = total, []
    for edge, count in tensor.histogram:
        above -= count
        if above > 0:
            points.append((float(edge), above / total))
    least = points[-1][0] / 1000 if points else 0.0  # most buckets are too close to zero to be seen
    points = [point for point in points if point[0] >= least]
    return {
        "type": "scatter", "mode": "lines", "showlegend": False, "line": {"width": 2},
        "x": [edge for edge, _ in points], "y": [share for _, share in points],
        "hovertemplate": "%{y:.3%} above %{x:.3g}<extra></extra>", "meta": {"colours": {"line.color": "--accent"}},
    }  # fmt: skip


def _value_section(names: Sequence[str]) -> str:
    options = "".join(f'<option value="{at}">{_text(name)}</option>' for at, name in enumerate(names))
    return _section(
        "Values before and after",
        "How the values of a tensor are distributed in the source and in the target, and how large their errors are.",
        f'<div class="controls"><label>tensor <select id="tensor">{options}</select></label>'
        '<label><input type="checkbox" id="logarithmic"> logarithmic</label></div>',
        _pair((_plot("values"), _plot("errors"))),
    )


# ------------------------------------------------------------------------------------------------ behaviour


def _by_position(behaviour: Behaviour) -> Plot:
    """KL divergence over the position in the text; long texts in stretches, by their largest and their mean."""
    kl = behaviour.kl_by_position
    stretch = -(-len(kl) // MAX_POINTS)
    parts = [kl[start : start + stretch] for start in range(0, len(kl), stretch)]
    at = [start for start in range(0, len(kl), stretch)]
    name = "each position" if stretch == 1 else f"largest of {stretch} positions"
    mean = _running([sum(part) / len(part) for part in parts], max(1, len(parts) // 40))
    traces = [
        {**_line(name, at, [max(part) for part in parts], "--soft", 1), "opacity": 0.7},
        _line("running mean", at, mean, "--accent", 2.5),
    ]
    axes = {
        "xaxis": {"title": "position in the text"},
        "yaxis": {"title": "KL divergence in nats", "type": "log", "exponentformat": "power", "dtick": 1},
    }
    return {"traces": traces, "layout": {**axes, "height": 400}}


def _line(name: str, x: Sequence[int], y: Sequence[float], colour: str, width: float) -> Plot:
    return {
        "type": "scatter", "mode": "lines", "name": name, "line": {"width": width},
        "x": list(x), "y": [value if value > 0 else None for value in y],
        "hovertemplate": "%{x}: %{y:.3g}<extra></extra>", "meta": {"colours": {"line.color": colour}},
    }  # fmt: skip


def _running(values: Sequence[float], reach: int) -> list[float]:
    """Mean over `reach` values to both sides."""
    windows = [values[max(0, at - reach) : at + reach + 1] for at in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _position_section(behaviour: Behaviour) -> str:
    about = (
        f"How far the next token's distribution of {_text(behaviour.candidate_runtime)} (target) is from that of "
        f"{_text(behaviour.reference_runtime)} (source), at each position."
    )
    return _section("Divergence by position", about, _plot("positions"))


# ------------------------------------------------------------------------------------------------ the table


def _tensor_table(verification: Verification) -> str:
    columns = (*COLUMNS, *MORE_COLUMNS)
    failed = verification.failed_tensors()
    numbers = {column.title for column in columns if _is_number(column, verification.tensors)}
    heads = "".join(_head(column, column.title in numbers) for column in columns)
    rows = "\n".join(_row(tensor, columns, tensor.name in failed) for tensor in verification.worst_first)
    return _section(
        "Tensors",
        "The worst first; a click on a column sorts by it, another the other way round.",
        '<div class="controls"><label><input type="search" id="filter" placeholder="filter: attn q4_k" '
        'aria-label="filter"></label><label><input type="checkbox" id="failed"> failed only</label>'
        '<span id="count" role="status"></span></div>',
        f'<div class="tall"><table id="tensors"><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>',
    )


def _is_number(column: Column, tensors: Iterable[Fidelity]) -> bool:
    return any(isinstance(_sort_key(column, tensor), int | float) for tensor in tensors)


def _head(column: Column, number: bool) -> str:
    kind = " data-number" if number else ' class="left"'
    return f'<th{kind} title="{_text(column.help)}"><button type="button">{_text(column.title)}</button></th>'


def _row(tensor: Fidelity, columns: Iterable[Column], failed: bool) -> str:
    return f"<tr{' class=failed' * failed}>" + "".join(_cell(column, tensor) for column in columns) + "</tr>"


def _cell(column: Column, tensor: Fidelity) -> str:
    key = _sort_key(column, tensor)
    text = _text(column.text(tensor))
    kind = "" if isinstance(key, int | float) or key == "" else ' class="left"'
    value = "Infinity" if key == math.inf else "-Infinity" if key == -math.inf else key
    return f'<td{kind} data-value="{_text(value)}">{f"<code>{text}</code>" if column is NAME else text}</td>'


def _sort_key(column: Column, tensor: Fidelity) -> str | float:
    """What a cell sorts by; "" for nothing, which goes to the end."""
    value = column.value(tensor)
    if column.title == "shape":
        return tensor.elements
    if value is None or value != value:
        return ""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else column.text(tensor)
