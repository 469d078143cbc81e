"""Maple: Qwen3's mixture with windows; blocks that see all do not rotate, and experts are bounded.

Source: the reference converter's MapleModel, which knows the bound by heart.
"""

from converter.architectures.common import (
    ATTENTION,
    N_ROT_OF_HEAD,
    NORM_TENSORS,
    PARTIAL_OF_HEAD,
    QK_NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    WINDOW_PATTERN,
)
from converter.architectures.moe import N_FF_EXP
from converter.architectures.qwen import EXPERTS, MOE_HPARAMS
from converter.architectures.spec import Architecture, HFClass, HParam, amended
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits

ARCHITECTURES = (
    Architecture(
        gguf="maple",
        hf=(
            HFClass(
                "MapleForCausalLM", "maple",
                constants={"nope_on_global_attention": True, "norm_topk_prob": True, "num_shared_experts": 0},
            ),
        ),
        hparams=(
            *amended(MOE_HPARAMS, n_vocab={"gguf": ("vocab_size",)}),
            N_ROT_OF_HEAD,
            *WINDOW_PATTERN,
            N_FF_EXP,
            HParam("bounds", (), ("swiglu_clamp_exp",), "f32[]", per_block=True, default="7.0", always=True),
            PARTIAL_OF_HEAD,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *EXPERTS),
        ignore=ROPE_BUFFERS,
        traits=Traits(
            BPE, decoder=Decoder(rotates="window > 0 and slides", weights_norm=True, bounded_first=True),
            built_in={"nope_on_global_attention": (True,)},
        ),
    ),
)  # fmt: skip
