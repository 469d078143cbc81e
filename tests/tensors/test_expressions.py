"""The expression language of architecture files: its grammar, its errors, its limits, its agreement with Python."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.tensors.expressions import MAX_DEPTH, MAX_LENGTH, ExpressionError, compute, evaluate, names

SIZES: dict[str, Any] = {
    "n_head": 32, "n_head_kv": 8, "head_dim": 128, "n_expert": 0, "rope_type": "yarn", "e": 7,
    "_1": 3, "n2": 4,
}  # fmt: skip


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
        ("2 / 3", "no whole number"),
        ("'12'", "no whole number"),
        ("n_head.real", "unexpected '.'"),
        ("n_head[0]", "32 is no list"),
        ("n_head ! 3", "unexpected '!'"),
        ("n_head not 3", "unexpected 'not'"),
        ("1 if n_head", "no 'else'"),
        ("else", "unexpected 'else'"),
        ("[1]", "unexpected '['"),
        ("open(1)", "no function open"),
        ("int(1, 2)", "int takes 1 to 1 values"),
        ("max()", "unexpected ')'"),
        ("int(rope_type)", "no number"),
        ("rope_type * 3", "no number"),
        ("rope_type % 3", "no number"),
        ("-rope_type", "no number"),
        ("sqrt(-1)", "domain"),
        ("ln(0)", "logarithm of what is not positive"),
        ("(-1) ** 0.5", "no such power"),
        ("0 ** -1", "division by zero"),
        ("round_up(3, n_expert)", "division by zero"),
        ("n_head in rope_type", "string"),
        ("1 in n_head", "no list"),
        ("len(rope_type)", "no list"),
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


BLOCKS: dict[str, Any] = {
    "block": 2, "n_layer": 4, "n_head_kv": [0, 8, 4, 8], "kinds": ["conv", "full", "conv", "full"], "pattern": "M*-E",
    "listed": [1, 3], "words": "1, 3,", "one": 5, "present": {"blk.2.attn_q.bias", "output.weight"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n_head_kv", 4),
        ("n_head_kv * 16", 64),
        ("-n_head_kv", -4),
        ("not n_head_kv", 0),
        ("16 // n_head_kv", 4),
        ("2 ** n_head_kv", 16),
        ("kinds == 'conv'", 1),
        ("'conv' == kinds", 1),
        ("1 if kinds == 'full' else n_head_kv", 4),
        ("n_head_kv and kinds == 'conv'", 1),
        ("n_head_kv[block]", 4),
        ("n_head_kv[block - 1]", 8),
        ("kinds[3]", "full"),
        ("pattern[block] == '-'", 1),
        ("pattern[block] in 'M*'", 0),
        ("pattern[block] not in 'M*'", 1),
        ("block in listed", 0),
        ("block + 1 in listed", 1),
        ("block not in numbers(words)", 1),
        ("n_head_kv in listed", 0),
        ("block % 2 == 0", 1),
        ("len(kinds)", 4),
        ("len(8)", 1),
        ("sum(n_head_kv)", 20),
        ("max(n_head_kv)", 8),
        ("min(n_head_kv)", 0),
        ("max(n_head_kv, 1)", 4),
        ("first(n_head_kv)", 0),
        ("first(one)", 5),
        ("where(n_head_kv)[0]", 1),
        ("present('blk.{block}.attn_q.bias')", 1),
        ("present('blk.{block}.attn_k.bias')", 0),
        ("present('output.weight')", 1),
    ],
)
def test_where_one_value_is_needed_a_list_stands_for_its_element_at_the_block(text: str, value: Any) -> None:
    assert compute(text, BLOCKS) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("where(n_head_kv)", [1, 2, 3]),
        ("where(n_head_kv, 1)", [2, 3, 4]),
        ("numbers(words)", [1, 3]),
        ("resized(numbers(words), 3)", [1, 3, 0]),
        ("resized(numbers(words), 1)", [1]),
        ("join(kinds)", "convfullconvfull"),
        ("join(where(n_head_kv), ',')", "1,2,3"),
        ("kinds", ["conv", "full", "conv", "full"]),
        ("listed if n_layer > 3 else where(n_head_kv)", [1, 3]),
        ("pattern", "M*-E"),
        ("present('output.weight')", 1),
    ],
)
def test_lists_are_values_where_no_block_is_meant(text: str, value: Any) -> None:
    assert compute(text, {name: value for name, value in BLOCKS.items() if name != "block"}) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n_head_kv * 2", "a value for each block"),
        ("kinds == 'conv'", "a value for each block"),
        ("kinds[4]", "has 4 values, none at 4"),
        ("kinds[-1]", "none at -1"),
        ("kinds['0']", "none at '0'"),
        ("present('blk.{block}.x')", "no block"),
        ("numbers('1,x')", "invalid literal"),
        ("resized(numbers('1'), 1000000)", "no length"),
        ("resized(numbers('1'), -1)", "no length"),
        ("resized(1, 2)", "no list"),
        ("sum(kinds)", "no number"),
        ("max(kinds)", "no number"),
    ],
)
def test_lists_that_have_no_value_here(text: str, said: str) -> None:
    with pytest.raises(ExpressionError, match=said):
        compute(text, {name: value for name, value in BLOCKS.items() if name != "block"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("int(0.25 * 96)", 24),
        ("int(-7 / 2)", -3),
        ("0.1 * 0.707", 0.1 * 0.707),
        ("1.4 / sqrt(40)", 1.4 / 40**0.5),
        ("10000.0 * 1000 ** (128 / 126)", 10000.0 * 1000 ** (128 / 126)),
        ("round_up(2 * 6656 // 3, 256)", 4608),
        ("round_up(512, 256)", 512),
        ("1e-05", 1e-05),
        ("2.5e+3", 2500.0),
        ("-2 ** 2", -4),
        ("2 ** -1", 0.5),
        ("_1 * n2", 12),
        ("n2 - 1.", 3.0),
        ("2 ** 0", 1),
        ("2.0 ** 0", 1.0),
        ("147 ** -3", 1 / 147**3),  # the nearest; pow() of some machines gives its neighbour
        ("2 ** 3 ** 2", 512),
        ("7 % 4", 3),
        ("-7 % 4", 1),
        ("not 0 and not not 1", 1),
        ("max(3, 4.5, 1)", 4.5),
        ("1 if e > 7 else 2 if e == 7 else 3", 2),
        ("(1 if e else 2) + 3", 4),
        ("rope_type if e else 'none'", "yarn"),
    ],
)
def test_computed_numbers_are_pythons_doubles(text: str, value: Any) -> None:
    assert compute(text, SIZES) == value and type(compute(text, SIZES)) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 + " * 400 + "1", "longer than"),
        ("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), "deeper than"),
        ("-" * (MAX_DEPTH + 1) + "1", "deeper than"),
        ("not " * (MAX_DEPTH + 1) + "1", "deeper than"),
        ("1 if 0 else " * (MAX_DEPTH + 1) + "1", "deeper than"),
        ("2 ** " * (MAX_DEPTH + 1) + "1", "deeper than"),
        ("2 ** 2 ** 2 ** 2 ** 2", "too large"),
        ("1.5 ** 9999", "too large"),
        ("1e300 * 1e300", "no number to go on with"),
        ("1e999", "no number to go on with"),
        ("9" * 999 + " * " + "9" * 999, "longer than"),
        ("*".join(["(2 ** 1000)"] * 8), "too large"),
        ("numbers(long)", "numbers"),
    ],
)
def test_a_strangers_expression_is_bounded(text: str, said: str) -> None:
    with pytest.raises(ExpressionError, match=said):
        compute(text, {"long": "1," * 70000})


def nested(before: str, after: str = "") -> tuple[str, str]:
    """An expression of as many levels as there may be, and one of one more."""
    most, more = (before * levels + "1" + after * levels for levels in (MAX_DEPTH, MAX_DEPTH + 1))
    return most, more


LONG_SUM = "1+" * (MAX_LENGTH // 2 - 1) + "1"
BIG = "(2 ** 1000)"
# What just keeps a bound and what just does not, and the value of the one.
EDGES: dict[str, tuple[str, str, Any]] = {
    "parentheses": (*nested("(", ")"), 1),
    "signs": (*nested("-"), 1),
    "negations": (*nested("not "), 1),
    "powers": (*nested("1 ** "), 1),
    "choices": (*nested("0 if 0 else "), 1),
    "functions": (*nested("int(", ")"), 1),
    "second values": (*nested("max(0, ", ")"), 1),
    "indexes": (*nested("one[", " - 1]"), 1),
    "length": (LONG_SUM + " ", LONG_SUM + "  ", MAX_LENGTH // 2),
    "exponent": ("2 ** 1024", "2 ** 1025", 1 << 1024),
    "exponent below 0": ("2.0 ** -1024", "2.0 ** -1025", 2.0**-1024),
    "exponent of a double": ("1.5 ** 1024", "1.5 ** 1025", 1.5**1024),
    "power": ("15 ** 1024", "16 ** 1024", 15**1024),  # 4 bits and 5
    "product": (f"{BIG}*{BIG}*{BIG}*{BIG} * 2 ** 95", f"{BIG}*{BIG}*{BIG}*{BIG} * 2 ** 96", 1 << 4095),
    "product below 0": (f"-{BIG}*{BIG}*{BIG}*{BIG} * 2 ** 95", f"-{BIG}*{BIG}*{BIG}*{BIG} * 2 ** 96", -(1 << 4095)),
    "doubles": ("1e308", "1e309", 1e308),
    "items": ("len(numbers(most))", "len(numbers(more))", 1 << 16),
    "arguments": ("max(1, 2, 3, 4, 5, 6, 7, 8)", "max(1, 2, 3, 4, 5, 6, 7, 8, 9)", 8),
    "first index": ("listed[0]", "listed[0 - 1]", 1),
    "last index": ("listed[1]", "listed[2]", 3),
}


@pytest.mark.parametrize(("most", "more", "value"), EDGES.values(), ids=EDGES)
def test_what_just_keeps_a_bound_has_a_value(most: str, more: str, value: Any) -> None:
    sizes = {"one": [1], "listed": [1, 3], "most": "1," * (1 << 16), "more": "1," * (1 << 16) + "1"}
    assert compute(most, sizes) == value
    with pytest.raises(ExpressionError, match=r"longer|deeper|too large|numbers|to 8 values|no number|none at"):
        compute(more, sizes)


def test_levels_are_counted_where_they_are() -> None:
    """Many side by side are not deep."""
    assert evaluate("+".join(["(1)", "-1", "int(1)", "listed[0]", "1 ** 1"] * 20), {"listed": [1]}) == 60
    assert evaluate("not (not 1) and " * 40 + "1", {}) == 1


def test_names_of_an_expression() -> None:
    assert names("n_head * head_dim if kinds[block] == 'x' else max(n_kv)") == {
        "n_head", "head_dim", "kinds", "block", "n_kv",
    }  # fmt: skip
    assert names("present('blk.0.x')") == {"present"}
    assert names(12) == frozenset()
    with pytest.raises(ExpressionError, match="ends too early"):
        names("1 +")


def _expressions() -> st.SearchStrategy[str]:
    leaves = st.one_of(st.integers(0, 50).map(str), st.sampled_from(["n_head", "n_head_kv", "e"]))

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        operators = st.sampled_from(["+", "-", "*", "//", "/", "%", "==", "!=", "<", "<=", ">", ">="])
        return st.one_of(
            st.tuples(inner, operators, inner).map(lambda parts: f"({' '.join(parts)})"),
            inner.map(lambda part: f"(-{part})"),
            inner.map(lambda part: f"int({part})"),
            st.tuples(inner, inner).map(lambda parts: f"max({parts[0]}, {parts[1]})"),
            st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]} if {parts[1]} else {parts[2]})"),
        )

    return st.recursive(leaves, grown, max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(_expressions())
def test_agrees_with_python(text: str) -> None:
    """Python's own arithmetic is the oracle: the grammar is a subset of it."""
    try:
        expected = eval(text, {"__builtins__": {"int": int, "max": max}}, SIZES)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError):
            compute(text, SIZES)
        return
    assert compute(text, SIZES) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="n_head 0123()*/+-<>=!'and or\n.é[]%,if else", max_size=30))
def test_any_text_is_a_number_or_an_error(text: str) -> None:
    try:
        assert isinstance(evaluate(text, SIZES), int)
    except ExpressionError:
        pass
