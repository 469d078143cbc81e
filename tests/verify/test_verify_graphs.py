"""Graphs of ours, verified like GGUFs: the weights that their codes, scales and minima stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import models

import converter
from converter.cli.main import main
from converter.verify import verify
from converter.verify.behaviour import with_behaviour

STORIES, KJV = (models.FIXTURES / name for name in ("stories260K", "kjv-llama"))
QUANTS: tuple[dict[str, Any], ...] = (
    {}, {"dtype": "f16"}, {"quant": "q4_0"}, {"quant": "q8_0"}, {"quant": "q4_k_m"}, {"quant": "int8"},
    {"quant": "q4_0", "dtype": "f16"}, {"quant": "q4_k_m", "dtype": "f16"},
)  # fmt: skip


@pytest.mark.parametrize("source", [STORIES, KJV], ids=lambda path: path.name)
@pytest.mark.parametrize("asked", QUANTS, ids=lambda asked: "-".join(asked.values()) or "f32")
def test_every_tensor_is_what_the_encoder_makes(asked: dict[str, Any], source: Path, tmp_path: Path) -> None:
    converter.convert(source, tmp_path / "model.onnx", converter.Request(**asked))
    result = verify(source, tmp_path / "model.onnx")
    assert result.passed, [str(finding) for finding in result.findings]
    assert all(tensor.reproduced for tensor in result.tensors)
    assert main(["verify", str(source), str(tmp_path / "model.onnx"), "--quiet"]) == 0


def test_of_a_gguf(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "model.gguf", converter.Request(quant="q4_k_m"))
    converter.convert(tmp_path / "model.gguf", f"{tmp_path / 'out'}/", converter.Request(format="onnx"))
    result = verify(tmp_path / "model.gguf", tmp_path / "out")
    assert result.passed and all(tensor.exact for tensor in result.tensors)
    assert not [finding for finding in result.findings if finding.check == "tokenizer"]


def test_as_it_is_written(tmp_path: Path) -> None:
    assert main([str(STORIES), str(tmp_path / "model.onnx"), "-q", "q8_0", "--verify", "--quiet"]) == 0
    assert main([str(STORIES), f"{tmp_path / 'out'}/", "--to", "onnx", "-q", "q8_0", "--verify", "--quiet"]) == 0


def test_the_same_graph_with_other_types(tmp_path: Path) -> None:
    converter.convert(STORIES, tmp_path / "model.onnx", converter.Request(quant="q4_1"))
    asked = [str(tmp_path / "model.onnx"), str(tmp_path / "half.onnx"), "--dtype", "f16", "--verify", "--quiet"]
    assert main(asked) == 0


def test_there_and_back(tmp_path: Path) -> None:
    assert main(["verify", str(STORIES), "--round-trip", "--via", "model.onnx,model.gguf", "--quiet"]) == 0


def damaged(folder: Path, quant: str, ends: str, factor: float) -> Path:
    """A graph of kjv-llama with one number of an initializer times `factor`."""
    onnx = pytest.importorskip("onnx")
    converter.convert(KJV, folder / "model.onnx", converter.Request(quant=quant, external_data="never"))
    model = onnx.load(folder / "model.onnx")
    tensor = next(each for each in model.graph.initializer if each.name.endswith(ends))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[values.size // 2] *= np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / "bad.onnx")
    return folder / "bad.onnx"


@pytest.mark.parametrize(
    ("quant", "ends", "factor"),
    [
        ("q4_0", "layers.2.mlp.up_proj.weight.scales", 2.0),  # another scale that Q4_0 can have
        ("q4_0", "layers.2.mlp.up_proj.weight.scales", 1 + 2.0**-20),  # one that it cannot
        ("q8_0", "layers.2.mlp.up_proj.weight.scales", 0.0),
        ("q4_k_m", "layers.2.mlp.up_proj.weight.scales", 2.0),
        ("q4_k_m", "layers.2.mlp.up_proj.weight.scales", 1 + 2.0**-20),
        ("q4_k_m", "layers.2.mlp.up_proj.weight.minima", 1 + 2.0**-20),
        ("f32", "layers.2.input_layernorm.weight", 1.001),
    ],
)
def test_a_damaged_number_is_found(quant: str, ends: str, factor: float, tmp_path: Path) -> None:
    bad = damaged(tmp_path, quant, ends, factor)
    result = verify(KJV, bad)
    name = "blk.2.attn_norm.weight" if "layernorm" in ends else "blk.2.ffn_up.weight"
    found = [finding for finding in result.findings if finding.failed]
    assert [finding.subject for finding in found] == [name], [str(finding) for finding in found]
    assert main(["verify", str(KJV), str(bad), "--quiet"]) == 41


@pytest.mark.parametrize(("asked", "most"), [({}, 1e-9), ({"quant": "q8_0"}, 1e-3)], ids=["f32", "q8_0"])
def test_what_it_computes(asked: dict[str, Any], most: float, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    converter.convert(KJV, tmp_path / "model.onnx", converter.Request(**asked))
    result = with_behaviour(verify(KJV, tmp_path / "model.onnx"), tokens=64)
    assert result.passed and result.behaviour is not None and result.behaviour.mean_kl is not None
    assert result.behaviour.mean_kl < most
