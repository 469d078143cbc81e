"""EXAONE 3 and 3.5: Llama under other names; EXAONE 4, whose norms follow and whose blocks slide; K-EXAONE, a mixture.

Source: the reference converter's ExaoneModel, Exaone4Model and ExaoneMoEModel; transformers' configuration classes, and
that which the older models bring along, for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DECODER_HPARAMS,
    DENSE_FFN,
    KV,
    LLAMA3_ROPE_FREQS,
    NO_SCALING,
    NORM,
    NORM_TENSORS,
    OTHER_INPUTS,
    PARTIAL_OF_HEAD,
    QK_NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    UNSCALED,
    VOCAB,
    WINDOW_PATTERN,
    G,
    H,
    Q,
)
from converter.architectures.moe import (
    EXPERTS,
    MOE_HPARAMS,
    N_FF_EXP,
    NEXTN_HPARAMS,
    NEXTN_TOLD,
    ROUTER,
    SHARED_EXPERTS,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    WITH_NEXTN,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, moved, only_when
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, SlidingWindow, Traits

B = "transformer.h.{block}."
ATTN = B + "attn.attention."

MOE_DEFAULTS = {"scoring_func": "'sigmoid'"}
BIAS = H + "mlp.e_score_correction_bias"
BIASED_ROUTER = (ROUTER[0], T(BIAS, G + "exp_probs_b.bias", shape=("n_expert",), optional=True))
# The blocks for further tokens are of the dense kind, and what they have besides stands outside them.
MTP_BLOCK = "blk.{n_main}.nextn."
BESIDE_MTP = only_when(
    "n_nextn > 0",
    (
        T("mtp.fc.weight", MTP_BLOCK + "eh_proj.weight", shape=("n_embd", "2 * n_embd")),
        T("mtp.pre_fc_norm_embedding.weight", MTP_BLOCK + "enorm.weight", shape=NORM),
        T("mtp.pre_fc_norm_hidden.weight", MTP_BLOCK + "hnorm.weight", shape=NORM),
        T("mtp.norm.weight", MTP_BLOCK + "shared_head_norm.weight", shape=NORM),
    ),
)
MTP = (
    *only_when(
        "block >= n_main", moved(H, "mtp.layers.{block-n_main}.", (*NORM_TENSORS, *ATTENTION, *QK_NORM, *DENSE_FFN))
    ),
    *BESIDE_MTP,
)
BLOCK_4 = (
    *ATTENTION,
    *QK_NORM,
    T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
    T(H + "post_feedforward_layernorm.weight", G + "post_ffw_norm.weight", shape=NORM),
    *DENSE_FFN,
)

ARCHITECTURES = (
    Architecture(
        gguf="exaone",
        hf=(
            HFClass(
                "ExaoneForCausalLM",
                "exaone",
                {
                    "rope_theta": 10000.0, "max_position_embeddings": 2048,
                    "num_key_value_heads": "num_attention_heads",
                },
            ),
        ),
        hparams=(
            *before(
                "n_expert",
                (HParam("norm_eps", ("layer_norm_epsilon",), ("attention.layer_norm_epsilon",), "f32"),),
                amended(
                    DECODER_HPARAMS,
                    n_layer={"config": ("num_layers", "num_hidden_layers", "n_layer")},
                    # The class has one epsilon, and the runtime reads it under this name.
                    rms_eps={"config": ("rms_norm_eps", "layer_norm_epsilon")},
                ),
            ),
            HParam("n_rot", (), ("rope.dimension_count",), default="int(partial * head_dim)", always=True),
            PARTIAL_OF_HEAD,
            HParam("activation", ("activation_function",), (), "str", back="'silu'"),
        ),
        tensors=(
            T("transformer.wte.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("transformer.ln_f.weight", "output_norm.weight", shape=NORM),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            T(B + "ln_1.weight", G + "attn_norm.weight", shape=NORM),
            T(B + "ln_2.weight", G + "ffn_norm.weight", shape=NORM),
            T(ATTN + "q_proj.weight", G + "attn_q.weight", shape=(Q, "n_embd")),
            T(ATTN + "k_proj.weight", G + "attn_k.weight", shape=(KV, "n_embd")),
            T(ATTN + "v_proj.weight", G + "attn_v.weight", shape=(KV, "n_embd")),
            T(ATTN + "out_proj.weight", G + "attn_output.weight", shape=("n_embd", Q)),
            T(B + "mlp.c_fc_0.weight", G + "ffn_gate.weight", shape=("n_ff", "n_embd")),
            T(B + "mlp.c_fc_1.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
            T(B + "mlp.c_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
            LLAMA3_ROPE_FREQS,
        ),
        ignore=("transformer.rotary.inv_freq",),
        traits=Traits(BPE, decoder=Decoder(rms=True)),
    ),
    Architecture(
        gguf="exaone4",
        hf=(
            HFClass("Exaone4ForCausalLM", "exaone4"),
            # Its text model, which may have blocks for further tokens.
            HFClass("Exaone4_5_ForConditionalGeneration", "exaone4_5", when="0"),
        ),
        hparams=(
            *amended(DECODER_HPARAMS, n_layer=WITH_NEXTN, n_vocab={"gguf": ("vocab_size",)}),
            *NEXTN_HPARAMS,
            # Without a window, the class divides by a period of zero unless it is told the kind of each block.
            *amended(
                WINDOW_PATTERN, slides={"per_block": "n_main"}, layer_types={"per_block": "n_main", "stated": True},
            ),
            HParam("period", ("sliding_window_pattern",), (), "u32 or str", default=4, back=4),
            HParam(
                "n_nextn", (), ("nextn_predict_layers",), always=True, back=0, null=0,
                default="n_nextn_said if present('mtp.fc.weight') else 0",
            ),
        ),
        tensors=(
            *TOP_TENSORS,
            *only_when("block < n_main", BLOCK_4),
            *only_when("block >= n_main", moved(H, "mtp.layers.{block-n_main}.", BLOCK_4)),
            *BESIDE_MTP,
            LLAMA3_ROPE_FREQS,
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "mtp.{rest}"),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            BPE, window=SlidingWindow(4), told=NEXTN_TOLD,
            decoder=Decoder(rotates="window == 0 or layer_types == 'sliding_attention'"),
        ),
    ),
    Architecture(
        gguf="exaone-moe",
        hf=(
            HFClass("ExaoneMoeForCausalLM", "exaone_moe", MOE_DEFAULTS),
            HFClass("ExaoneMoEForCausalLM", "exaone_moe", MOE_DEFAULTS, when="0"),
        ),
        hparams=(
            *amended(
                MOE_HPARAMS, n_layer=WITH_NEXTN, n_expert={"config": ("num_experts", "num_local_experts")}, **UNSCALED
            ),
            *NEXTN_HPARAMS,
            VOCAB,
            *amended(WINDOW_PATTERN, slides={"per_block": "n_main"}, layer_types={"per_block": "n_main"}),
            HParam("period", ("sliding_window_pattern",), (), "u32 or str", default=4, back=4),
            N_FF_EXP,
            HParam("n_expert_shared", ("num_shared_experts",), ("expert_shared_count",), required=True),
            HParam(
                "n_ff_shexp", (), ("expert_shared_feed_forward_length",), default="n_ff_exp * n_expert_shared",
                always=True,
            ),
            WEIGHTS_SCALE,
            WEIGHTS_NORM,
            HParam(
                "n_dense", ("first_k_dense_replace", "first_last_k_dense_replace"), ("leading_dense_block_count",),
                default=0, always=True,
            ),
            HParam(
                "kinds", ("mlp_layer_types",), (), "str[]", per_block="n_main",
                default="'dense' if block < n_dense else 'sparse'",
            ),
            HParam(
                "n_nextn", (), ("nextn_predict_layers",), always=True, back=0,
                default="n_nextn_said if present('mtp.fc.weight') else 0",
            ),
            NO_SCALING,
        ),
        tensors=(
            *TOP_TENSORS,
            *only_when("block < n_main", (*NORM_TENSORS, *ATTENTION, *QK_NORM)),
            *only_when("block < n_dense", DENSE_FFN),
            *only_when("block >= n_dense and block < n_main", (*BIASED_ROUTER, *EXPERTS, *SHARED_EXPERTS)),
            *MTP,
            LLAMA3_ROPE_FREQS,
        ),
        ignore=(*ROPE_BUFFERS, "mtp.{rest}"),
        aliases=((H + "mlp.gate.e_score_correction_bias", BIAS),),
        traits=Traits(
            BPE, window=SlidingWindow(4), told=NEXTN_TOLD,
            decoder=Decoder(rotates="window == 0 or layer_types == 'sliding_attention'"),
        ),
    ),
)  # fmt: skip
