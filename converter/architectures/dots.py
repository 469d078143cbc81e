"""dots.llm1: Qwen3's attention, DeepSeek's experts.

Source: the reference converter's Dots1Model; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    NORM_TENSORS,
    QK_NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
)
from converter.architectures.moe import (
    DENSE_THEN_EXPERTS,
    MOE_HPARAMS,
    N_DENSE,
    N_EXPERT_SHARED,
    N_FF_EXP,
    ROUTED,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
)
from converter.architectures.spec import Architecture, HFClass, amended
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits

ARCHITECTURES = (
    Architecture(
        gguf="dots1",
        hf=(
            HFClass(
                "Dots1ForCausalLM",
                "dots1",
                {"scoring_func": "sigmoid"},
                constants={"sliding_window": None},
            ),
        ),
        hparams=(
            *amended(MOE_HPARAMS, n_expert=ROUTED),
            N_FF_EXP,
            N_DENSE,
            N_EXPERT_SHARED,
            WEIGHTS_SCALE,
            WEIGHTS_NORM,
            ATTENTION_BIAS,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *DENSE_THEN_EXPERTS),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, decoder=Decoder()),
    ),
)  # fmt: skip
