"""Qwen3-Next, Qwen3.5 and their mixtures: gated delta rule in most blocks, attention with a gate in the others.

Norms are stored minus one. In Qwen3.5 the value heads of a key head stand together in Hugging Face's layout, and apart
in ggml's, which repeats keys by whole rounds. Blocks that predict further tokens (`mtp.*`) are those after the main
ones; where their tensors are missing, they are not counted.
Source: the reference converter's Qwen3NextModel, Qwen3_5TextModel, Qwen3_5MoeTextModel; transformers' configuration
classes for the defaults.
"""

from dataclasses import replace

from converter.architectures.common import (
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    MROPE,
    N_ROT_OF_HEAD,
    NORM,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.qwen import EXPERT_WIDTHS, EXPERTS, MOE_HPARAMS, SHARED_EXPERT
from converter.architectures.qwen_vl import INTERLEAVED
from converter.architectures.spec import (
    Architecture,
    HFClass,
    HParam,
    T,
    amended,
    before,
    moved,
    only_when,
    pair,
    without,
)
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Relation, Traits
from converter.tensors.ops import Add, At, Concat, NegExp, PermuteColumns, PermuteRows, Reshape, Split

MTP, MTP_BLOCK = "mtp.layers.{block-n_main}.", "blk.{n_main}."
LINEAR = H + "linear_attn."
# Heads of keys and values in the blocks without attention, and how many value heads share a key head.
KEYS, VALUES, SHARE = "n_head_k * head_k", "n_head_v * head_v", "n_head_v // n_head_k"
CHANNELS = f"2 * {KEYS} + {VALUES}"

ALIASES = (*TEXT_MODEL_ALIASES, ("model.mtp.{rest}", "mtp.{rest}"))

N_LAYER = {"n_layer": {"config": (), "required": False, "default": "n_main + n_nextn", "always": True}}
# The config of Qwen3-Next says nothing of the blocks for further tokens that its weights have.
ONE_SAID = {"n_nextn_said": 1}
TOLD = (
    Relation(
        "n_nextn >= n_promised or not n_nextn_said", "n_promised",
        "config.json promises blocks that predict further tokens (mtp_num_hidden_layers), the weights have none: "
        "the file is written without",
    ),
)
HYBRID = (
    HParam("n_main", ("num_hidden_layers",), required=True, back="n_layer - n_nextn"),
    HParam("n_promised", ("mtp_num_hidden_layers",), default=0, back="n_nextn"),
    HParam("n_nextn_said", default=0),
    HParam(
        "n_nextn", (), ("nextn_predict_layers",), null=0, always=True,
        default="max(n_promised, 1) if n_nextn_said and present('mtp.fc.weight') else 0", back=0,
    ),
    HParam("conv_kernel", ("linear_conv_kernel_dim",), ("ssm.conv_kernel",), always=True, required=True),
    HParam("head_k", ("linear_key_head_dim",), ("ssm.state_size",), required=True),
    HParam("n_head_k", ("linear_num_key_heads",), ("ssm.group_count",), required=True),
    HParam("n_head_v", ("linear_num_value_heads",), ("ssm.time_step_rank",), required=True),
    HParam("head_v", ("linear_value_head_dim",), required=True, back="n_inner // n_head_v"),
    HParam("n_inner", (), ("ssm.inner_size",), default="head_v * n_head_v", always=True),
    HParam(
        "kinds", ("layer_types",), (), "str[]", per_block="n_main",
        default="'full_attention' if (block + 1) % interval == 0 else 'linear_attention'",
        back="'linear_attention' if recurrent else 'full_attention'",
    ),
    HParam(
        "recurrent", (), ("attention.recurrent_layers",), "bool[]", per_block=True, always=True,
        default="block < n_main and kinds[block] == 'linear_attention'",
        back="block < n_main and (block + 1) % interval != 0",
    ),
    HParam("interval", ("full_attention_interval",), ("full_attention_interval",), default=4, always=True),
    N_ROT_OF_HEAD,
    HParam("partial", ("rope.partial_rotary_factor",), (), "f32", default=0.25, back="n_rot / head_dim"),
    ATTENTION_BIAS,
)

NORMS = (
    T(H + "input_layernorm.weight", G + "attn_norm.weight", Add(1.0), shape=NORM),
    T(H + "post_attention_layernorm.weight", G + "post_attention_norm.weight", Add(1.0), shape=NORM),
)
GATED_ATTENTION = (
    *pair(H + "self_attn.q_proj", G + "attn_q", shape=("2 * n_head * head_dim", "n_embd")),
    *pair(H + "self_attn.k_proj", G + "attn_k", shape=("n_head_kv * head_dim", "n_embd")),
    *pair(H + "self_attn.v_proj", G + "attn_v", shape=("n_head_kv * head_dim", "n_embd")),
    *pair(H + "self_attn.o_proj", G + "attn_output", shape=("n_embd", "n_head * head_dim")),
    T(H + "self_attn.q_norm.weight", G + "attn_q_norm.weight", Add(1.0), shape=("head_dim",)),
    T(H + "self_attn.k_norm.weight", G + "attn_k_norm.weight", Add(1.0), shape=("head_dim",)),
)
TOP = (
    *without(TOP_TENSORS, "output_norm.weight"),
    T("model.norm.weight", "output_norm.weight", Add(1.0), shape=NORM),
    *only_when(
        "n_nextn > 0",
        (
            T("mtp.fc.weight", MTP_BLOCK + "nextn.eh_proj.weight", shape=("n_embd", "2 * n_embd")),
            T("mtp.pre_fc_norm_embedding.weight", MTP_BLOCK + "nextn.enorm.weight", Add(1.0), shape=NORM),
            T("mtp.pre_fc_norm_hidden.weight", MTP_BLOCK + "nextn.hnorm.weight", Add(1.0), shape=NORM),
            T("mtp.norm.weight", MTP_BLOCK + "nextn.shared_head_norm.weight", Add(1.0), shape=NORM),
        ),
    ),
)

# Qwen3-Next: each key head has its query, key, values and gates together; both gates and decays in one projection.
GROUPED = (
    T(
        LINEAR + "in_proj_qkvz.weight", (G + "attn_qkv.weight", G + "attn_gate.weight"),
        Reshape(
            (f"2 * {KEYS} + 2 * {VALUES}", "row"), ("n_head_k", f"2 * head_k + 2 * ({SHARE}) * head_v", "row")
        ),
        Split(1, ("head_k", "head_k", f"({SHARE}) * head_v", f"({SHARE}) * head_v")),
        At(0, Reshape(("n_head_k", "head_k", "row"), (KEYS, "row"))),
        At(1, Reshape(("n_head_k", "head_k", "row"), (KEYS, "row"))),
        At(2, Reshape(("n_head_k", f"({SHARE}) * head_v", "row"), (VALUES, "row"))),
        At(3, Reshape(("n_head_k", f"({SHARE}) * head_v", "row"), (VALUES, "row"))),
        At(0, Concat(0, (KEYS, KEYS, VALUES)), takes=3),
        shape=(f"2 * {KEYS} + 2 * {VALUES}", "n_embd"),
    ),
    T(LINEAR + "in_proj_ba.weight", G + "ssm_ba.weight", shape=("2 * n_head_v", "n_embd")),
    T(
        LINEAR + "conv1d.weight", G + "ssm_conv1d.weight",
        Reshape((CHANNELS, 1, "row"), (CHANNELS, "row")), shape=(CHANNELS, 1, "conv_kernel"),
    ),
    T(LINEAR + "dt_bias", G + "ssm_dt.bias", shape=("n_head_v",)),
    T(LINEAR + "A_log", G + "ssm_a", NegExp(), shape=("n_head_v",)),
    T(LINEAR + "norm.weight", G + "ssm_norm.weight", shape=("head_v",)),
    T(LINEAR + "out_proj.weight", G + "ssm_out.weight", shape=("n_embd", VALUES)),
)

# Qwen3.5: a projection each, and the value heads in another order.
APART = PermuteRows(("n_head_k", SHARE, "head_v"), (1, 0, 2))
APART_HEADS = PermuteRows(("n_head_k", SHARE), (1, 0))
VALUES_APART = (Split(0, (KEYS, KEYS, VALUES)), At(2, APART), Concat(0, (KEYS, KEYS, VALUES)))
TILED = (
    T(LINEAR + "in_proj_qkv.weight", G + "attn_qkv.weight", *VALUES_APART, shape=(CHANNELS, "n_embd")),
    T(LINEAR + "in_proj_z.weight", G + "attn_gate.weight", APART, shape=(VALUES, "n_embd")),
    T(LINEAR + "in_proj_a.weight", G + "ssm_alpha.weight", APART_HEADS, shape=("n_head_v", "n_embd")),
    T(LINEAR + "in_proj_b.weight", G + "ssm_beta.weight", APART_HEADS, shape=("n_head_v", "n_embd")),
    T(
        LINEAR + "conv1d.weight", G + "ssm_conv1d.weight",
        Reshape((CHANNELS, 1, "row"), (CHANNELS, "row")), *VALUES_APART, shape=(CHANNELS, 1, "conv_kernel"),
    ),
    T(LINEAR + "dt_bias", G + "ssm_dt.bias", APART_HEADS, shape=("n_head_v",)),
    T(LINEAR + "A_log", G + "ssm_a", APART_HEADS, NegExp(), shape=("n_head_v",)),
    T(LINEAR + "norm.weight", G + "ssm_norm.weight", shape=("head_v",)),
    T(
        LINEAR + "out_proj.weight", G + "ssm_out.weight",
        PermuteColumns(("n_head_k", SHARE, "head_v"), (1, 0, 2)), shape=("n_embd", VALUES),
    ),
)

# The same sections where config.json has none; llama.cpp does not load the model without.
SECTIONS = HParam(
    "rope_sections_anyway", (), ("rope.dimension_sections",), "i32[]", always=True, back="rope_sections",
    default="resized(mrope_sections if len(mrope_sections) > 0 else numbers('11,11,10'), 4)",
)
SAID_ANYWAY = {"mrope_sections": {"back": "resized(rope_sections_anyway, min(3, len(rope_sections_anyway)))"}}
MIXTURE = (*EXPERTS, *SHARED_EXPERT)
DECODER = Decoder(ffn_norm="post_attention_norm")
MAIN, LAST = "block < n_main", "block >= n_main"

ARCHITECTURES = (
    Architecture(
        gguf="qwen3next",
        hf=(
            HFClass(
                "Qwen3NextForCausalLM", "qwen3_next", facts=ONE_SAID,
                constants={"norm_topk_prob": True},
            ),
        ),
        hparams=(*amended(MOE_HPARAMS, **N_LAYER), *EXPERT_WIDTHS, *HYBRID),
        tensors=(
            *TOP,
            *only_when(MAIN, (*NORMS, *MIXTURE)),
            *only_when(MAIN + " and not recurrent", GATED_ATTENTION),
            *only_when("recurrent", GROUPED),
            *only_when(LAST, moved(H, MTP, (*NORMS, *GATED_ATTENTION, *MIXTURE))),
        ),
        ignore=(*ROPE_BUFFERS, "mtp.{rest}"),
        aliases=ALIASES,
        traits=Traits(BPE, told=TOLD, decoder=replace(DECODER, weights_norm=True)),
    ),
    Architecture(
        gguf="qwen35",
        hf=(
            HFClass("Qwen3_5ForCausalLM", "qwen3_5_text", facts=ONE_SAID),
            HFClass(
                "Qwen3_5ForConditionalGeneration", "qwen3_5", facts=ONE_SAID,
                when="0",
            ),
            HFClass("MiniCPMV4_6ForConditionalGeneration", "minicpmv4_6", facts={"n_nextn_said": 0}, when="0"),
        ),
        hparams=(*amended(before("rope_theta", MROPE, DECODER_HPARAMS), **N_LAYER, **SAID_ANYWAY), *HYBRID, SECTIONS),
        tensors=(
            *TOP,
            *only_when(MAIN, (*NORMS, *DENSE_FFN)),
            *only_when(MAIN + " and not recurrent", GATED_ATTENTION),
            *only_when("recurrent", TILED),
            *only_when(LAST, moved(H, MTP, (*NORMS, *GATED_ATTENTION, *DENSE_FFN))),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "mtp.{rest}"),
        aliases=ALIASES,
        traits=Traits(BPE, told=TOLD, built_in=INTERLEAVED, decoder=replace(DECODER, shared_by_neighbours=False)),
    ),
    Architecture(
        gguf="qwen35moe",
        hf=(
            HFClass("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", facts=ONE_SAID),
            HFClass("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", facts=ONE_SAID, when="0"),
        ),
        hparams=(
            *amended(before("rope_theta", MROPE, MOE_HPARAMS), **N_LAYER, **SAID_ANYWAY, n_ff={"required": False}),
            *EXPERT_WIDTHS, *HYBRID, SECTIONS,
        ),
        tensors=(
            *TOP,
            *only_when(MAIN, (*NORMS, *MIXTURE)),
            *only_when(MAIN + " and not recurrent", GATED_ATTENTION),
            *only_when("recurrent", TILED),
            *only_when(LAST, moved(H, MTP, (*NORMS, *GATED_ATTENTION, *MIXTURE))),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "mtp.{rest}"),
        aliases=ALIASES,
        traits=Traits(
            BPE, told=TOLD, built_in=INTERLEAVED,
            decoder=replace(DECODER, shared_by_neighbours=False, weights_norm=True),
        ),
    ),
)
