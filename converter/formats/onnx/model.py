"""What is in an ONNX model: its tensors, the nodes they lie in, where everything stands in the file.

Sources: onnx.proto (message and field numbers), docs/ExternalData.md and docs/IR.md of the ONNX project.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint import GraphFacts
from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.events import Decoded, Dropped, Event, Note
from converter.formats.base import MAX_AXES, check_elements, check_name
from converter.formats.onnx.external import MAX_LOCATION, External
from converter.formats.onnx.messages import (
    ANNOTATION,
    ATTRIBUTE,
    ENTRY,
    FUNCTION,
    GRAPH,
    MODEL,
    NODE,
    OPERATOR,
    OPSET,
    SPARSE,
    TENSOR,
    TRAINING,
    TYPED,
    VALUE,
    Message,
    Schema,
    span_of,
)
from converter.formats.onnx.values import PACKED, STRING, TYPES, Span, Stored, stored_nbytes
from converter.storage.files import open_bytes
from converter.storage.protobuf import VARINT, Field, count_varints, fields, text, varints
from converter.storage.windows import Windows

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

#: How the default domain of operators is written.
USUAL = ("", "ai.onnx")
MAX_DEPTH = 64
MAX_NAME = 1024
MAX_TEXT = 16 << 20


@dataclass(frozen=True)
class GraphLeft(Event):
    """A model that can be run was opened; of it, only the tensors go on."""

    nodes: int
    producer: str

    def __str__(self) -> str:
        by = f" by {short(self.producer)}" if self.producer else ""
        return f"ONNX model{by}: tensors are read, the {self.nodes} nodes of its graph are not"


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """A message, [start, stop) of the file, that a tensor lies in, and the one around it; the model has none."""

    start: int
    stop: int
    around: Box | None


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

    schema: Schema
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


@dataclass(frozen=True, slots=True)
class Operator:
    """A node as it computes.

    Attributes:
        op, name: its operator, and what it is called.
        inputs, outputs: names; an input that is left out is empty.
        numbers: its attributes that are whole numbers.
        said: what its metadata says under the keys that were asked for.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]
    said: Mapping[str, str]


_AS_NUMBERS = "a Constant given as numbers"


class Model:
    """One model being walked, by a queue of our own: what is in a file is never recursed on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open_bytes(path)
        self.external = External(path)
        self.metadata: dict[str, str] = {}
        self.events: list[Event] = []
        self.sites: list[Site] = []
        self.opset = 0  # version of the default operators
        self.facts = GraphFacts()
        self.bare = True  # nothing to run: tensors that nothing uses
        self.taken: set[str] = set()  # names of the graphs' values that end in SUFFIX
        self._data = Windows(self.file)
        self._lost: list[Event] = []
        self._sparse: list[str] = []
        self._ops: Counter[str] = Counter()
        self._quantized: Counter[str] = Counter()
        self._nodes = 0
        self._operands: dict[str, str] = {}  # what quantized operators and annotations name -> who names it

    def close(self) -> None:
        self.file.close()
        self.external.close()

    # -- messages

    def _gather(self, span: Span, schema: Schema) -> Message:
        """The fields that `schema` names, by name; what it does not name is skipped.

        Raises:
            CorruptFile: a wrong wire type, or a field that stands twice where one is meant.
        """
        rules, found = schema.rules, Message()
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
        model = self._gather((0, self.file.size), MODEL)
        if not model["graph"]:
            raise CorruptFile(f"{self.path}: no graph in it; it is truncated, or no ONNX model")
        for key, value in self._entries(model["metadata_props"], MAX_TEXT):
            self.metadata[key] = value
        opsets: dict[str, int] = {}
        for field in model["opset_import"]:
            opset = self._gather(span_of(field), OPSET)
            domain = self._text(opset["domain"])
            version = max(0, opset["version"][0].signed) if opset["version"] else 0
            opsets["" if domain in USUAL else domain] = version
            if domain in USUAL and version:
                self.opset = version
        queue = deque(self._graphs(model))
        while queue:
            queue.extend(self._graph(queue.popleft()))
        producer = f"{self._text(model['producer_name'])} {self._text(model['producer_version'])}".strip()
        self.facts = replace(self.facts, producer=producer, opsets=opsets, operators=dict(self._ops.most_common()))
        self._say(producer)

    def _graphs(self, model: Message) -> Iterator[_Graph]:
        """The graphs that lie in no node."""
        updated = "a training graph updates it" if model["training_info"] else ""
        yield _Graph(GRAPH, Box(*span_of(model["graph"][0]), None), (), updated)
        for field in model["training_info"]:
            training, around = self._gather(span_of(field), TRAINING), Box(*span_of(field), None)
            for name in ("initialization", "algorithm"):
                for each in training[name]:
                    yield _Graph(GRAPH, Box(*span_of(each), around), (f"training.{name}",), "part of a training graph")
        for field in model["functions"]:
            yield _Graph(FUNCTION, Box(*span_of(field), None), (), "part of a function")

    def _graph(self, graph: _Graph) -> Iterator[_Graph]:
        """Take the tensors of one graph or function; yields the graphs in its nodes."""
        found = self._gather((graph.box.start, graph.box.stop), graph.schema)
        before = len(self.sites)
        self.bare &= not (found["node"] or found["input"] or found["output"])
        names = (self._text(self._gather(span_of(field), VALUE)["name"]) for field in found["input"])
        inputs = dict.fromkeys(names)
        self._take(name.encode() for name in inputs)
        for field in found["quantization_annotation"]:
            annotation = self._gather(span_of(field), ANNOTATION)
            for _, name in self._entries(annotation["quant_parameter_tensor_names"], MAX_NAME):
                self._operands[name] = "an annotation"
        for field in found["initializer"]:
            self._initializer(field, graph, inputs)
        for field in found["sparse_initializer"]:
            self._sparse_tensor(field, "", graph, graph.box)
        if graph.schema is GRAPH and not graph.scope:
            stored = {each.name for each in self.sites[before:]}
            outputs = (self._text(self._gather(span_of(each), VALUE)["name"]) for each in found["output"])
            own = tuple(name for name in inputs if name not in stored)
            self.facts = replace(self.facts, inputs=own, outputs=tuple(outputs))
        if graph.schema is FUNCTION:
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

    def _initializer(self, field: Field, graph: _Graph, inputs: Container[str]) -> None:
        tensor = self._gather(span_of(field), TENSOR)
        name = self._text(tensor["name"])
        if not name:
            raise CorruptFile(f"{self.path}: an initializer at offset {field.start} has no name")
        self._take((name.encode(),))
        fixed = graph.fixed or ("an input of the graph, too" if name in inputs else "")
        self._add(graph.scope, name, self._tensor(tensor, name), Box(*span_of(field), graph.box), fixed=fixed)

    def _sparse_tensor(self, field: Field, name: str, graph: _Graph, around: Box) -> None:
        """Its values and its indices are stored as tensors are; what they mean together, only ONNX has."""
        sparse, box = self._gather(span_of(field), SPARSE), Box(*span_of(field), around)
        for part in ("values", "indices"):
            if not sparse[part]:
                raise CorruptFile(f"{self.path}: the sparse tensor at offset {field.start} has no {part}")
            tensor = self._gather(span_of(sparse[part][0]), TENSOR)
            name = name or self._text(tensor["name"])
            stored = self._tensor(tensor, f"{name}.{part}")
            self._add(graph.scope, f"{name}.{part}", stored, Box(*span_of(sparse[part][0]), box), shown=False)
        self._sparse.append(name)

    def _node(self, field: Field, graph: _Graph) -> Iterator[_Graph]:
        found = self._gather(span_of(field), NODE)
        self._nodes += 1
        op = self._text(found["op_type"])
        domain = self._text(found["domain"])
        self._ops[op if domain in USUAL else f"{domain}.{op}"] += 1
        if op in QUANTIZED_OPS:
            self._quantized[op] += 1
            self._operands.update((self._text([each]), op) for each in found["input"])
        self._take(self._data.at(each.start, each.stop - each.start, "a name") for each in found["output"])
        if not found["attribute"]:
            return
        label = self._text(found["output"][:1]) or self._text(found["name"]) or op
        output = span_of(found["output"][0]) if found["output"] else None
        node = _Node(op, label, Box(*span_of(field), graph.box), output)
        for each in found["attribute"]:
            yield from self._attribute(each, node, graph)

    def _attribute(self, field: Field, node: _Node, graph: _Graph) -> Iterator[_Graph]:
        """Take the tensors of one attribute; yields its graphs."""
        attribute, box = self._gather(span_of(field), ATTRIBUTE), Box(*span_of(field), node.box)
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
            yield _Graph(GRAPH, Box(*span_of(each), box), scope, graph.fixed)

    def _in_attribute(self, field: Field, name: str, graph: _Graph, around: Box, node: _Node | None = None) -> None:
        fixed = graph.fixed or ("" if node else "an attribute, which has the type its operator wants")
        stored = self._tensor(self._gather(span_of(field), TENSOR), name)
        self._add(graph.scope, name, stored, Box(*span_of(field), around), node.output if node else None, fixed)

    def _numbers(self, attribute: Message, own: str, name: str) -> Stored:
        """A Constant that is given as plain numbers: one of them is a scalar, a list of them has one axis."""
        which, code = _CONSTANTS[own]
        pieces = tuple(map(span_of, attribute[which]))
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

    def _tensor(self, tensor: Message, name: str) -> Stored | None:
        """Where a TensorProto's bytes are, everything checked; None for texts, which no other format holds."""
        code = tensor["data_type"][0].signed if tensor["data_type"] else 0
        given = [field for field in ("raw_data", "string_data", *TYPED) if tensor[field]]
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
        nbytes = stored_nbytes(shape, code)
        if external:
            entries = dict(self._entries(tensor["external_data"], MAX_LOCATION))
            file, offset = self.external.find(entries, nbytes, f"{self.path}: external data of {short(name)}")
            return Stored(shape, code, file, ((offset, nbytes),))
        typed = "int32_data" if code in PACKED else TYPES[code][1]
        if given and given[0] not in ("raw_data", typed):
            raise CorruptFile(f"{self._what(name)} has {given[0]}, its type wants {typed} or raw_data")
        pieces = _offsets(tuple(map(span_of, tensor[given[0]])) if given else ())
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
                sizes += varints(self._view(span_of(field)), self.path).view(np.int64).tolist()
        else:
            if len(sizes) <= MAX_AXES:
                if any(size < 0 for size in sizes):
                    raise CorruptFile(f"{self.path}: tensor {short(name)} has a negative size in {sizes[:8]}")
                check_elements(self.path, name, sizes)
                return tuple(sizes)
        raise CorruptFile(f"{self.path}: tensor {short(name)} has more than {MAX_AXES} axes")

    def _entries(self, found: Sequence[Field], limit: int) -> Iterator[tuple[str, str]]:
        """StringStringEntryProtos; a key stands once."""
        seen: set[str] = set()
        for field in found:
            entry = self._gather(span_of(field), ENTRY)
            key = self._text(entry["key"])
            if key in seen:
                raise CorruptFile(f"{self.path}: key {short(key)} stands twice")
            seen.add(key)
            yield key, self._text(entry["value"], limit)

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

    # -- for names

    def operators(self, keys: Container[str]) -> Iterator[Operator]:
        """The nodes of the graph and of those in it; of their metadata, the `keys`.

        Raises:
            CorruptFile
        """
        model = self._gather((0, self.file.size), MODEL)
        queue = deque([(span_of(model["graph"][0]), 0)])
        while queue:
            span, depth = queue.popleft()
            for field in self._gather(span, GRAPH)["node"]:
                found = self._gather(span_of(field), OPERATOR)
                attributes = [self._gather(span_of(each), ATTRIBUTE) for each in found["attribute"]]
                yield self._operator(found, attributes, keys)
                inner = (each for attribute in attributes for each in (*attribute["g"], *attribute["graphs"]))
                queue.extend((span_of(each), depth + 1) for each in inner if depth < MAX_DEPTH)

    def _operator(self, found: Message, attributes: Sequence[Message], keys: Container[str]) -> Operator:
        numbers = {self._text(each["name"]): self._whole_numbers(each) for each in attributes}
        numbers = {name: values for name, values in numbers.items() if values}
        said = {}
        for field in found["metadata_props"]:
            entry = self._gather(span_of(field), ENTRY)
            if (key := self._text(entry["key"])) in keys:
                said[key] = self._text(entry["value"], MAX_TEXT)
        inputs, outputs = (tuple(self._text([each]) for each in found[key]) for key in ("input", "output"))
        return Operator(self._text(found["op_type"]), self._text(found["name"]), inputs, outputs, numbers, said)

    def _whole_numbers(self, attribute: Message) -> tuple[int, ...]:
        found: list[int] = []
        for field in (*attribute["i"], *attribute["ints"]):
            if len(found) > MAX_AXES:
                break
            if field.wire == VARINT:
                found.append(field.signed)
            else:
                found += varints(self._view(span_of(field)), self.path).view(np.int64)[:MAX_AXES].tolist()
        return tuple(found)

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

    def _say(self, producer: str) -> None:
        if self._nodes:
            self._lost.append(GraphLeft(self._nodes, producer))
        for op, count in sorted(self._quantized.items()):
            self.events.append(Note(f"{count} {op} nodes ({QUANTIZED_OPS[op]}): tensors stay as they are stored"))


# Attributes of Constant that are numbers, not a tensor: field and type.
_CONSTANTS = {"value_float": ("f", 1), "value_floats": ("floats", 1), "value_int": ("i", 7), "value_ints": ("ints", 7)}


def _offsets(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """(start, stop) as (offset, bytes)."""
    return tuple((start, stop - start) for start, stop in spans if stop > start)
