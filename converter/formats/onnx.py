"""ONNX: the tensors of a model in, a model of nothing but tensors out.

Sources: onnx.proto (message and field numbers), docs/ExternalData.md and docs/IR.md of the ONNX project.

In come the initializers and the tensors in nodes' attributes, of the graph, its subgraphs (If, Loop, Scan), the
functions and the training graphs. An initializer keeps its name, a Constant has that of its output, another
attribute's tensor is `<output>.<attribute>`; a name that several graphs use is preceded by the nodes it lies in.
Bytes stay where they are: in the model's file or in the files that external data names, which must lie in its folder.

Out goes a model whose graph has initializers and no node, and says so. Tensors over 1 KiB lie in `<name>.onnx.data`,
at offsets that can be mapped.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter import __version__
from converter.checkpoint import Checkpoint
from converter.dtypes import DTYPES, DType
from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, UsageError, short
from converter.formats._protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, fields, text, varints
from converter.formats.base import (
    MAX_AXES,
    FileLayout,
    Format,
    Layout,
    Slot,
    WriteOptions,
    check_elements,
    check_name,
    child,
)
from converter.mapped import MappedFile
from converter.report import Decoded, Dropped, Event, Note
from converter.tensor import LazyTensor, Rows, TensorInfo

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
    {14: ("metadata_props", _B), 20: ("training_info", _B), 25: ("functions", _B)},
)
_GRAPH = _Schema("a graph", {}, {1: ("node", _B), 5: ("initializer", _B), 15: ("sparse_initializer", _B)})
_FUNCTION = _Schema("a function", {1: ("name", _B)}, {7: ("node", _B), 11: ("attribute", _B)})
_TRAINING = _Schema("training", {1: ("initialization", _B), 2: ("algorithm", _B)}, {})
_NODE = _Schema(
    "a node", {3: ("name", _B), 4: ("op_type", _B), 7: ("domain", _B)}, {2: ("output", _B), 5: ("attribute", _B)}
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


_Span = tuple[int, int]


def _span(field: Field) -> _Span:
    return field.start, field.stop


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Stored:
    """A tensor's shape, its TensorProto.DataType, and where its bytes lie.

    `pieces` are (offset, bytes) in `file`, one after the other; `coded` says that they are varints.
    """

    shape: tuple[int, ...]
    code: int
    file: MappedFile
    pieces: tuple[_Span, ...]
    coded: bool = False


@dataclass(frozen=True)
class _Named:
    """A tensor, its name in its graph, and the nodes that this graph lies in."""

    scope: tuple[str, ...]
    name: str
    stored: _Stored


# First byte of a ModelProto: the key of one of its fields with its wire type.
_FIRST = frozenset((0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72))
_OLDEST_IR, _NEWEST_IR = 3, 64


def sniff(path: Path, start: bytes) -> bool:
    """ONNX has no magic: its first two keys must be a model's; under another name than .onnx, a version first."""
    if not start or start[0] not in _FIRST:
        return False
    if path.suffix.lower() == ".onnx":
        return True
    return len(start) > 2 and start[0] == 0x08 and _OLDEST_IR <= start[1] <= _NEWEST_IR and start[2] in _FIRST - {0x08}


def open_onnx(path: Path) -> Checkpoint:
    """The tensors of a `.onnx` model, with its external data.

    Raises:
        CorruptFile: truncated, contradictory, external data outside the folder.
        MissingPart: a file of external data is not there.
        UnsupportedFeature: sparse tensors, parts of tensors, unknown types, no tensor at all.
    """
    model = _Model(path)
    try:
        model.walk()
        tensors = model.tensors()
    except BaseException:
        model.close()
        raise
    return Checkpoint(
        format="onnx",
        path=path,
        dialect=None,
        tensors=tensors,
        metadata=model.metadata,
        events=tuple(model.events),
        files=(path, *(file.path for file in model.externals.values())),
        closers=(model.close,),
        checks=tuple(model.checks()),
    )


class _Model:
    """One model being walked, by a queue of our own: what is in a file is never recursed on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = MappedFile(path)
        self.externals: dict[Path, MappedFile] = {}
        self.metadata: dict[str, str] = {}
        self.events: list[Event] = []
        self._data = memoryview(self.file.view(0, self.file.size, "the file").data)
        self._found: list[_Named] = []
        self._sums: dict[Path, set[str]] = {}
        self._ops: Counter[str] = Counter()
        self._nodes = 0

    def close(self) -> None:
        for file in (self.file, *self.externals.values()):
            file.close()

    # -- messages

    def _gather(self, span: _Span, schema: _Schema) -> _Message:
        """The fields that `schema` names, by name; what it does not name is skipped.

        Raises:
            CorruptFile: a wrong wire type, or a field that stands twice where one is meant.
        """
        rules, found = schema.rules, _Message()
        for field in fields(self._data, *span, self.path):
            rule = rules.get(field.number)
            if rule is None:
                continue
            name, wires, once = rule
            if field.wire not in wires:
                raise CorruptFile(f"{self.path}: {name} of {schema.name} at offset {field.start} is of another type")
            before = found.setdefault(name, [])
            if before and once:
                raise CorruptFile(f"{self.path}: {name} of {schema.name} at offset {field.start} stands twice")
            before.append(field)
        return found

    def _text(self, found: Sequence[Field], limit: int = MAX_NAME) -> str:
        """A text that may be absent, as Protocol Buffers has it: empty then."""
        return text(self._data, found[0], self.path, limit) if found else ""

    # -- graphs

    def walk(self) -> None:
        """Find every tensor."""
        model = self._gather((0, self.file.size), _MODEL)
        if not model["graph"]:
            raise CorruptFile(f"{self.path}: no graph in it; it is truncated, or no ONNX model")
        for key, value in self._entries(model["metadata_props"], MAX_TEXT):
            self.metadata[key] = value
        queue: deque[tuple[_Schema, _Span, tuple[str, ...]]] = deque([(_GRAPH, _span(model["graph"][0]), ())])
        for field in model["training_info"]:
            training = self._gather(_span(field), _TRAINING)
            for name in ("initialization", "algorithm"):
                queue.extend((_GRAPH, _span(each), (f"training.{name}",)) for each in training[name])
        queue.extend((_FUNCTION, _span(field), ()) for field in model["functions"])
        while queue:
            schema, span, scope = queue.popleft()
            queue.extend((_GRAPH, inner, deeper) for inner, deeper in self._graph(schema, span, scope))
        self._say(self._text(model["producer_name"]), self._text(model["producer_version"]))

    def _graph(self, schema: _Schema, span: _Span, scope: tuple[str, ...]) -> Iterator[tuple[_Span, tuple[str, ...]]]:
        """Take the tensors of one graph or function; yields the graphs in its nodes."""
        graph = self._gather(span, schema)
        before = len(self._found)
        if graph["sparse_initializer"]:
            raise UnsupportedFeature(f"{self.path}: sparse initializers; make them dense before converting")
        for field in graph["initializer"]:
            self._initializer(_span(field), scope)
        if schema is _FUNCTION:
            scope = (self._text(graph["name"]),)
            for field in graph["attribute"]:
                yield from self._attribute(field, "", "defaults", scope)
        for field in graph["node"]:
            yield from self._node(_span(field), scope)
        seen: set[str] = set()
        for each in self._found[before:]:
            if each.name in seen:
                raise CorruptFile(f"{self.path}: two tensors of one graph are called {short(each.name)}")
            seen.add(each.name)

    def _initializer(self, span: _Span, scope: tuple[str, ...]) -> None:
        tensor = self._gather(span, _TENSOR)
        name = self._text(tensor["name"])
        if not name:
            raise CorruptFile(f"{self.path}: an initializer at offset {span[0]} has no name")
        self._add(scope, name, self._tensor(tensor, name))

    def _node(self, span: _Span, scope: tuple[str, ...]) -> Iterator[tuple[_Span, tuple[str, ...]]]:
        node = self._gather(span, _NODE)
        self._nodes += 1
        op = self._text(node["op_type"])
        self._ops[op] += op in QUANTIZED_OPS
        label = self._text(node["output"][:1]) or self._text(node["name"]) or op
        for field in node["attribute"]:
            yield from self._attribute(field, op, label, scope)

    def _attribute(
        self, field: Field, op: str, label: str, scope: tuple[str, ...]
    ) -> Iterator[tuple[_Span, tuple[str, ...]]]:
        """Take the tensors of one attribute; yields its graphs."""
        attribute = self._gather(_span(field), _ATTRIBUTE)
        own = self._text(attribute["name"])
        name = f"{label}.{own}"
        if attribute["sparse_tensor"] or attribute["sparse"]:
            raise UnsupportedFeature(f"{self.path}: {short(name)} is a sparse tensor; make it dense before converting")
        for each in attribute["t"]:
            as_output = op == "Constant" and own == "value"
            self._in_attribute(each, label if as_output else name, scope)
        for index, each in enumerate(attribute["tensors"]):
            self._in_attribute(each, f"{name}.{index}", scope)
        if op == "Constant" and own in _CONSTANTS:
            self._add(scope, label, self._numbers(attribute, own, label))
        inner = [*attribute["g"], *attribute["graphs"]]
        if inner and len(scope) >= MAX_DEPTH:
            raise UnsupportedFeature(f"{self.path}: graphs nested more than {MAX_DEPTH} deep")
        for index, each in enumerate(inner):
            yield _span(each), (*scope, name if attribute["g"] else f"{name}.{index}")

    def _in_attribute(self, field: Field, name: str, scope: tuple[str, ...]) -> None:
        self._add(scope, name, self._tensor(self._gather(_span(field), _TENSOR), name))

    def _numbers(self, attribute: _Message, own: str, name: str) -> _Stored:
        """A Constant that is given as plain numbers: one of them is a scalar, a list of them has one axis."""
        which, code = _CONSTANTS[own]
        pieces = tuple(map(_span, attribute[which]))
        if which in ("f", "i"):
            if not pieces:
                raise CorruptFile(f"{self.path}: the constant {short(name)} has no value")
            return _Stored((), code, self.file, _offsets(pieces), coded=which == "i")
        nbytes = sum(stop - start for start, stop in pieces)
        n = nbytes // 4
        if which == "ints":
            n = sum(int(np.count_nonzero(self._view(piece) < 0x80)) for piece in pieces)
        elif nbytes % 4:
            raise CorruptFile(f"{self.path}: the constant {short(name)} ends within a number")
        return _Stored((n,), code, self.file, _offsets(pieces), coded=which == "ints")

    def _view(self, span: _Span) -> NDArray[np.uint8]:
        return self.file.view(span[0], span[1] - span[0], "numbers")

    def _add(self, scope: tuple[str, ...], name: str, stored: _Stored | None) -> None:
        check_name(self.path, name)
        if stored is not None:
            self._found.append(_Named(scope, name, stored))

    # -- tensors

    def _tensor(self, tensor: _Message, name: str) -> _Stored | None:
        """Where a TensorProto's bytes are, everything checked; None for texts, which no other format holds."""
        what = f"{self.path}: tensor {short(name)}"
        code = tensor["data_type"][0].signed if tensor["data_type"] else 0
        given = [field for field in ("raw_data", "string_data", *_TYPED) if tensor[field]]
        external = bool(tensor["data_location"]) and tensor["data_location"][0].value == 1
        if code == 0:
            raise CorruptFile(f"{what} says no type")
        if tensor["segment"]:
            raise UnsupportedFeature(f"{what} is a part of a larger tensor")
        if external != bool(tensor["external_data"]) or len(given) + external > 1:
            raise CorruptFile(f"{what} says twice, or not clearly, where its values are")
        if code == STRING:
            if external or given not in ([], ["string_data"]):
                raise CorruptFile(f"{what} is of texts and has bytes of another kind")
            self.events.append(Dropped(name, "texts are no numbers"))
            return None
        if code not in TYPES and code not in PACKED:
            raise UnsupportedFeature(f"{what} has type {code}, which is not one of plain numbers")
        shape = self._shape(tensor["dims"], name)
        nbytes = _stored_nbytes(shape, code)
        if external:
            file, offset = self._external(tensor["external_data"], nbytes, name)
            return _Stored(shape, code, file, ((offset, nbytes),))
        typed = "int32_data" if code in PACKED else TYPES[code][1]
        if given and given[0] not in ("raw_data", typed):
            raise CorruptFile(f"{what} has {given[0]}, its type wants {typed} or raw_data")
        pieces = _offsets(tuple(map(_span, tensor[given[0]])) if given else ())
        coded = bool(given) and given[0] in ("int32_data", "int64_data", "uint64_data")
        self._check_size(what, shape, code, sum(size for _, size in pieces), nbytes, coded)
        return _Stored(shape, code, self.file, pieces, coded)

    @staticmethod
    def _check_size(what: str, shape: tuple[int, ...], code: int, have: int, want: int, coded: bool) -> None:
        """Varints are counted when they are read; here it is enough that there can be as many as there must."""
        n = want if code in PACKED else math.prod(shape)
        if not (n <= have <= 10 * n if coded else have == want):
            type_ = PACKED[code].name if code in PACKED else TYPES[code][0]
            raise CorruptFile(f"{what} is {type_}{list(shape[:8])} but has {have} bytes")

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

    def _external(self, found: Sequence[Field], nbytes: int, name: str) -> tuple[MappedFile, int]:
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

    def _file(self, location: str | None) -> MappedFile:
        path = child(self.path.parent, location.removeprefix("./") if location else location, self.path)
        if path not in self.externals:
            if not path.exists():
                raise MissingPart(f"{path}: {self.path.name} has its tensors in this file; download it too")
            self.externals[path] = MappedFile(path)
        return self.externals[path]

    def checks(self) -> Iterator[Callable[[], None]]:
        """For files whose SHA-1 the model tells, what compares it."""
        for path, wanted in self._sums.items():
            yield lambda path=path, wanted=wanted: _check_sum(self.externals[path], wanted)  # type: ignore[misc]

    # -- results

    def tensors(self) -> dict[str, LazyTensor]:
        """Every tensor that was found, under a name of its own."""
        uses = Counter(each.name for each in self._found)
        tensors: dict[str, LazyTensor] = {}
        for each in self._found:
            name = each.name if uses[each.name] == 1 else ".".join((*each.scope, each.name))
            if len(name) > MAX_NAME:
                raise UnsupportedFeature(f"{self.path}: the name {short(name)} is longer than {MAX_NAME} characters")
            check_name(self.path, name)
            if name in tensors:
                raise CorruptFile(f"{self.path}: two tensors are called {short(name)}")
            tensors[name] = _lazy(name, each.stored)
            if each.stored.code in PACKED:
                packed = PACKED[each.stored.code]
                self.events.append(Decoded(name, packed.name, packed.dtype.name))
        if not tensors:
            raise UnsupportedFeature(f"{self.path}: not one tensor of numbers in it, nothing to convert")
        return tensors

    def _say(self, producer: str, version: str) -> None:
        if self._nodes:
            self.events.append(GraphLeft(self._nodes, f"{producer} {version}".strip()))
        for op, count in sorted(self._ops.items()):
            if count:
                self.events.append(Note(f"{count} {op} nodes ({QUANTIZED_OPS[op]}): tensors stay as they are stored"))


# Attributes of Constant that are numbers, not a tensor: field and type.
_CONSTANTS = {"value_float": ("f", 1), "value_floats": ("floats", 1), "value_int": ("i", 7), "value_ints": ("ints", 7)}
_EXTERNAL = {"location", "offset", "length", "checksum"}


def _offsets(spans: tuple[_Span, ...]) -> tuple[_Span, ...]:
    """(start, stop) as (offset, bytes)."""
    return tuple((start, stop - start) for start, stop in spans if stop > start)


def _whole(what: str, value: str) -> int:
    """A whole number of at most 19 digits, as external data has it in texts."""
    if not (value.isascii() and value.isdigit() and len(value) <= 19):
        raise CorruptFile(f"{what} has {short(value)} where a number of bytes belongs")
    return int(value)


def _stored_nbytes(shape: tuple[int, ...], code: int) -> int:
    n = math.prod(shape)
    return -(-n * PACKED[code].bits // 8) if code in PACKED else n * DTYPES[TYPES[code][0]].type_size


def _check_sum(file: MappedFile, wanted: set[str]) -> None:
    digest = hashlib.sha1(usedforsecurity=False)
    for at in range(0, file.size, 1 << 20):
        digest.update(file.view(at, min(1 << 20, file.size - at), "the file").data)
    if wanted != {digest.hexdigest()}:
        raise CorruptFile(f"{file.path}: its SHA-1 is not the one that the model tells; download it again")


def _lazy(name: str, stored: _Stored) -> LazyTensor:
    packed = PACKED.get(stored.code)
    info = TensorInfo(name, stored.shape, packed.dtype if packed else DTYPES[TYPES[stored.code][0]])
    what = f"tensor {short(name)}"
    whole = stored.coded or len(stored.pieces) > 1

    def numbers(low: int, high: int) -> Rows:
        """Bytes [low, high) of what raw_data would be."""
        if len(stored.pieces) == 1 and not whole:
            return stored.file.view(stored.pieces[0][0] + low, high - low, what)
        pieces = [stored.file.view(*piece, what) for piece in stored.pieces] or [np.empty(0, np.uint8)]
        data = np.concatenate(pieces)
        return (_decoded(data, stored, what) if stored.coded else data)[low:high]

    def read(start: int, stop: int) -> Rows:
        if packed is None:
            data = numbers(start * info.row_nbytes, stop * info.row_nbytes)
        else:
            data = _unpacked(packed, numbers, start * info.row, stop * info.row)
        return data.reshape(stop - start, info.row_nbytes)

    offset = stored.pieces[0][0] if stored.pieces else 0
    return LazyTensor(info, read, f"{stored.file.path}@{offset}", indivisible=whole)


def _decoded(data: NDArray[np.uint8], stored: _Stored, what: str) -> Rows:
    """Varints as the bytes of the type they are values (or bit patterns) of.

    Raises:
        CorruptFile: too many or too few, or a value that the type does not hold.
    """
    path = stored.file.path
    values = varints(data, path)
    storage = _storage(stored.code)
    wanted = _stored_nbytes(stored.shape, stored.code) // storage.itemsize
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


# ------------------------------------------------------------------------------------------------- writing

PRODUCER = "model-converter"
LABEL = "Tensors only: initializers without a graph, nothing to run."
# Larger tensors go to the data file, at offsets that are whole pages.
INLINE_NBYTES = 1024
ALIGNMENT = 4096
DATA_SUFFIX = ".data"
MAX_MESSAGE = (1 << 31) - 1  # what Protocol Buffers' own readers take
# (IR version, opset) that has a type, the last one for all others; onnxruntime reads the older ones longest.
_VERSIONS = {
    "F8_E8M0": (12, 24), "F8_E4M3": (9, 19), "F8_E4M3FNUZ": (9, 19), "F8_E5M2": (9, 19), "F8_E5M2FNUZ": (9, 19),
}  # fmt: skip
_OLDEST = (8, 17)


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """The model's file, with small tensors in it, and `<name>.onnx.data` with the others, where there are any.

    Raises:
        UnsupportedFeature: a type that ONNX cannot hold, a split, more names than a message can hold, a source
            that is ONNX with a graph: it would come out as a model that no longer runs.
        UsageError: a name that external data cannot have.
    """
    if options.split_max_size is not None or options.split_max_tensors is not None:
        raise UnsupportedFeature(f"{target}: splitting is for GGUF output only")
    for event in checkpoint.events:
        if isinstance(event, GraphLeft):
            raise UnsupportedFeature(
                f"{target}: from ONNX to ONNX the graph of {event.nodes} nodes would be lost, which is not done\n"
                "convert to another format, such as .safetensors, for the tensors alone"
            )
    data = target.with_name(target.name + DATA_SUFFIX)
    if any(character in data.name for character in "\\:\r\n"):
        raise UsageError(f"{target}: a model cannot name its data file with a colon, a backslash or a line break in it")
    graph = bytearray(_bytes(2, b"tensors"))
    inside: list[Slot] = []
    outside: list[Slot] = []
    end = 0
    for tensor in checkpoint.tensors.values():
        message = _tensor_head(target, tensor)
        nbytes = tensor.info.nbytes
        if nbytes > INLINE_NBYTES:
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            outside.append(Slot(offset, tensor))
            end = offset + nbytes
            entries = {"location": data.name, "offset": str(offset), "length": str(nbytes)}
            message += b"".join(_bytes(13, _entry(*entry)) for entry in entries.items()) + _number(14, 1)
        else:
            message += _bytes(9, bytes(nbytes))
        graph += _bytes(5, message)
        if nbytes <= INLINE_NBYTES:
            inside.append(Slot(len(graph) - nbytes, tensor))
    graph += _bytes(10, LABEL.encode())
    head, tail = _model_ends(checkpoint)
    head += _key(7, BYTES) + _varint(len(graph))
    model = bytes(head + graph + tail)
    if len(model) > MAX_MESSAGE:
        raise UnsupportedFeature(f"{target}: names and small tensors need {len(model)} bytes, ONNX ends at 2 GiB")
    slots = tuple(Slot(len(head) + slot.offset, slot.tensor) for slot in inside)
    files = (FileLayout(target, model, slots, len(model)),)
    return Layout((*files, FileLayout(data, b"", tuple(outside), end)) if outside else files)


def _tensor_head(target: Path, tensor: LazyTensor) -> bytes:
    info = tensor.info
    if info.dtype.name not in CODES:
        raise UnsupportedFeature(
            f"{target}: tensor {short(tensor.name)} is {info.dtype}, which ONNX cannot hold; "
            "pass --dtype f16, bf16 or f32 to decode it"
        )
    dims = b"".join(_number(1, size) for size in info.shape)
    return dims + _number(2, CODES[info.dtype.name]) + _bytes(8, info.name.encode())


def _model_ends(checkpoint: Checkpoint) -> tuple[bytes, bytes]:
    """What stands before the graph, and behind it."""
    ir, opset = max((_VERSIONS.get(t.info.dtype.name, _OLDEST) for t in checkpoint.tensors.values()), default=_OLDEST)
    head = _number(1, ir) + _bytes(2, PRODUCER.encode()) + _bytes(3, __version__.encode()) + _bytes(6, LABEL.encode())
    texts = (_bytes(14, _entry(key, value)) for key, value in checkpoint.metadata.items())
    return head, _bytes(8, _bytes(1, b"") + _number(2, opset)) + b"".join(texts)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _number(number: int, value: int) -> bytes:
    return _key(number, VARINT) + _varint(value)


def _bytes(number: int, data: bytes | bytearray) -> bytes:
    return _key(number, BYTES) + _varint(len(data)) + data


def _entry(key: str, value: str) -> bytes:
    return _bytes(1, key.encode()) + _bytes(2, value.encode())


FORMATS = (
    Format(
        name="onnx",
        extensions=(".onnx",),
        dialect=None,
        description="ONNX model's tensors with external data in, a model of initializers alone out",
        dtypes=frozenset(CODES),
        sniff=sniff,
        open=open_onnx,
        layout=layout,
    ),
)
