"""The text models of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and their kin. The rows are those of Qwen2, Qwen3, Qwen3-MoE.

A position has three parts (time, height, width), equal in text alone: so what comes back is the plain text model.
Source: the reference converter's Qwen2VLModel, Qwen3VLTextModel, Qwen3VLMoeTextModel; transformers' configuration
classes for the defaults.
"""

from dataclasses import replace

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    MROPE,
    NORM_TENSORS,
    OTHER_INPUTS,
    QK_NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.qwen import (
    CLASSIFIER,
    DEFAULTS_3,
    EXPERT_WIDTHS,
    EXPERTS,
    MOE_HPARAMS,
    RERANKER,
    RERANKER_TENSORS,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, before
from converter.architectures.styles import QWEN3_ASR, QWEN3_OMNI, SPM_OR_BPE
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import Split, Transpose

VL_ALIASES = (("thinker.{rest}", "{rest}"), *TEXT_MODEL_ALIASES)

# Qwen3-VL: blocks of the image encoder whose output is added in the first blocks of the text model.
DEEPSTACK = (
    HParam("deepstack", ("vision_config.deepstack_visual_indexes",), (), "u32[]", default="numbers('')"),
    HParam("n_deepstack", (), ("n_deepstack_layers",), default="len(deepstack)", back=0, always=True),
)
VL_3_DEFAULTS = {"head_dim": 128}
INTERLEAVED = {"rope.mrope_interleaved": (True,)}
# On the Hub its experts are columns, each layer's in two tensors; transformers 5 can also save them as rows.
EXPERTS_AS_COLUMNS = (
    T(
        H + "mlp.experts.gate_up_proj", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
        Transpose((0, 2, 1)), Split(1, (1, 1)), shape=("n_expert", "n_embd", "2 * n_ff_exp"),
        read_only=True, by_shape=True,
    ),
    T(
        H + "mlp.experts.down_proj", G + "ffn_down_exps.weight",
        Transpose((0, 2, 1)), shape=("n_expert", "n_ff_exp", "n_embd"), read_only=True, by_shape=True,
    ),
)

ARCHITECTURES = (
    Architecture(
        gguf="qwen2vl",
        hf=(
            HFClass("Qwen2ForCausalLM", "qwen2", takes="0"),
            HFClass("Qwen2VLForConditionalGeneration", "qwen2_vl", when="0"),
            HFClass("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", when="0"),
            HFClass("Qwen2VLModel", "qwen2_vl", when="0"),
            HFClass("Qwen2_5OmniModel", "qwen2_5_omni", when="0"),
        ),
        hparams=before("rope_theta", MROPE, DECODER_HPARAMS),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *DENSE_FFN),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=VL_ALIASES,
        traits=Traits(SPM_OR_BPE, decoder=Decoder()),
    ),
    Architecture(
        gguf="qwen3vl",
        hf=(
            replace(CLASSIFIER, name="Qwen3ForSequenceClassification", takes="0"),
            HFClass("Qwen3ForCausalLM", "qwen3", takes="0"),
            HFClass("Qwen3VLForConditionalGeneration", "qwen3_vl", {**DEFAULTS_3, **VL_3_DEFAULTS}, when="0"),
            HFClass(
                "Qwen3ASRForConditionalGeneration", "qwen3_asr", {**DEFAULTS_3, **VL_3_DEFAULTS}, when="0",
                facts={"n_deepstack": 0}, tokenizer=QWEN3_ASR,
            ),
        ),
        hparams=(*before("rope_theta", MROPE, DECODER_HPARAMS), *RERANKER, *DEEPSTACK, ATTENTION_BIAS),
        tensors=(*RERANKER_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *DENSE_FFN),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=VL_ALIASES,
        traits=Traits(SPM_OR_BPE, built_in=INTERLEAVED, decoder=Decoder()),
    ),
    Architecture(
        gguf="qwen3vlmoe",
        hf=(
            HFClass("Qwen3MoeForCausalLM", "qwen3_moe", takes="0", constants={"norm_topk_prob": True}),
            HFClass(
                "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe",
                {
                    **VL_3_DEFAULTS, "num_experts": 60,
                },
                when="0",
            ),
            HFClass(
                "Qwen3OmniMoeForConditionalGeneration", "qwen3_omni_moe", {**VL_3_DEFAULTS, "num_experts": 128},
                when="0", facts={"n_deepstack": 0}, tokenizer=QWEN3_OMNI,
            ),
        ),
        hparams=(*before("rope_theta", MROPE, MOE_HPARAMS), *EXPERT_WIDTHS, *DEEPSTACK, ATTENTION_BIAS),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *EXPERTS_AS_COLUMNS, *EXPERTS),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=VL_ALIASES,
        traits=Traits(SPM_OR_BPE, built_in=INTERLEAVED, decoder=Decoder(weights_norm=True)),
    ),
)
