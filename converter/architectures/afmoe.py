"""Trinity (AFMoE): gated attention, windows in three of four blocks, the only ones that rotate; experts.

Source: the reference converter's AfmoeModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DENSE_FFN,
    N_ROT,
    NORM,
    QK_NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    H,
    Q,
)
from converter.architectures.moe import (
    EXPERTS,
    MOE_HPARAMS,
    N_DENSE,
    N_EXPERT_SHARED,
    N_FF_EXP,
    SHARED_EXPERTS,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when
from converter.architectures.styles import LLAMA
from converter.architectures.traits import SIGMOID, Decoder, SlidingWindow, Traits

SPARSE = "block >= n_dense"

ARCHITECTURES = (
    Architecture(
        gguf="afmoe",
        hf=(
            HFClass(
                "AfmoeForCausalLM", "afmoe",
                {"num_key_value_heads": "num_attention_heads", "route_norm": True},
            ),
        ),
        hparams=(
            *amended(
                MOE_HPARAMS, n_expert={"config": ("num_experts", "num_local_experts")},
                n_vocab={"gguf": ("vocab_size",)},
            ),
            N_ROT,
            *amended((N_EXPERT_SHARED,), n_expert_shared={"config": ("num_shared_experts",)}),
            N_FF_EXP,
            *amended((N_DENSE,), n_dense={"config": ("num_dense_layers",)}),
            *amended((WEIGHTS_NORM,), weights_norm={"config": ("route_norm",)}),
            *amended((WEIGHTS_SCALE,), weights_scale={"config": ("route_scale",)}),
            HParam("window", ("sliding_window",), ("attention.sliding_window",), default=0, null=0),
            # Of four blocks the last sees all, which no key says.
            HParam("period", ("global_attn_every_n_layers",), (), default=4, back=4),
            HParam(
                "layer_types", ("layer_types",), (), "str[]", per_block=True,
                default="'sliding_attention' if (block + 1) % period > 0 else 'full_attention'",
            ),
            # That embeddings are scaled by the root of the width; llama.cpp always does it.
            HParam("scaled", ("mup_enabled",), (), "bool", default=False, back=True),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
            T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
            T(H + "pre_mlp_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
            T(H + "post_mlp_layernorm.weight", G + "post_ffw_norm.weight", shape=NORM),
            *ATTENTION,
            *QK_NORM,
            T(H + "self_attn.gate_proj.weight", G + "attn_gate.weight", shape=(Q, "n_embd")),
            *only_when("block < n_dense", DENSE_FFN),
            *only_when(
                SPARSE,
                (
                    T(H + "mlp.router.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
                    T(H + "mlp.expert_bias", G + "exp_probs_b.bias", shape=("n_expert",)),
                    *EXPERTS,
                ),
            ),
            *only_when(f"{SPARSE} and n_expert_shared > 0", SHARED_EXPERTS),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(
            LLAMA, window=SlidingWindow(4), built_in={"mup_enabled": (True,), "score_func": ("sigmoid",)},
            decoder=Decoder(
                embedding="sqrt(n_embd)", rotates="layer_types == 'sliding_attention'", gating=SIGMOID,
            ),
        ),
    ),
)  # fmt: skip
