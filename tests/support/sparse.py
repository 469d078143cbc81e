"""Folders of the sizes of published models: real configs and headers, no data on disk. For time, memory and types.

    python tests/support/sparse.py llama-3.1-8b DIR --tokenizer FOLDER     16 GB apparent size
    python tests/support/sparse.py deepseek-v3.1 DIR --layers 4            the first four of 61 layers

The configs say what the published ones say where it decides names and shapes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.mapping.detect import detect
from converter.mapping.hparams import read_config
from converter.mapping.view import HFView

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

YARN_V3 = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128}
PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"


def llama(**sizes: object) -> Config:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": False, "torch_dtype": "bfloat16", **sizes,
    }  # fmt: skip


LLAMAS: dict[str, Config] = {
    "llama-3.1-8b": llama(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
        vocab_size=128256,
    ),
    "llama-1b": llama(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, intermediate_size=8192,
        vocab_size=128256,
    ),
    "llama-1.1b": llama(
        hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4, intermediate_size=5632,
        vocab_size=32000,
    ),
}  # fmt: skip
#: Those of llama.cpp's golden tables (fixtures/snapshots), by their names there.
CONFIGS: dict[str, Config] = {
    "deepseek-v3.1": {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280,
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256, "rope_scaling": YARN_V3,
        "max_position_embeddings": 163840, "num_nextn_predict_layers": 1, "tie_word_embeddings": False,
    },
    "gemma-3-4b-it": {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
            "vocab_size": 262144,  # 262208, of which the tokenizer has so many
        },
    },
    "glm-4.6v": {
        "architectures": ["Glm4vMoeForConditionalGeneration"], "model_type": "glm4v_moe",
        "text_config": {
            "model_type": "glm4v_moe_text", "num_hidden_layers": 46, "head_dim": 128, "vocab_size": 151552,
            "tie_word_embeddings": False,
        },
    },
    "gpt-oss-120b": {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880,
        "num_hidden_layers": 36, "num_attention_heads": 64,
        "tie_word_embeddings": False,
    },
    "meta-llama-3.1-70b-instruct": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192,
        "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": LLAMA3, "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "nvidia-nemotron-3-nano-30b-a3b": {
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "vocab_size": 131072,
        "hidden_size": 2688, "hybrid_override_pattern": PATTERN, "num_hidden_layers": len(PATTERN),
        "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "intermediate_size": 1856,
        "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712, "n_routed_experts": 128,
        "n_shared_experts": 1, "num_experts_per_tok": 6, "routed_scaling_factor": 2.5, "mamba_num_heads": 64,
        "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4, "use_conv_bias": True,
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        **QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "qwen3-14b": {
        **QWEN3, "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "qwen3-coder-next": {
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "vocab_size": 151936,
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 256, "num_experts": 512, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "tie_word_embeddings": False,
    },
    "qwen3.5-397b-a17b": {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe",
        "text_config": {
            "model_type": "qwen3_5_moe_text", "vocab_size": 248320, "hidden_size": 4096, "num_hidden_layers": 60,
            "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 256, "num_experts": 512,
            "moe_intermediate_size": 1024, "shared_expert_intermediate_size": 1024, "linear_num_key_heads": 16,
            "linear_num_value_heads": 64, "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
    },
    "step-3.5-flash": {
        "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", "vocab_size": 128896, "hidden_size": 4096,
        "intermediate_size": 11264, "num_hidden_layers": 45, "num_attention_heads": 64, "num_attention_groups": 8,
        "attention_other_setting": {"num_attention_heads": 96, "num_attention_groups": 8}, "head_dim": 128,
        "layer_types": [*["full_attention", *["sliding_attention"] * 3] * 11, "full_attention"],
        "sliding_window": 512, "moe_layers_enum": ",".join(map(str, range(3, 45))), "moe_num_experts": 288,
        "moe_top_k": 8, "moe_intermediate_size": 1280, "share_expert_dim": 1280, "max_position_embeddings": 262144,
        "rope_theta": [*[5000000.0, *[10000.0] * 3] * 11, 5000000.0], "tie_word_embeddings": False,
    },
    "qwen3.6-27b": {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
        "text_config": {
            "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 5120, "num_hidden_layers": 64,
            "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 17408,
            "linear_num_key_heads": 16, "linear_num_value_heads": 48, "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
    },
}  # fmt: skip


class Every(Container[str]):
    """The names of a model of which nobody asks what it stores."""

    def __contains__(self, name: object) -> bool:
        return True


def shapes(config: Config, stored: Container[str] = Every()) -> Shapes:
    """The tensors that transformers saves for a config; of those that a model may lack, the ones stored in a GGUF."""
    architecture, hf = detect(config)
    hparams, _ = read_config(architecture, hf, config, present=())
    view = HFView(Checkpoint("hf", Path("published"), "hf", {}, config))
    found: Shapes = {}
    for instance in view.instances(architecture, hparams):
        needed = not instance.rule.optional and not instance.rule.tied_to
        if not instance.rule.read_only and (needed or any(name in stored for name in instance.gguf)):
            each = instance.shapes * (len(instance.names) // max(len(instance.shapes), 1))
            found |= dict(zip(instance.names, each, strict=True))
    return found


def in_fp8(tensors: Shapes) -> tuple[Shapes, dict[str, str]]:
    """What DeepSeek's own release stores, and the types: projections in FP8, a scale for each block of 128 x 128."""
    made, types = Shapes(), {}
    for name, shape in tensors.items():
        made[name] = shape
        if len(shape) == 2 and "_proj" in name:
            scale = f"{name}_scale_inv"
            made[scale] = (-(-shape[0] // 128), -(-shape[1] // 128))
            types |= {name: "F8_E4M3", scale: "F32"}
    return made, types


SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}


def sparse(path: Path, tensors: Shapes, types: Mapping[str, str] = {}) -> None:
    """A safetensors file that is as long as its tensors and occupies its header's bytes; BF16 where no type is said."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in tensors.items():
        type_ = types.get(name, "BF16")
        nbytes = SIZES[type_] * math.prod(shape)
        header[name] = {"dtype": type_, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def shards(folder: Path, tensors: Shapes, types: Mapping[str, str], size: int) -> None:
    """Several such files of about `size` bytes, with an index."""
    sets: list[Shapes] = [{}]
    room = size
    for name, shape in tensors.items():
        if room <= 0:
            sets.append({})
            room = size
        sets[-1][name] = shape
        room -= SIZES[types.get(name, "BF16")] * math.prod(shape)
    names = [f"model-{number + 1:05}-of-{len(sets):05}.safetensors" for number in range(len(sets))]
    for name, part in zip(names, sets, strict=True):
        sparse(folder / name, part, types)
    index = {tensor: name for name, part in zip(names, sets, strict=True) for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}), "utf-8")


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def folder(
    config: Config, path: Path, stored: Container[str] = Every(), tokenizer: Path | None = None, *, fp8: bool = False
) -> Path:
    """A Hugging Face folder of these sizes, with the tokenizer files of another folder; in FP8 with several shards."""
    path.mkdir(parents=True, exist_ok=True)
    if fp8:
        shards(path, *in_fp8(shapes(config, stored)), size=4 << 30)
        config = config | {"quantization_config": FP8}
    else:
        sparse(path / "model.safetensors", shapes(config, stored))
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    for file in tokenizer.glob("tokenizer*") if tokenizer else ():
        shutil.copy(file, path)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=LLAMAS | CONFIGS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="only the first N")
    parser.add_argument("--fp8", action="store_true", help="as DeepSeek's own release stores it")
    parser.add_argument("--tokenizer", type=Path, help="folder to copy tokenizer files from")
    args = parser.parse_args()
    chosen = {**LLAMAS, **CONFIGS}[args.name]
    if args.layers:
        (chosen.get("text_config") or chosen)["num_hidden_layers"] = args.layers
    print(folder(chosen, args.folder, tokenizer=args.tokenizer, fp8=args.fp8))
