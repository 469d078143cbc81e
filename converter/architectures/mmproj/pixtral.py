"""The tower of Pixtral, of Mistral Small 3.1 and of LightOnOCR."""

from converter.architectures.mmproj.common import (
    ACT,
    EPS,
    LANGUAGE_MODEL,
    SILU,
    TEXT_MODEL,
    TYPE,
    USE_GELU,
    USE_SILU,
    VISION,
    B,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair, without
from converter.architectures.traits import F16_OR_F32
from converter.tensors.ops import ROW, Reshape, Rope, Row

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

PROJECTORS = (
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
        text=TEXT_MODEL,
        aliases=(
            ("model.language_model.{rest}", "language_model.model.{rest}"),
            ("model.vision_tower.{rest}", "vision_tower.{rest}"),
            ("model.multi_modal_projector.{rest}", "multi_modal_projector.{rest}"),
        ),
        whole=LANGUAGE_MODEL,
    ),
    Architecture(
        gguf="clip",
        hf=(
            HFClass(
                "LightOnOCRForConditionalGeneration", "lighton_ocr", text=("qwen3",),
                constants={
                    "vision_config": {"model_type": "pixtral"}, "text_config": {"model_type": "qwen3"},
                    "/processor": {"image_processor_type": "PixtralImageProcessor"},
                },
            ),
            HFClass("LightOnOcrForConditionalGeneration", "lighton_ocr"),
        ),
        hparams=(
            *VISION,
            *amended((TYPE,), projector={"default": "'lightonocr'"}),
            *amended((EPS,), eps={"default": 1e-5}),
            *amended((USE_SILU,), use_silu={"when": "act == 'silu'"}),
            *amended((USE_GELU,), use_gelu={"when": "act == 'gelu'"}),
            HParam("merge", ("spatial_merge_size",), ("/clip.vision.spatial_merge_size",)),
            ACT,
            SILU,
            HParam("image_token", ("image_token_id",), token="<|image_pad|>"),
            HParam("patch", ("/processor.patch_size",), (), default="patch_size"),
        ),
        tensors=without(PIXTRAL, "v.token_embd.img_break"),
        text=TEXT_MODEL,
        aliases=(
            ("model.vision_encoder.{rest}", "vision_tower.{rest}"),
            ("model.vision_projection.{rest}", "multi_modal_projector.{rest}"),
        ),
        whole=(
            ("vision_tower.{rest}", "model.vision_encoder.{rest}"),
            ("multi_modal_projector.{rest}", "model.vision_projection.{rest}"),
            ("model.{rest}", "model.language_model.{rest}"),
        ),
    ),
)
