"""Mixtures: which tensors a rule means, rules of types, and the file of both."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import OutputError, UsageError
from converter.mixture import Mixture, Rule
from converter.quant.mixtures import digest, meant, ranges, rules_of
from converter.quant.recipe_files import MAX_NBYTES, read_recipe, text

NAMES = ["token_embd.weight", *(f"blk.{n}.{stem}.weight" for n in range(12) for stem in ("attn_v", "ffn_up"))]
TYPES = ("Q3_K", "Q4_K", "Q6_K")


def given_types(rules: list[Rule], names: list[str], count: int, own: int | None = None) -> dict[str, str]:
    return {
        name: rule.type for name, rule in meant(Mixture("Q4_K_M", tuple(rules), None, own), names, count).rules.items()
    }


def test_the_first_rule_that_fits_decides() -> None:
    rules = [
        Rule("blk.3.attn_v.weight", "Q8_0"), Rule("blk.{block}.attn_v.weight", "Q6_K", "2-4,7"),
        Rule(r"blk\.\d+\.(attn_v|attn_q).weight", "Q5_K"), Rule("token_embd.weight", "F16"),
    ]  # fmt: skip
    found = given_types(rules, [*NAMES, "xblk.0.attn_v.weight", "blk.0.attn_v.weight.more"], 12)
    assert found["token_embd.weight"] == "F16" and found["blk.3.attn_v.weight"] == "Q8_0"
    assert [found[f"blk.{n}.attn_v.weight"] for n in (1, 2, 4, 5, 7)] == ["Q5_K", "Q6_K", "Q6_K", "Q5_K", "Q6_K"]
    assert len(found) == 13, "a pattern is for whole names"


def test_a_name_is_no_pattern() -> None:
    assert given_types([Rule("blk.1.ffn_up.weight", "Q8_0")], ["blk.1.ffn_up.weight", "blk_1_ffn_up_weight"], 2) == {
        "blk.1.ffn_up.weight": "Q8_0"
    }
    assert given_types([Rule("Layer.W", "Q8_0")], ["Layer.W"], 0) == {"Layer.W": "Q8_0"}, "in its own case"


def test_other_depths() -> None:
    """A block of a deeper model has the rule of the one at its place; every rule keeps its share."""
    rules = [Rule("blk.{block}.ffn_up.weight", "Q6_K", "0,3"), Rule("blk.{block}.ffn_up.weight", "Q4_K")]
    names = [f"blk.{n}.ffn_up.weight" for n in range(8)]
    assert [given_types(rules, names, 8, 4)[name] for name in names] == ["Q6_K"] * 2 + ["Q4_K"] * 4 + ["Q6_K"] * 2
    assert [given_types(rules, names, 8)[name] for name in names] == ["Q6_K", "Q4_K", "Q4_K", "Q6_K"] + ["Q4_K"] * 4
    assert meant(Mixture("Q4_0", tuple(rules), None, 4), names, 8).scaled
    assert not meant(Mixture("Q4_0", tuple(rules), None, 8), names, 8).scaled


def test_rules_without_a_tensor_are_known() -> None:
    idle = Rule("output.weight", "Q6_K")
    assert meant(Mixture("Q4_0", (Rule("blk.{block}.ffn_up.weight", "Q4_0"), idle)), NAMES, 12).idle == (idle,)


@given(st.lists(st.sampled_from(TYPES), min_size=len(NAMES), max_size=len(NAMES)))
def test_rules_give_the_types_that_they_are_of(types: list[str]) -> None:
    own = dict(zip(NAMES, types, strict=True))
    rules = rules_of(own)
    assert given_types([rule for rule, _ in rules], NAMES, 12) == own
    assert sorted(name for _, names in rules for name in names) == sorted(NAMES)
    assert len(rules) <= 1 + 2 * len(TYPES), "one for each type of a role"


@given(st.sets(st.integers(0, 40)))
def test_ranges(numbers: set[int]) -> None:
    names = [f"blk.{n}.x.weight" for n in range(41)]
    found = given_types([Rule("blk.{block}.x.weight", "F16", ranges(numbers) or "999")], names, 41)
    assert {int(name.split(".")[1]) for name in found} == numbers


def test_the_digest_is_of_names_and_types_in_no_order() -> None:
    assert digest({"b": "Q4_K", "a": "F32"}) == digest({"a": "F32", "b": "Q4_K"}) != digest({"a": "Q4_K", "b": "F32"})


# ------------------------------------------------------------------------------------------------ files

MEASURED = Rule("blk.{block}.ffn_up.weight", "Q6_K", "0-3", 1000, 0.125, 2e-05, 0.0, 1.5e-09, 'a "why"\\ \x7f é\n')


def test_a_file_says_all_of_a_mixture(tmp_path: Path) -> None:
    mixture = Mixture("Q4_K_M", (MEASURED, Rule("output.weight", "F16")), "llama", 4, "probed")
    (tmp_path / "r.toml").write_text(text(mixture), "utf-8")
    assert read_recipe(tmp_path / "r.toml") == mixture
    assert Mixture.of(mixture.as_dict()) == mixture and Mixture.of(None) is None


HEAD = 'version = 1\nbase = "q4_k_m"\n'
RULE = '[[rule]]\ntensors = "a"\ntype = "q6_k"\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "version = 1"), ("version = 2", "version = 1"), ("version = ", "bad TOML"), ("\udcff", "utf-8"),
        ("version = 1", "base is missing"), ('version = 1\nbase = "COPY"', "keeps every type"),
        ('version = 1\nbase = "q4_k_n"', "did you mean"), (HEAD + "base2 = 1", "there is no"),
        (HEAD + "block_count = true", "block_count is a number"), (HEAD + "rule = 3", "[[rule]]"),
        (HEAD + "rule = [3]", "[[rule]]"), (HEAD + "[[rule]]\n", "rule 1: tensors is missing"),
        (HEAD + RULE + "[[rule]]\ntensors = 3\ntype = 'f16'", "rule 2: tensors is a text"),
        (HEAD + RULE + "[[rule]]\ntensors = 'a(b'\ntype = 'f16'", "rule 2 ('a(b')"),
        (HEAD + "[[rule]]\ntensors = 'a'\ntype = 'q6_q'", "no type 'Q6_Q'"),
        (HEAD + RULE + "blocks = '3-1'", "no numbers"), (HEAD + RULE + "blocks = '1,,2'", "no numbers"),
        (HEAD + RULE + "blocks = '999999'", "no numbers"), (HEAD + RULE + "error = 'x'", "error is a number"),
        (HEAD + RULE + "colour = 'x'", "there is no"), (HEAD + RULE * 3000, "3000 patterns"),
        (HEAD + "x = " + "[" * 5000, "bad TOML"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_said(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(content, "utf-8", "surrogateescape")
    with pytest.raises(UsageError) as raised:
        read_recipe(path)
    assert said in str(raised.value) and str(path) in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        read_recipe(tmp_path / "absent")
    (tmp_path / "large").write_bytes(b"#" * (MAX_NBYTES + 1))
    with pytest.raises(UsageError, match="no recipe"):
        read_recipe(tmp_path / "large")
