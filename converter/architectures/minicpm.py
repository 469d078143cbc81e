"""MiniCPM 1, 2 and 4: Llama with scales. MiniCPM 3: attention over a compressed cache, and scales that llama.cpp knows.

Source: the reference converter's MiniCPMModel and MiniCPM3Model; transformers' configuration class and that which the
models bring along for the defaults.
"""

from converter.architectures.common import (
    ATTENTION_INTERLEAVED,
    DECODER_HPARAMS,
    DENSE_FFN,
    KV_LORA,
    LONGROPE_FACTORS,
    N_CTX,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_LAYER,
    NORM_TENSORS,
    RMS_EPS,
    ROPE_BUFFERS,
    ROPE_THETA_UNUSUAL,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.styles import SPM
from converter.architectures.traits import Decoder, Traits

A, B = H + "self_attn.", G + "attn_"

ARCHITECTURES = (
    Architecture(
        gguf="minicpm",
        hf=(
            HFClass(
                "MiniCPMForCausalLM",
                "minicpm",
                {
                    "num_key_value_heads": "num_attention_heads", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "max_position_embeddings": 2048, "scale_emb": 1, "scale_depth": 1, "dim_model_base": 1,
                },
            ),
        ),
        hparams=(
            *DECODER_HPARAMS,
            HParam("embedding_scale", ("scale_emb",), ("embedding_scale",), "f32"),
            HParam("residual_scale", (), ("residual_scale",), "f32", default="depth / sqrt(n_layer)", always=True),
            HParam("logit_scale", (), ("logit_scale",), "f32", default="n_embd / base", always=True),
            HParam("depth", ("scale_depth",), (), "f32", back="residual_scale * sqrt(n_layer)"),
            HParam("base", ("dim_model_base",), (), back="int(n_embd / logit_scale + 0.5)"),
            HParam("n_rot", (), (), default="head_dim"),
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION_INTERLEAVED, *DENSE_FFN, LONGROPE_FACTORS),
        ignore=ROPE_BUFFERS,
        traits=Traits(SPM, decoder=Decoder(logits="1 / logit_scale")),
    ),
    Architecture(
        gguf="minicpm3",
        hf=(
            HFClass(
                "MiniCPM3ForCausalLM",
                "minicpm3",
            ),
        ),
        hparams=(
            N_CTX,
            N_EMBD,
            N_LAYER,
            N_FF,
            N_HEAD,
            HParam("n_head_kv", ("num_key_value_heads",), ("attention.head_count_kv",), required=True),
            RMS_EPS,
            HParam("n_vocab", ("vocab_size",), ("vocab_size",), required=True),
            HParam("q_lora", ("q_lora_rank",), ("attention.q_lora_rank",), required=True),
            KV_LORA,
            HParam("k_head", (), ("attention.key_length",), default="k_nope + n_rot", always=True),
            HParam("n_rot", ("qk_rope_head_dim",), ("rope.dimension_count",), required=True),
            ROPE_THETA_UNUSUAL,
            HParam("rope_type", ("rope.rope_type",), (), "str", default="'default'"),
            HParam("k_nope", ("qk_nope_head_dim",), (), required=True, back="k_head - n_rot"),
            HParam("v_head", ("v_head_dim",), (), default="n_embd // n_head"),
            HParam("head_dim", (), (), default="n_rot"),
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            T(A + "q_a_proj.weight", B + "q_a.weight", shape=("q_lora", "n_embd")),
            T(A + "q_a_layernorm.weight", B + "q_a_norm.weight", shape=("q_lora",)),
            T(A + "q_b_proj.weight", B + "q_b.weight", shape=("n_head * k_head", "q_lora")),
            T(A + "kv_a_proj_with_mqa.weight", B + "kv_a_mqa.weight", shape=("kv_lora + n_rot", "n_embd")),
            T(A + "kv_a_layernorm.weight", B + "kv_a_norm.weight", shape=("kv_lora",)),
            T(A + "kv_b_proj.weight", B + "kv_b.weight", shape=("n_head * (k_nope + v_head)", "kv_lora")),
            T(A + "o_proj.weight", B + "output.weight", shape=("n_embd", "n_head * v_head")),
            *DENSE_FFN,
            LONGROPE_FACTORS,
        ),
        ignore=ROPE_BUFFERS,
        # What llama.cpp computes, whatever the file says.
        traits=Traits(
            SPM, built_in={"scale_emb": (12,), "scale_depth": (1.4,), "dim_model_base": (256,)},
            decoder=Decoder(
                embedding="12", residual="1.4 / sqrt(n_layer)", logits="256 / n_embd", latent_epsilon=1e-6,
            ),
        ),
    ),
)
