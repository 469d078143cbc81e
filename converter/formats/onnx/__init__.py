"""ONNX: the tensors of a model in; a model with its graph out where there is one, else one of nothing but tensors."""

from converter.formats.base import Format
from converter.formats.onnx.checkpoint import layout, open_onnx, sniff
from converter.formats.onnx.values import CODES

FORMATS = (
    Format(
        name="onnx",
        extensions=(".onnx",),
        dialect=None,
        description="ONNX model with external data; with its graph, or for a known model; else initializers alone",
        dtypes=frozenset(CODES),
        sniff=sniff,
        open=open_onnx,
        layout=layout,
        free_metadata=None,
        in_folder="onnx/model.onnx",
        runs=True,
    ),
)
