"""MiMo-V2: windows in most blocks, which have other heads and a sink; experts in all but some.

Blocks that predict further tokens (`model.mtp.*`) have windows, too, and no experts.
Source: the reference converter's MimoV2Model; transformers' configuration class and the authors' for the defaults.
"""

from converter.architectures.common import (
    DENSE_FFN,
    N_ROT_OF_HEAD,
    NORM,
    NORM_TENSORS,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.moe import EXPERTS, MOE_HPARAMS, N_FF_EXP, ROUTED, ROUTER, WITH_NEXTN
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, moved, only_when, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import SIGMOID, Decoder, Traits

MTP = "model.mtp.layers.{block-n_main}."
A, B = H + "self_attn.", G + "attn_"
KEYS, VALUES = "n_kv * head_dim", "n_kv * v_head"
SAID = "present('model.mtp.layers.{block}.eh_proj.weight', %d)"

SINK = T(A + "attention_sink_bias", B + "sinks.weight", shape=("n_head",), optional=True)
OUTPUT = pair(A + "o_proj", B + "output", shape=("n_embd", "n_head * v_head"))
APART = (
    *pair(A + "q_proj", B + "q", shape=("n_head * head_dim", "n_embd")),
    *pair(A + "k_proj", B + "k", shape=(KEYS, "n_embd")),
    *pair(A + "v_proj", B + "v", shape=(VALUES, "n_embd")),
)
FUSED = (
    T(
        A + "qkv_proj.weight", B + "qkv.weight",
        shape=(f"n_head * head_dim + {KEYS} + {VALUES}", "n_embd"),
    ),
)
ATTENTION = (SINK, *OUTPUT)
MAIN, LAST = "block < n_main", "block >= n_main"

ARCHITECTURES = (
    Architecture(
        gguf="mimo2",
        hf=(
            HFClass(
                "MiMoV2FlashForCausalLM", "mimo_v2_flash",
                {"scoring_func": "sigmoid"},
                facts={"n_nextn_said": 1},
            ),
            HFClass(
                "MiMoV2ForCausalLM", "mimo_v2", {"scoring_func": "sigmoid"}, facts={"n_nextn_said": 1}, when="0",
            ),
        ),
        hparams=(
            *before(
                "n_vocab",
                (HParam("v_head", ("v_head_dim",), ("attention.value_length",), required=True),),
                amended(
                    MOE_HPARAMS,
                    n_layer=WITH_NEXTN,
                    n_expert=ROUTED,
                    n_head_kv={"back": "min(n_kv)", "always": True},
                    head_dim={"gguf": ("attention.key_length",), "required": True, "default": None},
                    # The epsilon stands elsewhere.
                    rms_eps={
                        "name": "rope_theta_swa", "gguf": ("rope.freq_base_swa",),
                        "config": ("rope_parameters.sliding_attention.rope_theta", "swa_rope_theta"),
                    },
                ),
            ),
            HParam(
                "n_kv", (), ("attention.head_count_kv",), "i32[]", per_block=True, always=True,
                default="n_head_kv_swa if slides else n_head_kv",
            ),
            HParam("window", ("sliding_window",), ("attention.sliding_window",), required=True),
            HParam(
                "slides", (), ("attention.sliding_window_pattern",), "i32[]", per_block=True, always=True,
                default="1 if block >= n_main else kinds[block] == 'sliding_attention'",
            ),
            N_FF_EXP,
            N_ROT_OF_HEAD,
            HParam(
                "rms_eps", ("layernorm_epsilon", "rms_norm_eps"), ("attention.layer_norm_rms_epsilon",), "f32",
                default=1e-5, always=True,
            ),
            HParam("value_scale", ("attention_value_scale",), ("attention.value_scale",), "f32"),
            HParam("n_main", ("num_hidden_layers",), (), required=True, back="n_layer - n_nextn"),
            HParam("n_nextn_said", default=0),
            HParam(
                "n_nextn", (), ("nextn_predict_layers",), null=0, always=True, back=0,
                default=f"({SAID % 0} + {SAID % 1} + {SAID % 2}) * n_nextn_said",
            ),
            HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default=0.334, back="n_rot / head_dim"),
            HParam(
                "partial_swa", ("rope_parameters.sliding_attention.partial_rotary_factor",), (), "f32",
                default="partial", back="n_rot / head_dim",
            ),
            HParam(
                "n_head_kv_swa", ("swa_num_key_value_heads",), (), default="2 * n_head_kv", back="max(n_kv)",
            ),
            # 1 or a word for each block that slides.
            HParam(
                "hybrid", ("hybrid_layer_pattern",), (), "u32[]", default="numbers('')", back="resized(slides, n_main)",
            ),
            HParam(
                "kinds", ("layer_types",), (), "str[]", per_block="n_main",
                default="'sliding_attention' if (hybrid[block] if len(hybrid) > 0 else "
                        "block > 0 and (block + 1) % 6 > 0) else 'full_attention'",
                back="'sliding_attention' if slides[block] else 'full_attention'",
            ),
            HParam(
                "is_moe", (), (), "bool[]", per_block=True, default="present('model.layers.{block}.mlp.gate.weight')",
                back="present('blk.{block}.ffn_gate_inp.weight')",
            ),
            HParam(
                "mlp_kinds", ("mlp_layer_types",), (), "str[]", per_block="n_main",
                default="'sparse' if is_moe[block] else 'dense'",
            ),
            HParam(
                "is_fused", (), (), "bool[]", per_block=True,
                default="present('model.layers.{block}.self_attn.qkv_proj.weight') or "
                        "present('model.mtp.layers.{block}.self_attn.qkv_proj.weight', block - n_main)",
                back="present('blk.{block}.attn_qkv.weight')",
            ),
        ),
        tensors=(
            *TOP_TENSORS,
            *only_when(MAIN, (*NORM_TENSORS, *ATTENTION)),
            *only_when(f"{MAIN} and is_fused", FUSED),
            *only_when(f"{MAIN} and not is_fused", APART),
            *only_when(f"{MAIN} and is_moe", (*ROUTER, *EXPERTS)),
            *only_when(f"{MAIN} and not is_moe", DENSE_FFN),
            *only_when(f"{LAST} and is_fused", moved(H, MTP, FUSED)),
            *only_when(f"{LAST} and not is_fused", moved(H, MTP, APART)),
            *only_when(
                LAST,
                (
                    *moved(H, MTP, (*ATTENTION, *DENSE_FFN)),
                    T(MTP + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
                    T(MTP + "pre_mlp_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
                    T(MTP + "eh_proj.weight", G + "nextn.eh_proj.weight", shape=("n_embd", "2 * n_embd")),
                    T(MTP + "enorm.weight", G + "nextn.enorm.weight", shape=NORM),
                    T(MTP + "hnorm.weight", G + "nextn.hnorm.weight", shape=NORM),
                    T(MTP + "final_layernorm.weight", G + "layer_output_norm.weight", shape=NORM, optional=True),
                ),
            ),
        ),
        ignore=(*ROPE_BUFFERS, "model.mtp.{rest}"),
        # 64 of 192.
        traits=Traits(
            BPE,
            built_in={
                "rope.partial_rotary_factor": (0.334,),
                "rope_parameters.sliding_attention.partial_rotary_factor": (0.334,),
            },
            decoder=Decoder(gating=SIGMOID, weights_norm=True),
        ),
    ),
)  # fmt: skip
