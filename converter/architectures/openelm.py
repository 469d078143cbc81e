"""OpenELM: blocks grow in heads and widths.

Source: the reference converter's OpenELMModel; the configuration class that the models bring along.
"""

from converter.architectures.common import (
    N_ROT,
    N_VOCAB,
    NORM,
    G,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.styles import OPENELM
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import Split

B = "transformer.layers.{block}."
# The width that a multiplier asks for, to the nearest multiple, but not less than nine tenths of it.
WIDTH = "multipliers[block] * n_embd"
NEAREST = f"max(divisor, int({WIDTH} + divisor / 2) // divisor * divisor)"

ARCHITECTURES = (
    Architecture(
        gguf="openelm",
        hf=(HFClass("OpenELMForCausalLM", "openelm", {"rope_freq_constant": 10000}),),
        hparams=(
            HParam("n_layer", ("num_transformer_layers",), ("block_count",), required=True),
            HParam("n_ctx", ("max_context_length",), ("context_length",), required=True),
            HParam("n_embd", ("model_dim",), ("embedding_length",), required=True),
            HParam(
                "n_ff", (), ("feed_forward_length",), "i32[]", per_block=True, always=True,
                default=f"{NEAREST} if {NEAREST} >= 0.9 * {WIDTH} else {NEAREST} + divisor",
            ),
            HParam("n_head", ("num_query_heads",), ("attention.head_count",), "i32[]", required=True),
            HParam("n_head_kv", ("num_kv_heads",), ("attention.head_count_kv",), "i32[]", required=True),
            HParam("rope_theta", ("rope_freq_constant",), ("rope.freq_base",), "f32", required=True),
            HParam("rms_eps", (), ("attention.layer_norm_rms_epsilon",), "f32", default=1e-6, always=True),
            N_ROT,
            HParam("head_dim", ("head_dim",), ("attention.key_length", "attention.value_length"), required=True),
            N_VOCAB,
            HParam(
                "multipliers", ("ffn_multipliers",), (), "f32[]", per_block=True, default="4.0", back="n_ff / n_embd",
            ),
            HParam("divisor", ("ffn_dim_divisor",), default=256, back=1),
        ),
        tensors=(
            T("transformer.token_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("transformer.norm.weight", "output_norm.weight", shape=NORM),
            T(B + "attn_norm.weight", G + "attn_norm.weight", shape=NORM),
            T(B + "ffn_norm.weight", G + "ffn_norm.weight", shape=NORM),
            T(
                B + "attn.qkv_proj.weight", G + "attn_qkv.weight",
                shape=("(n_head + 2 * n_head_kv) * head_dim", "n_embd"),
            ),
            T(B + "attn.out_proj.weight", G + "attn_output.weight", shape=("n_embd", "n_head * head_dim")),
            T(B + "attn.q_norm.weight", G + "attn_q_norm.weight", shape=("head_dim",)),
            T(B + "attn.k_norm.weight", G + "attn_k_norm.weight", shape=("head_dim",)),
            T(
                B + "ffn.proj_1.weight", (G + "ffn_gate.weight", G + "ffn_up.weight"), Split(0, (1, 1)),
                shape=("2 * n_ff", "n_embd"),
            ),
            T(B + "ffn.proj_2.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
        ),
        traits=Traits(OPENELM, decoder=Decoder()),
    ),
)  # fmt: skip
