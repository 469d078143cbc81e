"""InternViT, the tower of InternVL 2 to 3.5, as its authors store it and as transformers does.

Source: the reference converter's InternVisionModel.
"""

from converter.architectures.mmproj.common import (
    ACT,
    EPS,
    LANGUAGE_MODEL,
    SCALE,
    SILU,
    TEXT_MODEL,
    TYPE,
    USE_GELU,
    USE_SILU,
    VISION,
    B,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import Split

BLOCK, OWN = "vision_tower.encoder.layer.{block}.", "vision_model.encoder.layers.{block}."
QKV = tuple(f"{B}attn_{part}" for part in "qkv")
EMBEDDINGS = "vision_tower.embeddings."
# What its authors call the same.
OWN_NAMES = (
    ("vision_model.embeddings.class_embedding", EMBEDDINGS + "cls_token"),
    ("vision_model.embeddings.position_embedding", EMBEDDINGS + "position_embeddings"),
    ("vision_model.embeddings.patch_embedding.{rest}", EMBEDDINGS + "patch_embeddings.projection.{rest}"),
    (OWN + "attn.q_norm.{rest}", BLOCK + "attention.q_norm.{rest}"),
    (OWN + "attn.k_norm.{rest}", BLOCK + "attention.k_norm.{rest}"),
    (OWN + "attn.proj.{rest}", BLOCK + "attention.projection_layer.{rest}"),
    (OWN + "norm1.{rest}", BLOCK + "layernorm_before.{rest}"),
    (OWN + "norm2.{rest}", BLOCK + "layernorm_after.{rest}"),
    (OWN + "mlp.{rest}", BLOCK + "mlp.{rest}"),
    (OWN + "ls1", BLOCK + "lambda_1"),
    (OWN + "ls2", BLOCK + "lambda_2"),
    ("mlp1.0.{rest}", "multi_modal_projector.layer_norm.{rest}"),
    ("mlp1.1.{rest}", "multi_modal_projector.linear_1.{rest}"),
    ("mlp1.3.{rest}", "multi_modal_projector.linear_2.{rest}"),
)

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "InternVLForConditionalGeneration", "internvl", text=("qwen2", "qwen3", "qwen3moe", "llama"),
                constants={
                    "vision_config": {"model_type": "internvl_vision"},
                    "/processor": {"image_processor_type": "GotOcr2ImageProcessorFast"},
                },
            ),
            HFClass("InternVLChatModel", "internvl_chat"),
        ),
        hparams=(
            *amended(
                VISION,
                image_size={"config": (), "required": False, "default": "first(image_sizes)", "always": True},
                patch_size={"config": (), "required": False, "default": "first(patch_sizes)", "always": True},
            ),
            *amended((TYPE,), projector={"default": "'internvl'"}),
            *amended((EPS,), eps={"required": True}),
            *amended((USE_SILU,), use_silu={"when": "act == 'silu'"}),
            *amended((USE_GELU,), use_gelu={"when": "act == 'gelu'"}),
            *amended((SCALE,), scale={"default": "int(1 / ratio)"}),
            HParam("min_tiles", ("min_dynamic_patch",), ("/clip.vision.preproc_min_tiles",), default=0, null=0),
            HParam("max_tiles", ("max_dynamic_patch",), ("/clip.vision.preproc_max_tiles",), default=0, null=0),
            ACT,
            SILU,
            # One number, or one for each side.
            HParam(
                "image_sizes", ("vision_config.image_size",), (), "u32 or u32[]", required=True, back="image_size"
            ),
            HParam(
                "patch_sizes", ("vision_config.patch_size",), (), "u32 or u32[]", required=True, back="patch_size"
            ),
            HParam("ratio", ("downsample_ratio",), (), "f32", required=True, back="1 / scale"),
            HParam(
                "norm", ("vision_config.norm_type",), (), "str", default="'layer_norm'",
                back="'layer_norm' if present('v.blk.0.ln1.bias') else 'rms_norm'",
            ),
            HParam("qkv_bias", ("vision_config.attention_bias",), (), "bool", back="present('v.blk.0.attn_q.bias')"),
            HParam("qk_norm", ("vision_config.use_qk_norm",), (), "bool", back="present('v.blk.0.attn_q_norm.weight')"),
            HParam("image_token", ("image_token_id",), token="<IMG_CONTEXT>"),
        ),
        tensors=(
            T(EMBEDDINGS + "cls_token", "v.class_embd", shape=(1, 1, "n_embd"), type="F32"),
            T(
                EMBEDDINGS + "position_embeddings", "v.position_embd.weight",
                shape=(1, "(image_size // patch_size) ** 2 + 1", "n_embd"), type="F32",
            ),
            T(
                EMBEDDINGS + "patch_embeddings.projection.weight", "v.patch_embd.weight",
                shape=("n_embd", 3, "patch_size", "patch_size"), type=F16_OR_F32,
            ),
            T(EMBEDDINGS + "patch_embeddings.projection.bias", "v.patch_embd.bias", shape=("n_embd",)),
            *pair(BLOCK + "attention.q_proj", B + "attn_q", shape=("n_embd", "n_embd")),
            *pair(BLOCK + "attention.k_proj", B + "attn_k", shape=("n_embd", "n_embd")),
            *pair(BLOCK + "attention.v_proj", B + "attn_v", shape=("n_embd", "n_embd")),
            T(
                OWN + "attn.qkv.weight", tuple(f"{name}.weight" for name in QKV), Split(0, (1, 1, 1)),
                shape=("3 * n_embd", "n_embd"), read_only=True,
            ),
            T(
                OWN + "attn.qkv.bias", tuple(f"{name}.bias" for name in QKV), Split(0, (1, 1, 1)),
                shape=("3 * n_embd",), read_only=True,
            ),
            T(BLOCK + "attention.q_norm.weight", B + "attn_q_norm.weight", shape=("n_embd",), optional=True),
            T(BLOCK + "attention.k_norm.weight", B + "attn_k_norm.weight", shape=("n_embd",), optional=True),
            *pair(BLOCK + "attention.projection_layer", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
            *pair(BLOCK + "layernorm_before", B + "ln1", shape=("n_embd",)),
            *pair(BLOCK + "layernorm_after", B + "ln2", shape=("n_embd",)),
            T(BLOCK + "lambda_1", B + "ls1.weight", shape=("n_embd",)),
            T(BLOCK + "lambda_2", B + "ls2.weight", shape=("n_embd",)),
            *pair(BLOCK + "mlp.fc1", B + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(BLOCK + "mlp.fc2", B + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
            *pair(
                "multi_modal_projector.layer_norm", "mm.model.mlp.0", shape=("n_embd * scale ** 2",), bias=True,
            ),
            *pair(
                "multi_modal_projector.linear_1", "mm.model.mlp.1", shape=("n_text", "n_embd * scale ** 2"), bias=True,
            ),
            *pair("multi_modal_projector.linear_2", "mm.model.mlp.3", shape=("n_text", "n_text"), bias=True),
        ),
        text=TEXT_MODEL,
        aliases=(
            ("model.vision_tower.{rest}", "vision_tower.{rest}"),
            ("model.multi_modal_projector.{rest}", "multi_modal_projector.{rest}"),
            *OWN_NAMES,
        ),
        whole=LANGUAGE_MODEL,
    ),
)
