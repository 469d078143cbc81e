"""The towers of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5."""

from converter.architectures.mmproj.common import EPS, PREFIXES, TEXT_MODEL, TYPE, USE_GELU, USE_SILU, VISION, B
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import Reshape, Split, Transpose

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

PROJECTORS = (
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
        text=TEXT_MODEL,
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
        text=TEXT_MODEL,
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
        text=TEXT_MODEL,
        aliases=PREFIXES,
        whole=QWEN_WHOLE,
    ),
)
