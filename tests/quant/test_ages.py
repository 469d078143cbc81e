"""The mixtures of other years, against what llama-quantize of those years chose (fixtures/make_ages.py recorded it)."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from support import models, shapes
from support.paths import FIXTURES

import converter
from converter import Request
from converter.architectures import traits_of
from converter.certify import certify
from converter.certify.results import PROVEN
from converter.housekeeping.hashes import hashes
from converter.quant.ages import AGES, Age, ages
from converter.quant.mixtures import digest
from converter.quant.recipes import RECIPES, TODAY, ModelFacts, Recipe, Rules, TensorSpec, assign

RECORDED: dict[str, Any] = json.loads((FIXTURES / "ages.json").read_text("utf-8"))
CASES = [(release, name) for release, each in RECORDED.items() for name in each["types"]]
WITH_BYTES = [(release, name) for release, each in RECORDED.items() for name in each["roots"]]


def age_of(release: str) -> tuple[Age, dict[str, Recipe]]:
    day = date.fromisoformat(RECORDED[release]["date"])
    (found,) = ((age, recipes) for age, recipes in ages() if age.first <= day <= age.last)
    return found[0], dict(found[1])


def chosen(shape: shapes.Shape, recipe: Recipe, rules: Rules = TODAY) -> dict[str, str]:
    return {name: each.type for name, each in assign(recipe, shape.specs(), shape.facts, None, rules).items()}


@pytest.mark.parametrize(("release", "name"), CASES)
def test_types_are_those_of_that_day(release: str, name: str) -> None:
    age, recipes = age_of(release)
    for quant, expected in RECORDED[release]["types"][name].items():
        assert digest(chosen(shapes.MODELS[name], recipes[quant], age.rules)) == expected, quant


def test_what_was_recorded_tells_ages_apart() -> None:
    """Today's rules give other types to some model of every release; else its row would prove nothing."""
    for release, own in RECORDED.items():
        differing = {
            quant
            for name, expected in own["types"].items()
            for quant in expected.keys() & RECIPES.keys()
            if digest(chosen(shapes.MODELS[name], RECIPES[quant])) != expected[quant]
        }
        assert {"Q3_K_M", "Q4_K_M"} <= differing, release


def test_ages_follow_each_other_from_the_newest() -> None:
    days = [day for age in AGES for day in (age.last, age.first)]
    assert days == sorted(days, reverse=True)
    assert AGES[0].words == "from 2024-04-03 to 2025-08-15" and AGES[2].words == "on 2024-02-28"
    assert len({age.words for age in AGES}) == len(AGES)


def test_every_age_differs_from_its_neighbours() -> None:
    everything = [(age.rules, recipes) for age, recipes in ages()]
    assert all(one != other for one, other in itertools.pairwise(everything))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("ages")
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            fixed = name in models.FIXTURE_MODELS
            made[name] = models.FIXTURES / name if fixed else models.build_model(name, folder)
        return made[name]

    return build


@pytest.mark.parametrize(("release", "name"), WITH_BYTES)
def test_a_file_of_that_day_is_made_proven_and_dated(
    release: str, name: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    """By the types that its rules give: the tensors are those that its program wrote, byte for byte."""
    age, recipes = age_of(release)
    model, plain = source(name), tmp_path / "plain.gguf"
    converter.convert(model, plain, Request(quant="f16"))
    for quant in ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M"):
        made, types = tmp_path / f"{quant}.gguf", given_to(plain, recipes[quant], age.rules)
        converter.convert(plain, made, Request(quant=quant, tensor_types=tuple(types.items())))
        assert hashes(made).root == RECORDED[release]["roots"][name][quant], quant
        found = certify(model, made)
        as_today = types == given_to(plain, RECIPES[quant], TODAY)
        said = "of November 2026 has it" if as_today else f"had it {age.words}"
        assert (found.verdict, found.mixture) == (PROVEN, f"{quant.lower()}, as llama.cpp {said}")


def given_to(plain: Path, recipe: Recipe, rules: Rules) -> dict[str, str]:
    """The types of all tensors that a recipe quantizes, as --tensor-type has them."""
    with converter.open_checkpoint(plain) as opened:
        specs = [TensorSpec(name, each.info.shape, each.info.dtype.name) for name, each in opened.tensors.items()]
        n_layer, n_head, n_head_kv = (
            int(opened.config[f"llama.{key}"].value)
            for key in ("block_count", "attention.head_count", "attention.head_count_kv")
        )
    facts = ModelFacts("llama", n_layer, n_head, n_head_kv, 0, traits_of("llama"))
    choices = assign(recipe, specs, facts, None, rules)
    return {f"^{re.escape(name)}$": each.type for name, each in choices.items() if "kept" not in each.rule}
