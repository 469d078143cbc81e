"""ModernBERT: an encoder with rotary positions and norms before each step; some blocks see a window to both sides.

Source: the reference converter's ModernBertModel; llama.cpp's modern-bert.cpp and its pooling; transformers'
configuration class for the defaults.
"""

from dataclasses import replace

from converter.architectures.common import (
    DECODER_HPARAMS,
    LABELS,
    NO_SCALING,
    NORM,
    POOLING,
    UNSCALED,
    G,
)
from converter.architectures.spec import HEAD, Architecture, HFClass, HParam, T, amended, before, only_when, pair
from converter.architectures.styles import MODERN_BERT
from converter.architectures.traits import MEAN, Encoder, Relation, SlidingWindow, Traits

B = "layers.{block}."
SQUARE = ("n_embd", "n_embd")
PERIODIC = Relation(
    "join(layer_types, ',') == join(periodic, ',')", "layer_types",
    "the runtime knows only that every so many blocks, from the first on, one sees all: it computes something else",
)
UNBIASED = Relation(
    "not (norm_bias or attention_bias or mlp_bias or classifier_bias)", "norm_bias",
    "the runtime has no biases in norms, attention, feed-forward networks or before the scores: it does not load them",
)

DEFAULTS = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
MODEL = HFClass("ModernBertModel", "modernbert", DEFAULTS, head=False, when=f"not {HEAD}")

ARCHITECTURES = (
    Architecture(
        gguf="modern-bert",
        hf=(
            MODEL,
            replace(
                MODEL, name="ModernBertForSequenceClassification", when=HEAD, prefix="model",
                beside=("head", "classifier"),
            ),
            replace(MODEL, name="ModernBertForMaskedLM", when="0"),
        ),
        hparams=(
            *before(
                "n_expert",
                (
                    # The runtime reads this one and transformers that above: few configs say both.
                    HParam(
                        "layer_norm_eps", ("layer_norm_eps",), ("attention.layer_norm_epsilon",), "f32",
                        default="norm_eps", always=True,
                    ),
                ),
                before(
                    "norm_eps",
                    (
                        HParam(
                            "rope_theta_swa", ("local_rope_theta", "rope_parameters.sliding_attention.rope_theta"),
                            ("rope.freq_base_swa",), "f32",
                        ),
                    ),
                    amended(
                        DECODER_HPARAMS,
                        n_ctx={"required": True},
                        rope_type=UNSCALED["rope_type"],
                        rope_theta={"config": ("global_rope_theta", "rope.rope_theta")},
                        rms_eps={"name": "norm_eps", "config": ("norm_eps",), "back": "layer_norm_eps"},
                    ),
                ),
            ),
            HParam("causal", (), ("attention.causal",), "bool", default=False, always=True),
            POOLING,
            HParam(
                "classifier_pooling", ("classifier_pooling",), ("classifier.pooling_type",),
                values=(("mean", 1), ("cls", 2)), closed=True,
            ),
            LABELS,
            HParam("window", ("local_attention",), ("attention.sliding_window",), required=True),
            HParam(
                "period", ("global_attn_every_n_layers",), ("attention.sliding_window_pattern",), default=3,
            ),
            NO_SCALING,
            HParam("n_vocab_said", (), ("vocab_size",), default="n_vocab", always=True),
            HParam("activation", ("hidden_activation",), ("hidden_activation",), "str"),
            HParam(
                "periodic", (), (), "str[]", per_block=True,
                default="'sliding_attention' if block % period > 0 else 'full_attention'",
            ),
            HParam("layer_types", ("layer_types",), (), "str[]", per_block=True, default="periodic"),
            HParam(HEAD, default="present('classifier.weight')", back="present('cls.output.weight')"),
            HParam("norm_bias", ("norm_bias",), (), "bool", default=False, back="present('output_norm.bias')"),
            HParam(
                "attention_bias", ("attention_bias",), (), "bool", default=False,
                back="present('blk.0.attn_qkv.bias')",
            ),
            HParam("mlp_bias", ("mlp_bias",), (), "bool", default=False, back="present('blk.0.ffn_up.bias')"),
            HParam("classifier_bias", ("classifier_bias",), (), "bool", default=False, back="present('cls.bias')"),
        ),
        tensors=(
            T("embeddings.tok_embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            *pair("embeddings.norm", "token_embd_norm", shape=NORM),
            # The first block has none: its input is normed already.
            *only_when("block > 0", pair(B + "attn_norm", G + "attn_norm", shape=NORM)),
            *pair(B + "attn.Wqkv", G + "attn_qkv", shape=("3 * n_embd", "n_embd")),
            *pair(B + "attn.Wo", G + "attn_output", shape=SQUARE),
            *pair(B + "mlp_norm", G + "ffn_norm", shape=NORM),
            *pair(B + "mlp.Wi", G + "ffn_up", shape=("2 * n_ff", "n_embd")),
            *pair(B + "mlp.Wo", G + "ffn_down", shape=("n_embd", "n_ff")),
            *pair("final_norm", "output_norm", shape=NORM),
            *only_when(
                HEAD,
                (
                    *pair("head.dense", "cls", shape=SQUARE),
                    *pair("head.norm", "cls.norm", shape=NORM),
                    *pair("classifier", "cls.output", shape=("len(labels)", "n_embd"), bias=True),
                ),
            ),
        ),
        # Predictions of words, which the runtime does without, and of classes, where they are not wanted.
        ignore=("head.{rest}", "decoder.{rest}", "classifier.{rest}"),
        aliases=(("model.{rest}", "{rest}"),),
        traits=Traits(
            MODERN_BERT, window=SlidingWindow(3, full_first=True), told=(PERIODIC,), runtime=(UNBIASED,),
            built_in={"classifier_activation": ("gelu",)},
            encoder=Encoder("gelu", head=(("gelu", ""),), pooling=MEAN),
        ),
    ),
)
