"""config.json as people have it: transformers 4 and 5, nested, with values left out, and as published."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import models
from support.architectures import class_config
from support.families import FAMILIES, family_config, planned, random_tensors, write
from support.paths import FIXTURES

import converter
from converter import Request
from converter.architectures import architectures
from converter.architectures.spec import Architecture, HFClass
from converter.errors import UnknownArchitecture
from converter.mapping.detect import detect
from converter.mapping.hparams import flat_config, hparam_metadata, read_config, text_config

THETA = {"rope_theta": 10000.0}


def hparams_of(config: dict[str, Any]) -> dict[str, Any]:
    return read_config(*detect(config), config)[0]


# ------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_4_and_5_say_the_same(family: str, tmp_path: Path) -> None:
    config = family_config(family, dtype="float32")
    tensors = random_tensors(config, "F32")
    new = write(tmp_path / "m", config, tensors, "F32")
    old = write(tmp_path / "old", models.as_transformers_4(config), tensors, "F32")
    for folder in (new, old):
        converter.convert(folder, folder / "out.gguf", Request(no_tokenizer=True, name="m"))
    assert (new / "out.gguf").read_bytes() == (old / "out.gguf").read_bytes()


@pytest.mark.parametrize(
    ("config", "rope"),
    [
        ({}, {}),
        ({"rope_theta": 10000.0}, THETA),
        ({"rope_theta": None, "rope_scaling": None}, {}),
        ({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
         {**THETA, "type": "linear", "rope_type": "linear", "factor": 2.0}),
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}, {**THETA, "rope_type": "default"}),
        ({"rope_theta": 5.0, "rope_parameters": THETA}, THETA),
        ({"rope_parameters": {"full_attention": {**THETA, "rope_type": "default"}, "sliding_attention": {}}},
         {**THETA, "rope_type": "default"}),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 512},
         {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}),
        ({"rope_scaling": "nonsense", "rope_theta": 10000.0}, THETA),
        ({"rope_scaling": [1, 2]}, {}),
    ],
)  # fmt: skip
def test_rope_facts_are_in_one_place(config: dict[str, Any], rope: dict[str, Any]) -> None:
    assert flat_config(config)["rope"] == rope


def test_a_nested_text_model_is_found(tmp_path: Path) -> None:
    config = family_config("qwen2")
    nested = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "text_config": config}
    plan = planned(write(tmp_path / "m", nested, random_tensors(config, "F32"), "F32"))
    assert plan.checkpoint.config["qwen2.block_count"].value == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_hidden_layers", "n_layers"),
        ("hidden_size", "dim"),
        ("num_attention_heads", "n_heads"),
        ("num_key_value_heads", "n_kv_heads"),
        ("rms_norm_eps", "norm_eps"),
        ("intermediate_size", "hidden_dim"),
    ],
)
def test_other_names_of_a_fact(old: str, new: str) -> None:
    config = family_config("llama")
    renamed = {new if key == old else key: value for key, value in config.items()}
    assert hparams_of(renamed) == hparams_of(config)


def test_null_is_left_out() -> None:
    config = family_config("llama", head_dim=None, num_key_value_heads=None)
    assert hparams_of(config)["head_dim"] == 16
    assert hparams_of(config)["n_head_kv"] == 4


@pytest.mark.parametrize("extra", [{"architectures": None}, {"architectures": []}, {"architectures": [7]}, {}])
def test_model_type_stands_in_for_the_class(extra: dict[str, Any]) -> None:
    config = {key: value for key, value in family_config("qwen3").items() if key != "architectures"}
    assert detect({**config, **extra})[0].gguf == "qwen3"


@pytest.mark.parametrize(
    "config",
    [{}, {"model_type": "grok"}, {"architectures": ["GrokForCausalLM"], "model_type": "llama"}, {"model_type": []}],
)
def test_unknown_models_are_told_what_is_known(config: dict[str, Any]) -> None:
    with pytest.raises(UnknownArchitecture, match="`convert architectures` lists the known ones"):
        detect(config)


# ---------------------------------------------------------------------------------------------- defaults


# None is a default of every class: what is computed of the sizes must follow from them here too.
SMALL = {
    "hidden_size": 4096, "n_embd": 4096, "d_model": 4096, "num_attention_heads": 32, "n_head": 32, "n_heads": 32,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "vocab_size": 64,
    "dim": 4096,
}  # fmt: skip
# It tells its text model what llama's class would say otherwise; no other class does.
TELLS_ITS_TEXT_MODEL = "voxtral"
#: Each head has its own keys, and the class refuses a config that does not say so.
AS_MANY_KEYS = ("glm5_next",)
CLASSES = [(architecture, hf) for architecture in architectures().values() for hf in architecture.hf if hf.takes != "0"]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "hf"), CLASSES, ids=lambda each: getattr(each, "name", None))
def test_values_left_out_are_those_of_transformers(architecture: Architecture, hf: HFClass) -> None:
    """A config.json that says only sizes means the same as the object that transformers makes of it."""
    pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if hf.model_type not in CONFIG_MAPPING or hf.model_type == TELLS_ITS_TEXT_MODEL:
        pytest.skip("transformers has no such class, or one of its own kind")
    whole = class_config(hf.model_type)
    part = text_config(whole)
    sizes = {key: value for key, value in SMALL.items() if key in (part or whole)}
    for key in ("layers_block_type", "intermediate_size"):  # where it is a list, of as many blocks
        if isinstance((part or whole).get(key), list):
            sizes[key] = [*(part or whole)[key], *(part or whole)[key]][:4]
    if hf.model_type in AS_MANY_KEYS:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if "mistral" in (part.get("model_type"), hf.model_type):
        sizes["head_dim"] = 128  # transformers 5 says it where 4, which the reference asks for, does not
    bare: dict[str, Any] = {"text_config": {"model_type": part["model_type"], **sizes}} if part else sizes
    full = json.loads(json.dumps(class_config(hf.model_type, **bare), default=str))
    names = {"architectures": [hf.name], "model_type": hf.model_type}
    ours = read_config(architecture, hf, {**bare, **names})
    theirs = read_config(architecture, hf, {**full, **names})
    assert hparam_metadata(architecture, *ours) == hparam_metadata(architecture, *theirs)
    said_twice = dict.fromkeys(
        ("kinds", "mlp_kinds", "full_idxs", "head_ssm")
    )  # the rows read one, and other rows the other
    absent = {"rope_type": "default", "q_lora": 0}
    assert {**absent, **ours[0], **said_twice} == {**absent, **theirs[0], **said_twice}


@pytest.mark.slow
def test_the_table_of_defaults_is_that_of_transformers() -> None:
    """Run `python fixtures/make_defaults.py` where a row asks for another key, or transformers changed."""
    pytest.importorskip("transformers")
    made = runpy.run_path(str(FIXTURES / "make_defaults.py"))
    assert made["OUT"].read_text("utf-8") == made["text"](made["facts"]())


def test_defaults_of_the_class_are_written_like_given_ones() -> None:
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
    config = {**dict.fromkeys(names, 8), "architectures": ["LlamaForCausalLM"]}
    architecture, hf = detect(config)
    metadata = hparam_metadata(architecture, *read_config(architecture, hf, config))
    assert metadata["llama.attention.layer_norm_rms_epsilon"].value == 1e-6  # type: ignore[union-attr]
    assert metadata["llama.rope.freq_base"].value == 10000.0  # type: ignore[union-attr]
    assert metadata["llama.attention.head_count_kv"].value == 8  # type: ignore[union-attr]
    assert "llama.expert_count" not in metadata


# ------------------------------------------------------------------------------- published configurations

# Parameters, and bits per weight of the Q4_K_M file, as published on the models' pages and printed by llama-quantize;
# the last row is counted by hand.
PUBLISHED = {
    "Llama-3.1-8B-Instruct": (8_030_261_248, 4.89),
    "Llama-2-7b-hf": (6_738_415_616, 4.84),
    "Mistral-7B-Instruct-v0.3": (7_248_023_552, 4.83),
    "Qwen2-72B": (72_706_203_648, None),
    "Qwen2.5-7B-Instruct": (7_615_616_512, 4.91),
    "default-mixtral": (46_702_792_704, None),
    "default-qwen3-moe": (15_350_731_776, None),
}


def sparse_model(folder: Path, config: dict[str, Any]) -> Path:
    """A folder whose safetensors has its full header and size, and no data: the file is one hole."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"tie_word_embeddings": False, **config}
    if "num_experts" in config:
        shapes["num_local_experts"] = config["num_experts"]
    header: dict[str, Any] = {}
    end = 0
    for name, shape in models.tensor_shapes(shapes):
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_plan(name: str, data: Path, tmp_path: Path) -> None:
    config = json.loads((data / "cfg-llm" / name / "config.json").read_text())
    folder = sparse_model(tmp_path / name, config)
    parameters, bits = PUBLISHED[name]
    plan = planned(folder, Request(no_tokenizer=True, quant="q4_k_m"))
    generated = 64 if "rope_freqs.weight" in plan.checkpoint.tensors else 0
    assert plan.n_parameters - generated == parameters
    assert generated == (64 if name.startswith("Llama-3.1") else 0)
    if bits is not None:
        assert plan.bits_per_weight == pytest.approx(bits, abs=0.01)
    lossy = [event.tensor for event in plan.report.events if event.kind == "TypeFallback"]
    odd_rows = range(80) if name == "Qwen2-72B" else ()  # its 29,568 columns are no multiple of 256
    assert lossy == [f"blk.{block}.ffn_down.weight" for block in odd_rows]
