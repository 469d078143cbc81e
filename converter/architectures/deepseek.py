"""DeepSeek V2 and V3 (R1, Kimi-K2), GLM-4.7-Flash: attention over a compressed cache (MLA), one GGUF architecture.

The cache holds one vector for all heads, so a GGUF says one key/value head, and the matrix that expands it is stored
in two: for the keys, transposed, and for the values. ggml rotates neighbours, as the weights are stored.

Source: the reference converter's DeepseekV2Model and Glm4MoeLiteModel; transformers' configuration classes for the
defaults.
"""

from converter.architectures.common import (
    ATTENTION_BIAS,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.moe import (
    BEYOND,
    DENSE_THEN_EXPERTS,
    MOE_HPARAMS,
    N_EXPERT_SHARED,
    N_NEXTN,
    NEXTN_HPARAMS,
    NEXTN_TENSORS,
    NEXTN_TOLD,
    ROUTED,
    WEIGHTS_SCALE,
    WITH_NEXTN,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, TensorRule, amended, only_when, pair
from converter.architectures.styles import BPE, GLM
from converter.architectures.traits import Traits
from converter.tensors.ops import ROW, At, Reshape, Split, Transpose

# What a GGUF says of the cache stands before what the model has, under the keys of ordinary attention.
MLA_HPARAMS = (
    *amended(
        MOE_HPARAMS,
        n_layer=WITH_NEXTN,
        n_expert=ROUTED,
        n_head_kv={"always": True, "back": "n_head"},
        head_dim={"default": None, "back": "n_rot"},
        n_expert_group={"default": 1},
    ),
    *NEXTN_HPARAMS,
)

A, B = H + "self_attn.", G + "attn_"
MLA_TENSORS: tuple[TensorRule, ...] = (
    *only_when("q_lora == 0", pair(A + "q_proj", B + "q", shape=("n_head * k_mla", "n_embd"))),
    *only_when(
        "q_lora > 0",
        (
            *pair(A + "q_a_proj", B + "q_a", shape=("q_lora", "n_embd")),
            T(A + "q_a_layernorm.weight", B + "q_a_norm.weight", shape=("q_lora",)),
            T(A + "q_b_proj.weight", B + "q_b.weight", shape=("n_head * k_mla", "q_lora")),
        ),
    ),
    *pair(A + "kv_a_proj_with_mqa", B + "kv_a_mqa", shape=("kv_lora + n_rot", "n_embd")),
    T(A + "kv_a_layernorm.weight", B + "kv_a_norm.weight", shape=("kv_lora",)),
    T(
        A + "kv_b_proj.weight", (B + "k_b.weight", B + "v_b.weight"),
        Reshape(("n_head_kv * (k_nope + v_mla)", ROW), ("n_head_kv", "k_nope + v_mla", ROW)),
        Split(1, ("k_nope", "v_mla")),
        At(0, Transpose((0, 2, 1))),
        shape=("n_head_kv * (k_nope + v_mla)", "kv_lora"),
    ),
    *pair(A + "o_proj", B + "output", shape=("n_embd", "n_head * v_mla")),
)  # fmt: skip

V2_DEFAULTS = {
    "num_key_value_heads": "num_attention_heads", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 2048, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "head_dim": "qk_rope_head_dim", "moe_intermediate_size": 1407,
    "n_routed_experts": 64, "n_shared_experts": 2, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0,
    "norm_topk_prob": False, "topk_method": "greedy",
}  # fmt: skip
V3_DEFAULTS = {
    **V2_DEFAULTS, "max_position_embeddings": 4096, "num_key_value_heads": 128, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}  # fmt: skip

ARCHITECTURES = (
    Architecture(
        gguf="deepseek2",
        hf=(
            HFClass(
                "Glm4MoeLiteForCausalLM",
                "glm4_moe_lite",
                {
                    "num_key_value_heads": 20, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                    "max_position_embeddings": 202752, "kv_lora_rank": 512, "q_lora_rank": 768,
                    "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256, "moe_intermediate_size": 1536,
                    "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 1,
                    "topk_group": 1, "routed_scaling_factor": 1.8, "norm_topk_prob": True, "scoring_func": "sigmoid",
                    "topk_method": "noaux_tc",
                },
                when="pre == 'glm4'",
                tokenizer=GLM,
            ),
            HFClass(
                "YoutuForCausalLM",
                "youtu",
                {
                    "num_key_value_heads": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "max_position_embeddings": 131072, "kv_lora_rank": 512, "q_lora_rank": 1536,
                    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "head_dim": "qk_rope_head_dim",
                },
                when="n_expert == 0",
                facts={"n_nextn_said": 0},
            ),
            HFClass(
                "DeepseekV3ForCausalLM",
                "deepseek_v3",
                V3_DEFAULTS,
                when="topk_method == 'noaux_tc'",
                facts={"n_nextn_said": 0},
                constants={"num_nextn_predict_layers": 0},
            ),
            HFClass("DeepseekV2ForCausalLM", "deepseek_v2", V2_DEFAULTS, facts={"n_nextn_said": 0}),
        ),
        hparams=(
            *MLA_HPARAMS,
            HParam("one_kv_head", (), ("attention.head_count_kv",), default=1, always=True),
            HParam(
                "n_dense", ("first_k_dense_replace",), ("leading_dense_block_count",), always=True,
                default="0 if n_expert else n_layer",
            ),
            HParam("vocab", (), ("vocab_size",), default="n_vocab", always=True),
            HParam("q_lora", ("q_lora_rank",), ("attention.q_lora_rank",), null=0),
            HParam("kv_lora", ("kv_lora_rank",), ("attention.kv_lora_rank",), default=512, always=True),
            HParam("k_cache", (), ("attention.key_length",), default="kv_lora + n_rot", always=True),
            HParam("v_cache", (), ("attention.value_length",), default="kv_lora", always=True),
            HParam("k_mla", (), ("attention.key_length_mla",), default="k_nope + n_rot", always=True),
            HParam("k_nope", ("qk_nope_head_dim",), (), required=True, back="k_mla - n_rot"),
            HParam("v_mla", ("v_head_dim",), ("attention.value_length_mla",), required=True),
            HParam(
                "n_ff_exp", ("moe_intermediate_size",), ("expert_feed_forward_length",), default="n_ff", always=True
            ),
            *amended((N_EXPERT_SHARED,), n_expert_shared={"always": True}),
            WEIGHTS_SCALE,
            HParam(
                "weights_norm", ("norm_topk_prob",), ("expert_weights_norm",), "bool", values=((True, True),),
                back=False,
            ),
            HParam("n_rot", ("qk_rope_head_dim",), ("rope.dimension_count",), required=True),
            HParam(
                "yarn_log", (), ("rope.scaling.yarn_log_multiplier",), "f32", default="0.1 * mscale_all",
                follows="mscale_all",
            ),
            HParam("mscale_all", ("rope.mscale_all_dim",), (), "f32", back="yarn_log / 0.1", follows="yarn_log"),
            HParam("mscale", ("rope.mscale",), (), "f32", back="mscale_all", follows="mscale_all"),
            *amended((N_NEXTN,), n_nextn={"null": 0, "always": True}),
            HParam("pre", (), ("/tokenizer.ggml.pre",), "str", default="''"),
            HParam(
                "topk_method", ("topk_method",), (), "str", default="'greedy'",
                back="'noaux_tc' if present('blk.{block}.exp_probs_b.bias', n_dense) else "
                     "'group_limited_greedy' if n_expert_group > 1 else 'greedy'",
            ),
            ATTENTION_BIAS,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *MLA_TENSORS, *DENSE_THEN_EXPERTS, *NEXTN_TENSORS),
        ignore=(*ROPE_BUFFERS, *BEYOND),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, told=NEXTN_TOLD, built_in={"norm_topk_prob": (True, False)}),
    ),
)  # fmt: skip
