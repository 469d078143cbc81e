"""GPT-NeoX and Pythia, BLOOM: queries, keys and values in one matrix, head by head; the runtime wants them apart.

Source: the reference converter's GPTNeoXModel and BloomModel; transformers' configuration classes for the defaults.
"""

from converter.architectures.common import (
    HEAD_SIZE,
    N_CTX,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_LAYER,
    N_VOCAB,
    NORM,
    NORM_EPS,
    G,
    Q,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import PermuteRows

N, B = "gpt_neox.layers.{block}.", "transformer.h.{block}."
QUERIES_FIRST = PermuteRows(("n_head", 3, "head_dim"), (1, 0, 2))
N_HEAD_KV = HParam("n_head_kv", (), (), default="n_head")
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")

ARCHITECTURES = (
    Architecture(
        gguf="gptneox",
        hf=(
            HFClass(
                "GPTNeoXForCausalLM",
                "gpt_neox",
                {"rotary_pct": 0.25},
            ),
        ),
        hparams=(
            N_CTX,
            N_EMBD,
            N_LAYER,
            N_FF,
            HParam("n_rot", (), ("rope.dimension_count",), default="int(rotary_pct * head_dim)", always=True),
            N_HEAD,
            HParam(
                "parallel", ("use_parallel_residual",), ("use_parallel_residual",), "bool", default=True, always=True
            ),
            HParam("norm_eps", ("layer_norm_eps",), ("attention.layer_norm_epsilon",), "f32", required=True),
            # The runtime's own base is not written.
            HParam(
                "rope_theta", ("rope.rope_theta", "rotary_emb_base"), ("rope.freq_base",), "f32",
                when="rope_theta != 10000",
            ),
            HParam(
                "rotary_pct", ("rotary_pct", "rope.partial_rotary_factor"), (), "f32",
                default=0.25, back="n_rot / head_dim",
            ),
            N_HEAD_KV,
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            T("gpt_neox.embed_in.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            *pair("gpt_neox.final_layer_norm", "output_norm", shape=NORM, bias=True),
            T("embed_out.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            *pair(N + "input_layernorm", G + "attn_norm", shape=NORM, bias=True),
            *pair(N + "post_attention_layernorm", G + "ffn_norm", shape=NORM, bias=True),
            *pair(
                N + "attention.query_key_value", G + "attn_qkv", QUERIES_FIRST,
                shape=("3 * n_head * head_dim", "n_embd"), bias=True,
            ),
            *pair(N + "attention.dense", G + "attn_output", shape=("n_embd", Q), bias=True),
            *pair(N + "mlp.dense_h_to_4h", G + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(N + "mlp.dense_4h_to_h", G + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
        ),
        ignore=(N + "attention.bias", N + "attention.masked_bias", N + "attention.rotary_emb.inv_freq"),
        traits=Traits(
            BPE, built_in={"hidden_act": GELU, "use_parallel_residual": (True,)},
            decoder=Decoder("gelu", parallel="parallel"),
        ),
    ),
    Architecture(
        gguf="bloom",
        hf=(
            HFClass("BloomForCausalLM", "bloom"),
            HFClass("BloomModel", "bloom", when="0", head=False),
        ),
        hparams=(
            HParam("n_ctx", ("seq_length",), ("context_length",), default="n_embd", always=True),
            HParam("n_embd", ("hidden_size", "n_embed"), ("embedding_length",), required=True),
            HParam("n_ff", (), ("feed_forward_length",), default="4 * n_embd", always=True),
            HParam("n_layer", ("n_layer", "num_hidden_layers"), ("block_count",), required=True),
            HParam("n_head", ("n_head", "num_attention_heads"), ("attention.head_count",), required=True),
            HParam("n_head_kv", (), ("attention.head_count_kv",), default="n_head", always=True),
            NORM_EPS,
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            T("transformer.word_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            *pair("transformer.word_embeddings_layernorm", "token_embd_norm", shape=NORM, bias=True),
            *pair("transformer.ln_f", "output_norm", shape=NORM, bias=True),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            *pair(B + "input_layernorm", G + "attn_norm", shape=NORM, bias=True),
            *pair(B + "post_attention_layernorm", G + "ffn_norm", shape=NORM, bias=True),
            *pair(
                B + "self_attention.query_key_value", G + "attn_qkv", QUERIES_FIRST,
                shape=("3 * n_head * head_dim", "n_embd"), bias=True,
            ),
            *pair(B + "self_attention.dense", G + "attn_output", shape=("n_embd", Q), bias=True),
            *pair(B + "mlp.dense_h_to_4h", G + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
            *pair(B + "mlp.dense_4h_to_h", G + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
        ),
        aliases=(("{rest}", "transformer.{rest}"),),
        traits=Traits(BPE, decoder=Decoder("gelu_tanh", alibi="8", rotates="0")),
    ),
)
