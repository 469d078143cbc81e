"""Jais 2.

Source: the reference converter's Jais2Model; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DENSE_FFN,
    LAYER_NORM_HPARAMS,
    N_ROT,
    NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair, without
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits

ARCHITECTURES = (
    Architecture(
        gguf="jais2",
        hf=(
            HFClass(
                "Jais2ForCausalLM",
                "jais2",
                {"num_key_value_heads": "num_attention_heads", "head_dim": "hidden_size // num_attention_heads"},
            ),
        ),
        hparams=(
            *LAYER_NORM_HPARAMS,
            N_ROT,
            HParam(
                "attention_bias", ("attention_bias",), (), "bool", default=True, back="present('blk.0.attn_q.bias')"
            ),
            HParam("mlp_bias", ("mlp_bias",), (), "bool", default=True, back="present('blk.0.ffn_down.bias')"),
        ),
        tensors=(
            *TOP_TENSORS,
            T("model.norm.bias", "output_norm.bias", shape=NORM),
            *pair(H + "input_layernorm", G + "attn_norm", shape=NORM, bias=True),
            *pair(H + "post_attention_layernorm", G + "ffn_norm", shape=NORM, bias=True),
            *ATTENTION,
            *without(DENSE_FFN, G + "ffn_gate.weight", G + "ffn_gate.bias"),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(BPE, large="n_layer == 68", built_in={"hidden_act": ("relu2",)}, decoder=Decoder("relu2")),
    ),
)
