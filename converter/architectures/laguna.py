"""Laguna: gated attention whose blocks have different numbers of heads; windows in three of four blocks; experts.

Source: the reference converter's LagunaModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION_BIAS,
    DENSE_FFN,
    KV,
    N_ROT_OF_HEAD,
    NORM_TENSORS,
    PARTIAL_OF_HEAD,
    QK_NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.moe import EXPERTS, N_DENSE, N_FF_EXP, WEIGHTS_SCALE
from converter.architectures.qwen import MOE_HPARAMS
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, only_when, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import SIGMOID, Decoder, SlidingWindow, Traits

A, B, SHARED = H + "self_attn.", G + "attn_", H + "mlp.shared_expert."
SLIDING = "rope_parameters.sliding_attention."

ARCHITECTURES = (
    Architecture(
        gguf="laguna",
        hf=(
            HFClass(
                "LagunaForCausalLM", "laguna",
                {SLIDING + "rope_theta": 10000.0},
            ),
        ),
        hparams=(
            *before(
                "rms_eps",
                (HParam("rope_theta_swa", (SLIDING + "rope_theta",), ("rope.freq_base_swa",), "f32"),),
                amended(
                    MOE_HPARAMS, n_vocab={"gguf": ("vocab_size",)}, n_head={"always": True, "back": "first(heads)"},
                ),
            ),
            HParam(
                "heads", ("num_attention_heads_per_layer",), ("attention.head_count",), "i32[]", per_block=True,
                always=True, default="n_head",
            ),
            HParam("window", ("sliding_window",), ("attention.sliding_window",), default=0, null=0),
            N_FF_EXP,
            HParam(
                "n_ff_shexp", ("shared_expert_intermediate_size",), ("expert_shared_feed_forward_length",),
                required=True,
            ),
            HParam("weights_norm", (), ("expert_weights_norm",), "bool", default=True, always=True),
            *amended((WEIGHTS_SCALE,), weights_scale={"config": ("moe_routed_scaling_factor",)}),
            HParam("sigmoid", (), ("expert_gating_func",), default=2, always=True),
            *amended((N_DENSE,), n_dense={"config": (), "default": "sum(is_dense)", "always": True}),
            N_ROT_OF_HEAD,
            HParam("n_rot_swa", (), ("rope.dimension_count_swa",), default="int(head_dim * partial_swa)", always=True),
            PARTIAL_OF_HEAD,
            HParam(
                "partial_swa", (SLIDING + "partial_rotary_factor",), (), "f32", default=1.0,
                back="n_rot_swa / head_dim",
            ),
            HParam(
                "mlp_kinds", ("mlp_layer_types",), (), "str[]", per_block=True,
                default="'dense' if block == 0 else 'sparse'", back="'dense' if block < n_dense else 'sparse'",
            ),
            HParam("is_dense", (), (), "bool[]", per_block=True, default="mlp_kinds == 'dense'"),
            # Of four blocks the first sees all, which no key says.
            HParam(
                "layer_types", ("layer_types",), (), "str[]", per_block=True, default="'full_attention'",
                back="'sliding_attention' if window > 0 and block % 4 > 0 else 'full_attention'",
            ),
            # A gate for each head, or for each element.
            HParam(
                "gates", ("gating",), (), "bool or str", default=True,
                back="'per-element' if shape('blk.0.attn_gate.weight', 0) > heads[0] else 1",
            ),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *pair(A + "q_proj", B + "q", shape=("heads * head_dim", "n_embd")),
            *pair(A + "k_proj", B + "k", shape=(KV, "n_embd")),
            *pair(A + "v_proj", B + "v", shape=(KV, "n_embd")),
            *pair(A + "o_proj", B + "output", shape=("n_embd", "heads * head_dim")),
            T(
                A + "g_proj.weight", B + "gate.weight",
                shape=("heads * head_dim if gates == 'per-element' else heads", "n_embd"),
            ),
            *QK_NORM,
            *only_when("block < n_dense", DENSE_FFN),
            *only_when(
                "block >= n_dense",
                (
                    T(H + "mlp.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
                    T(H + "mlp.experts.e_score_correction_bias", G + "exp_probs_b.bias", shape=("n_expert",)),
                    *EXPERTS,
                    T(SHARED + "gate_proj.weight", G + "ffn_gate_shexp.weight", shape=("n_ff_shexp", "n_embd")),
                    T(SHARED + "up_proj.weight", G + "ffn_up_shexp.weight", shape=("n_ff_shexp", "n_embd")),
                    T(SHARED + "down_proj.weight", G + "ffn_down_shexp.weight", shape=("n_embd", "n_ff_shexp")),
                ),
            ),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(
            BPE, window=SlidingWindow(4, full_first=True),
            decoder=Decoder(attention_gate="Softplus", scaled="layer_types == 'full_attention'", gating=SIGMOID),
        ),
    ),
)  # fmt: skip
