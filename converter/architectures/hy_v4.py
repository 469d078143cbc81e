"""Hy4: DeepSeek's attention with a gate and a sink, several residual streams (iHC), and an indexer in some blocks.

Blocks without an indexer see what the last one before them chose. Those that predict further tokens are left out.
Source: the reference converter's HYV4Model; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    K_CACHE,
    K_MLA,
    KV_LORA,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    V_CACHE,
    V_MLA,
    VOCAB,
    G,
    H,
)
from converter.architectures.deepseek import MLA_TENSORS, A, B
from converter.architectures.moe import (
    N_DENSE,
    N_EXPERT_SHARED,
    N_FF_EXP,
    ROUTED,
    ROUTER,
    SHARED_EXPERTS,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
)
from converter.architectures.qwen import FUSED
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when, without
from converter.architectures.styles import BPE
from converter.architectures.traits import Traits

INDEXER, CHOOSES = A + "indexer.", G + "indexer."
STREAMS = "n_stream * n_embd"
MIX, MIX_FFN = H + "hc_attn_layer.hc_pre.hc_", H + "hc_mlp_layer.hc_pre.hc_"
HEAD = "model.hc_head.hc_head_"

CONNECTIONS = (
    T(MIX + "fn", G + "hc_attn_fn.weight", shape=("2 * n_stream", STREAMS), type="F32"),
    T(MIX + "base", G + "hc_attn_base.weight", shape=("2 * n_stream",)),
    T(MIX + "scale", G + "hc_attn_scale.weight", shape=(2,)),
    T(MIX_FFN + "fn", G + "hc_ffn_fn.weight", shape=("2 * n_stream", STREAMS), type="F32"),
    T(MIX_FFN + "base", G + "hc_ffn_base.weight", shape=("2 * n_stream",)),
    T(MIX_FFN + "scale", G + "hc_ffn_scale.weight", shape=(2,)),
    T(HEAD + "fn", "output_hc_fn.weight", shape=("n_stream", STREAMS), type="F32"),
    T(HEAD + "base", "output_hc_base.weight", shape=("n_stream",)),
    T(HEAD + "scale", "output_hc_scale.weight", shape=(1,)),
)
INDEX = (
    T(INDEXER + "wq_b.weight", CHOOSES + "attn_q_b.weight", shape=("n_head_index * head_index", "q_lora")),
    T(INDEXER + "wk.weight", CHOOSES + "attn_k.weight", shape=("head_index", "n_embd")),
    T(INDEXER + "k_norm.weight", CHOOSES + "k_norm.weight", shape=("head_index",)),
    T(INDEXER + "k_norm.bias", CHOOSES + "k_norm.bias", shape=("head_index",), type="F32"),
    T(INDEXER + "weights_proj.weight", CHOOSES + "proj.weight", shape=("n_head_index", "n_embd")),
)

ARCHITECTURES = (
    Architecture(
        gguf="hy_v4",
        hf=(
            HFClass(
                "HYV4ForCausalLM", "hy_v4",
            ),
        ),
        hparams=(
            *amended(
                DECODER_HPARAMS,
                n_expert=ROUTED,
                n_head_kv={"config": (), "always": True, "back": "n_head"},
                head_dim={"config": (), "default": "n_rot", "always": True, "back": "n_rot"},
            ),
            HParam("one_kv_head", (), ("attention.head_count_kv",), default=1, always=True),
            *amended((N_DENSE,), n_dense={"default": "sum(is_dense)", "always": True}),
            VOCAB,
            HParam("q_lora", ("q_lora_rank",), ("attention.q_lora_rank",), required=True),
            KV_LORA,
            K_CACHE,
            V_CACHE,
            K_MLA,
            V_MLA,
            N_FF_EXP,
            N_EXPERT_SHARED,
            WEIGHTS_SCALE,
            WEIGHTS_NORM,
            HParam("n_rot", ("qk_rope_head_dim",), ("rope.dimension_count",), required=True),
            HParam("sigmoid", (), ("expert_gating_func",), default=2, always=True),
            HParam(
                "bounds", (), ("swiglu_clamp_exp",), "f32[]", per_block=True, default="bound", follows="bound",
            ),
            HParam("bound", ("swiglu_limit",), (), "f32", back="max(bounds)", follows="bounds"),
            HParam("n_stream", ("hc_mult",), ("hyper_connection.count",), required=True),
            HParam("stream_eps", ("hc_eps",), ("hyper_connection.epsilon",), "f32", required=True),
            HParam("magnitude", ("hc_magnitude",), ("hyper_connection.magnitude",), "f32", required=True),
            HParam("n_head_index", ("index_n_heads",), ("attention.indexer.head_count",), required=True),
            HParam("head_index", ("index_head_dim",), ("attention.indexer.key_length",), required=True),
            HParam("n_chosen", ("index_topk",), ("attention.indexer.top_k",), required=True),
            HParam(
                "chooses", (), ("attention.indexer.types",), "bool[]", per_block=True, always=True,
                default="indexer_kinds == 'full'",
            ),
            HParam(
                "indexer_kinds", ("indexer_types",), (), "str[]", per_block=True,
                default="'full' if block == 0 or (block - 1) % 4 == 0 else 'shared'",
                back="'full' if chooses else 'shared'",
            ),
            HParam("k_nope", ("qk_nope_head_dim",), (), required=True, back="k_mla - n_rot"),
            HParam(
                "mlp_kinds", ("mlp_layer_types",), (), "str[]", per_block=True,
                default="'dense' if block == 0 else 'sparse'", back="'dense' if block < n_dense else 'sparse'",
            ),
            HParam("is_dense", (), (), "bool[]", per_block=True, default="mlp_kinds == 'dense'"),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *without(MLA_TENSORS, B + "q.weight", B + "q.bias"),
            T(A + "linear_gate.weight", B + "gate.weight", shape=("n_head * v_mla", "n_embd")),
            T(A + "learnable_sink_param", B + "sinks.weight", shape=("n_head",)),
            *CONNECTIONS,
            *only_when("chooses", INDEX),
            *only_when("block < n_dense", DENSE_FFN),
            *only_when("block >= n_dense", (*ROUTER, *FUSED, *SHARED_EXPERTS)),
        ),
        ignore=(*ROPE_BUFFERS, "model.mtp_layers.{rest}"),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, built_in={"layer_types": ("indexed_attention",)}),
    ),
)  # fmt: skip
