"""Second moments and the factors of them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from support.calibrations import factor, inputs, packed

from converter.calibration.moments import Moments, solved
from converter.errors import UnsupportedFeature


def moments(rows: np.ndarray, step: int = 100) -> Moments:
    made = Moments(rows.shape[1])
    for start in range(0, len(rows), step):
        made.add(rows[start : start + step])
    return made.finish()


def test_sums_are_those_of_all_rows() -> None:
    rows = inputs(1100, tokens=2345)
    made = moments(rows)
    want = rows.astype(np.float64).T @ rows
    scale = np.sqrt(np.outer(np.diag(want), np.diag(want)))
    assert made.tokens == 2345
    assert np.abs(np.triu(made.sums - want) / scale).max() < 1e-5


@pytest.mark.parametrize("row", [32, 96, 257])
@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_factors_are_those_of_the_textbook(row: int, damping: float) -> None:
    rows = inputs(row, tokens=300)
    found = solved(moments(rows), "x", damping)
    assert found is not None
    assert np.allclose(np.triu(found.matrix), np.triu(factor(rows, damping)), rtol=1e-3, atol=1e-4)
    mine, want = (data.view(ml_dtypes.bfloat16).astype(np.float32) for data in (found.packed(), packed(found.matrix)))
    assert np.array_equal(mine, want)


def test_fewer_tokens_than_columns_are_no_trouble() -> None:
    found = solved(moments(inputs(256, tokens=20)), "x")
    assert found is not None and np.isfinite(found.matrix).all()


def test_two_parts_are_one_whole() -> None:
    rows = inputs(64)
    one, other = moments(rows[:300]), moments(rows[300:])
    one.merge(other)
    assert one.tokens == len(rows) and np.allclose(one.sums, moments(rows).sums, rtol=1e-4)


def test_of_nothing_there_is_no_factor() -> None:
    assert solved(moments(np.zeros((50, 64), np.float32)), "x") is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_no_numbers_are_refused(bad: float) -> None:
    rows = inputs(64)
    rows[7, 7] = bad
    with pytest.raises(UnsupportedFeature, match=r"blk.0.x: its inputs are not finite"), np.errstate(invalid="ignore"):
        solved(moments(rows), "blk.0.x")
