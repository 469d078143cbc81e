"""Folders with a graph, as clients load them: names, what config.json says, and reading them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import models

import converter
from converter.formats.hub import GRAPHS, graph_file, graphs_in
from converter.formats.registry import open_checkpoint, source_format

STORIES = models.FIXTURES / "stories260K"
#: What is asked for -> the file, and what Transformers.js calls it.
NAMES: dict[str, tuple[dict[str, Any], str, str]] = {
    "as it is": ({}, "model.onnx", "fp32"),
    "f16": ({"dtype": "f16"}, "model_fp16.onnx", "fp16"),
    "q4_0": ({"quant": "q4_0"}, "model_q4.onnx", "q4"),
    "q4_0 in f16": ({"quant": "q4_0", "dtype": "f16"}, "model_q4f16.onnx", "q4f16"),
    "iq4_nl": ({"quant": "iq4_nl"}, "model_q4.onnx", "q4"),
    "q8_0": ({"quant": "q8_0"}, "model_quantized.onnx", "q8"),
    "int8": ({"quant": "int8"}, "model_int8.onnx", "int8"),
    "q5_0": ({"quant": "q5_0"}, "model.onnx", "fp32"),
}


def made(folder: Path, **asked: Any) -> Path:
    converter.convert(STORIES, f"{folder / 'out'}/", converter.Request(format="onnx", **asked))
    return folder / "out"


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, tmp_path: Path) -> None:
    asked, file, called = NAMES[name]
    out = made(tmp_path, **asked)
    assert {path.name for path in (out / "onnx").iterdir()} == {file, f"{file}_data"}
    assert f"{file}_data".encode() in (out / "onnx" / file).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": True, "dtype": called}


def test_a_mixture_is_called_by_its_recipe() -> None:
    assert graph_file("Q4_K", half=False).ending == "_q4"
    assert graph_file("Q6_K", half=False) is GRAPHS[0]
    assert graph_file("F32", half=True) is GRAPHS[0] and graph_file("INT8", half=True).dtype == "int8"


def test_a_gguf_is_called_by_most_of_its_weights(tmp_path: Path) -> None:
    converter.convert(STORIES, tmp_path / "model.gguf", converter.Request(quant="q8_0"))
    converter.convert(tmp_path / "model.gguf", f"{tmp_path / 'out'}/", converter.Request(format="onnx"))
    assert [path.name for path in graphs_in(tmp_path / "out")] == ["model_quantized.onnx"]


@pytest.mark.parametrize("quant", [None, "q8_0", "int8"])
def test_a_folder_is_a_source(quant: str | None, tmp_path: Path) -> None:
    out = made(tmp_path, quant=quant)
    assert source_format(out).name == "onnx"
    converter.convert(out, tmp_path / "a.gguf")
    converter.convert(graphs_in(out)[0], tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_of_several_the_first_is_taken_and_others_are_told(tmp_path: Path) -> None:
    out = made(tmp_path)
    graph = out / "onnx" / "model.onnx"
    for ending in ("_q4", "_int8"):
        graph.with_stem(f"model{ending}").write_bytes(b"not looked at")
    with open_checkpoint(out) as found:
        assert found.path == graph
        told = [str(event) for event in found.events]
    assert told == ["model.onnx is taken; also there, and left out: model_q4.onnx, model_int8.onnx"]


def test_a_folder_with_weights_of_its_own_is_one_of_hugging_face(tmp_path: Path) -> None:
    out = made(tmp_path)
    (out / "model.safetensors").write_bytes((STORIES / "model.safetensors").read_bytes())
    assert source_format(out).name == "hf"


def test_a_runtime_finds_the_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    from converter.runtimes.behaviour import behaviour

    out = made(tmp_path, quant="int8")
    found = behaviour(STORIES, out, tokens=64, context=64)
    assert found.mean_kl is not None and found.mean_kl < 0.01
