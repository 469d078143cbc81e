"""Bailing (Ling): mixtures with one projection for queries, keys and values.

Source: the reference converter's BailingMoeModel and BailingMoeV2Model; the authors' configuration classes.
"""

from converter.architectures.common import (
    DENSE_FFN,
    N_ROT,
    N_ROT_OF_HEAD,
    NORM,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TOP_TENSORS,
    VOCAB,
    G,
    H,
)
from converter.architectures.moe import (
    BEYOND,
    EXPERTS,
    MOE_HPARAMS,
    N_DENSE,
    N_EXPERT_SHARED,
    N_FF_EXP,
    N_NEXTN,
    NEXTN_HPARAMS,
    NEXTN_TENSORS,
    NEXTN_TOLD,
    SHARED_EXPERTS,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    WITH_NEXTN,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import At, Rope, Split

ATTENTION = H + "attention."
FUSED = ("(n_head + 2 * n_head_kv) * head_dim", "n_embd")
SPARSE = "block >= n_dense"
SHARED = amended((N_EXPERT_SHARED,), n_expert_shared={"config": ("num_shared_experts",)})

TOP = (
    T("model.word_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
    *TOP_TENSORS[1:],
    *NORM_TENSORS,
    *pair(ATTENTION + "dense", G + "attn_output", shape=("n_embd", "n_head * head_dim")),
)
ROUTED = (T(H + "mlp.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")), *EXPERTS)

ARCHITECTURES = (
    Architecture(
        gguf="bailingmoe",
        hf=(HFClass("BailingMoeForCausalLM", "bailing_moe", {"norm_topk_prob": True, "first_k_dense_replace": 0}),),
        hparams=(
            *MOE_HPARAMS,
            N_ROT,
            N_DENSE,
            VOCAB,
            N_FF_EXP,
            HParam("weights_scale", (), ("expert_weights_scale",), "f32", default=1.0, always=True),
            *SHARED,
            WEIGHTS_NORM,
        ),
        tensors=(
            *TOP,
            T(
                ATTENTION + "query_key_value.weight", (G + "attn_q.weight", G + "attn_k.weight", G + "attn_v.weight"),
                Split(0, ("n_head", "n_head_kv", "n_head_kv")), At(0, Rope("n_head")), At(1, Rope("n_head_kv")),
                shape=FUSED,
            ),
            *ROUTED,
            *only_when("n_expert_shared > 0", SHARED_EXPERTS),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(BPE, built_in={"norm_head": (False,)}, decoder=Decoder(neighbours=True)),
    ),
    Architecture(
        gguf="bailingmoe2",
        hf=(
            HFClass(
                "BailingMoeV2ForCausalLM", "bailing_moe_v2",
                {
                    "score_function": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 1.0,
                    "num_nextn_predict_layers": 0,
                },
            ),
        ),
        hparams=(
            *amended(MOE_HPARAMS, n_layer=WITH_NEXTN, gating={"config": ("score_function", "scoring_func")}),
            *NEXTN_HPARAMS,
            N_ROT_OF_HEAD,
            N_DENSE,
            VOCAB,
            N_FF_EXP,
            HParam(
                "n_ff_shexp", ("moe_shared_expert_intermediate_size",), ("expert_shared_feed_forward_length",),
                default="n_ff_exp * n_expert_shared", always=True,
            ),
            WEIGHTS_SCALE,
            *SHARED,
            WEIGHTS_NORM,
            N_NEXTN,
            HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default=0.5, back="n_rot / head_dim"),
        ),
        tensors=(
            *TOP,
            *pair(ATTENTION + "query_key_value", G + "attn_qkv", shape=FUSED),
            T(ATTENTION + "query_layernorm.weight", G + "attn_q_norm.weight", shape=("head_dim",)),
            T(ATTENTION + "key_layernorm.weight", G + "attn_k_norm.weight", shape=("head_dim",)),
            *only_when("block < n_dense", DENSE_FFN),
            *only_when(SPARSE, ROUTED),
            *only_when(f"{SPARSE} and n_expert_shared > 0", SHARED_EXPERTS),
            T(
                H + "mlp.gate.expert_bias", G + "exp_probs_b.bias", shape=("n_expert",), optional=True, when=SPARSE,
            ),
            *NEXTN_TENSORS,
            T(
                H + "final_layernorm.weight", G + "layer_output_norm.weight", shape=NORM, optional=True,
                when="block >= n_main",
            ),
        ),
        ignore=(*ROPE_BUFFERS, *BEYOND),
        traits=Traits(BPE, told=NEXTN_TOLD, decoder=Decoder()),
    ),
)  # fmt: skip
