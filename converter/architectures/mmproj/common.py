"""The second file of a multimodal model: its towers and the projector into the text model, GGUF's `clip`.

Shared rows. Source: the reference converter's MmprojModel and its classes; the runtime's clip.cpp. `vision_config.` are
the tower's own settings, `/processor.` those of preprocessor_config.json and processor_config.json together.
"""

from converter.architectures.spec import HParam

B = "v.blk.{block}."
# The text model's tensors, which the first file has.
TEXT_MODEL = (
    "model.language_model.{rest}", "language_model.{rest}", "model.text_model.{rest}", "lm_head.weight",
    "model.layers.{rest}", "model.embed_tokens.weight", "model.norm.weight", "mtp.{rest}",
)
# Newer versions of transformers put the towers below `model.`.
PREFIXES = (
    ("model.visual.{rest}", "visual.{rest}"),
    ("model.vision_tower.{rest}", "vision_tower.{rest}"),
    ("model.multi_modal_projector.{rest}", "multi_modal_projector.{rest}"),
)

# How the text model's tensors are called beside a tower.
LANGUAGE_MODEL = (
    ("model.{rest}", "language_model.model.{rest}"), ("lm_head.weight", "language_model.lm_head.weight"),
)

# In the order in which the reference writes the keys; `n_text` is the width of the text model.
VISION = (
    HParam("has_vision", (), ("/clip.has_vision_encoder",), "bool", default=True, always=True),
    HParam("n_text", ("hidden_size",), ("/clip.vision.projection_dim",), required=True),
    HParam("image_size", ("vision_config.image_size",), ("/clip.vision.image_size",), required=True),
    HParam("patch_size", ("vision_config.patch_size",), ("/clip.vision.patch_size",), required=True),
    HParam("n_embd", ("vision_config.hidden_size",), ("/clip.vision.embedding_length",), required=True),
    HParam("n_ff", ("vision_config.intermediate_size",), ("/clip.vision.feed_forward_length",), required=True),
    HParam(
        "n_layer", ("vision_config.num_hidden_layers", "vision_config.depth"), ("/clip.vision.block_count",),
        required=True,
    ),
    HParam(
        "n_head", ("vision_config.num_attention_heads", "vision_config.num_heads"),
        ("/clip.vision.attention.head_count",), required=True,
    ),
    HParam("image_mean", ("/processor.image_mean",), ("/clip.vision.image_mean",), "f32[]", required=True),
    HParam("image_std", ("/processor.image_std",), ("/clip.vision.image_std",), "f32[]", required=True),
)
USE_SILU = HParam("use_silu", (), ("/clip.use_silu",), "bool", default=True, always=True)
USE_GELU = HParam("use_gelu", (), ("/clip.use_gelu",), "bool", default=True, always=True)
TYPE = HParam("projector", (), ("/clip.projector_type",), "str", always=True)
EPS = HParam(
    "eps", ("vision_config.layer_norm_eps",), ("/clip.vision.attention.layer_norm_epsilon",), "f32",
    default=1e-6, always=True,
)
SILU = HParam("is_silu", (), ("/clip.use_silu",), "bool", default=False)
ACT = HParam("act", ("vision_config.hidden_act",), (), "str", default="'gelu'", back="'silu' if is_silu else 'gelu'")
SCALE = HParam("scale", (), ("/clip.vision.projector.scale_factor",), always=True)

# ------------------------------------------------------------------------------------------------------------ sounds

# Of a tower of sounds, and of a second one beside that of images where the config has an `audio_config`.
AUDIO = (
    HParam("has_audio", (), ("/clip.has_audio_encoder",), "bool", default=True, always=True),
    HParam("a_text", (), ("/clip.audio.projection_dim",), default="n_text", always=True),
    HParam("a_embd", ("audio_config.hidden_size",), ("/clip.audio.embedding_length",), required=True),
    HParam("a_ff", ("audio_config.intermediate_size",), ("/clip.audio.feed_forward_length",), required=True),
    HParam("a_layer", ("audio_config.num_hidden_layers",), ("/clip.audio.block_count",), required=True),
    HParam("a_head", ("audio_config.num_attention_heads",), ("/clip.audio.attention.head_count",), required=True),
)
MELS = HParam("n_mel", ("audio_config.num_mel_bins",), ("/clip.audio.num_mel_bins",), default=128, always=True)
A_EPS = HParam(
    "a_eps", ("audio_config.layer_norm_eps",), ("/clip.audio.attention.layer_norm_epsilon",), "f32",
    default=1e-5, always=True,
)
A = "a.blk.{block}."
# Of the two towers' blocks, which both count from 0.
N_LAYER = HParam("n_layer", (), (), default="max(v_layer, a_layer)")
OF_IMAGES, OF_SOUNDS = "block < v_layer", "block < a_layer"
