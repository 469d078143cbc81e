"""Phi-2, Phi-3 (to 4), Phi-3.5-MoE.

Source: the reference converter's Phi2Model, Phi3MiniModel, PhiMoeModel; transformers' configuration classes for the
defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    HEAD_SIZE,
    KV,
    LONGROPE,
    LONGROPE_FACTORS,
    N_FF,
    N_VOCAB,
    NORM,
    PARTIAL_OF_WIDTH,
    RMS_EPS,
    ROPE_BUFFERS,
    ROPE_THETA_UNUSUAL,
    TOP_TENSORS,
    G,
    H,
    Q,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair
from converter.architectures.styles import NO_BOS, PHI3
from converter.architectures.traits import Decoder, TokenizerStyle, Traits

EXPERT = H + "block_sparse_moe.experts.{expert}."
N_ROT, PARTIAL = PARTIAL_OF_WIDTH

PHI3_HPARAMS = (
    HParam("n_ctx", ("max_position_embeddings", "n_positions"), ("context_length",), required=True),
    HParam(
        "n_ctx_orig", ("original_max_position_embeddings", "rope.original_max_position_embeddings"),
        ("rope.scaling.original_context_length",), default="n_ctx", always=True,
    ),
    HParam("n_embd", ("hidden_size", "n_embd"), ("embedding_length",), required=True),
    N_FF,
    HParam("n_layer", ("num_hidden_layers", "n_layers", "n_layer"), ("block_count",), required=True),
    HParam("n_head", ("num_attention_heads", "n_head"), ("attention.head_count",), required=True),
    HParam(
        "n_head_kv", ("num_key_value_heads", "n_head_kv"), ("attention.head_count_kv",), default="n_head", always=True
    ),
    RMS_EPS,
    N_ROT,
    HParam("rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32", default=10000.0, always=True),
    HParam("window", ("sliding_window",), ("attention.sliding_window",), default=0, always=True),
    PARTIAL,
    HEAD_SIZE,
    N_VOCAB,
    HParam(
        "rope_type", ("rope.rope_type",), (), "str",
        default="'default'", back="'longrope' if present('rope_factors_long.weight') else 'default'",
    ),
    HParam(
        "rope_attn_factor", (), ("rope.scaling.attn_factor",), "f32", early=True, always=True,
        default="sqrt(1 + ln(n_ctx / n_ctx_orig) / ln(n_ctx_orig)) if n_ctx > n_ctx_orig else 1.0",
        when=LONGROPE,
    ),
)  # fmt: skip

ARCHITECTURES = (
    Architecture(
        gguf="phi2",
        hf=(
            HFClass(
                "PhiForCausalLM",
                "phi",
            ),
        ),
        hparams=(
            HParam("n_ctx", ("max_position_embeddings", "n_positions"), ("context_length",), required=True),
            HParam("n_embd", ("hidden_size", "n_embd"), ("embedding_length",), required=True),
            HParam(
                "n_ff", ("intermediate_size", "n_inner"), ("feed_forward_length",), default="4 * n_embd", always=True
            ),
            HParam("n_layer", ("num_hidden_layers", "n_layers", "n_layer"), ("block_count",), required=True),
            HParam("n_head", ("num_attention_heads", "n_head"), ("attention.head_count",), required=True),
            HParam(
                "n_head_kv", ("num_key_value_heads",), ("attention.head_count_kv",), default="n_head", always=True
            ),
            HParam(
                "norm_eps", ("layer_norm_eps", "layer_norm_epsilon"), ("attention.layer_norm_epsilon",), "f32",
                required=True,
            ),
            N_ROT,
            ROPE_THETA_UNUSUAL,
            PARTIAL,
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            T("model.embed_tokens.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            *pair("model.final_layernorm", "output_norm", shape=NORM, bias=True),
            *pair("lm_head", "output", shape=("n_vocab", "n_embd"), bias=True),
            *pair(H + "input_layernorm", G + "attn_norm", shape=NORM, bias=True),
            *pair(H + "self_attn.q_proj", G + "attn_q", shape=(Q, "n_embd"), bias=True),
            *pair(H + "self_attn.k_proj", G + "attn_k", shape=(KV, "n_embd"), bias=True),
            *pair(H + "self_attn.v_proj", G + "attn_v", shape=(KV, "n_embd"), bias=True),
            *pair(H + "self_attn.dense", G + "attn_output", shape=("n_embd", Q), bias=True),
            *pair(H + "mlp.fc1", G + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(H + "mlp.fc2", G + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(
            TokenizerStyle(("bpe",), first=NO_BOS), built_in={"hidden_act": ("gelu_new", "gelu_pytorch_tanh")},
            decoder=Decoder("gelu_tanh"),
        ),
    ),
    Architecture(
        gguf="phi3",
        hf=(
            HFClass(
                "Phi3ForCausalLM",
                "phi3",
                {"num_key_value_heads": "num_attention_heads"},
            ),
            HFClass("Phi4ForCausalLMV", "phi4-siglip", {"num_key_value_heads": "num_attention_heads"}, when="0"),
        ),
        hparams=PHI3_HPARAMS,
        tensors=(
            *TOP_TENSORS,
            T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
            T(H + "post_attention_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
            T(
                H + "self_attn.qkv_proj.weight", G + "attn_qkv.weight",
                shape=("(n_head + 2 * n_head_kv) * head_dim", "n_embd"),
            ),
            T(H + "self_attn.o_proj.weight", G + "attn_output.weight", shape=("n_embd", Q)),
            T(H + "mlp.gate_up_proj.weight", G + "ffn_up.weight", shape=("2 * n_ff", "n_embd")),
            T(H + "mlp.down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
            LONGROPE_FACTORS,
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(PHI3, decoder=Decoder()),
    ),
    Architecture(
        gguf="phimoe",
        hf=(
            HFClass(
                "PhiMoEForCausalLM",
                "phimoe",
            ),
        ),
        hparams=(
            *PHI3_HPARAMS,
            HParam(
                "n_expert_used", ("num_experts_per_tok", "num_experts_per_token"), ("expert_used_count",), required=True
            ),
            HParam("n_expert", ("num_local_experts", "num_experts"), ("expert_count",), required=True),
            # What this class takes instead of the attention factor.
            HParam("short_mscale", ("rope.short_mscale",), (), "f32", back="rope_attn_factor", when=LONGROPE),
            HParam("long_mscale", ("rope.long_mscale",), (), "f32", back="rope_attn_factor", when=LONGROPE),
            ATTENTION_BIAS,
            HParam("lm_head_bias", ("lm_head_bias",), (), "bool", default=False, back="present('output.bias')"),
        ),
        tensors=(
            *TOP_TENSORS,
            T("model.norm.bias", "output_norm.bias", shape=NORM),
            T("lm_head.bias", "output.bias", shape=("n_vocab",), optional=True),
            *pair(H + "input_layernorm", G + "attn_norm", shape=NORM, bias=True),
            *pair(H + "post_attention_layernorm", G + "ffn_norm", shape=NORM, bias=True),
            *ATTENTION,
            T(H + "block_sparse_moe.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
            T(EXPERT + "w1.weight", G + "ffn_gate_exps.weight", shape=("n_ff", "n_embd")),
            T(EXPERT + "w2.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff")),
            T(EXPERT + "w3.weight", G + "ffn_up_exps.weight", shape=("n_ff", "n_embd")),
            LONGROPE_FACTORS,
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(PHI3, decoder=Decoder(sparse_mixer=0.02)),
    ),
)
