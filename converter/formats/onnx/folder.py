"""An ONNX model in the folder that clients load: config and tokenizer, and the model below `onnx/`.

Source: the layout of optimum's and Transformers.js' repositories.
"""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature
from converter.formats.base import WriteOptions
from converter.formats.hf_folder import beside_weights
from converter.formats.onnx.program import Program, laid_out
from converter.storage.layout import Layout

SUBFOLDER, NAME = "onnx", "model.onnx"


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """The model, its data file, and the small files.

    Raises:
        UnsupportedFeature: there is no graph; a split; a file of more than 2 GiB.
    """
    if not isinstance(checkpoint.structure, Program):
        raise UnsupportedFeature(f"{target}: a folder of ONNX holds a model that runs; a file takes tensors alone")
    if options.split_max_size is not None or options.split_max_tensors is not None:
        raise UnsupportedFeature(f"{target}: splitting is for GGUF, safetensors and PyTorch output")
    model = laid_out(checkpoint.structure, target / SUBFOLDER / NAME, options.external_data)
    small, events = beside_weights(checkpoint, target)
    return Layout((*model.files, *small), target, (*model.events, *events))
