"""Seed-OSS: Qwen2 with heads of their own width.

Source: the reference converter's SeedOssModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DECODER_HPARAMS,
    DENSE_FFN,
    MLP_BIAS,
    NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits

ARCHITECTURES = (
    Architecture(
        gguf="seed_oss",
        hf=(
            HFClass(
                "SeedOssForCausalLM",
                "seed_oss",
            ),
        ),
        hparams=(
            *DECODER_HPARAMS,
            HParam(
                "attention_bias", ("attention_bias",), (), "bool", default=True, back="present('blk.0.attn_q.bias')"
            ),
            HParam(
                "attention_out_bias", ("attention_out_bias",), (), "bool",
                default=False, back="present('blk.0.attn_output.bias')",
            ),
            MLP_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
            T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
            *ATTENTION,
            *DENSE_FFN,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, decoder=Decoder(ffn_norm="post_attention_norm")),
    ),
)
