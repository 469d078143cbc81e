"""DeepSeek-V4: one key and value for all heads, kept as they are in a window and compressed behind it, several residual
streams (mHC), experts that a token's id chooses in the first blocks.

Blocks keep a window alone, or compress every fourth token with an indexer (CSA), or long runs without one (HCA).
Published weights are FP8, with experts in MXFP4. Those that predict further tokens (`mtp.*`) are left out.
Source: the reference converter's DeepseekV4Model; transformers' configuration class for the defaults.
"""

from converter.architectures.common import G
from converter.architectures.deepseek import INDEXER_HPARAMS
from converter.architectures.moe import (
    BOUNDED,
    MOE_HPARAMS,
    N_EXPERT_SHARED,
    N_FF_EXP,
    ROUTED,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, TensorRule, amended, only_when
from converter.architectures.styles import DEEPSEEK4
from converter.architectures.traits import AS_ASKED, INDEXES, Traits

L = "layers.{block}."
A, F, B = L + "attn.", L + "ffn.", G + "attn_"
C, X = A + "compressor.", A + "indexer."
MIXED, STREAMS, FF_SHARED = "(2 + n_stream) * n_stream", "n_stream * n_embd", "n_ff_exp * n_expert_shared"
TWICE = "(2 if ratios == 4 else 1) * head_dim"


# transformers 5 keeps the scaling, which compressed keys alone have, apart from the main rotation.
COMPRESSED = amended(
    MOE_HPARAMS,
    n_ff={"required": False},
    n_head_kv={"default": 1, "always": True},
    n_expert=ROUTED,
    rope_type={"config": ("rope.rope_type", "rope.compress.rope_type")},
    rope_factor={"config": ("rope.factor", "rope.compress.factor")},
    rope_n_ctx_orig={
        "config": ("rope.original_max_position_embeddings", "rope.compress.original_max_position_embeddings"),
    },
    yarn_beta_fast={"config": ("rope.beta_fast", "rope.compress.beta_fast")},
    yarn_beta_slow={"config": ("rope.beta_slow", "rope.compress.beta_slow")},
    rope_theta={"config": ("rope.rope_theta", "rope.main.rope_theta")},
)

TOP: tuple[TensorRule, ...] = (
    T("embed.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
    T("norm.weight", "output_norm.weight", shape=("n_embd",)),
    T("head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
    T("hc_head_fn", "output_hc_fn.weight", shape=("n_stream", STREAMS)),
    T("hc_head_base", "output_hc_base.weight", shape=("n_stream",)),
    T("hc_head_scale", "output_hc_scale.weight", shape=(1,)),
)
BLOCK: tuple[TensorRule, ...] = (
    T(L + "attn_norm.weight", G + "attn_norm.weight", shape=("n_embd",)),
    T(L + "ffn_norm.weight", G + "ffn_norm.weight", shape=("n_embd",)),
    T(L + "hc_attn_fn", G + "hc_attn_fn.weight", shape=(MIXED, STREAMS)),
    T(L + "hc_attn_base", G + "hc_attn_base.weight", shape=(MIXED,)),
    T(L + "hc_attn_scale", G + "hc_attn_scale.weight", shape=(3,)),
    T(L + "hc_ffn_fn", G + "hc_ffn_fn.weight", shape=(MIXED, STREAMS)),
    T(L + "hc_ffn_base", G + "hc_ffn_base.weight", shape=(MIXED,)),
    T(L + "hc_ffn_scale", G + "hc_ffn_scale.weight", shape=(3,)),
    T(A + "attn_sink", B + "sinks.weight", shape=("n_head",)),
    T(A + "wq_a.weight", B + "q_a.weight", shape=("q_lora", "n_embd")),
    T(A + "q_norm.weight", B + "q_a_norm.weight", shape=("q_lora",)),
    T(A + "wq_b.weight", B + "q_b.weight", shape=("n_head * head_dim", "q_lora")),
    T(A + "wkv.weight", B + "kv.weight", shape=("head_dim", "n_embd")),
    T(A + "kv_norm.weight", B + "kv_a_norm.weight", shape=("head_dim",)),
    T(A + "wo_a.weight", B + "output_a.weight", shape=("n_group_out * o_lora", "n_head * head_dim // n_group_out")),
    T(A + "wo_b.weight", B + "output_b.weight", shape=("n_embd", "n_group_out * o_lora")),
)
COMPRESSOR: tuple[TensorRule, ...] = (
    T(C + "wkv.weight", B + "compressor_kv.weight", shape=(TWICE, "n_embd")),
    T(C + "wgate.weight", B + "compressor_gate.weight", shape=(TWICE, "n_embd")),
    T(C + "ape", B + "compressor_ape.weight", shape=("ratios", TWICE)),
    T(C + "norm.weight", B + "compressor_norm.weight", shape=("head_dim",)),
)
INDEXER: tuple[TensorRule, ...] = (
    T(X + "wq_b.weight", G + "indexer.attn_q_b.weight", shape=("n_head_indexer * k_indexer", "q_lora")),
    T(X + "weights_proj.weight", G + "indexer.proj.weight", shape=("n_head_indexer", "n_embd"), type=AS_ASKED),
    T(X + "compressor.wkv.weight", G + "indexer_compressor_kv.weight", shape=("2 * k_indexer", "n_embd")),
    T(X + "compressor.wgate.weight", G + "indexer_compressor_gate.weight", shape=("2 * k_indexer", "n_embd")),
    T(X + "compressor.ape", G + "indexer_compressor_ape.weight", shape=("ratios", "2 * k_indexer")),
    T(X + "compressor.norm.weight", G + "indexer_compressor_norm.weight", shape=("k_indexer",)),
)
EXPERTS: tuple[TensorRule, ...] = (
    T(F + "gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd"), type=AS_ASKED),
    T(F + "gate.bias_vl", G + "exp_probs_b_vl.bias", shape=("n_expert",), optional=True),
    T(F + "experts.{expert}.w1.weight", G + "ffn_gate_exps.weight", shape=("n_ff_exp", "n_embd")),
    T(F + "experts.{expert}.w2.weight", G + "ffn_down_exps.weight", shape=("n_embd", "n_ff_exp")),
    T(F + "experts.{expert}.w3.weight", G + "ffn_up_exps.weight", shape=("n_ff_exp", "n_embd")),
    T(F + "shared_experts.w1.weight", G + "ffn_gate_shexp.weight", shape=(FF_SHARED, "n_embd")),
    T(F + "shared_experts.w2.weight", G + "ffn_down_shexp.weight", shape=("n_embd", FF_SHARED)),
    T(F + "shared_experts.w3.weight", G + "ffn_up_shexp.weight", shape=(FF_SHARED, "n_embd")),
)

ARCHITECTURES = (
    Architecture(
        gguf="deepseek4",
        hf=(HFClass("DeepseekV4ForCausalLM", "deepseek_v4"),),
        hparams=(
            *COMPRESSED,
            HParam(
                "n_rot", ("qk_rope_head_dim",), ("rope.dimension_count",), default="int(head_dim * partial)",
                always=True,
            ),
            HParam("q_lora", ("q_lora_rank",), ("attention.q_lora_rank",), required=True),
            HParam("window", ("sliding_window",), ("attention.sliding_window",), required=True),
            N_FF_EXP,
            N_EXPERT_SHARED,
            WEIGHTS_SCALE,
            WEIGHTS_NORM,
            *BOUNDED,
            *INDEXER_HPARAMS[:3],
            HParam("n_group_out", ("o_groups",), ("attention.output_group_count",), required=True),
            HParam("o_lora", ("o_lora_rank",), ("attention.output_lora_rank",), required=True),
            HParam(
                "ratios", ("compress_ratios",), ("attention.compress_ratios",), "i32[]", per_block=True, always=True,
                default="0 if kinds == 'sliding_attention' else rate if kinds == 'compressed_sparse_attention' "
                        "else rate_heavy",
            ),
            HParam(
                "compress_theta", ("compress_rope_theta", "rope.compress.rope_theta"),
                ("attention.compress_rope_freq_base",), "f32", required=True,
            ),
            HParam("n_stream", ("hc_mult",), ("hyper_connection.count",), required=True),
            HParam("n_sinkhorn", ("hc_sinkhorn_iters",), ("hyper_connection.sinkhorn_iterations",), required=True),
            HParam("stream_eps", ("hc_eps",), ("hyper_connection.epsilon",), "f32", required=True),
            HParam("n_hash", ("num_hash_layers",), ("hash_layer_count",), default="sum(is_hash)", always=True),
            HParam("width_out", (), ("embedding_length_out",), default="n_embd * n_stream", always=True),
            HParam(
                "partial",
                (
                    "partial_rotary_factor", "rope.partial_rotary_factor", "rope.main.partial_rotary_factor",
                    "rope.compress.partial_rotary_factor",
                ),
                (), "f32", default=0.125, back="n_rot / head_dim",
            ),
            HParam(
                "kinds", ("layer_types",), (), "str[]", per_block=True,
                default="'heavily_compressed_attention' if block < 2 or block % 2 == 0 "
                        "else 'compressed_sparse_attention'",
                back="'sliding_attention' if ratios == 0 else 'compressed_sparse_attention' if ratios == 4 "
                     "else 'heavily_compressed_attention'",
            ),
            HParam("rate", ("compress_rates.compressed_sparse_attention",), (), default=4),
            HParam(
                "rate_heavy", ("compress_rates.heavily_compressed_attention",), (), default=128,
                back="max(ratios) if max(ratios) > 4 else 128",
            ),
            HParam(
                "mlp_kinds", ("mlp_layer_types",), (), "str[]", per_block=True,
                default="'hash_moe' if block < 3 else 'moe'", back="'hash_moe' if block < n_hash else 'moe'",
            ),
            HParam("is_hash", (), (), "bool[]", per_block=True, default="mlp_kinds == 'hash_moe'"),
        ),
        tensors=(
            *TOP,
            *BLOCK,
            *only_when("ratios > 0", COMPRESSOR),
            *only_when("ratios == 4", INDEXER),
            *EXPERTS,
            T(
                F + "gate.tid2eid", G + "ffn_gate_tid2eid.weight", shape=("n_vocab", "n_expert_used"), type=INDEXES,
                when="block < n_hash",
            ),
            T(F + "gate.bias", G + "exp_probs_b.bias", shape=("n_expert",), when="block >= n_hash"),
        ),
        # A bias beside a table of choices says nothing.
        ignore=("mtp.{rest}", "aligner.{rest}", F + "gate.bias"),
        # As transformers saves them.
        aliases=(
            ("model.{rest}", "{rest}"),
            ("embed_tokens.weight", "embed.weight"),
            ("hc_head.hc_fn", "hc_head_fn"),
            ("hc_head.hc_base", "hc_head_base"),
            ("hc_head.hc_scale", "hc_head_scale"),
            (A + "norm.weight", A + "kv_norm.weight"),
        ),
        traits=Traits(DEEPSEEK4, built_in={"rope.main.rope_type": ("default",)}),
    ),
)  # fmt: skip
