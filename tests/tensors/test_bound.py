"""Bounds of numbers that arrived in codes: how they are said, and what a way through types adds."""

from __future__ import annotations

import numpy as np
import pytest

from converter.tensors.bound import EXACT, Bound, Codes, Share, loosest, rounding, within
from converter.tensors.dtypes import BF16, DTYPES, F16, F32

Q4_0, Q4_K, F64 = DTYPES["Q4_0"], DTYPES["Q4_K"], DTYPES["F64"]


@pytest.mark.parametrize("dtype", [F16, BF16, DTYPES["F8_E4M3"], DTYPES["F8_E5M2"]], ids=str)
def test_rounding_is_half_a_unit_in_the_last_place(dtype: object) -> None:
    numbers = np.random.default_rng(1).uniform(1, 2, 100_000).astype(np.float32)
    (share,) = rounding(dtype).shares  # type: ignore[arg-type]
    off = np.abs(numbers - numbers.astype(dtype.numpy).astype(np.float32)) / numbers  # type: ignore[attr-defined]
    assert share.of == "itself" and 0.85 * share.share < off.max() <= share.share


def test_how_a_bound_is_said() -> None:
    assert str(EXACT) == "exact" and EXACT.exact
    assert str(Bound(but="but for -0")) == "exact (but for -0)" and Bound(but="but for -0").exact
    both = within((1 / 256, "itself"), (0.0707, "the largest")) + Bound(again="Q4_K", but="mostly")
    assert str(both) == "within 1/256 of itself + 0.071 of the largest, encoded again as Q4_K (mostly)"
    assert both.as_dict() == {
        "exact": False,
        "bound": str(both),
        "shares": [{"share": 1 / 256, "of": "itself"}, {"share": 0.0707, "of": "the largest"}],
        "encoded_again": "Q4_K",
    }
    assert str(Bound(but="a") + Bound(but="a")) == "exact (a)"


@pytest.mark.parametrize(
    ("types", "holds", "wanted"),
    [
        ((F32, F32), None, EXACT), ((F32, F64), None, EXACT), ((F32, BF16), BF16, EXACT),
        ((F32, BF16), None, rounding(BF16)), ((F32, F16), BF16, rounding(F16)), ((BF16, F32), None, EXACT),
        ((Q4_0, Q4_0), None, EXACT), ((Q4_0, F32), None, EXACT), ((Q4_0, F16), None, rounding(F16)),
        ((F32, F16, Q4_K), None, rounding(F16) + Bound(again="Q4_K")), ((Q4_0, Q4_K), None, Bound(again="Q4_K")),
    ],
)  # fmt: skip
def test_what_types_on_the_way_add(types: tuple[object, ...], holds: object, wanted: Bound) -> None:
    assert Codes(holds=holds).by_way_of(types) == wanted  # type: ignore[arg-type]
    near = within((0.1, "a step"))
    assert Codes(near, holds).by_way_of(types) == near + wanted  # type: ignore[arg-type]


def test_of_several_the_loosest() -> None:
    some, more, again = within((0.1, "a")), Bound((Share(0.1, "a"), Share(0.1, "b"))), Bound(again="Q4_0")
    assert loosest([EXACT, more, some]) is more and loosest([EXACT]) is EXACT and loosest([more, again]) is again


def test_a_share_of_zero_is_none() -> None:
    """Of a search in which no end is cut, say."""
    assert within((0.0, "the largest of its group")) == EXACT
    assert str(within((0.25, "itself"), (0.0, "the largest of its group"))) == "within 1/4 of itself"
