"""The fixtures are what they say: the same bytes on every machine, and models that transformers accepts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from support.models import (
    EXPECTED,
    FIXTURE_MODELS,
    FIXTURES,
    MODELS,
    ConfigStyle,
    build_model,
    expected_metadata,
    expected_tensors,
    file_sha256,
    load_expected,
)

MEGABYTE = 1_000_000


def safetensors_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header


@pytest.mark.parametrize("name", MODELS)
def test_built_weights_are_those_the_reference_saw(name: str, tmp_path: Path) -> None:
    weights = build_model(name, tmp_path) / "model.safetensors"
    assert file_sha256(weights) == load_expected(name)["model_sha256"]


@pytest.mark.parametrize("name", FIXTURE_MODELS)
def test_fixture_weights_are_those_the_reference_saw(name: str) -> None:
    assert file_sha256(FIXTURES / name / "model.safetensors") == load_expected(name)["model_sha256"]


@pytest.mark.parametrize("name", [*FIXTURE_MODELS, *MODELS])
def test_recorded_facts_are_complete(name: str) -> None:
    facts = load_expected(name)
    for ftype in facts["ftypes"]:
        tensors = expected_tensors(name, ftype)
        assert {tensor.name for tensor in tensors} == set(facts["tensors"])
        assert all(len(tensor.sha256) == 16 for tensor in tensors)
    keys = {value.key: value.value for value in expected_metadata(name, "Q4_K_M")}
    assert keys["general.file_type"] == 15
    assert keys["general.quantization_version"] == 2


def test_trained_model_is_small_and_divides_by_256() -> None:
    folder = FIXTURES / "kjv-llama"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12 * MEGABYTE
    assert sum(file.stat().st_size for file in EXPECTED.iterdir()) <= 1.5 * MEGABYTE
    header = safetensors_header(folder / "model.safetensors")
    matrices = [tensor for tensor in header.values() if len(tensor["shape"]) == 2]
    assert len(matrices) == 6 * 7 + 2
    assert all(tensor["dtype"] == "BF16" and tensor["shape"][1] % 256 == 0 for tensor in matrices)


def test_sharded_build_holds_the_same_tensors(tmp_path: Path) -> None:
    whole = safetensors_header(build_model("qwen2-96", tmp_path / "whole") / "model.safetensors")
    folder = build_model("qwen2-96", tmp_path / "sharded", shards=3)
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    assert set(index["weight_map"]) == set(whole)
    assert len(set(index["weight_map"].values())) == 3
    for name, file in index["weight_map"].items():
        assert safetensors_header(folder / file)[name]["shape"] == whole[name]["shape"]


@pytest.mark.slow
@pytest.mark.parametrize("style", ["transformers-4", "transformers-5"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_it_whole(name: str, style: ConfigStyle, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = build_model(name, tmp_path, config_style=style)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("In the beginning", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(tokens).logits.float()
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.1
