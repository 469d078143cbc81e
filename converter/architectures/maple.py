"""Maple: Qwen3's mixture with windows; blocks that see all do not rotate, and experts are bounded.

Source: the reference converter's MapleModel, which knows the bound by heart.
"""

from converter.architectures.common import (
    ATTENTION,
    NORM_TENSORS,
    QK_NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    WINDOW_PATTERN,
)
from converter.architectures.moe import N_FF_EXP
from converter.architectures.qwen import EXPERTS, MOE_HPARAMS
from converter.architectures.spec import Architecture, HFClass, HParam, amended
from converter.architectures.styles import BPE
from converter.architectures.traits import Traits

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
            HParam("n_rot", (), ("rope.dimension_count",), default="int(head_dim * partial)", always=True),
            *WINDOW_PATTERN,
            N_FF_EXP,
            HParam("bounds", (), ("swiglu_clamp_exp",), "f32[]", per_block=True, default="7.0", always=True),
            HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default=1.0, back="n_rot / head_dim"),
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *EXPERTS),
        ignore=ROPE_BUFFERS,
        traits=Traits(BPE, built_in={"nope_on_global_attention": (True,)}),
    ),
)  # fmt: skip
