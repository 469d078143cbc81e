"""BERT and its kin: encoders whose tokens all see each other, with learned positions and norms after each step.

Source: the reference converter's BertModel, DistilBertModel, RobertaModel and XLMRobertaModel; llama.cpp's bert.cpp and
its pooling; transformers' configuration classes for the defaults.
"""

from dataclasses import replace

from converter.architectures.common import (
    LABELS,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_LAYER,
    N_VOCAB,
    NORM,
    POOLING,
    G,
)
from converter.architectures.spec import HEAD, Architecture, HFClass, HParam, T, only_when, pair
from converter.architectures.styles import BERT, ROBERTA, XLM_ROBERTA
from converter.architectures.traits import Encoder, Relation, Traits
from converter.tensors.ops import Rows

B, D = "encoder.layer.{block}.", "transformer.layer.{block}."
SQUARE, SCORES = ("n_embd", "n_embd"), ("len(labels)", "n_embd")
DEFAULTS = {"layer_norm_eps": 1e-12, "type_vocab_size": 2, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
DISTIL_KEYS = {
    "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim", "hidden_act": "activation",
}
DISTIL_HEAD = Relation(
    f"not (distil and {HEAD})", HEAD,
    "DistilBERT's classifier has a ReLU where the runtime has a hyperbolic tangent: its scores differ",
)
MISSED_POOLER = "not in the file, and transformers computes the scores of what it makes; it fills in any numbers"
# Positions count from the one after that of padding.
FROM_PAD = {"shifted": 1, "types_first": 0}

BERT_MODEL = HFClass(
    "BertModel", "bert", DEFAULTS, head=False, when=f"vocab == 'bert' and not distil and not {HEAD}"
)
DISTILBERT_MODEL = HFClass(
    "DistilBertModel", "distilbert", DEFAULTS, head=False, when=f"distil and not {HEAD}",
    keys=DISTIL_KEYS, facts={"distil": 1, "n_types": 1},
)
ROBERTA_MODEL = HFClass(
    "RobertaModel", "roberta", DEFAULTS, head=False, when=f"vocab == 'gpt2' and not {HEAD}",
    facts=FROM_PAD, tokenizer=ROBERTA,
)
XLM_ROBERTA_MODEL = HFClass(
    "XLMRobertaModel", "xlm-roberta", DEFAULTS, head=False, when=f"vocab == 't5' and not {HEAD}",
    facts=FROM_PAD, tokenizer=XLM_ROBERTA,
)

ARCHITECTURES = (
    Architecture(
        gguf="bert",
        hf=(
            BERT_MODEL,
            replace(
                BERT_MODEL, name="BertForSequenceClassification", when="vocab == 'bert' and not distil",
                prefix="bert", beside=("classifier",),
            ),
            replace(BERT_MODEL, name="BertForMaskedLM", when="0"),
            DISTILBERT_MODEL,
            replace(
                DISTILBERT_MODEL, name="DistilBertForSequenceClassification", when="distil",
                prefix="distilbert", beside=("classifier", "pre_classifier"),
            ),
            replace(DISTILBERT_MODEL, name="DistilBertForMaskedLM", when="0"),
            ROBERTA_MODEL,
            replace(
                ROBERTA_MODEL, name="RobertaForSequenceClassification", when="vocab == 'gpt2'",
                prefix="roberta", beside=("classifier",),
            ),
            replace(ROBERTA_MODEL, name="RobertaForMaskedLM", when="0"),
            XLM_ROBERTA_MODEL,
            replace(
                XLM_ROBERTA_MODEL, name="XLMRobertaForSequenceClassification", when="vocab == 't5'",
                prefix="roberta", beside=("classifier",),
            ),
            replace(XLM_ROBERTA_MODEL, name="XLMRobertaForMaskedLM", when="0"),
            # Back it is an XLM-RoBERTa, which computes the same.
            replace(XLM_ROBERTA_MODEL, name="CamembertModel", model_type="camembert", when="0"),
        ),
        hparams=(
            # DistilBERT's config does not say it, and its key comes first.
            HParam(
                "norm_eps_first", (), ("attention.layer_norm_epsilon",), "f32", default="norm_eps", always=True,
                when="distil",
            ),
            N_LAYER,
            HParam("n_ctx", (), ("context_length",), default="n_position - offset", always=True),
            HParam("n_position", ("max_position_embeddings",), back="n_ctx + offset", required=True),
            N_EMBD,
            N_FF,
            N_HEAD,
            HParam(
                "norm_eps", ("layer_norm_eps",), ("attention.layer_norm_epsilon",), "f32", required=True, always=True
            ),
            HParam("causal", (), ("attention.causal",), "bool", default=False, always=True),
            POOLING,
            LABELS,
            # The first of the tokenizer's keys, which the runtime needs for a tensor's size; some write it later.
            HParam(
                "n_types", ("type_vocab_size",), ("/tokenizer.ggml.token_type_count",), default=1, always=True,
                when="types_first",
            ),
            HParam("types_first", default=1),
            # What the tokenizer's keys say on the way back.
            HParam("vocab", (), ("/tokenizer.ggml.model",), "str", back="'bert'"),
            HParam("pad_id", ("pad_token_id",), ("/tokenizer.ggml.padding_token_id",), "i32", null=-1, when="0"),
            HParam("shifted", default=0, back="vocab != 'bert'"),
            HParam("offset", default="pad_id + 1 if shifted else 0"),
            HParam("distil", default=0, back="vocab == 'bert' and not present('token_types.weight')"),
            HParam(
                HEAD, default="present('classifier.weight') or present('classifier.out_proj.weight')",
                back="present('cls.output.weight')",
            ),
            HParam("n_head_kv", default="n_head"),
            HParam("head_dim", default="n_embd // n_head"),
            N_VOCAB,
        ),
        tensors=(
            T("embeddings.word_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T(
                "embeddings.position_embeddings.weight", "position_embd.weight",
                Rows("n_position", "n_position - offset", front=True), shape=("n_position", "n_embd"),
            ),
            T(
                "embeddings.token_type_embeddings.weight", "token_types.weight", shape=("n_types", "n_embd"),
                when="not distil",
            ),
            *pair("embeddings.LayerNorm", "token_embd_norm", shape=NORM, bias=True),
            *only_when(
                "not distil",
                (
                    *pair(B + "attention.self.query", G + "attn_q", shape=SQUARE, bias=True),
                    *pair(B + "attention.self.key", G + "attn_k", shape=SQUARE, bias=True),
                    *pair(B + "attention.self.value", G + "attn_v", shape=SQUARE, bias=True),
                    *pair(B + "attention.output.dense", G + "attn_output", shape=SQUARE, bias=True),
                    *pair(B + "attention.output.LayerNorm", G + "attn_output_norm", shape=NORM, bias=True),
                    *pair(B + "intermediate.dense", G + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
                    *pair(B + "output.dense", G + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
                    *pair(B + "output.LayerNorm", G + "layer_output_norm", shape=NORM, bias=True),
                ),
            ),
            *only_when(
                "distil",
                (
                    *pair(D + "attention.q_lin", G + "attn_q", shape=SQUARE, bias=True),
                    *pair(D + "attention.k_lin", G + "attn_k", shape=SQUARE, bias=True),
                    *pair(D + "attention.v_lin", G + "attn_v", shape=SQUARE, bias=True),
                    *pair(D + "attention.out_lin", G + "attn_output", shape=SQUARE, bias=True),
                    *pair(D + "sa_layer_norm", G + "attn_output_norm", shape=NORM, bias=True),
                    *pair(D + "ffn.lin1", G + "ffn_up", shape=("n_ff", "n_embd"), bias=True),
                    *pair(D + "ffn.lin2", G + "ffn_down", shape=("n_embd", "n_ff"), bias=True),
                    *pair(D + "output_layer_norm", G + "layer_output_norm", shape=NORM, bias=True),
                ),
            ),
            # What makes one vector of the first token's, and what makes scores of it: of a classifier only.
            *only_when(
                f"{HEAD} and not shifted and not distil",
                pair("pooler.dense", "cls", shape=SQUARE, optional=True, missed=MISSED_POOLER),
            ),
            *only_when(f"{HEAD} and distil", pair("pre_classifier", "cls", shape=SQUARE, bias=True)),
            *only_when(f"{HEAD} and shifted", pair("classifier.dense", "cls", shape=SQUARE, bias=True)),
            *only_when(f"{HEAD} and not shifted", pair("classifier", "cls.output", shape=SCORES, bias=True)),
            *only_when(f"{HEAD} and shifted", pair("classifier.out_proj", "cls.output", shape=SCORES, bias=True)),
        ),
        # Predictions of words, which the runtime does without, and of classes, where they are not wanted.
        ignore=(
            "embeddings.position_ids", "pooler.{rest}", "cls.{rest}", "lm_head.{rest}", "vocab_transform.{rest}",
            "vocab_layer_norm.{rest}", "vocab_projector.{rest}", "classifier.{rest}", "pre_classifier.{rest}",
        ),
        aliases=(
            ("bert.{rest}", "{rest}"), ("distilbert.{rest}", "{rest}"), ("roberta.{rest}", "{rest}"),
            ("{rest}.gamma", "{rest}.weight"), ("{rest}.beta", "{rest}.bias"),
        ),
        traits=Traits(
            BERT, runtime=(DISTIL_HEAD,), encoder=Encoder("gelu", head=(("relu", "distil"), ("tanh", ""))),
            built_in={"hidden_act": ("gelu",), "activation": ("gelu",), "position_embedding_type": ("absolute",)},
        ),
    ),
)
