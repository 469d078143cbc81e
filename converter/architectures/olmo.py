"""OLMo 1 to 3, OLMoE.

Source: the reference converter's OlmoModel, Olmo2Model, OlmoeModel; transformers' configuration classes for defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    ATTENTION_INTERLEAVED,
    DECODER_HPARAMS,
    DENSE_FFN,
    KV,
    NORM,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    WINDOW_PATTERN,
    G,
    H,
    Q,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, without
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, SlidingWindow, Traits

EXPERT = H + "mlp.experts.{expert}."
DEFAULTS = {"num_key_value_heads": "num_attention_heads"}
# The blocks that slide rotate by the same base; only those that see all are scaled.
ROPE_THETA_SWA = HParam(
    "rope_theta_swa", (), ("rope.freq_base_swa",), "f32", default="rope_theta", always=True, when="window > 0"
)
# All heads together, not each by itself.
WIDE_QK_NORM = (
    T(H + "self_attn.q_norm.weight", G + "attn_q_norm.weight", shape=(Q,)),
    T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", shape=(KV,)),
)

ARCHITECTURES = (
    Architecture(
        gguf="olmo",
        hf=(
            HFClass(
                "OlmoForCausalLM",
                "olmo",
                {"num_key_value_heads": "num_attention_heads"},
            ),
            HFClass("OLMoForCausalLM", "olmo", {"num_key_value_heads": "num_attention_heads"}, when="0"),
        ),
        hparams=(
            *DECODER_HPARAMS,
            HParam("norm_eps", (), ("attention.layer_norm_epsilon",), "f32", default=1e-5, always=True),
            HParam("clamp", ("clip_qkv",), ("attention.clamp_kqv",), "f32"),
        ),
        tensors=(*without(TOP_TENSORS, "output_norm.weight"), *ATTENTION_INTERLEAVED, *DENSE_FFN),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, large="n_layer == 80", decoder=Decoder(plain_norm=True)),
    ),
    Architecture(
        gguf="olmo2",
        hf=(
            HFClass("Olmo2ForCausalLM", "olmo2", DEFAULTS, when="window == 0"),
            HFClass("Olmo3ForCausalLM", "olmo3", DEFAULTS, when="window > 0"),
        ),
        hparams=(*before("rms_eps", (ROPE_THETA_SWA,), DECODER_HPARAMS), *WINDOW_PATTERN, ATTENTION_BIAS),
        tensors=(
            *TOP_TENSORS,
            *ATTENTION,
            *WIDE_QK_NORM,
            T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
            T(H + "post_feedforward_layernorm.weight", G + "post_ffw_norm.weight", shape=NORM),
            *DENSE_FFN,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, window=SlidingWindow(4), decoder=Decoder()),
    ),
    Architecture(
        gguf="olmoe",
        hf=(HFClass("OlmoeForCausalLM", "olmoe", DEFAULTS),),
        hparams=(
            *amended(DECODER_HPARAMS, n_expert={"config": ("num_experts", "num_local_experts")}),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *WIDE_QK_NORM,
            T(H + "mlp.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
            T(EXPERT + "down_proj.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff")),
            T(EXPERT + "gate_proj.weight", G + "ffn_gate_exps.weight", shape=("n_ff", "n_embd")),
            T(EXPERT + "up_proj.weight", G + "ffn_up_exps.weight", shape=("n_ff", "n_embd")),
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, built_in={"norm_topk_prob": (False,)}, decoder=Decoder(weights_norm=False)),
    ),
)
