"""ONNX: the tensors of a model in; a model with its graph out where there is one, else one of nothing but tensors."""

from converter.formats.base import Format
from converter.formats.onnx.checkpoint import layout, open_onnx, sniff
from converter.formats.onnx.folder import layout as folder_layout
from converter.formats.onnx.values import CODES

FORMATS = (
    Format(
        name="onnx",
        extensions=(".onnx",),
        dialect=None,
        description="ONNX model with external data; to ONNX with its graph, from other formats initializers alone",
        dtypes=frozenset(CODES),
        sniff=sniff,
        open=open_onnx,
        layout=layout,
        free_metadata=None,
        in_folder="onnx-folder",
        runs=True,
    ),
    Format(
        name="onnx-folder",
        extensions=(),
        dialect=None,
        description="folder of an ONNX model that runs: config, tokenizer, onnx/model.onnx",
        dtypes=frozenset(CODES),
        sniff=lambda path, start: False,
        layout=folder_layout,
        folder=True,
        free_metadata=None,
        runs=True,
    ),
)
