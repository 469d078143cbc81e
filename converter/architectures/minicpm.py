"""MiniCPM 1, 2 and 4: Llama with scales.

Source: the reference converter's MiniCPMModel; the configuration class that the models bring along for the defaults.
"""

from converter.architectures.common import (
    ATTENTION_INTERLEAVED,
    DECODER_HPARAMS,
    DENSE_FFN,
    LONGROPE_FACTORS,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TOP_TENSORS,
)
from converter.architectures.spec import Architecture, HFClass, HParam
from converter.architectures.styles import SPM
from converter.architectures.traits import Traits

ARCHITECTURES = (
    Architecture(
        gguf="minicpm",
        hf=(
            HFClass(
                "MiniCPMForCausalLM",
                "minicpm",
                {
                    "num_key_value_heads": "num_attention_heads", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "max_position_embeddings": 2048, "scale_emb": 1, "scale_depth": 1, "dim_model_base": 1,
                },
            ),
        ),
        hparams=(
            *DECODER_HPARAMS,
            HParam("embedding_scale", ("scale_emb",), ("embedding_scale",), "f32"),
            HParam("residual_scale", (), ("residual_scale",), "f32", default="depth / sqrt(n_layer)", always=True),
            HParam("logit_scale", (), ("logit_scale",), "f32", default="n_embd / base", always=True),
            HParam("depth", ("scale_depth",), (), "f32", back="residual_scale * sqrt(n_layer)"),
            HParam("base", ("dim_model_base",), (), back="int(n_embd / logit_scale + 0.5)"),
            HParam("n_rot", (), (), default="head_dim"),
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION_INTERLEAVED, *DENSE_FFN, LONGROPE_FACTORS),
        ignore=ROPE_BUFFERS,
        traits=Traits(SPM),
    ),
)
