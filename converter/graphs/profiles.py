"""Profiles: which operators a graph is made of, by what writes the others.

A profile is data: a table from an operator that the parts of a graph add to a function that writes it by others, and
the operator sets that the file names then. Who adds operators knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.formats.onnx.program import Program
from converter.graphs import genai, opset18
from converter.graphs.builder import MICROSOFT, Lowering
from converter.graphs.model import Model


@dataclass(frozen=True)
class Profile:
    """Which operators a graph is made of.

    Attributes:
        opsets: domain -> version.
        ir_version: of the file: that of the ONNX release which had the first of these sets, or any that runtimes read.
        lowered: operators that it shall not have -> what writes them by others.
        in_folder: where its file lies in the folder of a model, where that is not the place that clients know.
        beside: files that its runtime wants beside it, of the graph, the model, and what the folder says of generating.
            Raises UnsupportedFeature for a graph that it cannot run.
    """

    opsets: Mapping[str, int]
    ir_version: int
    lowered: Mapping[str, Lowering] = field(default_factory=dict)
    in_folder: str = ""
    beside: Callable[[Program, Model, Mapping[str, Any]], dict[str, bytes]] = lambda *_: {}


STANDARD = Profile({"": 23, MICROSOFT: 1}, 10)
PROFILES = {
    "standard": STANDARD,
    "opset18": Profile({"": 18, MICROSOFT: 1}, 8, opset18.LOWERED),
    "genai": Profile({"": 23, MICROSOFT: 1}, 10, genai.LOWERED, genai.FILE, genai.beside),
}
