"""What a calibration takes, told before: against what one took, and by the formula of docs/calibration.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import models

from converter import pipeline
from converter.calibration import costs as told
from converter.calibration import feedback
from converter.calibration.costs import _Input
from converter.cli.main import main
from converter.formats.safetensors import open_file
from converter.planning import preflight
from converter.request import Request

KJV = models.FIXTURES / "kjv-llama"


@pytest.mark.parametrize(("name", "tokens"), [("kjv-llama", 64), ("mixtral-96", 256), ("mixtral-96", 4096)])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_against_what_one_took(
    name: str, tokens: int, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of the factors, how often the text is read, and what is spread."""
    pytest.importorskip("llama_cpp")
    source = KJV if name == "kjv-llama" else models.build_model(name, tmp_path)
    read, path, reading = [], tmp_path / "c.safetensors", feedback._Run._read
    monkeypatch.setattr(feedback._Run, "_read", lambda *given: read.append(given[1]) or reading(*given))
    feedback.calibrate(source, path, "random", tokens=tokens, memory=memory, threads=1)
    plan = pipeline.plan(source, tmp_path / "o.gguf", Request(quant="q8_0"))
    with plan.checkpoint:
        found = told.costs(plan, "random", tokens, memory)
    with open_file(path) as stored:
        kept = sum(each.info.nbytes for each in stored.tensors.values())
        of = json.loads(stored.metadata["tensors"])
    assert found.readings == len(read)
    assert found.spread == {name for name in of if not name.endswith("_inp.weight")}, "routers are never quantized"
    assert found.disk_bytes == 2 * found.kept_bytes
    if tokens != 256:  # there an expert's share is less than it has columns, and some meet more than their share
        assert kept <= found.kept_bytes <= 1.5 * kept
    if name == "kjv-llama":
        assert found.kept_bytes == kept and found.scratch_bytes > 10_000_000


def test_the_formula_for_8_billion_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of docs/calibration.md: three inputs of 4096 and one of 14,336 in each of 32 blocks, 8192 tokens."""
    inputs = [_Input(block, row, 1, 1.0, False) for block in range(32) for row in (4096, 4096, 4096, 14336)]
    tokens = 8192
    moments = sum(tokens * each.row**2 for each in inputs) / 72e9
    factors = sum(each.factors(tokens) * 2 / 3 * each.row**3 for each in inputs) / 16e9
    assert (round(moments / 60), round(factors / 60)) == (16, 70)
    assert sum(each.factors(tokens) * each.row * (each.row + 1) for each in inputs) == pytest.approx(8.2e9, rel=0.01)
    assert max(told._by_block(inputs)) == pytest.approx(1.0e9, rel=0.03)
    assert told._readings(inputs, 1) == 32 and told._readings(inputs, 8 << 30) == 1 + 1 + 1 + 1 + 3
    assert told._steps(8192) == 512 and told._steps(64) == 64 and told._steps(16384) == 1024


def test_rates_are_measured() -> None:
    assert 1e-13 < told.multiplying() < 1e-8 and 1e-13 < told.factoring() < 1e-7
    short, long = (preflight.spreading("Q4_K", row) for row in (256, 8192))
    assert 0 <= short < long < 1e-4, "a longer row has more columns that an error goes to"


def test_plan_counts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", str(KJV), str(tmp_path / "o.gguf"), "-q", "q4_k_m", "--json"]
    found = []
    for more in ([], ["--calibrate", "own"], ["--calibrate", "own", "--calibrate-tokens", "64"]):
        assert main([*argv, *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["preflight"])
    plain, usual, few = found
    assert plain["calibration"] is None and usual["seconds"] > usual["calibration"]["seconds"] > 0
    assert usual["calibration"]["seconds"] > few["calibration"]["seconds"]
    assert usual["memory_bytes"] >= usual["calibration"]["memory_bytes"] > 0
    assert main([*argv[:-1], "--calibrate", "own"]) == 0
    assert "calibrating takes at least" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [] and main([*argv, "--calibrate", str(tmp_path / "absent")]) == 50


def test_a_calibration_that_is_there_is_counted_as_encoding(tmp_path: Path) -> None:
    """Its tensors are spread, which takes longer than encoding them by themselves."""
    pytest.importorskip("llama_cpp")
    path = tmp_path / "c.safetensors"
    feedback.calibrate(KJV, path, "random", tokens=64, threads=1)
    plan = pipeline.plan(KJV, tmp_path / "o.gguf", Request(quant="q4_0", calibrate=path))
    with plan.checkpoint:
        spread = [step for step in plan.steps if step.calibrated]
        assert spread and preflight.preflight([plan], 1).calibration is None
        took = sum(step.info.n_elements * preflight.spreading(step.type, step.info.row) for step in spread)
        assert preflight.preflight([plan], 1).seconds > took > 0
