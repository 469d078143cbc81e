"""Falcon-H1: every block has Mamba-2 and attention side by side. Its multipliers are folded into the weights.

Source: the reference converter's FalconH1Model; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    KV,
    N_CTX,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_LAYER,
    NORM,
    RMS_EPS,
    ROPE_BUFFERS,
    G,
    H,
    Q,
)
from converter.architectures.granite_hybrid import BIASES, CHANNELS, MAMBA, MAMBA2
from converter.architectures.spec import Architecture, HFClass, HParam, T, without
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Relation, Traits
from converter.tensors.ops import At, Concat, Mul, Reshape, Split

ATTENTION, MLP = H + "self_attn.", H + "feed_forward."
# What the input projection of Mamba makes: gates, inputs, both matrices of the state, steps; each with a multiplier.
PARTS = ("n_inner", "n_inner", "n_group * n_state", "n_group * n_state", "n_head_ssm")

# A reader of the GGUF finds them in the weights.
MULTIPLIERS = (
    HParam("m_embedding", ("embedding_multiplier",), (), "f32", default=1.0, back=1.0),
    HParam("m_head", ("lm_head_multiplier",), (), "f32", default=1.0, back=1.0),
    HParam("m_attention_in", ("attention_in_multiplier",), (), "f32", default=1.0, back=1.0),
    HParam("m_attention_out", ("attention_out_multiplier",), (), "f32", default=1.0, back=1.0),
    HParam("m_key", ("key_multiplier",), (), "f32", default=1.0, back=1.0),
    HParam("m_ssm_in", ("ssm_in_multiplier",), (), "f32", default=1.0, back=1.0),
    HParam("m_ssm_out", ("ssm_out_multiplier",), (), "f32", default=1.0, back=1.0),
    HParam(
        "m_mlp", ("mlp_multipliers",), (), "f32[]", default="numbers('1,1')", back="numbers('1,1')",
    ),
    HParam(
        "m_ssm", ("ssm_multipliers",), (), "f32[]", default="numbers('1,1,1,1,1')", back="numbers('1,1,1,1,1')",
    ),
)

ARCHITECTURES = (
    Architecture(
        gguf="falcon-h1",
        hf=(
            HFClass(
                "FalconH1ForCausalLM", "falcon_h1",
            ),
        ),
        hparams=(
            N_CTX,
            N_EMBD,
            N_FF,
            N_HEAD,
            N_LAYER,
            HParam("conv_kernel", ("mamba_d_conv",), ("ssm.conv_kernel",), required=True),
            HParam("n_inner", ("mamba_d_ssm",), ("ssm.inner_size",), required=True),
            HParam("n_state", ("mamba_d_state",), ("ssm.state_size",), required=True),
            HParam("n_head_ssm", ("mamba_n_heads",), ("ssm.time_step_rank",), required=True),
            HParam("n_group", ("mamba_n_groups",), ("ssm.group_count",), required=True),
            RMS_EPS,
            HParam("n_vocab", ("vocab_size",), ("vocab_size",), required=True),
            HParam("n_head_kv", ("num_key_value_heads",), ("attention.head_count_kv",), default="n_head"),
            HParam(
                "head_dim", ("head_dim",), ("attention.key_length", "attention.value_length"),
                default="n_embd // n_head", always=True,
            ),
            HParam("rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32"),
            HParam("rope_type", ("rope.rope_type",), (), "str", default="'default'"),
            HParam("head_ssm", ("mamba_d_head",), (), "u32 or str", default="'auto'", back="n_inner // n_head_ssm"),
            HParam(
                "norms_inner", ("mamba_rms_norm",), (), "bool", default=False,
                back="present('blk.0.ssm_norm.weight')",
            ),
            # As llama.cpp does where there is such a norm.
            HParam("norm_before_gate", ("mamba_norm_before_gate",), (), "bool", default=True, back=False),
            *MULTIPLIERS,
            *BIASES[:2],
        ),
        tensors=(
            T("model.embed_tokens.weight", "token_embd.weight", Mul("m_embedding"), shape=("n_vocab", "n_embd")),
            T("model.final_layernorm.weight", "output_norm.weight", shape=NORM),
            T(
                "lm_head.weight", "output.weight", Mul("m_head"), shape=("n_vocab", "n_embd"),
                tied_to="token_embd.weight",
            ),
            T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
            T(H + "pre_ff_layernorm.weight", G + "ffn_norm", shape=NORM),
            T(ATTENTION + "q_proj.weight", G + "attn_q.weight", Mul("m_attention_in"), shape=(Q, "n_embd")),
            T(
                ATTENTION + "k_proj.weight", G + "attn_k.weight", Mul("m_key"), Mul("m_attention_in"),
                shape=(KV, "n_embd"),
            ),
            T(ATTENTION + "v_proj.weight", G + "attn_v.weight", Mul("m_attention_in"), shape=(KV, "n_embd")),
            T(ATTENTION + "o_proj.weight", G + "attn_output.weight", Mul("m_attention_out"), shape=("n_embd", Q)),
            T(MLP + "gate_proj.weight", G + "ffn_gate.weight", Mul("m_mlp[0]"), shape=("n_ff", "n_embd")),
            T(MLP + "up_proj.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
            T(MLP + "down_proj.weight", G + "ffn_down.weight", Mul("m_mlp[1]"), shape=("n_embd", "n_ff")),
            T(
                MAMBA + "in_proj.weight", G + "ssm_in.weight",
                Mul("m_ssm_in"), Split(0, PARTS),
                At(0, Mul("m_ssm[0]")), At(1, Mul("m_ssm[1]")), At(2, Mul("m_ssm[2]")), At(3, Mul("m_ssm[3]")),
                At(4, Mul("m_ssm[4]")), Concat(0, PARTS),
                shape=(f"n_inner + {CHANNELS} + n_head_ssm", "n_embd"),
            ),
            T(MAMBA + "out_proj.weight", G + "ssm_out.weight", Mul("m_ssm_out"), shape=("n_embd", "n_inner")),
            *without(
                MAMBA2, G + "ssm_in.weight", G + "ssm_in.bias", G + "ssm_out.weight", G + "ssm_out.bias",
                G + "ssm_norm.weight",
            ),
            T(
                MAMBA + "norm.weight", G + "ssm_norm.weight",
                Reshape(("n_inner",), ("n_group", "n_inner // n_group")), shape=("n_inner",), optional=True,
            ),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(
            BPE,
            decoder=Decoder(),
            told=(
                Relation(
                    "m_head == m_embedding or present('lm_head.weight')", "m_head",
                    "the embedding stands in for the head, and holds another multiplier than the head's: "
                    "logits are others by the factor between them",
                ),
            ),
        ),
    ),
)  # fmt: skip
