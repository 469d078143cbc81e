"""Mistral's own folders, made of models under Hugging Face names: the way that the reader goes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support import builders

Array = npt.NDArray[Any]

OWN = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    "block_sparse_moe.gate": "feed_forward.gate",
}  # fmt: skip
TOP = {
    "model.embed_tokens.weight": "tok_embeddings.weight", "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip


def neighbours(array: Array, heads: int) -> Array:
    """Rows of each head from halves to neighbours, one by one."""
    out, size = np.empty_like(array), len(array) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = array[head * size + i]
            out[head * size + 2 * i + 1] = array[head * size + size // 2 + i]
    return out


def weights_of(weights: Mapping[str, Array], config: Mapping[str, Any]) -> dict[str, Array]:
    """The weights of a Hugging Face model under Mistral's names, q and k as Mistral's code rotates them."""
    result = {}
    for name, array in weights.items():
        if name in TOP:
            result[TOP[name]] = array
            continue
        block, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if module.endswith(projection):
                array = neighbours(array, config[heads])
        own = OWN.get(module) or module.replace("block_sparse_moe.experts", "feed_forward.experts")
        result[f"layers.{block}.{own}.weight"] = array
    return result


def params_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What Mistral's params.json has of a config.json."""
    heads = config["num_attention_heads"]
    params = {
        "dim": config["hidden_size"], "n_layers": config["num_hidden_layers"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads, "hidden_dim": config["intermediate_size"],
        "n_heads": heads, "n_kv_heads": config["num_key_value_heads"], "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"], "max_seq_len": config["max_position_embeddings"],
        "tied_embeddings": config["tie_word_embeddings"],
    }  # fmt: skip
    rope = config.get("rope_parameters", config)
    params["rope_theta"] = rope["rope_theta"]
    if "num_local_experts" in config:
        params["moe"] = {key: config[f"num_{word}"] for key, word in MOE_WORDS.items()}
    if "factor" in rope:
        original = {key: rope[key] for key in ("original_max_position_embeddings",)}
        words = {"factor": rope["factor"], "beta": rope["beta_fast"], "alpha": rope["beta_slow"]}
        params["yarn"] = {**original, **words, "apply_scale": not rope["mscale_all_dim"]}
        if rope["llama_4_scaling_beta"]:
            params["llama_4_scaling"] = {**original, "beta": rope["llama_4_scaling_beta"]}
    return params


MOE_WORDS = {"num_experts": "local_experts", "num_experts_per_tok": "experts_per_tok"}


def write(folder: Path, weights: Mapping[str, Array], params: Mapping[str, Any]) -> Path:
    """params.json and one consolidated file in `folder`, which is made; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "consolidated.safetensors").write_bytes(builders.safetensors_of(weights))
    return folder


def small(folder: Path, **changes: Any) -> Path:
    """The Llama of `builders` as Mistral's folder, without a tokenizer; `changes` are to its params.json."""
    config = builders.CONFIG
    params = {**params_of(config), **changes}
    return write(folder, weights_of(builders.llama_weights(), config), params)
