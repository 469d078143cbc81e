"""MoonViT, the tower of Kimi-VL and of Kimi-K2.5. Source: the reference converter's KimiVLModel and KimiK25Model."""

from converter.architectures.mmproj.common import EPS, LANGUAGE_MODEL, SCALE, TEXT_MODEL, TYPE, USE_GELU, VISION, B
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import At, Concat, PermuteRows, Reshape, Split

BLOCK = "vision_tower.encoder.blocks.{block}."
MOON = (
    T(
        "vision_tower.patch_embed.proj.weight", "v.patch_embd.weight", shape=("n_embd", 3, "patch_size", "patch_size"),
        type=F16_OR_F32,
    ),
    T("vision_tower.patch_embed.proj.bias", "v.patch_embd.bias", shape=("n_embd",)),
    *pair(BLOCK + "norm0", B + "ln1", shape=("n_embd",), bias=True),
    *pair(BLOCK + "norm1", B + "ln2", shape=("n_embd",), bias=True),
    *pair(BLOCK + "wo", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
    *pair(BLOCK + "mlp.fc0", B + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
    *pair(BLOCK + "mlp.fc1", B + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
    *pair("vision_tower.encoder.final_layernorm", "v.post_ln", shape=("n_embd",), bias=True),
)
HEIGHT = HParam("n_high", ("vision_config.pos_emb_height", "vision_config.init_pos_emb_height"), (), default=64)
WIDTH = HParam("n_wide", ("vision_config.pos_emb_width", "vision_config.init_pos_emb_width"), (), default=64)
MERGE = HParam("merge", ("vision_config.merge_kernel_size",), (), "u32[]", default="numbers('2,2')")
THIRDS = tuple(f"{B}attn_{part}" for part in "qkv")
# Of each head, the rows that turn by the place in one direction come before those of the other.
TURNED = PermuteRows(("n_head", "n_embd // n_head // 4", 2, 2), (0, 2, 1, 3))
DIRECTIONS = (Split(0, (1, 1, 1)), At(0, TURNED), At(1, TURNED), Concat(0, (1, 1, 1)))

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(HFClass("KimiVLForConditionalGeneration", "kimi_vl"),),
        hparams=(
            *amended(VISION, image_size={"config": (), "required": False, "default": 896, "always": True}),
            *amended((TYPE,), projector={"default": "'kimivl'"}),
            USE_GELU,
            *amended((SCALE,), scale={"default": 2}),
            *amended((EPS,), eps={"default": 1e-5}),
            HEIGHT,
            WIDTH,
        ),
        tensors=(
            *MOON,
            T(
                "vision_tower.patch_embed.pos_emb.weight", "v.position_embd.weight",
                Reshape(("n_high", "n_wide", "n_embd"), ("n_high * n_wide", "n_embd")),
                shape=("n_high", "n_wide", "n_embd"), type="F32",
            ),
            T(
                BLOCK + "wqkv.weight", tuple(f"{name}.weight" for name in THIRDS), Split(0, (1, 1, 1)),
                shape=("3 * n_embd", "n_embd"),
            ),
            T(
                BLOCK + "wqkv.bias", tuple(f"{name}.bias" for name in THIRDS), Split(0, (1, 1, 1)),
                shape=("3 * n_embd",),
            ),
            *pair("multi_modal_projector.pre_norm", "mm.input_norm", shape=("n_embd",), bias=True),
            *pair("multi_modal_projector.linear_1", "mm.1", shape=("4 * n_embd", "4 * n_embd"), bias=True),
            *pair("multi_modal_projector.linear_2", "mm.2", shape=("n_text", "4 * n_embd"), bias=True),
        ),
        text=TEXT_MODEL,
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "KimiK25ForConditionalGeneration", "kimi_k25", text=("deepseek2",),
                constants={
                    "text_config": {"model_type": "deepseek_v3"}, "vision_config": {"model_type": "kimi_k25_vision"},
                    "/processor": {"image_processor_type": "Kimi_K25ImageProcessor"},
                },
            ),
        ),
        hparams=(
            *amended(
                VISION,
                image_size={"config": (), "required": False, "default": "n_high * patch_size", "always": True},
                n_embd={"config": ("vision_config.hidden_size", "vision_config.vt_hidden_size")},
                n_ff={"config": ("vision_config.intermediate_size", "vision_config.vt_intermediate_size")},
                n_layer={"config": ("vision_config.num_hidden_layers", "vision_config.vt_num_hidden_layers")},
                n_head={"config": ("vision_config.num_attention_heads", "vision_config.vt_num_attention_heads")},
            ),
            *amended((TYPE,), projector={"default": "'kimik25'"}),
            *amended((HEIGHT,), n_high={"gguf": ("/vision.pos_emb_height",), "always": True}),
            *amended((WIDTH,), n_wide={"gguf": ("/vision.pos_emb_width",), "always": True}),
            HParam(
                "n_time", ("vision_config.pos_emb_time", "vision_config.init_pos_emb_time"), ("/vision.pos_emb_time",),
                default=4, always=True,
            ),
            *amended((USE_GELU,), use_gelu={"default": "act == 'gelu'"}),
            HParam("act", ("vision_config.projector_hidden_act",), (), "str", default="'gelu'"),
            *amended(
                (EPS,), eps={"config": ("projection_layer_norm_eps", "vision_config.projector_ln_eps"), "default": 1e-5}
            ),
            *amended((SCALE,), scale={"default": "first(merge)"}),
            MERGE,
            HParam(
                "min_pixels", (), ("/clip.vision.image_min_pixels",), default="8 * patch_size ** 2", always=True,
            ),
            HParam(
                "max_pixels", (), ("/clip.vision.image_max_pixels",), default="limit * patch_size ** 2", always=True,
            ),
            HParam(
                "limit", ("/processor.in_patch_limit",), (), default=16384, back="max_pixels // patch_size ** 2"
            ),
            HParam("projected", ("projection_hidden_size",), (), default="n_embd"),
            HParam("image_token", ("image_token_id",), token="<|media_pad|>"),
        ),
        tensors=(
            *MOON,
            T(
                "vision_tower.patch_embed.pos_emb.weight", "v.position_embd.weight",
                shape=("n_high", "n_wide", "n_embd"), type="F32",
            ),
            T(BLOCK + "wqkv.weight", B + "attn_qkv.weight", *DIRECTIONS, shape=("3 * n_embd", "n_embd")),
            T(BLOCK + "wqkv.bias", B + "attn_qkv.bias", *DIRECTIONS, shape=("3 * n_embd",)),
            *pair("mm_projector.pre_norm", "mm.input_norm", shape=("n_embd",), bias=True),
            *pair(
                "mm_projector.proj.0", "mm.1", shape=("n_embd * scale ** 2", "n_embd * scale ** 2"), bias=True,
            ),
            *pair("mm_projector.proj.2", "mm.2", shape=("n_text", "n_embd * scale ** 2"), bias=True),
        ),
        text=TEXT_MODEL,
        whole=LANGUAGE_MODEL,
    ),
)
