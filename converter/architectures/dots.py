"""dots.llm1: Qwen3's attention, DeepSeek's experts.

Source: the reference converter's Dots1Model; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    NORM_TENSORS,
    QK_NORM,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
)
from converter.architectures.moe import (
    DENSE_THEN_EXPERTS,
    MOE_HPARAMS,
    N_DENSE,
    N_EXPERT_SHARED,
    N_FF_EXP,
    ROUTED,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
)
from converter.architectures.spec import Architecture, HFClass, amended
from converter.architectures.styles import BPE
from converter.architectures.traits import Traits

ARCHITECTURES = (
    Architecture(
        gguf="dots1",
        hf=(
            HFClass(
                "Dots1ForCausalLM",
                "dots1",
                {
                    "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                    "max_position_embeddings": 2048, "moe_intermediate_size": 1408, "n_group": 1, "topk_group": 1,
                    "first_k_dense_replace": 0, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
                    "scoring_func": "sigmoid",
                },
                constants={"sliding_window": None},
            ),
        ),
        hparams=(
            *amended(MOE_HPARAMS, n_expert=ROUTED),
            N_FF_EXP,
            N_DENSE,
            N_EXPERT_SHARED,
            WEIGHTS_SCALE,
            WEIGHTS_NORM,
            ATTENTION_BIAS,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *DENSE_THEN_EXPERTS),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE),
    ),
)  # fmt: skip
