"""MiniMax-M2 and M3. No row permutation: ggml rotates halves for them.

M3's norms are stored minus one; all but its first blocks choose what they see by an indexer, and have experts.
Source: the reference converter's MiniMaxM2Model and MiniMaxM3Model; transformers' configuration classes and the
authors' for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DENSE_FFN,
    KV,
    NORM,
    NORM_TENSORS,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
    Q,
)
from converter.architectures.moe import MOE_HPARAMS, SHARED_EXPERTS, WEIGHTS_SCALE
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, moved, only_when, retyped
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import Add, Split

MOE = H + "block_sparse_moe."
EXPERT = MOE + "experts.{expert}."

MOE_TENSORS = (
    T(MOE + "gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
    T(MOE + "e_score_correction_bias", G + "exp_probs_b.bias", shape=("n_expert",)),
    T(EXPERT + "w1.weight", G + "ffn_gate_exps.weight", shape=("n_ff_exp", "n_embd")),
    T(EXPERT + "w2.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff_exp")),
    T(EXPERT + "w3.weight", G + "ffn_up_exps.weight", shape=("n_ff_exp", "n_embd")),
)
M3_DEFAULTS = {"scoring_func": "sigmoid"}
M3_CONSTANTS = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}
A, B = H + "self_attn.index_", G + "indexer."
INDEXER = (
    T(A + "q_proj.weight", B + "q_proj.weight", shape=("n_head_index * head_index", "n_embd")),
    T(A + "k_proj.weight", B + "k_proj.weight", shape=("head_index", "n_embd")),
    T(A + "q_norm.weight", B + "q_norm.weight", Add(1.0), shape=("head_index",)),
    T(A + "k_norm.weight", B + "k_norm.weight", Add(1.0), shape=("head_index",)),
)
SPARSE = "sparse_attention_config."

ARCHITECTURES = (
    Architecture(
        gguf="minimax-m2",
        hf=(
            HFClass(
                "MiniMaxM2ForCausalLM",
                "minimax_m2",
                {"scoring_func": "sigmoid"},
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
            *MOE_TENSORS,
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
        traits=Traits(BPE, decoder=Decoder(weights_norm=True)),
    ),
    Architecture(
        gguf="minimax-m3",
        hf=(
            HFClass("MiniMaxM3SparseForCausalLM", "minimax_m3_vl_text", M3_DEFAULTS, constants=M3_CONSTANTS),
            HFClass(
                "MiniMaxM3SparseForConditionalGeneration", "minimax_m3_vl", M3_DEFAULTS, when="0",
                constants=M3_CONSTANTS,
            ),
        ),
        hparams=(
            *amended(
                MOE_HPARAMS,
                n_ff={"config": ("dense_intermediate_size", "prefix_dense_intermediate_size")},
                n_expert={"config": ("num_local_experts", "num_experts")},
            ),
            HParam("n_ff_exp", ("intermediate_size",), ("expert_feed_forward_length",), required=True),
            HParam("n_rot", ("rotary_dim",), ("rope.dimension_count",), required=True),
            HParam(
                "n_expert_shared", ("n_shared_experts",), ("expert_shared_count",), default="n_ff_shared // n_ff_exp",
                always=True,
            ),
            WEIGHTS_SCALE,
            HParam("weights_norm", (), ("expert_weights_norm",), "bool", default=True, always=True),
            HParam(
                "n_head_index", (SPARSE + "sparse_num_index_heads", "index_n_heads"), ("attention.indexer.head_count",),
            ),
            HParam("head_index", (SPARSE + "sparse_index_dim", "index_head_dim"), ("attention.indexer.key_length",)),
            HParam("n_chosen", (SPARSE + "sparse_topk_blocks", "index_topk_blocks"), ("attention.indexer.top_k",)),
            HParam(
                "index_block", (SPARSE + "sparse_block_size", "index_block_size"), ("attention.indexer.block_size",),
            ),
            HParam(
                "n_local", (SPARSE + "sparse_local_block", "index_local_blocks"), ("attention.indexer.local_blocks",),
            ),
            HParam("n_dense", (), ("leading_dense_block_count",), default="sum(is_dense)", always=True),
            HParam(
                "n_ff_shared", ("shared_intermediate_size",), (), default="n_ff_exp",
                back="n_expert_shared * n_ff_exp",
            ),
            # Which blocks have experts, and which an indexer: 1 for each, or a word.
            HParam(
                "moe_blocks", ("moe_layer_freq",), (), "u32[]", per_block=True, default="mlp_kinds == 'sparse'",
                back="block >= n_dense",
            ),
            HParam(
                "mlp_kinds", ("mlp_layer_types",), (), "str[]", per_block=True, default="'sparse'",
                back="'sparse' if block >= n_dense else 'dense'",
            ),
            HParam("is_dense", (), (), "bool[]", per_block=True, default="moe_blocks == 0"),
            HParam(
                "index_blocks", (SPARSE + "sparse_attention_freq",), (), "u32[]", per_block=True,
                default="kinds == 'minimax_m3_sparse'", back="block >= n_dense",
            ),
            HParam(
                "kinds", ("layer_types",), (), "str[]", per_block=True,
                default="'full_attention'",
                back="'minimax_m3_sparse' if block >= n_dense else 'full_attention'",
            ),
        ),
        tensors=(
            TOP_TENSORS[0],
            T("model.norm.weight", "output_norm.weight", Add(1.0), shape=NORM),
            TOP_TENSORS[2],
            T(H + "input_layernorm.weight", G + "attn_norm.weight", Add(1.0), shape=NORM),
            T(H + "post_attention_layernorm.weight", G + "ffn_norm.weight", Add(1.0), shape=NORM),
            *ATTENTION,
            T(H + "self_attn.q_norm.weight", G + "attn_q_norm.weight", Add(1.0), shape=("head_dim",)),
            T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", Add(1.0), shape=("head_dim",)),
            *only_when("index_blocks > 0", retyped(INDEXER, "F32")),
            *only_when("moe_blocks == 0", DENSE_FFN),
            *only_when(
                "moe_blocks > 0",
                (*MOE_TENSORS, *moved(H + "mlp.", MOE, SHARED_EXPERTS)),
            ),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "patch_merge_mlp.{rest}"),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            BPE,
            built_in={"hidden_act": ("swigluoai", "silu"), "swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)},
        ),
    ),
)  # fmt: skip
