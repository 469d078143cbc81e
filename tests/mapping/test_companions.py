"""What files beside config.json say: read as entries of the config, and written to these files again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import architectures

import converter
from converter.errors import ArchitectureError, CorruptFile
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
