"""What a wrong tensor looks like: hypotheses about how it came about, tried on its values.

A hypothesis holds where it explains at least nine tenths of the energy, which quantization to two bits still leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.errors import QuantizationError
from converter.tensors.streams import decoded, values
from converter.tensors.tensor import LazyTensor
from converter.verify.pairing import Pair

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
#: Larger tensors are looked at by their first rows only.
MOST_ELEMENTS = 1 << 24
EXPLAINED = 0.9
#: Rows that are looked for among all rows of the other side.
SAMPLED = 64


@dataclass(frozen=True)
class _Sides:
    """Both sides of a pair as (rows, columns)."""

    reference: Floats
    candidate: Floats
    shape: tuple[int, ...]
    whole: bool


def hint(pair: Pair, others: Sequence[Pair], left_over: Mapping[str, LazyTensor]) -> str:
    """One short text, or "" where nothing explains the difference."""
    try:
        sides = _read(pair)
    except QuantizationError:
        return ""
    if not np.isfinite(sides.candidate).all() or not sides.candidate.any() or not sides.reference.any():
        return ""
    for text in _transforms(sides):
        return text
    for other in others:
        if other.candidate.info.shape == pair.candidate.info.shape and _same(_rows(other.reference), sides.candidate):
            return f"it holds what belongs into {other.name}"
    elsewhere = (f"{name} holds what belongs here" for name, t in left_over.items() if _holds(t, sides))
    return next(elsewhere, "") or next(_permutations(sides), "")


def _read(pair: Pair) -> _Sides:
    decoded(pair.reference)
    info = pair.candidate.info
    count = min(info.n_rows, max(1, MOST_ELEMENTS // max(1, info.row), pair.reference.grain))
    reference = values(pair.reference, 0, count)
    candidate = values(pair.candidate, 0, count)
    return _Sides(reference, candidate, info.shape, count == info.n_rows)


def _rows(tensor: LazyTensor) -> Floats:
    return values(tensor, 0, min(tensor.info.n_rows, 64))


def _same(a: Floats, b: Floats) -> bool:
    """Whether `a` explains `b`, on the rows that both have."""
    n = min(len(a), len(b))
    energy = float(np.square(b[:n]).sum())
    return energy > 0 and float(np.square(a[:n] - b[:n]).sum()) <= (1 - EXPLAINED) * energy


def _holds(tensor: LazyTensor, sides: _Sides) -> bool:
    if tensor.info.shape != sides.shape or not tensor.info.dtype.floating:
        return False
    return _same(_rows(tensor), sides.reference)


def _transforms(s: _Sides) -> Iterator[str]:
    a, b = s.reference, s.candidate
    if _same(-a, b):
        yield "every sign is flipped"
    for shift in (1.0, -1.0):
        if np.abs(b - a - shift).max() < 0.01 + 0.01 * np.abs(a).max():
            yield f"{shift:+g} is added to every value" + (" (a norm's offset)" if len(s.shape) == 1 else "")
    if s.whole and a.shape[0] == a.shape[1] and len(s.shape) == 2 and _same(a.T, b):
        yield "it is transposed"
    scale = float((a * b).sum() / np.square(a).sum())
    if abs(scale - 1) > 0.02 and abs(scale) > 1e-6 and _same(scale * a, b):
        yield f"every value is multiplied by {scale:.2g}"


def _permutations(s: _Sides) -> Iterator[str]:
    if not s.whole:
        return
    if len(s.shape) >= 3:
        experts = s.shape[-3]
        if _matches(s.reference.reshape(experts, -1), s.candidate.reshape(experts, -1)) is not None:
            yield "the experts are in another order"
    found = _matches(s.reference, s.candidate)
    if found is not None:
        yield _row_order(len(s.reference), *found)
    if _matches(s.reference.T, s.candidate.T) is not None:
        yield "its columns are in another order"


def _matches(a: Floats, b: Floats) -> tuple[Rows, Rows] | None:
    """Rows of `b`, evenly spread, and the other rows of `a` that they are; None where one is not to be found."""
    n, width = a.shape
    if n < 2 or width < 8:
        return None
    some = np.unique(np.linspace(0, n - 1, min(n, SAMPLED)).astype(np.int64))
    lengths = np.linalg.norm(a, axis=1) + 1e-30
    alike = (b[some] @ a.T) / lengths / (np.linalg.norm(b[some], axis=1, keepdims=True) + 1e-30)
    best = alike.argmax(axis=1)
    sure = alike.max(axis=1) ** 2 > EXPLAINED
    return (some, best) if sure.all() and (best != some).any() and len(set(best.tolist())) == len(best) else None


def _row_order(n: int, some: Rows, best: Rows) -> str:
    for offset in (1, -1):
        if (best == (some - offset) % n).all():
            return f"rows are shifted by {offset:+d}"
    order = np.arange(n)
    for heads in (h for h in range(1, n // 4 + 1) if n % (2 * h) == 0):
        half = n // heads // 2
        for turned in (order.reshape(heads, 2, half), order.reshape(heads, half, 2)):
            if (best == turned.swapaxes(1, 2).reshape(-1)[some]).all():
                return f"its rows are in the other order of rotary embeddings ({heads} heads)"
    return "its rows are in another order"
