"""A calibration from the model to the proof: made by llama.cpp, used, gone on with, and better than none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import models
from support.calibrations import factor, packed

import converter
from converter.calibration import feedback
from converter.calibration.activations import observe, runnable
from converter.calibration.feedback import calibrate, default_path
from converter.calibration.texts import drawn
from converter.cli.main import main
from converter.errors import Cancelled, OutputExists
from converter.formats.registry import open_checkpoint
from converter.quant.feedback import open_calibration
from converter.request import Source
from converter.runtimes.behaviour import behaviour
from converter.verify.verifier import verify

pytest.importorskip("llama_cpp")

KJV = models.FIXTURES / "kjv-llama"
HELD_OUT = models.FIXTURES / "kjv-heldout.txt"
Q, K, UP, DOWN = (f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "ffn_up", "ffn_down"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "kjv.calibration.safetensors"
    calibrate(KJV, path, "random", tokens=512, threads=1)
    return path


def test_every_product_has_a_factor_and_shares_it_with_those_of_the_same_input(made: Path) -> None:
    with open_calibration(made) as opened, converter.plan(KJV, made.with_name("x.gguf")).checkpoint as planned:
        matrices = {name for name, tensor in planned.tensors.items() if len(tensor.info.shape) > 1}
        assert set(opened.tensors) == matrices - {"token_embd.weight"}
        assert opened.tensors[Q].factors is opened.tensors[K].factors
        assert opened.tensors[UP].factors is not opened.tensors[DOWN].factors
        assert (opened.kind, opened.tokens, opened.tensors[DOWN].factors.row) == ("random", 512, 768)
    assert not made.with_name(made.name + ".parts").exists()


def test_factors_are_those_of_what_the_model_saw(made: Path, tmp_path: Path) -> None:
    rows: list[np.ndarray] = []

    class Kept:
        def take(self, name: str, given: np.ndarray, expert: int | None) -> None:
            rows.append(given.copy())

    with runnable(KJV, threads=1) as model:
        observe(model, drawn(model, 256, 2).chunks, Kept(), wanted=lambda name: name == DOWN, threads=1)
    want = packed(factor(np.concatenate(rows))).view(np.uint16).astype(np.int64)
    with open_calibration(made) as opened:
        found = opened.tensors[DOWN].factor(0).view(np.uint16).astype(np.int64)
    assert (np.abs(found - want) <= 1).mean() > 0.99  # of the last bit of BF16


def test_nothing_private_is_in_the_file(made: Path) -> None:
    header = made.read_bytes()[: 8 + int.from_bytes(made.read_bytes()[:8], "little")]
    assert str(made.parent).encode() not in header and KJV.name.encode() not in header


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "c.safetensors", []
    whole = feedback._Run._read

    def watched(self: feedback._Run, numbers: list[int], text: object) -> int:
        read.extend(numbers)
        if len(read) == 3:
            raise Cancelled("cancelled")
        return whole(self, numbers, text)  # type: ignore[arg-type]

    monkeypatch.setattr(feedback._Run, "_read", watched)
    given = {"tokens": 64, "threads": 1, "memory": 1}  # a block at a time
    with pytest.raises(Cancelled):
        calibrate(KJV, path, "random", **given)  # type: ignore[arg-type]
    assert not path.exists() and len(list(path.with_name(path.name + ".parts").iterdir())) == 3  # a text, two blocks
    calibrate(KJV, path, "random", **given)  # type: ignore[arg-type]
    assert sorted(read) == sorted([*range(-1, 6), read[2]])
    at_once = tmp_path / "at_once.safetensors"
    monkeypatch.undo()
    calibrate(KJV, at_once, "random", tokens=64, threads=1)
    with open_calibration(path) as one, open_calibration(at_once) as other:
        assert one.sha256 == other.sha256


def test_experts(tmp_path: Path) -> None:
    """Those that met few tokens share a factor."""
    folder, path = models.build_model("mixtral-96", tmp_path), tmp_path / "c.calibration.safetensors"
    calibrate(folder, path, "random", tokens=256, threads=1)
    with open_calibration(path) as opened, open_checkpoint(path) as stored:
        up, down = (opened.tensors[f"blk.0.ffn_{part}_exps.weight"] for part in ("up", "down"))
        assert opened.tensors["blk.0.ffn_gate_exps.weight"].factors is up.factors
        said = json.loads(stored.metadata["tensors"])["blk.0.ffn_down_exps.weight"]
        assert len(said[1]) == len(down) and max(said[1]) == down.factors.tensor.info.n_rows - 1
    converter.convert(folder, tmp_path / "x.gguf", quant="q4_0", calibrate=path)
    result = verify(folder, tmp_path / "x.gguf")
    assert result.passed and all(each.reproduced for each in result.tensors)


def test_the_command_makes_uses_and_proves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "q4.gguf"
    words = [str(KJV), str(out), "-q", "q4_k_m", "--calibrate", "random", "--calibrate-tokens", "64", "-j", "1"]
    assert main([*words, "--verify"]) == 0
    assert "57 of 57 tensors are byte for byte" in capsys.readouterr().out
    kept = default_path(Source(KJV), "random", tmp_path)
    assert kept.is_file() and kept.name == "kjv-llama.random.calibration.safetensors"
    assert default_path(Source(KJV), HELD_OUT, tmp_path).name == "kjv-llama.kjv-heldout.txt.calibration.safetensors"
    assert main([*words, "--force", "--calibrate-to", str(kept)]) == 0
    assert main([*words[:1], str(tmp_path / "q3.gguf"), *words[2:], "--verify"]) == OutputExists.exit_code
    capsys.readouterr()
    again = [str(KJV), str(tmp_path / "q3.gguf"), "-q", "q3_k_m", "--calibrate", str(kept), "--verify"]
    assert main(again) == 0
    assert "57 of 57 tensors are byte for byte" in capsys.readouterr().out


def test_nothing_is_read_for_an_output_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["-q", "f16"], ["-q", "iq4_nl", "--pure"], ["-q", "no_such"], []):
        assert main([str(KJV), str(tmp_path / "x.gguf"), "--calibrate", "random", *more]) == 2
    (tmp_path / "there.gguf").touch()
    there = [str(KJV), str(tmp_path / "there.gguf"), "-q", "q4_0", "--calibrate", "random"]
    assert main(there) == OutputExists.exit_code
    assert main(["verify", str(KJV), str(tmp_path / "there.gguf"), "--calibrate", "own"]) == 2
    assert main([*there[:2], "-q", "q4_0", "--calibrate-to", "x"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]


def test_what_cannot_calibrate_leaves_nothing(tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "given"
    for data, code, said in (
        (b"", 2, "fill no chunk"),
        (b"\xff\xfe" * 99, 2, "not UTF-8"),
        (made.read_bytes()[:9999], 11, "truncated"),
        (None, 50, "No such file"),
    ):
        given.unlink(missing_ok=True)
        if data is not None:
            given.write_bytes(data)
        assert main([str(KJV), str(tmp_path / "x.gguf"), "-q", "q4_k_m", "--calibrate", str(given), "-j", "1"]) == code
        assert said in capsys.readouterr().err
        assert not [path for path in tmp_path.iterdir() if path != given]


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "less"), [("q4_k", 0.6), ("q2_k", 0.75)])
def test_the_model_is_nearer_to_its_source(quant: str, less: float, tmp_path: Path) -> None:
    """By KL on text that neither the model nor the calibration has seen."""
    kept, found = tmp_path / "c.calibration.safetensors", []
    calibrate(KJV, kept, "own", tokens=4096, threads=1)
    source = tmp_path / "source.gguf"
    converter.convert(KJV, source)
    for path in (None, kept):
        made = tmp_path / "made.gguf"
        converter.convert(KJV, made, quant=quant, pure=True, calibrate=path, force=True)
        found.append(behaviour(source, made, HELD_OUT.read_text("utf-8"), tokens=2048, context=256).mean_kl)
    assert found[0] is not None and found[1] is not None and found[1] < less * found[0]
