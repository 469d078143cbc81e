"""What an importance matrix is like: the figures of `llama-imatrix --show-statistics`, and the columns that stand out.

The figures are of the means of squares of every weight, all its experts that got a row together. Source: llama.cpp's
tools/imatrix/imatrix.cpp (`compute_statistics`, `compute_cossim`, `show_statistics`), which computes in float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.imatrix_writer import Importance, Measured

_BLOCK = re.compile(r"blk\.(\d+)\.")
ACTIVE = 1e-5  # a mean of squares above this is of a column that is used
TOP = 5  # columns that are named
#: The share of a weight's columns that `outliers` is of.
FEW = 0.01


@dataclass(frozen=True)
class Statistics:
    """Of one weight's importance.

    Attributes:
        name: the weight's; `layer` its block, None outside of them, and `role` its name within.
        total, mean, least, most, deviation: of the means of squares.
        active: share of columns that are used at all.
        columns: how many, of all experts that got a row.
        entropy: of the means as shares of their total, in bits; `evenness` is its share of the most there can be.
        above: share of columns more than a standard deviation above the mean.
        similarity: cosine of the sums with those of the same weight in the layer before; None in the first.
        outliers: share of the total that the hundredth part of the columns with the most has.
        top: columns with the most, and what share of the total each has; experts' columns are counted through.
        silent: experts that got no row.
    """

    name: str
    layer: int | None
    role: str
    total: float
    mean: float
    least: float
    most: float
    deviation: float
    active: float
    columns: int
    entropy: float
    evenness: float
    above: float
    similarity: float | None
    outliers: float
    top: tuple[tuple[int, float], ...]
    silent: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "top": [{"column": column, "share": share} for column, share in self.top]}


@dataclass(frozen=True)
class Layer:
    """Of a layer, means over its weights by their columns: of the totals, of `above` and of `similarity`."""

    layer: int
    total: float
    above: float
    similarity: float


def statistics(importance: Importance) -> list[Statistics]:
    """Of every weight, by layer and role; a weight of which nothing was counted has none."""
    entries = importance.entries
    found = [_of(name, each, _before(name, entries)) for name, each in entries.items() if each.counts.any()]
    return sorted(found, key=lambda each: (each.layer is None, each.layer or 0, each.role))


def layers(found: Iterable[Statistics]) -> list[Layer]:
    """The layers, in order."""
    grouped: dict[int, list[Statistics]] = {}
    for each in found:
        if each.layer is not None:
            grouped.setdefault(each.layer, []).append(each)
    return [_layer(number, grouped[number]) for number in sorted(grouped)]


def _layer(number: int, weights: Sequence[Statistics]) -> Layer:
    columns = [each.columns for each in weights]

    def mean(values: Iterable[float]) -> float:
        return float(np.average(list(values), weights=columns))

    return Layer(
        number,
        mean(each.total for each in weights),
        mean(each.above for each in weights),
        mean(each.similarity or 0.0 for each in weights),
    )


def _before(name: str, entries: Mapping[str, Measured]) -> Measured | None:
    """The same weight in the layer before."""
    block = _BLOCK.search(name)
    if block is None:
        return None
    return entries.get(f"{name[: block.start()]}blk.{int(block[1]) - 1}.{name[block.end() :]}")


def _of(name: str, each: Measured, before: Measured | None) -> Statistics:
    means = each.means()[each.counts > 0].reshape(-1)
    total, mean, deviation = float(means.sum()), float(means.mean()), float(means.std())
    shares = means / total if total > 0 else np.zeros_like(means)
    entropy = _entropy(shares)
    ranked = np.argsort(-means, kind="stable")
    block = _BLOCK.search(name)
    return Statistics(
        name, int(block[1]) if block else None, _role(name), total, mean, float(means.min()), float(means.max()),
        deviation, active=float((means > ACTIVE).mean()), columns=len(means), entropy=entropy,
        evenness=entropy / float(np.log2(len(means))) if len(means) > 1 else 1.0,
        above=float((means > mean + deviation).mean()) if deviation > 0 else 0.0,
        similarity=_cosine(each.sums, before.sums) if before is not None else None,
        outliers=float(shares[ranked[: max(1, round(FEW * len(means)))]].sum()),
        top=tuple((int(at), float(shares[at])) for at in ranked[:TOP]),
        silent=len(each.silent),
    )  # fmt: skip


def _role(name: str) -> str:
    return _BLOCK.sub("", name).removesuffix(".weight")


def _entropy(shares: NDArray[np.float64]) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log2(some)).sum())


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """None where their sizes differ, or one of them is zero."""
    if one.size != other.size:
        return None
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else None
