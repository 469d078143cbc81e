"""Merges against PEFT's own: samples with recorded hashes, and fresh tiny models for every kind of adapter."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import adapters

import converter
from converter.adapters.factors import product
from converter.request import Request, Source

Floats = npt.NDArray[np.float32]
SAMPLES = (
    "plain", "all-bf16", "rslora", "dora", "patterns", "embed-head-save", "modules-to-save-head", "bias-all",
    "gpt2-conv1d",
)  # fmt: skip
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# What is tried: the model, PEFT's kind of adapter, and its settings.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "DoRA and rslora": ("llama", "Lora", {"use_dora": True, "use_rslora": True, "target_modules": LINEAR}),
    "DoRA of Conv1D": (
        "gpt2", "Lora",
        {"use_dora": True, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "DoRA of an embedding": ("llama", "Lora", {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"]}),
    "embedding and head": ("llama", "Lora", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "patterns and rslora": (
        "llama", "Lora",
        {
            "use_rslora": True, "target_modules": LINEAR, "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"layers.1.mlp.up_proj": 5},
        },
    ),
    "bias of B": ("qwen2", "Lora", {"lora_bias": True, "target_modules": ["q_proj"]}),
    "biases of what is adapted": ("qwen2", "Lora", {"bias": "lora_only", "target_modules": ["v_proj"]}),
    "every norm": ("llama", "Lora", {"target_modules": ["v_proj"], "modules_to_save": ["norm"]}),
    "head saved": ("llama", "Lora", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}),
    "tied embedding": ("tied", "Lora", {"target_modules": ["embed_tokens", "v_proj"]}),
    "tied embedding saved": (
        "tied", "Lora",
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tokens": (
        "llama", "Lora", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 9, 60]}},
    ),
    "tokens, tied": ("tied", "Lora", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9, 60]}),
    "tokens alone": ("llama", "TrainableTokens", {"target_modules": ["embed_tokens"], "token_indices": [1, 5]}),
    "experts in files of their own": ("mixtral", "Lora", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "experts the other way round": ("gpt-oss", "Lora", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "a weight as a parameter": (
        "llama", "Lora", {"target_modules": ["q_proj"], "target_parameters": ["v_proj.weight"]},
    ),
    "IA3": (
        "qwen2", "IA3",
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "IA3 of Conv1D": (
        "gpt2", "IA3",
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"], "fan_in_fan_out": True},
    ),
    "LoHa": ("llama", "LoHa", {"alpha": 3, "target_modules": ["q_proj", "up_proj"]}),
    "LoKr": ("llama", "LoKr", {"alpha": 3, "target_modules": ["q_proj", "up_proj"]}),
    "LoKr of four": (
        "llama", "LoKr",
        {"alpha": 3, "decompose_both": True, "decompose_factor": 4, "target_modules": ["q_proj", "up_proj"]},
    ),
}  # fmt: skip


def merged(base: Path, *folders: Path | tuple[Path, float], to: Path, **request: Any) -> dict[str, Floats]:
    """A folder of the merged model, as numbers."""
    pairs = [each if isinstance(each, tuple) else (each, 1.0) for each in folders]
    converter.convert(Source(base, adapters=pairs), f"{to}/", Request(**request), threads=1)
    return numbers(to)


def numbers(path: Path) -> dict[str, Floats]:
    with converter.open_checkpoint(path) as made:
        return {name: tensor.array().astype(np.float32) for name, tensor in made.tensors.items()}


def sha256(array: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("wide", [False, True], ids=["base's type", "F32"])
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_have_the_recorded_hashes(name: str, wide: bool, data: Path, tmp_path: Path) -> None:
    adapter = data / "quantized" / f"lora-{name}"
    if not adapter.is_dir():
        pytest.skip(f"no {adapter}")
    said = json.loads((adapter / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    expected = json.loads((adapter / "expected.json").read_text("utf-8"))
    made = merged(adapter.parent / said, adapter, to=tmp_path / "out", dtype="f32" if wide else None)
    key = "merged_float32_sha256" if wide else "merged_base_dtype_sha256"
    assert expected.keys() - made.keys() <= {"lm_head.weight"}  # a tied one, which is not stored
    assert {name for name in made if sha256(made[name]) != expected[name][key]} == set()


def check_like_peft(kind: str, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model, of, settings = KINDS[kind]
    ranked = {} if of in ("IA3", "TrainableTokens") else {"r": 4}
    base = adapters.model(model, tmp_path / "base", dtype)
    adapter = adapters.adapter(base, tmp_path / "adapter", of, dtype, **ranked, **settings)
    ours = merged(base, adapter, to=tmp_path / "out")
    theirs = adapters.merged(base, [adapter], dtype)
    if "tied" in kind:
        theirs.pop("lm_head.weight", None)
    before = numbers(base)
    assert any((ours[name] != before[name]).any() for name in before)
    _assert_same(ours, theirs, 0 if dtype == "bfloat16" else 2e-7)


def _assert_same(ours: Mapping[str, Floats], theirs: Mapping[str, Floats], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        assert np.abs(ours[name] - wanted).max() <= tolerance * np.abs(wanted).max(), name


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_models_become_what_peft_makes_of_them(kind: str, tmp_path: Path) -> None:
    check_like_peft(kind, "bfloat16", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_other_types_become_it_too(kind: str, dtype: str, tmp_path: Path) -> None:
    check_like_peft(kind, dtype, tmp_path)


def test_several_are_merged_one_after_the_other(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = adapters.model("llama", tmp_path / "base", "bfloat16")
    modules = ["q_proj", "v_proj"]
    first = adapters.adapter(base, tmp_path / "first", dtype="bfloat16", r=4, target_modules=modules)
    second = adapters.adapter(base, tmp_path / "2", dtype="bfloat16", r=2, use_dora=True, target_modules=modules)
    ours = merged(base, first, second, to=tmp_path / "out")
    _assert_same(ours, adapters.merged(base, [first, second], "bfloat16"), 0)


def test_a_strength_scales_the_product(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = adapters.model("llama", tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = adapters.adapter(base, tmp_path / "plain", r=4, lora_alpha=8, target_modules=["q_proj"])
    weaker = tmp_path / "weaker"
    weaker.mkdir()
    (weaker / "adapter_model.safetensors").write_bytes((plain / "adapter_model.safetensors").read_bytes())
    config = json.loads((plain / "adapter_config.json").read_text("utf-8"))
    (weaker / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2}), "utf-8")
    ours = merged(base, (plain, 0.25), to=tmp_path / "out")
    _assert_same(ours, merged(base, weaker, to=tmp_path / "alike"), 0)


@pytest.mark.parametrize("name", ["bnb-nf4-double", "gptq-4bit-g32-sym-v1", "fp8-block128", "mlx-4bit-g64"])
@pytest.mark.parametrize("wide", [False, True], ids=["base's type", "F32"])
def test_what_arrives_in_codes_is_decoded_and_then_merged(name: str, wide: bool, data: Path, tmp_path: Path) -> None:
    """As QLoRA saw it: the product is added to what the codes mean, and is no code itself."""
    base, module = data / "quantized" / name, "model.layers.0.self_attn.v_proj"
    if not base.is_dir():
        pytest.skip(f"no {base}")
    asked = {"dtype": "f32" if wide else "bf16"}
    converter.convert(base, f"{tmp_path}/plain/", Request(dtype="f32"), threads=1)
    plain = numbers(tmp_path / "plain")
    before = plain[f"{module}.weight"]
    factors = adapters.lora(module, *before.shape)
    a, b = factors.values()
    ours = merged(base, adapters.written(tmp_path / "lora", factors, lora_alpha=4), to=tmp_path / "out", **asked)
    wanted = before + product(b, a) * np.float32(2)
    made = ours[f"{module}.weight"]
    assert np.abs(made - wanted).max() <= (0 if wide else 2**-8) * np.abs(wanted).max()
    assert not wide or all(np.array_equal(ours[key], plain[key]) for key in plain if key != f"{module}.weight")
