"""TFLite: the constants of a model, with their quantization; no operator is looked into.

Source: tensorflow/compiler/mlir/lite/schema/schema.fbs (version 3) and the FlatBuffers internals page. Every offset is
compared with the file before it is followed, for all tables of the schema but operators' options, so that a
truncated file is found out. Offsets may point at the same bytes again and again: what they lead to is budgeted.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.events import Dropped, Event, Note
from converter.formats.base import MAX_AXES, Format, check_elements, check_name
from converter.storage.files import Bytes, expands_too_far, open_bytes
from converter.storage.windows import Windows
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

IDENTIFIER = b"TFL3"
VERSION = 3

# Tables of the schema: of each field its name and its type. A number is the width of a scalar; ("vector", number or
# type) a vector; "string" a text; another name a table. None is a field that is not looked into.
_Kind = int | str | tuple[str, int | str] | None
SCHEMA: dict[str, tuple[tuple[str, _Kind], ...]] = {
    "Model": (
        ("version", 4),
        ("operator_codes", ("vector", "OperatorCode")),
        ("subgraphs", ("vector", "SubGraph")),
        ("description", "string"),
        ("buffers", ("vector", "Buffer")),
        ("metadata_buffer", ("vector", 4)),
        ("metadata", ("vector", "Metadata")),
        ("signature_defs", ("vector", "SignatureDef")),
    ),
    "OperatorCode": (("deprecated_builtin_code", 1), ("custom_code", "string"), ("version", 4), ("builtin_code", 4)),
    "SubGraph": (
        ("tensors", ("vector", "Tensor")),
        ("inputs", ("vector", 4)),
        ("outputs", ("vector", 4)),
        ("operators", ("vector", "Operator")),
        ("name", "string"),
    ),
    "Tensor": (
        ("shape", ("vector", 4)),
        ("type", 1),
        ("buffer", 4),
        ("name", "string"),
        ("quantization", "Quantization"),
        ("is_variable", 1),
        ("sparsity", None),
        ("shape_signature", ("vector", 4)),
        ("has_rank", 1),
        ("variant_tensors", None),
    ),
    "Quantization": (
        ("min", ("vector", 4)),
        ("max", ("vector", 4)),
        ("scale", ("vector", 4)),
        ("zero_point", ("vector", 8)),
        ("details_type", 1),
        ("details", None),
        ("quantized_dimension", 4),
    ),
    "Operator": (
        ("opcode_index", 4),
        ("inputs", ("vector", 4)),
        ("outputs", ("vector", 4)),
        ("builtin_options_type", 1),
        ("builtin_options", None),
        ("custom_options", ("vector", 1)),
        ("custom_options_format", 1),
        ("mutating_variable_inputs", ("vector", 1)),
        ("intermediates", ("vector", 4)),
        ("large_custom_options_offset", 8),
        ("large_custom_options_size", 8),
    ),
    "Buffer": (("data", ("vector", 1)), ("offset", 8), ("size", 8)),
    "Metadata": (("name", "string"), ("buffer", 4)),
    "SignatureDef": (
        ("inputs", ("vector", "TensorMap")),
        ("outputs", ("vector", "TensorMap")),
        ("signature_key", "string"),
        ("deprecated_tag", "string"),
        ("subgraph_index", 4),
    ),
    "TensorMap": (("name", "string"), ("tensor_index", 4)),
}
TYPES: dict[int, DType] = {
    code: DTYPES[name]
    for code, name in (
        (0, "F32"),
        (1, "F16"),
        (2, "I32"),
        (3, "U8"),
        (4, "I64"),
        (6, "BOOL"),
        (7, "I16"),
        (8, "C64"),
        (9, "I8"),
        (10, "F64"),
        (11, "C128"),
        (12, "U64"),
        (15, "U32"),
        (16, "U16"),
        (18, "BF16"),
    )
}
INT4 = 17  # two to a byte, the lower one first; comes out as I8
NO_NUMBERS = {5: "texts", 13: "a resource", 14: "a variant"}
QUANTIZATION = "tflite.quantization:"  # the metadata key of a tensor's scales, before its name
_MAX_NAME = 1 << 16
_RATIO, _ROOM = 16, 1 << 20  # how much more than the file may be looked at
_PLACEHOLDER = 1  # buffers whose offset is this or 0 have their data within


@dataclass(frozen=True)
class Vector:
    """Where a vector's elements are and how many there are."""

    start: int
    count: int


class Reader:
    """A flatbuffer; what leaves the file, or leads to far more than the file has, is refused.

    Raises:
        CorruptFile: from every method.
    """

    def __init__(self, mapped: Bytes) -> None:
        self.path, self.size, self.data = mapped.path, mapped.size, Windows(mapped)
        self._budget = _ROOM + _RATIO * self.size
        self._fields: dict[tuple[str, int], dict[str, int]] = {}

    def number(self, position: int, code: str) -> int:
        """A scalar, `code` as in `struct`."""
        self._need(position, struct.calcsize(code), "a number")
        buffer, start = self.data.near(position)
        value: int = struct.unpack_from(code, buffer, position - start)[0]
        return value

    def _need(self, position: int, size: int, what: str) -> None:
        if position < 0 or position + size > self.size:
            raise CorruptFile(
                f"{self.path}: {what} at offset {position} needs {size} bytes, the file has {self.size}\n"
                "the file is truncated or damaged; download it again"
            )

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise CorruptFile(f"{self.path}: its offsets lead to the same bytes over and over")

    def follow(self, position: int) -> int:
        """Where the offset at `position` leads."""
        offset = self.number(position, "<I")
        if offset == 0:
            raise CorruptFile(f"{self.path}: the offset at {position} is 0")
        self._need(position + offset, 4, "what an offset leads to")
        return position + offset

    def vector(self, position: int, width: int) -> Vector:
        """The vector that the offset at `position` leads to."""
        start = self.follow(position)
        count = self.number(start, "<I")
        self._need(start + 4, count * width, f"a vector of {count}")
        return Vector(start + 4, count)

    def text(self, position: int) -> str:
        found = self.vector(position, 1)
        self._spend(found.count)
        if found.count > _MAX_NAME:
            raise CorruptFile(f"{self.path}: the text at offset {found.start} is over {_MAX_NAME} bytes")
        try:
            return str(self.data.at(found.start, found.count, "a text"), "utf-8")
        except UnicodeDecodeError:
            raise CorruptFile(f"{self.path}: the text at offset {found.start} is not UTF-8") from None

    def array(self, position: int, dtype: str) -> NDArray[np.generic]:
        """A vector of numbers, copied."""
        width = np.dtype(dtype).itemsize
        found = self.vector(position, width)
        self._spend(8 * found.count)
        return np.frombuffer(self.data.at(found.start, found.count * width, "numbers"), dtype).copy()

    def table(self, position: int, name: str) -> dict[str, int]:
        """The fields a table has and where they are; a table that is met again is not looked through again."""
        known = self._fields.get((name, position))
        if known is not None:
            return known
        vtable = position - self.number(position, "<i")
        length, extent = self.number(vtable, "<H"), self.number(vtable + 2, "<H")
        self._spend(4 + length)
        self._need(vtable, length, "a vtable")
        self._need(position, extent, f"a {name}")
        if length < 4 or length % 2 or extent < 4:
            raise CorruptFile(f"{self.path}: the {name} at offset {position} has a vtable of {length} bytes")
        found = {}
        for index, (field, kind) in enumerate(SCHEMA[name][: (length - 4) // 2]):
            offset = self.number(vtable + 4 + 2 * index, "<H")
            width = kind if isinstance(kind, int) else 4
            if offset and (offset < 4 or offset + width > extent):
                raise CorruptFile(f"{self.path}: {field} of the {name} at offset {position} is outside of it")
            if offset:
                found[field] = position + offset
        self._fields[name, position] = found
        return found

    def tables(self, position: int, name: str) -> Iterator[int]:
        """Where the tables of a vector of them are."""
        found = self.vector(position, 4)
        self._spend(4 * found.count)
        for index in range(found.count):
            yield self.follow(found.start + 4 * index)

    def check(self) -> int:
        """Look at every table of the schema once; where the root is."""
        root = self.follow(0)
        waiting, seen = [("Model", root)], {("Model", root)}
        while waiting:
            name, position = waiting.pop()
            found = self.table(position, name)
            for field, kind in SCHEMA[name]:
                if field in found:
                    fresh = [each for each in self._under(found[field], kind) if each not in seen]
                    seen.update(fresh)
                    waiting += fresh
        return root

    def _under(self, position: int, kind: _Kind) -> list[tuple[str, int]]:
        if kind == "string":
            self.text(position)
        elif isinstance(kind, str):
            return [(kind, self.follow(position))]
        elif isinstance(kind, tuple) and isinstance(kind[1], int):
            self.vector(position, kind[1])
        elif isinstance(kind, tuple):
            name = str(kind[1])
            return list(dict.fromkeys((name, each) for each in self.tables(position, name)))
        return []


def sniff(path: Path, start: bytes) -> bool:
    """The file identifier."""
    return start[4:8] == IDENTIFIER


def open_tflite(path: Path) -> Checkpoint:
    """The tensors of all subgraphs that have data; what has none is computed when the model runs.

    Names that stand twice get the subgraph's number in front, then a number behind. Scales and zero points are
    metadata: a JSON object per tensor under "tflite.quantization:NAME".

    Raises:
        CorruptFile, UnsupportedFeature, OutputError
    """
    mapped = open_bytes(path)
    try:
        reader = Reader(mapped)
        if mapped.size < 8 or reader.data.at(4, 4, "the identifier") != IDENTIFIER:
            raise CorruptFile(f"{path}: not a TFLite file")
        model = reader.table(reader.check(), "Model")
        version = reader.number(model["version"], "<I") if "version" in model else 0
        if version != VERSION:
            raise UnsupportedFeature(f"{path}: TFLite version {version}, version {VERSION} can be read")
        tensors, metadata, events = _tensors(mapped, reader, model)
    except BaseException:
        mapped.close()
        raise
    return Checkpoint(
        format="tflite",
        path=path,
        dialect=None,
        tensors=tensors,
        metadata=metadata,
        events=(Note("the graph is not converted, only its constants"), *events),
        files=(path,),
        closers=(mapped.close,),
    )


def _tensors(
    mapped: Bytes, reader: Reader, model: dict[str, int]
) -> tuple[dict[str, LazyTensor], dict[str, str], list[Event]]:
    if "subgraphs" not in model or "buffers" not in model:
        raise CorruptFile(f"{mapped.path}: no {'buffers' if 'subgraphs' in model else 'subgraphs'} in it")
    buffers = [_buffer(reader, position) for position in reader.tables(model["buffers"], "Buffer")]
    subgraphs = list(reader.tables(model["subgraphs"], "SubGraph"))
    if not subgraphs:
        raise CorruptFile(f"{mapped.path}: no subgraphs in it")
    found: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    events: list[Event] = []
    declared = 0
    for number, position in enumerate(subgraphs):
        subgraph = reader.table(position, "SubGraph")
        for place in reader.tables(subgraph["tensors"], "Tensor") if "tensors" in subgraph else ():
            fields = reader.table(place, "Tensor")
            data = _data(reader, fields, buffers)
            if data is None:
                continue
            name = _unique(_tensor_name(reader, fields), number, found)
            tensor = _tensor(mapped, reader, fields, name, data)
            if tensor is None:
                kind = NO_NUMBERS[reader.number(fields["type"], "<b")]
                events.append(Dropped(name, f"{kind}, not numbers"))
                continue
            declared += tensor.info.nbytes
            if expands_too_far(declared, mapped.size):
                raise CorruptFile(f"{mapped.path}: its tensors are far larger than the file")
            found[name] = tensor
            if (quantization := _quantization(reader, fields, name)) is not None:
                metadata[QUANTIZATION + name] = quantization
    return found, metadata, events


def _buffer(reader: Reader, position: int) -> Vector | None:
    """Where a buffer's bytes are; None for an empty one."""
    fields = reader.table(position, "Buffer")
    inline = reader.vector(fields["data"], 1) if "data" in fields else Vector(0, 0)
    offset = reader.number(fields["offset"], "<Q") if "offset" in fields else 0
    size = reader.number(fields["size"], "<Q") if "size" in fields else 0
    if offset > _PLACEHOLDER and size:
        if inline.count or offset + size > reader.size:
            raise CorruptFile(
                f"{reader.path}: a buffer of {size} bytes at offset {offset} is not in the file of {reader.size}, "
                "or has bytes elsewhere too"
            )
        return Vector(offset, size)
    return inline if inline.count else None


def _data(reader: Reader, fields: dict[str, int], buffers: list[Vector | None]) -> Vector | None:
    index = reader.number(fields["buffer"], "<I") if "buffer" in fields else 0
    if index >= max(1, len(buffers)):
        raise CorruptFile(f"{reader.path}: a tensor is in buffer {index} of {len(buffers)}")
    return buffers[index] if buffers else None


def _tensor_name(reader: Reader, fields: dict[str, int]) -> str:
    name = reader.text(fields["name"]) if "name" in fields else ""
    check_name(reader.path, name)
    return name or "tensor"


def _unique(name: str, subgraph: int, taken: dict[str, LazyTensor]) -> str:
    if name not in taken:
        return name
    base = f"subgraph{subgraph}/{name}" if subgraph else name
    count, name = 1, base
    while name in taken:
        count += 1
        name = f"{base}:{count}"
    return name


def _tensor(mapped: Bytes, reader: Reader, fields: dict[str, int], name: str, data: Vector) -> LazyTensor | None:
    what = f"{mapped.path}: tensor {short(name)}"
    sizes = reader.array(fields["shape"], "<i4").tolist() if "shape" in fields else []
    if len(sizes) > MAX_AXES or any(size < 0 for size in sizes):
        raise CorruptFile(f"{what} has shape {sizes[:8]}")
    check_elements(mapped.path, name, sizes)
    code = reader.number(fields["type"], "<b") if "type" in fields else 0
    if code in NO_NUMBERS:
        return None
    if code < 0 or (code not in TYPES and code != INT4):
        raise UnsupportedFeature(f"{what} has type {code}, which cannot be read")
    if "sparsity" in fields:
        raise UnsupportedFeature(f"{what} is sparse, which cannot be read")
    info = TensorInfo(name, tuple(sizes), TYPES.get(code, DTYPES["I8"]))
    needed = -(-info.n_elements // 2) if code == INT4 else info.nbytes
    if needed != data.count:
        raise CorruptFile(
            f"{what} of {sizes} {'INT4' if code == INT4 else info.dtype} needs {needed} bytes, "
            f"its buffer has {data.count}"
        )
    return (_nibbles if code == INT4 else _stored)(mapped, info, data.start)


def _stored(mapped: Bytes, info: TensorInfo, offset: int) -> LazyTensor:
    row_nbytes = info.row_nbytes

    def read(first: int, last: int) -> Rows:
        data = mapped.view(offset + first * row_nbytes, (last - first) * row_nbytes, f"tensor {short(info.name)}")
        return data.reshape(last - first, row_nbytes)

    return LazyTensor(info, read, f"{mapped.path}@{offset}")


def _nibbles(mapped: Bytes, info: TensorInfo, offset: int) -> LazyTensor:
    """INT4 as I8: elements [first, last) begin and end anywhere in a byte."""

    def read(first: int, last: int) -> Rows:
        begin, end = first * info.row, last * info.row
        packed = mapped.view(offset + begin // 2, -(-end // 2) - begin // 2, f"tensor {short(info.name)}").view(np.int8)
        both = np.stack((np.left_shift(packed, 4) >> 4, packed >> 4), axis=1).reshape(-1)
        numbers = both[begin % 2 : begin % 2 + end - begin]
        return np.ascontiguousarray(numbers).view(np.uint8).reshape(last - first, info.row)

    return LazyTensor(info, read, f"{mapped.path}@{offset}", work_nbytes=4 * info.row)


def _quantization(reader: Reader, fields: dict[str, int], name: str) -> str | None:
    """Scales and zero points as JSON: real value = scale * (stored - zero_point), along `quantized_dimension`."""
    if "quantization" not in fields:
        return None
    found = reader.table(reader.follow(fields["quantization"]), "Quantization")
    numbers = {
        key: _numbers(reader.array(found[key], dtype), reader.path, name)
        for key, dtype in (("scale", "<f4"), ("zero_point", "<i8"), ("min", "<f4"), ("max", "<f4"))
        if key in found
    }
    value: dict[str, object] = {key: given for key, given in numbers.items() if given}
    details = reader.number(found["details_type"], "<B") if "details_type" in found else 0
    if not value and not details:
        return None
    place = found.get("quantized_dimension")
    value["quantized_dimension"] = 0 if place is None else reader.number(place, "<i")
    if details:
        value["details_type"] = details  # blockwise or custom: not in these numbers
    if "type" in fields and reader.number(fields["type"], "<b") == INT4:
        value["stored"] = "int4"
    return json.dumps(value, separators=(",", ":"))


def _numbers(values: NDArray[np.generic], path: Path, name: str) -> list[float | int]:
    numbers: list[float | int] = values.tolist()
    if not all(map(math.isfinite, numbers)):
        raise CorruptFile(f"{path}: tensor {short(name)} has scales or bounds that are not finite")
    return numbers


FORMATS = (
    Format(
        name="tflite",
        extensions=(".tflite",),
        dialect=None,
        description="TFLite model: constants, with scales and zero points as metadata",
        dtypes=frozenset(dtype.name for dtype in TYPES.values()),
        sniff=sniff,
        open=open_tflite,
    ),
)
