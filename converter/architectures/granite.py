"""Granite and Granite MoE: Llama with four scales; heads are always a part of the width.

Source: the reference converter's GraniteModel and GraniteMoeModel; transformers' configuration classes for defaults.
"""

from converter.architectures.common import (
    ATTENTION_BIAS,
    ATTENTION_INTERLEAVED,
    DENSE_FFN,
    LLAMA_HPARAMS,
    MLP_BIAS,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    WINDOW_PATTERN,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when, read_only
from converter.architectures.styles import LLAMA
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import Split

MOE, SHARED = H + "block_sparse_moe.", H + "shared_mlp."
DEFAULTS = {"num_key_value_heads": "num_attention_heads"}

HPARAMS = (
    *amended(LLAMA_HPARAMS, head_dim={"config": (), "gguf": ()}),
    HParam("attention_scale", ("attention_multiplier",), ("attention.scale",), "f32"),
    HParam("embedding_scale", ("embedding_multiplier",), ("embedding_scale",), "f32"),
    HParam("residual_scale", ("residual_multiplier",), ("residual_scale",), "f32"),
    HParam("logit_scale", ("logits_scaling",), ("logit_scale",), "f32"),
    ATTENTION_BIAS,
)
# Gates and ups in one tensor, as they are stored.
FUSED_EXPERTS = (
    T(MOE + "router.layer.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
    T(MOE + "experts.gate_up_proj", G + "ffn_gate_up_exps.weight", shape=("n_expert", "2 * n_ff", "n_embd")),
    T(MOE + "experts.down_proj", G + "ffn_down_exps.weight", shape=("n_expert", "n_embd", "n_ff")),
    *read_only(
        (
            T(MOE + "input_linear.weight", G + "ffn_gate_up_exps.weight", shape=("n_expert", "2 * n_ff", "n_embd")),
            T(MOE + "output_linear.weight", G + "ffn_down_exps.weight", shape=("n_expert", "n_embd", "n_ff")),
        )
    ),
)
FUSED_SHARED = (
    T(SHARED + "input_linear.weight", G + "ffn_up_shexp.weight", shape=("2 * n_ff_shexp", "n_embd")),
    T(SHARED + "output_linear.weight", G + "ffn_down_shexp.weight", shape=("n_embd", "n_ff_shexp")),
)

ARCHITECTURES = (
    Architecture(
        gguf="granite",
        hf=(HFClass("GraniteForCausalLM", "granite", DEFAULTS),),
        hparams=(*HPARAMS, MLP_BIAS),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION_INTERLEAVED, *DENSE_FFN),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(LLAMA, decoder=Decoder(logits="1 / logit_scale")),
    ),
    Architecture(
        gguf="granitemoe",
        hf=(
            HFClass("GraniteMoeForCausalLM", "granitemoe", DEFAULTS, when="n_shared == 0"),
            HFClass("GraniteMoeSharedForCausalLM", "granitemoeshared", DEFAULTS, when="n_shared > 0"),
        ),
        hparams=(
            *HPARAMS,
            HParam(
                "n_shared", ("shared_intermediate_size",), (),
                default=0, back="n_ff_shexp if present('blk.0.ffn_gate_shexp.weight') else 0",
            ),
            HParam(
                "n_ff_shexp", (), ("expert_shared_feed_forward_length",),
                default="n_shared", back="n_ff", always=True, when="n_shared > 0",
            ),
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION_INTERLEAVED,
            T(MOE + "router.layer.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
            T(
                MOE + "input_linear.weight", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
                Split(1, (1, 1)), shape=("n_expert", "2 * n_ff", "n_embd"),
            ),
            T(MOE + "output_linear.weight", G + "ffn_down_exps.weight", shape=("n_expert", "n_embd", "n_ff")),
            T(
                SHARED + "input_linear.weight", (G + "ffn_gate_shexp.weight", G + "ffn_up_shexp.weight"),
                Split(0, (1, 1)), shape=("2 * n_ff_shexp", "n_embd"), when="n_shared > 0",
            ),
            T(
                SHARED + "output_linear.weight", G + "ffn_down_shexp.weight",
                shape=("n_embd", "n_ff_shexp"), when="n_shared > 0",
            ),
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(LLAMA, decoder=Decoder(logits="1 / logit_scale", weights_norm=True)),
    ),
    Architecture(
        gguf="granite_swa",
        hf=(
            HFClass("GraniteSWAForCausalLM", "granite_swa", DEFAULTS, when="n_expert == 0"),
            HFClass("GraniteMoeSWAForCausalLM", "granitemoeswa", DEFAULTS, when="n_expert > 0"),
        ),
        hparams=(
            *HPARAMS,
            *amended(
                WINDOW_PATTERN,
                layer_types={"default": "'sliding_attention' if block % 4 > 0 else 'full_attention'"},
            ),
            HParam(
                "rotates", ("no_rope_layers",), ("attention.rope_pattern",), "bool[]",
                values=((1, True), (0, False)),
            ),
            HParam("n_ff_shexp", ("shared_intermediate_size",), ("expert_shared_feed_forward_length",), default=0),
            MLP_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION_INTERLEAVED,
            T(H + "self_attn.sinks", G + "attn_sinks.weight", shape=("n_head",), optional=True),
            *only_when("n_expert == 0", DENSE_FFN),
            *only_when("n_expert > 0", FUSED_EXPERTS),
            *only_when("n_expert > 0 and n_ff_shexp > 0", FUSED_SHARED),
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(LLAMA, decoder=Decoder(logits="1 / logit_scale", weights_norm=True)),
    ),
)  # fmt: skip
