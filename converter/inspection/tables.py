"""What `convert formats`, `quants` and `architectures` print; docs/formats.md has its table from here, too."""

from __future__ import annotations

import math
from typing import Any

from converter.architectures import architectures, plugged, traits_of
from converter.formats.registry import formats
from converter.quant.recipes import GRAPH_RECIPES, RECIPES, ModelFacts, TensorSpec, assign
from converter.tensors.dtypes import DTYPES


def format_rows() -> list[dict[str, Any]]:
    """One row per format."""
    return [
        {
            "format": each.name,
            "extensions": " ".join(each.extensions) or "folder",
            "read": each.open is not None,
            "write": each.layout is not None,
            "names": each.dialect or "as they are",
            "quantized": any(DTYPES[name].quantized for name in each.dtypes),
            "free_metadata": each.layout is not None and each.free_metadata is None,
            "description": each.description,
        }
        for each in formats().values()
    ]


def format_markdown() -> str:
    """The table of formats for docs/formats.md."""
    rows = format_rows()
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = [("yes" if value else "") if isinstance(value, bool) else str(value) for value in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


#: Shapes of a model of 8 B as most are built today (Llama 3.1 8B), by which quants are told apart.
N_LAYER, N_EMBD, N_FF, N_VOCAB, N_HEAD, N_HEAD_KV = 32, 4096, 14336, 128256, 32, 8
_OF_MODEL = {
    "token_embd.weight": (N_VOCAB, N_EMBD),
    "output.weight": (N_VOCAB, N_EMBD),
    "output_norm.weight": (N_EMBD,),
}
_OF_LAYER = {
    "attn_norm.weight": (N_EMBD,), "ffn_norm.weight": (N_EMBD,),
    "attn_q.weight": (N_EMBD, N_EMBD), "attn_output.weight": (N_EMBD, N_EMBD),
    "attn_k.weight": (N_EMBD * N_HEAD_KV // N_HEAD, N_EMBD), "attn_v.weight": (N_EMBD * N_HEAD_KV // N_HEAD, N_EMBD),
    "ffn_gate.weight": (N_FF, N_EMBD), "ffn_up.weight": (N_FF, N_EMBD), "ffn_down.weight": (N_EMBD, N_FF),
}  # fmt: skip
RECOMMENDED = "Q4_K_M"
#: What people use a quant for, in a word or two; the field's experience, and in line with what `compare` measures.
ADVICE = {
    "F32": "original", "F16": "original", "BF16": "original", "Q8_0": "near lossless", "Q6_K": "excellent",
    "Q5_K_M": "very good", "Q5_K_S": "very good", RECOMMENDED: "recommended", "Q4_K_S": "good", "IQ4_XS": "good, small",
    "IQ4_NL": "good", "Q5_1": "legacy", "Q5_0": "legacy", "Q4_1": "legacy", "Q4_0": "legacy", "Q3_K_L": "lossy",
    "Q3_K_M": "lossy", "Q3_K_S": "poor", "IQ3_M": "lossy", "IQ3_S": "lossy", "IQ3_XS": "lossy", "IQ3_XXS": "poor",
    "Q2_K": "poor", "Q2_K_S": "poor", "IQ2_M": "poor", "IQ2_S": "poor", "IQ2_XS": "last resort",
    "IQ2_XXS": "last resort", "IQ1_M": "last resort", "IQ1_S": "last resort", "MXFP4_MOE": "for gpt-oss",
    "TQ1_0": "ternary models", "TQ2_0": "ternary models", "Q2_0": "2-bit models", "Q1_0": "1-bit models",
    "INT8": "graphs on CPUs", "INT8-STATIC": "graphs on NPUs",
}  # fmt: skip


def llama_8b() -> tuple[list[TensorSpec], ModelFacts]:
    """The tensors of a model of 8 B in F16 with F32 norms, and what recipes ask of it."""
    shapes = _OF_MODEL | {f"blk.{at}.{name}": shape for at in range(N_LAYER) for name, shape in _OF_LAYER.items()}
    specs = [TensorSpec(name, shape, "F16" if len(shape) > 1 else "F32") for name, shape in shapes.items()]
    return specs, ModelFacts("llama", N_LAYER, N_HEAD, N_HEAD_KV, 0, traits_of("llama"))


def _sizes() -> tuple[dict[str, int], int]:
    """Bytes of that model's tensors in every recipe of GGUF, and how many numbers it has."""
    specs, facts = llama_8b()
    sizes = {}
    for name, each in RECIPES.items():
        choices = assign(each, specs, facts)
        sizes[name] = sum(DTYPES[choices[spec.name].type].nbytes(spec.shape) for spec in specs)
    return sizes, sum(math.prod(spec.shape) for spec in specs)


def quant_rows() -> list[dict[str, Any]]:
    """One row per recipe, from the largest file to the smallest; sizes are of a model of 8 B, null where only graphs
    have it."""
    sizes, count = _sizes()
    rows = [
        {
            "quant": recipe.name,
            "file_type": recipe.file_type,
            "type": recipe.base,
            "bits": DTYPES[recipe.base].bits_per_weight,
            "mixture": bool(recipe.rows),
            "imatrix": recipe.base in recipe.needs_imatrix,
            "bits_per_weight": round(8 * sizes[recipe.name] / count, 3) if recipe.name in sizes else None,
            "bytes_8b": sizes.get(recipe.name),
            "advice": ADVICE.get(recipe.name, ""),
            "recommended": recipe.name == RECOMMENDED,
        }
        for recipe in (*RECIPES.values(), *GRAPH_RECIPES.values())
        if recipe.base is not None
    ]
    return sorted(rows, key=lambda row: -(row["bits_per_weight"] or row["bits"]))


def architecture_rows() -> list[dict[str, Any]]:
    """One row per architecture."""
    return [
        {
            "architecture": architecture.gguf,
            "classes": [hf.name for hf in architecture.hf],
            "tensors": len(architecture.tensors),
        }
        for architecture in (*architectures().values(), *plugged().values())
    ]
