"""HRM-Text: two stacks of blocks, a low and a high one, that run in cycles over the same text.

A GGUF counts a block for each pass, for which a runtime keeps keys and values apart, and has the blocks of both stacks
once. Source: the reference converter's HrmTextModel; llama.cpp's hrm-text.cpp; transformers' configuration class.
"""

from converter.architectures.common import (
    DECODER_HPARAMS,
    N_ROT,
    NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    H,
    Q,
)
from converter.architectures.spec import (
    Architecture,
    HFClass,
    HParam,
    T,
    amended,
    moved,
    only_when,
    read_only,
    without,
)
from converter.architectures.styles import BPE
from converter.architectures.traits import Traits
from converter.tensors.ops import Split

LOW, HIGH = "model.L_module.layers.{block}.", "model.H_module.layers.{block-n_stack}."
# As it is published; transformers has the parts apart while it runs.
BLOCK = (
    T(
        H + "attn.gqkv_proj.weight",
        (G + "attn_gate.weight", G + "attn_q.weight", G + "attn_k.weight", G + "attn_v.weight"),
        Split(0, (1, 1, 1, 1)), shape=(f"4 * {Q}", "n_embd"),
    ),
    T(H + "attn.o_proj.weight", G + "attn_output.weight", shape=("n_embd", Q)),
    T(
        H + "mlp.gate_up_proj.weight", (G + "ffn_gate.weight", G + "ffn_up.weight"), Split(0, (1, 1)),
        shape=("2 * n_ff", "n_embd"),
    ),
    T(H + "mlp.down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
    *read_only(
        (
            T(H + "attn.gate_proj.weight", G + "attn_gate.weight", shape=(Q, "n_embd")),
            T(H + "attn.q_proj.weight", G + "attn_q.weight", shape=(Q, "n_embd")),
            T(H + "attn.k_proj.weight", G + "attn_k.weight", shape=(Q, "n_embd")),
            T(H + "attn.v_proj.weight", G + "attn_v.weight", shape=(Q, "n_embd")),
            T(H + "mlp.gate_proj.weight", G + "ffn_gate.weight", shape=("n_ff", "n_embd")),
            T(H + "mlp.up_proj.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
        )
    ),
)

ARCHITECTURES = (
    Architecture(
        gguf="hrm_text",
        hf=(HFClass("HrmTextForCausalLM", "hrm_text"),),
        hparams=(
            HParam("n_pass", (), ("block_count",), default="n_stack * h_cycles * (l_cycles + 1)", always=True),
            *amended(
                DECODER_HPARAMS, n_layer={"config": (), "gguf": (), "default": "2 * n_stack", "required": False},
            ),
            N_ROT,
            HParam("embedding_scale", ("embedding_scale",), ("embedding_scale",), "f32", required=True),
            HParam(
                "n_stack", ("num_layers_per_stack", "num_hidden_layers"), ("hrm.layers_per_stack",), required=True,
            ),
            HParam("h_cycles", ("H_cycles",), ("hrm.h_cycles",), required=True),
            HParam("l_cycles", ("L_cycles",), ("hrm.l_cycles",), required=True),
            HParam("prefix_lm", ("prefix_lm",), ("hrm.prefix_lm",), "bool", default=False, always=True),
        ),
        tensors=(
            *without(TOP_TENSORS, "output_norm.weight"),
            T("model.z_L_init", "hrm.z_l_init", shape=NORM),
            *only_when("block < n_stack", moved(H, LOW, BLOCK)),
            *only_when("block >= n_stack", moved(H, HIGH, BLOCK)),
        ),
        ignore=ROPE_BUFFERS,
        aliases=(("model.{stack}.layers.{number}.self_attn.{rest}", "model.{stack}.layers.{number}.attn.{rest}"),),
        traits=Traits(BPE),
    ),
)  # fmt: skip
