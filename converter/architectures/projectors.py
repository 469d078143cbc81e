"""The second file of a multimodal model: its vision tower and the projector into the text model, GGUF's `clip`.

Source: the reference converter's MmprojModel and its classes; the runtime's clip.cpp. `vision_config.` are the tower's
own settings, `processor.` those of preprocessor_config.json and processor_config.json together.
"""

from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import Add, Reshape, Split, Transpose

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
    HParam("image_mean", ("processor.image_mean",), ("/clip.vision.image_mean",), "f32[]", required=True),
    HParam("image_std", ("processor.image_std",), ("/clip.vision.image_std",), "f32[]", required=True),
)
USE_SILU = HParam("use_silu", (), ("/clip.use_silu",), "bool", default=True, always=True)
USE_GELU = HParam("use_gelu", (), ("/clip.use_gelu",), "bool", default=True, always=True)
TYPE = HParam("projector", (), ("/clip.projector_type",), "str", always=True)
EPS = HParam(
    "eps", ("vision_config.layer_norm_eps",), ("/clip.vision.attention.layer_norm_epsilon",), "f32",
    default=1e-6, always=True,
)

# --------------------------------------------------------------------------------------------- Qwen2-VL, Qwen2.5-VL

VISUAL = "visual.blocks.{block}."
QKV = (B + "attn_q", B + "attn_k", B + "attn_v")
# A convolution over two frames becomes two over one; the rest of its shape stays.
TWO_FRAMES = (
    T(
        "visual.patch_embed.proj.weight", ("v.patch_embd.weight", "v.patch_embd.weight.1"),
        Transpose((2, 0, 1, 3, 4)), Split(0, (1, 1)),
        Reshape((1, "n_embd", 3, "patch_size", "patch_size"), ("n_embd", 3, "patch_size", "patch_size")),
        shape=("n_embd", 3, 2, "patch_size", "patch_size"), type=F16_OR_F32,
    ),
)
QWEN2_VL = (
    *TWO_FRAMES,
    T(
        VISUAL + "attn.qkv.weight", tuple(f"{name}.weight" for name in QKV), Split(0, (1, 1, 1)),
        shape=("3 * n_embd", "n_embd"),
    ),
    T(VISUAL + "attn.qkv.bias", tuple(f"{name}.bias" for name in QKV), Split(0, (1, 1, 1)), shape=("3 * n_embd",)),
    *pair(VISUAL + "attn.proj", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
    *pair(VISUAL + "norm1", B + "ln1", shape=("n_embd",)),
    *pair(VISUAL + "norm2", B + "ln2", shape=("n_embd",)),
    *pair("visual.merger.ln_q", "v.post_ln", shape=("n_embd",)),
    *pair("visual.merger.mlp.0", "mm.0", shape=("n_embd * merge ** 2", "n_embd * merge ** 2"), bias=True),
    *pair("visual.merger.mlp.2", "mm.2", shape=("n_text", "n_embd * merge ** 2"), bias=True),
)
# The reference asks the root of config.json, where transformers 5 leaves no such key: its default it is.
QWEN_EPS = amended((EPS,), eps={"config": ()})

# ------------------------------------------------------------------------------------- towers of the SigLIP kind

SIGLIP_BLOCK = "vision_tower.vision_model.encoder.layers.{block}."
SIGLIP = (
    *pair(
        "vision_tower.vision_model.embeddings.patch_embedding", "v.patch_embd",
        shape=("n_embd", 3, "patch_size", "patch_size"), bias=True, type=F16_OR_F32,
    ),
    T(
        "vision_tower.vision_model.embeddings.position_embedding.weight", "v.position_embd.weight",
        shape=("(image_size // patch_size) ** 2", "n_embd"), type="F32",
    ),
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

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(HFClass("Qwen2VLForConditionalGeneration", "qwen2_vl"), HFClass("Qwen2VLModel", "qwen2_vl")),
        hparams=(
            # Its `hidden_size` is the text model's width, and its tower's inner width is that of the residual.
            *amended(
                VISION,
                image_size={"required": False, "default": 560, "always": True},
                n_embd={"config": ("vision_config.embed_dim",)},
                n_ff={"config": (), "default": "n_text", "always": True, "required": False},
            ),
            *amended((TYPE,), projector={"default": "'qwen2vl_merger'"}),
            *QWEN_EPS,
            HParam("merge", ("vision_config.spatial_merge_size",), (), default=2),
            HParam("ratio", ("vision_config.mlp_ratio",), (), default=4),
        ),
        tensors=(
            *QWEN2_VL,
            *pair(VISUAL + "mlp.fc1", B + "ffn_up", shape=("n_embd * ratio", "n_embd"), bias=True),
            *pair(VISUAL + "mlp.fc2", B + "ffn_down", shape=("n_embd", "n_embd * ratio"), bias=True),
        ),
        ignore=TEXT_MODEL,
        aliases=PREFIXES,
    ),
    Architecture(
        gguf="clip",
        hf=(HFClass("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"),),
        hparams=(
            *amended(VISION, image_size={"required": False, "default": 560, "always": True}),
            *amended((TYPE,), projector={"default": "'qwen2.5vl_merger'"}),
            USE_SILU,
            HParam("full_blocks", ("vision_config.fullatt_block_indexes",), (), "i32[]", required=True),
            HParam("period", (), ("/clip.vision.n_wa_pattern",), default="first(full_blocks) + 1", always=True),
            *QWEN_EPS,
            HParam("merge", ("vision_config.spatial_merge_size",), (), default=2),
        ),
        tensors=(
            *QWEN2_VL,
            *pair(VISUAL + "mlp.gate_proj", B + "ffn_gate", shape=("n_ff", "n_embd"), bias=True),
            *pair(VISUAL + "mlp.up_proj", B + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(VISUAL + "mlp.down_proj", B + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
        ),
        ignore=TEXT_MODEL,
        aliases=PREFIXES,
    ),
    Architecture(
        gguf="clip",
        hf=(HFClass("Gemma3ForConditionalGeneration", "gemma3"),),
        hparams=(
            *VISION,
            *amended((TYPE,), projector={"default": "'gemma3'"}),
            EPS,
            USE_GELU,
            HParam("n_tokens", ("processor.image_seq_length",), (), default=256),
            HParam(
                "scale", (), ("/clip.vision.projector.scale_factor",), always=True,
                default="image_size // patch_size // int(sqrt(n_tokens))",
                when="image_size // patch_size // int(sqrt(n_tokens)) != 4"
                " and image_size // patch_size // int(sqrt(n_tokens)) > 0",
            ),
        ),
        tensors=(
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
        ignore=(*TEXT_MODEL, "vision_tower.vision_model.head.{rest}"),
        aliases=(*PREFIXES, ("vision_tower.{rest}", "vision_tower.vision_model.{rest}")),
    ),
)
