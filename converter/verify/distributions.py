"""Values of a tensor before and after, counted in bins, for plots."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from converter.tensors.streams import values
from converter.verify.measure import Measured
from converter.verify.results import Histogram

BINS = 200
#: Larger tensors are counted by their first rows only.
MOST_ELEMENTS = 1 << 22


def worst_distributions(measured: Iterable[Measured], count: int) -> dict[str, Histogram]:
    """The values of the `count` tensors with the largest relative error, by name, the worst first."""
    floating = (m for m in measured if m.pair.candidate.info.dtype.floating and m.pair.reference.info.dtype.floating)
    lossy = (m for m in floating if m.found.noise and m.found.energy)
    worst = sorted(lossy, key=lambda m: -m.found.noise / m.found.energy)
    return {m.pair.name: bins for m in worst[:count] if (bins := _bins(m)) is not None}


def _bins(m: Measured) -> Histogram | None:
    pair, info = m.pair, m.pair.candidate.info
    rows = min(info.n_rows, max(1, MOST_ELEMENTS // max(1, info.row)))
    before, after = values(pair.reference, 0, rows), values(pair.candidate, 0, rows)
    good = np.isfinite(before) & np.isfinite(after)
    if not good.any():
        return None
    before, after = before[good], after[good]
    low, high = np.quantile(before, (0.0005, 0.9995))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    return edges.tolist(), *(np.histogram(side, edges)[0].tolist() for side in (before, after))
