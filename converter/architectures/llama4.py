"""Llama 4: experts in every nth block, no rotation and a view of everything in every fourth.

Source: the reference converter's Llama4Model; llama.cpp's llama4.cpp for what the runtime knows by itself;
transformers' configuration classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    LLAMA3_ROPE_FREQS,
    LLAMA_HPARAMS,
    NORM_TENSORS,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended
from converter.architectures.styles import BPE
from converter.architectures.traits import SIGMOID, Decoder, SlidingWindow, Traits
from converter.tensors.ops import Split, Transpose

MLP = H + "feed_forward."
EXPERTS, SHARED = MLP + "experts.", MLP + "shared_expert."

ARCHITECTURES = (
    Architecture(
        gguf="llama4",
        hf=(
            HFClass("Llama4ForCausalLM", "llama4_text"),
            HFClass("Llama4ForConditionalGeneration", "llama4", when="0"),
        ),
        hparams=(
            *amended(LLAMA_HPARAMS, n_ff={"config": ("intermediate_size_mlp",)}),
            HParam(
                "moe_step", ("interleave_moe_layer_step",), ("interleave_moe_layer_step",), default=1, always=True
            ),
            HParam(
                "n_ff_exp", ("intermediate_size",), ("expert_feed_forward_length",), required=True
            ),
            # Only that there is no window is written.
            HParam(
                "window", (), ("attention.sliding_window",), values=((0, 0),),
                default="8192 if 'chunked_attention' in layer_types else 0", back=8192, always=True,
            ),
            HParam("is_moe", (), (), "bool[]", default="moe_step > 0 and (block + 1) % moe_step == 0", per_block=True),
            HParam(
                "layer_types", ("layer_types",), (), "str[]", per_block=True,
                default="'chunked_attention' if (block + 1) % 4 else 'full_attention'",
                back="'chunked_attention' if window > 0 and (block + 1) % 4 else 'full_attention'",
            ),
            HParam(
                "rotates", ("no_rope_layers",), (), "u32[]", per_block=True,
                default="1 if (block + 1) % 4 else 0", back="1 if window == 0 or (block + 1) % 4 else 0",
            ),
            HParam("chunk", ("attention_chunk_size",), (), default=8192),
            HParam("use_qk_norm", ("use_qk_norm",), (), "bool", default=True, back="n_expert != 128"),
            HParam("tuning", ("attn_temperature_tuning",), (), "bool or u32", default=True, back="window > 0"),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            T(MLP + "gate_proj.weight", G + "ffn_gate.weight", shape=("n_ff", "n_embd"), when="not is_moe"),
            T(MLP + "up_proj.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd"), when="not is_moe"),
            T(MLP + "down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff"), when="not is_moe"),
            T(MLP + "router.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd"), when="is_moe"),
            T(
                EXPERTS + "gate_up_proj", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
                Transpose((0, 2, 1)), Split(1, (1, 1)), shape=("n_expert", "n_embd", "2 * n_ff_exp"), when="is_moe",
            ),
            T(
                EXPERTS + "down_proj", G + "ffn_down_exps.weight",
                Transpose((0, 2, 1)), shape=("n_expert", "n_ff_exp", "n_embd"), when="is_moe",
            ),
            T(SHARED + "gate_proj.weight", G + "ffn_gate_shexp.weight", shape=("n_ff_exp", "n_embd"), when="is_moe"),
            T(SHARED + "up_proj.weight", G + "ffn_up_shexp.weight", shape=("n_ff_exp", "n_embd"), when="is_moe"),
            T(SHARED + "down_proj.weight", G + "ffn_down_shexp.weight", shape=("n_embd", "n_ff_exp"), when="is_moe"),
            LLAMA3_ROPE_FREQS,
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            BPE,
            window=SlidingWindow(4, size=8192),
            built_in={"attn_temperature_tuning": (True, 4), "layer_types": ("chunked_attention", "full_attention")},
            decoder=Decoder(
                neighbours=True, rotates="rotates", unit="rotates and use_qk_norm", chunked=True,
                temperature=(0.1, 8192), gating=SIGMOID, weights_norm=False, weights_first=True, chosen_by_logits=True,
            ),
        ),
    ),
)
