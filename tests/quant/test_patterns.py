"""The pattern engine against Python's `re`, and against patterns meant to hurt."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import UsageError
from converter.quant.patterns import MAX_STATES, Pattern

_ATOMS = st.sampled_from(["a", "b", "0", "_", "\\.", ".", "\\d", "\\w", "[ab]", "[^a]", "[0-9_]", "[a.-]", "\\-"])
_POSITIONS = st.sampled_from(["^", "$", "\\b"])
_COUNTS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,}", "{0,2}", "*?"])


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "(" + "|".join(parts) + ")"),
        st.tuples(inner, _COUNTS).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    )


_PATTERNS = st.recursive(st.one_of(st.tuples(_ATOMS, _COUNTS).map("".join), _POSITIONS), _larger, max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(_PATTERNS, st.lists(st.text("ab0_.-", max_size=12), min_size=1, max_size=5))
def test_finds_what_re_finds(pattern: str, names: list[str]) -> None:
    ours, theirs = Pattern(pattern), re.compile(pattern, re.ASCII)
    assert [ours.search(name) for name in names] == [bool(theirs.search(name)) for name in names]


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("attn_q", "blk.0.attn_q.weight", True),
        (r"blk\.(1[0-9]|2)\.ffn_(up|down)", "blk.12.ffn_down.weight", True),
        (r"blk\.(1[0-9]|2)\.ffn_(up|down)", "blk.3.ffn_down.weight", False),
        (r"^output\b", "output.weight", True),
        (r"^output\.weight$", "blk.0.attn_output.weight", False),
        ("[[:digit:]]{2}", "blk.12.x", True),
        ("ATTN_[QK]", "blk.0.attn_k.weight", True),
        ("[^[:alpha:]_.]", "attn_k.weight", False),
        ("a]}", "xa]}", True),
    ],
)
def test_search(pattern: str, name: str, found: bool) -> None:
    assert Pattern(pattern).search(name) is found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "empty pattern"),
        ("(", "missing \\)"),
        ("a)", "unbalanced"),
        ("[a", "ends too early"),
        ("[]", "empty"),
        ("*a", "nothing to repeat"),
        ("a**", "nothing to repeat"),
        ("^*", "position cannot be repeated"),
        ("a{2", "must be"),
        ("a{3,2}", "n below m"),
        ("(?=a)", "look-ahead"),
        ("(a)\\1", "back-references"),
        ("\\q", "unknown escape"),
        ("a\\", "ends too early"),
        ("[z-a]", "must rise"),
        ("[\\d-z]", "one character"),
        ("[[:nope:]]", "unknown class"),
        ("a" * 300, "longer than"),
        ("(" * 40 + ")" * 40, "inside each other"),
        ("(((a{99}){99}){99}){99}", f"more than {MAX_STATES} steps"),
        ("(){99}" * 40, f"more than {MAX_STATES} steps"),
    ],
)
def test_bad_patterns_are_usage_errors(pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pattern(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a*)*b", ".*.*.*.*.*.*.*x", "(a?){99}a{99}$"])
def test_patterns_that_hang_a_backtracking_matcher_do_not(pattern: str) -> None:
    start = time.perf_counter()
    assert not Pattern(pattern).search("a" * 64 + "-")
    assert time.perf_counter() - start < 2
