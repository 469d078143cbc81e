"""Towers of sounds that are Whisper's encoder: Voxtral, Qwen2-Audio, Ultravox.

Source: the reference converter's WhisperEncoderModel and its subclasses.
"""

from converter.architectures.mmproj.common import A_EPS, AUDIO, LANGUAGE_MODEL, MELS, TEXT_MODEL, TYPE, A
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair
from converter.tensors.ops import Reshape

BLOCK = "audio_tower.layers.{block}."
COLUMN = Reshape(("a_embd",), ("a_embd", 1))
WHISPER = (
    T("audio_tower.conv1.weight", "a.conv1d.1.weight", shape=("a_embd", "n_mel", 3), type="F16"),
    T("audio_tower.conv1.bias", "a.conv1d.1.bias", COLUMN, shape=("a_embd",), type="F32"),
    T("audio_tower.conv2.weight", "a.conv1d.2.weight", shape=("a_embd", "a_embd", 3), type="F16"),
    T("audio_tower.conv2.bias", "a.conv1d.2.bias", COLUMN, shape=("a_embd",), type="F32"),
    T("audio_tower.embed_positions.weight", "a.position_embd.weight", shape=("n_position", "a_embd"), type="F32"),
    *pair(BLOCK + "self_attn_layer_norm", A + "ln1", shape=("a_embd",), bias=True),
    *pair(BLOCK + "self_attn.q_proj", A + "attn_q", shape=("a_embd", "a_embd"), bias=True),
    T(BLOCK + "self_attn.k_proj.weight", A + "attn_k.weight", shape=("a_embd", "a_embd")),
    *pair(BLOCK + "self_attn.v_proj", A + "attn_v", shape=("a_embd", "a_embd"), bias=True),
    *pair(BLOCK + "self_attn.out_proj", A + "attn_out", shape=("a_embd", "a_embd"), bias=True),
    *pair(BLOCK + "final_layer_norm", A + "ln2", shape=("a_embd",), bias=True),
    *pair(BLOCK + "fc1", A + "ffn_up", shape=("a_ff", "a_embd"), bias=True),
    *pair(BLOCK + "fc2", A + "ffn_down", shape=("a_embd", "a_ff"), bias=True),
    *pair("audio_tower.layer_norm", "a.post_ln", shape=("a_embd",), bias=True),
)
# The keys of a file without a tower of images.
SOUNDS = (
    *amended(
        AUDIO,
        a_text={"name": "n_text", "config": ("hidden_size",), "default": None, "always": False, "required": True},
        a_embd={"config": ("audio_config.d_model", "audio_config.hidden_size")},
        a_ff={"config": ("audio_config.encoder_ffn_dim", "audio_config.intermediate_size")},
        a_layer={"config": ("audio_config.encoder_layers", "audio_config.num_hidden_layers")},
        a_head={"config": ("audio_config.encoder_attention_heads", "audio_config.num_attention_heads")},
    ),
    HParam("n_layer", (), (), default="a_layer"),
    HParam(
        "n_position", ("audio_config.max_source_positions",), (), default=1500,
        back="shape('a.position_embd.weight', 0)",
    ),
    HParam("n_feature", ("/processor.feature_size",), (), default="n_mel"),
)
STACK = HParam("stack", (), ("/clip.audio.projector.stack_factor",), always=True)
PROCESSOR = {"feature_extractor_type": "WhisperFeatureExtractor"}
NEWER = (
    ("model.audio_tower.{rest}", "audio_tower.{rest}"),
    ("model.multi_modal_projector.{rest}", "multi_modal_projector.{rest}"),
)

PROJECTORS = (
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "VoxtralForConditionalGeneration", "voxtral", text=("llama",),
                constants={"audio_config": {"model_type": "voxtral_encoder"}, "/processor": PROCESSOR},
            ),
        ),
        hparams=(
            *amended(
                SOUNDS,
                a_embd={"config": ("audio_config.hidden_size", "audio_config.d_model")},
                a_ff={"config": ("audio_config.intermediate_size", "audio_config.encoder_ffn_dim")},
                a_layer={"config": ("audio_config.num_hidden_layers", "audio_config.encoder_layers")},
                a_head={"config": ("audio_config.num_attention_heads", "audio_config.encoder_attention_heads")},
            ),
            *amended((TYPE,), projector={"default": "'voxtral'"}),
            MELS,
            A_EPS,
            *amended((STACK,), stack={"default": 4}),
            HParam("audio_token", ("audio_token_id",), token="[AUDIO]"),
        ),
        tensors=(
            *WHISPER,
            T("multi_modal_projector.linear_1.weight", "mm.a.mlp.1.weight", shape=("n_text", "a_embd * stack")),
            T("multi_modal_projector.linear_2.weight", "mm.a.mlp.2.weight", shape=("n_text", "n_text")),
        ),
        text=TEXT_MODEL,
        aliases=NEWER,
        whole=LANGUAGE_MODEL,
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "Qwen2AudioForConditionalGeneration", "qwen2_audio", text=("qwen2",),
                constants={"audio_config": {"model_type": "qwen2_audio_encoder"}, "/processor": PROCESSOR},
            ),
        ),
        hparams=(
            *SOUNDS,
            *amended((TYPE,), projector={"default": "'qwen2a'"}),
            MELS,
            A_EPS,
            HParam("audio_token", ("audio_token_index",), token="<|AUDIO|>"),
        ),
        tensors=(*WHISPER, *pair("multi_modal_projector.linear", "mm.a.fc", shape=("n_text", "a_embd"), bias=True)),
        text=TEXT_MODEL,
        aliases=NEWER,
        whole=LANGUAGE_MODEL,
    ),
    Architecture(
        gguf="clip",
        # Its folder has no text model, so that none comes back.
        hf=(HFClass("UltravoxModel", "ultravox"),),
        hparams=(
            *SOUNDS,
            *amended((TYPE,), projector={"default": "'ultravox'"}),
            MELS,
            A_EPS,
            *amended((STACK,), stack={"config": ("stack_factor",), "default": 8}),
            HParam("n_mid", (), (), default="shape('multi_modal_projector.linear_1.weight', 0)"),
            HParam("n_gated", (), (), default="shape('multi_modal_projector.linear_2.weight', 1)"),
        ),
        tensors=(
            *WHISPER,
            T("multi_modal_projector.ln_pre.weight", "mm.a.norm_pre.weight", shape=("a_embd * stack",)),
            T("multi_modal_projector.linear_1.weight", "mm.a.mlp.1.weight", shape=("n_mid", "a_embd * stack")),
            T("multi_modal_projector.ln_mid.weight", "mm.a.norm_mid.weight", shape=("n_gated",)),
            T("multi_modal_projector.linear_2.weight", "mm.a.mlp.2.weight", shape=("n_text", "n_gated")),
        ),
        text=TEXT_MODEL,
    ),
)
