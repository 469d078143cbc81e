"""The towers of Gemma 4, and those of its unified kind, which are no more than a projection of patches and of sounds.

Source: the reference converter's Gemma4VisionAudioModel and Gemma4UnifiedVisionAudioModel.
"""

from converter.architectures.mmproj.common import (
    A_EPS,
    AUDIO,
    EPS,
    MELS,
    N_LAYER,
    OF_IMAGES,
    OF_SOUNDS,
    TEXT_MODEL,
    TYPE,
    VISION,
    A,
    B,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, TensorRule, amended, only_when, pair
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import PermuteColumns, Reshape, Softplus, Transpose

GEMMA4_BLOCK = "model.vision_tower.encoder.layers.{block}."
SOUND_BLOCK = "model.audio_tower.layers.{block}."
BOUNDS = ("input_min", "input_max", "output_min", "output_max")


def clipped(hf: str, gguf: str, shape: tuple[str, str]) -> tuple[TensorRule, ...]:
    """A linear map, and in some models four numbers that bound what goes in and out."""
    numbers = (T(f"{hf}.{each}", f"{gguf}.{each}", Reshape((), (1,)), optional=True) for each in BOUNDS)
    return (T(f"{hf}.weight", f"{gguf}.weight", shape=shape), *numbers)


PATCH_EMBD = (
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
    T("model.embed_vision.embedding_projection.weight", "mm.input_projection.weight", shape=("n_text", "n_embd")),
)
IMAGES = (
    *clipped(GEMMA4_BLOCK + "self_attn.q_proj", B + "attn_q", ("n_head * head_dim", "n_embd")),
    *clipped(GEMMA4_BLOCK + "self_attn.k_proj", B + "attn_k", ("n_head_kv * head_dim", "n_embd")),
    *clipped(GEMMA4_BLOCK + "self_attn.v_proj", B + "attn_v", ("n_head_kv * head_dim", "n_embd")),
    *clipped(GEMMA4_BLOCK + "self_attn.o_proj", B + "attn_out", ("n_embd", "n_head * head_dim")),
    T(GEMMA4_BLOCK + "self_attn.q_norm.weight", B + "attn_q_norm.weight", shape=("head_dim",)),
    T(GEMMA4_BLOCK + "self_attn.k_norm.weight", B + "attn_k_norm.weight", shape=("head_dim",)),
    T(GEMMA4_BLOCK + "input_layernorm.weight", B + "ln1.weight", shape=("n_embd",)),
    T(GEMMA4_BLOCK + "post_attention_layernorm.weight", B + "attn_post_norm.weight", shape=("n_embd",)),
    T(GEMMA4_BLOCK + "pre_feedforward_layernorm.weight", B + "ln2.weight", shape=("n_embd",)),
    T(GEMMA4_BLOCK + "post_feedforward_layernorm.weight", B + "ffn_post_norm.weight", shape=("n_embd",)),
    *clipped(GEMMA4_BLOCK + "mlp.gate_proj", B + "ffn_gate", ("n_ff", "n_embd")),
    *clipped(GEMMA4_BLOCK + "mlp.up_proj", B + "ffn_up", ("n_ff", "n_embd")),
    *clipped(GEMMA4_BLOCK + "mlp.down_proj", B + "ffn_down", ("n_embd", "n_ff")),
)
SUBSAMPLE = "model.audio_tower.subsample_conv_projection."
SUBSAMPLED = (
    T(SUBSAMPLE + "layer0.conv.weight", "a.conv1d.0.weight", shape=("n_conv0", 1, 3, 3), type="F32"),
    T(SUBSAMPLE + "layer0.norm.weight", "a.conv1d.0.norm.weight", shape=("n_conv0",)),
    T(SUBSAMPLE + "layer1.conv.weight", "a.conv1d.1.weight", shape=("n_conv1", "n_conv0", 3, 3), type="F32"),
    T(SUBSAMPLE + "layer1.norm.weight", "a.conv1d.1.norm.weight", shape=("n_conv1",)),
    T(
        SUBSAMPLE + "input_proj_linear.weight", "a.input_projection.weight", shape=("a_embd", "n_conv0 // 4 * n_conv1"),
        type="F32",
    ),
    *pair("model.audio_tower.output_proj", "a.pre_encode.out", shape=("a_out", "a_embd"), bias=True),
    T("model.embed_audio.embedding_projection.weight", "mm.a.input_projection.weight", shape=("n_text", "a_out")),
)
SOUNDS = (
    *clipped(SOUND_BLOCK + "feed_forward1.ffw_layer_1", A + "ffn_up", ("a_ff", "a_embd")),
    *clipped(SOUND_BLOCK + "feed_forward1.ffw_layer_2", A + "ffn_down", ("a_embd", "a_ff")),
    T(SOUND_BLOCK + "feed_forward1.pre_layer_norm.weight", A + "ffn_norm.weight", shape=("a_embd",)),
    T(SOUND_BLOCK + "feed_forward1.post_layer_norm.weight", A + "ffn_post_norm.weight", shape=("a_embd",)),
    *clipped(SOUND_BLOCK + "feed_forward2.ffw_layer_1", A + "ffn_up_1", ("a_ff", "a_embd")),
    *clipped(SOUND_BLOCK + "feed_forward2.ffw_layer_2", A + "ffn_down_1", ("a_embd", "a_ff")),
    T(SOUND_BLOCK + "feed_forward2.pre_layer_norm.weight", A + "ffn_norm_1.weight", shape=("a_embd",)),
    T(SOUND_BLOCK + "feed_forward2.post_layer_norm.weight", A + "ffn_post_norm_1.weight", shape=("a_embd",)),
    T(SOUND_BLOCK + "lconv1d.conv_norm.weight", A + "norm_conv.weight", shape=("a_embd",)),
    T(
        SOUND_BLOCK + "lconv1d.depthwise_conv1d.weight", A + "conv_dw.weight",
        Reshape(("a_embd", 1, "kernel"), ("a_embd", "kernel")), shape=("a_embd", 1, "kernel"), type="F32",
    ),
    *clipped(SOUND_BLOCK + "lconv1d.linear_start", A + "conv_pw1", ("2 * a_embd", "a_embd")),
    *clipped(SOUND_BLOCK + "lconv1d.linear_end", A + "conv_pw2", ("a_embd", "a_embd")),
    T(SOUND_BLOCK + "lconv1d.pre_layer_norm.weight", A + "conv_norm.weight", shape=("a_embd",)),
    T(SOUND_BLOCK + "norm_out.weight", A + "ln2.weight", shape=("a_embd",)),
    T(SOUND_BLOCK + "norm_post_attn.weight", A + "attn_post_norm.weight", shape=("a_embd",)),
    T(SOUND_BLOCK + "norm_pre_attn.weight", A + "attn_pre_norm.weight", shape=("a_embd",)),
    *clipped(SOUND_BLOCK + "self_attn.q_proj", A + "attn_q", ("a_embd", "a_embd")),
    *clipped(SOUND_BLOCK + "self_attn.k_proj", A + "attn_k", ("a_embd", "a_embd")),
    *clipped(SOUND_BLOCK + "self_attn.v_proj", A + "attn_v", ("a_embd", "a_embd")),
    *clipped(SOUND_BLOCK + "self_attn.post", A + "attn_out", ("a_embd", "a_embd")),
    T(SOUND_BLOCK + "self_attn.relative_k_proj.weight", A + "attn_k_rel.weight", shape=("a_embd", "a_embd")),
    T(
        SOUND_BLOCK + "self_attn.per_dim_scale", A + "per_dim_scale.weight", Softplus(), shape=("a_embd // a_head",),
    ),
)

# A linear map in a wrapper.
WRAPPED = (
    (GEMMA4_BLOCK + "{part}.{map}.linear.weight", GEMMA4_BLOCK + "{part}.{map}.weight"),
    (SOUND_BLOCK + "{part}.{map}.linear.weight", SOUND_BLOCK + "{part}.{map}.weight"),
)
MAPS = tuple(
    name.removesuffix(".input_min") for rule in (*IMAGES, *SOUNDS) for name in rule.hf if name.endswith(".input_min")
)
TOWERS = ("vision_tower", "embed_vision", "vision_embedder", "audio_tower", "embed_audio")
GEMMA4_WHOLE = (
    *((f"{each}.weight", f"{each}.linear.weight") for each in MAPS),
    *((f"model.{each}.{{rest}}", f"model.{each}.{{rest}}") for each in TOWERS),
    ("model.{rest}", "model.language_model.{rest}"),
)
# Keys of a tower that some models lack.
BESIDE = {"when": "a_embd > 0", "required": False}
GEMMA4_AUDIO = (
    HParam("a_type", (), ("/clip.audio.projector_type",), "str", default="'gemma4a'", always=True, when="a_embd > 0"),
    *amended((MELS,), n_mel={"config": ("audio_config.input_feat_size",), "when": "a_embd > 0"}),
    *amended((A_EPS,), a_eps={"default": 1e-6, "when": "a_embd > 0"}),
)
MARKS = (
    HParam("image_token", ("image_token_id",), token="<|image|>"),
    HParam("image_start", ("boi_token_id",), token="<|image>"),
    HParam("image_end", ("eoi_token_id",), token="<image|>"),
)
SOUND_MARKS = (
    HParam("audio_token", ("audio_token_id",), token="<|audio|>"),
    HParam("audio_start", ("boa_token_id",), token="<|audio>"),
    HParam("audio_end", ("eoa_token_index",), token="<audio|>"),
)
PROCESSOR = {"image_processor_type": "Gemma4ImageProcessor"}
VISION_CONFIG = {"model_type": "gemma4_vision"}
CHANNELS_FIRST = PermuteColumns(("merged", "merged", 3), (2, 0, 1))  # within a square of patches
VISION_TYPE = amended((TYPE,), projector={"gguf": ("/clip.vision.projector_type",)})

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Gemma4ForConditionalGeneration", "gemma4", text=("gemma4",), when="a_embd == 0",
                constants={"vision_config": VISION_CONFIG, "audio_config": None, "/processor": PROCESSOR},
            ),
            HFClass(
                "Gemma4ForConditionalGeneration", "gemma4", text=("gemma4",),
                constants={
                    "vision_config": VISION_CONFIG, "audio_config": {"model_type": "gemma4_audio"},
                    "/processor": PROCESSOR,
                },
            ),
        ),
        hparams=(
            *amended(
                VISION,
                image_size={"config": (), "required": False, "default": 224, "always": True},
                n_layer={"name": "v_layer"},
            ),
            *amended(
                AUDIO,
                has_audio={"when": "a_embd > 0"}, a_text={"when": "a_embd > 0"},
                a_embd={"required": False, "default": 0}, a_head={"required": False, "default": 0},
                a_ff={"config": (), "default": "4 * a_embd", "always": True, **BESIDE},
                a_layer={"required": False, "default": 0},
            ),
            *amended(VISION_TYPE, projector={"default": "'gemma4v'"}),
            EPS,
            *GEMMA4_AUDIO,
            N_LAYER,
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
            HParam(
                "clipped", ("vision_config.use_clipped_linears",), (), "bool",
                back="present('v.blk.0.attn_q.input_max')",
            ),
            HParam(
                "a_clipped", ("audio_config.use_clipped_linears",), (), "bool",
                back="present('a.blk.0.attn_q.input_max')", when="a_embd > 0",
            ),
            HParam(
                "n_conv", ("audio_config.subsampling_conv_channels",), (), "u32[]", per_block="2", when="a_embd > 0",
                default="128 if block == 0 else 32", back="shape('a.conv1d.{block}.weight', 0)",
            ),
            HParam("n_conv0", (), (), default="n_conv[0]", when="a_embd > 0"),
            HParam("n_conv1", (), (), default="n_conv[1]", when="a_embd > 0"),
            HParam(
                "kernel", ("audio_config.conv_kernel_size",), (), default=5,
                back="shape('a.blk.0.conv_dw.weight', 1)", when="a_embd > 0",
            ),
            HParam(
                "a_out", ("audio_config.output_proj_dims",), (), default=1536,
                back="shape('a.pre_encode.out.weight', 0)", when="a_embd > 0",
            ),
            *MARKS,
            *SOUND_MARKS,
        ),
        tensors=(
            *PATCH_EMBD,
            *only_when(OF_IMAGES, IMAGES),
            *only_when("a_embd > 0", SUBSAMPLED),
            *only_when(OF_SOUNDS, SOUNDS),
        ),
        text=TEXT_MODEL,
        aliases=WRAPPED,
        whole=GEMMA4_WHOLE,
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Gemma4UnifiedForConditionalGeneration", "gemma4_unified", text=("gemma4",),
                constants={
                    "text_config": {"model_type": "gemma4_unified_text"},
                    "vision_config": {"model_type": "gemma4_unified_vision"},
                    "audio_config": {"model_type": "gemma4_unified_audio"},
                    "/processor": {"image_processor_type": "Gemma4UnifiedImageProcessor"},
                },
            ),
        ),
        hparams=(
            *amended(
                VISION,
                image_size={"config": (), "required": False, "default": 224, "always": True},
                n_embd={"config": ("vision_config.mm_embed_dim",)},
                n_ff={"config": (), "required": False, "default": 0, "always": True},
                n_layer={"config": (), "required": False, "default": 0, "always": True},
                n_head={"config": (), "required": False, "default": 0, "always": True},
            ),
            *amended(
                AUDIO,
                a_embd={"config": ("audio_config.audio_embed_dim",)},
                a_ff={"config": (), "required": False, "default": 0, "always": True},
                a_layer={"config": (), "required": False, "default": 0, "always": True},
                a_head={"config": (), "required": False, "default": 0, "always": True},
            ),
            *amended(VISION_TYPE, projector={"default": "'gemma4uv'"}),
            EPS,
            HParam("a_type", (), ("/clip.audio.projector_type",), "str", default="'gemma4ua'", always=True),
            *amended((MELS,), n_mel={"config": ("audio_config.input_feat_size",)}),
            *amended((A_EPS,), a_eps={"default": 1e-6}),
            HParam(
                "pool", ("vision_config.pooling_kernel_size",), (), default=3, back="merged // patch_size",
            ),
            # The side of a square of patches, which go in together.
            HParam(
                "merged", (), (), default="patch_size * pool",
                back="int(sqrt(shape('v.patch_embd.weight', 1) // 3))",
            ),
            HParam(
                "n_position", ("vision_config.mm_posemb_size",), (), default=1120,
                back="shape('v.position_embd.weight', 1)",
            ),
            HParam(
                "n_out", ("vision_config.output_proj_dims",), (), default="n_text",
                back="shape('mm.input_projection.weight', 1)",
            ),
            *MARKS,
            *SOUND_MARKS,
        ),
        tensors=(
            T(
                "model.vision_embedder.patch_dense.weight", "v.patch_embd.weight",
                CHANNELS_FIRST, shape=("n_embd", "3 * merged ** 2"), type=F16_OR_F32,
            ),
            T("model.vision_embedder.patch_dense.bias", "v.patch_embd.bias", shape=("n_embd",)),
            *pair(
                "model.vision_embedder.patch_ln1", "v.patch_norm.1", CHANNELS_FIRST,
                shape=("3 * merged ** 2",), bias=True,
            ),
            *pair("model.vision_embedder.patch_ln2", "v.patch_norm.2", shape=("n_embd",), bias=True),
            *pair("model.vision_embedder.pos_norm", "v.patch_norm.3", shape=("n_embd",), bias=True),
            T(
                "model.vision_embedder.pos_embedding", "v.position_embd.weight", Transpose((1, 0, 2)),
                shape=("n_position", 2, "n_embd"), type="F32",
            ),
            T(
                "model.embed_vision.embedding_projection.weight", "mm.input_projection.weight",
                shape=("n_text", "n_out"),
            ),
            T(
                "model.embed_audio.embedding_projection.weight", "mm.a.input_projection.weight",
                shape=("n_text", "a_embd"),
            ),
        ),
        text=TEXT_MODEL,
        whole=GEMMA4_WHOLE,
    ),
)
