"""The towers of Qwen2.5-Omni, Qwen3-Omni and Qwen3-ASR: sounds, and beside them images as Qwen2.5-VL and Qwen3-VL see.

Source: the reference converter's Qwen25OmniModel, Qwen3OmniMmprojModel and Qwen3ASRMmprojModel.
"""

from converter.architectures.mmproj.common import (
    A_EPS,
    AUDIO,
    EPS,
    N_LAYER,
    OF_IMAGES,
    OF_SOUNDS,
    TEXT_MODEL,
    TYPE,
    USE_GELU,
    USE_SILU,
    VISION,
    A,
    B,
)
from converter.architectures.mmproj.qwen import (
    DEEP,
    DEEPSTACKS,
    QWEN3_VL,
    QWEN_OUT,
    TWO_FRAMES,
    VISUAL,
)
from converter.architectures.mmproj.whisper import COLUMN
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, only_when, pair
from converter.tensors.ops import Reshape

V, S = ("thinker_config.vision_config.", "vision_config."), ("audio_config.", "thinker_config.audio_config.")
OUTSIDE = (
    "talker.{rest}", "token2wav.{rest}", "code2wav.{rest}", "audio_tower.audio_bos_eos_token.{rest}", "model.{rest}",
)  # fmt: skip
LAYER = "audio_tower.layers.{block}."
PROJECTED = Reshape(("n_down",), ("n_down", 1, 1))

IMAGES = amended(
    VISION,
    image_size={"required": False, "always": True},
    patch_size={"config": tuple(f"{v}patch_size" for v in V)},
    n_embd={"config": tuple(f"{v}hidden_size" for v in V)},
    n_ff={"config": tuple(f"{v}intermediate_size" for v in V)},
    n_layer={"name": "v_layer", "config": tuple(f"{v}depth" for v in V)},
    n_head={"config": tuple(f"{v}num_heads" for v in V)},
)
SOUNDS = amended(
    AUDIO,
    a_embd={"config": tuple(f"{s}d_model" for s in S)},
    a_ff={"config": tuple(f"{s}encoder_ffn_dim" for s in S)},
    a_layer={"config": tuple(f"{s}encoder_layers" for s in S)},
    a_head={"config": tuple(f"{s}encoder_attention_heads" for s in S)},
)
MELS = HParam(
    "n_mel", tuple(f"{s}num_mel_bins" for s in S), ("/clip.audio.num_mel_bins",), default=128, always=True
)
MERGE = HParam("merge", tuple(f"{v}spatial_merge_size" for v in V), (), default=2)
WAVES = T((), "a.position_embd.weight", shape=("1500", "a_embd"), generator="sinusoids", type="F32")
BLOCKS = only_when(
    OF_SOUNDS,
    (
        *pair(LAYER + "self_attn_layer_norm", A + "ln1", shape=("a_embd",), bias=True),
        *pair(LAYER + "self_attn.q_proj", A + "attn_q", shape=("a_embd", "a_embd"), bias=True),
        *pair(LAYER + "self_attn.k_proj", A + "attn_k", shape=("a_embd", "a_embd")),
        *pair(LAYER + "self_attn.v_proj", A + "attn_v", shape=("a_embd", "a_embd"), bias=True),
        *pair(LAYER + "self_attn.out_proj", A + "attn_out", shape=("a_embd", "a_embd"), bias=True),
        *pair(LAYER + "final_layer_norm", A + "ln2", shape=("a_embd",), bias=True),
        *pair(LAYER + "fc1", A + "ffn_up", shape=("a_ff", "a_embd"), bias=True),
        *pair(LAYER + "fc2", A + "ffn_down", shape=("a_embd", "a_ff"), bias=True),
    ),
)
# Qwen3's: spectra are halved three times in both directions.
N_DOWN = HParam("n_down", tuple(f"{s}downsample_hidden_size" for s in S), (), default=480,
    back="shape('a.conv2d.1.weight', 0)",
)
N_LEFT = HParam("n_left", (), (), default="(((n_mel + 1) // 2 + 1) // 2 + 1) // 2")
A_OUT = HParam("a_out", tuple(f"{s}output_dim" for s in S), (), default="n_text", back="shape('mm.a.mlp.2.weight', 0)")
HALVED = (
    WAVES,
    T("audio_tower.conv2d1.weight", "a.conv2d.1.weight", shape=("n_down", 1, 3, 3), type="F16"),
    T("audio_tower.conv2d1.bias", "a.conv2d.1.bias", PROJECTED, shape=("n_down",), type="F32"),
    T("audio_tower.conv2d2.weight", "a.conv2d.2.weight", shape=("n_down", "n_down", 3, 3), type="F16"),
    T("audio_tower.conv2d2.bias", "a.conv2d.2.bias", PROJECTED, shape=("n_down",), type="F32"),
    T("audio_tower.conv2d3.weight", "a.conv2d.3.weight", shape=("n_down", "n_down", 3, 3), type="F16"),
    T("audio_tower.conv2d3.bias", "a.conv2d.3.bias", PROJECTED, shape=("n_down",), type="F32"),
    T("audio_tower.conv_out.weight", "a.conv_out.weight", shape=("a_embd", "n_down * n_left"), type="F16"),
    *BLOCKS,
    *pair("audio_tower.ln_post", "a.post_ln", shape=("a_embd",), bias=True),
    *pair("audio_tower.proj1", "mm.a.mlp.1", shape=("a_embd", "a_embd"), bias=True),
    *pair("audio_tower.proj2", "mm.a.mlp.2", shape=("a_out", "a_embd"), bias=True),
)
SOUND_TYPE = amended((TYPE,), projector={"name": "a_projector", "gguf": ("/clip.audio.projector_type",)})
NAMES = (
    ("thinker.{rest}", "{rest}"),
    ("model.visual.{rest}", "visual.{rest}"),
    ("model.audio_tower.{rest}", "audio_tower.{rest}"),
    ("model.multi_modal_projector.linear_1.{rest}", "audio_tower.proj1.{rest}"),
    ("model.multi_modal_projector.linear_2.{rest}", "audio_tower.proj2.{rest}"),
    *(
        (f"visual.{old}.{theirs}.{{rest}}", f"visual.{new}.{ours}.{{rest}}")
        for old, new in (("merger_list.{place}", "deepstack_merger_list.{place}"), ("merger", "merger"))
        for theirs, ours in (("ln_q", "norm"), ("mlp.0", "linear_fc1"), ("mlp.2", "linear_fc2"))
    ),
)

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(HFClass("Qwen3OmniMoeForConditionalGeneration", "qwen3_omni_moe"),),
        hparams=(
            *amended(IMAGES, image_size={"default": "int(sqrt(n_position) * patch_size)"}),
            *SOUNDS,
            MELS,
            A_EPS,
            USE_GELU,
            *amended((MERGE,), merge={"gguf": ("/clip.vision.spatial_merge_size",), "always": True}),
            *amended((EPS,), eps={"config": ("rms_norm_eps",)}),
            HParam(
                "deepstack", tuple(f"{v}deepstack_visual_indexes" for v in V), (), "u32[]", default="numbers('')"
            ),
            HParam(
                "is_deepstack", (), ("/clip.vision.is_deepstack_layers",), "bool[]", default="block in deepstack",
                per_block="v_layer", always=True,
            ),
            *amended((TYPE,), projector={"gguf": ("/clip.vision.projector_type",), "default": "'qwen3vl_merger'"}),
            *amended(SOUND_TYPE, a_projector={"default": "'qwen3a'"}),
            N_LAYER,
            *DEEP,
            HParam("n_position", tuple(f"{v}num_position_embeddings" for v in V), (), default=2304),
            N_DOWN,
            N_LEFT,
            A_OUT,
        ),
        tensors=(
            *QWEN3_VL[:3],
            *only_when(OF_IMAGES, QWEN3_VL[3:15]),
            *QWEN3_VL[15:],
            *DEEPSTACKS[0],
            *DEEPSTACKS[1],
            *DEEPSTACKS[2],
            *DEEPSTACKS[3],
            *HALVED,
        ),
        text=(*TEXT_MODEL, *OUTSIDE),
        aliases=NAMES,
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Qwen3ASRForConditionalGeneration", "qwen3_asr", text=("qwen3vl",),
                constants={
                    "text_config": {"model_type": "qwen3"}, "audio_config": {"model_type": "qwen3_asr_encoder"},
                    "/processor": {"feature_extractor_type": "Qwen3ASRFeatureExtractor"},
                },
            ),
        ),
        hparams=(
            *amended(
                SOUNDS,
                a_text={
                    "name": "n_text", "config": ("hidden_size",), "default": None, "always": False, "required": True,
                },
            ),
            MELS,
            A_EPS,
            *amended(SOUND_TYPE, a_projector={"name": "projector", "default": "'qwen3a'"}),
            HParam("n_layer", (), (), default="a_layer"),
            N_DOWN,
            N_LEFT,
            A_OUT,
            HParam("n_feature", ("/processor.feature_size",), (), default="n_mel"),
            HParam("audio_token", ("audio_token_id",), token="<|audio_pad|>"),
        ),
        tensors=HALVED,
        text=TEXT_MODEL,
        aliases=NAMES,
        whole=(
            ("audio_tower.proj1.{rest}", "model.multi_modal_projector.linear_1.{rest}"),
            ("audio_tower.proj2.{rest}", "model.multi_modal_projector.linear_2.{rest}"),
            ("audio_tower.{rest}", "model.audio_tower.{rest}"), ("model.{rest}", "model.language_model.{rest}"),
        ),
    ),
    Architecture(
        gguf="clip",
        hf=(HFClass("Qwen2_5OmniModel", "qwen2_5_omni"),),
        hparams=(
            *amended(IMAGES, image_size={"default": 560}),
            *SOUNDS,
            MELS,
            A_EPS,
            *amended((TYPE,), projector={"default": "'qwen2.5o'"}),
            USE_SILU,
            HParam(
                "full_blocks", tuple(f"{v}fullatt_block_indexes" for v in V), (), "i32[]", required=True,
            ),
            HParam("period", (), ("/clip.vision.n_wa_pattern",), default="first(full_blocks) + 1", always=True),
            *amended((EPS,), eps={"config": ()}),
            N_LAYER,
            MERGE,
            *amended((QWEN_OUT,), n_out={"config": tuple(f"{v}out_hidden_size" for v in V)}),
        ),
        tensors=(
            *TWO_FRAMES,
            *only_when(
                OF_IMAGES,
                (
                    *pair(VISUAL + "attn.q", B + "attn_q", shape=("n_embd", "n_embd"), bias=True),
                    *pair(VISUAL + "attn.k", B + "attn_k", shape=("n_embd", "n_embd"), bias=True),
                    *pair(VISUAL + "attn.v", B + "attn_v", shape=("n_embd", "n_embd"), bias=True),
                    *pair(VISUAL + "attn.proj", B + "attn_out", shape=("n_embd", "n_embd"), bias=True),
                    *pair(VISUAL + "norm1", B + "ln1", shape=("n_embd",)),
                    *pair(VISUAL + "norm2", B + "ln2", shape=("n_embd",)),
                    *pair(VISUAL + "mlp.gate_proj", B + "ffn_gate", shape=("n_ff", "n_embd"), bias=True),
                    *pair(VISUAL + "mlp.up_proj", B + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
                    *pair(VISUAL + "mlp.down_proj", B + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
                ),
            ),
            *pair("visual.merger.ln_q", "v.post_ln", shape=("n_embd",)),
            *pair("visual.merger.mlp.0", "mm.0", shape=("n_embd * merge ** 2", "n_embd * merge ** 2"), bias=True),
            *pair("visual.merger.mlp.2", "mm.2", shape=("n_text", "n_embd * merge ** 2"), bias=True),
            WAVES,
            T("audio_tower.conv1.weight", "a.conv1d.1.weight", shape=("a_embd", "n_mel", 3), type="F16"),
            T("audio_tower.conv1.bias", "a.conv1d.1.bias", COLUMN, shape=("a_embd",), type="F32"),
            T("audio_tower.conv2.weight", "a.conv1d.2.weight", shape=("a_embd", "a_embd", 3), type="F16"),
            T("audio_tower.conv2.bias", "a.conv1d.2.bias", COLUMN, shape=("a_embd",), type="F32"),
            *BLOCKS,
            *pair("audio_tower.ln_post", "a.post_ln", shape=("a_embd",), bias=True),
            *pair("audio_tower.proj", "mm.a.fc", shape=("n_text", "a_embd"), bias=True),
        ),
        text=(*TEXT_MODEL, *OUTSIDE),
        aliases=NAMES[:3],
    ),
)  # fmt: skip
