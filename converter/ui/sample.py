"""What a tensor looks like, from one slab of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from converter.errors import QuantizationError
from converter.storage import slabs
from converter.storage.json import finite
from converter.tensors.streams import decoded, values
from converter.tensors.tensor import LazyTensor

FIRST = 16  # values that are shown
BINS = 48
MOST = 64 << 20  # bytes of work; what can only be had whole and is larger is not looked at


def sample(tensor: LazyTensor) -> dict[str, Any]:
    """First values, and of rows in the middle, a megabyte or two, a histogram and what they are like.

    Values that are not finite are counted, and are in no other number. `reason` says why there is nothing to see.
    """
    info = tensor.info
    try:
        decoded(tensor)
    except QuantizationError as error:
        return {"reason": str(error)}
    if not info.n_elements:
        return {"reason": "no elements"}
    rows = slabs.slab_rows((tensor,), tensor.row_work + 4 * info.row)
    if rows * (tensor.row_work + 4 * info.row) > MOST and rows > 1:
        return {"reason": "can only be read whole, and is large"}
    first = values(tensor, 0, min(rows, info.n_rows) if tensor.grain > 1 else 1).reshape(-1)[:FIRST]
    start = (info.n_rows - rows) // 2 // tensor.grain * tensor.grain
    numbers = values(tensor, start, start + rows).reshape(-1)
    found: dict[str, Any] = finite(
        {"first": [float(value) for value in first], "rows": [start, start + rows], **_described(numbers)}
    )
    return found


def _described(numbers: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, Any]:
    real = numbers[np.isfinite(numbers)].astype(np.float64)
    found: dict[str, Any] = {"looked_at": len(numbers), "nonfinite": len(numbers) - len(real)}
    if not len(real):
        return found
    counts, edges = np.histogram(real, BINS)
    return found | {
        "min": float(real.min()),
        "max": float(real.max()),
        "mean": float(real.mean()),
        "std": float(real.std()),
        "zeros": int(np.count_nonzero(real == 0)),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }
