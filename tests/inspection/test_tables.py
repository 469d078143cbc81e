"""What `convert quants` says of each quant."""

from __future__ import annotations

import json

import pytest

from converter.cli.main import main
from converter.inspection.tables import ADVICE, RECOMMENDED, llama_8b, quant_rows
from converter.quant.recipes import GRAPH_RECIPES, RECIPES


def test_the_model_of_8b_is_llamas() -> None:
    """8,030,261,248 parameters, as published."""
    assert sum(spec.shape[0] * (spec.shape[1] if len(spec.shape) > 1 else 1) for spec in llama_8b()[0]) == 8_030_261_248


def test_bits_are_those_that_llama_quantize_prints() -> None:
    """Bits per weight of Llama 3.1 8B: README of llama.cpp's tools/quantize, with its 3 decimals or fewer."""
    rows = {row["quant"]: row for row in quant_rows()}
    known = {
        "Q8_0": 8.5008, "Q6_K": 6.5633, "Q5_K_M": 5.7036, "Q5_K_S": 5.5704, "Q4_K_M": 4.8944, "Q4_K_S": 4.6672,
        "Q4_0": 4.6458, "Q3_K_M": 3.9960, "Q2_K": 3.1593, "IQ4_XS": 4.4597,
    }  # fmt: skip
    assert {name: rows[name]["bits_per_weight"] for name in known} == pytest.approx(known, abs=0.01)
    sizes = [row["bytes_8b"] for row in rows.values() if row["bytes_8b"] is not None]
    assert sizes == sorted(sizes, reverse=True) and 4.9e9 < rows["Q4_K_M"]["bytes_8b"] < 4.93e9


def test_every_quant_has_a_word_of_advice(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {name for name, each in (RECIPES | GRAPH_RECIPES).items() if each.base is not None}
    assert set(ADVICE) == listed == {row["quant"] for row in quant_rows()}
    assert main(["quants"]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("*")]
    assert len(marked) == 1 and RECOMMENDED in marked[0] and "recommended" in marked[0]
    assert main(["quants", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["quants"]
    assert [row["quant"] for row in found if row["recommended"]] == [RECOMMENDED]
