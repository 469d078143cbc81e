"""T5, its multilingual kin and their encoders: positions are biases of the scores, by buckets of distances.

Source: the reference converter's T5Model and T5EncoderModel; llama.cpp's t5.cpp; transformers' configuration classes.
"""

from converter.architectures.common import N_VOCAB, NORM
from converter.architectures.spec import Architecture, HFClass, HParam, T, only_when
from converter.architectures.styles import UNIGRAM
from converter.architectures.traits import Relation, Traits

E, D = "encoder.block.{block}.layer.", "decoder.block.{block}.layer."
EG, DG = "enc.blk.{block}.", "dec.blk.{block}."
INTO, OUT_OF, BUCKETS = ("n_head * head_dim", "n_embd"), ("n_embd", "n_head * head_dim"), ("n_bucket", "n_head")
WIDER, NARROWER = ("n_ff", "n_embd"), ("n_embd", "n_ff")

ENCODER = (
    T(E + "0.layer_norm.weight", EG + "attn_norm.weight", shape=NORM),
    T(E + "0.SelfAttention.q.weight", EG + "attn_q.weight", shape=INTO),
    T(E + "0.SelfAttention.k.weight", EG + "attn_k.weight", shape=INTO),
    T(E + "0.SelfAttention.v.weight", EG + "attn_v.weight", shape=INTO),
    T(E + "0.SelfAttention.o.weight", EG + "attn_o.weight", shape=OUT_OF),
    T(E + "1.layer_norm.weight", EG + "ffn_norm.weight", shape=NORM),
    T(E + "1.DenseReluDense.wo.weight", EG + "ffn_down.weight", shape=NARROWER),
)
DECODER = (
    T(D + "0.layer_norm.weight", DG + "attn_norm.weight", shape=NORM),
    T(D + "0.SelfAttention.q.weight", DG + "attn_q.weight", shape=INTO),
    T(D + "0.SelfAttention.k.weight", DG + "attn_k.weight", shape=INTO),
    T(D + "0.SelfAttention.v.weight", DG + "attn_v.weight", shape=INTO),
    T(D + "0.SelfAttention.o.weight", DG + "attn_o.weight", shape=OUT_OF),
    T(D + "1.layer_norm.weight", DG + "cross_attn_norm.weight", shape=NORM),
    T(D + "1.EncDecAttention.q.weight", DG + "cross_attn_q.weight", shape=INTO),
    T(D + "1.EncDecAttention.k.weight", DG + "cross_attn_k.weight", shape=INTO),
    T(D + "1.EncDecAttention.v.weight", DG + "cross_attn_v.weight", shape=INTO),
    T(D + "1.EncDecAttention.o.weight", DG + "cross_attn_o.weight", shape=OUT_OF),
    # Old checkpoints have it, and nothing uses it.
    T(
        D + "1.EncDecAttention.relative_attention_bias.weight", DG + "cross_attn_rel_b.weight", shape=BUCKETS,
        optional=True,
    ),
    T(D + "2.layer_norm.weight", DG + "ffn_norm.weight", shape=NORM),
    T(D + "2.DenseReluDense.wo.weight", DG + "ffn_down.weight", shape=NARROWER),
)
EMBEDDING = (
    T("shared.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
    # One embedding for both halves, saved under one of three names or more.
    T(
        "encoder.embed_tokens.weight", "token_embd.weight", shape=("n_vocab", "n_embd"), read_only=True,
        when="not present('shared.weight')",
    ),
    T(
        "decoder.embed_tokens.weight", "token_embd.weight", shape=("n_vocab", "n_embd"), read_only=True,
        when="not present('shared.weight') and not present('encoder.embed_tokens.weight')",
    ),
)

ENCODER_TENSORS = (
    *EMBEDDING,
    T("encoder.final_layer_norm.weight", "enc.output_norm.weight", shape=NORM),
    *only_when("block < n_enc", ENCODER),
    T(
        E + "0.SelfAttention.relative_attention_bias.weight", EG + "attn_rel_b.weight", shape=BUCKETS,
        when="block < (n_enc if own_biases else 1)",
    ),
    T(E + "1.DenseReluDense.wi.weight", EG + "ffn_up.weight", shape=WIDER, when="block < n_enc and not gated"),
    T(E + "1.DenseReluDense.wi_0.weight", EG + "ffn_gate.weight", shape=WIDER, when="block < n_enc and gated"),
    T(E + "1.DenseReluDense.wi_1.weight", EG + "ffn_up.weight", shape=WIDER, when="block < n_enc and gated"),
)
DECODER_TENSORS = (
    T("decoder.final_layer_norm.weight", "dec.output_norm.weight", shape=NORM),
    *only_when("block < n_dec", DECODER),
    T(
        D + "0.SelfAttention.relative_attention_bias.weight", DG + "attn_rel_b.weight", shape=BUCKETS,
        when="block < (n_dec if own_biases else 1)",
    ),
    T(D + "2.DenseReluDense.wi.weight", DG + "ffn_up.weight", shape=WIDER, when="block < n_dec and not gated"),
    T(D + "2.DenseReluDense.wi_0.weight", DG + "ffn_gate.weight", shape=WIDER, when="block < n_dec and gated"),
    T(D + "2.DenseReluDense.wi_1.weight", DG + "ffn_up.weight", shape=WIDER, when="block < n_dec and gated"),
    T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
)

SIZES = (
    HParam("n_ctx", ("n_positions",), ("context_length",), default=512, always=True),
    HParam("n_embd", ("d_model",), ("embedding_length",), required=True),
    HParam("n_ff", ("d_ff",), ("feed_forward_length",), required=True),
    HParam("n_enc", ("num_layers",), ("block_count",), required=True),
)
HEADS = (
    HParam("n_head", ("num_heads",), ("attention.head_count",), required=True),
    HParam("head_dim", ("d_kv",), ("attention.key_length", "attention.value_length"), required=True, always=True),
    HParam("norm_eps", ("layer_norm_epsilon",), ("attention.layer_norm_epsilon",), "f32", default=1e-6, always=True),
    HParam(
        "n_bucket", ("relative_attention_num_buckets",), ("attention.relative_buckets_count",), default=32, always=True
    ),
    HParam("rms_eps", (), ("attention.layer_norm_rms_epsilon",), "f32", default="norm_eps", always=True),
)
FACTS = (
    HParam("n_head_kv", default="n_head"),
    N_VOCAB,
    HParam(
        "gated", default="present('encoder.block.0.layer.1.DenseReluDense.wi_0.weight')",
        back="present('enc.blk.0.ffn_gate.weight')",
    ),
    HParam(
        "act", ("feed_forward_proj",), (), "str", default="'relu'", back="'gated-gelu' if gated else 'relu'",
    ),
    # Those of the first block serve all, but in umT5.
    HParam(
        "own_biases", default="present('encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight')",
        back="present('enc.blk.1.attn_rel_b.weight')",
    ),
)
ACTIVATION = Relation(
    "act == ('gated-gelu' if gated else 'relu')", "act",
    "feed_forward_proj: the runtime computes relu, or gated-gelu where there are two matrices: its logits differ",
)
LONGER = Relation("n_dec <= n_enc", "n_dec", "llama.cpp does not load a decoder that is longer than its encoder")
UNSCALED = Relation(
    "not scaled", "scaled",
    "the runtime does not scale the decoder's output by d_model ** -0.5 (scale_decoder_outputs): the order of its "
    "logits is the same, their differences are larger",
)

MT5 = HFClass("MT5ForConditionalGeneration", "mt5", facts={"scaled": False}, when="0")
UMT5 = HFClass("UMT5ForConditionalGeneration", "umt5", when="own_biases")

ARCHITECTURES = (
    Architecture(
        gguf="t5",
        hf=(
            UMT5,
            HFClass("T5ForConditionalGeneration", "t5"),
            HFClass("T5WithLMHeadModel", "t5", when="0"),
            MT5,
            HFClass("UMT5Model", "umt5", head=False, when="0"),
        ),
        hparams=(
            *SIZES,
            HParam("n_dec", ("num_decoder_layers",), ("decoder_block_count",), default="n_enc", always=True),
            *HEADS,
            HParam("start_id", ("decoder_start_token_id",), ("decoder_start_token_id",), default=0, always=True),
            # Names have numbers of blocks up to that of the longer half.
            HParam("n_layer", default="max(n_enc, n_dec)"),
            *FACTS,
            HParam(
                "scaled", ("scale_decoder_outputs",), (), "bool",
                default="not gated or not present('lm_head.weight')",
                back="not gated or not present('output.weight')",
            ),
        ),
        tensors=(*ENCODER_TENSORS, *DECODER_TENSORS),
        ignore=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        traits=Traits(UNIGRAM, runtime=(ACTIVATION, LONGER, UNSCALED)),
    ),
    Architecture(
        gguf="t5encoder",
        hf=(
            HFClass("UMT5EncoderModel", "umt5", head=False, when="own_biases"),
            HFClass("T5EncoderModel", "t5", head=False),
            HFClass("MT5EncoderModel", "mt5", head=False, when="0"),
        ),
        hparams=(*SIZES, *HEADS, HParam("n_layer", default="n_enc"), *FACTS),
        tensors=ENCODER_TENSORS,
        ignore=("encoder.embed_tokens.weight", "decoder.{rest}", "lm_head.weight"),
        traits=Traits(UNIGRAM, runtime=(ACTIVATION,)),
    ),
)  # fmt: skip
