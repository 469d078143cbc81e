"""The tower of Gemma 4."""

from converter.architectures.mmproj.common import EPS, TEXT_MODEL, TYPE, VISION, B
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended
from converter.architectures.traits import F16_OR_F32, Relation, Traits
from converter.tensors.ops import Reshape, Transpose

GEMMA4_BLOCK = "model.vision_tower.encoder.layers.{block}."
GEMMA4 = (
    T(
        "model.vision_tower.patch_embedder.input_proj.weight", "v.patch_embd.weight",
        Reshape(("n_embd", "3 * patch_size ** 2"), ("n_embd", "patch_size", "patch_size", 3)), Transpose((0, 3, 1, 2)),
        shape=("n_embd", "3 * patch_size ** 2"), type=F16_OR_F32,
    ),
    T(
        "model.vision_tower.patch_embedder.position_embedding_table", "v.position_embd.weight",
        shape=(2, "n_position", "n_embd"), type="F32",
    ),
    T("model.vision_tower.std_bias", "v.std_bias", shape=("n_embd",), optional=True),
    T("model.vision_tower.std_scale", "v.std_scale", shape=("n_embd",), optional=True),
    T(GEMMA4_BLOCK + "self_attn.q_proj.weight", B + "attn_q.weight", shape=("n_head * head_dim", "n_embd")),
    T(GEMMA4_BLOCK + "self_attn.k_proj.weight", B + "attn_k.weight", shape=("n_head_kv * head_dim", "n_embd")),
    T(GEMMA4_BLOCK + "self_attn.v_proj.weight", B + "attn_v.weight", shape=("n_head_kv * head_dim", "n_embd")),
    T(GEMMA4_BLOCK + "self_attn.o_proj.weight", B + "attn_out.weight", shape=("n_embd", "n_head * head_dim")),
    T(GEMMA4_BLOCK + "self_attn.q_norm.weight", B + "attn_q_norm.weight", shape=("head_dim",)),
    T(GEMMA4_BLOCK + "self_attn.k_norm.weight", B + "attn_k_norm.weight", shape=("head_dim",)),
    T(GEMMA4_BLOCK + "input_layernorm.weight", B + "ln1.weight", shape=("n_embd",)),
    T(GEMMA4_BLOCK + "post_attention_layernorm.weight", B + "attn_post_norm.weight", shape=("n_embd",)),
    T(GEMMA4_BLOCK + "pre_feedforward_layernorm.weight", B + "ln2.weight", shape=("n_embd",)),
    T(GEMMA4_BLOCK + "post_feedforward_layernorm.weight", B + "ffn_post_norm.weight", shape=("n_embd",)),
    T(GEMMA4_BLOCK + "mlp.gate_proj.weight", B + "ffn_gate.weight", shape=("n_ff", "n_embd")),
    T(GEMMA4_BLOCK + "mlp.up_proj.weight", B + "ffn_up.weight", shape=("n_ff", "n_embd")),
    T(GEMMA4_BLOCK + "mlp.down_proj.weight", B + "ffn_down.weight", shape=("n_embd", "n_ff")),
    T("model.embed_vision.embedding_projection.weight", "mm.input_projection.weight", shape=("n_text", "n_embd")),
)

GEMMA4_WHOLE = (
    (GEMMA4_BLOCK + "self_attn.q_proj.{rest}", GEMMA4_BLOCK + "self_attn.q_proj.linear.{rest}"),
    (GEMMA4_BLOCK + "self_attn.k_proj.{rest}", GEMMA4_BLOCK + "self_attn.k_proj.linear.{rest}"),
    (GEMMA4_BLOCK + "self_attn.v_proj.{rest}", GEMMA4_BLOCK + "self_attn.v_proj.linear.{rest}"),
    (GEMMA4_BLOCK + "self_attn.o_proj.{rest}", GEMMA4_BLOCK + "self_attn.o_proj.linear.{rest}"),
    (GEMMA4_BLOCK + "mlp.{map}.weight", GEMMA4_BLOCK + "mlp.{map}.linear.weight"),
    ("model.vision_tower.{rest}", "model.vision_tower.{rest}"),
    ("model.embed_vision.{rest}", "model.embed_vision.{rest}"),
    ("model.{rest}", "model.language_model.{rest}"),
)

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Gemma4ForConditionalGeneration", "gemma4", text=("gemma4",),
                constants={
                    "vision_config": {"model_type": "gemma4_vision"}, "audio_config": None,
                    "/processor": {"image_processor_type": "Gemma4ImageProcessor"},
                },
            ),
        ),
        hparams=(
            *amended(VISION, image_size={"config": (), "required": False, "default": 224, "always": True}),
            *amended((TYPE,), projector={"default": "'gemma4v'", "gguf": ("/clip.vision.projector_type",)}),
            EPS,
            HParam(
                "head_dim", ("vision_config.head_dim",), (), default="n_embd // n_head",
                back="shape('v.blk.0.attn_q_norm.weight', 0)",
            ),
            HParam(
                "n_head_kv", ("vision_config.num_key_value_heads",), (), default="n_head",
                back="shape('v.blk.0.attn_k.weight', 0) // head_dim",
            ),
            HParam(
                "n_position", ("vision_config.position_embedding_size",), (), default=10240,
                back="shape('v.position_embd.weight', 1)",
            ),
            HParam("standardize", ("vision_config.standardize",), (), "bool", back="present('v.std_scale')"),
            HParam("n_audio", ("audio_config.hidden_size",), (), default=0),
            HParam("image_token", ("image_token_id",), token="<|image|>"),
            HParam("image_start", ("boi_token_id",), token="<|image>"),
            HParam("image_end", ("eoi_token_id",), token="<image|>"),
        ),
        tensors=GEMMA4,
        ignore=(*TEXT_MODEL, "model.audio_tower.{rest}", "model.embed_audio.{rest}"),
        # A linear map in a wrapper, which for some models also bounds what goes in and out.
        aliases=(
            (GEMMA4_BLOCK + "{part}.{map}.linear.weight", GEMMA4_BLOCK + "{part}.{map}.weight"),
        ),
        traits=Traits(
            told=(Relation("n_audio == 0", "n_audio", "the audio tower is left out: no rules of gemma4a are known"),)
        ),
        whole=GEMMA4_WHOLE,
    ),
)
