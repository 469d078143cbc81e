"""StableLM.

Source: the reference converter's StableLMModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DENSE_FFN,
    HEAD_SIZE,
    N_CTX,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_LAYER,
    N_VOCAB,
    NORM,
    OTHER_INPUTS,
    PARALLEL_RESIDUAL,
    ROPE_BUFFERS,
    ROPE_THETA_UNUSUAL,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits

ARCHITECTURES = (
    Architecture(
        gguf="stablelm",
        hf=(
            HFClass("StableLmForCausalLM", "stablelm"),
            HFClass("StableLMEpochForCausalLM", "stablelm_epoch", {"use_parallel_residual": True}, when="0"),
            HFClass("LlavaStableLMEpochForCausalLM", "llava_stablelm", {"use_parallel_residual": True}, when="0"),
        ),
        hparams=(
            N_CTX,
            N_EMBD,
            N_LAYER,
            N_FF,
            HParam("n_rot", (), ("rope.dimension_count",), default="int(partial * head_dim)", always=True),
            N_HEAD,
            HParam(
                "n_head_kv", ("num_key_value_heads",), ("attention.head_count_kv",), default="n_head", always=True
            ),
            PARALLEL_RESIDUAL,
            HParam("norm_eps", ("layer_norm_eps", "norm_eps"), ("attention.layer_norm_epsilon",), "f32", required=True),
            ROPE_THETA_UNUSUAL,
            HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default=0.25, back="n_rot / head_dim"),
            HParam(
                "qk_norm", ("qk_layernorm",), (), "bool", default=False, back="present('blk.0.attn_q_norm.weight')"
            ),
            HParam("qkv_bias", ("use_qkv_bias",), (), "bool", default=False, back="present('blk.0.attn_q.bias')"),
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            *TOP_TENSORS,
            T("model.norm.bias", "output_norm.bias", shape=NORM),
            *pair(H + "input_layernorm", G + "attn_norm", shape=NORM, bias=True),
            *pair(H + "post_attention_layernorm", G + "ffn_norm", shape=NORM, bias=True, when="not parallel"),
            *ATTENTION,
            T(
                H + "self_attn.q_layernorm.norms.{expert}.weight", G + "attn_q_norm.weight",
                shape=("head_dim",), count="n_head", when="qk_norm",
            ),
            T(
                H + "self_attn.k_layernorm.norms.{expert}.weight", G + "attn_k_norm.weight",
                shape=("head_dim",), count="n_head_kv", when="qk_norm",
            ),
            *DENSE_FFN,
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "model.mm_projector.{rest}"),
        traits=Traits(BPE, built_in={"use_parallel_residual": (True,)}, decoder=Decoder()),
    ),
)  # fmt: skip
