"""GPT-2, whose matrices stand the other way round.

Source: the reference converter's GPT2Model; transformers' configuration class for the defaults.
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
from converter.architectures.traits import Traits
from converter.tensors.ops import Transpose

B = "transformer.h.{block}."

ARCHITECTURES = (
    Architecture(
        gguf="gpt2",
        hf=(HFClass("GPT2LMHeadModel", "gpt2"),),
        hparams=(
            HParam("n_layer", ("n_layer", "num_hidden_layers"), ("block_count",), required=True),
            HParam("n_ctx", ("n_positions", "n_ctx"), ("context_length",), required=True),
            HParam("n_embd", ("n_embd", "hidden_size"), ("embedding_length",), required=True),
            HParam("n_ff", ("n_inner",), ("feed_forward_length",), default="4 * n_embd", always=True),
            HParam("n_head", ("n_head", "num_attention_heads"), ("attention.head_count",), required=True),
            NORM_EPS,
            HParam("n_head_kv", (), (), default="n_head"),
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            T("transformer.wte.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("transformer.wpe.weight", "position_embd.weight", shape=("n_ctx", "n_embd")),
            *pair("transformer.ln_f", "output_norm", shape=NORM, bias=True),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            *pair(B + "ln_1", G + "attn_norm", shape=NORM, bias=True),
            *pair(B + "ln_2", G + "ffn_norm", shape=NORM, bias=True),
            T(B + "attn.c_attn.weight", G + "attn_qkv.weight", Transpose(), shape=("n_embd", "3 * n_embd")),
            T(B + "attn.c_attn.bias", G + "attn_qkv.bias", shape=("3 * n_embd",)),
            T(B + "attn.c_proj.weight", G + "attn_output.weight", Transpose(), shape=("n_embd", "n_embd")),
            T(B + "attn.c_proj.bias", G + "attn_output.bias", shape=NORM),
            T(B + "mlp.c_fc.weight", G + "ffn_up.weight", Transpose(), shape=("n_embd", "n_ff")),
            T(B + "mlp.c_fc.bias", G + "ffn_up.bias", shape=("n_ff",)),
            T(B + "mlp.c_proj.weight", G + "ffn_down.weight", Transpose(), shape=("n_ff", "n_embd")),
            T(B + "mlp.c_proj.bias", G + "ffn_down.bias", shape=NORM),
        ),
        ignore=(B + "attn.bias", B + "attn.masked_bias"),
        aliases=(("{rest}", "transformer.{rest}"),),
        traits=Traits(BPE, built_in={"activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu")}),
    ),
)
