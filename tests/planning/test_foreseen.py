"""Plans for an importance matrix that is not at hand: types are those that it would give, nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import importance

from converter import pipeline
from converter.cli.main import main
from converter.errors import MissingImportance
from converter.events import ImportanceNeeded
from converter.planning.plan import Plan
from converter.quant.recipes import RECIPES
from converter.request import Request

NEEDED = [name for name, recipe in RECIPES.items() if recipe.base in recipe.needs_imatrix]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return importance.build_model("grouped", tmp_path_factory.mktemp("foreseen") / "m.gguf")


@pytest.fixture(scope="module")
def matrix(model: Path) -> Path:
    """One with an entry for every matrix of the model."""
    shapes = {name: shape for name, shape in importance.shapes(importance.MODELS["grouped"]).items() if len(shape) > 1}
    ones = {name: np.ones((1, shape[-1]), np.float32) for name, shape in shapes.items()}
    counts = dict.fromkeys(shapes, np.ones(1, np.float32))
    return importance.write_matrix(model.with_name("imatrix.gguf"), importance.Matrix(ones, counts))


def planned(model: Path, quants: list[str], *, foreseen: bool, matrix: Path | None = None) -> list[Plan]:
    requests = [Request(quant=quant, imatrix=matrix) for quant in quants]
    plans = pipeline.plan_several(model, model.with_name("{quant}.gguf"), requests, foreseen=foreseen)
    plans[0].checkpoint.close()
    return plans


def types(plan: Plan) -> dict[str, str]:
    return {step.name: step.type for step in plan.steps}


def test_types_are_those_with_a_matrix(model: Path, matrix: Path) -> None:
    for told, real in zip(
        planned(model, NEEDED, foreseen=True), planned(model, NEEDED, foreseen=False, matrix=matrix), strict=True
    ):
        assert types(told) == types(real) and told.total_bytes == pytest.approx(real.total_bytes, rel=0.02)
        needed = [event.tensor for event in told.report.events if isinstance(event, ImportanceNeeded)]
        assert needed and {step.name for step in told.steps if step.imatrix} == set(needed)


def test_what_needs_none_is_planned_as_ever(model: Path) -> None:
    for told, usual in zip(
        planned(model, ["Q4_K_M", "Q2_K"], foreseen=True),
        planned(model, ["Q4_K_M", "Q2_K"], foreseen=False),
        strict=True,
    ):
        assert told == usual and not any(isinstance(event, ImportanceNeeded) for event in told.report.events)


def test_such_a_plan_cannot_be_carried_out(model: Path) -> None:
    (plan,) = pipeline.plan_several(model, model.with_name("out.gguf"), [Request(quant="IQ2_XXS")], foreseen=True)
    with plan.checkpoint, pytest.raises(MissingImportance, match="pass --imatrix FILE"):
        pipeline.run(plan)
    assert not model.with_name("out.gguf").exists()
    with pytest.raises(MissingImportance):
        pipeline.convert(model, model.with_name("out.gguf"), Request(quant="IQ2_XXS"))


def test_on_the_command_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", str(model), str(model.with_name("x.gguf")), "-q", "iq2_xxs"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "bits per weight" in out and "; imatrix" in out
    assert "need an importance matrix: " in err and "to convert, pass --imatrix FILE" in err
    assert main([*argv, "--imatrix", "nope.dat"]) == 50
    assert capsys.readouterr().err == "convert: --imatrix nope.dat: No such file or directory\n"
