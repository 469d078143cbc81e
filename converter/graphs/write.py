"""The graph of a model, by what its architecture and its keys say it is."""

from __future__ import annotations

from converter.errors import UnsupportedFeature
from converter.formats.onnx.program import Program
from converter.graphs import decoder, encoder
from converter.graphs.model import Model
from converter.graphs.network import Options
from converter.graphs.without import WITHOUT


def program(model: Model, options: Options) -> Program:
    """The whole graph.

    Raises:
        UnsupportedFeature: nothing says how the architecture computes, or a part that no graph can be written of yet.
    """
    traits = model.architecture.traits
    if traits.encoder is not None:
        kind: type[encoder.Encoder | decoder.Blocks] = encoder.Encoder
    elif traits.decoder is None:
        name = model.architecture.gguf
        raise UnsupportedFeature(
            f"{name}: no graph can be written of this architecture: {WITHOUT[name]}\n"
            "--tensors-only writes its tensors without one"
        )
    else:
        kind = decoder.Decoder if model.has_cache else decoder.TextDecoder
    return kind(model, options).program()
