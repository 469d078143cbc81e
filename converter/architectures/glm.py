"""GLM, GLM-4, GLM-4.5 to 4.7, Solar Open, the text models of GLM-4.1V, GLM-4.5V and GLM-OCR.

ggml rotates neighbours for the first two and halves for the others, as they are stored; with a position of three parts
(time, height, width, equal in text alone) it rotates halves always, so that GLM-4's heads are reordered for it.
Source: the reference converter's ChatGLMModel, Glm4Model, GlmOCRModel, Glm4MoeModel, SolarOpenModel; transformers'
configuration classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    KV,
    MROPE,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_LAYER,
    N_ROT_OF_HEAD,
    N_VOCAB,
    NORM,
    NORM_TENSORS,
    OTHER_INPUTS,
    QK_NORM,
    RMS_EPS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
    Q,
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
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    WITH_NEXTN,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, only_when, pair
from converter.architectures.styles import CHATGLM, GLM, GLM4, SOLAR
from converter.architectures.traits import SIGMOID, Decoder, Traits
from converter.tensors.ops import Rope

PARTIAL = HParam(
    "partial", ("partial_rotary_factor", "rope.partial_rotary_factor"), (), "f32", default=0.5, back="n_rot / head_dim"
)

WHOLE = {"partial_rotary_factor": 1.0}  # a head turns as a whole where nothing says that it does in part
IN_PARTS = "len(mrope_sections) > 0"
QK_IN_PARTS = only_when(
    IN_PARTS,
    (
        *pair(H + "self_attn.q_proj", G + "attn_q", Rope("n_head", True, "n_rot"), shape=(Q, "n_embd")),
        *pair(H + "self_attn.k_proj", G + "attn_k", Rope("n_head_kv", True, "n_rot"), shape=(KV, "n_embd")),
    ),
)

# ChatGLM 2 and 3 and GLM-4 with their own code: the same model under other names, heads in one tensor, as in its GGUF.
CHATGLM_KEYS = {
    "num_hidden_layers": "num_layers", "num_key_value_heads": "multi_query_group_num", "head_dim": "kv_channels",
    "intermediate_size": "ffn_hidden_size", "rms_norm_eps": "layernorm_epsilon", "vocab_size": "padded_vocab_size",
    "attention_bias": "add_qkv_bias",
}  # fmt: skip
FUSED_BIAS = "present('blk.0.attn_qkv.bias')"
C = "transformer.encoder.layers.{block}."
CHATGLM_TENSORS = only_when(
    "fused",
    (
        T("transformer.embedding.word_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
        T("transformer.encoder.final_layernorm.weight", "output_norm.weight", shape=NORM),
        T(
            "transformer.output_layer.weight", "output.weight", shape=("n_vocab", "n_embd"),
            tied_to="token_embd.weight",
        ),
        T(C + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
        T(C + "post_attention_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
        *pair(C + "self_attention.query_key_value", G + "attn_qkv", shape=(f"{Q} + 2 * {KV}", "n_embd")),
        *pair(C + "self_attention.dense", G + "attn_output", shape=("n_embd", Q)),
        T(C + "mlp.dense_h_to_4h.weight", G + "ffn_up.weight", shape=("2 * n_ff", "n_embd")),
        T(C + "mlp.dense_4h_to_h.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
    ),
)  # fmt: skip

ARCHITECTURES = (
    Architecture(
        gguf="chatglm",
        hf=(
            HFClass("GlmForCausalLM", "glm", when="not fused"),
            HFClass("ChatGLMModel", "chatglm", when="fused", facts={"fused": 1}, keys=CHATGLM_KEYS),
            HFClass("ChatGLMForConditionalGeneration", "chatglm", when="0", facts={"fused": 1}, keys=CHATGLM_KEYS),
        ),
        hparams=(
            HParam("n_ctx", ("seq_length", "max_position_embeddings"), ("context_length",), required=True),
            N_EMBD,
            N_FF,
            N_LAYER,
            N_HEAD,
            HParam("n_head_kv", ("num_key_value_heads",), ("attention.head_count_kv",), required=True),
            RMS_EPS,
            N_ROT_OF_HEAD,
            HParam("adds_bos", (), ("/tokenizer.ggml.add_bos_token",), "bool", default=False, always=True),
            HParam(
                "rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32", default="10000 * rope_ratio",
                always=True,
            ),
            HParam("rope_ratio", ("rope_ratio",), (), "f32", default=1, back="rope_theta / 10000 if fused else 1"),
            HParam("rope_type", ("rope.rope_type",), (), "str", default="'default'"),
            N_VOCAB,
            HParam("head_dim", ("head_dim",), (), default="n_embd // n_head"),
            PARTIAL,
            *amended((ATTENTION_BIAS,), attention_bias={"back": f"{ATTENTION_BIAS.back} or {FUSED_BIAS}"}),
            HParam("fused", default=0, back="present('blk.0.attn_qkv.weight')"),
        ),
        tensors=(
            *CHATGLM_TENSORS,
            *only_when(
                "not fused",
                (
                    *TOP_TENSORS,
                    *NORM_TENSORS,
                    *ATTENTION,
                    T(H + "mlp.gate_up_proj.weight", G + "ffn_up.weight", shape=("2 * n_ff", "n_embd")),
                    T(H + "mlp.down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
                ),
            ),
        ),
        ignore=(*ROPE_BUFFERS, "transformer.rotary_pos_emb.inv_freq"),
        traits=Traits(CHATGLM, decoder=Decoder(neighbours=True)),
    ),
    Architecture(
        gguf="glm4",
        hf=(
            HFClass(
                "Glm4ForCausalLM",
                "glm4",
            ),
            HFClass("Glm4vForConditionalGeneration", "glm4v", WHOLE, when="0"),
            HFClass("GlmOcrForConditionalGeneration", "glm_ocr", WHOLE, when="0"),
        ),
        hparams=(
            *before("rope_theta", MROPE, amended(DECODER_HPARAMS, n_layer=WITH_NEXTN)),
            *NEXTN_HPARAMS,
            PARTIAL,
            N_ROT_OF_HEAD,
            *amended((N_NEXTN,), n_nextn={"null": 0}),
            ATTENTION_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
            T(H + "post_self_attn_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
            T(H + "post_attention_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
            T(H + "post_mlp_layernorm.weight", G + "post_ffw_norm.weight", shape=NORM),
            *only_when(f"not ({IN_PARTS})", ATTENTION[:4]),
            *QK_IN_PARTS,
            *ATTENTION[4:],
            T(H + "mlp.gate_up_proj.weight", G + "ffn_up.weight", shape=("2 * n_ff", "n_embd")),
            T(H + "mlp.down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
            *NEXTN_TENSORS,
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, *BEYOND),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(GLM4, told=NEXTN_TOLD, decoder=Decoder(neighbours=True)),
    ),
    Architecture(
        gguf="glm4moe",
        hf=(
            HFClass(
                "SolarOpenForCausalLM",
                "solar_open",
                WHOLE,
                when="n_rot == head_dim and n_dense == 0 and len(mrope_sections) == 0",
                tokenizer=SOLAR,
            ),
            HFClass(
                "Glm4MoeForCausalLM",
                "glm4_moe",
            ),
            HFClass("Glm4vMoeForConditionalGeneration", "glm4v_moe", when="0"),
        ),
        hparams=(
            *before(
                "rope_theta", MROPE,
                amended(MOE_HPARAMS, n_layer=WITH_NEXTN, n_expert=ROUTED, n_ff={"required": False}),
            ),
            *NEXTN_HPARAMS,
            PARTIAL,
            N_ROT_OF_HEAD,
            N_FF_EXP,
            N_EXPERT_SHARED,
            N_DENSE,
            HParam("sigmoid", (), ("expert_gating_func",), default=2, always=True),
            WEIGHTS_SCALE,
            WEIGHTS_NORM,
            N_NEXTN,
            ATTENTION_BIAS,
            HParam(
                "use_qk_norm", ("use_qk_norm",), (), "bool", default=False, back="present('blk.0.attn_q_norm.weight')"
            ),
        ),
        tensors=(
            *TOP_TENSORS,
            T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
            T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
            *ATTENTION,
            *only_when("use_qk_norm", QK_NORM),
            *DENSE_THEN_EXPERTS,
            *NEXTN_TENSORS,
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, *BEYOND),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(GLM, told=NEXTN_TOLD, decoder=Decoder(ffn_norm="post_attention_norm", gating=SIGMOID)),
    ),
)  # fmt: skip
