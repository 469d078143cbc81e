"""EuroBERT: Llama that sees both ways.

Source: the reference converter's EuroBertModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    MLP_BIAS,
    NORM_TENSORS,
    POOLING,
    ROPE_BUFFERS,
    TOP_TENSORS,
)
from converter.architectures.spec import Architecture, HFClass, HParam, amended
from converter.architectures.styles import NO_BOS
from converter.architectures.traits import Encoder, TokenizerStyle, Traits

ARCHITECTURES = (
    Architecture(
        gguf="eurobert",
        hf=(
            HFClass(
                "EuroBertModel",
                "eurobert",
                {"num_key_value_heads": "num_attention_heads", "head_dim": "hidden_size // num_attention_heads"},
                head=False,
            ),
        ),
        hparams=(
            *amended(DECODER_HPARAMS, rope_type={"back": "scaling if scaling != 'none' else 'default'"}),
            HParam("causal", (), ("attention.causal",), "bool", default=False, always=True),
            HParam("scaling", (), ("rope.scaling.type",), "str", default="'none'", back="'none'", always=True),
            POOLING,
            HParam(
                "classifier_pooling", ("classifier_pooling",), ("classifier.pooling_type",),
                values=(("mean", 1), ("cls", 2)),
            ),
            ATTENTION_BIAS,
            MLP_BIAS,
        ),
        tensors=(*TOP_TENSORS[:2], *NORM_TENSORS, *ATTENTION, *DENSE_FFN),
        ignore=ROPE_BUFFERS,
        aliases=(("{rest}", "model.{rest}"),),
        traits=Traits(TokenizerStyle(("bpe",), first=NO_BOS), encoder=Encoder()),
    ),
)
