"""nomic-embed-text: BERT with rotary positions and a gated feed-forward network, or with experts in some blocks.

Source: the reference converter's NomicBertModel; llama.cpp's bert.cpp; transformers' configuration class, and that
which the published models bring along, for the names and the defaults.
"""

from converter.architectures.common import (
    LABELS,
    N_VOCAB,
    NORM,
    POOLING,
    G,
)
from converter.architectures.spec import (
    HEAD,
    Architecture,
    HFClass,
    HParam,
    T,
    TensorRule,
    amended,
    before,
    only_when,
    pair,
)
from converter.architectures.styles import BERT, NOMIC_MOE
from converter.architectures.traits import Encoder, Relation, Traits
from converter.tensors.ops import ROW, Reshape, Transpose

B = "encoder.layers.{block}."
SQUARE = ("n_embd", "n_embd")
FF = ("n_ff", "n_embd")
DEFAULTS = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
# What the published models' own class can say besides.
BUILT_IN = {
    "causal": (False,), "prenorm": (False,), "rotary_emb_fraction": (1.0,), "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (), "parallel_block": (False,), "use_rms_norm": (False,),
}
OWN_CONSTANTS = {
    "activation_function": "gelu", "qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True, "causal": False,
    "prenorm": False, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
}
OWN_KEYS = {
    "num_hidden_layers": "n_layer", "hidden_size": "n_embd", "intermediate_size": "n_inner",
    "num_attention_heads": "n_head", "layer_norm_eps": "layer_norm_epsilon",
}
# The experts lie one below the other.
ROWS = ("n_expert * n_ff", "n_embd")
EXPERTS = Reshape((ROWS[0], ROW), ("n_expert", "n_ff", ROW))
UNBIASED = Relation(
    "not experts_biased", "experts_biased",
    "the runtime adds no bias to what the experts make: it is left out, and the vectors differ by it",
)

HPARAMS = (
    HParam("n_layer", ("num_hidden_layers", "n_layer"), ("block_count",), required=True),
    # The texts of its training, not what it can turn; the first models say four times the size of their training.
    HParam("n_ctx", (), ("context_length",), default="n_trained if n_positions > 0 else n_position", always=True),
    HParam("n_position", ("max_position_embeddings",), default="n_trained", back="n_ctx"),
    HParam("n_positions", ("n_positions",), default=0),
    HParam(
        "n_trained", default="512 if n_positions == 2048 and n_said == 2048 else min(n_positions, n_said)", back="n_ctx"
    ),
    HParam("n_said", ("max_trained_positions",), default=2048, back="n_ctx"),
    HParam("n_embd", ("hidden_size", "n_embd"), ("embedding_length",), required=True),
    HParam("n_ff", ("intermediate_size", "n_inner"), ("feed_forward_length",), required=True),
    HParam("n_head", ("num_attention_heads", "n_head"), ("attention.head_count",), required=True),
    HParam("rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32"),
    HParam(
        "norm_eps", ("layer_norm_eps", "layer_norm_epsilon"), ("attention.layer_norm_epsilon",), "f32", required=True
    ),
    HParam(
        "head_dim", ("head_dim",), ("attention.key_length", "attention.value_length"), default="n_embd // n_head"
    ),
    HParam("causal", (), ("attention.causal",), "bool", default=False, always=True),
    POOLING,
    LABELS,
    HParam(
        "n_types", ("type_vocab_size",), ("/tokenizer.ggml.token_type_count",), default=1, always=True,
        when="types_first",
    ),
    # The first of the tokenizer's keys for one of words in pieces; with another it is among them.
    HParam("types_first", default=1),
    HParam(HEAD, default=0),
    HParam("n_head_kv", default="n_head"),
    N_VOCAB,
)
COMMON_TENSORS: tuple[TensorRule, ...] = (
    T("embeddings.word_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
    T("embeddings.token_type_embeddings.weight", "token_types.weight", shape=("n_types", "n_embd")),
    *pair("emb_ln", "token_embd_norm", shape=NORM, bias=True),
    *pair(B + "attn.Wqkv", G + "attn_qkv", shape=("3 * n_embd", "n_embd")),
    *pair(B + "attn.out_proj", G + "attn_output", shape=SQUARE),
    *pair(B + "norm1", G + "attn_output_norm", shape=NORM, bias=True),
    *pair(B + "norm2", G + "layer_output_norm", shape=NORM, bias=True),
)
IGNORED = ("embeddings.position_ids", "pooler.{rest}", "cls.{rest}")
ALIASES = (("bert.{rest}", "{rest}"),)

ARCHITECTURES = (
    Architecture(
        gguf="nomic-bert",
        hf=(
            HFClass(
                "NomicBertModel", "nomic_bert", {**DEFAULTS, "head_dim": "hidden_size // num_attention_heads"},
                head=False, takes="moe_every == 0",
            ),
        ),
        hparams=(*HPARAMS, HParam("moe_every", ("moe_every_n_layers",), default=0)),
        tensors=(
            *COMMON_TENSORS,
            *pair(B + "mlp.fc11", G + "ffn_up", shape=FF),
            *pair(B + "mlp.fc12", G + "ffn_gate", shape=FF),
            *pair(B + "mlp.fc2", G + "ffn_down", shape=("n_embd", "n_ff")),
        ),
        ignore=IGNORED,
        aliases=ALIASES,
        traits=Traits(
            BERT, built_in={**BUILT_IN, "hidden_act": ("silu",), "activation_function": ("swiglu",)}, encoder=Encoder()
        ),
    ),
    Architecture(
        gguf="nomic-bert-moe",
        # transformers has no such model: it comes back for the class that the published ones bring along.
        hf=(
            HFClass(
                "NomicBertModel", "nomic_bert", DEFAULTS, head=False, takes="moe_every > 0", keys=OWN_KEYS,
                constants=OWN_CONSTANTS, facts={"types_first": 0},
            ),
        ),
        hparams=(
            *before(
                "head_dim",
                (HParam("n_expert", ("num_experts", "num_local_experts"), ("expert_count",), default=0),),
                amended(
                    HPARAMS,
                    n_position={"config": ()},
                    head_dim={"config": ()},
                    n_positions={"back": "8192 if n_ctx == 2048 else 2048 if n_ctx == 512 else n_ctx"},
                    n_said={"back": "2048 if n_ctx == 512 else n_ctx"},
                    rope_theta={"config": ("rotary_emb_base", "rope.rope_theta")},
                ),
            ),
            HParam("moe_every", ("moe_every_n_layers",), ("moe_every_n_layers",), default=0),
            HParam("n_expert_used", ("moe_top_k",), ("expert_used_count",), default=0),
            HParam("experts_biased", default="present('encoder.layers.1.mlp.experts.bias')", back=0),
        ),
        tensors=(
            *COMMON_TENSORS,
            *only_when(
                "block % moe_every != 1",
                (
                    *pair(B + "mlp.fc1", G + "ffn_up", shape=FF),
                    *pair(B + "mlp.fc2", G + "ffn_down", shape=("n_embd", "n_ff")),
                ),
            ),
            *only_when(
                "block % moe_every == 1",
                (
                    T(B + "mlp.router.layer.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
                    T(B + "mlp.experts.mlp.w1", G + "ffn_up_exps.weight", EXPERTS, shape=ROWS),
                    T(
                        B + "mlp.experts.mlp.w2", G + "ffn_down_exps.weight", EXPERTS, Transpose((0, 2, 1)),
                        shape=ROWS,
                    ),
                ),
            ),
        ),
        ignore=(*IGNORED, B + "mlp.experts.bias"),
        aliases=ALIASES,
        traits=Traits(
            NOMIC_MOE, told=(UNBIASED,),
            built_in={**BUILT_IN, "hidden_act": ("silu",), "activation_function": ("gelu",)}, encoder=Encoder("gelu"),
        ),
    ),
)
