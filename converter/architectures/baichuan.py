"""Baichuan: Llama with queries, keys and values in one matrix; and Orion, Llama with another norm.

Source: the reference converter's BaichuanModel and OrionModel; the configuration classes that the models bring along
for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DECODER_HPARAMS,
    DENSE_FFN,
    HEAD_SIZE,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_LAYER,
    N_ROT,
    N_VOCAB,
    NORM,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    H,
    Q,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair
from converter.architectures.styles import SPM
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import At, Rope, Split

LAYOUT = HParam("layout", (), ("tensor_data_layout",), "str", default="'Meta AI original pth'", always=True)
DEFAULTS = {
    "num_key_value_heads": "num_attention_heads", "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
}

ARCHITECTURES = (
    Architecture(
        gguf="baichuan",
        hf=(
            HFClass("BaichuanForCausalLM", "baichuan", {"rms_norm_eps": 1e-6}),
            HFClass("BaiChuanForCausalLM", "baichuan", {"rms_norm_eps": 1e-6}, when="0"),
        ),
        hparams=(
            *DECODER_HPARAMS,
            LAYOUT,
            N_ROT,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            T(
                H + "self_attn.W_pack.weight", (G + "attn_q.weight", G + "attn_k.weight", G + "attn_v.weight"),
                Split(0, (1, 1, 1)), At(0, Rope("n_head")), At(1, Rope("n_head")), shape=("3 * n_embd", "n_embd"),
            ),
            T(H + "self_attn.o_proj.weight", G + "attn_output.weight", shape=("n_embd", Q)),
            *DENSE_FFN,
        ),
        ignore=ROPE_BUFFERS,
        # What is told by how many blocks there are: 7B rotates, 13B has slopes.
        traits=Traits(SPM, decoder=Decoder(rotates="n_layer == 32", alibi="8 if n_layer == 40 else 0")),
    ),
    Architecture(
        gguf="orion",
        hf=(HFClass("OrionForCausalLM", "orion", DEFAULTS),),
        hparams=(
            LAYOUT,
            HParam(
                "n_ctx", ("max_sequence_length", "max_position_embeddings", "model_max_length"), ("context_length",),
                required=True,
            ),
            N_EMBD,
            N_LAYER,
            N_FF,
            N_HEAD,
            HParam(
                "n_head_kv", ("num_key_value_heads",), ("attention.head_count_kv",), default="n_head", always=True
            ),
            # The config calls it so, but its norms subtract the mean.
            HParam("norm_eps", ("rms_norm_eps",), ("attention.layer_norm_epsilon",), "f32", required=True),
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            *TOP_TENSORS,
            T("model.norm.bias", "output_norm.bias", shape=NORM),
            *pair(H + "input_layernorm", G + "attn_norm", shape=NORM, bias=True),
            *pair(H + "post_attention_layernorm", G + "ffn_norm", shape=NORM, bias=True),
            *ATTENTION,
            *DENSE_FFN,
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(SPM, decoder=Decoder()),
    ),
)
