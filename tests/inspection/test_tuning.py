"""Memory to fine-tune against figures that the papers print, and its parts by hand."""

from __future__ import annotations

from typing import Any

import pytest

from converter.inspection.tuning_memory import METHODS, NF4_BITS, RANK, TOKENS, Tuning, TuningEstimate, estimate

Shapes = dict[str, tuple[int, ...]]


def llama(embd: int, ff: int, layers: int, heads: int, kv: int, vocab: int) -> tuple[dict[str, Any], Shapes]:
    keys = {
        "general.architecture": "llama", "llama.block_count": layers, "llama.embedding_length": embd,
        "llama.feed_forward_length": ff, "llama.attention.head_count": heads, "llama.attention.head_count_kv": kv,
        "llama.context_length": 131072,
    }  # fmt: skip
    narrow = embd // heads * kv
    block: Shapes = {
        "attn_norm": (embd,), "ffn_norm": (embd,), "attn_q": (embd, embd), "attn_k": (narrow, embd),
        "attn_v": (narrow, embd), "attn_output": (embd, embd), "ffn_gate": (ff, embd), "ffn_up": (ff, embd),
        "ffn_down": (embd, ff),
    }  # fmt: skip
    shapes: Shapes = {"token_embd.weight": (vocab, embd), "output.weight": (vocab, embd), "output_norm.weight": (embd,)}
    shapes |= {f"blk.{n}.{name}.weight": shape for n in range(layers) for name, shape in block.items()}
    return keys, shapes


LLAMA_8B = llama(4096, 14336, 32, 32, 8, 128256)
LLAMA_65B = llama(8192, 22016, 80, 64, 64, 32000)


def needs(model: tuple[dict[str, Any], Shapes], **how: Any) -> dict[tuple[str, int], Tuning]:
    keys, shapes = model
    found = estimate(keys, {name: (shape, "BF16") for name, shape in shapes.items()}, **how)
    return {(need.method, need.tokens): need for need in found.needs}


def test_all_weights_take_16_bytes_each() -> None:
    """ZeRO's count for mixed precision with Adam: 120 GB for 7.5 B parameters."""
    full = needs(LLAMA_8B)["full", 2048]
    assert full.trained == 8_030_261_248
    assert full.total - full.activations == 16 * full.trained
    assert full.frozen == 0 and full.rank is None


def test_the_adapters_of_a_published_run() -> None:
    """PEFT prints 41,943,040 trainable parameters for Llama 3.1 8B with rank 16 on all seven matrices."""
    assert needs(LLAMA_8B, rank=16)["LoRA", 2048].trained == 41_943_040
    assert needs(LLAMA_8B, rank=64)["LoRA", 2048].trained == 4 * 41_943_040


def test_a_model_of_65b_fits_a_gpu_of_48_gb() -> None:
    """The QLoRA paper's claim, for sequences of 512."""
    found = needs(LLAMA_65B, rank=64, tokens=[512])
    assert 33e9 < found["QLoRA", 512].frozen < 35e9
    assert found["QLoRA", 512].total < (48 << 30) < found["LoRA", 512].total < found["full", 512].total
    assert pytest.approx(4.127, abs=1e-3) == NF4_BITS


def test_longer_sequences_take_more_activations_alone() -> None:
    found = needs(LLAMA_8B)
    for method in METHODS:
        short, long = (found[method.name, tokens] for tokens in TOKENS)
        assert long.activations == 4 * short.activations
        assert long.total - long.activations == short.total - short.activations
        assert short.rank == (None if method.full else RANK)


def test_sequences_end_where_the_model_does() -> None:
    keys, shapes = LLAMA_8B
    assert {need.tokens for need in needs((keys | {"llama.context_length": 512}, shapes)).values()} == {512}


def test_experts_have_adapters_each() -> None:
    keys, shapes = llama(64, 128, 1, 4, 4, 100)
    dense = needs((keys, shapes))["LoRA", 2048].trained
    shapes["blk.0.ffn_up_exps.weight"] = (8, 128, 64)
    assert needs((keys, shapes))["LoRA", 2048].trained - dense == RANK * 8 * (128 + 64)


def test_what_is_no_language_model_has_a_reason() -> None:
    found = estimate({}, {"conv1.weight": ((8, 3, 3, 3), "F32")})
    assert isinstance(found, TuningEstimate) and not found.needs and found.reason
    assert found.as_dict()["needs"] == []
