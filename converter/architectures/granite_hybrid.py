"""Granite 4 hybrids: Mamba-2 in most blocks, attention without positions in the others, experts or one shared network.

Source: the reference converter's GraniteHybridModel; transformers' configuration classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION_INTERLEAVED,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.granite import DEFAULTS, HPARAMS, MOE, SHARED
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when, pair
from converter.architectures.traits import Decoder, Relation, TokenizerStyle, Traits
from converter.tensors.ops import NegExp, Reshape, Split

MAMBA = H + "mamba."
CHANNELS = "n_inner + 2 * n_group * n_state"

MAMBA2 = (
    *pair(MAMBA + "in_proj", G + "ssm_in", shape=(f"n_inner + {CHANNELS} + n_head_ssm", "n_embd")),
    T(
        MAMBA + "conv1d.weight", G + "ssm_conv1d.weight",
        Reshape((CHANNELS, 1, "row"), (CHANNELS, "row")), shape=(CHANNELS, 1, "conv_kernel"),
    ),
    T(MAMBA + "conv1d.bias", G + "ssm_conv1d.bias", shape=(CHANNELS,), optional=True),
    T(MAMBA + "dt_bias", G + "ssm_dt.bias", shape=("n_head_ssm",)),
    T(MAMBA + "A_log", G + "ssm_a", Reshape(("n_head_ssm",), ("n_head_ssm", 1)), NegExp(), shape=("n_head_ssm",)),
    T(MAMBA + "D", G + "ssm_d", Reshape(("n_head_ssm",), ("n_head_ssm", 1)), shape=("n_head_ssm",)),
    T(
        MAMBA + "norm.weight", G + "ssm_norm.weight",
        Reshape(("n_inner",), ("n_group", "n_inner // n_group")), shape=("n_inner",),
    ),
    *pair(MAMBA + "out_proj", G + "ssm_out", shape=("n_embd", "n_inner")),
)
EXPERTS = (
    T(MOE + "router.layer.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
    T(
        MOE + "input_linear.weight", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
        Split(1, (1, 1)), shape=("n_expert", "2 * n_ff", "n_embd"),
    ),
    T(MOE + "output_linear.weight", G + "ffn_down_exps.weight", shape=("n_expert", "n_embd", "n_ff")),
    T(
        SHARED + "input_linear.weight", (G + "ffn_gate_shexp.weight", G + "ffn_up_shexp.weight"),
        Split(0, (1, 1)), shape=("2 * n_ff_shexp", "n_embd"),
    ),
    T(SHARED + "output_linear.weight", G + "ffn_down_shexp.weight", shape=("n_embd", "n_ff_shexp")),
)
# Without experts, the shared network is the only one.
DENSE = (
    T(
        SHARED + "input_linear.weight", (G + "ffn_gate.weight", G + "ffn_up.weight"),
        Split(0, (1, 1)), shape=("2 * n_ff_shexp", "n_embd"),
    ),
    T(SHARED + "output_linear.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff_shexp")),
)

# Which blocks have biases, on the way back.
BIASES = (
    HParam(
        "conv_biases", (), (), "bool[]", per_block=True, back="present('blk.{block}.ssm_conv1d.bias')",
    ),
    HParam("conv_bias", ("mamba_conv_bias",), (), "bool", default=True, back="max(conv_biases)"),
    HParam(
        "proj_biases", (), (), "bool[]", per_block=True, back="present('blk.{block}.ssm_in.bias')",
    ),
    HParam("proj_bias", ("mamba_proj_bias",), (), "bool", default=False, back="max(proj_biases)"),
    HParam(
        "attention_biases", (), (), "bool[]", per_block=True, back="present('blk.{block}.attn_q.bias')",
    ),
)

ELSEWHERE = (
    Relation(
        "min(n_head_kv) == 0", "kinds",
        "every block is attention: llama.cpp's converter writes such a model as granite or granitemoe",
    ),
)

ARCHITECTURES = (
    Architecture(
        gguf="granitehybrid",
        hf=(HFClass("GraniteMoeHybridForCausalLM", "granitemoehybrid", DEFAULTS),),
        hparams=(
            *amended(
                HPARAMS,
                attention_bias={"back": "max(attention_biases)"},
                n_ctx={"config": (), "default": "n_ctx_said if use_rope else 1048576", "always": True},
                n_head_kv={
                    "config": (), "type": "i32[]", "per_block": True, "always": True,
                    "default": "n_head_kv_said if kinds == 'attention' or kinds == 'full_attention' else 0",
                },
            ),
            HParam("n_ctx_said", ("max_position_embeddings",), default=2048, back="n_ctx"),
            HParam("n_head_kv_said", ("num_key_value_heads",), default="n_head", back="max(n_head_kv)"),
            HParam(
                "kinds", ("layer_types",), (), "str[]", per_block=True, default="'mamba'",
                back="'attention' if n_head_kv > 0 else 'mamba'",
            ),
            HParam("n_ff_shexp", ("shared_intermediate_size",), ("expert_shared_feed_forward_length",), required=True),
            HParam("conv_kernel", ("mamba_d_conv",), ("ssm.conv_kernel",), required=True),
            HParam("n_state", ("mamba_d_state",), ("ssm.state_size",), required=True),
            HParam("n_group", ("mamba_n_groups",), ("ssm.group_count",), required=True),
            HParam("n_inner", (), ("ssm.inner_size",), default="expand * n_embd", always=True),
            HParam("expand", ("mamba_expand",), required=True, back="n_inner // n_embd"),
            HParam("n_head_ssm", ("mamba_n_heads",), ("ssm.time_step_rank",), required=True),
            HParam("head_ssm", ("mamba_d_head",), back="n_inner // n_head_ssm", type="u32 or str", default="'auto'"),
            HParam(
                "use_rope", (), ("rope.scaling.finetuned",), "bool", default="min(n_head_kv) > 0", always=True,
            ),
            HParam(
                "positions", ("position_embedding_type",), (), "str",
                default="'nope'", back="'rope' if use_rope else 'nope'",
            ),
            *BIASES,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *only_when("n_head_kv > 0", ATTENTION_INTERLEAVED),
            *only_when("n_head_kv == 0", MAMBA2),
            *only_when("n_expert > 0", EXPERTS),
            *only_when("n_expert == 0", DENSE),
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            TokenizerStyle(("spm", "bpe"), round_to=8),
            # How many heads a block has says what it is.
            built_in={
                "position_embedding_type": ("nope",),
                "layer_types": ("mamba", "linear_attention", "attention", "full_attention"),
            },
            runtime=ELSEWHERE,
            decoder=Decoder(rotates="use_rope", logits="1 / logit_scale", weights_norm=True),
        ),
    ),
)  # fmt: skip
