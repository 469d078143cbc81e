"""CodeShell and Refact.

Source: the reference converter's CodeShellModel and RefactModel.
"""

from converter.architectures.common import (
    HEAD_SIZE,
    N_VOCAB,
    NORM,
    NORM_EPS,
    G,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import Split

B = "transformer.h.{block}."
TOP = (
    T("transformer.wte.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
    T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
)

ARCHITECTURES = (
    Architecture(
        gguf="codeshell",
        hf=(
            HFClass(
                "CodeShellForCausalLM",
                "codeshell",
                constants={"group_query_attention": True, "position_embedding_type": "rope"},
            ),
        ),
        hparams=(
            HParam("n_ctx", ("n_positions",), ("context_length",), required=True),
            HParam("n_embd", ("n_embd", "hidden_size"), ("embedding_length",), required=True),
            HParam("n_ff", ("n_inner",), ("feed_forward_length",), default="4 * n_embd", always=True),
            HParam("n_layer", ("n_layer", "num_hidden_layers"), ("block_count",), required=True),
            HParam("n_head", ("n_head", "num_attention_heads"), ("attention.head_count",), required=True),
            HParam("n_head_kv", ("num_query_groups",), ("attention.head_count_kv",), default="n_head", always=True),
            NORM_EPS,
            HParam("rope_theta", (), ("rope.freq_base",), "f32", default=10000.0, always=True),
            HParam("scaling", (), ("rope.scaling.type",), "str", default="'linear'", always=True),
            HParam("scaling_factor", (), ("rope.scaling.factor",), "f32", default=1.0, always=True),
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            *TOP,
            *pair("transformer.ln_f", "output_norm", shape=NORM, bias=True),
            *pair(B + "ln_1", G + "attn_norm", shape=NORM, bias=True),
            *pair(
                B + "attn.c_attn", G + "attn_qkv",
                shape=("(n_head + 2 * n_head_kv) * head_dim", "n_embd"), bias=True,
            ),
            *pair(B + "attn.c_proj", G + "attn_output", shape=("n_embd", "n_embd"), bias=True),
            *pair(B + "ln_2", G + "ffn_norm", shape=NORM, bias=True),
            *pair(B + "mlp.c_fc", G + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(B + "mlp.c_proj", G + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
        ),
        ignore=(B + "attn.rotary_emb.inv_freq", B + "attn.bias"),
        traits=Traits(
            BPE, built_in={"activation_function": ("gelu_pytorch_tanh", "gelu")}, decoder=Decoder("gelu_tanh"),
        ),
    ),
    Architecture(
        gguf="refact",
        hf=(HFClass("GPTRefactForCausalLM", "gpt_refact"),),
        hparams=(
            HParam("n_ctx", ("n_positions",), ("context_length",), required=True),
            HParam("n_embd", ("n_embd",), ("embedding_length",), required=True),
            HParam(
                "n_ff", (), ("feed_forward_length",), default="round_up(int(8 * n_embd / 3), 256)", always=True
            ),
            HParam("n_layer", ("n_layer",), ("block_count",), required=True),
            HParam("n_head", ("n_head",), ("attention.head_count",), required=True),
            HParam("n_head_kv", (), ("attention.head_count_kv",), default=1, always=True),
            HParam(
                "rms_eps", ("layer_norm_epsilon",), ("attention.layer_norm_rms_epsilon",), "f32", required=True
            ),
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            *TOP,
            T("transformer.ln_f.weight", "output_norm.weight", shape=NORM),
            T(B + "ln_1.weight", G + "attn_norm.weight", shape=NORM),
            T(B + "attn.q.weight", G + "attn_q.weight", shape=("n_embd", "n_embd")),
            T(
                B + "attn.kv.weight", (G + "attn_k.weight", G + "attn_v.weight"),
                Split(0, (1, 1)), shape=("2 * head_dim", "n_embd"),
            ),
            T(B + "attn.c_proj.weight", G + "attn_output.weight", shape=("n_embd", "n_embd")),
            T(B + "ln_2.weight", G + "ffn_norm.weight", shape=NORM),
            T(
                B + "mlp.gate_up_proj.weight", (G + "ffn_gate.weight", G + "ffn_up.weight"),
                Split(0, (1, 1)), shape=("2 * n_ff", "n_embd"),
            ),
            T(B + "mlp.c_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
        ),
        traits=Traits(BPE, decoder=Decoder(alibi="8", rotates="0")),
    ),
)  # fmt: skip
