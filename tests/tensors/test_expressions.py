"""The expression language of architecture files: its grammar, its errors, and its agreement with Python."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.tensors.expressions import ExpressionError, evaluate

SIZES: dict[str, Any] = {"n_head": 32, "n_head_kv": 8, "head_dim": 128, "n_expert": 0, "rope_type": "yarn", "e": 7}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (12, 12),
        ("12", 12),
        ("n_head", 32),
        (" n_head_kv * head_dim ", 1024),
        ("n_head // n_head_kv + 2", 6),
        ("(n_head + 2 * n_head_kv) * head_dim", 6144),
        ("10 - 3 - 2", 5),
        ("100 // 7 // 2", 7),
        ("2 + 3 * 4", 14),
        ("n_expert > 0", 0),
        ("n_expert >= 0", 1),
        ("n_head != 32", 0),
        ("n_head <= 31 or n_head_kv < 9", 1),
        ("n_head == 32 and n_head_kv == 9", 0),
        ("n_expert and n_head // n_expert", 0),
        ("n_head == 1 or n_head == 32 and n_expert == 0", 1),
        ("(n_head == 32 or n_head == 1) and n_expert == 1", 0),
        ("rope_type == 'yarn'", 1),
        ("rope_type != 'linear' and (rope_type == 'yarn' or n_expert)", 1),
        ("'' == ''", 1),
    ],
)
def test_values(text: str | int, value: int) -> None:
    assert evaluate(text, SIZES) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "ends too early"),
        ("n_head *", "ends too early"),
        ("(n_head", "not closed"),
        ("n_head)", "unexpected ')'"),
        ("n_head n_head", "unexpected 'n_head'"),
        ("2 ** 3", "unexpected '*'"),
        ("2 / 3", "unexpected '/'"),
        ("n_head.real", "unexpected '.'"),
        ("n_head[0]", "unexpected '['"),
        ("__import__('os')", "unexpected"),
        ("n_layer", "no n_layer"),
        ("n_head // n_expert", "division by zero"),
        ("rope_type * 2 - 1", "rope_type"),
        ("rope_type + 1", "rope_type"),
        ("rope_type", "rope_type"),
        ("1 < rope_type", "rope_type"),
        ("'open", "unexpected"),
    ],
)
def test_errors_name_the_expression(text: str, said: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        evaluate(text, SIZES)
    assert str(caught.value).startswith(f"{text!r}: ") and said in str(caught.value)


def _expressions() -> st.SearchStrategy[str]:
    leaves = st.one_of(st.integers(0, 50).map(str), st.sampled_from(["n_head", "n_head_kv", "e"]))

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        operators = st.sampled_from(["+", "-", "*", "//", "==", "!=", "<", "<=", ">", ">="])
        return st.tuples(inner, operators, inner).map(lambda parts: f"({' '.join(parts)})")

    return st.recursive(leaves, grown, max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(_expressions())
def test_agrees_with_python(text: str) -> None:
    """Python's own arithmetic is the oracle: the grammar is a subset of it."""
    try:
        expected = int(eval(text, {"__builtins__": {}}, SIZES))
    except ZeroDivisionError:
        with pytest.raises(ExpressionError):
            evaluate(text, SIZES)
        return
    assert evaluate(text, SIZES) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="n_head 0123()*/+-<>=!'and or\n.é", max_size=30))
def test_any_text_is_a_number_or_an_error(text: str) -> None:
    try:
        assert isinstance(evaluate(text, SIZES), int)
    except ExpressionError:
        pass
