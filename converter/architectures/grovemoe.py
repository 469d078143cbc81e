"""GroveMoE: experts in pairs, each pair with a small one that both share.

Source: the reference converter's GroveMoeModel, which knows the sizes of pairs by heart.
"""

from converter.architectures.common import ATTENTION, NORM_TENSORS, QK_NORM, ROPE_BUFFERS, TOP_TENSORS, G, H
from converter.architectures.moe import N_FF_EXP
from converter.architectures.qwen import EXPERTS, MOE_HPARAMS
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.styles import BPE
from converter.architectures.traits import Traits

CHUNK = H + "mlp.chunk_experts.{expert}."
PAIRS = {"count": "n_expert // n_per_group"}

ARCHITECTURES = (
    Architecture(
        gguf="grovemoe",
        hf=(
            HFClass("GroveMoeForCausalLM", "grove_moe", constants={"norm_topk_prob": True}),
            HFClass("modeling_grove_moe.GroveMoeForCausalLM", "grove_moe", when="0"),
        ),
        hparams=(
            *MOE_HPARAMS,
            N_FF_EXP,
            HParam("n_ff_chunk", (), ("expert_chunk_feed_forward_length",), default="head_dim", always=True),
            HParam("n_per_group", (), ("experts_per_group",), default=2, always=True),
            HParam("group_scale", (), ("expert_group_scale",), "f32", default=0.05, always=True),
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *QK_NORM,
            *EXPERTS,
            T(CHUNK + "gate_proj.weight", G + "ffn_gate_chexps.weight", shape=("n_ff_chunk", "n_embd"), **PAIRS),
            T(CHUNK + "down_proj.weight", G + "ffn_down_chexps.weight", shape=("n_embd", "n_ff_chunk"), **PAIRS),
            T(CHUNK + "up_proj.weight", G + "ffn_up_chexps.weight", shape=("n_ff_chunk", "n_embd"), **PAIRS),
        ),
        ignore=(*ROPE_BUFFERS, H + "mlp.expert_bias"),
        traits=Traits(BPE),
    ),
)  # fmt: skip
