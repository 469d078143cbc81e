"""DeepSeek V2 and V3 (R1, Kimi-K2), GLM-4.7-Flash: attention over a compressed cache (MLA), one GGUF architecture.

The cache holds one vector for all heads, so a GGUF says one key/value head, and the matrix that expands it is stored
in two: for the keys, transposed, and for the values. ggml rotates neighbours, as the weights are stored. DeepSeek V3.2
and GLM-5 choose with an indexer what a token sees; Mistral 4 keeps gates and ups of its experts in one tensor.

DeepSeek's first mixture, whose attention is Llama's, and the text model of DeepSeek-OCR, which has no such cache.

Source: the reference converter's DeepseekModel, DeepseekV2Model, DeepseekV32Model, Glm4MoeLiteModel, GlmMoeDsaModel and
Mistral3Model; transformers' configuration classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    ATTENTION_INTERLEAVED,
    DENSE_FFN,
    K_CACHE,
    K_MLA,
    N_ROT,
    NO_SCALING,
    NORM_TENSORS,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    UNSCALED,
    V_CACHE,
    V_MLA,
    VOCAB,
    G,
    H,
)
from converter.architectures.moe import (
    BEYOND,
    DENSE_THEN_EXPERTS,
    MOE_HPARAMS,
    N_DENSE,
    N_EXPERT_SHARED,
    N_FF_EXP,
    N_NEXTN,
    NEXTN_HPARAMS,
    NEXTN_TENSORS,
    NEXTN_TOLD,
    ROUTED,
    ROUTER,
    SHARED_EXPERTS,
    WEIGHTS_SCALE,
    WITH_NEXTN,
)
from converter.architectures.spec import (
    Architecture,
    HFClass,
    HParam,
    T,
    TensorRule,
    amended,
    only_when,
    optional,
    pair,
    without,
)
from converter.architectures.styles import BPE, GLM, SPM_OR_BPE
from converter.architectures.traits import Decoder, Traits
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

CACHE_HPARAMS = (
    *MLA_HPARAMS,
    HParam("one_kv_head", (), ("attention.head_count_kv",), default=1, always=True),
    HParam(
        "n_dense", ("first_k_dense_replace",), ("leading_dense_block_count",), always=True,
        default="0 if n_expert else n_layer",
    ),
    VOCAB,
    HParam("q_lora", ("q_lora_rank",), ("attention.q_lora_rank",), null=0),
    HParam("kv_lora", ("kv_lora_rank",), ("attention.kv_lora_rank",), default=512, always=True),
    K_CACHE,
    V_CACHE,
    K_MLA,
    HParam("k_nope", ("qk_nope_head_dim",), (), required=True, back="k_mla - n_rot"),
    V_MLA,
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
)  # fmt: skip

(NEXTN_COUNTED,) = amended((N_NEXTN,), n_nextn={"null": 0, "always": True})

# What chooses the tokens that a token sees.
INDEXER_HPARAMS = (
    HParam("n_head_indexer", ("index_n_heads",), ("attention.indexer.head_count",), required=True),
    HParam("k_indexer", ("index_head_dim",), ("attention.indexer.key_length",), required=True),
    HParam("top_k_indexer", ("index_topk",), ("attention.indexer.top_k",), required=True),
    HParam("layer_types", ("layer_types",), (), "str[]", per_block="n_main", default="'indexed_attention'"),
    HParam(
        "kinds", ("mlp_layer_types",), (), "str[]", per_block="n_main",
        default="'dense' if block < n_dense else 'sparse'",
    ),
    ATTENTION_BIAS,
)  # fmt: skip

# Which blocks have one; the others see what the one before them chose.
INDEXER_TYPES = (
    HParam(
        "indexers", ("indexer_types",), ("attention.indexer.types",), "bool[]", per_block="n_main",
        default="'full' if max(block - skipped + 1, 0) % max(every, 1) == 0 else 'shared'", always=True,
        values=(("full", True), ("shared", False)),
    ),
    HParam("every", ("index_topk_freq",), (), default=1),
    HParam("skipped", ("index_skip_topk_offset",), (), default=2),
)  # fmt: skip

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

INDEXER, CHOICE = A + "indexer.", G + "indexer."
INDEXER_TENSORS: tuple[TensorRule, ...] = (
    T(INDEXER + "wq_b.weight", CHOICE + "attn_q_b.weight", shape=("n_head_indexer * k_indexer", "q_lora")),
    T(INDEXER + "wk.weight", CHOICE + "attn_k.weight", shape=("k_indexer", "n_embd")),
    *pair(INDEXER + "k_norm", CHOICE + "k_norm", shape=("k_indexer",), bias=True),
    T(INDEXER + "weights_proj.weight", CHOICE + "proj.weight", shape=("n_head_indexer", "n_embd")),
)

V2_DEFAULTS = {"num_key_value_heads": "num_attention_heads"}  # fmt: skip
V3_DEFAULTS = {**V2_DEFAULTS, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}  # fmt: skip

MISTRAL4_DEFAULTS = {
    "kv_lora_rank": 256, "q_lora_rank": 1024, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "head_dim": "qk_nope_head_dim + qk_rope_head_dim", "moe_intermediate_size": 2048, "n_routed_experts": 128,
    "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True,
}  # fmt: skip
OCR_DEFAULTS = {
    "num_key_value_heads": "num_attention_heads", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
    "moe_intermediate_size": 1407, "first_k_dense_replace": 0,
}  # fmt: skip
# The towers of DeepSeek-OCR, and what they put between the lines of an image.
OCR_IMAGES = (
    "model.sam_model.{rest}", "model.vision_model.{rest}", "model.qwen2_model.{rest}", "model.projector.{rest}",
    "model.image_newline", "model.view_seperator",
)

ARCHITECTURES = (
    Architecture(
        gguf="deepseek2",
        hf=(
            HFClass(
                "Glm4MoeLiteForCausalLM",
                "glm4_moe_lite",
                {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
                when="pre == 'glm4'",
                tokenizer=GLM,
            ),
            HFClass(
                "YoutuForCausalLM",
                "youtu",
                when="n_expert == 0",
                facts={"n_nextn_said": 0},
            ),
            HFClass("YoutuVLForConditionalGeneration", "youtu_vl", when="0", facts={"n_nextn_said": 0}),
            HFClass(
                "DeepseekV3ForCausalLM",
                "deepseek_v3",
                V3_DEFAULTS,
                when="topk_method == 'noaux_tc'",
                facts={"n_nextn_said": 0},
                constants={"num_nextn_predict_layers": 0},
            ),
            HFClass("DeepseekV2ForCausalLM", "deepseek_v2", V2_DEFAULTS, facts={"n_nextn_said": 0}),
            # Beside a tower, which another file has.
            HFClass(
                "KimiK25ForConditionalGeneration", "kimi_k2", V3_DEFAULTS, when="0", facts={"n_nextn_said": 0},
            ),
            HFClass("KimiVLForConditionalGeneration", "kimi_vl", V3_DEFAULTS, when="0", facts={"n_nextn_said": 0}),
        ),
        hparams=(
            *CACHE_HPARAMS,
            NEXTN_COUNTED,
            HParam("pre", (), ("/tokenizer.ggml.pre",), "str", default="''"),
            HParam(
                "topk_method", ("topk_method",), (), "str", default="'greedy'",
                back="'noaux_tc' if present('blk.{block}.exp_probs_b.bias', n_dense) else "
                     "'group_limited_greedy' if n_expert_group > 1 else 'greedy'",
            ),
            ATTENTION_BIAS,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *MLA_TENSORS, *DENSE_THEN_EXPERTS, *NEXTN_TENSORS),
        # Youtu-VL's tower stands beside the text model.
        ignore=(*ROPE_BUFFERS, *BEYOND, "siglip2.{rest}", "merger.{rest}"),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            BPE, told=NEXTN_TOLD, built_in={"norm_topk_prob": (True, False)},
            decoder=Decoder(
                neighbours=True, latent_epsilon=1e-6, best_of_group="2 if topk_method == 'noaux_tc' else 1",
            ),
        ),
    ),
    Architecture(
        gguf="deepseek32",
        hf=(
            HFClass(
                "DeepseekV32ForCausalLM",
                "deepseek_v32",
                {"scoring_func": "'sigmoid'"},
            ),
        ),
        hparams=(*CACHE_HPARAMS, NEXTN_COUNTED, *INDEXER_HPARAMS),
        tensors=(
            *TOP_TENSORS, *NORM_TENSORS, *MLA_TENSORS, *INDEXER_TENSORS, *DENSE_THEN_EXPERTS, *NEXTN_TENSORS,
        ),
        ignore=(*ROPE_BUFFERS, *BEYOND),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, told=NEXTN_TOLD),
    ),
    Architecture(
        gguf="glm-dsa",
        hf=(
            HFClass(
                "GlmMoeDsaForCausalLM",
                "glm_moe_dsa",
            ),
        ),
        hparams=(
            *amended(
                CACHE_HPARAMS,
                n_rot={"config": (), "default": "int(rope_width * partial)", "required": False, "always": True},
            ),
            HParam("rope_width", ("qk_rope_head_dim",), (), required=True, back="n_rot"),
            HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default=1.0),
            NEXTN_COUNTED,
            *INDEXER_HPARAMS[:3],
            *INDEXER_TYPES,
            *INDEXER_HPARAMS[3:],
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *MLA_TENSORS,
            *optional(INDEXER_TENSORS),
            *DENSE_THEN_EXPERTS,
            *NEXTN_TENSORS,
        ),
        ignore=(*ROPE_BUFFERS, *BEYOND),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(GLM, told=NEXTN_TOLD),
    ),
    Architecture(
        gguf="mistral4",
        hf=(
            HFClass("Mistral4ForCausalLM", "mistral4", MISTRAL4_DEFAULTS, facts={"n_nextn_said": 0}),
            HFClass(
                "Mistral3ForConditionalGeneration",
                "mistral3",
                MISTRAL4_DEFAULTS,
                takes="text_type == 'mistral4'",
                when="0",
                facts={"n_nextn_said": 0},
            ),
        ),
        hparams=(
            *amended(CACHE_HPARAMS, head_dim={"back": "k_mla"}),
            HParam("text_type", ("model_type",), (), "str", default="'mistral4'"),
            HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default="n_rot / k_mla"),
            NEXTN_COUNTED,
            HParam(
                "temperature_scale", ("rope.llama_4_scaling_beta",), ("attention.temperature_scale",), "f32", default=0
            ),
            HParam(
                "temperature_length", (), ("attention.temperature_length",), default="rope_n_ctx_orig", always=True,
                when="temperature_scale > 0",
            ),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *MLA_TENSORS,
            *only_when("block < n_dense", DENSE_FFN),
            *only_when(
                "block >= n_dense",
                (
                    ROUTER[0],
                    T(
                        H + "mlp.experts.gate_up_proj", G + "ffn_gate_up_exps.weight",
                        shape=("n_expert", "2 * n_ff_exp", "n_embd"),
                    ),
                    T(
                        H + "mlp.experts.down_proj", G + "ffn_down_exps.weight",
                        shape=("n_expert", "n_embd", "n_ff_exp"),
                    ),
                    *SHARED_EXPERTS,
                ),
            ),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, decoder=Decoder(neighbours=True, latent_epsilon=1e-6)),
    ),
    Architecture(
        gguf="deepseek",
        hf=(
            HFClass(
                "DeepseekForCausalLM",
                "deepseek",
                {
                    "num_key_value_heads": "num_attention_heads", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "max_position_embeddings": 2048, "first_k_dense_replace": 0,
                },
                constants={"moe_layer_freq": 1, "norm_topk_prob": False},
            ),
        ),
        hparams=(
            *amended(MOE_HPARAMS, n_expert=ROUTED, **UNSCALED),
            N_ROT,
            NO_SCALING,
            *amended((N_DENSE,), n_dense={"always": True}),
            VOCAB,
            N_FF_EXP,
            HParam("weights_scale", (), ("expert_weights_scale",), "f32", default=1.0, always=True),
            *amended((N_EXPERT_SHARED,), n_expert_shared={"always": True}),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION_INTERLEAVED,
            *without(DENSE_THEN_EXPERTS, G + "exp_probs_b.bias"),
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(SPM_OR_BPE, built_in={"norm_topk_prob": (False,)}, decoder=Decoder(weights_norm=False)),
    ),
    Architecture(
        gguf="deepseek2-ocr",
        hf=(
            HFClass(
                "DeepseekOCRForCausalLM", "deepseek_vl_v2", OCR_DEFAULTS,
                constants={"use_mla": False, "qk_nope_head_dim": 0, "v_head_dim": 0, "kv_lora_rank": None},
            ),
            HFClass("UnlimitedOCRForCausalLM", "deepseek_vl_v2", OCR_DEFAULTS, when="0"),
        ),
        hparams=(
            HParam(
                "template", (), ("/tokenizer.chat_template",), "str", default="'plain'", always=True, early=True,
                values=(("plain", "{% for m in messages %}{{m['content']}}{% endfor %}"),),
            ),
            *amended(MOE_HPARAMS, n_expert=ROUTED),
            *amended((N_DENSE,), n_dense={"always": True}),
            VOCAB,
            HParam("q_lora", ("q_lora_rank",), ("attention.q_lora_rank",), null=0),
            N_FF_EXP,
            *amended((N_EXPERT_SHARED,), n_expert_shared={"always": True}),
            WEIGHTS_SCALE,
            HParam(
                "weights_norm", ("norm_topk_prob",), ("expert_weights_norm",), "bool", values=((True, True),),
                back=False,
            ),
            HParam("n_rot", ("qk_rope_head_dim",), ("rope.dimension_count",), default=0, always=True),
            HParam("window", ("sliding_window_size", "sliding_window"), ("attention.sliding_window",), null=0),
            ATTENTION_BIAS,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *DENSE_THEN_EXPERTS),
        ignore=(*ROPE_BUFFERS, *OCR_IMAGES),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, decoder=Decoder(rotated="head_dim"), built_in={"norm_topk_prob": (False, True)}),
    ),
)  # fmt: skip
