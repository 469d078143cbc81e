"""Tiny models of transformers and adapters of PEFT for them, with random weights, and what PEFT merges them to."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support.builders import llama_folder, safetensors_of

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
#: A class of transformers, and its configuration.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**SIZES, "tie_word_embeddings": False}),
    "tied": ("LlamaForCausalLM", {**SIZES, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", {**SIZES, "tie_word_embeddings": False}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "mixtral": (
        "MixtralForCausalLM",
        {**SIZES, "num_local_experts": 3, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {**SIZES, "head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    ),
}


def model(name: str, folder: Path, dtype: str = "float32") -> Path:
    """The folder of a model with random weights."""
    import torch
    import transformers

    cls, settings = MODELS[name]
    kind = getattr(transformers, cls)
    torch.manual_seed(7)
    made = kind(kind.config_class(**settings))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + (1 if parameter.ndim == 1 else 0))
    made.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def _model(base: Path, dtype: str) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))


def adapter(base: Path, folder: Path, kind: str = "Lora", dtype: str = "float32", **settings: Any) -> Path:
    """The folder of an adapter for a model, every number of it random."""
    import peft
    import torch

    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(_model(base, dtype), config)
        torch.manual_seed(11)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape) * 0.2 + (1 if parameter.ndim == 1 else 0))
        made.save_pretrained(folder)
    return folder


def merged(base: Path, adapters: list[Path], dtype: str = "float32") -> dict[str, npt.NDArray[np.float32]]:
    """What PEFT makes of the model with these adapters, one after the other, under the names that a folder has."""
    import peft
    import torch

    made = _model(base, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in adapters:
            made = peft.PeftModel.from_pretrained(made, each).merge_and_unload()
    out = base.parent / f"{base.name}-by-peft"
    made.save_pretrained(out)
    from safetensors.torch import load_file

    return {name: tensor.to(torch.float32).numpy() for name, tensor in load_file(out / "model.safetensors").items()}


def written(folder: Path, tensors: dict[str, npt.NDArray[Any]], **config: Any) -> Path:
    """The folder of an adapter with these tensors, by their whole names, and what its config says beside the usual."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "somebody/base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(said), "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(safetensors_of(tensors))
    return folder


def lora(module: str, rows: int, columns: int, rank: int = 2, seed: int = 3) -> dict[str, npt.NDArray[Any]]:
    """A and B of a module, under the names that PEFT gives them."""
    rng = np.random.default_rng(seed)
    stem = f"base_model.model.{module}"
    return {
        f"{stem}.lora_A.weight": rng.standard_normal((rank, columns)).astype(np.float32),
        f"{stem}.lora_B.weight": rng.standard_normal((rows, rank)).astype(np.float32),
    }


# ------------------------------------------------------------------------- of few bytes, where a fuzzer starts

_LAYER = "model.layers.0"
#: A mixture of experts in which every kind of adapter has something to change.
_SMALL_SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (16, 8),
    **{f"{_LAYER}.{name}_layernorm.weight": (8,) for name in ("input", "post_attention")},
    **{f"{_LAYER}.self_attn.{name}_proj.weight": (rows, 8) for name, rows in zip("qkvo", (8, 4, 4, 8), strict=True)},
    f"{_LAYER}.self_attn.q_proj.bias": (8,),
    f"{_LAYER}.block_sparse_moe.gate.weight": (2, 8),
    **{
        f"{_LAYER}.block_sparse_moe.experts.{expert}.{name}.weight": shape
        for expert in range(2)
        for name, shape in (("w1", (12, 8)), ("w2", (8, 12)), ("w3", (12, 8)))
    },
    "model.norm.weight": (8,),
    "lm_head.weight": (16, 8),
}
_SMALL_CONFIG = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 12,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 2,
}  # fmt: skip


def small_base(folder: Path) -> Path:
    """The folder of the model that `SMALL` are for."""
    weights = {name: np.ones(shape, np.float32) for name, shape in _SMALL_SHAPES.items()}
    return llama_folder(folder, config=_SMALL_CONFIG, weights=weights, vocab=16, tokenizer=False)


_Q, _K, _EMBEDDING = f"{_LAYER}.self_attn.q_proj", f"{_LAYER}.self_attn.k_proj", "model.embed_tokens"
_EXPERTS = f"{_LAYER}.mlp.experts"
#: An adapter of each kind: what its config says, and the shapes of its tensors; names have PEFT's prefix but for MLX.
SMALL: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "lora": (
        {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"layers.0.self_attn.k_proj": 1}},
        {
            f"{_Q}.lora_A.weight": (2, 8), f"{_Q}.lora_B.weight": (8, 2), f"{_Q}.lora_B.bias": (8,),
            f"{_K}.lora_A.weight": (1, 8), f"{_K}.lora_B.weight": (4, 1),
        },
    ),
    "dora": (
        {"use_dora": True},
        {f"{_K}.lora_A.weight": (2, 8), f"{_K}.lora_B.weight": (4, 2), f"{_K}.lora_magnitude_vector": (4,)},
    ),
    "saved": (
        {"modules_to_save": ["norm"], "bias": "lora_only"},
        {
            f"{_EMBEDDING}.lora_embedding_A": (2, 16), f"{_EMBEDDING}.lora_embedding_B": (8, 2),
            "lm_head.lora_A.weight": (2, 8), "lm_head.lora_B.weight": (16, 2), f"{_Q}.base_layer.bias": (8,),
            "model.norm.modules_to_save.default.weight": (8,),
        },
    ),
    "parameters": (
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
        {
            f"{_EXPERTS}.base_layer.lora_A.weight": (4, 8), f"{_EXPERTS}.base_layer.lora_B.weight": (24, 4),
            f"{_EXPERTS}.lora_A.weight": (4, 12), f"{_EXPERTS}.lora_B.weight": (8, 4),
        },
    ),
    "tokens": (
        {"trainable_token_indices": {"embed_tokens": [1, 5]}},
        {f"{_EMBEDDING}.token_adapter.trainable_tokens_delta": (2, 8)},
    ),
    "ia3": ({"peft_type": "IA3", "feedforward_modules": ["k_proj"]}, {f"{_Q}.ia3_l": (8, 1), f"{_K}.ia3_l": (1, 8)}),
    "loha": (
        {"peft_type": "LOHA", "alpha": 3},
        {f"{_K}.hada_w{n}_{side}": (4, 2) if side == "a" else (2, 8) for n in (1, 2) for side in "ab"},
    ),
    "lokr": (
        {"peft_type": "LOKR", "alpha": 3},
        {f"{_Q}.lokr_w1": (2, 2), f"{_Q}.lokr_w2_a": (4, 2), f"{_Q}.lokr_w2_b": (2, 4)},
    ),
    "mlx": (
        {"peft_type": "MLX", "fine_tune_type": "dora", "lora_parameters": {"rank": 2, "scale": 20.0}},
        {f"{_K}.lora_a": (8, 2), f"{_K}.lora_b": (2, 4), f"{_K}.m": (4,)},
    ),
}  # fmt: skip


def small(kind: str, folder: Path) -> Path:
    """The folder of an adapter of `SMALL`."""
    config, shapes = SMALL[kind]
    prefix = "" if kind == "mlx" else "base_model.model."
    rng = np.random.default_rng(5)
    tensors = {prefix + name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return written(folder, tensors, **config)
