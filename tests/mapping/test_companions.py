"""What files beside config.json say: read as entries of the config, and written to these files again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import architectures, models

import converter
from converter.errors import ArchitectureError, CorruptFile, LossyError
from converter.events import Dropped
from converter.formats.safetensors import open_safetensors
from converter.metadata import Value

KEY = "gemma-embedding.pooling_type"


def folder(tmp_path: Path, pooling: Any = None, modules: Any = None) -> Path:
    made = architectures.build("gemma-embedding-tiny", tmp_path)
    for name, content in (("1_Pooling/config.json", pooling), ("modules.json", modules)):
        if content is not None:
            (made / name).write_text(json.dumps(content))
    return made


@pytest.mark.parametrize(
    ("said", "number", "flag"),
    [
        ({"pooling_mode_mean_tokens": True}, 1, "pooling_mode_mean_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2, "pooling_mode_cls_token"),
        ({"pooling_mode": "lasttoken"}, 3, "pooling_mode_lasttoken"),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, 2, "pooling_mode_cls_token"),
    ],
)
def test_pooling_there_and_back(said: dict[str, Any], number: int, flag: str, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    plan = converter.convert(folder(tmp_path, said), target, threads=1)
    assert plan.checkpoint.config[KEY] == Value("u32", number)
    converter.convert(target, f"{tmp_path / 'back'}/", threads=1)
    back = tmp_path / "back"
    modules = json.loads((back / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling"]
    pooling = json.loads((back / "1_Pooling" / "config.json").read_text())
    assert pooling.pop("word_embedding_dimension") == 48
    assert [name for name, value in pooling.items() if value] == [flag]
    assert not [key for key in json.loads((back / "config.json").read_text()) if key.startswith("/")]
    again = converter.convert(back, tmp_path / "again.gguf", threads=1)
    assert again.checkpoint.config[KEY] == Value("u32", number)


@pytest.mark.parametrize("modules", [[], [{"type": "x.Transformer", "path": ""}, 7, {"type": "x.Pooling"}]])
def test_without_a_pooling_module_nothing_is_said(modules: Any, tmp_path: Path) -> None:
    assert KEY not in converter.plan(folder(tmp_path, modules=modules), tmp_path / "m.gguf").checkpoint.config


@pytest.mark.parametrize(
    ("pooling", "modules", "error", "said"),
    [
        ({"pooling_mode": "max"}, None, ArchitectureError, r": pooling.mode is 'max', which is none of 'mean', 'cls'"),
        ({}, None, ArchitectureError, "pooling.mode is 'unknown'"),
        ([], None, CorruptFile, "1_Pooling.config.json: the JSON is not an object"),
        (None, {}, CorruptFile, "modules.json: the JSON is not a list"),
        (None, [{"type": "a.Pooling", "path": "../other"}], CorruptFile, "names ../other/config.json, which is not"),
    ],
)
def test_what_cannot_be_read_is_named(pooling: Any, modules: Any, error: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        converter.plan(folder(tmp_path, pooling, modules), tmp_path / "m.gguf")


def test_entries_of_generation_config(tmp_path: Path) -> None:
    from converter.architectures.spec import Architecture, HFClass, HParam
    from converter.mapping.companions import companion_files, with_companions

    row = HParam("suppressed", ("/generation_config.suppress_tokens",), ("/tokenizer.ggml.suppress_tokens",), "i32[]")
    architecture = Architecture("toy", (HFClass("Toy", "toy"),), (row,), ())
    path = tmp_path / "generation_config.json"
    path.write_text('{"suppress_tokens": [3, 4]}')
    config = with_companions(architecture, {"a": 1}, {path.name: path})
    assert config == {"a": 1, "/generation_config": {"suppress_tokens": [3, 4]}}
    assert json.loads(companion_files(config)[path.name]) == {"suppress_tokens": [3, 4]}
    assert with_companions(architecture, {}, {}) == {"/generation_config": {}}


# ------------------------------------------------------------------------------------ layers after the pooling

LAYERS = ["2_Dense/linear.weight", "3_Dense/linear.weight"]


def dense(tmp_path: Path) -> Path:
    return architectures.build("gemma-embedding-dense", tmp_path)


def weights(path: Path) -> dict[str, bytes]:
    with converter.open_checkpoint(path) as checkpoint:
        return {name: tensor.rows(0, tensor.info.n_rows).tobytes() for name, tensor in checkpoint.tensors.items()}


def test_dense_layers_are_left_out_and_named_unless_asked_for(tmp_path: Path) -> None:
    plan = converter.plan(dense(tmp_path), tmp_path / "m.gguf")
    assert "dense_2.weight" not in plan.checkpoint.tensors
    assert not [key for key in plan.checkpoint.config if "dense" in key]
    assert [event.name for event in plan.report.events if isinstance(event, Dropped)] == LAYERS
    assert [str(e).count("--dense-modules keeps it") for e in plan.report.events if isinstance(e, Dropped)] == [1, 1]


def test_dense_layers_come_back_as_the_folders_they_were(tmp_path: Path) -> None:
    source = dense(tmp_path)
    converter.convert(source, tmp_path / "m.gguf", converter.Request(dense_modules=True), threads=1)
    converter.convert(tmp_path / "m.gguf", f"{tmp_path / 'back'}/", threads=1)
    back = tmp_path / "back"
    modules = json.loads((back / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense", "3_Dense"]
    for name in ("2_Dense/config.json", "3_Dense/config.json"):
        assert json.loads((back / name).read_text()) == json.loads((source / name).read_text())
    with open_safetensors(back / "2_Dense" / "model.safetensors") as checkpoint:
        assert list(checkpoint.tensors) == ["linear.weight"]
    with open_safetensors(back / "model.safetensors") as checkpoint:
        assert not [name for name in checkpoint.tensors if "Dense" in name]
    given, found = weights(source), weights(back)
    assert all(found[name] == given[name] for name in LAYERS)


def test_a_folder_keeps_its_modules(tmp_path: Path) -> None:
    source = dense(tmp_path)
    converter.convert(source, f"{tmp_path / 'copy'}/", threads=1)
    assert weights(tmp_path / "copy") == weights(source)
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert files == {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*.*")}


def test_a_module_whose_weights_are_a_pickle(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = dense(tmp_path)
    given = weights(source)
    (source / "2_Dense" / "model.safetensors").unlink()
    weight = torch.frombuffer(bytearray(given[LAYERS[0]]), dtype=torch.bfloat16).reshape(100, 48)
    torch.save({"linear.weight": weight, "linear.bias": weight[:, 0].clone()}, source / "2_Dense" / "pytorch_model.bin")
    plan = converter.plan(source, tmp_path / "m.gguf", converter.Request(dense_modules=True))
    assert plan.checkpoint.tensors["dense_2.weight"].array().tobytes() == given[LAYERS[0]]
    dropped = [str(event) for event in plan.report.events if isinstance(event, Dropped)]
    assert len(dropped) == 1 and dropped[0].startswith("2_Dense/linear.bias: dropped (a GGUF of gemma-embedding has no")


def test_a_function_after_a_dense_layer_is_told(tmp_path: Path) -> None:
    source = dense(tmp_path)
    config = {"in_features": 48, "out_features": 100, "activation_function": "torch.nn.modules.activation.Tanh"}
    (source / "2_Dense" / "config.json").write_text(json.dumps(config))
    request = converter.Request(dense_modules=True)
    said = [str(event) for event in converter.plan(source, tmp_path / "m.gguf", request).report.events]
    assert len([text for text in said if "no function after dense layers" in text]) == 1
    assert not [e for e in converter.plan(source, tmp_path / "n.gguf").report.events if "no function" in str(e)]


def test_modules_of_architectures_without_a_place_for_them(tmp_path: Path) -> None:
    source = architectures.build("bert-tiny", tmp_path)
    modules = json.loads((source / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "2_Dense").mkdir()
    (source / "2_Dense" / "config.json").write_text("{}")
    layer = {"linear.weight": ("F32", models.seeded("bert", "2_Dense", (32, 64)))}
    models.write_mixed_safetensors(source / "2_Dense" / "model.safetensors", layer)
    plan = converter.plan(source, tmp_path / "m.gguf", converter.Request(dense_modules=True))
    dropped = [event for event in plan.report.events if isinstance(event, Dropped)]
    assert [str(event) for event in dropped] == [
        "2_Dense/linear.weight: dropped (a GGUF of bert has no place for this layer after the pooling)"
    ]
    with pytest.raises(LossyError):
        converter.plan(source, tmp_path / "m.gguf", converter.Request(strict=True))


def test_a_module_outside_the_folder_is_refused(tmp_path: Path) -> None:
    source, other = dense(tmp_path), tmp_path / "other"
    (source / "2_Dense").rename(other)
    modules = [{"type": "a.Dense", "path": "../other"}]
    (source / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CorruptFile, match="leads out of the folder"):
        converter.plan(source, tmp_path / "m.gguf")


# --------------------------------------------------------------------------------------------------- rerankers

YES_NO = "cls.output.weight"


@pytest.mark.parametrize(
    ("name", "files", "config", "is_one"),
    [
        ("Qwen3-Reranker-0.6B", {}, {}, True),
        ("my-model", {"README.md": "# Qwen3-Reranker-4B\n"}, {}, True),
        ("my-model", {"README.md": "# A model\nbuilt on Qwen3-Reranker-4B\n"}, {}, False),
        ("my-model", {}, {"_name_or_path": "Qwen/Qwen3-Reranker-8B"}, True),
        ("my-model", {}, {}, False),
    ],
)
def test_what_is_a_reranker(
    name: str, files: dict[str, str], config: dict[str, str], is_one: bool, tmp_path: Path
) -> None:
    source = architectures.build("qwen3-reranker-tiny", tmp_path).rename(tmp_path / name)
    for file, text in files.items():
        (source / file).write_text(text)
    said = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**said, **config}))
    made = converter.plan(source, tmp_path / "m.gguf").checkpoint
    assert (YES_NO in made.tensors) is is_one
    assert ("qwen3.classifier.output_labels" in made.config) is is_one
    assert YES_NO not in converter.plan(source, tmp_path / "m.gguf", converter.Request(no_head=True)).checkpoint.tensors


def test_a_reranker_whose_words_are_no_tokens_is_a_text_model(tmp_path: Path) -> None:
    source = architectures.build("qwen3-reranker-tiny", tmp_path)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["Yes"] = tokenizer["model"]["vocab"].pop("yes")
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    made = converter.plan(source, tmp_path / "m.gguf").checkpoint
    assert YES_NO not in made.tensors and "qwen3.pooling_type" not in made.config


def test_a_classifier_without_its_head_is_a_text_model(tmp_path: Path) -> None:
    source = architectures.build("qwen3-classifier", tmp_path)
    whole = converter.plan(source, tmp_path / "m.gguf").checkpoint
    assert YES_NO in whole.tensors and whole.config["qwen3.pooling_type"] == Value("u32", 4)
    assert list(whole.config["qwen3.classifier.output_labels"].values) == ["good", "bad", "neither"]
    less = converter.plan(source, tmp_path / "m.gguf", converter.Request(no_head=True)).checkpoint
    assert YES_NO not in less.tensors
    assert not [key for key in less.config if "pooling" in key or "classifier" in key]
