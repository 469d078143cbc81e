"""Nemotron and Minitron: norms are stored less one.

Source: the reference converter's NemotronModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    MLP_BIAS,
    NORM,
    PARTIAL_OF_WIDTH,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, without
from converter.architectures.traits import Decoder, TokenizerStyle, Traits
from converter.metadata import u32
from converter.tensors.ops import Add

ARCHITECTURES = (
    Architecture(
        gguf="nemotron",
        hf=(
            HFClass(
                "NemotronForCausalLM",
                "nemotron",
                {"num_key_value_heads": "num_attention_heads", "head_dim": "hidden_size // num_attention_heads"},
            ),
        ),
        hparams=(
            *amended(
                DECODER_HPARAMS,
                rope_type={"back": "scaling if scaling != 'none' else 'default'"},
                n_vocab={"gguf": ("vocab_size",)},
                rms_eps={"config": ("norm_eps",), "gguf": ("attention.layer_norm_rms_epsilon",)},
            ),
            # Its norms subtract the mean, and the reference writes their epsilon under both names.
            HParam("norm_eps", (), ("attention.layer_norm_epsilon",), "f32", default="rms_eps", always=True),
            *PARTIAL_OF_WIDTH,
            HParam(
                "scaling", (), ("rope.scaling.type",), "str", always=True, back="'none'",
                default="'linear' if rope_type == 'linear' else 'none'",
            ),
            ATTENTION_BIAS,
            MLP_BIAS,
        ),
        tensors=(
            TOP_TENSORS[0],
            T("model.norm.weight", "output_norm.weight", Add(1.0), shape=NORM),
            T("model.norm.bias", "output_norm.bias", shape=NORM),
            TOP_TENSORS[2],
            T(H + "input_layernorm.weight", G + "attn_norm.weight", Add(1.0), shape=NORM),
            T(H + "input_layernorm.bias", G + "attn_norm.bias", shape=NORM),
            T(H + "post_attention_layernorm.weight", G + "ffn_norm.weight", Add(1.0), shape=NORM),
            T(H + "post_attention_layernorm.bias", G + "ffn_norm.bias", shape=NORM),
            *ATTENTION,
            *without(DENSE_FFN, G + "ffn_gate.weight", G + "ffn_gate.bias"),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(
            TokenizerStyle(
                ("spm", "hf-spm", "bpe"), last=(("padding_token_id", u32(0)), ("unknown_token_id", u32(1)))
            ),
            built_in={"hidden_act": ("relu2",)}, decoder=Decoder("relu2")),
    ),
)
