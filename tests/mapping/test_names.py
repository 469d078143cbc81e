"""Names by templates: which rule, block and expert a name says, and what it is called under other spellings."""

from __future__ import annotations

import pytest

from converter.architectures.spec import Architecture, HFClass, T, TensorRule
from converter.mapping.names import Match, RuleNames, Spelled, fill, is_ignored, spellings

TWO = T(("l.{block}.e.{expert}.w1", "l.{block}.e.{expert}.w3"), "blk.{block}.x")
FIRST, THIRD = T("m.0.w", "first"), T("m.2.w", "third")
EVEN, ODD = T("r.{block}.w", "even.{block}", when="block % 2 == 0"), T("r.{block}.w", "odd.{block}", when="block % 2")
RULES = (TWO, FIRST, THIRD, EVEN, ODD, T("head", "output"))


def applies(rule: TensorRule, block: int | None) -> bool:
    """As the conditions of the two rules say."""
    return rule not in (EVEN, ODD) or (block is not None and block % 2 == (rule is ODD))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("l.7.e.12.w1", Match(TWO, 0, 7, 12)),
        ("l.0.e.999999999.w3", Match(TWO, 1, 0, 999999999)),
        ("m.0.w", Match(FIRST, 0, None, None)),
        ("m.2.w", Match(THIRD, 0, None, None)),
        ("r.4.w", Match(EVEN, 0, 4, None)),
        ("r.5.w", Match(ODD, 0, 5, None)),
        ("head", Match(RULES[-1], 0, None, None)),
        ("m.1.w", None),  # a number of a template is this number
        ("l.7.e.12.w2", None),
        ("l.7.e.w1", None),
        ("r.04.w", None),
        ("r.-4.w", None),
        ("r.4 .w", None),
        ("r.+4.w", None),
        ("r.\u0664.w", None),  # ARABIC-INDIC DIGIT FOUR is a number for Python, and no block
        ("r.\u00b2.w", None),
        ("r.1000000000.w", None),
        (f"r.{'4' * 5000}.w", None),  # longer than what int() reads
        ("r..w", None),
        ("", None),
    ],
)
def test_the_rule_of_a_name(name: str, match: Match | None) -> None:
    assert RuleNames(RULES, "hf").find(name, applies) == match


def test_the_first_rule_that_applies_has_the_name() -> None:
    rules = RuleNames((EVEN, ODD), "hf")
    assert rules.find("r.4.w", lambda rule, block: True) == Match(EVEN, 0, 4, None)
    assert rules.find("r.4.w", lambda rule, block: False) is None
    assert RuleNames((EVEN, ODD), "gguf").find("odd.4", lambda rule, block: block == 4) == Match(ODD, 0, 4, None)


def test_a_template_is_filled() -> None:
    assert fill("l.{block}.e.{expert}.w1", 7, 12) == "l.7.e.12.w1"
    assert fill("head", None) == "head"


SPELLED = Architecture(
    "toy", (HFClass("Toy", "toy"),), (), (),
    aliases=(
        ("bert.{rest}", "model.{rest}"),
        ("{start}.gamma", "{start}.weight"),
        ("l.{block}.moe.{rest}", "l.{block}.mlp.{rest}"),
        ("a.b", "c.d"),
        ("model.{rest}", "bert.{rest}"),
    ),
    ignore=("vision.{rest}", "l.{block}.e.{expert}.bias"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("bert.x.gamma", ["bert.x.gamma", "model.x.gamma", "bert.x.weight", "model.x.weight"]),  # each once
        ("l.7.moe.up.w", ["l.7.moe.up.w", "l.7.mlp.up.w"]),
        ("l.999999999.moe.w", ["l.999999999.moe.w", "l.999999999.mlp.w"]),
        ("l.1000000000.moe.w", ["l.1000000000.moe.w"]),
        ("l.07.moe.w", ["l.07.moe.w"]),
        ("l.7.moe", ["l.7.moe"]),  # {rest} is at least one component
        ("l.7.moe.", ["l.7.moe."]),
        ("a.b", ["a.b", "c.d"]),
        ("axb", ["axb"]),  # a dot is a dot
        ("x.a.b", ["x.a.b"]),
        ("bert.two\nlines", ["bert.two\nlines", "model.two\nlines"]),
    ],
)
def test_other_spellings(name: str, found: list[str]) -> None:
    assert spellings(SPELLED, name) == found


def test_names_that_are_dropped() -> None:
    assert is_ignored(SPELLED, ["other", "vision.blocks.0.q"])
    assert is_ignored(SPELLED, ["l.0.e.3.bias"])
    assert not is_ignored(SPELLED, ["other.vision.q", "vision", "l.0.e.x.bias", "l.0.e.3.bias.x"])
    assert not is_ignored(SPELLED, [])


def test_the_names_of_a_file_and_what_they_are_called() -> None:
    names = Spelled(SPELLED, {"bert.w": 1, "a.b": 2})
    assert all(name in names for name in ("bert.w", "model.w", "a.b", "c.d"))
    assert "x.w" not in names and 7 not in names
