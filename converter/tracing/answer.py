"""What the tracing process says: a line of JSON, and the bytes that it counts.

A traced model is its graph without tensors, as bytes of onnx.proto, and for each tensor where its numbers come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO


@dataclass(frozen=True)
class Filled:
    """An initializer: the tensor of the checkpoint that fills it, and the type that the graph has it in."""

    source: str
    dtype: str


@dataclass(frozen=True)
class Computed:
    """An initializer that the model computed itself, a table of angles say."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Traced:
    """One model file to be.

    Attributes:
        name: of the file, without its extension.
        head: the fields of its ModelProto but for the graph.
        graph: the fields of its GraphProto but for the initializers.
        filled, computed: its initializers by name.
    """

    name: str
    head: bytes = field(repr=False)
    graph: bytes = field(repr=False)
    filled: Mapping[str, Filled]
    computed: Mapping[str, Computed]


@dataclass(frozen=True)
class Answer:
    """What was traced, by what, and which tensors of the checkpoint no graph uses."""

    way: str
    models: tuple[Traced, ...]
    unused: tuple[str, ...]


def send(answer: Answer, stream: BinaryIO) -> None:
    """Write an answer."""
    blobs: list[bytes] = []
    models = []
    for each in answer.models:
        blobs += [each.head, each.graph, *(made.data for made in each.computed.values())]
        models.append(
            {
                "name": each.name,
                "head": len(each.head),
                "graph": len(each.graph),
                "filled": {name: [filled.source, filled.dtype] for name, filled in each.filled.items()},
                "computed": {name: [x.dtype, list(x.shape), len(x.data)] for name, x in each.computed.items()},
            }
        )
    _send({"way": answer.way, "models": models, "unused": list(answer.unused)}, stream)
    for blob in blobs:
        stream.write(blob)


def send_error(kind: str, text: str, stream: BinaryIO) -> None:
    """Write that it failed: the name of a class of `converter.errors`, and what it says."""
    _send({"error": [kind, text]}, stream)


def _send(value: Mapping[str, Any], stream: BinaryIO) -> None:
    stream.write(json.dumps(value).encode() + b"\n")


def received(data: bytes) -> Answer | tuple[str, str]:
    """The answer that was sent, or the error.

    Raises:
        ValueError: neither; the process ended before it was done.
    """
    line, _, rest = data.partition(b"\n")
    said = json.loads(line)
    if "error" in said:
        kind, text = said["error"]
        return str(kind), str(text)
    at = 0

    def take(nbytes: int) -> bytes:
        nonlocal at
        at += nbytes
        if at > len(rest):
            raise ValueError("cut short")
        return rest[at - nbytes : at]

    models = []
    for each in said["models"]:
        head, graph = take(each["head"]), take(each["graph"])
        filled = {name: Filled(*given) for name, given in each["filled"].items()}
        computed = {
            name: Computed(dtype, tuple(shape), take(nbytes))
            for name, (dtype, shape, nbytes) in each["computed"].items()
        }
        models.append(Traced(each["name"], head, graph, filled, computed))
    return Answer(said["way"], tuple(models), tuple(said["unused"]))
