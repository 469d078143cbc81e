"""LFM2 and its mixture of experts: short convolutions in most blocks, attention in the others.

Source: the reference converter's LFM2Model and LFM2MoeModel; transformers' configuration classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DECODER_HPARAMS,
    NORM,
    NOT_CAUSAL,
    OTHER_INPUTS,
    POOLING,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when, pair, read_only
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import Reshape, Split

CONV, ATTN, FFN = H + "conv.", H + "self_attn.", H + "feed_forward."
EXPERT = FFN + "experts.{expert}."
IS_CONV, IS_ATTENTION = "n_head_kv == 0", "n_head_kv > 0"
DENSE, SPARSE = "block < n_dense", "block >= n_dense"

# Heads of keys per block: none where there is a convolution.
HYBRID = amended(
    DECODER_HPARAMS,
    n_head_kv={
        "config": (), "type": "i32[]", "per_block": True, "always": True,
        "default": "n_head_kv_said if kinds != 'conv' else 0",
    },
    rms_eps={"config": ("norm_eps", "rms_norm_eps")},
)
KINDS = (
    HParam("n_head_kv_said", ("num_key_value_heads",), default="n_head", back="max(n_head_kv)"),
    HParam("full_idxs", ("full_attn_idxs",), (), "u32[]", default="numbers('')"),
    HParam(
        "kinds", ("layer_types",), (), "str[]", per_block=True,
        default="'full_attention' if len(full_idxs) == 0 or block in full_idxs else 'conv'",
        back="'full_attention' if n_head_kv > 0 else 'conv'",
    ),
    HParam("conv_bias", ("conv_bias",), (), "bool", default=False, back="present('blk.0.shortconv.in_proj.bias')"),
)
VOCABULARY = (HParam("n_vocab", ("vocab_size",), ("vocab_size",), required=True),)
L_CACHE = HParam("l_cache", ("conv_L_cache",), ("shortconv.l_cache",), required=True)

BLOCK_TENSORS = (
    T(H + "operator_norm.weight", G + "attn_norm.weight", shape=NORM),
    T(H + "ffn_norm.weight", G + "ffn_norm.weight", shape=NORM),
    *only_when(
        IS_ATTENTION,
        (
            *ATTENTION[:6],
            *pair(ATTN + "out_proj", G + "attn_output", shape=("n_embd", "n_head * head_dim")),
            T(ATTN + "q_layernorm.weight", G + "attn_q_norm.weight", shape=("head_dim",)),
            T(ATTN + "k_layernorm.weight", G + "attn_k_norm.weight", shape=("head_dim",)),
        ),
    ),
    *only_when(
        IS_CONV,
        (
            T(
                CONV + "conv.weight", G + "shortconv.conv.weight",
                Reshape(("n_embd", 1, "row"), ("n_embd", "row")), shape=("n_embd", 1, "l_cache"),
            ),
            T(CONV + "conv.bias", G + "shortconv.conv.bias", shape=NORM, optional=True),
            *pair(CONV + "in_proj", G + "shortconv.in_proj", shape=("3 * n_embd", "n_embd")),
            *pair(CONV + "out_proj", G + "shortconv.out_proj", shape=("n_embd", "n_embd")),
        ),
    ),
)
TOP = (TOP_TENSORS[0], T("model.embedding_norm.weight", "token_embd_norm.weight", shape=NORM), TOP_TENSORS[2])
FEED_FORWARD = (
    T(FFN + "w1.weight", G + "ffn_gate.weight", shape=("n_ff", "n_embd")),
    T(FFN + "w3.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
    T(FFN + "w2.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
)
EXPERTS = (
    T(FFN + "gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
    T(FFN + "expert_bias", G + "exp_probs_b.bias", shape=("n_expert",), optional=True),
    T(EXPERT + "w1.weight", G + "ffn_gate_exps.weight", shape=("n_ff_exp", "n_embd")),
    T(EXPERT + "w2.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff_exp")),
    T(EXPERT + "w3.weight", G + "ffn_up_exps.weight", shape=("n_ff_exp", "n_embd")),
    *read_only(
        (
            T(
                FFN + "experts.gate_up_proj", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
                Split(1, (1, 1)), shape=("n_expert", "2 * n_ff_exp", "n_embd"),
            ),
            T(FFN + "experts.down_proj", G + "ffn_down_exps.weight", shape=("n_expert", "n_embd", "n_ff_exp")),
        )
    ),
)
ALIASES = (*TEXT_MODEL_ALIASES, ("lfm.{rest}", "model.{rest}"))

ARCHITECTURES = (
    Architecture(
        gguf="lfm2",
        hf=(
            HFClass("Lfm2ForCausalLM", "lfm2"),
            HFClass("LFM2ForCausalLM", "lfm2", when="0"),
            # Of vectors for texts, or for each of their tokens (ColBERT).
            HFClass("Lfm2Model", "lfm2", when="0", head=False),
            HFClass("Lfm2BidirectionalModel", "lfm2", when="0", head=False, facts={"causal": False}),
        ),
        hparams=(
            *amended(
                HYBRID[:-1],
                n_ff={
                    "config": (), "required": False, "always": True,
                    "default": "round_up(int(ff_multiplier * int(2 * ff / 3)), ff_multiple) if ff_adjust else ff",
                },
            ),
            *KINDS,
            *VOCABULARY,
            # What the width of the feed-forward network is computed from; what comes back says it as it is.
            HParam("ff", ("intermediate_size", "block_ff_dim"), required=True, back="n_ff"),
            HParam("ff_adjust", ("block_auto_adjust_ff_dim",), (), "bool", default=True, back=False),
            HParam("ff_multiplier", ("block_ffn_dim_multiplier",), (), "f32", default=1.0),
            HParam("ff_multiple", ("block_multiple_of",), default=256),
            L_CACHE,
            NOT_CAUSAL,
            POOLING,
            HParam("n_embd_out", ("/dense.1_Dense.out_features",), ("embedding_length_out",), early=True),
        ),
        tensors=(
            *TOP, *BLOCK_TENSORS, *FEED_FORWARD,
            T("1_Dense/linear.weight", "dense_2.weight", shape=("n_embd_out", "n_embd"), optional=True),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=ALIASES,
        traits=Traits(BPE, decoder=Decoder(last_norm="token_embd_norm")),
    ),
    Architecture(
        gguf="lfm2moe",
        hf=(HFClass("Lfm2MoeForCausalLM", "lfm2_moe"),),
        hparams=(
            *amended(HYBRID[:-1], n_expert={"config": ("num_experts", "num_local_experts")}),
            *KINDS,
            HParam("n_ff_exp", ("moe_intermediate_size",), ("expert_feed_forward_length",), required=True),
            HParam("n_dense", ("num_dense_layers",), ("leading_dense_block_count",), default=0, always=True),
            HParam("gating", (), ("expert_gating_func",), default=2, always=True),
            HParam(
                "expert_bias", ("use_expert_bias",), (), "bool", default=True,
                back="present('blk.{block}.exp_probs_b.bias', n_dense)",
            ),
            *VOCABULARY,
            L_CACHE,
        ),
        tensors=(
            *TOP[:2], *BLOCK_TENSORS, *only_when(DENSE, FEED_FORWARD), *only_when(SPARSE, EXPERTS),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=ALIASES,
        traits=Traits(BPE, decoder=Decoder(last_norm="token_embd_norm", weights_norm=True)),
    ),
)  # fmt: skip
