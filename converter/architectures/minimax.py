"""MiniMax-M2. No row permutation: ggml rotates halves for it.

Source: the reference converter's MiniMaxM2Model; transformers' configuration class and its authors' for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    KV,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
    Q,
)
from converter.architectures.moe import MOE_HPARAMS
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.styles import BPE
from converter.architectures.traits import Traits
from converter.tensors.ops import Split

MOE = H + "block_sparse_moe."
EXPERT = MOE + "experts.{expert}."

ARCHITECTURES = (
    Architecture(
        gguf="minimax-m2",
        hf=(
            HFClass(
                "MiniMaxM2ForCausalLM",
                "minimax_m2",
                {
                    "max_position_embeddings": 196608, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
                    "rope_theta": 5000000.0, "head_dim": 128, "num_local_experts": 256, "num_experts_per_tok": 8,
                    "scoring_func": "sigmoid",
                },
                constants={"use_qk_norm": True, "qk_norm_type": "per_layer", "use_routing_bias": True},
            ),
        ),
        hparams=(
            *MOE_HPARAMS,
            HParam("n_ff_exp", (), ("expert_feed_forward_length",), default="n_ff", always=True),
            HParam(
                "partial", ("rope.partial_rotary_factor", "partial_rotary_factor"), (), "f32", default=1.0,
                back="n_rot / head_dim",
            ),
            HParam(
                "n_rot", ("rotary_dim",), ("rope.dimension_count",), default="int(head_dim * partial)", always=True
            ),
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            # Over all heads at once, unlike those of most families.
            T(H + "self_attn.q_norm.weight", G + "attn_q_norm.weight", shape=(Q,)),
            T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", shape=(KV,)),
            T(MOE + "gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
            T(MOE + "e_score_correction_bias", G + "exp_probs_b.bias", shape=("n_expert",)),
            T(EXPERT + "w1.weight", G + "ffn_gate_exps.weight", shape=("n_ff", "n_embd")),
            T(EXPERT + "w2.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff")),
            T(EXPERT + "w3.weight", G + "ffn_up_exps.weight", shape=("n_ff", "n_embd")),
            # transformers 5 can also save a layer's experts in two tensors.
            T(
                H + "mlp.experts.gate_up_proj", (G + "ffn_gate_exps.weight", G + "ffn_up_exps.weight"),
                Split(1, (1, 1)), shape=("n_expert", "2 * n_ff", "n_embd"), read_only=True,
            ),
            T(
                H + "mlp.experts.down_proj", G + "ffn_down_exps.weight",
                shape=("n_expert", "n_embd", "n_ff"), read_only=True,
            ),
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE),
    ),
)  # fmt: skip
