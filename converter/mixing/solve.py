"""Which option of each item, so that the harm is least within a budget: Lagrange's way, then the rest greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """What one choice costs, in bytes, and the harm that it does."""

    nbytes: int
    harm: float


Item = Sequence[Option]


def cheapest(items: Sequence[Item]) -> list[int]:
    """The smallest option of each item, of equals the less harmful one."""
    return [min(range(len(item)), key=lambda at: (item[at].nbytes, item[at].harm)) for item in items]


def cost(items: Sequence[Item], chosen: Sequence[int]) -> int:
    """Bytes of a choice."""
    return sum(item[at].nbytes for item, at in zip(items, chosen, strict=True))


def harm(items: Sequence[Item], chosen: Sequence[int]) -> float:
    """Harm of a choice."""
    return sum(item[at].harm for item, at in zip(items, chosen, strict=True))


def solved(items: Sequence[Item], budget: int) -> list[int]:
    """The option of each item: steps along the lower hulls of all, those that save most per byte first, while they fit.

    Of all choices of its size none does less harm. What is left goes to single steps that still fit (`improved`).

    Raises:
        ValueError: not even the smallest options fit.
    """
    chosen = cheapest(items)
    left = budget - cost(items, chosen)
    if left < 0:
        raise ValueError("the smallest options take more than the budget")
    steps = [
        (gain, at, before, after) for at, item in enumerate(items) for gain, before, after in _hull(item, chosen[at])
    ]
    for _, at, before, after in sorted(steps, key=lambda step: (-step[0], step[1])):
        more = items[at][after].nbytes - items[at][before].nbytes
        if more > left or chosen[at] != before:
            break
        chosen[at], left = after, left - more
    return improved(items, chosen, budget)


def improved(items: Sequence[Item], chosen: Sequence[int], budget: int) -> list[int]:
    """A choice with single items made better, that first which saves most per byte, while something fits."""
    made, left = list(chosen), budget - cost(items, chosen)
    while True:
        best = max(
            ((gain(item[made[at]], option), at, to)
             for at, item in enumerate(items) for to, option in enumerate(item)
             if option.harm < item[made[at]].harm and option.nbytes - item[made[at]].nbytes <= left),
            default=None, key=lambda each: (each[0], -each[1]),
        )  # fmt: skip
        if best is None:
            return made
        _, at, to = best
        left -= items[at][to].nbytes - items[at][made[at]].nbytes
        made[at] = to


def gain(before: Option, after: Option) -> float:
    """Harm that is saved for each byte more; without end where it takes none."""
    more = after.nbytes - before.nbytes
    return (before.harm - after.harm) / more if more > 0 else float("inf")


def _hull(item: Item, first: int) -> list[tuple[float, int, int]]:
    """Steps from the smallest option up along the lower convex hull: gain, from, to."""
    steps: list[tuple[float, int, int]] = []
    here = first
    while True:
        better = [to for to, option in enumerate(item) if option.harm < item[here].harm]
        if not better:
            return steps
        to = max(better, key=lambda each: (gain(item[here], item[each]), item[each].nbytes))
        steps.append((gain(item[here], item[to]), here, to))
        here = to
