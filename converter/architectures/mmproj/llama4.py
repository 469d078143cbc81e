"""The tower of Llama 4."""

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
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair
from converter.architectures.traits import F16_OR_F32

LLAMA4_BLOCK = "vision_model.model.layers.{block}."

PROJECTORS = (
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
        text=TEXT_MODEL,
        aliases=(("model.vision_model.{rest}", "vision_model.{rest}"), *PREFIXES),
        whole=LANGUAGE_MODEL,
    ),
)
