"""Models whose weights are packed, made byte by byte after the formats' specifications."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from support.builders import entry, safetensors
from support.paths import FIXTURES

TYPES: dict[str, Any] = {
    "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu, "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8", "U32": "<u4",
}  # fmt: skip
#: The numbers of four bits, by code.
LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
Typed = tuple[str, Any]


def write(folder: Path, tensors: Mapping[str, Typed], config: Mapping[str, Any]) -> Path:
    """A folder with these tensors, each its type's name and its numbers (or, of one byte, the bytes)."""
    header: dict[str, Any] = {}
    data = b""
    for name, (type_, given) in tensors.items():
        array = np.asarray(given)
        small = array.dtype == np.uint8 and type_.startswith("F8")
        raw = (array if small else array.astype(TYPES[type_])).tobytes()
        header[name] = entry(type_, array.shape, len(data), len(data) + len(raw))
        data += raw
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors(header, data))
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes (..., row) as bytes of two, the first in the low half."""
    made: np.ndarray = codes[..., ::2] | codes[..., 1::2] << 4
    return made.astype(np.uint8)


def nvfp4(rng: np.random.Generator, name: str, rows: int, row: int, scale: float, inputs: float) -> dict[str, Typed]:
    """A module as ModelOpt writes it."""
    return {
        f"{name}.weight": ("U8", rng.integers(0, 256, (rows, row // 2), np.uint8)),
        f"{name}.weight_scale": ("F8_E4M3", rng.integers(0x20, 0x50, (rows, row // 16), np.uint8)),
        f"{name}.weight_scale_2": ("F32", np.float32(scale)),
        f"{name}.input_scale": ("F32", np.float32(inputs)),
    }


def fp8(rng: np.random.Generator, name: str, rows: int, row: int, scale: float) -> dict[str, Typed]:
    codes = rng.integers(0, 0x60, (rows, row), np.uint8) | rng.integers(0, 2, (rows, row), np.uint8) << 7
    return {f"{name}.weight": ("F8_E4M3", codes.astype(np.uint8)), f"{name}.weight_scale": ("F32", np.float32(scale))}


def moe(folder: Path, algorithm: str) -> Path:
    """A Qwen3-MoE of one layer as ModelOpt writes it: attention in FP8, two experts in NVFP4."""
    rng = np.random.default_rng(17)
    layer = "model.layers.0."

    def plain(*shape: int) -> Typed:
        return "BF16", rng.standard_normal(shape, np.float32)

    tensors: dict[str, Typed] = {"model.embed_tokens.weight": plain(512, 64), "lm_head.weight": plain(512, 64)}
    for name, rows, row in (("q", 64, 64), ("k", 32, 64), ("v", 32, 64), ("o", 64, 64)):
        tensors |= fp8(rng, f"{layer}self_attn.{name}_proj", rows, row, 2.0**-9)
    for expert in range(2):
        for at, name in enumerate(("gate", "up", "down")):
            scale, inputs = 2.0**-7 * (1 + expert + at / 8), 0.25 + expert / 8 + at / 16
            tensors |= nvfp4(rng, f"{layer}mlp.experts.{expert}.{name}_proj", 64, 64, scale, inputs)
    norms = {"input_layernorm": 64, "post_attention_layernorm": 64, "self_attn.q_norm": 32, "self_attn.k_norm": 32}
    tensors |= {f"{layer}{name}.weight": plain(size) for name, size in norms.items()}
    tensors |= {f"{layer}mlp.gate.weight": plain(2, 64), "model.norm.weight": plain(64)}
    layers = {f"{layer}self_attn.{name}_proj": {"quant_algo": "FP8"} for name in "qkvo"}
    layers |= {f"{layer}mlp.experts": {"quant_algo": algorithm, "group_size": 16}}
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
        "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_experts": 2,
        "num_experts_per_tok": 1, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
        "vocab_size": 512, "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "rope_theta": 10000.0,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    write(folder, tensors, config)
    said = {"quant_algo": "MIXED_PRECISION", "exclude_modules": ["lm_head"], "quantized_layers": layers}
    producer = {"name": "modelopt", "version": "0.47.0"}
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": producer, "quantization": said}), "utf-8")
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(FIXTURES / "stories260K" / name, folder / name)
    return folder
