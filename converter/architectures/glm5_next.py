"""GLM-5.3-Flash: delta attention with a gate for each channel (KDA) in most blocks, MLA with an indexer in the others.

The indexer chooses pools of tokens. Several residual streams (mHC) lead through the blocks, and their mean is what the
head sees. The published checkpoint has one block more, which predicts further tokens.
Source: the reference converter's Glm5NextModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION_BIAS,
    DENSE_FFN,
    K_CACHE,
    K_MLA,
    KV_LORA,
    NORM_TENSORS,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TOP_TENSORS,
    V_CACHE,
    V_MLA,
    VOCAB,
    G,
    H,
)
from converter.architectures.deepseek import (
    INDEXER,
    INDEXER_HPARAMS,
    INDEXER_TENSORS,
    INDEXER_TYPES,
    MLA_TENSORS,
    NEXTN_COUNTED,
    A,
    B,
)
from converter.architectures.kimi_linear import KDA, LINEAR
from converter.architectures.moe import (
    BOUNDED,
    EXPERTS,
    MOE_HPARAMS,
    N_DENSE,
    N_EXPERT_SHARED,
    N_FF_EXP,
    NEXTN_HPARAMS,
    NEXTN_TENSORS,
    NEXTN_TOLD,
    ROUTED,
    ROUTER,
    SHARED_EXPERTS,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    WITH_NEXTN,
)
from converter.architectures.spec import (
    Architecture,
    HFClass,
    HParam,
    T,
    amended,
    moved,
    only_when,
    optional,
    without,
)
from converter.architectures.styles import GLM
from converter.architectures.traits import Traits
from converter.tensors.ops import NegExp

TEXT = "model.language_model."
MIXED, STREAMS = "(2 + n_stream) * n_stream", "n_stream * n_embd"

CONNECTIONS = (
    T(H + "hc_attn_fn", G + "hc_attn_fn.weight", shape=(MIXED, STREAMS), type="F32"),
    T(H + "hc_attn_base", G + "hc_attn_base.weight", shape=(MIXED,)),
    T(H + "hc_attn_scale", G + "hc_attn_scale.weight", shape=(3,)),
    T(H + "hc_ffn_fn", G + "hc_ffn_fn.weight", shape=(MIXED, STREAMS), type="F32"),
    T(H + "hc_ffn_base", G + "hc_ffn_base.weight", shape=(MIXED,)),
    T(H + "hc_ffn_scale", G + "hc_ffn_scale.weight", shape=(3,)),
)
POOLS = (
    T(
        INDEXER + "index_kpool_compress_gate", G + "indexer_compressor_gate.weight", shape=("k_indexer", "n_embd"),
        type="F32",
    ),
    T(
        INDEXER + "index_kpool_compress_ape", G + "indexer_compressor_ape.weight", shape=("n_pool", "k_indexer"),
        type="F32",
    ),
)
(NEXTN_COUNTED,) = amended(
    (NEXTN_COUNTED,),
    n_nextn={"default": f"n_nextn_said if present('{TEXT}layers.{{block}}.eh_proj.weight', n_main) else 0"},
)
DECAY = T(A + "A_log", G + "ssm_a", NegExp(wide=True), shape=("n_head_kda",))

ARCHITECTURES = (
    Architecture(
        gguf="glm5-next",
        # Its text model has no class of its own.
        hf=(
            HFClass(
                "Glm5NextForConditionalGeneration", "glm5_next", nested="glm5_next_text",
                constants={"mla_use_nope": True},
            ),
        ),
        hparams=(
            *amended(
                MOE_HPARAMS,
                n_layer=WITH_NEXTN,
                n_expert=ROUTED,
                n_head_kv={"always": True, "back": "n_head"},
                head_dim={"config": (), "gguf": (), "default": "k_mla"},
            ),
            *NEXTN_HPARAMS,
            HParam(
                "cached", (), ("attention.head_count_kv",), "i32[]", per_block=True, always=True,
                default="0 if block < n_main and kinds[block] == 'linear_attention' else 1",
            ),
            VOCAB,
            HParam("norm_eps", (), ("attention.layer_norm_epsilon",), "f32", default=1e-6, always=True),
            NEXTN_COUNTED,
            HParam(
                "conv_kernel", (LINEAR + "short_conv_kernel_size", "linear_conv_kernel_dim"), ("ssm.conv_kernel",),
            ),
            HParam("head_kda", (LINEAR + "head_dim", "linear_head_dim"), ("kda.head_dim",)),
            HParam(
                "lower_bound", (LINEAR + "gate_lower_bound", "linear_lower_bound"), ("kda.gate_lower_bound",), "f32",
                null=0,
            ),
            HParam("q_lora", ("q_lora_rank",), ("attention.q_lora_rank",), required=True),
            KV_LORA,
            HParam("n_rot", ("qk_rope_head_dim",), ("rope.dimension_count",), required=True),
            K_CACHE,
            V_CACHE,
            K_MLA,
            V_MLA,
            *INDEXER_HPARAMS[:3],
            HParam("n_pool", ("index_kpool",), ("attention.indexer.kpool",), required=True),
            HParam(
                "selects_tail", ("index_kpool_always_select_tail",), ("attention.indexer.kpool_select_tail",), "bool",
                default=True, always=True,
            ),
            *INDEXER_TYPES,
            HParam("n_stream", ("hc_mult",), ("hyper_connection.count",), required=True),
            HParam(
                "n_sinkhorn", ("hc_sinkhorn_iters",), ("hyper_connection.sinkhorn_iterations",), required=True,
            ),
            HParam("stream_eps", ("hc_eps",), ("hyper_connection.epsilon",), "f32", required=True),
            *amended((N_DENSE,), n_dense={"default": "sum(is_dense)", "always": True}),
            N_FF_EXP,
            N_EXPERT_SHARED,
            WEIGHTS_SCALE,
            WEIGHTS_NORM,
            *BOUNDED,
            HParam("k_nope", ("qk_nope_head_dim",), (), required=True, back="k_mla - n_rot"),
            HParam("n_head_kda", (LINEAR + "num_heads", "linear_num_heads"), (), default="n_head", back="n_head"),
            HParam("bounded", (LINEAR + "safe_gate",), (), "bool", default=True, back="lower_bound != 0"),
            HParam(
                "kinds", ("layer_types",), (), "str[]", per_block="n_main",
                default="'linear_attention' if block % 4 != 3 else 'indexed_attention'",
                back="'indexed_attention' if cached > 0 else 'linear_attention'",
            ),
            HParam(
                "mlp_kinds", ("mlp_layer_types",), (), "str[]", per_block="n_main",
                default="'dense' if block < 3 else 'sparse'", back="'dense' if block < n_dense else 'sparse'",
            ),
            HParam("is_dense", (), (), "bool[]", per_block="n_main", default="mlp_kinds == 'dense'"),
            ATTENTION_BIAS,
        ),
        tensors=(
            *moved(
                "model.", TEXT,
                (
                    *TOP_TENSORS[:2],
                    *NORM_TENSORS,
                    *only_when("block < n_main", CONNECTIONS),
                    *only_when("cached == 0", (*without(KDA, G + "ssm_a"), DECAY)),
                    *only_when(
                        "cached > 0",
                        (
                            *without(MLA_TENSORS, B + "q.weight", B + "q.bias"),
                            *optional((*INDEXER_TENSORS, *POOLS)),
                        ),
                    ),
                    *only_when("block < n_dense", DENSE_FFN),
                    *only_when("block >= n_dense", (*ROUTER, *EXPERTS)),
                    *only_when("block >= n_dense and n_expert_shared > 0", SHARED_EXPERTS),
                    *NEXTN_TENSORS,
                ),
            ),
            TOP_TENSORS[2],
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, TEXT + "layers.{beyond}.{rest}"),
        aliases=(("model.{rest}", TEXT + "{rest}"),),
        traits=Traits(
            GLM,
            told=NEXTN_TOLD,
            built_in={"scoring_func": ("sigmoid",)},
            kept={
                "sensitive in GLM-5": (
                    "hc_",
                    "indexer.attn_q_b",
                    "indexer.attn_k",
                    "indexer.proj",
                    "indexer_compressor_gate",
                    "indexer_compressor_ape",
                    "ssm_f_a.weight",
                    "ssm_f_b.weight",
                    "ssm_g_a.weight",
                    "ssm_g_b.weight",
                    "ssm_beta.weight",
                    "attn_kv_a_mqa.weight",
                    "attn_k_b.weight",
                    "attn_v_b.weight",
                )
            },
            protected=("attn_q_a", "attn_q_b", "nextn.eh_proj"),
        ),
    ),
)  # fmt: skip
