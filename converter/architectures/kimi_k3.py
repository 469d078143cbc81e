"""Kimi-K3's text model: Kimi-Linear's blocks with a gate after MLA, experts in a space of their own (latent MoE), and
residuals that a block weighs against those of earlier ones.

What weighs them is a norm and a projection to one number, of which the runtime needs the product alone.
Source: the reference converter's KimiK3Model; transformers has no such class.
"""

from converter.architectures.common import (
    DENSE_FFN,
    K_CACHE,
    K_MLA,
    KV_LORA,
    NORM_TENSORS,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    V_CACHE,
    V_MLA,
    G,
    H,
)
from converter.architectures.deepseek import MLA_TENSORS, A, B
from converter.architectures.kimi_linear import CACHED, CHANNELS, EXPERT, EXPERTS, KDA, KIMI_HPARAMS, KINDS, LINEAR, MOE
from converter.architectures.moe import N_DENSE, N_EXPERT_SHARED, N_FF_EXP, WEIGHTS_NORM, WEIGHTS_SCALE
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when, without
from converter.architectures.styles import KIMI_K3
from converter.architectures.traits import Traits
from converter.tensors.ops import NegExp, Product

WEIGHED = (("n_embd",), (1, "n_embd"))
PRODUCT = Product(WEIGHED)

RESIDUALS = (
    T(
        (H + "self_attention_res_norm.weight", H + "self_attention_res_proj.weight"), G + "attn_res_score.weight",
        PRODUCT, shape=WEIGHED,
    ),
    T((H + "mlp_res_norm.weight", H + "mlp_res_proj.weight"), G + "ffn_res_score.weight", PRODUCT, shape=WEIGHED),
    T(
        ("model.output_attn_res_norm.weight", "model.output_attn_res_proj.weight"), "output_res_score.weight",
        PRODUCT, shape=WEIGHED,
    ),
)  # fmt: skip
GATED_KDA = (
    *without(KDA, G + "ssm_a", G + "ssm_g_a.weight", G + "ssm_g_b.weight"),
    T(A + "A_log", G + "ssm_a", NegExp(wide=True), shape=("n_head_kda",)),
    T(A + "g_proj.weight", G + "ssm_g.weight", shape=(CHANNELS, "n_embd")),
)
LATENT = (
    *without(EXPERTS, G + "ffn_gate_exps.weight", G + "ffn_down_exps.weight", G + "ffn_up_exps.weight"),
    T(EXPERT + "w1.weight", G + "ffn_gate_exps.weight", shape=("n_ff_exp", "width_exp")),
    T(EXPERT + "w2.weight", G + "ffn_down_exps.weight", shape=("width_exp", "n_ff_exp")),
    T(EXPERT + "w3.weight", G + "ffn_up_exps.weight", shape=("n_ff_exp", "width_exp")),
)
TO_LATENT = (
    T(MOE + "routed_expert_down_proj.weight", G + "ffn_routed_down.weight", shape=("n_latent", "n_embd")),
    T(MOE + "routed_expert_up_proj.weight", G + "ffn_routed_up.weight", shape=("n_embd", "n_latent")),
    T(MOE + "routed_expert_norm.weight", G + "ffn_routed_norm.weight", shape=("n_latent",), optional=True),
)

ARCHITECTURES = (
    Architecture(
        gguf="kimi-k3",
        hf=(
            HFClass(
                "KimiK3ForConditionalGeneration", "kimi_k3", {"moe_router_activation_func": "sigmoid"}, remote=True,
                nested="kimi_linear", constants={"hidden_act": "situ", "mla_use_nope": True},
                prefix="language_model", beside=("vision_tower", "mm_projector"),
            ),
        ),
        hparams=(
            *amended(KIMI_HPARAMS, n_ctx={"config": ("max_position_embeddings", "model_max_length")}),
            CACHED,
            HParam("conv_kernel", (LINEAR + "short_conv_kernel_size",), ("ssm.conv_kernel",)),
            HParam("head_kda", (LINEAR + "head_dim",), ("kda.head_dim",)),
            HParam("lower_bound", (LINEAR + "gate_lower_bound",), ("kda.gate_lower_bound",), "f32"),
            HParam("q_lora", ("q_lora_rank",), ("attention.q_lora_rank",), null=0),
            KV_LORA,
            HParam("n_rot", ("qk_rope_head_dim",), ("rope.dimension_count",), required=True),
            K_CACHE,
            V_CACHE,
            K_MLA,
            V_MLA,
            N_FF_EXP,
            *amended((N_EXPERT_SHARED,), n_expert_shared={"config": ("num_shared_experts",)}),
            *amended((N_DENSE,), n_dense={"always": True}),
            WEIGHTS_SCALE,
            *amended((WEIGHTS_NORM,), weights_norm={"config": ("moe_renormalize",)}),
            HParam("n_latent", ("routed_expert_hidden_size",), ("expert_latent_length",), null=0),
            HParam("situ", ("activation_situ_beta",), ("activation.situ_beta",), "f32", required=True),
            HParam(
                "situ_linear", ("activation_situ_linear_beta",), ("activation.situ_linear_beta",), "f32",
                required=True,
            ),
            HParam("n_residual", ("attn_res_block_size",), ("attn_res.block_size",), required=True),
            HParam("width_exp", (), (), default="n_latent if n_latent > 0 else n_embd"),
            HParam("k_nope", ("qk_nope_head_dim",), (), required=True, back="k_mla - n_rot"),
            HParam("n_head_kda", (LINEAR + "num_heads",), (), default="n_head", back="n_head"),
            *KINDS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *RESIDUALS,
            *only_when("cached == 0", GATED_KDA),
            *only_when("cached > 0 and q_lora == 0", MLA_TENSORS[:2]),
            *only_when("cached > 0 and q_lora > 0", MLA_TENSORS[2:6]),
            *only_when("cached > 0", MLA_TENSORS[6:]),
            T(
                A + "g_proj.weight", B + "gate.weight", shape=("n_head * v_mla", "n_embd"), when="cached > 0",
                optional=True,
            ),
            *only_when("block < n_dense", DENSE_FFN),
            *only_when("block >= n_dense", LATENT),
            *only_when("block >= n_dense and n_latent > 0", TO_LATENT),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "mm_projector.{rest}"),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            KIMI_K3,
            built_in={
                "hidden_act": ("situ",), "moe_renormalize": (True,), "num_expert_group": (1,), "mla_use_nope": (True,),
            },
        ),
    ),
)  # fmt: skip
