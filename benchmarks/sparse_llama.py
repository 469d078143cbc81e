"""Sparse Llama-shaped checkpoints: real headers, no data on disk. For memory measurements.

python benchmarks/sparse_llama.py 8b DIR      makes DIR/model.safetensors of 16 GB apparent size
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

SHAPES: dict[str, dict[str, int]] = {
    "8b": {"hidden": 4096, "layers": 32, "heads": 32, "kv": 8, "ff": 14336, "vocab": 128256},
    "1b": {"hidden": 2048, "layers": 16, "heads": 32, "kv": 8, "ff": 8192, "vocab": 128256},
    "1.1b": {"hidden": 2048, "layers": 22, "heads": 32, "kv": 4, "ff": 5632, "vocab": 32000},
}


def tensors(hidden: int, layers: int, heads: int, kv: int, ff: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama of these sizes."""
    kv_rows = hidden // heads * kv
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for block in range(layers):
        prefix = f"model.layers.{block}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv_rows, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv_rows, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}mlp.gate_proj.weight": (ff, hidden),
            f"{prefix}mlp.up_proj.weight": (ff, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, ff),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def config(hidden: int, layers: int, heads: int, kv: int, ff: int, vocab: int) -> dict[str, object]:
    """config.json of a Llama of these sizes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ff,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def make(size: str, folder: Path, tokenizer: Path | None = None) -> Path:
    """A folder with config.json, a sparse BF16 model.safetensors and the tokenizer files of another folder."""
    shapes = tensors(**SHAPES[size])
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        nbytes = 2
        for axis in shape:
            nbytes *= axis
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps(config(**SHAPES[size])))
    for path in tokenizer.glob("tokenizer*") if tokenizer else ():
        shutil.copy(path, folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder to copy tokenizer files from")
    args = parser.parse_args()
    print(make(args.size, args.folder, args.tokenizer))
