"""Measured numbers as people read them; nothing where nothing was measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converter.runtimes.behaviour import Behaviour


def decibels(value: float | None) -> str:
    """23.45; an infinite ratio is an exact tensor."""
    return "" if value is None else "exact" if value == math.inf else f"{value:.2f}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g} %"


def measured(value: float | None, error: float | None) -> str:
    """12.34 ± 0.056: the error with two digits, the value with as many places."""
    if value is None:
        return ""
    if error is None or not error > 0 or not math.isfinite(value):
        return number(value)
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}" if places < 7 else f"{value:.3g} ± {error:.2g}"


def increase(behaviour: Behaviour) -> str:
    """How the target's perplexity is above the source's, and whether that is more than chance; "" where not known."""
    if behaviour.ppl_increase is None:
        return ""
    text = f"{100 * behaviour.ppl_increase:+.2f}"
    if behaviour.ppl_increase_error is not None:
        text += f" ± {100 * behaviour.ppl_increase_error:.2f}"
    return f"{text} %" + (", within the error" if behaviour.ppl_unchanged else "")
