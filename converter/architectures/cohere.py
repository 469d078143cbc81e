"""Cohere's Command R, Command R7B and North: one norm for attention and feed-forward, scaled logits.

The runtime takes the embedding for the head, and reads Command R's norms of query and key where it has 64 blocks. In
Command R7B, blocks that see all do not rotate; in North, a mixture, those of the dense beginning do.

Source: the reference converter's CommandR2Model, Cohere2Model and Cohere2MoeModel; transformers' configuration classes
for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DENSE_FFN,
    LAYER_NORM_HPARAMS,
    N_ROT,
    NO_SCALING,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    UNSCALED,
    VOCAB,
    WINDOW_PATTERN,
    G,
    H,
)
from converter.architectures.moe import (
    BEYOND,
    EXPERTS,
    GATING,
    N_NEXTN,
    NEXTN_HPARAMS,
    NEXTN_TENSORS,
    NEXTN_TOLD,
    ROUTER,
    SHARED_EXPERTS,
    WEIGHTS_NORM,
    WITH_NEXTN,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, only_when
from converter.architectures.styles import BPE
from converter.architectures.traits import SIGMOID, Decoder, SlidingWindow, Traits

DEFAULTS = {"num_key_value_heads": "num_attention_heads"}
COHERE2_DEFAULTS = {**DEFAULTS, "head_dim": "hidden_size // num_attention_heads"}

LOGIT_SCALE = HParam("logit_scale", ("logit_scale",), ("logit_scale",), "f32", required=True)
ARCHITECTURES = (
    Architecture(
        gguf="command-r",
        hf=(HFClass("CohereForCausalLM", "cohere", DEFAULTS),),
        hparams=(
            *amended(
                LAYER_NORM_HPARAMS, n_ctx={"config": ("model_max_length", "max_position_embeddings")}, **UNSCALED
            ),
            # Less than the model was trained with, which the other says.
            HParam("n_positions", ("max_position_embeddings",), (), back="n_ctx"),
            LOGIT_SCALE,
            NO_SCALING,
            HParam(
                "qk_norm", ("use_qk_norm",), (), "bool", default=False, back="present('blk.0.attn_q_norm.weight')"
            ),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS[:2],
            NORM_TENSORS[0],
            *ATTENTION,
            T(
                H + "self_attn.q_norm.weight", G + "attn_q_norm.weight", shape=("n_head", "head_dim"), optional=True
            ),
            T(
                H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", shape=("n_head_kv", "head_dim"),
                optional=True,
            ),
            *DENSE_FFN,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, decoder=Decoder(neighbours=True, logits="logit_scale")),
    ),
    Architecture(
        gguf="cohere2",
        hf=(HFClass("Cohere2ForCausalLM", "cohere2", COHERE2_DEFAULTS),),
        hparams=(
            *amended(LAYER_NORM_HPARAMS, **UNSCALED),
            LOGIT_SCALE,
            HParam("window", ("sliding_window",), ("attention.sliding_window",), required=True),
            VOCAB,
            HParam(
                "n_rot", (), ("rope.dimension_count",), default="int(partial * (n_embd // n_head))", always=True
            ),
            HParam("partial", ("rotary_pct",), (), "f32", default=1.0, back="n_rot / (n_embd // n_head)"),
            NO_SCALING,
            # Which blocks slide, the runtime knows.
            HParam(
                "layer_types", ("layer_types",), (), "str[]", per_block=True,
                default="'sliding_attention' if (block + 1) % 4 > 0 else 'full_attention'",
            ),
        ),
        tensors=(*TOP_TENSORS[:2], NORM_TENSORS[0], *ATTENTION, *DENSE_FFN),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            BPE, window=SlidingWindow(4), built_in={"rotary_pct": (1,)},
            decoder=Decoder(neighbours=True, logits="logit_scale", rotates="layer_types == 'sliding_attention'"),
        ),
    ),
    Architecture(
        gguf="cohere2moe",
        hf=(
            HFClass(
                "Cohere2MoeForCausalLM",
                "cohere2_moe",
                COHERE2_DEFAULTS,
            ),
        ),
        hparams=(
            *before(
                "norm_eps",
                (HParam("rms_eps", ("rms_norm_eps",), ("attention.layer_norm_rms_epsilon",), "f32"),),
                before(
                    "head_dim",
                    amended((GATING,), gating={"config": ("expert_selection_fn",)}),
                    amended(
                        LAYER_NORM_HPARAMS, n_layer=WITH_NEXTN,
                        n_ff={"config": ("prefix_dense_intermediate_size", "intermediate_size")},
                        n_expert={"config": ("num_experts", "num_local_experts")}, **UNSCALED,
                    ),
                ),
            ),
            *NEXTN_HPARAMS,
            LOGIT_SCALE,
            *amended(
                WINDOW_PATTERN,
                slides={"per_block": "n_main"},
                layer_types={
                    "per_block": "n_main",
                    "default": "'full_attention' if block < n_dense or (block - n_dense + 1) % period == 0 else "
                               "'sliding_attention'",
                },
            ),
            HParam("period", ("sliding_window_pattern",), (), default=4),
            VOCAB,
            HParam("n_ff_exp", ("intermediate_size",), ("expert_feed_forward_length",), required=True),
            HParam(
                "n_dense", (), ("leading_dense_block_count",), always=True,
                default="first(where(is_sparse)) if sum(is_sparse) > 0 else n_main", back=0,
            ),
            HParam("n_dense_said", ("first_k_dense_replace",), (), default=0, back="n_dense"),
            HParam(
                "kinds", ("mlp_layer_types",), (), "str[]", per_block="n_main",
                default="'dense' if block < n_dense_said else 'sparse'",
                back="'dense' if block < n_dense else 'sparse'",
            ),
            HParam("is_sparse", (), (), "bool[]", per_block="n_main", default="kinds != 'dense'"),
            WEIGHTS_NORM,
            HParam("n_expert_shared", ("num_shared_experts",), ("expert_shared_count",), default=0, null=0),
            HParam(
                "n_ff_shexp", (), ("expert_shared_feed_forward_length",), default="n_ff_exp * n_expert_shared",
                always=True, when="n_expert_shared > 0",
            ),
            *amended((N_NEXTN,), n_nextn={"null": 0, "always": True}),
            N_ROT,
            NO_SCALING,
        ),
        tensors=(
            *TOP_TENSORS,
            NORM_TENSORS[0],
            *ATTENTION,
            *only_when("block < n_dense", DENSE_FFN),
            *only_when("block >= n_dense", (ROUTER[0], *EXPERTS)),
            *only_when("block >= n_dense and n_expert_shared > 0", SHARED_EXPERTS),
            *NEXTN_TENSORS,
        ),
        ignore=(*ROPE_BUFFERS, *BEYOND),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            BPE,
            window=SlidingWindow(4, full_first=True),
            told=NEXTN_TOLD,
            built_in={
                "prefix_dense_sliding_window_pattern": (1,), "shared_expert_combination_strategy": ("average",),
            },
            decoder=Decoder(
                neighbours=True, logits="logit_scale", shared_mean=True, rms=True, gating=SIGMOID,
                rotates="layer_types == 'sliding_attention' or block < n_dense",
            ),
        ),
    ),
)  # fmt: skip
