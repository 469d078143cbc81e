"""Mellum 2: Qwen3's mixture with windows.

Source: the reference converter's MellumModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    NORM_TENSORS,
    QK_NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    WINDOW_PATTERN,
)
from converter.architectures.moe import N_FF_EXP
from converter.architectures.qwen import EXPERTS, MOE_HPARAMS
from converter.architectures.spec import Architecture, HFClass, HParam, amended, before
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Relation, SlidingWindow, Traits

ARCHITECTURES = (
    Architecture(
        gguf="mellum",
        hf=(
            HFClass(
                "MellumForCausalLM", "mellum",
                {
                    "num_experts": 64,
                    "rope_parameters.sliding_attention.rope_theta": 10000.0,
                },
            ),
        ),
        hparams=(
            *before(
                "rms_eps",
                (
                    HParam(
                        "rope_theta_swa", ("rope_parameters.sliding_attention.rope_theta",), ("rope.freq_base_swa",),
                        "f32",
                    ),
                ),
                MOE_HPARAMS,
            ),
            N_FF_EXP,
            *amended(WINDOW_PATTERN, layer_types={"default": "'full_attention'"}),
            ATTENTION_BIAS,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *EXPERTS),
        ignore=ROPE_BUFFERS,
        traits=Traits(
            BPE,
            window=SlidingWindow(4),
            runtime=(
                Relation(
                    "window == 0 or rope_theta_swa == rope_theta", "rope_theta_swa",
                    "llama.cpp rotates the blocks with windows by the base of the others",
                ),
            ), decoder=Decoder(weights_norm=True)),
    ),
)  # fmt: skip
