"""Plots as SVG in the page itself: axes with a few ticks, points, lines and steps in the page's colours.

A library for it is ten times as large as the page. What a plot shows is text in the document: it needs no script,
prints, follows the reader's colours, and shows what a point is where one points at it (`<title>`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from converter.text import human_bytes, printable

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 12, 44
#: In units of the plot: what two numbers at an axis need to be read apart.
APART = 40
STEPS = (1, 2, 5)

Point = tuple[float, float]


def text(value: object) -> str:
    """Text in HTML, in an element or a quoted attribute; control characters are spelled out."""
    return escape(printable(str(value)))


def short(value: float) -> str:
    """A number at an axis."""
    if value == 0:
        return "0"
    return f"{value:.5g}" if 1e-3 <= abs(value) < 1e5 else re.sub(r"e\+?(-?)0?", r"e\1", f"{value:.0e}")


def share(value: float) -> str:
    """A number of per cent at an axis."""
    return f"{short(value)} %"


def size(value: float) -> str:
    """Bytes at an axis: 2.5 MB, 100 kB."""
    return re.sub(r"\.?0+ ", " ", words) if "." in (words := human_bytes(value)) else words


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; `show` says a number with its unit, `marks` are ticks where not the usual ones."""

    title: str
    low: float
    high: float
    log: bool = False
    show: Callable[[float], str] = short
    marks: tuple[tuple[float, str], ...] = ()

    @classmethod
    def around(cls, title: str, values: Iterable[float], log: bool = False, **options: object) -> Axis:
        """One that holds all values with some room; of a logarithmic one, all that are above zero."""
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
        low, high = min(finite), max(finite)
        if log:
            room = max((high / low) ** 0.05, 1.05)
            return cls(title, low / room, high * room, True, **options)  # type: ignore[arg-type]
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        return cls(title, low - room, high + room, False, **options)  # type: ignore[arg-type]

    def share(self, value: float) -> float:
        """Where a number stands, between 0 and 1."""
        if self.log:
            value = max(value, self.low)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, length: float) -> list[tuple[float, str]]:
        """Numbers at the axis: three a decade where that is logarithmic, or one where there is no room for them."""
        if self.marks:
            return list(self.marks)
        most = max(2, int(length / APART))
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in (STEPS, (1,)):
                found = [step * 10.0**at for at in decades for step in steps]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) <= most:
                    break
            every = -(-len(found) // most)
            if len(found) > 1:
                return [(value, self.show(value)) for value in found[::every]]
        rough = (self.high - self.low) / min(most, 6)
        scale = 10.0 ** math.floor(math.log10(rough))
        step = next(each * scale for each in (*STEPS, 10) if each * scale >= rough)
        first = math.ceil(self.low / step)
        return [(at * step, self.show(at * step)) for at in range(first, math.floor(self.high / step) + 1)]


def bytes_axis(values: Iterable[float]) -> Axis:
    """Sizes, logarithmic."""
    return Axis.around("size", values, True, show=size)


@dataclass(frozen=True)
class Frame:
    """Both axes of a plot, and where things stand in it."""

    x: Axis
    y: Axis
    height: int = HEIGHT

    def at(self, x: float, y: float) -> Point:
        across, down = WIDTH - LEFT - RIGHT, self.height - TOP - BOTTOM
        return LEFT + across * self.x.share(x), TOP + down * (1 - self.y.share(y))

    def dot(self, x: float, y: float, kind: str, title: str, radius: float = 4) -> str:
        across, down = self.at(x, y)
        place = f'cx="{across:.1f}" cy="{down:.1f}" r="{radius:g}"'
        return f'<circle class="{kind}" {place}><title>{text(title)}</title></circle>'

    def line(self, points: Iterable[Point], kind: str) -> str:
        places = (self.at(*point) for point in points)
        return f'<polyline class="line {kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'

    def steps(self, edges: Sequence[float], heights: Sequence[float], kind: str) -> str:
        """A histogram: from the ground over every step and back."""
        low = self.height - BOTTOM
        across = [self.at(float(edge), self.y.low)[0] for edge in edges]
        tops = [self.at(self.x.low, height)[1] for height in heights]
        way = "".join(f"V{top:.1f}H{right:.1f}" for top, right in zip(tops, across[1:], strict=True))
        return f'<path class="line {kind}" d="M{across[0]:.1f} {low}{way}V{low}"/>'

    def tick(self, x: float, y: float, kind: str) -> str:
        """A short level line: a bound."""
        across, down = self.at(x, y)
        return f'<path class="line {kind}" d="M{across - 5:.1f} {down:.1f}h10"/>'

    def label(self, x: float, y: float, words: str, kind: str = "", *, above: bool = False) -> str:
        """Words beside a point, on the side where there is room."""
        across, down = self.at(x, y)
        right = across > WIDTH * 0.6
        shift = (0 if above else -7 if right else 7, -8 if above else 4)
        anchor = "middle" if above and 0.15 < across / WIDTH < 0.85 else "end" if right else "start"
        return (
            f'<text class="{kind}" x="{across + shift[0]:.1f}" y="{down + shift[1]:.1f}" text-anchor="{anchor}">'
            f"{text(words)}</text>"
        )

    def drawn(self, marks: Iterable[str], name: str) -> str:
        """The plot; `name` is what it is called for those who do not see it."""
        inside = "\n".join((*self._axes(), *marks))
        return f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{text(name)}">\n{inside}\n</svg>'

    def _axes(self) -> Iterator[str]:
        right, low = WIDTH - RIGHT, self.height - BOTTOM
        for value, words in self.y.ticks((low - TOP) * 1.4):
            y = self.at(self.x.low, value)[1]
            yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
            yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text(words)}</text>'
        for value, words in self.x.ticks((right - LEFT) * 0.8):
            x = self.at(value, self.y.low)[0]
            yield f'<path class="grid" d="M{x:.1f} {TOP}V{low}"/>'
            yield f'<text x="{x:.1f}" y="{low + 16}" text-anchor="middle">{text(words)}</text>'
        yield _title((LEFT + right) / 2, self.height - 8, self.x.title)
        middle = (TOP + low) / 2
        yield (
            f'<text class="title" x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
            f"{text(self.y.title)}</text>"
        )


def _title(x: float, y: float, words: str) -> str:
    return f'<text class="title" x="{x:.1f}" y="{y}" text-anchor="middle">{text(words)}</text>'


def legend(kinds: Iterable[tuple[str, str]]) -> str:
    """What the colours mean: class and words of each."""
    return "".join(f'<li><i class="{kind}"></i>{text(words)}</li>' for kind, words in kinds).join(
        ('<ul class="legend">', "</ul>")
    )


def figure(name: str, content: str, more: str = "") -> str:
    """A plot with its legend, as a part of the page of this name."""
    return f'<figure class="plot" id="{name}">{more}{content}</figure>'


@dataclass(frozen=True)
class Cell:
    """A field of a map: how far it is off (0: as it should be), and what it is."""

    off: float
    words: str


CELL, WIDEST, NAMES = 22, 44, 150


def heatmap(rows: Sequence[tuple[str, Sequence[Cell | None]]], columns: Sequence[str], worst: float) -> str:
    """Rows of fields: calm where they are as they should be, and the redder the further they are off.

    Neighbours that are as they should be are one mark, so that a large model that is right makes a small page.
    """
    width = max(2.4, min(WIDEST, (WIDTH - NAMES - RIGHT) / max(1, len(columns))))
    height = CELL * len(rows) + 40
    marks = []
    for at, (name, cells) in enumerate(rows):
        top = CELL * at
        marks.append(f'<text x="{NAMES - 6}" y="{top + 15}" text-anchor="end">{text(name)}</text>')
        start = 0
        while start < len(cells):
            cell, stop = cells[start], start + 1
            if cell is not None and cell.off <= 0:
                while stop < len(cells) and (other := cells[stop]) is not None and other.off <= 0:
                    stop += 1
            if cell is not None:
                kind, words = ("calm", f"{name}: as expected") if cell.off <= 0 else ("off", cell.words)
                strength = "" if cell.off <= 0 else f' fill-opacity="{0.3 + 0.7 * min(1, cell.off / worst):.2f}"'
                marks.append(
                    f'<rect class="{kind}"{strength} x="{NAMES + width * start:.1f}" y="{top + 1}" '
                    f'width="{width * (stop - start) - 1:.1f}" height="{CELL - 2}"><title>{text(words)}</title></rect>'
                )
            start = stop
    every = max(1, math.ceil(24 / width))
    for at in range(0, len(columns), every):
        marks.append(
            f'<text x="{NAMES + width * (at + 0.5):.1f}" y="{CELL * len(rows) + 15}" text-anchor="middle">'
            f"{text(columns[at])}</text>"
        )
    marks.append(_title(NAMES + width * len(columns) / 2, height - 6, "layer"))
    inside = "\n".join(marks)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="layers by tensors">\n{inside}\n</svg>'
