"""Kimi-Linear: delta attention with a gate for each channel (KDA) in most blocks, MLA without positions in the others.

Source: the reference converter's KimiLinearModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    DENSE_FFN,
    K_CACHE,
    K_MLA,
    KV_LORA,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TOP_TENSORS,
    V_MLA,
    G,
    H,
)
from converter.architectures.deepseek import MLA_TENSORS, A, B
from converter.architectures.moe import (
    MOE_HPARAMS,
    N_DENSE,
    N_EXPERT_SHARED,
    N_FF_EXP,
    SHARED_EXPERTS,
    WEIGHTS_SCALE,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, moved, only_when, without
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import NegExp, Reshape

MOE = H + "block_sparse_moe."
EXPERT = MOE + "experts.{expert}."
CHANNELS = "n_head_kda * head_kda"
KERNEL = Reshape((CHANNELS, 1, "row"), (1, CHANNELS, 1, "row"))
LINEAR = "linear_attn_config."

KDA = (
    T(A + "q_proj.weight", B + "q.weight", shape=(CHANNELS, "n_embd")),
    T(A + "k_proj.weight", B + "k.weight", shape=(CHANNELS, "n_embd")),
    T(A + "v_proj.weight", B + "v.weight", shape=(CHANNELS, "n_embd")),
    T(A + "o_proj.weight", B + "output.weight", shape=("n_embd", CHANNELS)),
    T(A + "q_conv1d.weight", G + "ssm_conv1d_q.weight", KERNEL, shape=(CHANNELS, 1, "conv_kernel")),
    T(A + "k_conv1d.weight", G + "ssm_conv1d_k.weight", KERNEL, shape=(CHANNELS, 1, "conv_kernel")),
    T(A + "v_conv1d.weight", G + "ssm_conv1d_v.weight", KERNEL, shape=(CHANNELS, 1, "conv_kernel")),
    T(A + "A_log", G + "ssm_a", NegExp(), shape=(1, 1, "n_head_kda", 1)),
    T(A + "dt_bias", G + "ssm_dt.bias", shape=(CHANNELS,)),
    T(A + "f_a_proj.weight", G + "ssm_f_a.weight", shape=("head_kda", "n_embd")),
    T(A + "f_b_proj.weight", G + "ssm_f_b.weight", shape=(CHANNELS, "head_kda")),
    T(A + "b_proj.weight", G + "ssm_beta.weight", shape=("n_head_kda", "n_embd")),
    T(A + "g_a_proj.weight", G + "ssm_g_a.weight", shape=("head_kda", "n_embd")),
    T(A + "g_b_proj.weight", G + "ssm_g_b.weight", shape=(CHANNELS, "head_kda")),
    T(A + "o_norm.weight", G + "ssm_norm.weight", shape=("head_kda",)),
)
EXPERTS = (
    T(MOE + "gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
    T(MOE + "gate.e_score_correction_bias", G + "exp_probs_b.bias", shape=("n_expert",)),
    T(EXPERT + "w1.weight", G + "ffn_gate_exps.weight", shape=("n_ff_exp", "n_embd")),
    T(EXPERT + "w2.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff_exp")),
    T(EXPERT + "w3.weight", G + "ffn_up_exps.weight", shape=("n_ff_exp", "n_embd")),
    *without(
        moved(H + "mlp.", MOE, SHARED_EXPERTS), G + "ffn_gate_shexp.bias", G + "ffn_up_shexp.bias",
        G + "ffn_down_shexp.bias",
    ),
)

KIMI_HPARAMS = amended(
    MOE_HPARAMS,
    n_head_kv={"back": "n_head", "always": True},
    n_expert_used={"config": ("num_experts_per_token", "num_experts_per_tok")},
    n_expert={"config": ("num_experts", "num_local_experts")},
    gating={"config": ("moe_router_activation_func",)},
    n_vocab={"gguf": ("vocab_size",)},
)
CACHED = HParam(
    "cached", (), ("attention.head_count_kv",), "i32[]", per_block=True, always=True,
    default="1 if kinds == 'full_attention' else 0",
)  # fmt: skip
# Blocks are listed by kind, or the blocks of either kind, counted from 1.
KINDS = (
    HParam(
        "kinds", ("layer_types",), (), "str[]", per_block=True,
        default="'full_attention' if (block + 1 in full_blocks if len(full_blocks) > 0 "
                "else block > 0 and block % 4 == 0) else 'linear_attention'",
        back="'full_attention' if cached > 0 else 'linear_attention'",
    ),
    HParam(
        "full_blocks", (LINEAR + "full_attn_layers",), (), "u32[]", default="numbers('')",
        back="where(cached, 1)",
    ),
    HParam("is_kda", (), (), "bool[]", per_block=True, default="kinds == 'linear_attention'"),
    HParam("kda_blocks", (LINEAR + "kda_layers",), (), "u32[]", default="numbers('')", back="where(is_kda, 1)"),
)  # fmt: skip

ARCHITECTURES = (
    Architecture(
        gguf="kimi-linear",
        hf=(
            HFClass(
                "KimiLinearForCausalLM", "kimi_linear",
                {"moe_router_activation_func": "sigmoid"},
            ),
        ),
        hparams=(
            *amended(KIMI_HPARAMS, n_ctx={"config": ("model_max_length", "max_position_embeddings")}),
            CACHED,
            HParam(
                "conv_kernel", (LINEAR + "short_conv_kernel_size", "linear_conv_kernel_dim"), ("ssm.conv_kernel",),
            ),
            HParam("head_kda", (LINEAR + "head_dim", "linear_head_dim"), ("kda.head_dim",)),
            HParam("q_lora", ("q_lora_rank",), ("attention.q_lora_rank",), null=0),
            KV_LORA,
            HParam("n_rot", ("qk_rope_head_dim",), ("rope.dimension_count",), required=True),
            K_CACHE,
            K_MLA,
            V_MLA,
            N_FF_EXP,
            *amended((N_EXPERT_SHARED,), n_expert_shared={"config": ("num_shared_experts",)}),
            *amended((N_DENSE,), n_dense={"default": "sum(is_dense)", "always": True}),
            WEIGHTS_SCALE,
            HParam("k_nope", ("qk_nope_head_dim",), (), required=True, back="k_mla - n_rot"),
            HParam("n_head_kda", (LINEAR + "num_heads", "linear_num_heads"), (), default="n_head", back="n_head"),
            *KINDS,
            HParam(
                "mlp_kinds", ("mlp_layer_types",), (), "str[]", per_block=True,
                default="'dense' if block == 0 else 'sparse'", back="'dense' if block < n_dense else 'sparse'",
            ),
            HParam("is_dense", (), (), "bool[]", per_block=True, default="mlp_kinds == 'dense'"),
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *only_when("cached == 0", KDA),
            *only_when(
                "cached > 0",
                without(MLA_TENSORS, B + "q_a.weight", B + "q_a.bias", B + "q_a_norm.weight", B + "q_b.weight"),
            ),
            *only_when("block < n_dense", DENSE_FFN),
            *only_when("block >= n_dense", EXPERTS),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(
            BPE, decoder=Decoder(rotates="0", weights_norm=True, latent_epsilon=1e-6, length_epsilon=1e-6),
            built_in={"moe_renormalize": (True,), "num_expert_group": (1,), "mla_use_nope": (True,)},
        ),
    ),
)  # fmt: skip
