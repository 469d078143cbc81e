"""The mixtures of llama-quantize of other years, as what was different: from today back to the first GGUF.

An `Age` stands between two dates, those of the first and the last release of llama-cpp-python in which its sources of
llama.cpp were seen to have these rules. It says what was other than in the age after it: rows of some roles in some
recipes, and `Rules`. What stands of a role replaces all rows of that role.

Read of the releases 0.1.79 (August 2023), 0.1.83, 0.2.0 to 0.2.90, 0.3.1 to 0.3.36 (October 2026); some 30 of them.
Not here: `F16` and `F32` (which gave an output Q6_K until 2024), rows of 64 (`QK_K`), what --tensor-type meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date

from converter.quant.recipes import FALLBACK, RECIPES, ROLE_PARTS, TODAY, Recipe, Row, Rules


@dataclass(frozen=True)
class Change:
    """The rows of `role` in each of `recipes`, first applicable first; none: its tensors get the base type."""

    role: str
    recipes: tuple[str, ...]
    rows: tuple[Row, ...]

    def of(self, recipe: Recipe) -> Recipe:
        if recipe.name not in self.recipes:
            return recipe
        return replace(recipe, rows=(*(row for row in recipe.rows if row.role != self.role), *self.rows))


def _change(role: str, recipes: str, *rows: str) -> Change:
    """`rows` are words: a type, and the conditions under which it is given."""
    made = (row.split() for row in rows)
    return Change(role, tuple(recipes.split()), tuple(Row(role, type, tuple(when)) for type, *when in made))


@dataclass(frozen=True)
class Age:
    """Rules that held from `first` to `last` (both seen), as far as they are others than in the age after it.

    Attributes:
        rules: all of them, not the difference.
        changes: the rows that are others.
        added: recipes that later ages do not have; in the place of one with the same number.
    """

    first: date
    last: date
    rules: Rules
    changes: tuple[Change, ...] = ()
    added: tuple[Recipe, ...] = field(default=())

    @property
    def words(self) -> str:
        """`from 2024-04-03 to 2025-08-15`, `on 2024-02-22`; the same in every language, as attestations have it."""
        return f"on {self.first}" if self.first == self.last else f"from {self.first} to {self.last}"


# 8 experts; heads that share their key: as in `recipes`
_E8_V, _GQA = "Q8_0 experts=8", ("Q5_K gqa>=4 70b", "Q4_K gqa>=4")
_K_RECIPES = "Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K"
_LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")

_APART = replace(
    TODAY,
    parts=tuple(
        (part, "attn_qkv" if part == "attn_qkv.weight" else role)
        for part, role in ROLE_PARTS
        if part != "attn_kv_b.weight"
    ),
    heads=("token_embd.weight",),
    fallback=FALLBACK | {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL"},
    sorted=False,
)
_NO_OUTPUT = replace(_APART, tying=frozenset(("gptj", "mpt", "bert", "nomic-bert", "gemma")))
_UNTIED = replace(_APART, tying=frozenset())
_NO_IQ4 = replace(
    _UNTIED,
    fallback={
        **_UNTIED.fallback,
        **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "Q2_K"), "Q4_0"),
        "Q3_K": "Q4_1",
    },
)
#: Experts in tensors of their own (`blk.0.ffn_down.3.weight`) were no `ffn_down.weight`.
_WHOLE_NAMES = replace(
    _NO_IQ4, parts=tuple((f"{part}.weight" if part.startswith("ffn_") else part, role) for part, role in _NO_IQ4.parts)
)

_Q3_K_XS = Recipe(
    "Q3_K_XS",
    22,
    "Q3_K",
    (
        *(row for row in RECIPES["Q3_K_S"].rows if row.role != "attn_k"),
        *(Row("attn_k", type, when) for type, when in (("Q8_0", ("experts=8",)), ("Q2_K", ()))),
        Row("ffn_down", "Q4_K", ("first_eighth",)),
        *(
            Row(role, type, when)
            for role in ("ffn_gate", "ffn_up")
            for type, when in (("Q3_K", ("more",)), ("Q2_K", ()))
        ),
    ),
)

#: From the newest to the oldest.
AGES = (
    Age(
        date(2024, 4, 3),
        date(2025, 8, 15),
        _APART,
        (
            _change("attn_qkv", "Q3_K_M Q3_K_L IQ3_M", "Q4_K"),
            _change("attn_qkv", "Q4_K_M", "Q5_K"),
            _change("attn_qkv", "Q5_K_M", "Q6_K"),
        ),
    ),
    Age(date(2024, 3, 9), date(2024, 3, 9), _APART, (_change("attn_v", "IQ3_XS", _E8_V),)),
    Age(date(2024, 2, 28), date(2024, 2, 28), _NO_OUTPUT),
    Age(
        date(2024, 2, 22),
        date(2024, 2, 22),
        _UNTIED,
        (
            _change("head", "IQ3_XXS", "Q8_0 falcon", "Q8_0 ragged", "Q6_K"),
            _change("token_embd", "IQ3_XXS", "Q4_K"),
            _change("attn_v", "IQ3_XXS", _E8_V, *_GQA, "Q3_K no_imatrix"),
            _change("attn_k", "IQ3_XXS", "Q8_0 experts=8"),
            _change("attn_q", "IQ3_XXS"),
            _change("attn_output", "IQ3_XXS", "Q5_K not_falcon experts=8", "Q3_K not_falcon"),
            _change("attn_k", "IQ1_S IQ2_XXS IQ2_XS"),
            _change("attn_output", "IQ1_S", "IQ2_XXS"),
            _change("attn_output", "IQ2_XXS IQ2_XS"),
        ),
        (_Q3_K_XS,),
    ),
    Age(date(2024, 2, 14), date(2024, 2, 14), _NO_IQ4),
    Age(
        date(2024, 1, 22),
        date(2024, 1, 31),
        _NO_IQ4,
        (_change("attn_v", "IQ3_XXS", _E8_V, *_GQA), _change("ffn_down", "IQ3_XXS")),
    ),
    Age(
        date(2024, 1, 15),
        date(2024, 1, 15),
        _NO_IQ4,
        (
            _change("attn_v", "Q2_K", _E8_V, "Q5_K 70b", "Q3_K"),
            _change("attn_v", "Q2_K_S", _E8_V),
            _change("ffn_down", "Q4_0 Q5_0"),
        ),
    ),
    Age(
        date(2023, 8, 29),
        date(2023, 12, 27),
        _WHOLE_NAMES,
        (
            _change("ffn_down", "Q3_K_M", "Q5_K first_2", "Q4_K not_falcon", "Q4_K more"),
            _change("ffn_down", "Q4_K_M", "Q6_K not_falcon more", "Q6_K falcon first_2", "Q5_K falcon more"),
            _change("ffn_down", "Q4_K_S", "Q5_K not_falcon first_4"),
            _change("ffn_gate", "Q2_K", "Q3_K"),
            _change("ffn_up", "Q2_K", "Q3_K"),
            _change("attn_output", "Q2_K", "Q3_K not_falcon"),
            _change("attn_output", "Q3_K_M", "Q4_K not_falcon"),
            _change("attn_output", "Q3_K_L", "Q4_K falcon", "Q5_K"),
            _change("attn_output", "Q3_K_S Q4_K_S Q4_K_M"),
        ),
    ),
    Age(
        date(2023, 8, 25),
        date(2023, 8, 25),
        _WHOLE_NAMES,
        (
            _change("head", _K_RECIPES, "F16 uneven", "Q6_K"),
            *(_change("head", name, f"{name} uneven", "Q6_K") for name in (*_LEGACY, "Q8_0")),
            _change("token_embd", _K_RECIPES, "Q4_0 uneven"),
            _change("attn_qkv", "Q3_K_M Q3_K_L Q4_K_M Q5_K_M"),
            _change("attn_v", "Q2_K", "Q3_K"),
            _change("attn_v", "Q3_K_S"),
            _change("attn_v", "Q3_K_M", "Q5_K first_2", "Q4_K"),
            _change("attn_v", "Q4_K_S", "Q5_K first_4"),
            _change("attn_v", "Q4_K_M", "Q6_K more"),
            _change("attn_output", "Q2_K", "Q3_K"),
            _change("attn_output", "Q3_K_M", "Q4_K"),
            _change("attn_output", "Q3_K_L", "Q5_K"),
            _change("ffn_down", "Q3_K_M", "Q5_K first_2", "Q4_K"),
            _change("ffn_down", "Q3_K_L", "Q5_K"),
            _change("ffn_down", "Q4_K_S", "Q5_K first_4"),
            _change("ffn_down", "Q4_K_M", "Q6_K more"),
        ),
    ),
)  # fmt: skip


def ages() -> Iterator[tuple[Age, Mapping[str, Recipe]]]:
    """Every age with its recipes by name, the newest first."""
    recipes: Mapping[str, Recipe] = RECIPES
    for age in AGES:
        numbers = {each.file_type for each in age.added}
        kept = {name: each for name, each in recipes.items() if each.file_type not in numbers}
        for change in age.changes:
            kept = {name: change.of(each) for name, each in kept.items()}
        recipes = kept | {each.name: each for each in age.added}
        yield age, recipes
