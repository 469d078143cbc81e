"""The choice of options within a budget, against all choices there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.mixing.solve import Option, cheapest, cost, harm, improved, solved

THOROUGH = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
_OPTION = st.builds(Option, st.integers(1, 30), st.integers(0, 50).map(float))
_ITEMS = st.lists(st.lists(_OPTION, min_size=1, max_size=4), min_size=1, max_size=4)


@settings(THOROUGH)
@given(_ITEMS, st.integers(0, 60))
def test_within_the_budget_and_nothing_left_that_fits(items: list[list[Option]], more: int) -> None:
    budget = cost(items, cheapest(items)) + more
    made = solved(items, budget)
    assert cost(items, made) <= budget
    assert made == improved(items, made, budget)
    for at, item in enumerate(items):
        left = budget - cost(items, made) + item[made[at]].nbytes
        assert not any(each.nbytes <= left and each.harm < item[made[at]].harm for each in item)


@settings(THOROUGH)
@given(_ITEMS, st.integers(0, 60))
def test_never_far_from_the_best(items: list[list[Option]], more: int) -> None:
    """Of the harm that can be avoided at all, what is left over is at most that of one step: Lagrange's bound."""
    budget = cost(items, cheapest(items)) + more
    best = min(
        harm(items, choice) for choice in itertools.product(*(range(len(item)) for item in items))
        if cost(items, choice) <= budget
    )  # fmt: skip
    largest = max(max(each.harm for each in item) - min(each.harm for each in item) for item in items)
    assert best <= harm(items, solved(items, budget)) <= best + largest


@given(_ITEMS, st.integers(0, 60))
def test_no_item_becomes_worse(items: list[list[Option]], more: int) -> None:
    first = cheapest(items)
    made = improved(items, first, cost(items, first) + more)
    assert all(item[now].harm <= item[before].harm for item, before, now in zip(items, first, made, strict=True))


def test_too_small_a_budget() -> None:
    with pytest.raises(ValueError, match="smallest"):
        solved([[Option(5, 1.0)]], 4)
