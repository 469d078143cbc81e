"""The tower of DeepSeek-OCR: SAM, whose features go on into CLIP. Source: the reference's DeepseekOCRVisionModel."""

from converter.architectures.mmproj.common import EPS, SCALE, TEXT_MODEL, TYPE, USE_GELU, VISION, B
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when, pair
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import Reshape

CLIP, SAM = "vision_config.width.clip-l-14-224.", "vision_config.width.sam_vit_b."
BLOCK, SAM_BLOCK, S = (
    "model.vision_model.transformer.layers.{block}.", "model.sam_model.blocks.{block}.", "v.sam.blk.{block}."
)
NECK = "model.sam_model.neck."


def places(axis: str) -> str:
    """How many distances along an axis a block of SAM knows; those that see all know more."""
    return f"shape('{SAM_BLOCK}attn.rel_pos_{axis}', 0)"


PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(
            HFClass("DeepseekOCRForCausalLM", "deepseek_vl_v2"),
            HFClass("UnlimitedOCRForCausalLM", "unlimited_ocr", facts={"max_tiles": 32}),
        ),
        hparams=(
            *amended(
                VISION,
                image_size={"config": (CLIP + "image_size",)},
                patch_size={"config": (CLIP + "patch_size",)},
                n_embd={"config": (CLIP + "width",)},
                n_ff={"config": (), "default": "4 * n_head", "always": True, "required": False},
                n_layer={"name": "n_clip", "config": (CLIP + "layers",)},
                n_head={"config": (CLIP + "heads",)},
            ),
            *amended((TYPE,), projector={"default": "'deepseekocr'"}),
            EPS,
            USE_GELU,
            *amended((SCALE,), scale={"default": "kernel", "when": "kernel != 4 and kernel > 0"}),
            HParam("window", ("vision_config.window_size",), ("/clip.vision.window_size",), default=14, always=True),
            HParam("min_tiles", (), ("/clip.vision.preproc_min_tiles",), default=2, always=True),
            HParam("max_tiles", (), ("/clip.vision.preproc_max_tiles",), default=9, always=True),
            HParam("n_sam", (SAM + "layers",), ("/clip.vision.sam.block_count",), required=True),
            HParam("sam_embd", (SAM + "width",), ("/clip.vision.sam.embedding_length",), required=True),
            HParam("sam_head", (SAM + "heads",), ("/clip.vision.sam.head_count",), required=True),
            HParam("n_layer", (), (), default="max(n_clip, n_sam)"),
            HParam("n_tokens", ("/processor.image_seq_length",), (), default=256),
            HParam("kernel", (), (), default="image_size // patch_size // int(sqrt(n_tokens))"),
            HParam("n_high", (), (), default="shape('model.sam_model.pos_embed', 1)"),
            HParam("n_wide", (), (), default="shape('model.sam_model.pos_embed', 2)"),
            HParam("n_neck", (), (), default="shape('model.sam_model.neck.0.weight', 0)"),
            HParam("n_net2", (), (), default="shape('model.sam_model.net_2.weight', 0)"),
            HParam("n_net3", (), (), default="shape('model.sam_model.net_3.weight', 0)"),
            HParam("sam_patch", (), (), default="shape('model.sam_model.patch_embed.proj.weight', 3)"),
        ),
        tensors=(
            T("model.image_newline", "v.image_newline", shape=("n_text",)),
            T("model.view_seperator", "v.view_seperator", Reshape(("n_text",), (1, "n_text")), shape=("n_text",),
              type="F32"),
            *pair("model.projector.layers", "mm.model.fc", shape=("n_text", "n_embd + n_net3"), bias=True),
            T("model.sam_model.pos_embed", "v.sam.pos_embd.weight", shape=(1, "n_high", "n_wide", "sam_embd"),
              type="F32"),
            T(
                "model.sam_model.patch_embed.proj.weight", "v.sam.patch_embd.weight",
                shape=("sam_embd", 3, "sam_patch", "sam_patch"), type=F16_OR_F32,
            ),
            T("model.sam_model.patch_embed.proj.bias", "v.sam.patch_embd.bias", shape=("sam_embd",)),
            *only_when(
                "block < n_sam",
                (
                    *pair(SAM_BLOCK + "norm1", S + "pre_ln", shape=("sam_embd",), bias=True),
                    *pair(SAM_BLOCK + "norm2", S + "post_ln", shape=("sam_embd",), bias=True),
                    *pair(SAM_BLOCK + "attn.qkv", S + "attn.qkv", shape=("3 * sam_embd", "sam_embd"), bias=True),
                    *pair(SAM_BLOCK + "attn.proj", S + "attn.out", shape=("sam_embd", "sam_embd"), bias=True),
                    T(
                        SAM_BLOCK + "attn.rel_pos_h", S + "attn.pos_h.weight",
                        shape=(places("h"), "sam_embd // sam_head"), type="F32",
                    ),
                    T(
                        SAM_BLOCK + "attn.rel_pos_w", S + "attn.pos_w.weight",
                        shape=(places("w"), "sam_embd // sam_head"), type="F32",
                    ),
                    *pair(SAM_BLOCK + "mlp.lin1", S + "mlp.lin1", shape=("4 * sam_embd", "sam_embd"), bias=True),
                    *pair(SAM_BLOCK + "mlp.lin2", S + "mlp.lin2", shape=("sam_embd", "4 * sam_embd"), bias=True),
                ),
            ),
            T(NECK + "0.weight", "v.sam.neck.0.weight", shape=("n_neck", "sam_embd", 1, 1), type="F32"),
            *pair(NECK + "1", "v.sam.neck.1", shape=("n_neck",), bias=True),
            T(NECK + "2.weight", "v.sam.neck.2.weight", shape=("n_neck", "n_neck", 3, 3), type="F32"),
            *pair(NECK + "3", "v.sam.neck.3", shape=("n_neck",), bias=True),
            T("model.sam_model.net_2.weight", "v.sam.net_2.weight", shape=("n_net2", "n_neck", 3, 3), type="F32"),
            T("model.sam_model.net_3.weight", "v.sam.net_3.weight", shape=("n_net3", "n_net2", 3, 3), type="F32"),
            T("model.vision_model.embeddings.class_embedding", "v.class_embd", shape=("n_embd",)),
            T(
                "model.vision_model.embeddings.patch_embedding.weight", "v.patch_embd.weight",
                shape=("n_embd", 3, "patch_size", "patch_size"), type="F32",
            ),
            T(
                "model.vision_model.embeddings.position_embedding.weight", "v.position_embd.weight",
                shape=("(image_size // patch_size) ** 2 + 1", "n_embd"), type="F32",
            ),
            *pair("model.vision_model.pre_layrnorm", "v.pre_ln", shape=("n_embd",), bias=True),
            *only_when(
                "block < n_clip",
                (
                    *pair(BLOCK + "layer_norm1", B + "ln1", shape=("n_embd",), bias=True),
                    *pair(BLOCK + "layer_norm2", B + "ln2", shape=("n_embd",), bias=True),
                    *pair(BLOCK + "self_attn.qkv_proj", B + "attn_qkv", shape=("3 * n_embd", "n_embd"), bias=True),
                    *pair(BLOCK + "self_attn.out_proj", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
                    *pair(BLOCK + "mlp.fc1", B + "ffn_up", shape=("4 * n_embd", "n_embd"), bias=True),
                    *pair(BLOCK + "mlp.fc2", B + "ffn_down", shape=("n_embd", "4 * n_embd"), bias=True),
                ),
            ),
        ),
        ignore=("model.vision_model.embeddings.position_ids",),
        text=TEXT_MODEL,
    ),
)
