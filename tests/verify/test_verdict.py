"""Each limit of the verdict at its own edge, on sums made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converter.findings import Finding
from converter.tensors.dtypes import BF16, F16, F32, DType, dtype
from converter.tensors.kernels import Differences
from converter.tensors.tensor import LazyTensor, TensorInfo
from converter.verify import verdict
from converter.verify.measure import Measured
from converter.verify.pairing import Pair
from converter.verify.verdict import judge, made_by_the_encoder

SHAPE = (4, 512)
Q4_K, I8, I32 = dtype("Q4_K"), dtype("I8"), dtype("I32")


def tensor(name: str, kind: DType, shape: tuple[int, ...] = SHAPE) -> LazyTensor:
    """Zeros, in which no hint finds anything."""
    info = TensorInfo(name, shape, kind)
    return LazyTensor(info, lambda start, stop: np.zeros((stop - start, info.row_nbytes), np.uint8), "made")


def made(
    kind: DType = Q4_K, source: DType = BF16, name: str = "w", rounded: DType | None = None, **sums: Any
) -> Measured:
    """Sums of a pair; both sides hold something unless said otherwise."""
    reference = tensor(name, source)
    through = reference if rounded is None else tensor(name, rounded)
    pair = Pair(name, reference, through, tensor(name, kind))
    return measured(pair, **{"elements": 2048, "zero": False, "reference_zero": False, "blocks": 8, **sums})


def measured(pair: Pair, **sums: Any) -> Measured:
    """Sums under their names, of the numbers and of the blocks."""
    found = Differences(**{name: sums.pop(name) for name in Differences._fields if name in sums})
    return Measured(pair, found, **sums)


def encoded(**sums: Any) -> Measured:
    """A tensor that was encoded again; the encoder leaves an error of 1."""
    return made(**{"tried": True, "encoder_noise": 1.0, "noise": 1.0, "differing": 8, **sums})


#: Enough of these and a file counts as made by the encoder.
SAME = encoded(name="same", differing=0)
OTHER = encoded(name="other")


def verdict_on(*each: Measured) -> Finding | None:
    """The only finding, if any."""
    found = judge(each, {})
    assert len(found) <= 1
    return found[0] if found else None


def said(each: Measured, *beside: Measured) -> tuple[str, str] | None:
    found = verdict_on(each, *beside)
    return None if found is None else (found.check, found.message)


def test_what_is_not_finite_on_one_side() -> None:
    assert said(made(mismatched=1234, zero=True)) == (
        "nonfinite",
        "1,234 values are NaN or infinite on one side only",
    )


@pytest.mark.parametrize(
    ("zero", "reference", "wrong"), [(True, False, True), (True, True, False), (False, True, False)]
)
def test_what_is_all_zero(zero: bool, reference: bool, wrong: bool) -> None:
    found = said(encoded(zero=zero, reference_zero=reference, differing=0))
    assert found == (("zero", "is all zero, the source is not") if wrong else None)


def test_a_type_that_holds_every_value_may_lose_none() -> None:
    wrong = ("values", "1 of 2,048 values differ; none may")
    assert said(made(F32, BF16)) is None
    assert said(made(F32, BF16, differing_values=1)) == wrong
    assert said(made(BF16, BF16, differing_values=1, tried=True, differing=1)) == wrong
    # Bytes that differ with equal values (-0, NaN) are none of floats' business, of integers' they are.
    assert said(made(F32, BF16, tried=True, differing=1)) is None
    assert said(made(I32, I32, tried=True, differing=1)) == ("values", "0 of 2,048 values differ; none may")
    assert said(made(I32, I32, differing=1)) is None
    assert said(made(I32, I32, tried=True)) is None


def test_what_went_through_a_narrower_file_is_not_lossless() -> None:
    through = made(F32, F32, rounded=F16, tried=True, differing_values=9, encoder_noise=1.0, noise=1.0)
    assert said(through) is None


@pytest.mark.parametrize(
    ("same", "of", "strict"), [(0, 0, False), (1, 1, True), (1, 2, False), (2, 3, True), (0, 1, False)]
)
def test_most_tensors_decide_who_made_a_file(same: int, of: int, strict: bool) -> None:
    several = [encoded(name=str(i), differing=0 if i < same else 8) for i in range(of)]
    # Neither what lost nothing nor what was not encoded again has a vote.
    several += [made(F32, BF16, tried=True), made(F32, BF16, tried=True), made(Q4_K)]
    assert made_by_the_encoder(several) is strict


def test_blocks_that_were_changed_afterwards() -> None:
    changed = encoded(differing=3, first_differing=512 * 2 + 256)
    found = verdict_on(changed, SAME, SAME)
    assert found is not None and (found.check, found.subject, found.failed) == ("blocks", "w", True)
    assert found.message == "3 of 8 blocks are not what the encoder writes, the first in row 2, column 256"
    assert found.hint.startswith("changed after it was written")
    assert verdict_on(changed, OTHER) is None
    assert verdict_on(encoded(differing=0), SAME, SAME) is None


def test_what_the_encoder_made_is_right_whatever_its_error() -> None:
    assert verdict_on(encoded(differing=0, noise=1e9, excess=1e9)) is None


def test_a_value_beyond_the_bound_comes_before_blocks() -> None:
    found = verdict_on(encoded(noise=1e9), SAME, SAME)
    assert found is not None and found.check == "values"


@pytest.mark.parametrize(("kind", "source", "slack"), [(Q4_K, BF16, 4.0), (F16, F32, 2.0), (BF16, F32, 2.0)])
def test_how_much_more_error_than_the_encoders(kind: DType, source: DType, slack: float) -> None:
    """SLACK of quantized types and CAST_SLACK of plain ones; the limit itself is still allowed."""
    for noise in (0.0, slack * 3):
        assert said(encoded(kind=kind, source=source, encoder_noise=3.0, noise=noise)) is None
    beyond = encoded(kind=kind, source=source, encoder_noise=3.0, noise=slack * 3 * 1.001)
    message = f"squared error is {slack:.1f} times what a correct {kind} encoder has on this data"
    assert said(beyond) == ("values", message)


def test_how_much_more_error_in_one_group() -> None:
    assert said(encoded(excess=64.0)) is None
    assert said(encoded(excess=64.1, excess_at=512 * 3 + 256)) == (
        "values",
        "the 256 values from row 3, column 256 on have 64 times the squared error of a correct encoder",
    )


def test_an_error_where_the_encoder_has_none() -> None:
    wrong = ("values", "has errors where a correct encoder has none")
    assert said(encoded(encoder_noise=0.0, noise=1e-30)) == wrong
    assert said(encoded(encoder_noise=0.0, noise=0.0)) is None
    assert said(made(Q4_K, noise=1e-30)) == wrong
    # A cast that was not tried: its bound says what it may.
    assert said(made(F16, F32, noise=1e-30, allowed=1.0, expected=1.0)) is None
    assert said(encoded(kind=F16, source=F32, encoder_noise=0.0, noise=1e-30)) == wrong


def test_the_bound_of_what_was_not_encoded_again() -> None:
    def found(noise: float, allowed: float = 10.0, expected: float = 4.0, **more: Any) -> Finding | None:
        return verdict_on(made(F16, F32, noise=noise, allowed=allowed, expected=expected, **more))

    assert found(8.0) is None
    unusual = found(8.01)
    assert unusual is not None and not unusual.failed and unusual.check == "values"
    assert unusual.message == "squared error is 2.0 times what F16 has on weights as a rule"
    assert unusual.hint == "leave out --no-encode to know"
    assert (kept := found(10.0)) is not None and not kept.failed
    beyond = found(10.01)
    assert beyond is not None and beyond.failed and beyond.hint == ""
    assert beyond.message == "squared error is 1.0 times the most that F16 may have on this data"
    assert (endless := found(1.0, expected=0.0)) is not None and "inf times" in endless.message
    assert found(1e9, allowed=0.0) is None
    # Where an encoder's error is known, it is asked first.
    assert (first := found(9.0, encoder_noise=1.0)) is not None and first.failed


def test_only_the_first_wrong_tensors_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hint reads tensors; findings that do not fail a file get none."""
    asked: list[tuple[str, list[str], list[str]]] = []

    def hint(pair: Pair, others: Any, left_over: Any) -> str:
        asked.append((pair.name, [other.name for other in others], list(left_over)))
        return "it looks odd" if pair.name != "wrong1" else ""

    monkeypatch.setattr(verdict, "hint", hint)
    few = [made(name="good", kind=F32), made(F16, F32, "odd", noise=9, allowed=10, expected=1)]
    few += [encoded(name=f"wrong{i}", noise=5.0) for i in range(2)]
    found = judge(few, {"spare": tensor("spare", F32)})
    assert asked == [
        ("wrong0", ["good", "odd", "wrong1"], ["spare"]),
        ("wrong1", ["good", "odd", "wrong0"], ["spare"]),
    ]
    assert [(each.subject, each.failed, each.hint) for each in found] == [
        ("odd", False, "leave out --no-encode to know"),
        ("wrong0", True, "it looks odd"),
        ("wrong1", True, ""),
    ]
    assert found[1].check == "values" and found[1].message.startswith("squared error is 5.0 times")
    asked.clear()
    assert len(judge([encoded(name=f"w{i}", noise=5.0) for i in range(25)], {})) == 25
    assert len(asked) == 20


def test_a_small_error_is_judged_by_its_ratio() -> None:
    assert said(encoded(encoder_noise=1e-6, noise=4e-6)) is None
    assert said(encoded(encoder_noise=1e-6, noise=5e-6)) == (
        "values",
        "squared error is 5.0 times what a correct Q4_K encoder has on this data",
    )


def test_rows_of_one_element_are_counted_one_by_one() -> None:
    shape = (600, 1)
    pair = Pair("w", tensor("w", F32, shape), tensor("w", F32, shape), tensor("w", F16, shape))
    sums: dict[str, Any] = {"tried": True, "differing": 1, "blocks": 600, "zero": False}
    changed = said(measured(pair, first_differing=3, **sums), SAME, SAME)
    assert changed is not None and changed[1].endswith("the first in row 3, column 0")
    uneven = said(measured(pair, excess=65, excess_at=256, **sums))
    assert uneven is not None and uneven[1].startswith("the 256 values from row 256, column 0 on")


def test_rows_without_elements_divide_nothing_by_zero() -> None:
    empty = measured(
        Pair("s", tensor("s", BF16, (0,)), tensor("s", BF16, (0,)), tensor("s", F16, (0,))),
        tried=True, differing=1, blocks=1, first_differing=0, zero=False,
    )  # fmt: skip
    assert said(empty, SAME, SAME) == (
        "blocks",
        "1 of 1 blocks are not what the encoder writes, the first in row 0, column 0",
    )
