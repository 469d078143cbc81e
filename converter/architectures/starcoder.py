"""StarCoder 1 and 2.

Source: the reference converter's StarCoderModel and StarCoder2Model; transformers' configuration classes for the
defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    HEAD_SIZE,
    LAYER_NORM_HPARAMS,
    N_VOCAB,
    NORM,
    NORM_EPS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits

B = "transformer.h.{block}."
GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu")

ARCHITECTURES = (
    Architecture(
        gguf="starcoder",
        hf=(
            HFClass(
                "GPTBigCodeForCausalLM",
                "gpt_bigcode",
                constants={"multi_query": True},
            ),
        ),
        hparams=(
            HParam("n_ctx", ("n_positions",), ("context_length",), required=True),
            HParam("n_embd", ("n_embd", "hidden_size"), ("embedding_length",), required=True),
            HParam("n_ff", ("n_inner",), ("feed_forward_length",), default="4 * n_embd", always=True),
            HParam("n_layer", ("n_layer", "num_hidden_layers"), ("block_count",), required=True),
            HParam("n_head", ("n_head", "num_attention_heads"), ("attention.head_count",), required=True),
            HParam("n_head_kv", (), ("attention.head_count_kv",), default=1, always=True),
            NORM_EPS,
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            T("transformer.wte.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("transformer.wpe.weight", "position_embd.weight", shape=("n_ctx", "n_embd")),
            *pair("transformer.ln_f", "output_norm", shape=NORM, bias=True),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            *pair(B + "ln_1", G + "attn_norm", shape=NORM, bias=True),
            *pair(
                B + "attn.c_attn", G + "attn_qkv",
                shape=("n_embd + 2 * n_head_kv * head_dim", "n_embd"), bias=True,
            ),
            *pair(B + "attn.c_proj", G + "attn_output", shape=("n_embd", "n_embd"), bias=True),
            *pair(B + "ln_2", G + "ffn_norm", shape=NORM, bias=True),
            *pair(B + "mlp.c_fc", G + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(B + "mlp.c_proj", G + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
        ),
        ignore=(B + "attn.bias", B + "attn.masked_bias"),
        aliases=(("{rest}", "transformer.{rest}"),),
        traits=Traits(BPE, built_in={"activation_function": GELU}, decoder=Decoder("gelu_tanh")),
    ),
    Architecture(
        gguf="starcoder2",
        hf=(
            HFClass(
                "Starcoder2ForCausalLM",
                "starcoder2",
            ),
        ),
        hparams=(
            *amended(LAYER_NORM_HPARAMS, norm_eps={"config": ("norm_epsilon", "layer_norm_epsilon")}),
            HParam("use_bias", ("use_bias",), (), "bool", default=True, back="present('blk.0.attn_q.bias')"),
        ),
        tensors=(
            *TOP_TENSORS,
            T("model.norm.bias", "output_norm.bias", shape=NORM),
            *pair(H + "input_layernorm", G + "attn_norm", shape=NORM, bias=True),
            *pair(H + "post_attention_layernorm", G + "ffn_norm", shape=NORM, bias=True),
            *ATTENTION,
            *pair(H + "mlp.c_fc", G + "ffn_up", shape=("n_ff", "n_embd")),
            *pair(H + "mlp.c_proj", G + "ffn_down", shape=("n_embd", "n_ff")),
        ),
        ignore=ROPE_BUFFERS,
        aliases=TEXT_MODEL_ALIASES,
        traits=Traits(BPE, built_in={"hidden_act": GELU}, decoder=Decoder("gelu_tanh")),
    ),
)
