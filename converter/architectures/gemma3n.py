"""Gemma 3n: several streams beside the residual (AltUp), a low-rank one around each block (Laurel), inputs per block.

Norms are stored as they are. Source: the reference converter's Gemma3NModel; llama.cpp's gemma3n.cpp; transformers'
configuration class for the defaults.
"""

from converter.architectures.common import (
    DECODER_HPARAMS,
    KV,
    NORM,
    QK_NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
    Q,
)
from converter.architectures.gemma3 import BUILT_IN, ROPE_THETA_SWA
from converter.architectures.gemma4 import IDLE, OWN_KV, REUSED, TOWERS
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before
from converter.architectures.styles import GEMMA3
from converter.architectures.traits import Decoder, SlidingWindow, Traits
from converter.tensors.ops import Rows

DEFAULTS = {"intermediate_size": 16384, "rope_local_base_freq": 10000.0}
ALTUP = "model.layers.{block}.altup."

HPARAMS = (
    *before(
        "rms_eps", (ROPE_THETA_SWA,),
        amended(DECODER_HPARAMS, n_ff={"type": "u32 or i32[]"}, n_ctx={"required": True}),
    ),
    HParam("final_softcap", ("final_logit_softcapping",), ("final_logit_softcapping",), "f32"),
    HParam("window", ("sliding_window",), ("attention.sliding_window",), required=True),
    HParam("active", ("altup_active_idx",), ("altup.active_idx",), default=0, always=True),
    HParam("n_altup", ("altup_num_inputs",), ("altup.num_inputs",), default=4, always=True),
    HParam(
        "n_embd_pl", ("hidden_size_per_layer_input",), ("embedding_length_per_layer_input",), required=True,
    ),
    HParam("n_shared", ("num_kv_shared_layers",), ("attention.shared_kv_layers",), required=True),
    # The part of the activations that is cut off, as the quantile of a normal distribution: of nothing, -infinity.
    HParam(
        "sparsity", ("activation_sparsity_pattern",), ("activation_sparsity_scale",), "f32[]", per_block=True,
        default="0.95 if block < 10 and n_layer > 10 else 0.0", always=True, closed=True,
        values=((0.95, 1.6448535919189453), (0.0, -1e999), (0, -1e999)),
    ),
    HParam(
        "is_swa", (), ("attention.sliding_window_pattern",), "bool[]", per_block=True, always=True,
        default="layer_types == 'sliding_attention'",
    ),
    HParam(
        "layer_types", ("layer_types",), (), "str[]", per_block=True,
        default="'sliding_attention' if (block + 1) % 5 > 0 else 'full_attention'",
        back="'sliding_attention' if is_swa else 'full_attention'",
    ),
    # Images and sounds have tokens without inputs per block: their rows are zeros in the file.
    HParam(
        "n_vocab_pl", ("vocab_size_per_layer_input",), (), required=True,
        back="min(shape('per_layer_token_embd.weight', 0), 262144)",
    ),
    HParam("laurel_rank", ("laurel_rank",), (), default=64, back="shape('blk.0.laurel_l.weight', 0)"),
)

TENSORS = (
    *TOP_TENSORS,
    T(
        "model.embed_tokens_per_layer.weight", "per_layer_token_embd.weight",
        Rows("n_vocab_pl", "max(n_vocab, n_vocab_pl)"), shape=("n_vocab_pl", "n_layer * n_embd_pl"),
    ),
    T(
        "model.per_layer_model_projection.weight", "per_layer_model_proj.weight",
        shape=("n_layer * n_embd_pl", "n_embd"),
    ),
    T("model.per_layer_projection_norm.weight", "per_layer_proj_norm.weight", shape=("n_embd_pl",)),
    T(
        "model.altup_projections.{expert}.weight", "altup_proj.weight",
        shape=("n_embd", "n_embd"), count="n_altup - 1",
    ),
    T(
        "model.altup_unembed_projections.{expert}.weight", "altup_unembd_proj.weight",
        shape=("n_embd", "n_embd"), count="n_altup - 1",
    ),
    T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
    T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
    T(H + "pre_feedforward_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
    T(H + "post_feedforward_layernorm.weight", G + "post_ffw_norm.weight", shape=NORM),
    T(H + "self_attn.q_proj.weight", G + "attn_q.weight", shape=(Q, "n_embd")),
    T(H + "self_attn.o_proj.weight", G + "attn_output.weight", shape=("n_embd", Q)),
    QK_NORM[0],
    T(H + "self_attn.k_proj.weight", G + "attn_k.weight", shape=(KV, "n_embd"), when=OWN_KV),
    T(H + "self_attn.v_proj.weight", G + "attn_v.weight", shape=(KV, "n_embd"), when=OWN_KV),
    T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", shape=("head_dim",), when=OWN_KV),
    # Published models do.
    T(H + "self_attn.k_proj.weight", G + "attn_k.weight", shape=(KV, "n_embd"), when=REUSED, **IDLE),
    T(H + "self_attn.v_proj.weight", G + "attn_v.weight", shape=(KV, "n_embd"), when=REUSED, **IDLE),
    T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", shape=("head_dim",), when=REUSED, **IDLE),
    T(H + "mlp.gate_proj.weight", G + "ffn_gate.weight", shape=("n_ff", "n_embd")),
    T(H + "mlp.up_proj.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
    T(H + "mlp.down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
    T(H + "per_layer_input_gate.weight", G + "inp_gate.weight", shape=("n_embd_pl", "n_embd")),
    T(H + "per_layer_projection.weight", G + "proj.weight", shape=("n_embd", "n_embd_pl")),
    T(H + "post_per_layer_input_norm.weight", G + "post_norm.weight", shape=NORM),
    T(ALTUP + "correction_coefs.weight", G + "altup_correct_coef.weight", shape=("n_altup", "n_altup")),
    T(ALTUP + "correct_output_scale", G + "altup_correct_scale.weight", shape=NORM),
    T(ALTUP + "prediction_coefs.weight", G + "altup_predict_coef.weight", shape=("n_altup ** 2", "n_altup")),
    T(ALTUP + "modality_router.weight", G + "altup_router.weight", shape=("n_altup", "n_embd")),
    T(ALTUP + "router_norm.weight", G + "altup_router_norm.weight", shape=NORM),
    T(H + "laurel.linear_left.weight", G + "laurel_l.weight", shape=("laurel_rank", "n_embd")),
    T(H + "laurel.linear_right.weight", G + "laurel_r.weight", shape=("n_embd", "laurel_rank")),
    T(H + "laurel.post_laurel_norm.weight", G + "laurel_post_norm.weight", shape=NORM),
)

ARCHITECTURES = (
    Architecture(
        gguf="gemma3n",
        hf=(
            HFClass("Gemma3nForCausalLM", "gemma3n_text", DEFAULTS),
            HFClass("Gemma3nForConditionalGeneration", "gemma3n", DEFAULTS, when="0"),
        ),
        hparams=HPARAMS,
        tensors=TENSORS,
        ignore=(*ROPE_BUFFERS, *TOWERS),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            GEMMA3, window=SlidingWindow(5), first_shared=20, built_in=BUILT_IN,
            decoder=Decoder(
                "gelu_tanh", embedding="sqrt(n_embd)", scale="1", unit_values=True,
                scaled="layer_types == 'full_attention'",
            ),
        ),
    ),
)
