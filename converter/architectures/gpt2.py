"""GPT-2, whose matrices stand the other way round; ruGPT-3 XL, whose matrices do not.

Source: the reference converter's GPT2Model and RuGPT3XLModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    HEAD_SIZE,
    N_VOCAB,
    NORM,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair, read_only
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import Concat, Transpose

B = "transformer.h.{block}."
QKV = (H + "self_attn.q_proj.", H + "self_attn.k_proj.", H + "self_attn.v_proj.")
QKV_WEIGHTS, QKV_BIASES = tuple(f"{name}weight" for name in QKV), tuple(f"{name}bias" for name in QKV)

ARCHITECTURES = (
    Architecture(
        gguf="gpt2",
        hf=(
            HFClass("GPT2LMHeadModel", "gpt2"),
            HFClass("RuGPT3XLForCausalLM", "rugpt3xl", {"activation_function": "gelu_new"}, when="0"),
        ),
        hparams=(
            HParam("n_layer", ("n_layer", "num_hidden_layers"), ("block_count",), required=True),
            HParam("n_ctx", ("n_positions", "n_ctx", "max_position_embeddings"), ("context_length",), required=True),
            HParam("n_embd", ("n_embd", "hidden_size"), ("embedding_length",), required=True),
            HParam(
                "n_ff", ("n_inner", "intermediate_size"), ("feed_forward_length",), default="4 * n_embd", always=True,
            ),
            HParam("n_head", ("n_head", "num_attention_heads"), ("attention.head_count",), required=True),
            HParam(
                "norm_eps", ("layer_norm_epsilon", "layer_norm_eps"), ("attention.layer_norm_epsilon",), "f32",
                required=True,
            ),
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
            *read_only(
                (
                    T("model.embed_tokens.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
                    T("model.embed_positions.weight", "position_embd.weight", shape=("n_ctx", "n_embd")),
                    *pair("model.norm", "output_norm", shape=NORM, bias=True),
                    *pair(H + "input_layernorm", G + "attn_norm", shape=NORM, bias=True),
                    *pair(H + "post_attention_layernorm", G + "ffn_norm", shape=NORM, bias=True),
                    T(QKV_WEIGHTS, G + "attn_qkv.weight", Concat(0, (1, 1, 1)), shape=("n_embd", "n_embd")),
                    T(QKV_BIASES, G + "attn_qkv.bias", Concat(0, (1, 1, 1)), shape=NORM),
                    *pair(H + "self_attn.o_proj", G + "attn_output", shape=("n_embd", "n_embd"), bias=True),
                    *pair(H + "mlp.up_proj", G + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
                    *pair(H + "mlp.down_proj", G + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
                )
            ),
        ),
        ignore=(B + "attn.bias", B + "attn.masked_bias"),
        aliases=(("{rest}", "transformer.{rest}"),),
        traits=Traits(
            BPE, built_in={"activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu")},
            decoder=Decoder("gelu_tanh"),
        ),
    ),
)
