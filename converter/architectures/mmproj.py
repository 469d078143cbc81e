"""The second file of a multimodal model: its vision tower and the projector into the text model, GGUF's `clip`.

Source: the reference converter's MmprojModel and its classes; the runtime's clip.cpp. `vision_config.` are the tower's
own settings, `/processor.` those of preprocessor_config.json and processor_config.json together.
"""

from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair, retyped
from converter.architectures.traits import F16_OR_F32, Relation, Traits
from converter.tensors.ops import ROW, Add, Reshape, Rope, Row, Split, Transpose

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


# --------------------------------------------------------------------------------------------- Qwen2-VL, Qwen2.5-VL

# What their configs call it, their marks in a text, and what the preparation of images is told.
QWEN_VISION = amended(
    VISION,
    n_layer={"config": ("vision_config.depth", "vision_config.num_hidden_layers")},
    n_head={"config": ("vision_config.num_heads", "vision_config.num_attention_heads")},
)
QWEN_MARKS = (
    HParam("image_token", ("image_token_id",), token="<|image_pad|>"),
    HParam("video_token", ("video_token_id",), token="<|video_pad|>"),
    HParam("vision_start", ("vision_start_token_id",), token="<|vision_start|>"),
    HParam("vision_end", ("vision_end_token_id",), token="<|vision_end|>"),
    HParam("patch", ("/processor.patch_size",), (), default="patch_size"),
    HParam("merged", ("/processor.merge_size",), (), default="merge"),
)
MERGE = HParam(
    "merge", ("vision_config.spatial_merge_size",), (), default=2, back="int(sqrt(shape('mm.0.weight', 1) // n_embd))"
)
QWEN_OUT = HParam("n_out", ("vision_config.out_hidden_size",), (), default="n_text")
QWEN_PROCESSOR = {"image_processor_type": "Qwen2VLImageProcessor"}
QWEN_WHOLE = (("visual.{rest}", "model.visual.{rest}"), ("model.{rest}", "model.language_model.{rest}"))
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

# ------------------------------------------------------------------------------------------------------- Qwen3-VL

DEEPSTACK = "visual.deepstack_merger_list."
# Each is called after the block it stands behind, which the config tells by its place in the list.
PLACES = ("0", "1", "2", "3")
QWEN3_VL = (
    *TWO_FRAMES,
    T("visual.patch_embed.proj.bias", "v.patch_embd.bias", shape=("n_embd",)),
    T("visual.pos_embed.weight", "v.position_embd.weight", shape=("n_position", "n_embd")),
    *pair(VISUAL + "attn.qkv", B + "attn_qkv", shape=("3 * n_embd", "n_embd"), bias=True),
    *pair(VISUAL + "attn.proj", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
    *pair(VISUAL + "norm1", B + "ln1", shape=("n_embd",), bias=True),
    *pair(VISUAL + "norm2", B + "ln2", shape=("n_embd",), bias=True),
    *pair(VISUAL + "mlp.linear_fc1", B + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
    *pair(VISUAL + "mlp.linear_fc2", B + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
    *pair("visual.merger.norm", "v.post_ln", shape=("n_embd",), bias=True),
    *pair("visual.merger.linear_fc1", "mm.0", shape=("n_embd * merge ** 2", "n_embd * merge ** 2"), bias=True),
    *pair("visual.merger.linear_fc2", "mm.2", shape=("n_text", "n_embd * merge ** 2"), bias=True),
)
DEEPSTACKS = tuple(
    (
        *pair(
            DEEPSTACK + place + ".norm", "v.deepstack.{deep" + place + "}.norm", shape=("n_embd * merge ** 2",),
            bias=True, when="len(deepstack) > " + place,
        ),
        *pair(
            DEEPSTACK + place + ".linear_fc1", "v.deepstack.{deep" + place + "}.fc1",
            shape=("n_embd * merge ** 2", "n_embd * merge ** 2"), bias=True, when="len(deepstack) > " + place,
        ),
        *pair(
            DEEPSTACK + place + ".linear_fc2", "v.deepstack.{deep" + place + "}.fc2",
            shape=("n_text", "n_embd * merge ** 2"), bias=True, when="len(deepstack) > " + place,
        ),
    )
    for place in PLACES
)
# Where there are fewer, a number that no block has.
DEEP = tuple(
    HParam("deep" + place, (), (), default="deepstack[" + place + "] if len(deepstack) > " + place + " else 70000")
    for place in PLACES
)

LLAMA4_BLOCK = "vision_model.model.layers.{block}."

# --------------------------------------------------------------------------------------------------------- Pixtral

PIXTRAL_BLOCK = "vision_tower.transformer.layers.{block}."
PIXTRAL = (
    T(
        "vision_tower.patch_conv.weight", "v.patch_embd.weight", shape=("n_embd", 3, "patch_size", "patch_size"),
        type=F16_OR_F32,
    ),
    T("vision_tower.ln_pre.weight", "v.pre_ln.weight", shape=("n_embd",)),
    T(PIXTRAL_BLOCK + "attention.q_proj.weight", B + "attn_q.weight", Rope("n_head"), shape=("n_embd", "n_embd")),
    T(PIXTRAL_BLOCK + "attention.k_proj.weight", B + "attn_k.weight", Rope("n_head"), shape=("n_embd", "n_embd")),
    T(PIXTRAL_BLOCK + "attention.v_proj.weight", B + "attn_v.weight", shape=("n_embd", "n_embd")),
    T(PIXTRAL_BLOCK + "attention.o_proj.weight", B + "attn_out.weight", shape=("n_embd", "n_embd")),
    T(PIXTRAL_BLOCK + "attention_norm.weight", B + "ln1.weight", shape=("n_embd",)),
    T(PIXTRAL_BLOCK + "ffn_norm.weight", B + "ln2.weight", shape=("n_embd",)),
    T(PIXTRAL_BLOCK + "feed_forward.gate_proj.weight", B + "ffn_gate.weight", shape=("n_ff", "n_embd")),
    T(PIXTRAL_BLOCK + "feed_forward.up_proj.weight", B + "ffn_up.weight", shape=("n_ff", "n_embd")),
    T(PIXTRAL_BLOCK + "feed_forward.down_proj.weight", B + "ffn_down.weight", shape=("n_embd", "n_ff")),
    # The text model's embedding of the token that ends a line of patches; the first file has the whole matrix.
    T(
        "language_model.model.embed_tokens.weight", "v.token_embd.img_break",
        Row("line_end"), Reshape((1, ROW), (ROW,)), shape=("n_vocab", "n_text"),
    ),
    T("multi_modal_projector.norm.weight", "mm.input_norm.weight", shape=("n_embd",), optional=True),
    T(
        "multi_modal_projector.patch_merger.merging_layer.weight", "mm.patch_merger.weight",
        shape=("n_embd", "n_embd * merge ** 2"), type=F16_OR_F32, optional=True,
    ),
    *pair("multi_modal_projector.linear_1", "mm.1", shape=("n_text", "n_embd")),
    *pair("multi_modal_projector.linear_2", "mm.2", shape=("n_text", "n_text")),
)

# --------------------------------------------------------------------------------------------------------- Gemma 4

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
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Qwen2VLForConditionalGeneration", "qwen2_vl", text=("qwen2vl",),
                constants={
                    "text_config": {"model_type": "qwen2_vl_text"}, "vision_config": {"model_type": "qwen2_vl_vision"},
                    "/processor": QWEN_PROCESSOR,
                },
            ),
            HFClass("Qwen2VLModel", "qwen2_vl"),
        ),
        hparams=(
            # Its `hidden_size` is the text model's width, and its tower's inner width is that of the residual.
            *amended(
                QWEN_VISION,
                image_size={"required": False, "default": 560, "always": True},
                n_embd={"config": ("vision_config.embed_dim",)},
                n_ff={"config": (), "default": "n_text", "always": True, "required": False},
            ),
            *amended((TYPE,), projector={"default": "'qwen2vl_merger'"}),
            *QWEN_EPS,
            MERGE,
            *amended((QWEN_OUT,), n_out={"config": ("vision_config.hidden_size",)}),
            HParam(
                "ratio", ("vision_config.mlp_ratio",), (), default=4, back="shape('v.blk.0.ffn_up.weight', 0) // n_embd"
            ),
            *QWEN_MARKS,
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
        hf=(
            HFClass(
                "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", text=("qwen2vl",),
                constants={
                    "text_config": {"model_type": "qwen2_5_vl_text"},
                    "vision_config": {"model_type": "qwen2_5_vl_vision"}, "/processor": QWEN_PROCESSOR,
                },
            ),
        ),
        hparams=(
            *amended(QWEN_VISION, image_size={"required": False, "default": 560, "always": True}),
            *amended((TYPE,), projector={"default": "'qwen2.5vl_merger'"}),
            USE_SILU,
            HParam(
                "full_blocks", ("vision_config.fullatt_block_indexes",), (), "i32[]", required=True,
                back="where(is_full)",
            ),
            HParam(
                "is_full", (), (), "bool[]", per_block=True, default="block in full_blocks",
                back="(block + 1) % period == 0",
            ),
            HParam("period", (), ("/clip.vision.n_wa_pattern",), default="first(full_blocks) + 1", always=True),
            *QWEN_EPS,
            MERGE,
            QWEN_OUT,
            *QWEN_MARKS,
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
        hf=(
            HFClass(
                "Qwen3VLForConditionalGeneration", "qwen3_vl", text=("qwen3vl",),
                constants={
                    "text_config": {"model_type": "qwen3_vl_text"}, "vision_config": {"model_type": "qwen3_vl_vision"},
                    "/processor": QWEN_PROCESSOR,
                },
            ),
            # Its folder has the experts of a block in two tensors, those of the text model in one each.
            HFClass("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe"),
            HFClass(
                "Qwen3_5ForConditionalGeneration", "qwen3_5", text=("qwen35",),
                constants={"vision_config": {"model_type": "qwen3_5_vision"}, "/processor": QWEN_PROCESSOR},
            ),
            HFClass(
                "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", text=("qwen35moe",),
                constants={"vision_config": {"model_type": "qwen3_5_moe_vision"}, "/processor": QWEN_PROCESSOR},
            ),
        ),
        hparams=(
            *amended(
                QWEN_VISION,
                image_size={"required": False, "default": "int(sqrt(n_position) * patch_size)", "always": True},
            ),
            *amended((TYPE,), projector={"default": "'qwen3vl_merger'"}),
            USE_GELU,
            HParam(
                "merge", ("vision_config.spatial_merge_size",), ("/clip.vision.spatial_merge_size",), default=2,
            ),
            *amended((EPS,), eps={"config": ("text_config.rms_norm_eps",)}),
            HParam(
                "deepstack", ("vision_config.deepstack_visual_indexes",), (), "u32[]", default="numbers('')",
                back="where(is_deepstack)", stated=True,
            ),
            HParam(
                "is_deepstack", (), ("/clip.vision.is_deepstack_layers",), "bool[]", default="block in deepstack",
                per_block=True, always=True,
            ),
            *DEEP,
            HParam(
                "n_position", ("vision_config.num_position_embeddings",), (), default=2304,
                back="shape('v.position_embd.weight', 0)",
            ),
            QWEN_OUT,
            *QWEN_MARKS,
        ),
        tensors=(*QWEN3_VL, *DEEPSTACKS[0], *DEEPSTACKS[1], *DEEPSTACKS[2], *DEEPSTACKS[3]),
        ignore=TEXT_MODEL,
        aliases=PREFIXES,
        whole=QWEN_WHOLE,
    ),
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
        ignore=(*TEXT_MODEL, "vision_tower.vision_model.head.{rest}"),
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
        ignore=TEXT_MODEL,
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
            T(
                "vision_tower.vision_model.embeddings.patch_embedding.weight", "v.patch_embd.weight",
                Reshape(("n_embd", "3 * patch_size ** 2"), ("n_embd", "patch_size", "patch_size", 3)),
                Transpose((0, 3, 1, 2)), shape=("n_embd", "3 * patch_size ** 2"), type=F16_OR_F32,
            ),
            T(
                "vision_tower.vision_model.embeddings.position_embedding.weight", "v.position_embd.weight",
                shape=("n_position", "n_embd"),
            ),
            *SIGLIP,
            *pair("multi_modal_projector.layer_norm", "mm.input_norm", shape=("n_embd * scale ** 2",), optional=True),
            *pair("multi_modal_projector.linear_1", "mm.1", shape=("n_inner", "n_embd * scale ** 2")),
            *pair("multi_modal_projector.linear_2", "mm.2", shape=("n_text", "n_inner")),
        ),
        ignore=TEXT_MODEL,
        aliases=(*PREFIXES, ("vision_tower.{rest}", "vision_tower.vision_model.{rest}")),
        whole=(
            ("vision_tower.{rest}", "model.vision_tower.{rest}"),
            ("multi_modal_projector.{rest}", "model.multi_modal_projector.{rest}"),
            ("model.{rest}", "model.language_model.{rest}"),
        ),
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Llama4ForConditionalGeneration", "llama4", text=("llama4",),
                constants={
                    "vision_config": {"model_type": "llama4_vision_model"},
                    "/processor": {"image_processor_type": "Llama4ImageProcessorFast"},
                },
            ),
        ),
        hparams=(
            *VISION,
            *amended((TYPE,), projector={"default": "'llama4'"}),
            *amended((EPS,), eps={"config": ("vision_config.norm_eps",), "default": 1e-5}),
            *amended((SCALE,), scale={"default": "int(1 / ratio)"}),
            USE_GELU,
            HParam("ratio", ("vision_config.pixel_shuffle_ratio",), (), "f32", default=0.5, back="1 / scale"),
            HParam(
                "n_out", ("vision_config.vision_output_dim",), (), default=7680, back="shape('mm.model.fc.weight', 1)"
            ),
            HParam(
                "n_in", ("vision_config.projector_input_dim",), (), default=4096,
                back="shape('mm.model.mlp.1.weight', 0)",
            ),
            HParam(
                "n_mid", ("vision_config.projector_output_dim",), (), default=4096,
                back="shape('mm.model.mlp.2.weight', 0)",
            ),
            HParam("image_token", ("image_token_index",), token="<|patch|>"),
            HParam("image_start", ("boi_token_index",), token="<|image_start|>"),
            HParam("image_end", ("eoi_token_index",), token="<|image_end|>"),
        ),
        tensors=(
            T(
                "vision_model.patch_embedding.linear.weight", "v.patch_embd.weight",
                shape=("n_embd", "3 * patch_size ** 2"), type=F16_OR_F32,
            ),
            T("vision_model.class_embedding", "v.class_embd", shape=("n_embd",)),
            T(
                "vision_model.positional_embedding_vlm", "v.position_embd.weight",
                shape=("(image_size // patch_size) ** 2 + 1", "n_embd"),
            ),
            *pair("vision_model.layernorm_pre", "v.pre_ln", shape=("n_embd",), bias=True),
            *pair("vision_model.layernorm_post", "v.post_ln", shape=("n_embd",), bias=True),
            *pair(LLAMA4_BLOCK + "self_attn.q_proj", B + "attn_q", shape=("n_embd", "n_embd"), bias=True),
            *pair(LLAMA4_BLOCK + "self_attn.k_proj", B + "attn_k", shape=("n_embd", "n_embd"), bias=True),
            *pair(LLAMA4_BLOCK + "self_attn.v_proj", B + "attn_v", shape=("n_embd", "n_embd"), bias=True),
            *pair(LLAMA4_BLOCK + "self_attn.o_proj", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
            *pair(LLAMA4_BLOCK + "input_layernorm", B + "ln1", shape=("n_embd",), bias=True),
            *pair(LLAMA4_BLOCK + "post_attention_layernorm", B + "ln2", shape=("n_embd",), bias=True),
            *pair(LLAMA4_BLOCK + "mlp.fc1", B + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(LLAMA4_BLOCK + "mlp.fc2", B + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
            T("vision_model.vision_adapter.mlp.fc1.weight", "mm.model.mlp.1.weight", shape=("n_in", "n_ff")),
            T("vision_model.vision_adapter.mlp.fc2.weight", "mm.model.mlp.2.weight", shape=("n_mid", "n_mid")),
            T("multi_modal_projector.linear_1.weight", "mm.model.fc.weight", shape=("n_text", "n_out")),
        ),
        ignore=TEXT_MODEL,
        aliases=(("model.vision_model.{rest}", "vision_model.{rest}"), *PREFIXES),
        whole=LANGUAGE_MODEL,
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass("Glm4vForConditionalGeneration", "glm4v"),
            HFClass("Glm4vMoeForConditionalGeneration", "glm4v_moe"),
            HFClass("GlmOcrForConditionalGeneration", "glm_ocr"),
        ),
        hparams=(
            *VISION,
            *amended((TYPE,), projector={"default": "'glm4v'"}),
            *amended((USE_GELU,), use_gelu={"when": "act == 'gelu'"}),
            *amended((USE_SILU,), use_silu={"when": "act == 'silu'"}),
            *amended((EPS,), eps={"config": ("vision_config.rms_norm_eps",), "default": 1e-5}),
            HParam("act", ("vision_config.hidden_act",), (), "str", default="'silu'"),
            HParam("merge", ("vision_config.spatial_merge_size",), (), default=2),
            HParam("n_out", ("vision_config.out_hidden_size",), (), default="n_text"),
        ),
        tensors=(
            *TWO_FRAMES,
            T("visual.patch_embed.proj.bias", "v.patch_embd.bias", shape=("n_embd",)),
            T(
                "visual.embeddings.position_embedding.weight", "v.position_embd.weight",
                shape=("(image_size // patch_size) ** 2", "n_embd"), optional=True,
            ),
            T("visual.post_conv_layernorm.weight", "v.norm_embd.weight", shape=("n_embd",), optional=True),
            *pair(VISUAL + "attn.qkv", B + "attn_qkv", shape=("3 * n_embd", "n_embd")),
            *pair(VISUAL + "attn.proj", B + "attn_out", shape=("n_embd", "n_embd")),
            T(VISUAL + "attn.q_norm.weight", B + "attn_q_norm.weight", shape=("n_embd // n_head",), optional=True),
            T(VISUAL + "attn.k_norm.weight", B + "attn_k_norm.weight", shape=("n_embd // n_head",), optional=True),
            T(VISUAL + "norm1.weight", B + "ln1.weight", shape=("n_embd",)),
            T(VISUAL + "norm2.weight", B + "ln2.weight", shape=("n_embd",)),
            *pair(VISUAL + "mlp.gate_proj", B + "ffn_gate", shape=("n_out", "n_embd")),
            *pair(VISUAL + "mlp.up_proj", B + "ffn_up", shape=("n_out", "n_embd")),
            *pair(VISUAL + "mlp.down_proj", B + "ffn_down", shape=("n_embd", "n_out")),
            T("visual.post_layernorm.weight", "v.post_ln.weight", shape=("n_embd",)),
            *pair("visual.downsample", "mm.patch_merger", shape=("n_out", "n_embd", "merge", "merge"), type=F16_OR_F32),
            T("visual.merger.proj.weight", "mm.model.fc.weight", shape=("n_out", "n_out")),
            *pair("visual.merger.post_projection_norm", "mm.post_norm", shape=("n_out",)),
            T("visual.merger.gate_proj.weight", "mm.gate.weight", shape=("n_ff", "n_out")),
            T("visual.merger.up_proj.weight", "mm.up.weight", shape=("n_ff", "n_out")),
            T("visual.merger.down_proj.weight", "mm.down.weight", shape=("n_out", "n_ff")),
        ),
        ignore=TEXT_MODEL,
        aliases=PREFIXES,
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "LlavaForConditionalGeneration", "llava", text=("llama",),
                constants={
                    "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
                    "/processor": {"image_processor_type": "PixtralImageProcessor"},
                },
            ),
            HFClass(
                "Mistral3ForConditionalGeneration", "mistral3", text=("mistral3",),
                constants={
                    "vision_feature_layer": -1, "/processor": {"image_processor_type": "PixtralImageProcessor"},
                },
            ),
        ),
        hparams=(
            *VISION,
            *amended((TYPE,), projector={"default": "'pixtral'"}),
            *amended((EPS,), eps={"default": 1e-5}),
            *amended((USE_SILU,), use_silu={"when": "act == 'silu'"}),
            *amended((USE_GELU,), use_gelu={"when": "act == 'gelu'"}),
            HParam("merge", ("spatial_merge_size",), ("/clip.vision.spatial_merge_size",)),
            ACT,
            SILU,
            # Older models of these classes have a tower of CLIP, which neither the reference nor we know.
            HParam(
                "tower", ("vision_config.model_type",), (), "str", required=True, closed=True,
                values=(("pixtral", "pixtral"),), back="'pixtral'",
            ),
            HParam("mm_bias", ("multimodal_projector_bias",), (), "bool", back="present('mm.1.bias')"),
            HParam("image_token", ("image_token_index",), token="[IMG]"),
            HParam("patch", ("/processor.patch_size",), (), default="patch_size"),
            HParam("line_end", ("/tokens.[IMG_BREAK]",), ()),
            HParam("n_vocab", ("vocab_size",), (), required=True),
        ),
        tensors=PIXTRAL,
        ignore=TEXT_MODEL,
        aliases=(
            ("model.language_model.{rest}", "language_model.model.{rest}"),
            ("model.vision_tower.{rest}", "vision_tower.{rest}"),
            ("model.multi_modal_projector.{rest}", "multi_modal_projector.{rest}"),
        ),
        whole=LANGUAGE_MODEL,
    ),
)
