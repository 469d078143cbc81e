"""Muse Glimmer's text model: windows in three of four blocks, which alone turn; a gate after the attention.

Queries and keys have norms without weights, and a factor: the GGUF has weights that say it. Source: the reference
converter's MuseGlimmerModel; llama.cpp's muse-glimmer.cpp; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION_INTERLEAVED,
    DECODER_HPARAMS,
    DENSE_FFN,
    NORM,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, moved
from converter.architectures.traits import Decoder, SlidingWindow, TokenizerStyle, Traits
from converter.tensors.ops import Add

ARCHITECTURES = (
    Architecture(
        gguf="muse-glimmer",
        # Its text model has no class of its own.
        hf=(HFClass("MuseGlimmerForConditionalGeneration", "muse_glimmer", nested="muse_glimmer_text"),),
        hparams=(
            *amended(
                DECODER_HPARAMS,
                head_dim={"required": True, "default": None},
                rms_eps={"default": 1e-5, "always": True},
            ),
            HParam(
                "final_softcap", ("final_logit_softcapping",), ("final_logit_softcapping",), "f32", required=True
            ),
            HParam("logit_scale", ("output_multiplier",), ("logit_scale",), "f32", required=True),
            HParam("window", ("sliding_window",), ("attention.sliding_window",), required=True),
            HParam(
                "slides", (), ("attention.sliding_window_pattern",), "bool[]", per_block=True, always=True,
                default="layer_types == 'sliding_attention'",
            ),
            HParam(
                "layer_types", ("layer_types",), (), "str[]", per_block=True,
                default="'full_attention' if (n_layer - 1 - block) % 4 == 0 else 'sliding_attention'",
                back="'sliding_attention' if slides else 'full_attention'",
            ),
            HParam(
                "thetas", ("layer_rope_theta",), (), "f32[]", per_block=True,
                default="0 if (n_layer - 1 - block) % 4 == 0 else rope_theta", back="rope_theta if slides else 0",
            ),
            HParam("q_scale", ("qk_scale_factor",), (), "f32"),
        ),
        tensors=(
            *moved(
                "model.", "model.language_model.",
                (
                    *TOP_TENSORS[:2],
                    *ATTENTION_INTERLEAVED,
                    *DENSE_FFN,
                    T(H + "self_attn.gate_proj.weight", G + "attn_gate.weight", shape=("n_head * head_dim", "n_embd")),
                    T(H + "input_layernorm.weight", G + "attn_norm.weight", Add(1), shape=NORM),
                    T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", Add(1), shape=NORM),
                    T(H + "pre_feedforward_layernorm.weight", G + "ffn_norm.weight", Add(1), shape=NORM),
                    T(H + "post_feedforward_layernorm.weight", G + "post_ffw_norm.weight", Add(1), shape=NORM),
                ),
            ),
            TOP_TENSORS[2],
            T(
                (), (G + "attn_q_norm.weight", G + "attn_k_norm.weight"), generator="factor_of_queries",
                shape=("head_dim",),
            ),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "model.vision_adapter.{rest}", "model.vision_projection.{rest}"),
        traits=Traits(
            TokenizerStyle(("bpe",), ids=(("eot", "<|eot|>"),)),
            window=SlidingWindow(4),
            decoder=Decoder(rotates="slides", embedding_norm=True, late_epsilon=1e-8, logits="logit_scale"),
            built_in={"post_norm_eps": (1e-8,)},
        ),
    ),
)
