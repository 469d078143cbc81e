"""SmallThinker: experts chosen before attention; windows, where there are any, in three of four blocks, which rotate.

Source: the reference converter's SmallThinkerModel; the configuration class that the models bring along.
"""

from converter.architectures.common import ATTENTION, DECODER_HPARAMS, NORM_TENSORS, ROPE_BUFFERS, TOP_TENSORS, G, H
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, SlidingWindow, Traits

MOE = H + "block_sparse_moe."
EXPERT = MOE + "experts.{expert}."

ARCHITECTURES = (
    Architecture(
        gguf="smallthinker",
        hf=(HFClass("SmallThinkerForCausalLM", "smallthinker", {"rms_norm_eps": 1e-6}),),
        hparams=(
            # Less the sizes of the network and its experts, which have names and places of their own.
            *DECODER_HPARAMS[:3],
            *DECODER_HPARAMS[4:15],
            *DECODER_HPARAMS[17:],
            HParam("n_expert", ("moe_num_primary_experts",), ("expert_count",), required=True),
            HParam("n_expert_used", ("moe_num_active_primary_experts",), ("expert_used_count",), required=True),
            HParam(
                "n_ff", ("moe_ffn_hidden_size",), ("expert_feed_forward_length", "feed_forward_length"), required=True,
            ),
            HParam(
                "by_softmax", ("moe_primary_router_apply_softmax",), ("expert_gating_func",), default=False,
                always=True, values=((True, 1), (False, 2)),
            ),
            HParam(
                "window", (), ("attention.sliding_window",), default="window_said if max(slides) > 0 else 0", null=0,
                always=True, back=0,
            ),
            HParam("window_said", ("sliding_window_size",), (), default=0, null=0, back="window"),
            HParam(
                "slides", ("sliding_window_layout",), (), "u32[]", per_block=True, default="0",
                back="window > 0 and block % 4 > 0",
            ),
            HParam(
                "rotates", ("rope_layout",), (), "u32[]", per_block=True, default="1",
                back="window == 0 or block % 4 > 0",
            ),
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            T(MOE + "primary_router.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
            T(EXPERT + "gate.weight", G + "ffn_gate_exps.weight", shape=("n_ff", "n_embd")),
            T(EXPERT + "down.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff")),
            T(EXPERT + "up.weight", G + "ffn_up_exps.weight", shape=("n_ff", "n_embd")),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(
            BPE, window=SlidingWindow(4, full_first=True),
            decoder=Decoder("relu", rotates="rotates", weights_norm=True, routed_early=True),
        ),
    ),
)  # fmt: skip
