"""Tiny models of transformers and adapters of PEFT for them, with random weights, and what PEFT merges them to."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support.builders import safetensors_of

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
