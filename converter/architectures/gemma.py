"""Gemma 1 and 2. Norms are stored less one; the head is the embedding, whatever else a checkpoint stores.

Source: the reference converter's GemmaModel and Gemma2Model; llama.cpp's gemma.cpp and gemma2.cpp for what the
runtime knows by itself; transformers' configuration classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DENSE_FFN,
    N_CTX,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_LAYER,
    N_VOCAB,
    NORM,
    RMS_EPS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.styles import NO_PREFIX
from converter.architectures.traits import Decoder, SlidingWindow, TokenizerStyle, Traits
from converter.metadata import u32
from converter.tensors.ops import Add

# What the runtime computes without being told; "gelu" is what old files call the same.
BUILT_IN = {
    "hidden_act": ("gelu_pytorch_tanh", "gelu"), "hidden_activation": ("gelu_pytorch_tanh",),
    "rope.rope_theta": (10000.0,),
}

HPARAMS = (
    N_CTX,
    N_EMBD,
    N_LAYER,
    N_FF,
    N_HEAD,
    HParam("n_head_kv", ("num_key_value_heads",), ("attention.head_count_kv",), default="n_head", always=True),
    RMS_EPS,
    HParam("head_dim", ("head_dim",), ("attention.key_length", "attention.value_length"), required=True),
    N_VOCAB,
    ATTENTION_BIAS,
)

# Gemma's norms multiply by one more than is stored.
TOP_TENSORS_LESS_ONE = (
    TOP_TENSORS[0],
    T("model.norm.weight", "output_norm.weight", Add(1.0), shape=NORM),
)
NORM_TENSORS_LESS_ONE = (
    T(H + "input_layernorm.weight", G + "attn_norm.weight", Add(1.0), shape=NORM),
    T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", Add(1.0), shape=NORM),
    T(H + "pre_feedforward_layernorm.weight", G + "ffn_norm.weight", Add(1.0), shape=NORM),
    T(H + "post_feedforward_layernorm.weight", G + "post_ffw_norm.weight", Add(1.0), shape=NORM),
)
# Some quantizers store the head that the embedding stands in for.
HEAD = ("lm_head.weight",)

ARCHITECTURES = (
    Architecture(
        gguf="gemma",
        hf=(HFClass("GemmaForCausalLM", "gemma"),),
        hparams=HPARAMS,
        tensors=(
            *TOP_TENSORS_LESS_ONE,
            NORM_TENSORS_LESS_ONE[0],
            T(H + "post_attention_layernorm.weight", G + "ffn_norm.weight", Add(1.0), shape=NORM),
            *ATTENTION,
            *DENSE_FFN,
        ),
        ignore=(*ROPE_BUFFERS, *HEAD),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            TokenizerStyle(("spm", "hf-spm"), last=(("eot_token_id", u32(107)), *NO_PREFIX)),
            built_in=BUILT_IN, decoder=Decoder("gelu_tanh", embedding="sqrt(n_embd)")),
    ),
    Architecture(
        gguf="gemma2",
        hf=(HFClass("Gemma2ForCausalLM", "gemma2"),),
        hparams=(
            *HPARAMS,
            HParam("attn_softcap", ("attn_logit_softcapping",), ("attn_logit_softcapping",), "f32"),
            HParam("final_softcap", ("final_logit_softcapping",), ("final_logit_softcapping",), "f32"),
            HParam("window", ("sliding_window",), ("attention.sliding_window",)),
            HParam(
                "layer_types", ("layer_types",), (), "str[]", per_block=True,
                default="'full_attention' if block % 2 else 'sliding_attention'",
            ),
            HParam(
                "query_scale", ("query_pre_attn_scalar",), (),
                default="n_embd // n_head if n_layer == 46 else head_dim",
            ),
        ),
        tensors=(*TOP_TENSORS_LESS_ONE, *NORM_TENSORS_LESS_ONE, *ATTENTION, *DENSE_FFN),
        ignore=(*ROPE_BUFFERS, *HEAD),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            TokenizerStyle(("spm", "hf-spm"), last=NO_PREFIX),
            window=SlidingWindow(2, size=4096),
            built_in=BUILT_IN, decoder=Decoder("gelu_tanh", embedding="sqrt(n_embd)", scale="query_scale ** -0.5")),
    ),
)
