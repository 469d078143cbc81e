"""EXAONE 3 and 3.5: Llama under other names; EXAONE 4, whose norms follow and whose blocks slide.

Source: the reference converter's ExaoneModel and Exaone4Model; transformers' configuration class, and that which the
older models bring along, for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DECODER_HPARAMS,
    DENSE_FFN,
    KV,
    LLAMA3_ROPE_FREQS,
    NORM,
    QK_NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    WINDOW_PATTERN,
    G,
    H,
    Q,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before
from converter.architectures.styles import BPE
from converter.architectures.traits import SlidingWindow, Traits

B = "transformer.h.{block}."
ATTN = B + "attn.attention."

EXAONE4_DEFAULTS = {
    "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048,
    "sliding_window": 4096,
}

ARCHITECTURES = (
    Architecture(
        gguf="exaone",
        hf=(
            HFClass(
                "ExaoneForCausalLM",
                "exaone",
                {
                    "rope_theta": 10000.0, "max_position_embeddings": 2048,
                    "num_key_value_heads": "num_attention_heads",
                },
            ),
        ),
        hparams=(
            *before(
                "n_expert",
                (HParam("norm_eps", ("layer_norm_epsilon",), ("attention.layer_norm_epsilon",), "f32"),),
                amended(
                    DECODER_HPARAMS,
                    n_layer={"config": ("num_layers", "num_hidden_layers", "n_layer")},
                    # The class has one epsilon, and the runtime reads it under this name.
                    rms_eps={"config": ("rms_norm_eps", "layer_norm_epsilon")},
                ),
            ),
            HParam("n_rot", (), ("rope.dimension_count",), default="int(partial * head_dim)", always=True),
            HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default=1.0, back="n_rot / head_dim"),
            HParam("activation", ("activation_function",), (), "str", back="'silu'"),
        ),
        tensors=(
            T("transformer.wte.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("transformer.ln_f.weight", "output_norm.weight", shape=NORM),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            T(B + "ln_1.weight", G + "attn_norm.weight", shape=NORM),
            T(B + "ln_2.weight", G + "ffn_norm.weight", shape=NORM),
            T(ATTN + "q_proj.weight", G + "attn_q.weight", shape=(Q, "n_embd")),
            T(ATTN + "k_proj.weight", G + "attn_k.weight", shape=(KV, "n_embd")),
            T(ATTN + "v_proj.weight", G + "attn_v.weight", shape=(KV, "n_embd")),
            T(ATTN + "out_proj.weight", G + "attn_output.weight", shape=("n_embd", Q)),
            T(B + "mlp.c_fc_0.weight", G + "ffn_gate.weight", shape=("n_ff", "n_embd")),
            T(B + "mlp.c_fc_1.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
            T(B + "mlp.c_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
            LLAMA3_ROPE_FREQS,
        ),
        ignore=("transformer.rotary.inv_freq",),
        traits=Traits(BPE),
    ),
    Architecture(
        gguf="exaone4",
        hf=(HFClass("Exaone4ForCausalLM", "exaone4", EXAONE4_DEFAULTS),),
        hparams=(
            *amended(DECODER_HPARAMS, n_vocab={"gguf": ("vocab_size",)}),
            # Without a window, the class divides by a period of zero unless it is told the kind of each block.
            *amended(WINDOW_PATTERN, layer_types={"stated": True}),
            HParam("period", ("sliding_window_pattern",), (), "u32 or str", default=4, back=4),
        ),
        tensors=(
            *TOP_TENSORS,
            *ATTENTION,
            *QK_NORM,
            T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
            T(H + "post_feedforward_layernorm.weight", G + "post_ffw_norm.weight", shape=NORM),
            *DENSE_FFN,
            LLAMA3_ROPE_FREQS,
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(BPE, window=SlidingWindow(4)),
    ),
)
