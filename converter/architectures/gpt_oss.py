"""gpt-oss, with experts in BF16 or packed as MXFP4, which they stay.

Gate and up projection of an expert are interleaved, row by row. In BF16 a matrix is stored with its outputs last.

Source: the reference converter's GptOssModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import CHOSEN, Decoder, SlidingWindow, Traits
from converter.tensors.ops import ROW, Reshape, Split, Transpose

EXPERTS = H + "mlp.experts."
GATE, UP, DOWN = G + "ffn_gate_exps", G + "ffn_up_exps", G + "ffn_down_exps"
APART = (
    Reshape(("n_expert", "2 * n_ff", ROW), ("n_expert", "n_ff", 2, ROW)),
    Split(2, (1, 1)),
    Reshape(("n_expert", "n_ff", 1, ROW), ("n_expert", "n_ff", ROW)),
)

ARCHITECTURES = (
    Architecture(
        gguf="gpt-oss",
        hf=(
            HFClass(
                "GptOssForCausalLM",
                "gpt_oss",
                constants={"swiglu_limit": 7.0},
            ),
        ),
        hparams=(
            *DECODER_HPARAMS,
            HParam("window", ("sliding_window",), ("attention.sliding_window",), required=True),
            HParam("n_ff_exp", (), ("expert_feed_forward_length",), default="n_ff", always=True),
            HParam(
                "kinds", ("layer_types",), (), "str[]", per_block=True,
                back="'full_attention' if block % 2 else 'sliding_attention'",
            ),
            HParam("truncate", ("rope.truncate",), (), "bool", back=False),
            HParam(
                "packed", (), (), "bool", default="present('model.layers.0.mlp.experts.gate_up_proj_blocks')",
                back="stored('blk.0.ffn_gate_exps.weight', 'MXFP4')",
            ),
            HParam(
                "packing", ("quantization_config.quant_method",), (), "str", back="'mxfp4'", when="packed"
            ),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
            T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
            *ATTENTION,
            T(H + "self_attn.sinks", G + "attn_sinks.weight", shape=("n_head",)),
            *pair(H + "mlp.router", G + "ffn_gate_inp", shape=("n_expert", "n_embd"), bias=True),
            T(
                EXPERTS + "gate_up_proj_blocks", (GATE + ".weight", UP + ".weight"), *APART,
                shape=("n_expert", "2 * n_ff", "n_embd"), when="packed",
            ),
            T(
                EXPERTS + "down_proj_blocks", DOWN + ".weight", shape=("n_expert", "n_embd", "n_ff"), when="packed",
            ),
            T(
                EXPERTS + "gate_up_proj", (GATE + ".weight", UP + ".weight"), Transpose((0, 2, 1)), *APART,
                shape=("n_expert", "n_embd", "2 * n_ff"), when="not packed",
            ),
            T(
                EXPERTS + "down_proj", DOWN + ".weight", Transpose((0, 2, 1)),
                shape=("n_expert", "n_ff", "n_embd"), when="not packed",
            ),
            T(
                EXPERTS + "gate_up_proj_bias", (GATE + ".bias", UP + ".bias"),
                Reshape(("n_expert", "2 * n_ff"), ("n_expert", "n_ff", 2)), Split(2, (1, 1)),
                Reshape(("n_expert", "n_ff", 1), ("n_expert", "n_ff")),
                shape=("n_expert", "2 * n_ff"),
            ),
            T(EXPERTS + "down_proj_bias", DOWN + ".bias", shape=("n_expert", "n_embd")),
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            BPE,
            window=SlidingWindow(2),
            built_in={"swiglu_alpha": (1.702,), "swiglu_limit": (7.0,), "rope.truncate": (False,)},
            decoder=Decoder(
                "clamped", ffn_norm="post_attention_norm", yarn_rounds=False, gating=CHOSEN, weights_norm=False,
            ),
        ),
    ),
)  # fmt: skip
