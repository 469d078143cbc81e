"""Gemma 4. Sliding blocks have heads of their own size, and some blocks reuse the keys and values of earlier ones.

Norms are stored as they are. Source: the reference converter's Gemma4Model and Gemma4UnifiedModel; llama.cpp's
gemma4.cpp; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    DECODER_HPARAMS,
    N_ROT,
    NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before
from converter.architectures.styles import NO_PREFIX
from converter.architectures.traits import Decoder, TokenizerStyle, Traits
from converter.metadata import boolean

DEFAULTS = {"global_head_dim": 512}
# The towers of images and sounds, which another file has.
TOWERS = (
    "model.vision_tower.{rest}", "model.audio_tower.{rest}", "model.embed_vision.{rest}", "model.embed_audio.{rest}",
    "model.vision_embedder.{rest}",
)
OWN_KV, REUSED = "block < n_layer - n_shared", "block >= n_layer - n_shared"
# Some checkpoints store what is not used.
IDLE = {"optional": True, "idle": True}
KV_SHAPE = ("n_kv_here * d_head", "n_embd")

HPARAMS = (
    *before(
        "rms_eps",
        (
            HParam(
                "rope_theta_swa", ("rope_parameters.sliding_attention.rope_theta",), ("rope.freq_base_swa",), "f32",
            ),
        ),
        amended(
            DECODER_HPARAMS,
            n_ff={"back": "first(n_ff_list)"},
            n_expert={"config": ("num_experts", "num_local_experts")},
            n_expert_used={"config": ("top_k_experts", "num_experts_per_tok")},
            n_head_kv={"back": "first(n_kv_list)"},
            head_dim={"config": ("global_head_dim", "per_layer_config.*.head_dim"), "default": "head_dim_swa",
                      "always": True},
        ),
    ),
    HParam("final_softcap", ("final_logit_softcapping",), ("final_logit_softcapping",), "f32"),
    HParam("window", ("sliding_window",), ("attention.sliding_window",)),
    HParam("n_shared", ("num_kv_shared_layers",), ("attention.shared_kv_layers",), default=0, always=True),
    HParam(
        "n_embd_pl", ("hidden_size_per_layer_input",), ("embedding_length_per_layer_input",), default=0, always=True
    ),
    HParam("n_vocab_pl", ("vocab_size_per_layer_input",), (), default="n_vocab"),
    HParam(
        "layer_types", ("layer_types",), (), "str[]", per_block=True,
        default="'sliding_attention' if (block + 1) % 6 > 0 and block + 1 < n_layer else 'full_attention'",
        back="'sliding_attention' if is_swa else 'full_attention'",
    ),
    HParam(
        "is_swa", (), ("attention.sliding_window_pattern",), "bool[]", per_block=True, always=True,
        default="layer_types == 'sliding_attention'",
    ),
    HParam(
        "head_dim_swa", ("head_dim",), ("attention.key_length_swa", "attention.value_length_swa"), required=True,
    ),
    HParam("n_ff_exp", ("moe_intermediate_size", "expert_intermediate_size"), ("expert_feed_forward_length",)),
    HParam("moe", ("enable_moe_block",), (), "bool", default=False, back="n_expert > 0"),
    # The blocks that reuse keys and values may have twice the width.
    HParam("wide", ("use_double_wide_mlp",), (), "bool", default=False, back="n_ff_here[n_layer - 1] > n_ff_here[0]"),
    HParam(
        "n_ff_list", (), ("feed_forward_length",), "u32 or i32[]", per_block=True, always=True, when="wide",
        default="n_ff_here",
    ),
    HParam(
        "n_ff_here", (), (), "u32[]", per_block=True, back="n_ff_list",
        default=f"2 * n_ff if wide and {REUSED} else n_ff",
    ),
    # The blocks that see all may have fewer heads for keys, which are the values, too.
    HParam(
        "n_kv_full", ("num_global_key_value_heads", "per_layer_config.*.num_key_value_heads"), (), default=0,
        back="n_kv_here[n_layer - 1] if n_kv_here[n_layer - 1] != n_head_kv else 0",
    ),
    HParam("k_eq_v", ("attention_k_eq_v",), (), "bool", default=False, back="max(k_only)"),
    HParam(
        "k_only", (), (), "bool[]", per_block=True, default="k_eq_v and not is_swa",
        back="present('blk.{block}.attn_k.weight') and not present('blk.{block}.attn_v.weight')",
    ),
    HParam(
        "n_kv_list", (), ("attention.head_count_kv",), "u32 or i32[]", per_block=True, always=True,
        when="n_kv_full > 0 and k_eq_v", default="n_kv_here",
    ),
    HParam(
        "n_kv_here", (), (), "u32[]", per_block=True, back="n_kv_list",
        default="n_kv_full if k_only and n_kv_full > 0 else n_head_kv",
    ),
    HParam("d_head", (), (), "u32[]", per_block=True, default="head_dim_swa if is_swa else head_dim"),
    N_ROT,
    HParam("n_rot_swa", (), ("rope.dimension_count_swa",), default="head_dim_swa", always=True),
    # What the unified class must never say.
    HParam("unified", (), (), "bool", default=False, back=True),
    HParam(
        "unsaid", ("/generation_config.suppress_tokens",), ("/tokenizer.ggml.suppress_tokens",), "i32[]",
        when="unified",
    ),
)

TENSORS = (
    *TOP_TENSORS,
    T(
        "model.embed_tokens_per_layer.weight", "per_layer_token_embd.weight",
        shape=("n_vocab_pl", "n_layer * n_embd_pl"), when="n_embd_pl > 0",
    ),
    T(
        "model.per_layer_model_projection.weight", "per_layer_model_proj.weight",
        shape=("n_layer * n_embd_pl", "n_embd"), when="n_embd_pl > 0",
    ),
    T(
        "model.per_layer_projection_norm.weight", "per_layer_proj_norm.weight",
        shape=("n_embd_pl",), when="n_embd_pl > 0",
    ),
    T((), "rope_freqs.weight", generator="proportional_rope_freqs", when="rope_type == 'proportional'",
      shape=("head_dim // 2",)),
    T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
    T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", shape=NORM),
    T(H + "pre_feedforward_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
    T(H + "post_feedforward_layernorm.weight", G + "post_ffw_norm.weight", shape=NORM),
    T(H + "self_attn.q_proj.weight", G + "attn_q.weight", shape=("n_head * d_head", "n_embd")),
    T(H + "self_attn.o_proj.weight", G + "attn_output.weight", shape=("n_embd", "n_head * d_head")),
    T(H + "self_attn.q_norm.weight", G + "attn_q_norm.weight", shape=("d_head",)),
    T(H + "self_attn.k_proj.weight", G + "attn_k.weight", shape=KV_SHAPE, when=OWN_KV),
    T(H + "self_attn.v_proj.weight", G + "attn_v.weight", shape=KV_SHAPE, when=OWN_KV + " and not k_only"),
    T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", shape=("d_head",), when=OWN_KV),
    T(H + "self_attn.k_proj.weight", G + "attn_k.weight", shape=KV_SHAPE, when=REUSED, **IDLE),
    T(H + "self_attn.v_proj.weight", G + "attn_v.weight", shape=KV_SHAPE, when=REUSED, **IDLE),
    T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", shape=("d_head",), when=REUSED, **IDLE),
    T(H + "mlp.gate_proj.weight", G + "ffn_gate.weight", shape=("n_ff_here", "n_embd")),
    T(H + "mlp.up_proj.weight", G + "ffn_up.weight", shape=("n_ff_here", "n_embd")),
    T(H + "mlp.down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff_here")),
    T(H + "layer_scalar", G + "layer_output_scale.weight", shape=(1,)),
    T(H + "per_layer_input_gate.weight", G + "inp_gate.weight", shape=("n_embd_pl", "n_embd"), when="n_embd_pl > 0"),
    T(H + "per_layer_projection.weight", G + "proj.weight", shape=("n_embd", "n_embd_pl"), when="n_embd_pl > 0"),
    T(H + "post_per_layer_input_norm.weight", G + "post_norm.weight", shape=NORM, when="n_embd_pl > 0"),
    T(H + "router.proj.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd"), when="moe"),
    T(H + "router.scale", G + "ffn_gate_inp.scale", shape=NORM, when="moe"),
    T(H + "router.per_expert_scale", G + "ffn_down_exps.scale", shape=("n_expert",), when="moe"),
    T(
        H + "experts.gate_up_proj", G + "ffn_gate_up_exps.weight",
        shape=("n_expert", "2 * n_ff_exp", "n_embd"), when="moe",
    ),
    T(H + "experts.down_proj", G + "ffn_down_exps.weight", shape=("n_expert", "n_embd", "n_ff_exp"), when="moe"),
    T(H + "pre_feedforward_layernorm_2.weight", G + "pre_ffw_norm_2.weight", shape=NORM, when="moe"),
    T(H + "post_feedforward_layernorm_1.weight", G + "post_ffw_norm_1.weight", shape=NORM, when="moe"),
    T(H + "post_feedforward_layernorm_2.weight", G + "post_ffw_norm_2.weight", shape=NORM, when="moe"),
)

GEMMA4 = TokenizerStyle(("gemma4",), last=(*NO_PREFIX, ("add_bos_token", boolean(True))))
BUILT_IN = {"hidden_activation": ("gelu_pytorch_tanh",), "use_bidirectional_attention": ("vision",)}

ARCHITECTURES = (
    Architecture(
        gguf="gemma4",
        hf=(
            HFClass("Gemma4ForCausalLM", "gemma4_text", DEFAULTS),
            HFClass("Gemma4ForConditionalGeneration", "gemma4", DEFAULTS, when="0"),
            HFClass(
                "Gemma4UnifiedForConditionalGeneration", "gemma4_unified", DEFAULTS, when="0", facts={"unified": True},
            ),
        ),
        hparams=HPARAMS,
        tensors=TENSORS,
        ignore=(*ROPE_BUFFERS, *TOWERS),
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(
            GEMMA4, built_in=BUILT_IN,
            decoder=Decoder(
                "gelu_tanh", embedding="sqrt(n_embd)", scale="1", unit_values=True, keys_are_values="k_only",
                scaled="layer_types == 'full_attention'", weights_norm=True,
            ),
        ),
    ),
    # A draft for Gemma 4, whose keys and values it reads, and whose vectors are its inputs and outputs.
    Architecture(
        gguf="gemma4-assistant",
        hf=(
            HFClass(
                "Gemma4AssistantForCausalLM", "gemma4_assistant", DEFAULTS, nested="gemma4_text",
                outer=("backbone_hidden_size",),
                constants={"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0},
            ),
            HFClass("Gemma4UnifiedAssistantForCausalLM", "gemma4_unified_assistant", DEFAULTS, when="0"),
        ),
        hparams=(
            # It has no keys of its own and no inputs for each block, and transformers lets no config say otherwise.
            *amended(
                HPARAMS, n_shared={"config": (), "default": "n_layer"}, n_embd_pl={"config": ()},
                n_vocab_pl={"config": (), "default": 0},
            ),
            HParam("n_embd_out", ("backbone_hidden_size",), ("embedding_length_out",), required=True),
            HParam("n_nextn", (), ("nextn_predict_layers",), default="n_layer", always=True),
        ),
        tensors=(
            *TENSORS,
            T("pre_projection.weight", "nextn.pre_projection.weight", shape=("n_embd", "2 * n_embd_out")),
            T("post_projection.weight", "nextn.post_projection.weight", shape=("n_embd_out", "n_embd")),
        ),
        # Which tokens are near which, that not all need a look.
        ignore=(*ROPE_BUFFERS, "masked_embedding.{rest}"),
        traits=Traits(GEMMA4, built_in=BUILT_IN),
    ),
)
