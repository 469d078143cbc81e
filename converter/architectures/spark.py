"""Spark 2.5: one projection for queries, keys and values, a gate for each head, another rotary part where windows are.

Source: the reference converter's Spark2_5Model.
"""

from converter.architectures.common import (
    DECODER_HPARAMS,
    DENSE_FFN,
    N_ROT_OF_HEAD,
    NORM_TENSORS,
    PARTIAL_OF_HEAD,
    ROPE_BUFFERS,
    TOP_TENSORS,
    WINDOW_PATTERN,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits

A, SLIDING = H + "self_attn.", "rope_parameters.sliding_attention."

ARCHITECTURES = (
    Architecture(
        gguf="spark2_5",
        hf=(
            HFClass(
                "Spark2_5ForCausalLM", "spark2_5",
                constants={
                    "gate_attn_act_mode": "sigmoid", "headwise_attn_output_gate": True, "hidden_act": "gelu",
                },
            ),
        ),
        hparams=(
            *before(
                "rms_eps",
                (HParam("rope_theta_swa", (SLIDING + "rope_theta",), ("rope.freq_base_swa",), "f32"),),
                amended(DECODER_HPARAMS, n_vocab={"gguf": ("vocab_size",)}),
            ),
            *WINDOW_PATTERN,
            N_ROT_OF_HEAD,
            HParam("n_rot_swa", (), ("rope.dimension_count_swa",), default="int(head_dim * partial_swa)", always=True),
            PARTIAL_OF_HEAD,
            HParam(
                "partial_swa", (SLIDING + "partial_rotary_factor",), (), "f32", default=1.0,
                back="n_rot_swa / head_dim",
            ),
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            T(
                A + "q_k_v_proj.weight", G + "attn_qkv.weight",
                shape=("(n_head + 2 * n_head_kv) * head_dim", "n_embd"),
            ),
            T(A + "g_proj.weight", G + "attn_gate.weight", shape=("n_head", "n_embd")),
            T(A + "o_proj.weight", G + "attn_output.weight", shape=("n_embd", "n_head * head_dim")),
            *DENSE_FFN,
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(BPE, built_in={"hidden_act": ("gelu",)}, decoder=Decoder("gelu")),
    ),
)  # fmt: skip
