"""Calibrations: files that say what they are, tensors that follow them, and verify, which follows them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import models
from support.calibrations import factor, inputs, write_calibration

import converter
from converter import Request
from converter.errors import ConverterError, CorruptFile, QuantizationError, UsageError
from converter.events import NoFeedback
from converter.formats.registry import open_checkpoint
from converter.quant.feedback import KEYS, open_calibration
from converter.verify.verifier import verify

KJV = models.FIXTURES / "kjv-llama"
Q, K, DOWN = "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.1.ffn_down.weight"
USES = {Q: [Q, [0]], K: [Q, [0]], DOWN: [DOWN, [0]]}


@pytest.fixture(scope="module")
def factors() -> dict[str, list[np.ndarray]]:
    return {Q: [factor(inputs(256))], DOWN: [factor(inputs(768, seed=1))]}


@pytest.fixture
def calibration(tmp_path: Path, factors: dict[str, list[np.ndarray]]) -> Path:
    return write_calibration(tmp_path / "kjv.calibration.safetensors", factors, USES)


def test_tensors_that_it_names_follow_it_and_others_do_not(calibration: Path, tmp_path: Path) -> None:
    plain, made = tmp_path / "plain.gguf", tmp_path / "made.gguf"
    converter.convert(KJV, plain, quant="q4_k_m")
    plan = converter.convert(KJV, made, quant="q4_k_m", calibrate=calibration)
    assert {step.name for step in plan.steps if step.calibrated} == set(USES)
    assert not any(step.imatrix for step in plan.steps)
    with open_checkpoint(plain) as one, open_checkpoint(made) as other:
        differing = {
            name
            for name, tensor in one.tensors.items()
            if not np.array_equal(tensor.array(), other.tensors[name].array())
        }
        assert differing == set(USES)
        assert set(other.config) - set(one.config) == set(KEYS)
    told = [event for event in plan.report.events if isinstance(event, NoFeedback)]
    assert {event.tensor for event in told} == {s.name for s in plan.steps if len(s.shape) > 1} - set(USES)


def test_verify_finds_it_beside_the_file_and_proves_every_byte(calibration: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    converter.convert(KJV, made, quant="q4_k_m", effort=1, calibrate=calibration)
    result = verify(KJV, made)
    assert result.passed and not result.findings and all(each.reproduced for each in result.tensors)


def test_verify_without_it_says_so_and_measures(calibration: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    converter.convert(KJV, made, quant="q4_k_m", calibrate=calibration)
    elsewhere = calibration.rename(tmp_path / "elsewhere.safetensors")
    result = verify(KJV, made)
    assert result.passed and [each.check for each in result.findings] == ["calibration"]
    assert "their bytes are not proven" in str(result.findings[0])
    named = verify(KJV, made, Request(calibrate=elsewhere))
    assert named.passed and not named.findings


def test_verify_sees_a_changed_block(calibration: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    converter.convert(KJV, made, quant="q4_k", pure=True, calibrate=calibration)
    with open_checkpoint(made) as opened:
        extent = opened.tensors[DOWN].extent
        assert extent is not None
    with made.open("r+b") as file:
        file.seek(extent.offset + 20)
        byte = file.read(1)[0]
        file.seek(extent.offset + 20)
        file.write(bytes([byte ^ 0x11]))
    result = verify(KJV, made, Request(pure=True, quant="q4_k"))
    assert [(each.check, each.subject) for each in result.findings if each.failed] == [("blocks", DOWN)]


def test_verify_refuses_another_calibration(calibration: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    converter.convert(KJV, made, quant="q4_k_m", calibrate=calibration)
    other = write_calibration(tmp_path / "other.safetensors", {Q: [factor(inputs(256, seed=9))]}, {Q: [Q, [0]]})
    with pytest.raises(UsageError, match="is another calibration"):
        verify(KJV, made, Request(calibrate=other))


def test_a_later_quantization_without_one_says_nothing_of_it(calibration: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    converter.convert(KJV, first, quant="q8_0", calibrate=calibration)
    converter.convert(first, second, quant="q4_0", allow_requantize=True)
    with open_checkpoint(second) as opened:
        assert not set(KEYS) & set(opened.config)


def spoiled(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def convert(calibration: Path, **given: object) -> None:
    out = calibration.with_name("out.gguf")
    try:
        converter.convert(KJV, out, quant="q4_k_m", calibrate=calibration, **given)  # type: ignore[arg-type]
    finally:
        assert not out.exists()


def test_factors_that_were_changed_are_found(calibration: Path) -> None:
    spoiled(calibration, -1000)
    with pytest.raises(CorruptFile, match="is not what was written"):
        convert(calibration)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factors_that_are_no_numbers_are_refused(bad: float, tmp_path: Path) -> None:
    v = factor(inputs(256))
    v[3, 100] = bad
    path = write_calibration(tmp_path / "c.safetensors", {Q: [v]}, {Q: [Q, [0]]})
    with pytest.raises(CorruptFile, match="NaN or infinite"):
        convert(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tensors": "{"}, "JSON"),
        ({"tensors": json.dumps({Q: [Q, [1]]})}, "of a factor that is not there"),
        ({"tensors": json.dumps({Q: [Q, [-1]]})}, "of a factor that is not there"),
        ({"tensors": json.dumps({Q: [Q, []]})}, "says no factor for"),
        ({"tensors": json.dumps({Q: ["x", [0]]})}, "says no factor for"),
        ({"tensors": json.dumps({Q: [Q, [True]]})}, "says no factor for"),
        ({"digests": "{}"}, "has no digest"),
        ({"tokens": "many"}, "does not say what was read"),
        ({"tokens": "0"}, "does not say what was read"),
        ({"damping": "nan"}, "does not say what was read"),
        ({"kind": "hearsay"}, "does not say what was read"),
        ({"converter.calibration": "7"}, "of form '7', this version knows 1"),
    ],
)
def test_files_that_contradict_themselves_are_one_line(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "c.safetensors", {Q: [factor(inputs(32))]}, {Q: [Q, [0]]}, **changed)
    with pytest.raises(ConverterError, match=message):
        open_calibration(path)


def test_what_is_no_calibration_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="but not a calibration"):
        open_calibration(KJV / "model.safetensors")
    text = tmp_path / "t.txt"
    text.write_text("In the beginning")
    with pytest.raises(CorruptFile):
        open_calibration(text)


@pytest.mark.parametrize("row", [128, 512])
def test_a_calibration_of_another_model_is_refused(row: int, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "c.safetensors", {Q: [factor(inputs(row))]}, {Q: [Q, [0]]})
    with pytest.raises(QuantizationError, match="of another model"):
        convert(path)
    strange = write_calibration(tmp_path / "d.safetensors", {"x": [factor(inputs(row))]}, {"x": ["x", [0]]})
    with pytest.raises(QuantizationError, match="no tensor of this one is in it"):
        convert(strange)


def test_without_blocks_it_has_no_effect_which_is_said(calibration: Path, tmp_path: Path) -> None:
    for given in ({"quant": "f16"}, {"quant": None}):
        with pytest.raises(UsageError, match="--calibrate"):
            converter.convert(KJV, tmp_path / "o.gguf", calibrate=calibration, **given)  # type: ignore[arg-type]


def test_experts_have_their_own_factors_or_share_one(tmp_path: Path) -> None:
    folder, out, name = models.build_model("mixtral-96", tmp_path), tmp_path / "x.gguf", "blk.0.ffn_gate_exps.weight"
    with converter.plan(folder, out).checkpoint as planned:
        experts = planned.tensors[name].info.shape[0]
    stack = [factor(inputs(96, seed=seed)) for seed in range(2)]
    use = [*range(2), *[1] * (experts - 2)]
    path = write_calibration(tmp_path / "c.calibration.safetensors", {name: stack}, {name: [name, use]})
    converter.convert(folder, out, quant="q4_0", calibrate=path)
    result = verify(folder, out)
    assert result.passed and all(each.reproduced for each in result.tensors)
    short = write_calibration(tmp_path / "short.safetensors", {name: stack}, {name: [name, use[:-1]]})
    with pytest.raises(QuantizationError, match=f"it needs {experts} for rows of 96"):
        converter.convert(folder, tmp_path / "y.gguf", quant="q4_0", calibrate=short)
