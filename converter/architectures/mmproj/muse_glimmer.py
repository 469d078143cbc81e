"""The tower of Muse Glimmer. Source: the reference converter's MuseGlimmerVisionModel."""

from converter.architectures.mmproj.common import EPS, TEXT_MODEL, TYPE, VISION, B
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import Reshape, Rope, Sum

BLOCK = "model.vision_tower.layers.{block}."
PATCHES = "model.vision_tower.patch_embedder."

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(HFClass("MuseGlimmerForConditionalGeneration", "muse_glimmer"),),
        hparams=(
            *amended(
                VISION,
                image_size={"config": (), "required": False, "default": "n_high * patch_size * merge", "always": True},
            ),
            *amended((TYPE,), projector={"default": "'muse-glimmer'"}),
            *amended((EPS,), eps={"default": 1e-5}),
            HParam(
                "merge", ("vision_config.merge_size",), ("/clip.vision.spatial_merge_size",), default=2, always=True,
            ),
            HParam("n_frames", ("vision_config.patch_temporal",), (), default=2),
            HParam("n_high", ("vision_config.pos_emb_height",), (), default=32),
            HParam("n_wide", ("vision_config.pos_emb_width",), (), default=32),
            HParam("n_inner", ("projector_hidden_size",), (), default=4096),
            HParam("n_features", (), (), default="shape('model.vision_adapter.fc1.weight', 1)"),
        ),
        tensors=(
            # An image is as many equal frames, which are added up beforehand.
            T(
                PATCHES + "patch_embedding.weight", "v.patch_embd.weight",
                Reshape(
                    ("n_embd", "3 * n_frames * patch_size ** 2"), ("n_embd", "n_frames", 3, "patch_size", "patch_size")
                ),
                Sum(1), shape=("n_embd", "3 * n_frames * patch_size ** 2"), type=F16_OR_F32,
            ),
            T(
                PATCHES + "position_embedding_table.weight", "v.position_embd.weight",
                shape=("n_high * n_wide", "n_embd"), type="F32",
            ),
            *pair(BLOCK + "attn.q_proj", B + "attn_q", Rope("n_head"), shape=("n_embd", "n_embd"), bias=True),
            *pair(BLOCK + "attn.k_proj", B + "attn_k", Rope("n_head"), shape=("n_embd", "n_embd"), bias=True),
            *pair(BLOCK + "attn.v_proj", B + "attn_v", shape=("n_embd", "n_embd"), bias=True),
            *pair(BLOCK + "attn.proj", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
            *pair(BLOCK + "norm1", B + "ln1", shape=("n_embd",), bias=True),
            *pair(BLOCK + "norm2", B + "ln2", shape=("n_embd",), bias=True),
            *pair(BLOCK + "mlp.fc1", B + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(BLOCK + "mlp.fc2", B + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
            *pair("model.vision_tower.ln_pre", "v.pre_ln", shape=("n_embd",), bias=True),
            *pair("model.vision_tower.ln_post", "v.post_ln", shape=("n_embd",), bias=True),
            T("model.vision_adapter.fc1.weight", "mm.0.weight", shape=("n_inner", "n_features")),
            T("model.vision_adapter.fc2.weight", "mm.1.weight", shape=("n_inner", "n_inner")),
            T("model.vision_projection.weight", "mm.2.weight", shape=("n_text", "n_inner")),
        ),
        text=TEXT_MODEL,
    ),
)
