"""TensorFlow without TensorFlow: checkpoints (v1, v2), a SavedModel's variables, constants of frozen graphs."""

from converter.formats.base import Format
from converter.formats.tensorflow.checkpoint import DTYPES, open_graph, open_tensorflow, sniff, sniff_graph

FORMATS = (
    Format(
        name="tensorflow",
        extensions=(".index", ".ckpt"),
        dialect=None,
        description="TensorFlow checkpoint (version 1 or 2) or SavedModel folder: variables",
        dtypes=DTYPES,
        sniff=sniff,
        open=open_tensorflow,
    ),
    Format(
        name="tf-graph",
        extensions=(".pb",),
        dialect=None,
        description="TensorFlow frozen graph: constants",
        dtypes=DTYPES,
        sniff=sniff_graph,
        open=open_graph,
    ),
)
