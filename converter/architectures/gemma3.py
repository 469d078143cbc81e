"""Gemma 3, EmbeddingGemma. Some blocks slide over a window and turn by another base than those that see all.

Source: the reference converter's Gemma3Model and EmbeddingGemma; llama.cpp's gemma3.cpp and gemma-embedding.cpp for
what the runtime knows by itself; transformers' configuration classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    DENSE_LAYERS,
    DENSE_LINEAR,
    DENSE_TENSORS,
    POOLING,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.gemma import NORM_TENSORS_LESS_ONE, TOP_TENSORS_LESS_ONE
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before
from converter.architectures.styles import GEMMA3
from converter.architectures.traits import Decoder, Encoder, SlidingWindow, Traits
from converter.tensors.ops import Add

DEFAULTS = {"rope_local_base_freq": 10000.0}
# The towers of images and what leads from them to the text, which another file has.
VISION = (
    "vision_tower.{rest}", "model.vision_tower.{rest}", "multi_modal_projector.{rest}",
    "model.multi_modal_projector.{rest}",
)
BUILT_IN = {"hidden_activation": ("gelu_pytorch_tanh",), "hidden_act": ("gelu_pytorch_tanh", "gelu")}

ROPE_THETA_SWA = HParam(
    "rope_theta_swa", ("rope_local_base_freq", "rope_parameters.sliding_attention.rope_theta"),
    ("rope.freq_base_swa",), "f32",
)
WINDOW = HParam("window", ("sliding_window",), ("attention.sliding_window",), default=0, when="period != 1")
HPARAMS = (
    *before("rms_eps", (ROPE_THETA_SWA,), amended(DECODER_HPARAMS, n_ctx={"required": True})),
    HParam("final_softcap", ("final_logit_softcapping",), ("final_logit_softcapping",), "f32"),
    # One of so many blocks sees all, the last of them; where every block does, no window is written.
    HParam("period", ("sliding_window_pattern",), (), default=6),
    WINDOW,
    HParam(
        "layer_types", ("layer_types",), (), "str[]", per_block=True,
        default="'sliding_attention' if (block + 1) % period > 0 else 'full_attention'",
    ),
    HParam(
        "query_scale", ("query_pre_attn_scalar",), (), "f32", default="n_embd // n_head if n_layer == 62 else head_dim"
    ),
    ATTENTION_BIAS,
)
QK_NORM_LESS_ONE = (
    T(H + "self_attn.q_norm.weight", G + "attn_q_norm.weight", Add(1.0), shape=("head_dim",)),
    T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", Add(1.0), shape=("head_dim",)),
)
BLOCK_TENSORS = (*NORM_TENSORS_LESS_ONE, *ATTENTION, *QK_NORM_LESS_ONE, *DENSE_FFN)

ARCHITECTURES = (
    Architecture(
        gguf="gemma3",
        hf=(
            HFClass("Gemma3ForCausalLM", "gemma3_text", DEFAULTS),
            HFClass("Gemma3ForConditionalGeneration", "gemma3", DEFAULTS, when="0"),
        ),
        hparams=HPARAMS,
        tensors=(*TOP_TENSORS_LESS_ONE, TOP_TENSORS[2], *BLOCK_TENSORS),
        ignore=(*ROPE_BUFFERS, *VISION),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            GEMMA3, window=SlidingWindow(6), built_in=BUILT_IN,
            decoder=Decoder(
                "gelu_tanh", embedding="sqrt(n_embd)", scale="query_scale ** -0.5",
                theta="rope_theta_swa if layer_types == 'sliding_attention' else rope_theta",
                scaled="layer_types == 'full_attention'",
            ),
        ),
    ),
    Architecture(
        gguf="gemma-embedding",
        # Every token sees every other: the class halves the window to both sides.
        hf=(
            HFClass(
                "Gemma3TextModel", "gemma3_text", DEFAULTS, head=False,
                constants={"use_bidirectional_attention": True},
            ),
        ),
        hparams=(*HPARAMS, *DENSE_LAYERS, POOLING),
        tensors=(*TOP_TENSORS_LESS_ONE, *BLOCK_TENSORS, *DENSE_TENSORS),
        ignore=(*ROPE_BUFFERS, "lm_head.weight"),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            GEMMA3, window=SlidingWindow(6), told=(DENSE_LINEAR,),
            built_in={**BUILT_IN, "use_bidirectional_attention": (True,)},
            encoder=Encoder(
                "gelu_tanh", embedding="sqrt(n_embd)", scale="query_scale ** -0.5",
                scaled="layer_types == 'full_attention'",
            ),
        ),
    ),
)
