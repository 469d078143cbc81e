"""Graphs of other exporters: names, axes and numbers of the model come back, or it is said what does not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures, exports
from support.models import Array

import converter
from converter import Request, Source
from converter.errors import ArchitectureError
from converter.events import Decoded, Dropped, Event, NamesUnknown, StoredLoss
from converter.formats.registry import open_checkpoint
from converter.inspection.describe import inspect
from converter.mapping.recovered import open_model
from converter.verify.verifier import verify

EXACT = [name for name in exports.NAMES if "int4" not in name]
#: Graphs that have Gemma's norms plus one; those of mobius and of torch without its optimizer add it as they run.
FOLDED = {"dynamo-gemma3_text", "optimum-gemma3_text"}


def model_of(name: str) -> str:
    return name.rpartition("-")[2]


def original(model: str) -> dict[str, Array]:
    """The model's tensors in F32."""
    found = {}
    for name, (dtype, shape) in exports.models()[model]["tensors"].items():
        values = architectures.values(model, name, dtype, tuple(shape))
        found[name] = values if dtype == "F32" else (values.astype(np.uint32) << 16).view(np.float32)
    return found


def arrays(path: Path) -> dict[str, Array]:
    with open_checkpoint(path) as checkpoint:
        return {name: tensor.array() for name, tensor in checkpoint.tensors.items()}


def as_graph_has(name: str) -> dict[str, Array]:
    """The model's tensors as they can come back from a graph: less 1 what was made 1 + w."""
    one = np.float32(1)
    folded = name in FOLDED
    return {
        key: (one + array) - one if folded and key.endswith("norm.weight") else array
        for key, array in original(model_of(name)).items()
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The models' folders, made when they are asked for."""
    parent = tmp_path_factory.mktemp("models")
    return lambda name: (
        parent / model_of(name) if (parent / model_of(name)).is_dir() else exports.folder(model_of(name), parent)
    )


def test_what_was_recorded() -> None:
    exporters = {name.removesuffix(f"-{model_of(name)}") for name in exports.NAMES}
    assert exporters == {"dynamo", "dynamo-plain", "optimum", "mobius", "genai", "genai-int4"}
    assert {model_of(name) for name in exports.NAMES} == exports.models().keys()


@pytest.mark.parametrize("name", EXACT)
def test_tensors_come_back(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    plan = converter.convert(Source(exports.graph(name, tmp_path), config=folders(name)), out)
    want, found = as_graph_has(name), arrays(out)
    assert found.keys() == want.keys()
    for key, array in want.items():
        np.testing.assert_array_equal(found[key], array.reshape(found[key].shape), key)
        assert found[key].shape == tuple(exports.models()[model_of(name)]["tensors"][key][1])
    losses = [event for event in plan.report.events if event.loss]
    assert [type(event) for event in losses] == ([StoredLoss] if name in FOLDED else [])
    if name in FOLDED:
        exact = original(model_of(name))
        assert any((found[key] != exact[key]).any() for key in found)  # what the event is about


@pytest.mark.parametrize("name", EXACT)
def test_the_gguf_is_that_of_the_model(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    request = Request(quant="f32", no_tokenizer=True)
    converter.convert(Source(exports.graph(name, tmp_path), config=folders(name)), tmp_path / "out.gguf", request)
    converter.convert(folders(name), tmp_path / "model.gguf", request)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


def test_codes_come_back_as_numbers(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """ONNX Runtime GenAI's four bits: half a byte each, the first low; zero is 8; a scale for 32 in a row."""
    graph, out = exports.graph("genai-int4-llama", tmp_path), tmp_path / "out.safetensors"
    plan = converter.convert(Source(graph, config=folders("llama")), out)
    stored, found, exact = arrays(graph), arrays(out), original("llama")
    assert found.keys() == exact.keys()

    def numbers(name: str) -> Array:
        packed, scales = stored[f"{name}_Q4"], stored[f"{name}_scales"].reshape(-1)
        codes = np.stack((packed & 15, packed >> 4), axis=-1).reshape(len(scales), -1).astype(np.float32)
        return ((codes - 8) * scales[:, None]).reshape(len(packed), -1)

    for block in range(2):
        joined = numbers(f"model.layers.{block}.attn.qkv_proj.MatMul.weight")
        apart = [found[f"model.layers.{block}.self_attn.{each}_proj.weight"] for each in "qkv"]
        np.testing.assert_array_equal(np.concatenate(apart), joined[:, :32])
        down = numbers(f"model.layers.{block}.mlp.down_proj.MatMul.weight")
        np.testing.assert_array_equal(found[f"model.layers.{block}.mlp.down_proj.weight"], down[:, :48])
    coded = [event for event in plan.report.events if isinstance(event, Decoded)]
    assert len(coded) == 5 * 2 + 1
    assert max(np.abs(found[key] - exact[key].reshape(found[key].shape)).max() for key in exact) < 0.05


def test_dynamic_quantization_of_onnx_runtime(folders: Callable[[str], Path], tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    coded, out = tmp_path / "coded.onnx", tmp_path / "out.safetensors"
    graph = exports.graph("optimum-llama", tmp_path)
    quantization.quantize_dynamic(graph, coded, per_channel=True, op_types_to_quantize=["MatMul"])
    converter.convert(Source(coded, config=folders("llama")), out)
    found, exact = arrays(out), original("llama")
    assert found.keys() == exact.keys()
    for key, array in exact.items():
        step = np.abs(array).max(axis=-1, keepdims=True) / 127 if array.ndim == 2 and "embed" not in key else 0
        assert (np.abs(found[key] - array.reshape(found[key].shape)) <= step * 0.51).all(), key


@pytest.mark.parametrize("name", ["model.onnx", "external/model.onnx"])
def test_a_graph_of_a_class_of_its_own(name: str, data: Path, tmp_path: Path) -> None:
    """torch's exporter leaves words of modules out where these are called past their parents."""
    graph, folder = data / "derived-onnx-stories260K" / name, data / "lm-stories260K-hf"
    converter.convert(Source(graph, config=folder), tmp_path / "out.safetensors")
    found, exact = arrays(tmp_path / "out.safetensors"), arrays(folder / "model.safetensors")
    assert found.keys() == exact.keys()
    for key, array in exact.items():
        np.testing.assert_array_equal(found[key], array, key)


# ------------------------------------------------------------------------------------------------ where it lies


def names(path: Path, config: Path | None = None) -> set[str]:
    with open_model(Source(path, config=config)) as checkpoint:
        return set(checkpoint.tensors)


def test_a_config_beside_it_is_enough(folders: Callable[[str], Path], tmp_path: Path) -> None:
    graph = exports.graph("optimum-llama", tmp_path)
    wanted = exports.models()["llama"]["tensors"].keys()
    assert "onnx::MatMul_733" in names(graph)
    (graph.parent / "onnx").mkdir()
    within = Path(shutil.copy(graph, graph.parent / "onnx"))
    shutil.copy(folders("llama") / "config.json", graph.parent)
    assert names(graph) == names(within) == set(wanted)


def test_a_folder_of_hugging_face(folders: Callable[[str], Path], tmp_path: Path) -> None:
    graph, out = exports.graph("optimum-qwen3", tmp_path), tmp_path / "out"
    converter.convert(Source(graph, config=folders("qwen3")), f"{out}/")
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config == {**exports.models()["qwen3"]["config"], "dtype": "float32"}
    assert arrays(out / "model.safetensors").keys() == exports.models()["qwen3"]["tensors"].keys()


def test_tensors_only_keeps_the_names_of_the_graph(folders: Callable[[str], Path], tmp_path: Path) -> None:
    graph, out = exports.graph("optimum-llama", tmp_path), tmp_path / "out.safetensors"
    converter.convert(Source(graph, config=folders("llama")), out, Request(tensors_only=True))
    assert arrays(out).keys() == arrays(graph).keys()


def test_another_graph_of_it(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """A graph stays what it is; with blocks it is written anew, of the tensors that were found."""
    graph = Source(exports.graph("optimum-llama", tmp_path), config=folders("llama"))
    converter.convert(graph, tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == graph.path.read_bytes()
    converter.convert(graph, tmp_path / "half.onnx", Request(dtype="f16"))
    converter.convert(Source(tmp_path / "half.onnx", config=folders("llama")), tmp_path / "half.safetensors")
    found, exact = arrays(tmp_path / "half.safetensors"), original("llama")
    assert found.keys() == exact.keys()
    for key, array in exact.items():
        half = array.astype(np.float16) if found[key].dtype == np.float16 else array
        np.testing.assert_array_equal(found[key], half.reshape(found[key].shape), key)
    converter.convert(graph, tmp_path / "blocks.onnx", Request(quant="q8_0"))
    converter.convert(folders("llama"), tmp_path / "model.onnx", Request(quant="q8_0"))
    data = [(tmp_path / f"{name}.onnx_data").read_bytes() for name in ("blocks", "model")]
    assert data[0] == data[1]


def test_it_is_compared_with_the_model(folders: Callable[[str], Path], tmp_path: Path) -> None:
    graph = exports.graph("mobius-mixtral", tmp_path)
    result = verify(folders("mixtral"), Source(graph, config=folders("mixtral")), encode=False)
    assert result.passed and len(result.tensors) == len(exports.models()["mixtral"]["tensors"])
    converter.convert(graph, tmp_path / "own.safetensors")
    own = verify(Source(graph, config=folders("mixtral")), tmp_path / "own.safetensors")
    assert own.passed and len(own.tensors) == len(arrays(graph))


# --------------------------------------------------------------------------------------------- what is not there


def changed(name: str, parent: Path, change: Callable[[Any], None]) -> Path:
    onnx = pytest.importorskip("onnx")
    path = exports.graph(name, parent)
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return path


def renamed(old: str, new: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        for node in graph.node:
            node.name = node.name.replace(old, new)

    return change


def events(path: Path, config: Path) -> list[Event]:
    with open_model(Source(path, config=config)) as checkpoint:
        return list(checkpoint.events)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (renamed("layers.1/mlp", "layers.1/other"), "model.layers.1.mlp.gate_proj.weight, .*up_proj.weight"),
        (renamed("k_proj", "q_proj"), "model.layers.0.self_attn.k_proj.weight"),  # whose shape is another
        (renamed("v_proj", "k_proj"), "are different, and each could be model.layers.0.self_attn.k_proj.weight"),
    ],
)
def test_names_that_are_not_found_are_named(
    change: Callable[[Any], None], why: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    graph, config = changed("optimum-llama", tmp_path, change), folders("llama")
    found = events(graph, config)
    assert [type(event) for event in found] == [NamesUnknown] and re.search(why, str(found[0]))
    source = Source(graph, config=config)
    with pytest.raises(ArchitectureError, match=why):
        converter.convert(source, tmp_path / "out.gguf", Request(no_tokenizer=True))
    converter.convert(source, tmp_path / "out.safetensors")
    assert arrays(tmp_path / "out.safetensors").keys() == arrays(graph).keys()


def test_a_graph_of_a_part_of_a_model(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Beside the config of the whole it stays what it is, and says why it is no GGUF."""
    graph = changed("optimum-llama", tmp_path, renamed("layers.1/mlp", "layers.1/other"))
    shutil.copy(folders("llama") / "config.json", graph.parent)
    assert inspect(graph).architecture is None
    assert names(graph) == arrays(graph).keys()
    converter.convert(graph, tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == graph.read_bytes()
    with pytest.raises(ArchitectureError, match=r"layers\.1\.mlp\.gate_proj"):
        converter.convert(graph, tmp_path / "out.gguf", Request(no_tokenizer=True))


def test_the_config_of_another_model(folders: Callable[[str], Path], tmp_path: Path) -> None:
    graph = exports.graph("optimum-llama", tmp_path)
    with pytest.raises(ArchitectureError, match="--tensors-only"):
        converter.convert(Source(graph, config=folders("qwen3")), tmp_path / "out.gguf", Request(no_tokenizer=True))


def test_what_belongs_to_no_model_is_a_loss(folders: Callable[[str], Path], tmp_path: Path) -> None:
    def more(graph: Any) -> None:
        from onnx import helper, numpy_helper

        graph.initializer.append(numpy_helper.from_array(np.ones((3, 5), np.float32), "prompts"))
        graph.node.append(helper.make_node("Identity", ["prompts"], ["unused"], "/own/Identity"))

    graph = changed("optimum-llama", tmp_path, more)
    dropped = [event for event in events(graph, folders("llama")) if isinstance(event, Dropped)]
    assert [event.name for event in dropped] == ["'prompts'"]


def test_a_config_that_says_nothing(tmp_path: Path) -> None:
    graph = exports.graph("optimum-llama", tmp_path)
    for content in ("{", '{"architectures": ["Unheard"]}', "{}"):
        (graph.parent / "config.json").write_text(content, "utf-8")
        assert "onnx::MatMul_733" in names(graph)


def test_what_was_folded_is_told_by_its_operator(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """A norm that is neither added to nor multiplied by may be w or 1 + w."""

    def hidden(graph: Any) -> None:
        for node in graph.node:
            if node.name == "/model/norm/Mul_1":
                node.op_type, node.domain = "OwnNorm", "own"

    graph = changed("optimum-gemma3_text", tmp_path, hidden)
    (found,) = events(graph, folders("gemma3_text"))
    assert isinstance(found, NamesUnknown) and found.reason == "model.norm.weight: not found in the graph"
