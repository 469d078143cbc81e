"""What is in an ONNX model: its tensors, the nodes they lie in, where everything stands in the file.

Sources: onnx.proto (message and field numbers), docs/ExternalData.md and docs/IR.md of the ONNX project.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, short
from converter.events import Decoded, Dropped, Event, Note
from converter.formats.base import MAX_AXES, check_elements, check_name, child
from converter.storage.files import Bytes, open_bytes
from converter.storage.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, count_varints, fields, text, varints
from converter.storage.windows import Windows
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

# TensorProto.DataType -> our type, and the field that holds its values where raw_data does not.
TYPES = {
    1: ("F32", "float_data"), 2: ("U8", "int32_data"), 3: ("I8", "int32_data"), 4: ("U16", "int32_data"),
    5: ("I16", "int32_data"), 6: ("I32", "int32_data"), 7: ("I64", "int64_data"), 9: ("BOOL", "int32_data"),
    10: ("F16", "int32_data"), 11: ("F64", "double_data"), 12: ("U32", "uint64_data"), 13: ("U64", "uint64_data"),
    14: ("C64", "float_data"), 15: ("C128", "double_data"), 16: ("BF16", "int32_data"),
    17: ("F8_E4M3", "int32_data"), 18: ("F8_E4M3FNUZ", "int32_data"), 19: ("F8_E5M2", "int32_data"),
    20: ("F8_E5M2FNUZ", "int32_data"), 24: ("F8_E8M0", "int32_data"),
}  # fmt: skip
CODES = {name: code for code, (name, _) in TYPES.items()}
STRING, BOOL = 8, 9


@dataclass(frozen=True)
class _Packed:
    """A type of less than a byte: its name, its width in bits, and the value of every code in a type of ours."""

    name: str
    bits: int
    dtype: DType
    values: NDArray[np.generic]


def _packed(name: str, bits: int, ours: str, values: Iterable[float]) -> _Packed:
    return _Packed(name, bits, DTYPES[ours], np.array(list(values)).astype(DTYPES[ours].numpy))


# The first element lies in the lowest bits of a byte.
PACKED = {
    21: _packed("UINT4", 4, "U8", range(16)),
    22: _packed("INT4", 4, "I8", (*range(8), *range(-8, 0))),
    23: _packed("FLOAT4E2M1", 4, "F32", np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)),
    25: _packed("UINT2", 2, "U8", range(4)),
    26: _packed("INT2", 2, "I8", (0, 1, -2, -1)),
}

# What tells of weights that are quantized by nodes: they are carried as they are stored, scales beside them.
QUANTIZED_OPS = {
    "DequantizeLinear": "QDQ: scales and zero points are tensors of their own",
    "QuantizeLinear": "QDQ: scales and zero points are tensors of their own",
    "DynamicQuantizeLinear": "activations quantized as the model runs",
    "MatMulInteger": "integer weights; scales and zero points are tensors of their own",
    "QLinearMatMul": "integer weights; scales and zero points are tensors of their own",
    "QLinearConv": "integer weights; scales and zero points are tensors of their own",
    "ConvInteger": "integer weights; zero points are tensors of their own",
    "MatMulNBits": "packed codes as U8; scales and zero points are tensors of their own",
    "GatherBlockQuantized": "packed codes; scales and zero points are tensors of their own",
    "MatMulBnb4": "packed 4-bit codes as U8; scales are tensors of their own",
}

# Tensors of more bytes can lie in a data file and change their type; smaller ones are worth neither an entry nor a
# Cast, and are what a graph computes with: an epsilon that F16 has as 0, a mask's -3e38, the scales of a Resize.
INLINE_NBYTES = 1024

MAX_DEPTH = 64
MAX_NAME = 1024
MAX_LOCATION = 4096
MAX_TEXT = 16 << 20


@dataclass(frozen=True)
class GraphLeft(Event):
    """A model that can be run was opened; of it, only the tensors go on."""

    nodes: int
    producer: str

    def __str__(self) -> str:
        by = f" by {short(self.producer)}" if self.producer else ""
        return f"ONNX model{by}: tensors are read, the {self.nodes} nodes of its graph are not"


# ------------------------------------------------------------------------------------------------ messages

_B, _V = (BYTES,), (VARINT,)
_VARINTS, _FLOATS, _DOUBLES = (VARINT, BYTES), (FIXED32, BYTES), (FIXED64, BYTES)


@dataclass(frozen=True)
class _Schema:
    """A message: field number -> name and wire types, of fields that stand once at most and of repeated ones."""

    name: str
    once: Mapping[int, tuple[str, tuple[int, ...]]]
    many: Mapping[int, tuple[str, tuple[int, ...]]]

    @cached_property
    def rules(self) -> dict[int, tuple[str, tuple[int, ...], bool]]:
        """Field number -> name, wire types, whether it stands once at most."""
        once = {number: (*rule, True) for number, rule in self.once.items()}
        return {**once, **{number: (*rule, False) for number, rule in self.many.items()}}


_MODEL = _Schema(
    "the model",
    {1: ("ir_version", _V), 2: ("producer_name", _B), 3: ("producer_version", _B), 7: ("graph", _B)},
    {8: ("opset_import", _B), 14: ("metadata_props", _B), 20: ("training_info", _B), 25: ("functions", _B)},
)
_OPSET = _Schema("an operator set", {1: ("domain", _B), 2: ("version", _V)}, {})
_GRAPH = _Schema(
    "a graph",
    {},
    {
        1: ("node", _B), 5: ("initializer", _B), 11: ("input", _B), 12: ("output", _B),
        14: ("quantization_annotation", _B), 15: ("sparse_initializer", _B),
    },
)  # fmt: skip
_VALUE = _Schema("an input", {1: ("name", _B)}, {})
_ANNOTATION = _Schema("an annotation", {}, {2: ("quant_parameter_tensor_names", _B)})
_SPARSE = _Schema("a sparse tensor", {1: ("values", _B), 2: ("indices", _B)}, {})
_FUNCTION = _Schema("a function", {1: ("name", _B)}, {7: ("node", _B), 11: ("attribute", _B)})
_TRAINING = _Schema("training", {1: ("initialization", _B), 2: ("algorithm", _B)}, {})
_NODE = _Schema(
    "a node",
    {3: ("name", _B), 4: ("op_type", _B), 7: ("domain", _B)},
    {1: ("input", _B), 2: ("output", _B), 5: ("attribute", _B)},
)
_ATTRIBUTE = _Schema(
    "an attribute",
    {1: ("name", _B), 2: ("f", (FIXED32,)), 3: ("i", _V), 5: ("t", _B), 6: ("g", _B), 22: ("sparse_tensor", _B)},
    {7: ("floats", _FLOATS), 8: ("ints", _VARINTS), 10: ("tensors", _B), 11: ("graphs", _B), 23: ("sparse", _B)},
)
_TENSOR = _Schema(
    "a tensor",
    {2: ("data_type", _V), 3: ("segment", _B), 8: ("name", _B), 9: ("raw_data", _B), 14: ("data_location", _V)},
    {
        1: ("dims", _VARINTS), 4: ("float_data", _FLOATS), 5: ("int32_data", _VARINTS), 6: ("string_data", _B),
        7: ("int64_data", _VARINTS), 10: ("double_data", _DOUBLES), 11: ("uint64_data", _VARINTS),
        13: ("external_data", _B),
    },
)  # fmt: skip
_ENTRY = _Schema("a key with its text", {1: ("key", _B), 2: ("value", _B)}, {})
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


class _Message(dict[str, list[Field]]):
    """The fields of a message by name; one that is absent is empty."""

    def __missing__(self, name: str) -> list[Field]:
        return []


Span = tuple[int, int]


def _span(field: Field) -> Span:
    return field.start, field.stop


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """A message, [start, stop) of the file, that a tensor lies in, and the one around it; the model has none."""

    start: int
    stop: int
    around: Box | None


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's shape, its TensorProto.DataType, and where its bytes lie.

    `pieces` are (offset, bytes) in `file`, one after the other; `coded` says that they are varints.
    """

    shape: tuple[int, ...]
    code: int
    file: Bytes
    pieces: tuple[Span, ...]
    coded: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of what raw_data is or would be."""
        return _stored_nbytes(self.shape, self.code)


def _stored_nbytes(shape: tuple[int, ...], code: int) -> int:
    n = math.prod(shape)
    return -(-n * PACKED[code].bits // 8) if code in PACKED else n * DTYPES[TYPES[code][0]].type_size


@dataclass(frozen=True, slots=True)
class Site:
    """Where a tensor stands.

    Attributes:
        scope: the nodes that its graph lies in.
        name: its name in its graph.
        stored: where its values are.
        box: its TensorProto; None where an attribute's plain numbers are meant.
        output: for the value of a Constant, where the name of that node's output stands.
        fixed: why its type cannot change in the graph; empty where it can.
        shown: whether it is a tensor to others, or a part of a sparse one, which only ONNX has.
    """

    scope: tuple[str, ...]
    name: str
    stored: Stored
    box: Box | None
    output: Span | None = None
    fixed: str = ""
    shown: bool = True


# A tensor that changes its type goes on under its name with this behind it; its own name is then the Cast's.
SUFFIX = b".stored"


@dataclass(frozen=True)
class _Graph:
    """A graph or function, the nodes it lies in, and why its tensors cannot change their type, if so."""

    schema: _Schema
    box: Box
    scope: tuple[str, ...]
    fixed: str = ""


@dataclass(frozen=True, slots=True)
class _Node:
    """A node: its operator, what its tensors are called after, where its first output's name stands."""

    op: str
    label: str
    box: Box
    output: Span | None = None


_AS_NUMBERS = "a Constant given as numbers"


class Model:
    """One model being walked, by a queue of our own: what is in a file is never recursed on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open_bytes(path)
        self.externals: dict[Path, Bytes] = {}
        self._located: dict[str | None, Bytes] = {}
        self.metadata: dict[str, str] = {}
        self.events: list[Event] = []
        self.sites: list[Site] = []
        self.opset = 0  # version of the default operators
        self.bare = True  # nothing to run: tensors that nothing uses
        self.taken: set[str] = set()  # names of the graphs' values that end in SUFFIX
        self._data = Windows(self.file)
        self._lost: list[Event] = []
        self._sparse: list[str] = []
        self._sums: dict[Path, set[str]] = {}
        self._ops: Counter[str] = Counter()
        self._nodes = 0
        self._operands: dict[str, str] = {}  # what quantized operators and annotations name -> who names it

    def close(self) -> None:
        for file in (self.file, *self.externals.values()):
            file.close()

    # -- messages

    def _gather(self, span: Span, schema: _Schema) -> _Message:
        """The fields that `schema` names, by name; what it does not name is skipped.

        Raises:
            CorruptFile: a wrong wire type, or a field that stands twice where one is meant.
        """
        rules, found = schema.rules, _Message()
        for field in fields(self._data, *span, rules):
            name, wires, once = rules[field.number]
            if field.wire not in wires:
                raise CorruptFile(f"{self.path}: {name} of {schema.name} at offset {field.start} is of another type")
            before = found.setdefault(name, [])
            if before and once:
                raise CorruptFile(f"{self.path}: {name} of {schema.name} at offset {field.start} stands twice")
            before.append(field)
        return found

    def _text(self, found: Sequence[Field], limit: int = MAX_NAME) -> str:
        """A text that may be absent, as Protocol Buffers has it: empty then."""
        return text(self._data, found[0], limit) if found else ""

    # -- graphs

    def walk(self) -> None:
        """Find every tensor."""
        model = self._gather((0, self.file.size), _MODEL)
        if not model["graph"]:
            raise CorruptFile(f"{self.path}: no graph in it; it is truncated, or no ONNX model")
        for key, value in self._entries(model["metadata_props"], MAX_TEXT):
            self.metadata[key] = value
        for field in model["opset_import"]:
            opset = self._gather(_span(field), _OPSET)
            if self._text(opset["domain"]) in ("", "ai.onnx") and opset["version"]:
                self.opset = max(0, opset["version"][0].signed)
        queue = deque(self._graphs(model))
        while queue:
            queue.extend(self._graph(queue.popleft()))
        self._say(self._text(model["producer_name"]), self._text(model["producer_version"]))

    def _graphs(self, model: _Message) -> Iterator[_Graph]:
        """The graphs that lie in no node."""
        updated = "a training graph updates it" if model["training_info"] else ""
        yield _Graph(_GRAPH, Box(*_span(model["graph"][0]), None), (), updated)
        for field in model["training_info"]:
            training, around = self._gather(_span(field), _TRAINING), Box(*_span(field), None)
            for name in ("initialization", "algorithm"):
                for each in training[name]:
                    yield _Graph(_GRAPH, Box(*_span(each), around), (f"training.{name}",), "part of a training graph")
        for field in model["functions"]:
            yield _Graph(_FUNCTION, Box(*_span(field), None), (), "part of a function")

    def _graph(self, graph: _Graph) -> Iterator[_Graph]:
        """Take the tensors of one graph or function; yields the graphs in its nodes."""
        found = self._gather((graph.box.start, graph.box.stop), graph.schema)
        before = len(self.sites)
        self.bare &= not (found["node"] or found["input"] or found["output"])
        inputs = {self._text(self._gather(_span(field), _VALUE)["name"]) for field in found["input"]}
        self._take(name.encode() for name in inputs)
        for field in found["quantization_annotation"]:
            annotation = self._gather(_span(field), _ANNOTATION)
            for _, name in self._entries(annotation["quant_parameter_tensor_names"], MAX_NAME):
                self._operands[name] = "an annotation"
        for field in found["initializer"]:
            self._initializer(field, graph, inputs)
        for field in found["sparse_initializer"]:
            self._sparse_tensor(field, "", graph, graph.box)
        if graph.schema is _FUNCTION:
            graph = replace(graph, scope=(self._text(found["name"]),))
            for field in found["attribute"]:
                yield from self._attribute(field, _Node("", "defaults", graph.box), graph)
        for field in found["node"]:
            yield from self._node(field, graph)
        seen: set[str] = set()
        for each in self.sites[before:]:
            if each.shown and each.name in seen:
                raise CorruptFile(f"{self.path}: two tensors of one graph are called {short(each.name)}")
            seen.add(each.name)

    def _take(self, names: Iterable[bytes | memoryview]) -> None:
        for name in names:
            if name[-len(SUFFIX) :] == SUFFIX:
                self.taken.add(str(name, "utf-8", "replace"))

    def _initializer(self, field: Field, graph: _Graph, inputs: set[str]) -> None:
        tensor = self._gather(_span(field), _TENSOR)
        name = self._text(tensor["name"])
        if not name:
            raise CorruptFile(f"{self.path}: an initializer at offset {field.start} has no name")
        self._take((name.encode(),))
        fixed = graph.fixed or ("an input of the graph, too" if name in inputs else "")
        self._add(graph.scope, name, self._tensor(tensor, name), Box(*_span(field), graph.box), fixed=fixed)

    def _sparse_tensor(self, field: Field, name: str, graph: _Graph, around: Box) -> None:
        """Its values and its indices are stored as tensors are; what they mean together, only ONNX has."""
        sparse, box = self._gather(_span(field), _SPARSE), Box(*_span(field), around)
        for part in ("values", "indices"):
            if not sparse[part]:
                raise CorruptFile(f"{self.path}: the sparse tensor at offset {field.start} has no {part}")
            tensor = self._gather(_span(sparse[part][0]), _TENSOR)
            name = name or self._text(tensor["name"])
            stored = self._tensor(tensor, f"{name}.{part}")
            self._add(graph.scope, f"{name}.{part}", stored, Box(*_span(sparse[part][0]), box), shown=False)
        self._sparse.append(name)

    def _node(self, field: Field, graph: _Graph) -> Iterator[_Graph]:
        found = self._gather(_span(field), _NODE)
        self._nodes += 1
        op = self._text(found["op_type"])
        if op in QUANTIZED_OPS:
            self._ops[op] += 1
            self._operands.update((self._text([each]), op) for each in found["input"])
        self._take(self._data.at(each.start, each.stop - each.start, "a name") for each in found["output"])
        if not found["attribute"]:
            return
        label = self._text(found["output"][:1]) or self._text(found["name"]) or op
        output = _span(found["output"][0]) if found["output"] else None
        node = _Node(op, label, Box(*_span(field), graph.box), output)
        for each in found["attribute"]:
            yield from self._attribute(each, node, graph)

    def _attribute(self, field: Field, node: _Node, graph: _Graph) -> Iterator[_Graph]:
        """Take the tensors of one attribute; yields its graphs."""
        attribute, box = self._gather(_span(field), _ATTRIBUTE), Box(*_span(field), node.box)
        own = self._text(attribute["name"])
        name = f"{node.label}.{own}"
        constant = node.op == "Constant"
        for each in (*attribute["sparse_tensor"], *attribute["sparse"]):
            self._sparse_tensor(each, name, graph, box)
        for each in attribute["t"]:
            if constant and own == "value" and node.output is not None:
                self._in_attribute(each, node.label, graph, box, node)
            else:
                self._in_attribute(each, name, graph, box)
        for index, each in enumerate(attribute["tensors"]):
            self._in_attribute(each, f"{name}.{index}", graph, box)
        if constant and own in _CONSTANTS:
            self._add(graph.scope, node.label, self._numbers(attribute, own, node.label), None, fixed=_AS_NUMBERS)
        inner = [*attribute["g"], *attribute["graphs"]]
        if inner and len(graph.scope) >= MAX_DEPTH:
            raise UnsupportedFeature(f"{self.path}: graphs nested more than {MAX_DEPTH} deep")
        for index, each in enumerate(inner):
            scope = (*graph.scope, name if attribute["g"] else f"{name}.{index}")
            yield _Graph(_GRAPH, Box(*_span(each), box), scope, graph.fixed)

    def _in_attribute(self, field: Field, name: str, graph: _Graph, around: Box, node: _Node | None = None) -> None:
        fixed = graph.fixed or ("" if node else "an attribute, which has the type its operator wants")
        stored = self._tensor(self._gather(_span(field), _TENSOR), name)
        self._add(graph.scope, name, stored, Box(*_span(field), around), node.output if node else None, fixed)

    def _numbers(self, attribute: _Message, own: str, name: str) -> Stored:
        """A Constant that is given as plain numbers: one of them is a scalar, a list of them has one axis."""
        which, code = _CONSTANTS[own]
        pieces = tuple(map(_span, attribute[which]))
        if which in ("f", "i"):
            if not pieces:
                raise CorruptFile(f"{self.path}: the constant {short(name)} has no value")
            return Stored((), code, self.file, _offsets(pieces), coded=which == "i")
        nbytes = sum(stop - start for start, stop in pieces)
        n = nbytes // 4
        if which == "ints":
            n = sum(count_varints(self._view(piece)) for piece in pieces)
        elif nbytes % 4:
            raise CorruptFile(f"{self.path}: the constant {short(name)} ends within a number")
        return Stored((n,), code, self.file, _offsets(pieces), coded=which == "ints")

    def _view(self, span: Span) -> NDArray[np.uint8]:
        return self.file.view(span[0], span[1] - span[0], "numbers")

    def _add(
        self,
        scope: tuple[str, ...],
        name: str,
        stored: Stored | None,
        box: Box | None,
        output: Span | None = None,
        fixed: str = "",
        shown: bool = True,
    ) -> None:
        check_name(self.path, name)
        if stored is not None:
            self.sites.append(Site(scope, name, stored, box, output, fixed, shown))

    # -- tensors

    def _tensor(self, tensor: _Message, name: str) -> Stored | None:
        """Where a TensorProto's bytes are, everything checked; None for texts, which no other format holds."""
        code = tensor["data_type"][0].signed if tensor["data_type"] else 0
        given = [field for field in ("raw_data", "string_data", *_TYPED) if tensor[field]]
        external = bool(tensor["data_location"]) and tensor["data_location"][0].value == 1
        if code == 0:
            raise CorruptFile(f"{self._what(name)} says no type")
        if tensor["segment"]:
            raise UnsupportedFeature(f"{self._what(name)} is a part of a larger tensor")
        if external != bool(tensor["external_data"]) or len(given) + external > 1:
            raise CorruptFile(f"{self._what(name)} says twice, or not clearly, where its values are")
        if code == STRING:
            if external or given not in ([], ["string_data"]):
                raise CorruptFile(f"{self._what(name)} is of texts and has bytes of another kind")
            self._lost.append(Dropped(name, "texts are no numbers"))
            return None
        if code not in TYPES and code not in PACKED:
            raise UnsupportedFeature(f"{self._what(name)} has type {code}, which is not one of plain numbers")
        shape = self._shape(tensor["dims"], name)
        nbytes = _stored_nbytes(shape, code)
        if external:
            file, offset = self._external(tensor["external_data"], nbytes, name)
            return Stored(shape, code, file, ((offset, nbytes),))
        typed = "int32_data" if code in PACKED else TYPES[code][1]
        if given and given[0] not in ("raw_data", typed):
            raise CorruptFile(f"{self._what(name)} has {given[0]}, its type wants {typed} or raw_data")
        pieces = _offsets(tuple(map(_span, tensor[given[0]])) if given else ())
        coded = bool(given) and given[0] in ("int32_data", "int64_data", "uint64_data")
        self._check_size(name, shape, code, sum(size for _, size in pieces), nbytes, coded)
        return Stored(shape, code, self.file, pieces, coded)

    def _what(self, name: str) -> str:
        return f"{self.path}: tensor {short(name)}"

    def _check_size(self, name: str, shape: tuple[int, ...], code: int, have: int, want: int, coded: bool) -> None:
        """Varints are counted when they are read; here it is enough that there can be as many as there must."""
        n = want if code in PACKED else math.prod(shape)
        if not (n <= have <= 10 * n if coded else have == want):
            type_ = PACKED[code].name if code in PACKED else TYPES[code][0]
            raise CorruptFile(f"{self._what(name)} is {type_}{list(shape[:8])} but has {have} bytes")

    def _shape(self, dims: Sequence[Field], name: str) -> tuple[int, ...]:
        sizes: list[int] = []
        for field in dims:
            if field.stop - field.start > 10 * MAX_AXES or len(sizes) > MAX_AXES:
                break
            if field.wire == VARINT:
                sizes.append(field.signed)
            else:
                sizes += varints(self._view(_span(field)), self.path).view(np.int64).tolist()
        else:
            if len(sizes) <= MAX_AXES:
                if any(size < 0 for size in sizes):
                    raise CorruptFile(f"{self.path}: tensor {short(name)} has a negative size in {sizes[:8]}")
                check_elements(self.path, name, sizes)
                return tuple(sizes)
        raise CorruptFile(f"{self.path}: tensor {short(name)} has more than {MAX_AXES} axes")

    # -- external data

    def _entries(self, found: Sequence[Field], limit: int) -> Iterator[tuple[str, str]]:
        """StringStringEntryProtos; a key stands once."""
        seen: set[str] = set()
        for field in found:
            entry = self._gather(_span(field), _ENTRY)
            key = self._text(entry["key"])
            if key in seen:
                raise CorruptFile(f"{self.path}: key {short(key)} stands twice")
            seen.add(key)
            yield key, self._text(entry["value"], limit)

    def _external(self, found: Sequence[Field], nbytes: int, name: str) -> tuple[Bytes, int]:
        """The file and the offset of a tensor of `nbytes`.

        Raises:
            CorruptFile: outside the folder, outside the file, not as long as the tensor.
            MissingPart: no such file.
        """
        what = f"{self.path}: external data of {short(name)}"
        entries = dict(self._entries(found, MAX_LOCATION))
        # Keys that onnxruntime adds for itself: where it keeps copies in the order its kernels like.
        extra = {key for key in entries.keys() - _EXTERNAL if not key.startswith("prepacked")}
        if extra:
            raise UnsupportedFeature(f"{what} has a key {short(min(extra))} that the specification does not have")
        file = self._file(entries.get("location"))
        offset = _whole(what, entries.get("offset", "0"))
        length = _whole(what, entries.get("length", str(nbytes)))
        if length != nbytes:
            raise CorruptFile(f"{what} says {length} bytes, shape and type say {nbytes}")
        if offset + nbytes > file.size:
            raise CorruptFile(
                f"{what} at offset {offset} needs {nbytes} bytes, {file.path.name} has {file.size}\n"
                "the file is truncated, or of another model; download it again"
            )
        if "checksum" in entries:
            self._sums.setdefault(file.path, set()).add(entries["checksum"].lower())
        return file, offset

    def _file(self, location: str | None) -> Bytes:
        if location not in self._located:  # following links takes long where there are many tensors
            path = child(self.path.parent, location.removeprefix("./") if location else location, self.path)
            if path not in self.externals:
                if not path.exists():
                    raise MissingPart(f"{path}: {self.path.name} has its tensors in this file; download it too")
                self.externals[path] = open_bytes(path)
            self._located[location] = self.externals[path]
        return self._located[location]

    def checks(self) -> Iterator[Callable[[], None]]:
        """For files whose SHA-1 the model tells, what compares it."""
        for path, wanted in self._sums.items():
            yield lambda path=path, wanted=wanted: _check_sum(self.externals[path], wanted)  # type: ignore[misc]

    # -- results

    def name_tensors(self) -> dict[str, Site]:
        """Every tensor that others see, under a name of its own."""
        shown = [each for each in self.sites if each.shown]
        uses = Counter(each.name for each in shown)
        named: dict[str, Site] = {}
        for each in shown:
            name = each.name if uses[each.name] == 1 else ".".join((*each.scope, each.name))
            if len(name) > MAX_NAME:
                raise UnsupportedFeature(f"{self.path}: the name {short(name)} is longer than {MAX_NAME} characters")
            check_name(self.path, name)
            if name in named:
                raise CorruptFile(f"{self.path}: two tensors are called {short(name)}")
            named[name] = each
        if not named:
            raise UnsupportedFeature(f"{self.path}: not one tensor of numbers in it, nothing to convert")
        return named

    def why_fixed(self, site: Site) -> str:
        """Why a tensor's type cannot change in the graph; empty where it can."""
        if site.stored.code in PACKED:
            return f"stored as {PACKED[site.stored.code].name}"
        if self.bare or site.fixed:
            return site.fixed
        if site.name in self._operands:
            return f"what {self._operands[site.name]} works with"
        return f"no more than {INLINE_NBYTES} bytes" if site.stored.nbytes <= INLINE_NBYTES else ""

    def losses(self, named: Mapping[str, Site]) -> Iterator[Event]:
        """What is said where only the tensors go on.

        Raises:
            UnsupportedFeature: sparse tensors.
        """
        if self._sparse:
            raise UnsupportedFeature(
                f"{self.path}: {short(self._sparse[0])} is a sparse tensor; make it dense before converting"
            )
        yield from self._lost
        for name, site in named.items():
            if (packed := PACKED.get(site.stored.code)) is not None:
                yield Decoded(name, packed.name, packed.dtype.name)

    # -- for writing the file again

    def length_at(self, box: Box) -> int:
        """Where the length before a message begins: its last byte has no high bit, nor has the key before it."""
        at = box.start - 1
        while self._data.at(at - 1, 1, "a length")[0] > 0x7F:
            at -= 1
        return at

    def others(self, box: Box, numbers: Set[int]) -> list[Span]:
        """What a message has besides the fields of these numbers, as ranges of the file."""
        spans: list[Span] = []
        at = box.start
        for field in fields(self._data, box.start, box.stop):
            if field.number not in numbers:
                if spans and spans[-1][1] == at:
                    spans[-1] = (spans[-1][0], field.stop)
                else:
                    spans.append((at, field.stop))
            at = field.stop
        return spans

    def _say(self, producer: str, version: str) -> None:
        if self._nodes:
            self._lost.append(GraphLeft(self._nodes, f"{producer} {version}".strip()))
        for op, count in sorted(self._ops.items()):
            self.events.append(Note(f"{count} {op} nodes ({QUANTIZED_OPS[op]}): tensors stay as they are stored"))


# Attributes of Constant that are numbers, not a tensor: field and type.
_CONSTANTS = {"value_float": ("f", 1), "value_floats": ("floats", 1), "value_int": ("i", 7), "value_ints": ("ints", 7)}
_EXTERNAL = {"location", "offset", "length", "checksum"}


def _offsets(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """(start, stop) as (offset, bytes)."""
    return tuple((start, stop - start) for start, stop in spans if stop > start)


def _whole(what: str, value: str) -> int:
    """A whole number of at most 19 digits, as external data has it in texts."""
    if not (value.isascii() and value.isdigit() and len(value) <= 19):
        raise CorruptFile(f"{what} has {short(value)} where a number of bytes belongs")
    return int(value)


def _check_sum(file: Bytes, wanted: set[str]) -> None:
    digest = hashlib.sha1(usedforsecurity=False)
    for at in range(0, file.size, 1 << 20):
        digest.update(file.view(at, min(1 << 20, file.size - at), "the file").data)
    if wanted != {digest.hexdigest()}:
        raise CorruptFile(f"{file.path}: its SHA-1 is not the one that the model tells; download it again")


def lazy(name: str, stored: Stored) -> LazyTensor:
    """The tensor as others see it: decoded where its type is of less than a byte."""
    packed = PACKED.get(stored.code)
    info = TensorInfo(name, stored.shape, packed.dtype if packed else DTYPES[TYPES[stored.code][0]])
    what = f"tensor {short(name)}"

    def read(start: int, stop: int) -> Rows:
        if packed is None:
            data = _numbers(stored, what, start * info.row_nbytes, stop * info.row_nbytes)
        else:
            data = _unpacked(packed, partial(_numbers, stored, what), start * info.row, stop * info.row)
        return data.reshape(stop - start, info.row_nbytes)

    offset = stored.pieces[0][0] if stored.pieces else 0
    return LazyTensor(info, read, f"{stored.file.path}@{offset}", indivisible=whole_only(stored))


def as_stored(name: str, stored: Stored) -> LazyTensor:
    """The bytes that raw_data has or would have, one in a row."""
    info = TensorInfo(name, (stored.nbytes, 1), DTYPES["U8"])

    def read(start: int, stop: int) -> Rows:
        return _numbers(stored, f"tensor {short(name)}", start, stop).reshape(-1, 1)

    return LazyTensor(info, read, str(stored.file.path), indivisible=whole_only(stored))


def whole_only(stored: Stored) -> bool:
    """Whether a part of the values can only be had with all of them."""
    return stored.coded or len(stored.pieces) > 1


def _numbers(stored: Stored, what: str, low: int, high: int) -> Rows:
    """Bytes [low, high) of what raw_data would be."""
    if stored.pieces and not whole_only(stored):
        return stored.file.view(stored.pieces[0][0] + low, high - low, what)
    pieces = [stored.file.view(*piece, what) for piece in stored.pieces] or [np.empty(0, np.uint8)]
    data = np.concatenate(pieces)
    return (_decoded(data, stored, what) if stored.coded else data)[low:high]


def _decoded(data: NDArray[np.uint8], stored: Stored, what: str) -> Rows:
    """Varints as the bytes of the type they are values (or bit patterns) of.

    Raises:
        CorruptFile: too many or too few, or a value that the type does not hold.
    """
    path = stored.file.path
    values = varints(data, path)
    storage = _storage(stored.code)
    wanted = stored.nbytes // storage.itemsize
    if len(values) != wanted:
        raise CorruptFile(f"{path}: {what} has {len(values)} values where its shape wants {wanted}")
    low, high = np.iinfo(storage).min, 1 if stored.code == BOOL else np.iinfo(storage).max
    known = values if storage == np.uint64 else values.view(np.int64)
    if len(known) and (int(known.min()) < low or int(known.max()) > high):
        raise CorruptFile(f"{path}: {what} has a value that its type does not hold")
    stored_values: NDArray[np.generic] = known.astype(storage)
    return stored_values.view(np.uint8)


def _storage(code: int) -> np.dtype[np.integer[Any]]:
    """The whole numbers that a type's varints are: its own, or bit patterns."""
    own = DTYPES[TYPES[code][0]].numpy if code in TYPES else None
    if own is not None and own.kind in "iu":
        return own
    return np.dtype(f"<u{own.itemsize if own is not None else 1}")


def _unpacked(packed: _Packed, numbers: Callable[[int, int], Rows], low: int, high: int) -> Rows:
    """Elements [low, high) as bytes of the type they are decoded to."""
    per = 8 // packed.bits
    first = low // per
    data = numbers(first, -(-high // per))
    shifts = np.arange(per, dtype=np.uint8) * packed.bits
    codes = ((data[:, None] >> shifts) & ((1 << packed.bits) - 1)).reshape(-1)
    values = packed.values[codes[low - first * per : high - first * per]]
    return np.frombuffer(values, np.uint8)
