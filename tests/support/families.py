"""Small random models of every family, in the shapes their configurations ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import converter
from converter import Request
from converter.planning.plan import Plan
from support import models

Tensors = dict[str, models.Array]
FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
NO_TOKENIZER = Request(no_tokenizer=True)
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 48, "head_dim": 32, "moe_intermediate_size": 32,
}  # fmt: skip


def family_config(family: str, **changes: Any) -> dict[str, Any]:
    """config.json as transformers 5 writes it, with small sizes."""
    config = {key: SIZES.get(key, value) for key, value in models.FAMILY_CONFIGS[family].items()} | {
        key: SIZES[key] for key in list(SIZES)[:6]
    }
    if family in ("qwen3", "qwen3_moe"):
        config["head_dim"] = SIZES["head_dim"]
    if family == "qwen3_moe":
        config |= {"moe_intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
    if family == "mixtral":
        config |= {"num_local_experts": 3}
    config.pop("layer_types", None)
    return {**config, **changes}


def random_tensors(config: dict[str, Any], dtype: str, seed: int = 1) -> Tensors:
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal(shape, np.float32) for name, shape in models.tensor_shapes(config)}
    return {name: models.encode(array, dtype) for name, array in values.items()}


def write(folder: Path, config: dict[str, Any], tensors: Tensors, dtype: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    models.write_safetensors(folder, tensors, dtype)
    return folder


def planned(folder: Path, request: Request = NO_TOKENIZER) -> Plan:
    plan = converter.plan(folder, folder / "out.gguf", request)
    plan.checkpoint.close()
    return plan
