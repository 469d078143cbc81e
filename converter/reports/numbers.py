"""Measured numbers as people read them; nothing where nothing was measured."""

from __future__ import annotations

import math


def decibels(value: float | None) -> str:
    """23.45; an infinite ratio is an exact tensor."""
    return "" if value is None else "exact" if value == math.inf else f"{value:.2f}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g} %"
