"""Towers of models that read pages: Hunyuan's and PaddleOCR-VL's.

Source: the reference converter's HunyuanVLVisionModel and PaddleOCRVisionModel.
"""

from converter.architectures.mmproj.common import EPS, TEXT_MODEL, TYPE, USE_GELU, VISION, B
from converter.architectures.mmproj.siglip import PATCHES, SIGLIP
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, moved, pair
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import Rows

HUNYUAN = "vit.layers.{block}."
MIN_PIXELS = HParam("min_pixels", ("/processor.min_pixels",), ("/clip.vision.image_min_pixels",), required=True)
MAX_PIXELS = HParam("max_pixels", ("/processor.max_pixels",), ("/clip.vision.image_max_pixels",), required=True)

# Of its vocabulary's tokens without a meaning of their own.
HUNYUAN_MARKS = tuple(
    HParam(name, (f"{key}_id",), token=f"<\uff5chy_place\u2581holder\u2581no\u2581{number}\uff5c>")
    for name, key, number in (
        ("image_start", "im_start", 100), ("image_end", "im_end", 101), ("image_token", "image_token", 102),
        ("image_line", "im_newline", 103),
    )
)

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "HunYuanVLForConditionalGeneration", "hunyuan_vl", text=("hunyuan_vl",),
                constants={
                    "text_config": {"model_type": "hunyuan_vl_text"},
                    "vision_config": {"model_type": "hunyuan_vl_vision"},
                    "/processor": {"image_processor_type": "HunYuanVLImageProcessor"},
                },
            ),
        ),
        hparams=(
            *amended(
                VISION,
                image_size={
                    "config": ("vision_config.image_size", "vision_config.max_image_size"), "required": False,
                    "default": 2048, "always": True,
                },
            ),
            *amended((TYPE,), projector={"default": "'hunyuanvl'"}),
            USE_GELU,
            *amended((EPS,), eps={"config": ("vision_config.rms_norm_eps",), "default": 1e-5}),
            HParam(
                "merge", ("vision_config.spatial_merge_size",), ("/clip.vision.spatial_merge_size",), default=2,
                always=True,
            ),
            MIN_PIXELS,
            MAX_PIXELS,
            HParam("n_position", (), (), default="(image_size // patch_size) ** 2"),
            HParam("largest", ("vision_config.max_image_size",), (), default="image_size"),
            HParam("n_out", ("vision_config.out_hidden_size",), (), default="n_text"),
            HParam("n_beside", ("vision_config.text_hidden_size",), (), default="n_text"),
            HParam("v_head_kv", ("vision_config.num_key_value_heads",), (), default="n_head"),
            *HUNYUAN_MARKS,
            HParam("patch", ("/processor.patch_size",), (), default="patch_size"),
            HParam("merged", ("/processor.merge_size",), (), default="merge"),
        ),
        tensors=(
            T(
                "vit.embeddings.patch_embedding.weight", "v.patch_embd.weight",
                shape=("n_embd", 3, "patch_size", "patch_size"), type=F16_OR_F32,
            ),
            T("vit.embeddings.patch_embedding.bias", "v.patch_embd.bias", shape=("n_embd",)),
            # The place of a class token, which the tower does not have, stands before the others.
            T(
                "vit.embeddings.position_embedding.weight", "v.position_embd.weight",
                Rows("n_position + 1", "n_position", front=True), shape=("n_position + 1", "n_embd"), type="F32",
            ),
            *pair(HUNYUAN + "self_attn.q_proj", B + "attn_q", shape=("n_embd", "n_embd"), bias=True),
            *pair(HUNYUAN + "self_attn.k_proj", B + "attn_k", shape=("n_embd", "n_embd"), bias=True),
            *pair(HUNYUAN + "self_attn.v_proj", B + "attn_v", shape=("n_embd", "n_embd"), bias=True),
            *pair(HUNYUAN + "self_attn.o_proj", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
            *pair(HUNYUAN + "input_layernorm", B + "ln1", shape=("n_embd",), bias=True),
            *pair(HUNYUAN + "post_attention_layernorm", B + "ln2", shape=("n_embd",), bias=True),
            *pair(HUNYUAN + "mlp.dense_h_to_4h", B + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(HUNYUAN + "mlp.dense_4h_to_h", B + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
            T("vit.perceive.before_rms.weight", "mm.pre_norm.weight", shape=("n_embd",)),
            T("vit.perceive.after_rms.weight", "mm.post_norm.weight", shape=("n_text",)),
            T("vit.perceive.image_begin", "mm.image_begin", shape=("n_text",)),
            T("vit.perceive.image_end", "mm.image_end", shape=("n_text",)),
            T("vit.perceive.image_newline", "v.image_newline", shape=("4 * n_embd",)),
            T("vit.perceive.image_sep", "v.view_seperator", shape=("n_text",)),
            *pair("vit.perceive.mlp", "mm.model.fc", shape=("n_text", "4 * n_embd"), bias=True),
            T(
                "vit.perceive.proj.0.weight", "mm.0.weight", shape=("2 * n_embd", "n_embd", "merge", "merge"),
                type=F16_OR_F32,
            ),
            T("vit.perceive.proj.0.bias", "mm.0.bias", shape=("2 * n_embd",)),
            T(
                "vit.perceive.proj.2.weight", "mm.2.weight", shape=("4 * n_embd", "2 * n_embd", 1, 1),
                type=F16_OR_F32,
            ),
            T("vit.perceive.proj.2.bias", "mm.2.bias", shape=("4 * n_embd",)),
        ),
        text=TEXT_MODEL,
        aliases=(("model.vit.{rest}", "vit.{rest}"),),
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "PaddleOCRVLForConditionalGeneration", "paddleocr_vl", text=("paddleocr",),
                constants={
                    "text_config": {"model_type": "paddleocr_vl_text"},
                    "vision_config": {"model_type": "paddleocr_vl_vision"},
                    "/processor": {"image_processor_type": "PaddleOCRVLImageProcessor"},
                },
            ),
        ),
        hparams=(
            *amended(
                VISION,
                image_size={"config": (), "required": False, "default": "int(sqrt(max_pixels))", "always": True},
            ),
            *amended((TYPE,), projector={"default": "'paddleocr'"}),
            MAX_PIXELS,
            MIN_PIXELS,
            USE_GELU,
            EPS,
            HParam(
                "grid", ("vision_config.image_size",), (), default=384,
                back="int(sqrt(shape('v.position_embd.weight', 0))) * patch_size",
            ),
            HParam("image_token", ("image_token_id",), token="<|IMAGE_PLACEHOLDER|>"),
            HParam("vision_start", ("vision_start_token_id",), token="<|IMAGE_START|>"),
            HParam("vision_end", ("vision_end_token_id",), token="<|IMAGE_END|>"),
            HParam("patch", ("/processor.patch_size",), (), default="patch_size"),
        ),
        tensors=(
            T(
                "visual.vision_model.embeddings.patch_embedding.weight", "v.patch_embd.weight",
                shape=PATCHES[0].shape, type=F16_OR_F32,
            ),
            T(
                "visual.vision_model.embeddings.position_embedding.weight", "v.position_embd.weight",
                shape=("(grid // patch_size) ** 2", "n_embd"), type="F32",
            ),
            *moved("vision_tower.", "visual.", SIGLIP),
            *pair("mlp_AR.pre_norm", "mm.input_norm", shape=("n_embd",), bias=True),
            *pair("mlp_AR.linear_1", "mm.1", shape=("4 * n_embd", "4 * n_embd"), bias=True),
            *pair("mlp_AR.linear_2", "mm.2", shape=("n_text", "4 * n_embd"), bias=True),
        ),
        text=TEXT_MODEL,
        ignore=(
            "visual.vision_model.head.{rest}",
            "visual.vision_model.embeddings.packing_position_embedding.weight",
        ),
        aliases=(("model.visual.{rest}", "visual.{rest}"), ("model.mlp_AR.{rest}", "mlp_AR.{rest}")),
    ),
)
