"""HunYuan, dense and a mixture, whose dynamic scaling is a larger rotary base; HunyuanOCR's text model; Hy3.

Source: the reference converter's HunYuanModel, HunYuanMoEModel, HunyuanVLTextModel and HYV3Model; transformers'
configuration classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    MROPE,
    NORM,
    NORM_TENSORS,
    QK_NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.moe import (
    BEYOND,
    EXPERTS,
    N_FF_EXP,
    N_NEXTN,
    NEXTN_HPARAMS,
    NEXTN_TENSORS,
    NEXTN_TOLD,
    WITH_NEXTN,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, only_when, without
from converter.architectures.styles import BPE, HUNYUAN
from converter.architectures.traits import SIGMOID, Decoder, Traits

SHARED = H + "mlp.shared_mlp."
CONTEXT = 256 * 1024  # which dynamic scaling is for, whatever the config says

# What dynamic scaling makes of the base, by an alpha that is the models' own.
UNSCALED = {
    "n_ctx": {"back": "context"}, "rope_theta": {"back": "scaled_theta"},
    "rope_type": {"back": "'default' if unscaled == 'none' else unscaled"},
    "rope_factor": {"back": "unscaled_factor", "follows": "unscaled_factor"},
    "rope_n_ctx_orig": {"back": "unscaled_context", "follows": "unscaled_context"},
}
SCALED = (
    HParam("alpha", ("rope.alpha",), (), "f32", default=50.0),
    HParam(
        "scaled_theta", (), ("rope.freq_base",), "f32", follows="rope_theta",
        default="rope_theta * alpha ** (head_dim / (head_dim - 2)) if rope_type == 'dynamic' else rope_theta",
    ),
    HParam(
        "unscaled", (), ("rope.scaling.type",), "str", always=True, back="'none'",
        default="'none' if rope_type == 'dynamic' else rope_type",
        values=(("none", "none"), ("linear", "linear"), ("yarn", "yarn"), ("longrope", "longrope")),
    ),
    HParam(
        "unscaled_factor", (), ("rope.scaling.factor",), "f32", default=1.0, always=True,
        when="rope_type == 'dynamic'",
    ),
    HParam(
        "unscaled_context", (), ("rope.scaling.original_context_length",), default=CONTEXT, always=True,
        when="rope_type == 'dynamic'",
    ),
    HParam(
        "context", (), ("context_length",), follows="n_ctx",
        default=f"{CONTEXT} if rope_type == 'dynamic' else n_ctx",
    ),
)
SHARED_EXPERT = (
    T(SHARED + "gate_proj.weight", G + "ffn_gate_shexp.weight", shape=("n_ff_shexp", "n_embd")),
    T(SHARED + "up_proj.weight", G + "ffn_up_shexp.weight", shape=("n_ff_shexp", "n_embd")),
    T(SHARED + "down_proj.weight", G + "ffn_down_shexp.weight", shape=("n_embd", "n_ff_shexp")),
)
NORMS_OF_HEADS = (
    T(H + "self_attn.query_layernorm.weight", G + "attn_q_norm.weight", shape=("head_dim",)),
    T(H + "self_attn.key_layernorm.weight", G + "attn_k_norm.weight", shape=("head_dim",)),
)

# Where alpha is a key, the runtime makes the larger base.
BY_ALPHA = "rope_type == 'dynamic' or rope_type == 'xdrope'"
SECTIONS = amended(
    MROPE, mrope_sections={"config": ("rope.mrope_section", "rope.xdrope_section"), "back": "rope_sections"}
)

ARCHITECTURES = (
    Architecture(
        gguf="hunyuan-dense",
        hf=(
            HFClass(
                "HunYuanDenseV1ForCausalLM",
                "hunyuan_v1_dense",
                {"num_key_value_heads": "num_attention_heads"},
            ),
        ),
        hparams=(
            *amended(DECODER_HPARAMS, **UNSCALED, n_expert={"config": (), "gguf": ()}),
            *SCALED,
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *NORMS_OF_HEADS,
            *DENSE_FFN,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(HUNYUAN, decoder=Decoder(late_norm=True)),
    ),
    # The text model of HunyuanOCR, whose parts of a head rotate by time, height and width.
    Architecture(
        gguf="hunyuan_vl",
        hf=(
            HFClass("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", takes="0"),
            HFClass(
                "HunYuanVLForConditionalGeneration",
                "hunyuan_vl",
                {"num_key_value_heads": "num_attention_heads"},
                when="0",
            ),
        ),
        hparams=(
            *before(
                "rope_theta",
                SECTIONS,
                amended(
                    DECODER_HPARAMS,
                    n_expert={"config": (), "gguf": ()},
                    rope_type={"back": "unscaled if unscaled != 'none' else 'dynamic' if alpha > 0 else 'default'"},
                    rope_factor={"back": "unscaled_factor", "follows": "unscaled_factor"},
                ),
            ),
            HParam(
                "unscaled", (), ("rope.scaling.type",), "str", always=True, back="'none'",
                default=f"'none' if {BY_ALPHA} else rope_type",
                values=(("none", "none"), ("linear", "linear"), ("yarn", "yarn"), ("longrope", "longrope")),
            ),
            HParam(
                "unscaled_factor", ("rope.factor",), ("rope.scaling.factor",), "f32", default=1.0, always=True,
                when=BY_ALPHA,
            ),
            HParam("alpha", ("rope.alpha",), ("rope.scaling.alpha",), "f32", default=0),
            HParam(
                "original", (), ("rope.scaling.original_context_length",), default="n_ctx", always=True, when=BY_ALPHA,
            ),
            ATTENTION_BIAS,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *NORMS_OF_HEADS, *DENSE_FFN),
        ignore=(*ROPE_BUFFERS, "vit.{rest}", "model.vit.{rest}"),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            HUNYUAN,
            decoder=Decoder(
                late_norm=True, theta="rope_theta * alpha ** (head_dim / (head_dim - 2)) if alpha > 0 else rope_theta",
            ),
        ),
    ),
    Architecture(
        gguf="hunyuan-moe",
        hf=(
            HFClass(
                "HunYuanMoEV1ForCausalLM",
                "hunyuan_v1_moe",
                {"num_key_value_heads": "num_attention_heads"},
            ),
        ),
        hparams=(
            *amended(
                DECODER_HPARAMS, **UNSCALED,
                n_expert={"config": ("num_experts", "num_local_experts")}, n_expert_used={"config": (), "gguf": ()},
            ),
            # A value for each block, all alike, or one.
            HParam("n_ff_shexp", (), ("expert_shared_feed_forward_length",), default="n_ff", always=True),
            HParam("n_ff_exp", (), ("expert_feed_forward_length",), default="first(widths)", always=True),
            HParam("n_used", (), ("expert_used_count",), default="first(topk)", always=True),
            HParam("n_expert_shared", (), ("expert_shared_count",), default="first(shared)", always=True),
            HParam("widths", ("moe_intermediate_size",), (), "u32 or u32[]", default="n_ff", back="n_ff_exp"),
            HParam("topk", ("moe_topk", "num_experts_per_tok"), (), "u32 or u32[]", default=1, back="n_used"),
            HParam("shared", ("num_shared_expert",), (), "u32 or u32[]", default=1, back="n_expert_shared"),
            *amended(SCALED, alpha={"default": 1000.0}),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *NORMS_OF_HEADS,
            T(H + "mlp.gate.wg.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
            *EXPERTS,
            *SHARED_EXPERT,
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, decoder=Decoder(late_norm=True, weights_norm=True)),
    ),
    Architecture(
        gguf="hy_v3",
        hf=(
            HFClass(
                "HYV3ForCausalLM",
                "hy_v3",
            ),
        ),
        hparams=(
            *amended(
                DECODER_HPARAMS, n_layer=WITH_NEXTN, n_expert={"config": ("num_experts", "num_local_experts")}
            ),
            *NEXTN_HPARAMS,
            N_FF_EXP,
            HParam(
                "n_ff_shexp", (), ("expert_shared_feed_forward_length",), default="n_ff_exp * n_expert_shared",
                always=True,
            ),
            HParam("n_expert_shared", ("num_shared_experts",), (), default=1, back="n_ff_shexp // n_ff_exp"),
            HParam("weights_norm", ("route_norm",), ("expert_weights_norm",), "bool", default=True, always=True),
            HParam(
                "weights_scale", ("router_scaling_factor",), ("expert_weights_scale",), "f32", default=1.0, always=True
            ),
            HParam("sigmoid", (), ("expert_gating_func",), default=2, always=True),
            *amended((N_NEXTN,), n_nextn={"null": 0, "always": True}),
            # Which blocks have experts, the runtime asks the tensors.
            HParam(
                "is_moe", (), (), "bool[]", per_block=True,
                default="present('model.layers.{block}.mlp.router.gate.weight')",
                back="present('blk.{block}.ffn_gate_inp.weight')",
            ),
            HParam("every_kind", (), (), "str[]", per_block=True, default="'sparse' if is_moe else 'dense'"),
            HParam("kinds", ("mlp_layer_types",), (), "str[]", back="resized(every_kind, n_main)"),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *QK_NORM,
            *only_when("not is_moe", DENSE_FFN),
            *only_when(
                "is_moe",
                (
                    T(H + "mlp.router.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
                    T(H + "mlp.expert_bias", G + "exp_probs_b", shape=("n_expert",)),
                    *EXPERTS,
                    *SHARED_EXPERT,
                ),
            ),
            *without(NEXTN_TENSORS, G + "nextn.shared_head_norm.weight"),
            T(
                H + "final_layernorm.weight", G + "nextn.shared_head_norm.weight", shape=NORM, optional=True,
                when="block >= n_main",
            ),
        ),
        ignore=(*ROPE_BUFFERS, *BEYOND),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, told=NEXTN_TOLD, decoder=Decoder(gating=SIGMOID)),
    ),
)  # fmt: skip
