"""Step 3.5 and 3.7: windows in most blocks, which have more heads; gates for each head; experts in all but the first.

The GGUF's names are the published config's, of which transformers 5 has others. Blocks that predict further tokens have
a feed-forward network and no experts. Source: the reference converter's Step35Model; llama.cpp's step35.cpp;
transformers' configuration class and the authors' for the defaults.
"""

from converter.architectures.common import (
    DECODER_HPARAMS,
    DENSE_FFN,
    N_VOCAB,
    NORM,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.moe import BEYOND, GATING, N_NEXTN, NEXTN_HPARAMS, NEXTN_TOLD, WITH_NEXTN
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, only_when
from converter.architectures.styles import BPE
from converter.architectures.traits import SIGMOID, Decoder, Traits
from converter.tensors.ops import Add

A, B = H + "self_attn.", G + "attn_"
SWA_THETA = "rope_parameters.sliding_attention.rope_theta"
SHARED_HEAD = H + "transformer.shared_head."
DEFAULTS = {SWA_THETA: 10000.0, "norm_expert_weight": True}
EXPERT, SHARED = ("n_expert", "n_ff_exp", "n_embd"), ("n_ff_shared", "n_embd")
ARCHITECTURES = (
    Architecture(
        gguf="step35",
        hf=(
            HFClass("Step3p5ForCausalLM", "step3p5", DEFAULTS),
            HFClass("Step3p7ForConditionalGeneration", "step3p7", DEFAULTS, when="0"),
        ),
        hparams=(
            *before(
                "rms_eps",
                (
                    HParam(
                        "rope_theta_swa", (), ("rope.freq_base_swa",), "f32", always=True,
                        default="thetas[1] if len(thetas) > 1 else theta_swa_said",
                    ),
                ),
                amended(
                    DECODER_HPARAMS[:-4],
                    n_layer=WITH_NEXTN,
                    n_head={"back": "heads[first(where(is_full))] if max(is_full) else first(heads)"},
                    n_head_kv={
                        "config": ("num_attention_groups", "num_key_value_heads"), "gguf": (), "required": True,
                        "default": None, "back": "kvs[first(where(is_full))] if max(is_full) else first(kvs)",
                    },
                    rope_theta={"config": (), "default": "first(thetas)", "always": True},
                    rms_eps={"default": 1e-5, "always": True},
                ),
            ),
            GATING,
            HParam(
                "head_dim", ("head_dim",), ("attention.key_length", "attention.value_length"), required=True,
                always=True,
            ),
            HParam(
                "heads", (), ("attention.head_count",), "i32[]", per_block=True, always=True,
                default="n_head_swa if slides else n_head",
            ),
            HParam(
                "kvs", (), ("attention.head_count_kv",), "i32[]", per_block=True, always=True,
                default="n_kv_swa if slides else n_head_kv",
            ),
            HParam("window", ("sliding_window",), ("attention.sliding_window",), default=0, always=True),
            HParam(
                "slides", (), ("attention.sliding_window_pattern",), "bool[]", per_block=True, always=True,
                default="(kinds[block] if block < len(kinds) else mtp_kinds[block - n_main] "
                        "if block - n_main < len(mtp_kinds) else 'full_attention') == 'sliding_attention'",
            ),
            HParam(
                "n_expert", ("moe_num_experts", "n_routed_experts", "num_local_experts"), ("expert_count",),
                required=True,
            ),
            HParam("n_expert_used", ("moe_top_k", "num_experts_per_tok"), ("expert_used_count",), required=True),
            HParam("n_ff_exp", ("moe_intermediate_size",), ("expert_feed_forward_length",), required=True),
            HParam(
                "n_ff_shared", ("share_expert_dim", "share_expert_dims"), ("expert_shared_feed_forward_length",),
                required=True,
            ),
            HParam("weights_scale", ("moe_router_scaling_factor",), ("expert_weights_scale",), "f32"),
            HParam("weights_norm", ("norm_expert_weight",), ("expert_weights_norm",), "bool"),
            HParam(
                "n_dense", (), ("leading_dense_block_count",), always=True,
                default="first(where(is_moe)) if max(is_moe) else 0",
            ),
            HParam("moe_every", ("moe_every_n_layer",), ("moe_every_n_layers",), default=1, always=True),
            HParam(
                "clamps", (), ("swiglu_clamp_exp",), "f32[]", per_block=True, follows="limits",
                default="limits[block] if block < len(limits) else 0.0",
            ),
            HParam(
                "clamps_shared", (), ("swiglu_clamp_shexp",), "f32[]", per_block=True, follows="limits_shared",
                default="limits_shared[block] if block < len(limits_shared) else 0.0",
            ),
            *amended((N_NEXTN,), n_nextn={"null": 0}),
            *NEXTN_HPARAMS,
            # 0 or null where there is no bound.
            HParam("limits", ("swiglu_limits",), (), "f32[]", null=0.0, follows="clamps", back="clamps"),
            HParam(
                "limits_shared", ("swiglu_limits_shared",), (), "f32[]", null=0.0, follows="clamps_shared",
                back="clamps_shared",
            ),
            HParam("kinds", ("layer_types",), (), "str[]", per_block=True, default="'full_attention'",
                   back="'sliding_attention' if slides else 'full_attention'"),
            HParam("mtp_kinds", ("mtp_layer_types",), (), "str[]", default="numbers('')"),
            HParam("is_full", (), (), "bool[]", per_block=True, default="not slides"),
            HParam(
                "n_head_swa", ("attention_other_setting.num_attention_heads", "num_sliding_attention_heads"), (),
                default="n_head", back="heads[first(where(slides))] if max(slides) else first(heads)",
            ),
            HParam(
                "n_kv_swa", ("attention_other_setting.num_attention_groups",), (), default="n_head_kv",
                back="kvs[first(where(slides))] if max(slides) else first(kvs)",
            ),
            # One for each block, or one for all that see everything and another for the rest.
            HParam(
                "thetas", ("rope.rope_theta",), (), "f32 or f32[]", per_block=True,
                back="rope_theta_swa if slides else rope_theta",
            ),
            HParam("theta_swa_said", (SWA_THETA,), (), "f32", when="0"),
            HParam(
                "partials", ("partial_rotary_factors",), (), "f32[]", per_block=True, back="1.0 if slides else 0.5"
            ),
            HParam("n_rot", default="head_dim // 2"),
            HParam("query_scale", ("query_pre_attn_scalar",), (), "f32", default="head_dim"),
            HParam(
                "is_moe", (), (), "bool[]", per_block=True,
                default="block in numbers(moe_said) if len(numbers(moe_said)) > 0 else "
                        "present('model.layers.{block}.moe.gate.weight')",
                back="present('blk.{block}.ffn_gate_inp.weight')",
            ),
            HParam("moe_said", ("moe_layers_enum",), (), "str", default="''", back="join(where(is_moe), ',')"),
            N_VOCAB,
        ),
        tensors=(
            TOP_TENSORS[0],
            T("model.norm.weight", "output_norm.weight", Add(1), shape=NORM),
            TOP_TENSORS[2],
            T(
                (), "rope_freqs.weight", generator="llama3_rope_freqs_of_half", when="rope_type == 'llama3'",
                shape=("head_dim // 2",),
            ),
            T(H + "input_layernorm.weight", G + "attn_norm.weight", Add(1), shape=NORM),
            T(H + "post_attention_layernorm.weight", G + "ffn_norm.weight", Add(1), shape=NORM),
            T(A + "q_norm.weight", B + "q_norm.weight", Add(1), shape=("head_dim",)),
            T(A + "k_norm.weight", B + "k_norm.weight", Add(1), shape=("head_dim",)),
            T(A + "q_proj.weight", B + "q.weight", shape=("heads * head_dim", "n_embd")),
            T(A + "k_proj.weight", B + "k.weight", shape=("kvs * head_dim", "n_embd")),
            T(A + "v_proj.weight", B + "v.weight", shape=("kvs * head_dim", "n_embd")),
            T(A + "o_proj.weight", B + "output.weight", shape=("n_embd", "heads * head_dim")),
            T(A + "g_proj.weight", B + "gate.weight", shape=("heads", "n_embd")),
            *only_when("not is_moe", DENSE_FFN),
            *only_when(
                "is_moe",
                (
                    T(H + "moe.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
                    T(H + "moe.router_bias", G + "exp_probs_b.bias", shape=("n_expert",), optional=True),
                    T(H + "moe.gate_proj.weight", G + "ffn_gate_exps.weight", shape=EXPERT),
                    T(H + "moe.down_proj.weight", G + "ffn_down_exps.weight", shape=("n_expert", "n_embd", "n_ff_exp")),
                    T(H + "moe.up_proj.weight", G + "ffn_up_exps.weight", shape=EXPERT),
                    T(H + "share_expert.gate_proj.weight", G + "ffn_gate_shexp.weight", shape=SHARED),
                    T(H + "share_expert.down_proj.weight", G + "ffn_down_shexp.weight", shape=SHARED[::-1]),
                    T(H + "share_expert.up_proj.weight", G + "ffn_up_shexp.weight", shape=SHARED),
                ),
            ),
            *only_when(
                "block >= n_main",
                (
                    T(H + "eh_proj.weight", G + "nextn.eh_proj.weight", shape=("n_embd", "2 * n_embd")),
                    T(H + "enorm.weight", G + "nextn.enorm.weight", Add(1), shape=NORM),
                    T(H + "hnorm.weight", G + "nextn.hnorm.weight", Add(1), shape=NORM),
                    T(SHARED_HEAD + "norm.weight", G + "nextn.shared_head_norm.weight", Add(1), shape=NORM),
                    T(
                        SHARED_HEAD + "output.weight", G + "nextn.shared_head_head.weight", shape=("n_vocab", "n_embd"),
                    ),
                ),
            ),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "vit_large_projector.{rest}", *BEYOND),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            BPE,
            decoder=Decoder(rotated="head_dim if slides else head_dim // 2", scaled="not slides", gating=SIGMOID),
            told=NEXTN_TOLD,
            built_in={
                "rope.partial_rotary_factor": (0.5,),
                "rope_parameters.sliding_attention.partial_rotary_factor": (1.0,),
                "scoring_func": ("sigmoid",),
            },
        ),
    ),
)  # fmt: skip
