"""Towers of the SigLIP kind: Gemma 3, Idefics 3, LFM2-VL, Phi-4, MiniCPM-V 4.6."""

from converter.architectures.mmproj.common import (
    EPS,
    LANGUAGE_MODEL,
    PREFIXES,
    SCALE,
    TEXT_MODEL,
    TYPE,
    USE_GELU,
    VISION,
    B,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when, pair, retyped, without
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import Add, Reshape, Transpose

SIGLIP_BLOCK = "vision_tower.vision_model.encoder.layers.{block}."
PATCHES = (
    T(
        "vision_tower.vision_model.embeddings.patch_embedding.weight", "v.patch_embd.weight",
        shape=("n_embd", 3, "patch_size", "patch_size"), type=F16_OR_F32,
    ),
    T(
        "vision_tower.vision_model.embeddings.position_embedding.weight", "v.position_embd.weight",
        shape=("(image_size // patch_size) ** 2", "n_embd"), type="F32",
    ),
)
SIGLIP = (
    T("vision_tower.vision_model.embeddings.patch_embedding.bias", "v.patch_embd.bias", shape=("n_embd",)),
    *pair(SIGLIP_BLOCK + "self_attn.q_proj", B + "attn_q", shape=("n_embd", "n_embd"), bias=True),
    *pair(SIGLIP_BLOCK + "self_attn.k_proj", B + "attn_k", shape=("n_embd", "n_embd"), bias=True),
    *pair(SIGLIP_BLOCK + "self_attn.v_proj", B + "attn_v", shape=("n_embd", "n_embd"), bias=True),
    *pair(SIGLIP_BLOCK + "self_attn.out_proj", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
    *pair(SIGLIP_BLOCK + "layer_norm1", B + "ln1", shape=("n_embd",), bias=True),
    *pair(SIGLIP_BLOCK + "layer_norm2", B + "ln2", shape=("n_embd",), bias=True),
    *pair(SIGLIP_BLOCK + "mlp.fc1", B + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
    *pair(SIGLIP_BLOCK + "mlp.fc2", B + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
    *pair("vision_tower.vision_model.post_layernorm", "v.post_ln", shape=("n_embd",), bias=True),
)

# Patches as rows of numbers, and as many places as there may be.
LINEAR_PATCHES = (
    T(
        "vision_tower.vision_model.embeddings.patch_embedding.weight", "v.patch_embd.weight",
        Reshape(("n_embd", "3 * patch_size ** 2"), ("n_embd", "patch_size", "patch_size", 3)),
        Transpose((0, 3, 1, 2)), shape=("n_embd", "3 * patch_size ** 2"), type=F16_OR_F32,
    ),
    T(
        "vision_tower.vision_model.embeddings.position_embedding.weight", "v.position_embd.weight",
        shape=("n_position", "n_embd"),
    ),
)
# What MiniCPM-V has between two blocks.
JOINING = "vision_tower.vision_model.vit_merger."

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Gemma3ForConditionalGeneration", "gemma3", text=("gemma3",),
                constants={
                    "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False},
                    "/processor": {"image_processor_type": "Gemma3ImageProcessor"},
                },
            ),
        ),
        hparams=(
            *VISION,
            *amended((TYPE,), projector={"default": "'gemma3'"}),
            EPS,
            USE_GELU,
            HParam(
                "n_tokens", ("/processor.image_seq_length",), (), default=256,
                back="(image_size // patch_size // kernel) ** 2",
            ),
            HParam("n_tokens_config", ("mm_tokens_per_image",), (), default="n_tokens"),
            *amended((SCALE,), scale={"default": "kernel", "when": "kernel != 4 and kernel > 0"}),
            HParam(
                "kernel", (), ("/clip.vision.projector.scale_factor",), back=4,
                default="image_size // patch_size // int(sqrt(n_tokens))",
            ),
            HParam("image_token", ("image_token_index",), token="<image_soft_token>"),
            HParam("image_start", ("boi_token_index",), token="<start_of_image>"),
            HParam("image_end", ("eoi_token_index",), token="<end_of_image>"),
        ),
        tensors=(
            *PATCHES,
            *SIGLIP,
            T(
                "multi_modal_projector.mm_input_projection_weight", "mm.input_projection.weight",
                shape=("n_embd", "n_text"), type="F16",
            ),
            T(
                "multi_modal_projector.mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight", Add(1.0),
                shape=("n_embd",),
            ),
        ),
        text=TEXT_MODEL,
        ignore=("vision_tower.vision_model.head.{rest}",),
        aliases=(*PREFIXES, ("vision_tower.{rest}", "vision_tower.vision_model.{rest}")),
        whole=LANGUAGE_MODEL,
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Idefics3ForConditionalGeneration", "idefics3", text=("llama",),
                constants={
                    "vision_config": {"model_type": "idefics3_vision"},
                    "/processor": {"image_processor_type": "Idefics3ImageProcessor"},
                },
            ),
            HFClass("SmolVLMForConditionalGeneration", "smolvlm"),
        ),
        hparams=(
            *VISION,
            *amended((TYPE,), projector={"default": "'idefics3'"}),
            *amended((EPS,), eps={"default": 1e-5}),
            *amended((SCALE,), scale={"config": ("scale_factor",), "default": 2}),
            USE_GELU,
            HParam(
                "longest", ("/processor.size.longest_edge",), ("/clip.vision.preproc_image_size",),
                default="image_size", always=True,
            ),
            HParam("tile", ("/processor.max_image_size.longest_edge",), (), default="image_size"),
            HParam("image_token", ("image_token_id",), token="<image>"),
        ),
        tensors=(
            *retyped(PATCHES, "F32"),
            *SIGLIP,
            T(
                "model.connector.modality_projection.proj.weight", "mm.model.fc.weight",
                shape=("n_text", "n_embd * scale ** 2"),
            ),
        ),
        text=TEXT_MODEL,
        aliases=(("model.vision_model.{rest}", "vision_tower.vision_model.{rest}"),),
        whole=(
            ("vision_tower.vision_model.{rest}", "model.vision_model.{rest}"),
            ("model.connector.{rest}", "model.connector.{rest}"),
            ("model.{rest}", "model.text_model.{rest}"),
        ),
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Lfm2VlForConditionalGeneration", "lfm2_vl", text=("lfm2", "lfm2moe"),
                constants={
                    "vision_config": {"model_type": "siglip2_vision_model", "vision_use_head": False},
                    "/processor": {"image_processor_type": "Lfm2VlImageProcessor"},
                },
            ),
        ),
        hparams=(
            *amended(
                VISION,
                image_size={"config": (), "required": False, "default": 256, "always": True},
                n_layer={"back": "n_run + present('v.blk.{block}.ln1.weight', n_run)"},
            ),
            *amended((TYPE,), projector={"default": "'lfm2'"}),
            EPS,
            *amended((SCALE,), scale={"config": ("downsample_factor",), "default": 2}),
            USE_GELU,
            # The runtime stops where the model takes its features from; counted from the end, as Python does.
            HParam(
                "feature_layer", ("vision_feature_layer",), (), "i32", default=-1, back="n_run - n_layer - 1",
            ),
            HParam("n_run", (), ("/clip.vision.block_count",), default="n_layer + 1 + feature_layer", always=True),
            HParam(
                "n_position", ("vision_config.num_patches",), (), default=256, back="shape('v.position_embd.weight', 0)"
            ),
            HParam("n_inner", ("projector_hidden_size",), (), default=2560, back="shape('mm.1.weight', 0)"),
            HParam("norm", ("projector_use_layernorm",), (), "bool", back="present('mm.input_norm.weight')"),
            HParam("bias", ("projector_bias",), (), "bool", back="present('mm.1.bias')"),
            HParam("image_token", ("image_token_id",), token="<image>"),
        ),
        tensors=(
            *LINEAR_PATCHES,
            *SIGLIP,
            *pair("multi_modal_projector.layer_norm", "mm.input_norm", shape=("n_embd * scale ** 2",), optional=True),
            *pair("multi_modal_projector.linear_1", "mm.1", shape=("n_inner", "n_embd * scale ** 2")),
            *pair("multi_modal_projector.linear_2", "mm.2", shape=("n_text", "n_inner")),
        ),
        text=TEXT_MODEL,
        aliases=(*PREFIXES, ("vision_tower.{rest}", "vision_tower.vision_model.{rest}")),
        whole=(
            ("vision_tower.{rest}", "model.vision_tower.{rest}"),
            ("multi_modal_projector.{rest}", "model.multi_modal_projector.{rest}"),
            ("model.{rest}", "model.language_model.{rest}"),
        ),
    ),
    Architecture(
        gguf="clip",
        hf=(HFClass("Phi4ForCausalLMV", "phi4-siglip"),),
        hparams=(
            *amended(
                VISION,
                image_size={
                    "config": (), "required": False, "default": "int(sqrt(n_position)) * patch_size", "always": True,
                },
                patch_size={"config": ("/processor.patch_size",)},
                # What the model takes is what goes into the last block.
                n_layer={"config": (), "required": False, "default": "n_stored - 1", "always": True},
            ),
            *amended((TYPE,), projector={"default": "'phi4'"}),
            HParam(
                "min_pixels", (), ("/clip.vision.image_min_pixels",), default="n_min * patch_size ** 2", always=True,
            ),
            HParam(
                "max_pixels", (), ("/clip.vision.image_max_pixels",), default="n_max * patch_size ** 2", always=True,
            ),
            USE_GELU,
            EPS,
            HParam("n_stored", ("vision_config.num_hidden_layers",), (), required=True),
            HParam("n_min", ("/processor.min_num_patches", "min_num_patches"), (), required=True),
            HParam("n_max", ("/processor.max_num_patches", "max_num_patches"), (), required=True),
            HParam(
                "n_position", (), (),
                default="shape('vision_tower.vision_model.embeddings.position_embedding.weight', 0)",
            ),
        ),
        tensors=(
            *LINEAR_PATCHES,
            *without(SIGLIP, "v.post_ln.weight", "v.post_ln.bias"),
            *pair("model.mm_projector.0", "mm.0", shape=("n_text", "n_embd"), bias=True),
            *pair("model.mm_projector.2", "mm.2", shape=("n_text", "n_text"), bias=True),
        ),
        text=TEXT_MODEL,
        ignore=(
            "vision_tower.vision_model.head.{rest}", "vision_tower.vision_model.post_layernorm.{rest}",
            "vision_tower.vision_model.encoder.layers.{rest}",
        ),
        aliases=(
            ("model.vision_tower.vision_tower.{rest}", "vision_tower.{rest}"),
            ("mm_projector.{rest}", "model.mm_projector.{rest}"),
        ),
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "MiniCPMV4_6ForConditionalGeneration", "minicpmv4_6", text=("qwen35",),
                constants={
                    "text_config": {"model_type": "qwen3_5_text"},
                    "vision_config": {"model_type": "minicpmv4_6_vision"},
                    "/processor": {"image_processor_type": "MiniCPMV4_6ImageProcessor"},
                },
            ),
        ),
        hparams=(
            *amended(
                VISION,
                image_size={
                    "config": ("/processor.scale_resolution",), "required": False, "default": "grid", "always": True,
                },
            ),
            *amended((TYPE,), projector={"default": "'minicpmv4_6'"}),
            *amended((SCALE,), scale={"default": "2 if mode == '4x' else 4"}),
            HParam(
                "inserted", (), ("/clip.vision.wa_layer_indexes",), "i32[]", per_block="1", default="insert",
                always=True,
            ),
            USE_GELU,
            EPS,
            HParam(
                "mode", ("/processor.downsample_mode", "downsample_mode"), (), "str", default="'16x'",
                back="'4x' if scale == 2 else '16x'",
            ),
            # The block behind which places are joined, four to one.
            HParam(
                "insert", ("insert_layer_id", "vision_config.insert_layer_id"), (), default=6, back="first(inserted)"
            ),
            HParam("insert_again", ("vision_config.insert_layer_id",), (), default="insert"),
            HParam(
                "grid", ("vision_config.image_size",), (), default=224,
                back="int(sqrt(shape('v.position_embd.weight', 0))) * patch_size",
            ),
            HParam("image_token", ("image_token_id",), token="<|image_pad|>"),
            HParam("video_token", ("video_token_id",), token="<|video_pad|>"),
        ),
        tensors=(
            PATCHES[0],
            T(
                "vision_tower.vision_model.embeddings.position_embedding.weight", "v.position_embd.weight",
                shape=("(grid // patch_size) ** 2", "n_embd"), type="F32",
            ),
            *SIGLIP,
            *only_when(
                "mode != '4x'",
                (
                    *pair(JOINING + "layer_norm1", "v.vit_merger.ln1", shape=("n_embd",), bias=True),
                    *pair(JOINING + "self_attn.q_proj", "v.vit_merger.attn_q", shape=("n_embd", "n_embd"), bias=True),
                    *pair(JOINING + "self_attn.k_proj", "v.vit_merger.attn_k", shape=("n_embd", "n_embd"), bias=True),
                    *pair(JOINING + "self_attn.v_proj", "v.vit_merger.attn_v", shape=("n_embd", "n_embd"), bias=True),
                    *pair(
                        JOINING + "self_attn.out_proj", "v.vit_merger.attn_out", shape=("n_embd", "n_embd"), bias=True
                    ),
                    *pair(JOINING + "pre_norm", "v.vit_merger.ds_ln", shape=("4 * n_embd",), bias=True),
                    *pair(
                        JOINING + "linear_1", "v.vit_merger.ds_ffn_up", shape=("4 * n_ff", "4 * n_embd"), bias=True
                    ),
                    *pair(JOINING + "linear_2", "v.vit_merger.ds_ffn_down", shape=("n_embd", "4 * n_ff"), bias=True),
                ),
            ),
            *pair("model.merger.mlp.0.pre_norm", "mm.input_norm", shape=("4 * n_embd",), bias=True),
            *pair("model.merger.mlp.0.linear_1", "mm.up", shape=("4 * n_embd", "4 * n_embd"), bias=True),
            *pair("model.merger.mlp.0.linear_2", "mm.down", shape=("n_text", "4 * n_embd"), bias=True),
        ),
        text=TEXT_MODEL,
        ignore=(JOINING + "{rest}",),
        aliases=(("model.vision_tower.{rest}", "vision_tower.vision_model.{rest}"),),
        whole=(
            ("vision_tower.vision_model.{rest}", "model.vision_tower.{rest}"),
            ("model.merger.{rest}", "model.merger.{rest}"),
            ("model.{rest}", "model.language_model.{rest}"),
        ),
    ),
)
