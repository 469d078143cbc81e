"""Mistral 3: Ministral 3, and the text models of Mistral Small 3.

Source: the reference converter's Mistral3Model; transformers' configuration classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION_INTERLEAVED,
    DENSE_FFN,
    LLAMA3_ROPE_FREQS,
    LLAMA_HPARAMS,
    NORM_TENSORS,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
)
from converter.architectures.spec import Architecture, HFClass, HParam
from converter.architectures.styles import LLAMA
from converter.architectures.traits import Decoder, Traits

DEFAULTS = {"head_dim": 128}

ARCHITECTURES = (
    Architecture(
        gguf="mistral3",
        hf=(
            HFClass("Ministral3ForCausalLM", "ministral3", DEFAULTS, when="temperature_scale > 0"),
            HFClass("MistralForCausalLM", "mistral", takes="0"),
            HFClass("Mistral3ForConditionalGeneration", "mistral3", DEFAULTS, when="0"),
        ),
        hparams=(
            *LLAMA_HPARAMS,
            HParam("yarn_log", ("rope.mscale_all_dim",), ("rope.scaling.yarn_log_multiplier",), "f32"),
            HParam(
                "temperature_scale", ("rope.llama_4_scaling_beta",), ("attention.temperature_scale",), "f32", default=0
            ),
            # With both multipliers alike, attention is scaled by one.
            HParam("mscale", ("rope.mscale",), (), "f32", back="yarn_log", when="rope_type == 'yarn'"),
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION_INTERLEAVED, *DENSE_FFN, LLAMA3_ROPE_FREQS),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(LLAMA, decoder=Decoder()),
    ),
)
