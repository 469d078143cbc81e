"""Jina's embeddings of the second version: BERT with ALiBi in the place of positions, and a gated feed-forward network.

Source: the reference converter's JinaBertV2Model; llama.cpp's jina-bert-v2.cpp and bert.cpp; the names are those of the
two classes that the published models bring along, of which that for code has more norms.
"""

from converter.architectures.common import LABELS, N_EMBD, N_FF, N_HEAD, N_LAYER, N_VOCAB, NORM, POOLING, G
from converter.architectures.spec import HEAD, Architecture, HFClass, HParam, T, only_when, optional, pair
from converter.architectures.styles import JINA
from converter.architectures.traits import Encoder, Traits

B = "encoder.layer.{block}."
SQUARE, DOUBLE, NARROWER = ("n_embd", "n_embd"), ("2 * n_ff", "n_embd"), ("n_embd", "n_ff")
DEFAULTS = {"layer_norm_eps": 1e-12, "type_vocab_size": 2, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
CONSTANTS = {"feed_forward_type": "geglu", "emb_pooler": "mean"}

ARCHITECTURES = (
    Architecture(
        gguf="jina-bert-v2",
        # Their config.json has the type of BERT's.
        hf=(
            HFClass("JinaBertModel", "bert", DEFAULTS, head=False, takes="alibi == 'alibi'", constants=CONSTANTS),
            HFClass("JinaBertForMaskedLM", "bert", DEFAULTS, head=False, takes="alibi == 'alibi'", when="0"),
        ),
        hparams=(
            N_LAYER,
            HParam("n_ctx", ("max_position_embeddings",), ("context_length",), required=True),
            N_EMBD,
            N_FF,
            N_HEAD,
            HParam("norm_eps", ("layer_norm_eps",), ("attention.layer_norm_epsilon",), "f32", required=True),
            HParam("causal", (), ("attention.causal",), "bool", default=False, always=True),
            POOLING,
            LABELS,
            # The first of the tokenizer's keys where it has words in pieces; with another it is the last.
            HParam(
                "n_types", ("type_vocab_size",), ("/tokenizer.ggml.token_type_count",), default=1, always=True,
                when="tokenizer != 'RobertaTokenizer'",
            ),
            HParam(
                "tokenizer", ("/tokenizer.class",), (), "str", default="'BertTokenizer'",
                back="'BertTokenizer' if vocab == 'bert' else 'RobertaTokenizer'",
            ),
            HParam("vocab", (), ("/tokenizer.ggml.model",), "str", back="'bert'"),
            HParam("alibi", ("position_embedding_type",), (), "str", default="'alibi'"),
            HParam(HEAD, default=0),
            # Of the models for code.
            HParam(
                "more_norms", default="present('encoder.layer.0.mlp.up_gated_layer.weight')",
                back="present('blk.0.attn_q_norm.weight')",
            ),
            HParam("n_head_kv", default="n_head"),
            HParam("head_dim", default="n_embd // n_head"),
            N_VOCAB,
        ),
        tensors=(
            T("embeddings.word_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("embeddings.token_type_embeddings.weight", "token_types.weight", shape=("n_types", "n_embd")),
            *pair("embeddings.LayerNorm", "token_embd_norm", shape=NORM, bias=True),
            *pair(B + "attention.self.query", G + "attn_q", shape=SQUARE, bias=True),
            *pair(B + "attention.self.key", G + "attn_k", shape=SQUARE, bias=True),
            *pair(B + "attention.self.value", G + "attn_v", shape=SQUARE, bias=True),
            *pair(B + "attention.output.dense", G + "attn_output", shape=SQUARE, bias=True),
            *pair(B + "attention.output.LayerNorm", G + "attn_output_norm", shape=NORM, bias=True),
            *only_when(
                "not more_norms",
                (
                    *pair(B + "mlp.gated_layers", G + "ffn_up", shape=DOUBLE),
                    *pair(B + "mlp.wo", G + "ffn_down", shape=NARROWER),
                    *pair(B + "mlp.layernorm", G + "layer_output_norm", shape=NORM, bias=True),
                ),
            ),
            *only_when(
                "more_norms",
                (
                    *pair(B + "attention.self.layer_norm_q", G + "attn_q_norm", shape=NORM, bias=True),
                    *pair(B + "attention.self.layer_norm_k", G + "attn_k_norm", shape=NORM, bias=True),
                    *optional(pair(B + "layer_norm_1", G + "attn_norm_2", shape=NORM)),
                    *pair(B + "mlp.up_gated_layer", G + "ffn_up", shape=DOUBLE),
                    *pair(B + "mlp.down_layer", G + "ffn_down", shape=NARROWER),
                    *pair(B + "layer_norm_2", G + "layer_output_norm", shape=NORM, bias=True),
                ),
            ),
        ),
        ignore=("embeddings.position_ids", "pooler.{rest}", "cls.{rest}"),
        aliases=(("bert.{rest}", "{rest}"), ("{rest}.gamma", "{rest}.weight"), ("{rest}.beta", "{rest}.bias")),
        traits=Traits(
            JINA, built_in={"hidden_act": ("gelu",), "position_embedding_type": ("alibi",)},
            encoder=Encoder("gelu", rotates="0", alibi="8"),
        ),
    ),
)  # fmt: skip
