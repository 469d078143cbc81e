"""MPT.

Source: the reference converter's MPTModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    HEAD_SIZE,
    N_VOCAB,
    G,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, pair
from converter.architectures.styles import BPE
from converter.architectures.traits import Decoder, Traits

B = "transformer.blocks.{block}."

ARCHITECTURES = (
    Architecture(
        gguf="mpt",
        hf=(HFClass("MPTForCausalLM", "mpt"), HFClass("MptForCausalLM", "mpt", when="0")),
        hparams=(
            HParam("n_ctx", ("max_seq_len",), ("context_length",), required=True),
            HParam("n_embd", ("d_model",), ("embedding_length",), required=True),
            HParam("n_layer", ("n_layers",), ("block_count",), required=True),
            HParam("n_ff", (), ("feed_forward_length",), default="expansion * n_embd", always=True),
            HParam("n_head", ("n_heads",), ("attention.head_count",), required=True),
            HParam("n_head_kv", ("attn_config.kv_n_heads",), ("attention.head_count_kv",), default="n_head"),
            HParam("norm_eps", (), ("attention.layer_norm_epsilon",), "f32", default=1e-5, always=True),
            HParam("clamp", ("attn_config.clip_qkv",), ("attention.clamp_kqv",), "f32"),
            HParam(
                "max_alibi", (), ("attention.max_alibi_bias",), "f32", default="alibi_max if alibi else 0", always=True
            ),
            HParam("alibi", ("attn_config.alibi",), (), "bool", default=True, back="max_alibi > 0"),
            HParam("alibi_max", ("attn_config.alibi_bias_max",), (), "u32", default=8, back="int(max_alibi)"),
            HParam("expansion", ("expansion_ratio",), (), default=4, back="n_ff // n_embd"),
            HEAD_SIZE,
            N_VOCAB,
        ),
        tensors=(
            T("transformer.wte.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("transformer.wpe.weight", "position_embd.weight", shape=("n_ctx", "n_embd"), optional=True),
            *pair("transformer.norm_f", "output_norm", shape=("n_embd",)),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            *pair(B + "norm_1", G + "attn_norm", shape=("n_embd",)),
            *pair(B + "norm_2", G + "ffn_norm", shape=("n_embd",)),
            *pair(B + "attn.Wqkv", G + "attn_qkv", shape=("(n_head + 2 * n_head_kv) * head_dim", "n_embd")),
            *pair(B + "attn.out_proj", G + "attn_output", shape=("n_embd", "n_embd")),
            *pair(B + "ffn.up_proj", G + "ffn_up", shape=("n_ff", "n_embd")),
            *pair(B + "ffn.down_proj", G + "ffn_down", shape=("n_embd", "n_ff")),
        ),
        traits=Traits(
            BPE, built_in={"layer_norm_epsilon": (1e-5,)},
            decoder=Decoder("gelu", alibi="max_alibi", rotates="0"),
        ),
    ),
)
