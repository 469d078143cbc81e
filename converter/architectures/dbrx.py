"""DBRX: experts as rows of one matrix, queries, keys and values in one projection, bounded.

Source: the reference converter's DbrxModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    N_VOCAB,
    NORM,
    G,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.styles import BPE
from converter.architectures.traits import AS_ASKED, Decoder, Traits
from converter.tensors.ops import Reshape, Transpose

B = "transformer.blocks.{block}."
EXPERTS, STACKED = B + "ffn.experts.mlp.", ("n_expert * n_ff", "n_embd")
APART = Reshape(("n_expert * n_ff", "row"), ("n_expert", "n_ff", "row"))
ATTENTION, NETWORK = "attn_config.", "ffn_config."

ARCHITECTURES = (
    Architecture(
        gguf="dbrx",
        hf=(
            HFClass(
                "DbrxForCausalLM", "dbrx",
                {
                    "attn_config.kv_n_heads": 1,
                    "ffn_config.ffn_hidden_size": 3584, "ffn_config.moe_num_experts": 4, "ffn_config.moe_top_k": 1,
                    "attn_config.rope_theta": 10000.0,
                },
            ),
        ),
        hparams=(
            HParam("n_layer", ("n_layers", "num_hidden_layers"), ("block_count",), required=True),
            HParam("n_ctx", ("max_seq_len", "max_position_embeddings"), ("context_length",), required=True),
            HParam("n_embd", ("d_model", "hidden_size"), ("embedding_length",), required=True),
            HParam("n_ff", (NETWORK + "ffn_hidden_size",), ("feed_forward_length",)),
            HParam("n_head", ("n_heads", "num_attention_heads"), ("attention.head_count",), required=True),
            HParam("n_head_kv", (ATTENTION + "kv_n_heads",), ("attention.head_count_kv",)),
            HParam("rope_theta", (ATTENTION + "rope_theta", "rope.rope_theta"), ("rope.freq_base",), "f32"),
            HParam("clamp", (ATTENTION + "clip_qkv",), ("attention.clamp_kqv",), "f32", default=0, null=0),
            HParam("n_expert", (NETWORK + "moe_num_experts",), ("expert_count",)),
            HParam("n_expert_used", (NETWORK + "moe_top_k",), ("expert_used_count",)),
            HParam("norm_eps", (), ("attention.layer_norm_epsilon",), "f32", default=1e-5, always=True),
            N_VOCAB,
            HParam("head_dim", default="n_embd // n_head"),
            # Where transformers 5 has it.
            HParam("rope_theta_too", ("rope.rope_theta",), (), "f32", default="rope_theta"),
            HParam("rope_type", ("rope.rope_type",), (), "str", default="'default'"),
        ),
        tensors=(
            T("transformer.wte.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("transformer.norm_f.weight", "output_norm.weight", shape=NORM),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            T(B + "norm_attn_norm.norm_1.weight", G + "attn_norm.weight", shape=NORM),
            T(B + "norm_attn_norm.norm_2.weight", G + "attn_output_norm.weight", shape=NORM),
            T(
                B + "norm_attn_norm.attn.Wqkv.weight", G + "attn_qkv.weight",
                shape=("(n_head + 2 * n_head_kv) * head_dim", "n_embd"),
            ),
            T(B + "norm_attn_norm.attn.out_proj.weight", G + "attn_output.weight", shape=("n_embd", "n_embd")),
            T(
                B + "ffn.router.layer.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd"), type=AS_ASKED,
            ),
            T(EXPERTS + "w1", G + "ffn_gate_exps.weight", APART, shape=STACKED),
            T(EXPERTS + "w2", G + "ffn_down_exps.weight", APART, Transpose((0, 2, 1)), shape=STACKED),
            T(EXPERTS + "v1", G + "ffn_up_exps.weight", APART, shape=STACKED),
        ),
        traits=Traits(BPE, decoder=Decoder(ffn_norm="attn_output_norm", weights_norm=True)),
    ),
)  # fmt: skip
