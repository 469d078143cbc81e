"""Falcon: queries, keys and values in one matrix, group by group; the runtime wants all queries first.

Source: the reference converter's FalconModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    HEAD_SIZE,
    N_VOCAB,
    NORM,
    NORM_EPS,
    G,
    Q,
)
from converter.architectures.gptneox import GELU
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import ROW, At, Concat, Reshape, Split

B = "transformer.h.{block}."
GROUP = "n_head // n_head_kv"
FUSED = "(n_head + 2 * n_head_kv) * head_dim"
QUERIES_FIRST = (
    Reshape((FUSED, ROW), ("n_head_kv", f"{GROUP} + 2", "head_dim", ROW)),
    Split(1, (GROUP, 1, 1)),
    At(0, Reshape(("n_head_kv", GROUP, "head_dim", ROW), (Q, ROW))),
    At(1, Reshape(("n_head_kv", 1, "head_dim", ROW), ("n_head_kv * head_dim", ROW))),
    At(2, Reshape(("n_head_kv", 1, "head_dim", ROW), ("n_head_kv * head_dim", ROW))),
    Concat(0, ("n_head", "n_head_kv", "n_head_kv")),
)

ARCHITECTURES = (
    Architecture(
        gguf="falcon",
        hf=(HFClass("FalconForCausalLM", "falcon"), HFClass("RWForCausalLM", "falcon", when="0")),
        hparams=(
            HParam("n_ctx", (), ("context_length",), default=2048, always=True),
            HParam("layout", (), ("tensor_data_layout",), "str", default="'jploski'", always=True),
            HParam("n_embd", ("hidden_size", "n_embed"), ("embedding_length",), required=True),
            HParam("n_ff", ("ffn_hidden_size",), ("feed_forward_length",), default="4 * n_embd", always=True),
            HParam("n_layer", ("num_hidden_layers", "n_layer"), ("block_count",), required=True),
            HParam("n_head", ("num_attention_heads", "n_head"), ("attention.head_count",), required=True),
            HParam(
                "n_head_kv", (), ("attention.head_count_kv",), always=True,
                default="n_group if is_new else 1 if multi_query else n_head",
            ),
            NORM_EPS,
            # The runtime's own base is not written.
            HParam("rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32", when="rope_theta != 10000"),
            HParam(
                "is_new", ("new_decoder_architecture",), (), "bool", default=False,
                back="n_head_kv > 1 and n_head_kv < n_head",
            ),
            HParam("multi_query", ("multi_query",), (), "bool", default=True, back="n_head_kv == 1"),
            HParam("n_group", ("num_kv_heads", "n_head_kv"), (), default="n_head", back="n_head_kv"),
            HParam(
                "n_norm", ("num_ln_in_parallel_attn",), (), default="2 if is_new else 1",
                back="2 if present('blk.0.attn_norm_2.weight') else 1",
            ),
            HParam("bias", ("bias",), (), "bool", default=False, back="present('blk.0.ffn_up.bias')"),
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            T("transformer.word_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            *pair("transformer.ln_f", "output_norm", shape=NORM, bias=True),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            *pair(B + "input_layernorm", G + "attn_norm", shape=NORM, bias=True, when="n_norm == 1"),
            *pair(B + "ln_mlp", G + "attn_norm", shape=NORM, bias=True, when="n_norm == 2"),
            *pair(B + "ln_attn", G + "attn_norm_2", shape=NORM, bias=True, when="n_norm == 2"),
            T(B + "self_attention.query_key_value.weight", G + "attn_qkv.weight", *QUERIES_FIRST,
              shape=(FUSED, "n_embd")),
            *pair(B + "self_attention.dense", G + "attn_output", shape=("n_embd", Q)),
            *pair(B + "mlp.dense_h_to_4h", G + "ffn_up", shape=("n_ff", "n_embd")),
            *pair(B + "mlp.dense_4h_to_h", G + "ffn_down", shape=("n_embd", "n_ff")),
        ),
        ignore=(B + "self_attention.rotary_emb.inv_freq",),
        aliases=(("{rest}", "transformer.{rest}"),),
        traits=Traits(BPE, built_in={"parallel_attn": (True,), "activation": GELU}, decoder=Decoder("gelu")),
    ),
)  # fmt: skip
