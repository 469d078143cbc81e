"""The verifier catches faults: good outputs are damaged in one way each (support/faults.py), and that is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import importance, models
from support.faults import FAULTS, UP, Fault, Workshop, flip, in_bytes
from support.rewriting import reshaped, rewritten, without

import converter
from converter import Request
from converter.cli.main import main
from converter.errors import UsageError
from converter.findings import CHECKS
from converter.tensors import kernels
from converter.verify.results import Verification
from converter.verify.verifier import round_trip, verify


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("verify"))


def failed(result: Verification) -> set[tuple[str, str]]:
    """Subject and check of what failed."""
    return {(finding.subject, finding.check) for finding in result.findings if finding.failed}


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_fault_is_caught(fault: Fault, shop: Workshop, tmp_path: Path) -> None:
    result = verify(shop.source(fault.model), shop.damaged(fault, tmp_path))
    assert not result.passed
    found = failed(result)
    assert (fault.subject, fault.check) in found
    assert {subject for subject, _ in found} == {fault.subject} | fault.also, "and nothing else"
    hints = [finding.hint for finding in result.findings if finding.subject == fault.subject]
    assert any(fault.hint in hint for hint in hints), hints


def test_there_are_many_faults_of_all_kinds() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 60
    assert {fault.check for fault in FAULTS} >= {
        "missing", "extra", "shape", "type", "tied", "values", "blocks", "nonfinite", "zero", "metadata", "tokenizer",
        "template",
    } <= set(CHECKS)  # fmt: skip


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_k_m"])
def test_no_false_alarm(name: str, quant: str, shop: Workshop) -> None:
    result = verify(shop.source(name), shop.good(name, quant))
    assert result.passed and not result.findings
    assert all(tensor.reproduced for tensor in result.tensors)
    assert verify(shop.source(name), shop.good(name, quant), encode=False).passed


def test_outer_axes_of_one_are_no_difference(shop: Workshop, tmp_path: Path) -> None:
    """llama-quantize leaves them out, as ggml does not count them."""
    good = shop.good("llama3-256", "q4_k_m")
    with_one = rewritten(good, tmp_path / "one.gguf", None, reshaped("output_norm.weight", (1, 256)))
    assert verify(shop.source("llama3-256"), with_one).passed
    turned = rewritten(good, tmp_path / "turned.gguf", None, reshaped("output_norm.weight", (256, 1)))
    assert failed(verify(shop.source("llama3-256"), turned)) == {("output_norm.weight", "shape")}


def test_a_mixture_of_ones_own(shop: Workshop, tmp_path: Path) -> None:
    source, target = shop.source("llama3-256"), tmp_path / "own.gguf"
    request = Request(quant="q4_k_m", tensor_types=((r"ffn_up", "q5_k"),))
    converter.convert(source, target, request)
    assert {check for _, check in failed(verify(source, target))} == {"type"}
    assert verify(source, target, any_types=True).passed
    alias = Request(quant="q4_k", tensor_types=request.types.tensor_types)
    assert verify(source, target, alias).passed, "q4_k is a name of q4_k_m"
    assert verify(source, target, request).passed


def test_numbers_are_those_of_numpy(shop: Workshop) -> None:
    source, good = shop.source("llama3-256"), shop.good("llama3-256", "q4_k_m")
    result = {tensor.name: tensor for tensor in verify(source, good).tensors}
    with converter.open_checkpoint(source) as before, converter.open_checkpoint(good) as after:
        name, theirs = "blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"
        a = before.tensors[theirs].array().astype(np.float64)
        stored = after.tensors[name]
        b = kernels.decode(stored.array(), stored.info.dtype).astype(np.float64)
    error, found = a - b, result[name]
    assert found.sources == (theirs,)
    assert found.max_abs == pytest.approx(np.abs(error).max(), rel=1e-6)
    assert found.rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert found.nmse == pytest.approx((error**2).sum() / (a**2).sum(), rel=1e-5)
    assert found.sqnr_db == pytest.approx(-10 * np.log10(found.nmse))
    assert found.cosine == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), abs=1e-7)
    assert found.bound == pytest.approx(found.nmse)
    counted = np.abs(error).reshape(-1, 4, 256)[:, 0].reshape(-1)
    assert found.p999 == pytest.approx(np.quantile(counted, 0.999), rel=0.05)
    groups = (error**2).reshape(-1, 256).sum(axis=1)
    assert found.worst is not None
    assert found.worst.row * 256 + found.worst.column == 256 * int(groups.argmax())
    assert found.worst.rmse == pytest.approx(np.sqrt(groups.max() / 256), rel=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_result_does_not_depend_on_threads(threads: int, shop: Workshop) -> None:
    source, good = shop.source("mixtral-96"), shop.good("mixtral-96", "q4_k_m")
    one = verify(source, good, threads=threads)
    assert [t.name for t in one.tensors] == [t.name for t in verify(source, good).tensors]
    for mine, theirs in zip(one.tensors, verify(source, good, threads=2).tensors, strict=True):
        assert mine.nmse == pytest.approx(theirs.nmse, rel=1e-9)
        assert (mine.max_abs, mine.worst, mine.differing) == (theirs.max_abs, theirs.worst, theirs.differing)


# ------------------------------------------------------------------------------------- folders, round trips


def edited(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / name
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")
    return folder


FOLDER_FAULTS: dict[str, tuple[str, str, Callable[[dict[str, Any]], None]]] = {
    "config.json: num_key_value_heads": ("config.json", "metadata", lambda c: c.update(num_key_value_heads=4)),
    "config.json: rms_norm_eps": ("config.json", "metadata", lambda c: c.update(rms_norm_eps=1e-6)),
    "config.json: eos_token_id": ("config.json", "metadata", lambda c: c.update(eos_token_id=5)),
    "tokenizer.ggml.merges": ("tokenizer.json", "tokenizer", lambda t: t["model"]["merges"].reverse()),
}


@pytest.mark.parametrize("subject", FOLDER_FAULTS)
def test_fault_in_a_folder_is_caught(subject: str, shop: Workshop, tmp_path: Path) -> None:
    source = shop.source("llama3-256")
    bad = tmp_path / "copy"
    shutil.copytree(source, bad)
    assert verify(source, bad).passed
    file, check, change = FOLDER_FAULTS[subject]
    edited(bad, file, change)
    assert (subject, check) in failed(verify(source, bad))


@pytest.mark.parametrize("via", [("a.gguf",), ("a/",), ("a.npz", "b.onnx"), ("a.pt", "b.h5", "c.safetensors")])
def test_round_trip_is_exact(via: tuple[str, ...], shop: Workshop) -> None:
    result = round_trip(shop.source("qwen3moe-96"), via)
    assert result.passed and all(tensor.exact for tensor in result.tensors)


def test_round_trip_of_a_quant_is_as_far_off_as_the_quant(shop: Workshop) -> None:
    source = shop.source("llama3-256")
    there = verify(source, shop.good("llama3-256", "q8_0")).summary()
    back = round_trip(source, ["a.gguf"], Request(quant="q8_0"))
    assert not back.passed, "a BF16 folder does not come back from Q8_0"
    assert back.summary()["sqnr_db"] == pytest.approx(there["sqnr_db"], abs=0.6), "BF16 rounds once more"


def test_round_trip_asks_for_names() -> None:
    for via in ([], ["a/b.gguf"], ["../x.gguf"]):
        with pytest.raises(UsageError, match="--via"):
            round_trip(models.FIXTURES / "stories260K", via)


# ----------------------------------------------------------------------------------------------- command line


def test_command(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, good = str(shop.source("llama3-256")), str(shop.good("llama3-256", "q4_k_m"))
    assert main(["verify", source, good]) == 0
    assert "PASSED" in capsys.readouterr().out
    bad = rewritten(Path(good), tmp_path / "bad.gguf", None, in_bytes(UP, flip(5, 0, 0)))
    assert main(["verify", source, str(bad), "--json"]) == 41
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == 1 and not report["passed"]
    assert [finding["subject"] for finding in report["findings"] if finding["failed"]] == [UP]
    assert main(["verify", source, good, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_command_gates(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, good = str(shop.source("llama3-256")), str(shop.good("llama3-256", "q4_k_m"))
    assert main(["verify", source, good, "--min-sqnr", "60"]) == 41
    gate, baseline = tmp_path / "verify.toml", tmp_path / "report.json"
    gate.write_text("[type.Q4_K]\nmin_sqnr = 15\n", "utf-8")
    assert main(["verify", source, good, "--gate", str(gate), "--report", str(baseline)]) == 0
    assert main(["verify", source, good, "--baseline", str(baseline)]) == 0
    worse = tmp_path / "worse.gguf"
    converter.convert(source, worse, Request(quant="q3_k_m"))
    capsys.readouterr()
    assert main(["verify", source, str(worse), "--baseline", str(baseline)]) == 41
    assert "baseline" in capsys.readouterr().out


def test_convert_verifies_what_it_wrote(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(shop.source("qwen2-96"))
    assert main([source, str(tmp_path / "a.gguf"), "-q", "q4_k_m", "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verification"]["passed"]
    assert main([source, str(tmp_path / "b.safetensors"), "--verify"]) == 0
    assert "verified" in capsys.readouterr().out


def test_an_importance_matrix_is_named_or_allowed_for(shop: Workshop, tmp_path: Path) -> None:
    source, target = shop.source("llama3-256"), tmp_path / "iq3.gguf"
    with converter.open_checkpoint(shop.good("llama3-256", "f16")) as model:
        shapes = {name: tensor.info.shape for name, tensor in model.tensors.items()}
    matrix = importance.write_matrix(tmp_path / "imatrix.gguf", importance.build_matrix("llama3-256", shapes))
    converter.convert(source, target, Request(quant="iq3_xxs", imatrix=matrix))
    without_it = verify(source, target)
    assert without_it.passed, "the error is what another encoder may have"
    assert any(tensor.reproduced is None for tensor in without_it.tensors)
    with_it = verify(source, target, Request(imatrix=matrix))
    assert with_it.passed and all(tensor.reproduced for tensor in with_it.tensors)
    bad = rewritten(target, tmp_path / "bad.gguf", None, in_bytes(UP, flip(5, 1, 0)))
    assert (UP, "blocks") in failed(verify(source, bad, Request(imatrix=matrix)))


def test_another_model_is_one_mistake(shop: Workshop, tmp_path: Path) -> None:
    """Nothing in common, or names that every model has with other shapes."""
    np.save(tmp_path / "x.npy", np.ones(4, np.float32))
    good = shop.good("llama3-256", "q4_k_m")
    for source in (tmp_path / "x.npy", models.FIXTURES / "stories260K"):
        result = verify(source, good, Request(tensors_only=source.suffix == ".npy"))
        first = result.findings[0]
        assert not result.passed and first.check == "source" and first.subject == str(good)
        assert (
            f"is of another model than {source}: 0 of " in first.message and first.hint == "is this the right source?"
        )
    assert "10 layers, the source has 5; called 'Llama3 256', the source 'stories260K'" in first.message, first.message


@pytest.mark.parametrize("quant", ["q4_k_m", "q2_k"])
def test_the_two_swapped_is_one_mistake(quant: str, shop: Workshop, tmp_path: Path) -> None:
    source, good = shop.source("llama3-256"), shop.good("llama3-256", quant)
    (finding,) = (each for each in verify(good, source).findings if each.failed)
    assert (finding.check, finding.subject) == ("source", str(source)) and "did you swap them?" in finding.hint
    converter.convert(source, tmp_path / "f16.gguf", Request(quant="f16"))
    assert [each.check for each in verify(good, tmp_path / "f16.gguf").findings if each.failed] == ["source"]


def test_a_few_faults_are_not_another_model(shop: Workshop, tmp_path: Path) -> None:
    bad = rewritten(shop.good("llama3-256", "q4_k_m"), tmp_path / "bad.gguf", None, without(UP))
    assert failed(verify(shop.source("llama3-256"), bad)) == {(UP, "missing")}


def test_reports_of_what_cannot_be_read(shop: Workshop, tmp_path: Path) -> None:
    """A gate that looks at the report sees the failure there, and no report of an earlier run."""
    good = shop.good("llama3-256", "q4_k_m")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(good.read_bytes()[:-1000])
    reports = [tmp_path / f"report.{kind}" for kind in ("xml", "md", "json", "txt")]
    options = [word for path in reports for word in ("--report", str(path))]
    assert main(["verify", str(shop.source("llama3-256")), str(cut), *options]) == 11
    for path in reports:
        assert "truncated" in path.read_text("utf-8"), path
    assert json.loads(reports[2].read_text())["passed"] is False
    assert 'failures="1"' in (junit := reports[0].read_text())
    assert junit.count("<skipped") == len(CHECKS) - 1, "no check passed that did not run"
    assert main(["verify", str(tmp_path / "nothing"), str(good), "--report", str(tmp_path / "none.xml")]) == 50
    assert "No such file" in (tmp_path / "none.xml").read_text("utf-8")


def test_a_detour_is_found_out(tmp_path: Path) -> None:
    """Made as everybody does with llama.cpp: first F16, which has not all numbers of BF16."""
    source = models.FIXTURES / "kjv-llama"
    converter.convert(source, tmp_path / "f16.gguf", Request(quant="f16"))
    converter.convert(tmp_path / "f16.gguf", tmp_path / "q.gguf", Request(quant="q4_k_m"))
    result = verify(source, tmp_path / "q.gguf")
    (note,) = (each for each in result.findings if each.check == "blocks")
    assert result.passed and "made by way of F16, which rounded 1 block of 1 tensor otherwise" in note.message
    assert all(tensor.reproduced for tensor in result.tensors if tensor.type.startswith("Q"))
    assert verify(source, tmp_path / "q.gguf", Request(via="f16")).passed
    bad = rewritten(tmp_path / "q.gguf", tmp_path / "bad.gguf", None, in_bytes(UP, flip(5, 1, 0)))
    assert failed(verify(source, bad)) >= {(UP, "blocks")}
