"""A whole ONNX model that was written here: nodes, inputs, outputs and tensors, and how they become a file.

Source: onnx.proto of the ONNX project.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from converter import __version__
from converter.checkpoint import Around, Use
from converter.events import Event
from converter.formats.onnx.model import INLINE_NBYTES
from converter.formats.onnx.values import CODES
from converter.formats.onnx.writer import DataFile, Piece, assembled, entry, nbytes, values
from converter.storage.layout import FileLayout, Layout
from converter.storage.protobuf import blob, blob_key, float32, number
from converter.tensors.tensor import LazyTensor

PRODUCER = "model-converter"
#: What Transformers.js and optimum call a model's data file, behind the model's own name.
DATA_SUFFIX = "_data"
#: Where a file says that its graph was traced, and by what: constants in it are then the graph's own.
TRACED_KEY = "converter.traced"

Size = int | str  # a name where it is not known before the model runs


@dataclass(frozen=True)
class Body:
    """What an operator does again and again: nodes, and the names of what they are given and of what they make."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Attribute = int | float | str | Sequence[int] | Body


@dataclass(frozen=True)
class Node:
    """One operator: the names of its inputs (an empty one is left out) and outputs, and what else it is told."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    domain: str = ""

    @property
    def read(self) -> Iterator[str]:
        """Names of what it reads, also within what it does again and again."""
        yield from self.inputs
        for body in (value for value in self.attributes.values() if isinstance(value, Body)):
            yield from body.outputs
            for node in body.nodes:
                yield from node.read


@dataclass(frozen=True)
class Value:
    """An input or an output of the model: name, type by its name here, shape."""

    name: str
    dtype: str
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Program:
    """A model that runs.

    Attributes:
        name: of the graph.
        nodes: in an order in which they can be run.
        inputs, outputs: of the model.
        initializers: its tensors by name; a small one stands in the model's file, others in its data file.
        opsets: domain -> version.
        ir_version: of the file; a runtime refuses one that is newer than itself.
        texts: what else the file says of itself.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    initializers: Mapping[str, LazyTensor]
    opsets: Mapping[str, int]
    ir_version: int
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def fixed(self) -> Mapping[str, str]:
        """Types were chosen before it was written: all of them stay."""
        return dict.fromkeys(self.initializers, "of a graph that was written for it")

    @property
    def uses(self) -> Mapping[str, Sequence[Use]]:
        return {}

    @property
    def decoded(self) -> Mapping[str, LazyTensor]:
        return {}

    def leave(self) -> tuple[Event, ...]:
        return ()


@dataclass(frozen=True)
class Given:
    """A model whose graph another program made: fields of its ModelProto and of its GraphProto, less the tensors."""

    head: bytes
    graph: bytes
    initializers: Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Programs(Around):
    """The models that another program made of one: of one graph, or of several, each with the name of its file.

    `way` says how, and every file does. Source: what optimum and Transformers.js call the files of a folder.
    """

    models: Mapping[str, Given]
    way: str

    @property
    def fixed(self) -> Mapping[str, str]:
        """Types were chosen before it was traced: all of them stay."""
        names = (name for model in self.models.values() for name in model.initializers)
        return dict.fromkeys(names, "of a graph that was traced for it")


def several(programs: Programs, target: Path, external_data: str) -> Layout:
    """The files of models beside each other; one alone gets the name of the target.

    Raises:
        UnsupportedFeature: a file of more than 2 GiB.
        UsageError: a name that external data cannot have.
    """
    files: list[FileLayout] = []
    for name, model in programs.models.items():
        path = target if len(programs.models) == 1 else target.with_name(f"{name}{target.suffix}")
        data = DataFile(path, DATA_SUFFIX)
        graph: list[Piece] = [model.graph, *_tensors(model.initializers, data, external_data)]
        said = blob(14, entry(TRACED_KEY, programs.way))
        files += assembled(path, [model.head, blob_key(7, nbytes(graph)), *graph, said], None, data).files
    return Layout(tuple(files))


def _tensors(initializers: Mapping[str, LazyTensor], data: DataFile, external_data: str) -> list[Piece]:
    tensors: list[Piece] = []
    for name, tensor in initializers.items():
        outside = external_data != "never" and tensor.info.nbytes > INLINE_NBYTES
        dims = b"".join(number(1, size) for size in tensor.info.shape)
        head = dims + number(2, CODES[tensor.info.dtype.name]) + blob(8, name.encode())
        message = [head, *values(tensor, data if outside else None)]
        tensors += [blob_key(5, nbytes(message)), *message]
    return tensors


def laid_out(program: Program, target: Path, external_data: str) -> Layout:
    """The model's file, and its data file where tensors lie outside (`external_data`: "auto", "always", "never").

    Raises:
        UnsupportedFeature: a file of more than 2 GiB.
        UsageError: a name that external data cannot have.
    """
    data = DataFile(target, DATA_SUFFIX)
    tensors = _tensors(program.initializers, data, external_data)
    nodes = b"".join(blob(1, _node(node, index)) for index, node in enumerate(program.nodes))
    ends = [*(blob(11, _value(each)) for each in program.inputs), *(blob(12, _value(each)) for each in program.outputs)]
    graph: list[Piece] = [nodes, blob(2, program.name.encode()), *tensors, *ends]
    head = number(1, program.ir_version) + blob(2, PRODUCER.encode()) + blob(3, __version__.encode())
    sets = b"".join(blob(8, blob(1, name.encode()) + number(2, version)) for name, version in program.opsets.items())
    texts = b"".join(blob(14, entry(key, value)) for key, value in program.texts.items())
    return assembled(target, [head, blob_key(7, nbytes(graph)), *graph, sets + texts], None, data)


def _node(node: Node, index: int) -> bytes:
    names = b"".join(blob(1, name.encode()) for name in node.inputs)
    names += b"".join(blob(2, name.encode()) for name in node.outputs)
    named = blob(3, f"{node.op}.{index}".encode()) + blob(4, node.op.encode())
    told = b"".join(blob(5, _attribute(name, value)) for name, value in node.attributes.items())
    return names + named + told + (blob(7, node.domain.encode()) if node.domain else b"")


def _attribute(name: str, value: Attribute) -> bytes:
    """AttributeProto: its value, and which type that has (1 a float, 2 a number, 3 a text, 5 a graph, 7 numbers)."""
    head = blob(1, name.encode())
    if isinstance(value, float):
        return head + float32(2, value) + number(20, 1)
    if isinstance(value, int):
        return head + number(3, value) + number(20, 2)
    if isinstance(value, str):
        return head + blob(4, value.encode()) + number(20, 3)
    if isinstance(value, Body):
        return head + blob(6, _body(value)) + number(20, 5)
    return head + b"".join(number(8, each) for each in value) + number(20, 7)


def _body(body: Body) -> bytes:
    """GraphProto; types and shapes are those of what it is given."""
    nodes = b"".join(blob(1, _node(node, index)) for index, node in enumerate(body.nodes))
    given = b"".join(blob(11, blob(1, name.encode())) for name in body.inputs)
    made = b"".join(blob(12, blob(1, name.encode())) for name in body.outputs)
    return nodes + blob(2, b"body") + given + made


def _value(value: Value) -> bytes:
    sizes = (blob(2, size.encode()) if isinstance(size, str) else number(1, size) for size in value.shape)
    shape = b"".join(blob(1, size) for size in sizes)
    return blob(1, value.name.encode()) + blob(2, blob(1, number(1, CODES[value.dtype]) + blob(2, shape)))
