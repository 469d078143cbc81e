"""Each limit of the hints at its own edge: what explains a difference, and what no longer does."""

from __future__ import annotations

import numpy as np
import pytest

from converter.tensors.dtypes import F32
from converter.tensors.tensor import LazyTensor, TensorInfo, from_array
from converter.verify import hints
from converter.verify.pairing import Pair

Floats = np.ndarray


def of(array: Floats, name: str = "w") -> LazyTensor:
    return from_array(name, np.ascontiguousarray(array, np.float32), F32, "made")


def pair(reference: LazyTensor, candidate: LazyTensor) -> Pair:
    return Pair("w", reference, reference, candidate)


def hint(reference: Floats, candidate: Floats) -> str:
    return hints.hint(pair(of(reference), of(candidate)), [], {})


def weights(rows: int = 6, width: int = 32, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, width), np.float32)


def test_nine_tenths_of_the_energy_explain_a_difference() -> None:
    """-a explains -c * a up to (c - 1)**2 = c**2 / 10, c = 1.4625."""
    a = weights()
    assert hint(a, -1.462 * a) == "every sign is flipped"
    assert hint(a, -1.463 * a) == "every value is multiplied by -1.5"


def test_an_offset_is_exact_to_a_hundredth() -> None:
    a = np.clip(weights(), -1, 1)
    for off, said in ((0.0198, "+1 is added to every value"), (0.0202, "")):
        b = a + 1
        b[2, 3] += off
        assert hint(a, b).startswith(said) and bool(hint(a, b)) == bool(said)
    assert hint(a[:1].reshape(-1), a[:1].reshape(-1) - 1) == "-1 is added to every value (a norm's offset)"


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (1.019, ""), (1.021, "every value is multiplied by 1"),
        (0.981, ""), (0.979, "every value is multiplied by 0.98"),
        (1.1e-6, "every value is multiplied by 1.1e-06"), (0.9e-6, ""),
    ],
)  # fmt: skip
def test_a_scale_is_two_hundredths_off_and_no_zero(scale: float, said: str) -> None:
    a = weights()
    assert hint(a, scale * a) == said


def test_rows_are_found_again_by_eight_values_or_more() -> None:
    order = [1, 0, 3, 2, 5, 4]
    assert "order" in hint(weights(6, 8), weights(6, 8)[order])
    assert hint(weights(6, 7), weights(6, 7)[order]) == ""
    assert hint(weights(1, 8), weights(1, 8, seed=2)) == ""


def test_a_row_is_found_where_nine_tenths_of_it_are_the_same() -> None:
    """The cosine's square is the share: other things are mixed in until it is just below or above."""
    a = np.linalg.qr(weights(64, 64))[0][:6]
    beside = np.linalg.qr(weights(64, 64))[0][6:12]
    for share, found in ((0.905, True), (0.895, False)):
        b = np.sqrt(share) * a[[2, 3, 4, 5, 0, 1]] + np.sqrt(1 - share) * beside
        assert (hint(a, b) != "") is found


@pytest.mark.parametrize(("rows", "looked_at"), [(3, 3), (64, 64), (65, 64), (400, 64)])
def test_so_many_rows_are_looked_for(rows: int, looked_at: int) -> None:
    a = weights(rows, 64)
    found = hints._matches(a, np.roll(a, 1, axis=0))
    assert found is not None and len(found[0]) == looked_at
    assert {int(found[0][0]), int(found[0][-1])} == {0, rows - 1}


@pytest.mark.parametrize(("rows", "whole"), [(4096, True), (4097, False)])
def test_large_tensors_are_looked_at_by_their_first_rows(rows: int, whole: bool) -> None:
    info = TensorInfo("w", (rows, 4096), F32)
    large = LazyTensor(info, lambda start, stop: np.zeros((stop - start, info.row_nbytes), np.uint8), "made")
    sides = hints._read(pair(large, large))
    assert sides.whole is whole
    assert len(sides.reference) == len(sides.candidate) == 4096
