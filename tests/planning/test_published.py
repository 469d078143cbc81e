"""Models of published sizes, sparse on disk: the golden tables of llama.cpp through real configs, names and shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import sparse
from support.golden import PATHS, golden

from converter import Request
from converter.pipeline import plan

TABLES = {path.stem: path for path in PATHS}
#: Whose experts are files of their own, tens of thousands: to name them takes a while.
MANY = ("deepseek-v3.1", "qwen3-coder-next", "qwen3.5-397b-a17b", "glm-4.6v")
CASES = [
    pytest.param(name, ftype, marks=[pytest.mark.slow] if name in MANY and ftype != "Q4_K_M" else [])
    for name in sparse.CONFIGS
    for ftype in ("Q4_K_M", "Q2_K", "Q3_K_L", "MXFP4_MOE")
]


def test_every_golden_table_has_a_config() -> None:
    assert sparse.CONFIGS.keys() == TABLES.keys()


@pytest.mark.parametrize(("name", "ftype"), CASES)
def test_types_equal_the_golden_table(name: str, ftype: str, tmp_path: Path) -> None:
    table = golden(TABLES[name])
    expected = {spec.name: spec.shape for spec in table.specs}
    folder = sparse.folder(sparse.CONFIGS[name], tmp_path / name, expected)
    made = plan(folder, tmp_path / "out.gguf", Request(quant=ftype.lower(), no_tokenizer=True))
    with made.checkpoint:
        steps = {step.name: step for step in made.steps if step.name in expected}
    # The tables are of files whose gate of the shared expert has one axis; the reference writes two today.
    assert {name: (1, *expected[name])[-len(step.shape) :] for name, step in steps.items()} == {
        name: step.shape for name, step in steps.items()
    }
    assert steps.keys() == expected.keys()
    quantized = {name: step.choice.type for name, step in steps.items() if not step.choice.rule.startswith("kept")}
    assert quantized == {name: table.type(ftype, name) for name in quantized}
    assert len(quantized) >= len(expected) // 3
