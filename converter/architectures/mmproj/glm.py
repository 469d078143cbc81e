"""The tower of GLM-4.1V, GLM-4.5V and GLM-OCR."""

from converter.architectures.mmproj.common import EPS, PREFIXES, TEXT_MODEL, TYPE, USE_GELU, USE_SILU, VISION, B
from converter.architectures.mmproj.qwen import TWO_FRAMES, VISUAL
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair
from converter.architectures.traits import F16_OR_F32

PROJECTORS = (
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
        text=TEXT_MODEL,
        aliases=PREFIXES,
    ),
)
