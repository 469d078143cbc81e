"""Rows that mixtures of experts share: how experts are chosen, shared experts, blocks that predict further tokens.

Source: the common keys of the reference converter (`TextModel.set_gguf_parameters`).
"""




from converter.architectures.common import DECODER_HPARAMS, DENSE_FFN, NORM, G, H
from converter.architectures.spec import HParam, T, TensorRule, before, only_when, pair
from converter.architectures.traits import Relation
from converter.tensors.ops import Split

# How the router's outputs become weights; the names are those of several families.
GATING = HParam(
    "gating",
    (
        "scoring_func", "score_function", "score_func", "moe_router_activation", "moe_router_activation_func",
        "expert_selection_fn",
    ),
    ("expert_gating_func",), values=(("softmax", 1), ("sigmoid", 2), ("sqrtsoftplus", 4)), closed=True,
)  # fmt: skip

# The common keys with those of the router, which only mixtures have.
MOE_HPARAMS = before(
    "head_dim",
    (
        HParam("n_expert_group", ("n_group",), ("expert_group_count",)),
        HParam("n_expert_group_used", ("topk_group",), ("expert_group_used_count",)),
        GATING,
    ),
    DECODER_HPARAMS,
)

# Of DeepSeek's descendants.
ROUTED = {"config": ("n_routed_experts", "num_local_experts", "num_experts")}

# The keys of one row each that families write in an order of their own.
N_FF_EXP = HParam("n_ff_exp", ("moe_intermediate_size",), ("expert_feed_forward_length",), required=True)
N_EXPERT_SHARED = HParam("n_expert_shared", ("n_shared_experts",), ("expert_shared_count",), default=0)
N_DENSE = HParam("n_dense", ("first_k_dense_replace",), ("leading_dense_block_count",), default=0)
WEIGHTS_SCALE = HParam("weights_scale", ("routed_scaling_factor",), ("expert_weights_scale",), "f32")
WEIGHTS_NORM = HParam("weights_norm", ("norm_topk_prob",), ("expert_weights_norm",), "bool")

# What a gated function gets is at most as large as one number of the config, in every block.
BOUNDED = (
    HParam(
        "bounds", (), ("swiglu_clamp_exp", "swiglu_clamp_shexp"), "f32[]", per_block=True, default="bound",
        follows="bound",
    ),
    HParam("bound", ("swiglu_limit",), (), "f32", back="max(bounds)", follows="bounds"),
)

EXPERT = H + "mlp.experts.{expert}."
ROUTER: tuple[TensorRule, ...] = (
    T(H + "mlp.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
    T(H + "mlp.gate.e_score_correction_bias", G + "exp_probs_b.bias", shape=("n_expert",), optional=True),
)
EXPERTS: tuple[TensorRule, ...] = (
    T(EXPERT + "gate_proj.weight", G + "ffn_gate_exps.weight", shape=("n_ff_exp", "n_embd")),
    T(EXPERT + "down_proj.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff_exp")),
    T(EXPERT + "up_proj.weight", G + "ffn_up_exps.weight", shape=("n_ff_exp", "n_embd")),
    # transformers 5 can also save a layer's experts in two tensors.
    T(
        H + "mlp.experts.gate_up_proj", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
        Split(1, (1, 1)), shape=("n_expert", "2 * n_ff_exp", "n_embd"), read_only=True,
    ),
    T(
        H + "mlp.experts.down_proj", G + "ffn_down_exps.weight",
        shape=("n_expert", "n_embd", "n_ff_exp"), read_only=True,
    ),
)  # fmt: skip
FF_SHARED = "n_ff_exp * n_expert_shared"
SHARED_EXPERTS: tuple[TensorRule, ...] = (
    *pair(H + "mlp.shared_experts.gate_proj", G + "ffn_gate_shexp", shape=(FF_SHARED, "n_embd")),
    *pair(H + "mlp.shared_experts.up_proj", G + "ffn_up_shexp", shape=(FF_SHARED, "n_embd")),
    *pair(H + "mlp.shared_experts.down_proj", G + "ffn_down_shexp", shape=("n_embd", FF_SHARED)),
)

# A feed-forward network in the first blocks, experts in the others.
DENSE_THEN_EXPERTS: tuple[TensorRule, ...] = (
    *only_when("block < n_dense", DENSE_FFN),
    *only_when("block >= n_dense", (*ROUTER, *EXPERTS)),
    *only_when("block >= n_dense and n_expert_shared > 0", SHARED_EXPERTS),
)

# Blocks after the main ones that predict further tokens (MTP, NextN): those whose tensors are there are counted.
NEXTN_HPARAMS = (
    HParam("n_main", ("num_hidden_layers",), (), required=True, back="n_layer - n_nextn"),
    HParam("n_nextn_said", ("num_nextn_predict_layers",), (), default=0, back="n_nextn"),
)
N_NEXTN = HParam(
    "n_nextn", (), ("nextn_predict_layers",), back=0, follows="n_nextn_said",
    default="n_nextn_said if present('model.layers.{block}.eh_proj.weight', n_main) else 0",
)  # fmt: skip
WITH_NEXTN = {"config": (), "default": "n_main + n_nextn", "always": True}
NEXTN_TOLD = (
    Relation(
        "n_nextn == n_nextn_said", "n_nextn_said",
        "config.json promises blocks that predict further tokens (num_nextn_predict_layers), the weights have none: "
        "the file is written without",
    ),
)  # fmt: skip
NEXTN_TENSORS: tuple[TensorRule, ...] = only_when(
    "block >= n_main",
    (
        T(H + "eh_proj.weight", G + "nextn.eh_proj.weight", shape=("n_embd", "2 * n_embd")),
        T(H + "enorm.weight", G + "nextn.enorm.weight", shape=NORM),
        T(H + "hnorm.weight", G + "nextn.hnorm.weight", shape=NORM),
        T(H + "embed_tokens.weight", G + "nextn.embed_tokens.weight", shape=("n_vocab", "n_embd"), optional=True),
        T(
            H + "shared_head.head.weight", G + "nextn.shared_head_head.weight", shape=("n_vocab", "n_embd"),
            optional=True,
        ),
        T(H + "shared_head.norm.weight", G + "nextn.shared_head_norm.weight", shape=NORM, optional=True),
    ),
)
BEYOND = ("model.layers.{beyond}.{rest}",)  # such blocks where they are not wanted
