"""Qwen2 (and 2.5), Qwen3 and their mixtures of experts. No row permutation: ggml rotates halves for these.

Source: the reference converter's Qwen2Model, Qwen3Model, Qwen3MoeModel; transformers' configuration
classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    NORM_TENSORS,
    OTHER_INPUTS,
    QK_NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, read_only
from converter.architectures.styles import BPE, SPM_OR_BPE
from converter.architectures.traits import Traits
from converter.tensors.ops import Split

EXPERT = H + "mlp.experts.{expert}."
DEFAULTS = {
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768, "num_key_value_heads": 32,
    "use_sliding_window": False, "max_window_layers": 28,
}

# KORMo calls the same norms otherwise; what comes back is a Qwen2.
KORMO_ALIASES = (
    (H + "pre_attention_layernorm.{rest}", H + "input_layernorm.{rest}"),
    (H + "pre_mlp_layernorm.{rest}", H + "post_attention_layernorm.{rest}"),
)

# transformers 4 knows these experts as `num_experts` only.
MOE_HPARAMS = amended(DECODER_HPARAMS, n_expert={"config": ("num_experts", "num_local_experts")})
EXPERT_WIDTHS = (
    HParam("n_ff_exp", ("moe_intermediate_size",), ("expert_feed_forward_length",), required=True),
    HParam("n_ff_shexp", ("shared_expert_intermediate_size",), ("expert_shared_feed_forward_length",)),
)
ROUTER = T(H + "mlp.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd"))
ONE_BY_ONE = (
    T(EXPERT + "gate_proj.weight", G + "ffn_gate_exps.weight", shape=("n_ff_exp", "n_embd")),
    T(EXPERT + "down_proj.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff_exp")),
    T(EXPERT + "up_proj.weight", G + "ffn_up_exps.weight", shape=("n_ff_exp", "n_embd")),
)
FUSED = (
    T(
        H + "mlp.experts.gate_up_proj", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
        Split(1, (1, 1)), shape=("n_expert", "2 * n_ff_exp", "n_embd"),
    ),
    T(H + "mlp.experts.down_proj", G + "ffn_down_exps.weight", shape=("n_expert", "n_embd", "n_ff_exp")),
)
# transformers 5 can also save a layer's experts in two tensors.
EXPERTS = (ROUTER, *ONE_BY_ONE, *read_only(FUSED))
SHARED_EXPERT = (
    T(H + "mlp.shared_expert_gate.weight", G + "ffn_gate_inp_shexp.weight", shape=(1, "n_embd")),
    T(H + "mlp.shared_expert.gate_proj.weight", G + "ffn_gate_shexp.weight", shape=("n_ff_shexp", "n_embd")),
    T(H + "mlp.shared_expert.up_proj.weight", G + "ffn_up_shexp.weight", shape=("n_ff_shexp", "n_embd")),
    T(H + "mlp.shared_expert.down_proj.weight", G + "ffn_down_shexp.weight", shape=("n_embd", "n_ff_shexp")),
)

ARCHITECTURES = (
    Architecture(
        gguf="qwen2",
        hf=(
            HFClass("Qwen2ForCausalLM", "qwen2", DEFAULTS),
            HFClass("Qwen2Model", "qwen2", DEFAULTS, when="0", head=False),
            HFClass("KORMoForCausalLM", "kormo", DEFAULTS, when="0"),
            # The text models of these.
            HFClass("Qwen2AudioForConditionalGeneration", "qwen2_audio", DEFAULTS, when="0"),
            HFClass("AudioFlamingo3ForConditionalGeneration", "audioflamingo3", DEFAULTS, when="0"),
            HFClass("DotsOCRForCausalLM", "dots_ocr", DEFAULTS, when="0"),
        ),
        hparams=DECODER_HPARAMS,
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *DENSE_FFN),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=(*TEXT_MODEL_ALIASES, *KORMO_ALIASES),
        traits=Traits(SPM_OR_BPE, large="n_layer == 80"),
    ),
    Architecture(
        gguf="qwen2moe",
        hf=(
            HFClass(
                "Qwen2MoeForCausalLM",
                "qwen2_moe",
                DEFAULTS,
            ),
        ),
        hparams=(*MOE_HPARAMS, *EXPERT_WIDTHS),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *EXPERTS,
            *SHARED_EXPERT,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, built_in={"norm_topk_prob": (False,)}),
    ),
    Architecture(
        gguf="qwen3",
        hf=(
            HFClass("Qwen3ForCausalLM", "qwen3", DEFAULTS),
            HFClass("Qwen3Model", "qwen3", DEFAULTS, when="0", head=False),
            HFClass("StepVLForConditionalGeneration", "step_robotics", {**DEFAULTS, "head_dim": 128}, when="0"),
        ),
        hparams=(*DECODER_HPARAMS, ATTENTION_BIAS),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *DENSE_FFN),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "vit_large_projector.{rest}", "model.vit_large_projector.{rest}"),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(SPM_OR_BPE),
    ),
    Architecture(
        gguf="qwen3moe",
        hf=(
            HFClass(
                "Qwen3MoeForCausalLM",
                "qwen3_moe",
                {**DEFAULTS, "num_experts": 128},
                constants={"norm_topk_prob": True},
            ),
        ),
        hparams=(
            *MOE_HPARAMS,
            *EXPERT_WIDTHS,
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *QK_NORM,
            *EXPERTS,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(SPM_OR_BPE),
    ),
)
