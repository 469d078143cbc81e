"""What TensorFlow's checkpoints and graphs share: types, shapes, tensor protos, slices.

Source: tensorflow/core/framework/{types,tensor,tensor_shape,tensor_slice}.proto.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.formats.base import MAX_AXES, check_elements
from converter.storage.files import Bytes
from converter.storage.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    MAX_VARINT,
    VARINT,
    fields,
    varints,
)
from converter.storage.windows import Windows
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

TYPES: dict[int, DType] = {
    code: DTYPES[name]
    for code, name in (
        (1, "F32"),
        (2, "F64"),
        (3, "I32"),
        (4, "U8"),
        (5, "I16"),
        (6, "I8"),
        (8, "C64"),
        (9, "I64"),
        (10, "BOOL"),
        (11, "I8"),
        (12, "U8"),
        (13, "I32"),
        (14, "BF16"),
        (15, "I16"),
        (16, "U16"),
        (17, "U16"),
        (18, "C128"),
        (19, "F16"),
        (22, "U32"),
        (23, "U64"),
        (24, "F8_E5M2"),
        (25, "F8_E4M3"),
        (26, "F8_E4M3FNUZ"),
        (28, "F8_E5M2FNUZ"),
    )
}
NO_NUMBERS = {7: "texts", 20: "a resource", 21: "a variant"}
_REFERENCE = 100  # a type plus this is a reference to it
_INT_VAL = ("I32", "U8", "I16", "I8", "U16")
# Where a TensorProto has the values of a type, and how many bytes one number takes there (0: a varint).
_TYPED: dict[str, tuple[int, int]] = {
    "F32": (5, 4),
    "F64": (6, 8),
    "C64": (9, 4),
    "C128": (12, 8),
    "I64": (10, 0),
    "BOOL": (11, 0),
    "F16": (13, 0),
    "BF16": (13, 0),
    "U32": (16, 0),
    "U64": (17, 0),
    **dict.fromkeys(_INT_VAL, (7, 0)),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), (18, 1)),
}
_CONTENT = 4
_VALUES = frozenset((5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18))
_MAX_PIECES = 1 << 20

Slice = tuple[tuple[int, int | None], ...]  # of each axis: where it starts, how long it is (None: all of it)


def tensor_type(code: int, path: Path, name: str) -> DType | None:
    """The encoding of a DataType; None for one that has no numbers (texts, resources).

    Raises:
        CorruptFile, UnsupportedFeature: no type at all; one that nothing here can hold.
    """
    code = code - _REFERENCE if code > _REFERENCE else code
    if code in NO_NUMBERS:
        return None
    if code in TYPES:
        return TYPES[code]
    if code <= 0:
        raise CorruptFile(f"{path}: tensor {short(name)} has no type ({code})")
    raise UnsupportedFeature(f"{path}: tensor {short(name)} has TensorFlow's type {code}, which cannot be read")


def tensor_shape(data: Windows, start: int, stop: int, name: str) -> tuple[int, ...]:
    """A TensorShapeProto, every size known.

    Raises:
        CorruptFile: unknown or negative sizes, too many axes or elements.
    """
    path, shape = data.path, list[int]()
    for field in fields(data, start, stop):
        if field.number == 2 and field.wire == BYTES:
            sizes = [f.signed for f in fields(data, field.start, field.stop) if (f.number, f.wire) == (1, VARINT)]
            shape.append(sizes[-1] if sizes else 0)
        elif field.number == 3 and field.value:
            raise CorruptFile(f"{path}: tensor {short(name)} has no shape")
        if len(shape) > MAX_AXES or (shape and shape[-1] < 0):
            raise CorruptFile(f"{path}: tensor {short(name)} has a negative size or more than {MAX_AXES} axes")
    check_elements(path, name, shape)
    return tuple(shape)


def tensor_slice(data: Windows, start: int, stop: int) -> Slice:
    """A TensorSliceProto.

    Raises:
        CorruptFile: negative numbers, too many axes.
    """
    extents: list[tuple[int, int | None]] = []
    for field in fields(data, start, stop):
        if field.number != 1 or field.wire != BYTES:
            continue
        begin, length = 0, None
        for part in fields(data, field.start, field.stop):
            if part.number == 1 and part.wire == VARINT:
                begin = part.signed
            elif part.number == 2 and part.wire == VARINT:
                length = part.signed
        if begin < 0 or (length is not None and length < 0) or len(extents) == MAX_AXES:
            raise CorruptFile(f"{data.path}: a slice at offset {field.start} makes no sense")
        extents.append((begin, length))
    return tuple(extents)


@dataclass(frozen=True)
class Proto:
    """A TensorProto: where its values lie; `type` and `shape` are 0 and None where it does not say."""

    type: int
    shape: tuple[int, ...] | None
    content: tuple[int, int] | None
    values: dict[int, list[tuple[int, int, int]]]  # field number -> (wire type, start, stop)


def tensor_proto(data: Windows, start: int, stop: int, name: str) -> Proto:
    """Look through a TensorProto.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    kind, shape, content = 0, None, None
    values: dict[int, list[tuple[int, int, int]]] = {}
    pieces = 0
    for field in fields(data, start, stop):
        if field.number == 1 and field.wire == VARINT:
            kind = field.signed
        elif field.number == 2 and field.wire == BYTES:
            shape = tensor_shape(data, field.start, field.stop, name)
        elif field.number == _CONTENT and field.wire == BYTES:
            content = (field.start, field.stop)
        elif field.number in _VALUES:
            pieces += 1
            values.setdefault(field.number, []).append((field.wire, field.start, field.stop))
            if pieces > _MAX_PIECES:
                raise UnsupportedFeature(
                    f"{data.path}: tensor {short(name)} has its values in over {_MAX_PIECES} pieces"
                )
    return Proto(kind, shape, content if content and content[0] < content[1] else None, values)


def proto_tensor(mapped: Bytes, proto: Proto, info: TensorInfo) -> LazyTensor:
    """The tensor whose values a TensorProto has: as raw content, or as numbers of which the last one is repeated.

    Raises:
        CorruptFile: more or other values than the type and the shape can have.
    """
    path, what = mapped.path, f"tensor {short(info.name)}"
    number, width = _TYPED[info.dtype.name]
    others = proto.values.keys() - {number}
    if others or (proto.content and proto.values):
        raise CorruptFile(f"{path}: {what} has values of several types")
    if proto.content:
        if proto.content[1] - proto.content[0] != info.nbytes:
            raise CorruptFile(
                f"{path}: {what} of {list(info.shape)} {info.dtype} needs {info.nbytes} bytes, "
                f"it has {proto.content[1] - proto.content[0]}"
            )
        return stored(mapped, proto.content[0], info)
    pieces = proto.values.get(number, [])
    wires = {4: FIXED32, 8: FIXED64, 0: VARINT, 1: BYTES}
    if any(wire not in (BYTES, wires[width]) for wire, _, _ in pieces):
        raise CorruptFile(f"{path}: {what} has values of a width that is not its type's")
    nbytes = sum(stop - start for _, start, stop in pieces)
    if width:
        most, odd = divmod(nbytes, info.dtype.type_size)
        if odd or any((stop - start) % width for _, start, stop in pieces):
            raise CorruptFile(f"{path}: {what} has {nbytes} bytes of values, {info.dtype} takes {info.dtype.type_size}")
        _check_count(most, info, f"{path}: {what}")
    else:  # varints are counted when they are read; here it is enough that there can be as few as there must
        most = nbytes
        _check_count(-(-nbytes // MAX_VARINT), info, f"{path}: {what}")
    if width and len(pieces) == 1 and most == info.n_elements:
        return stored(mapped, pieces[0][1], info)

    def values() -> NDArray[np.uint8]:
        parts = [mapped.view(start, stop - start, what) for _, start, stop in pieces]
        data = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        data = data if width else _narrowed(varints(data, path), info.dtype, path, what)
        given = data.reshape(-1, info.dtype.type_size)
        _check_count(len(given), info, f"{path}: {what}")
        return given if len(given) else np.zeros((1, info.dtype.type_size), np.uint8)

    return _repeated(values, most > 1, info, f"{path}: {what}")


def _check_count(count: int, info: TensorInfo, what: str) -> None:
    if count > info.n_elements:
        raise CorruptFile(f"{what} has {count} values, its shape {list(info.shape)} has {info.n_elements}")


def _narrowed(numbers: NDArray[np.uint64], dtype: DType, path: Path, what: str) -> NDArray[np.uint8]:
    """Varints as bytes of their type; halves and bfloat16 come as their bits."""
    assert dtype.numpy is not None  # every type of TensorFlow is dense
    target = np.dtype("<u2") if dtype.name in ("F16", "BF16") else dtype.numpy
    narrow = numbers.view(np.int64).astype(target)
    if bool((narrow.astype(np.int64) != numbers.view(np.int64)).any()):
        raise CorruptFile(f"{path}: {what} has values that are no {dtype}")
    return narrow.view(np.uint8)


def _repeated(values: Callable[[], NDArray[np.uint8]], several: bool, info: TensorInfo, source: str) -> LazyTensor:
    """Values that may be fewer than the elements, `several` or one: the last one fills the rest."""

    def read(first: int, last: int) -> Rows:
        given = values()
        index = np.minimum(np.arange(first * info.row, last * info.row), len(given) - 1)
        return np.ascontiguousarray(given[index]).reshape(last - first, info.row_nbytes)

    grain = info.n_rows if several else 1
    return LazyTensor(info, read, source, work_nbytes=16 * info.row + info.row_nbytes, grain=grain)


def stored(mapped: Bytes, offset: int, info: TensorInfo) -> LazyTensor:
    """A tensor whose bytes stand in a file as they are."""
    row_nbytes = info.row_nbytes

    def read(first: int, last: int) -> Rows:
        data = mapped.view(offset + first * row_nbytes, (last - first) * row_nbytes, f"tensor {short(info.name)}")
        return data.reshape(last - first, row_nbytes)

    return LazyTensor(info, read, f"{mapped.path}@{offset}")


# ------------------------------------------------------------------------------------------------- slices

_MAX_BOXES = 1024


@dataclass(frozen=True)
class Box:
    """A part of a tensor: where it starts on each axis and how long it is."""

    start: tuple[int, ...]
    shape: tuple[int, ...]


def box(part: Slice, shape: Sequence[int], path: Path, name: str) -> Box:
    """A slice of a tensor of `shape`, with all its lengths.

    Raises:
        CorruptFile: it leaves the tensor.
    """
    lengths = tuple(size if length is None else length for (_, length), size in zip(part, shape, strict=False))
    inside = all(begin + length <= size for (begin, _), length, size in zip(part, lengths, shape, strict=False))
    if len(part) != len(shape) or not inside:
        raise CorruptFile(f"{path}: a slice of tensor {short(name)} leaves its shape {list(shape)}")
    return Box(tuple(begin for begin, _ in part), lengths)


def assemble(path: Path, info: TensorInfo, parts: list[tuple[Box, LazyTensor]]) -> LazyTensor:
    """A tensor from the parts it was saved in. Parts along the first axis are read row by row, others whole.

    Raises:
        CorruptFile, UnsupportedFeature: the parts overlap or leave holes; too many of them.
    """
    whole = Box((0,) * len(info.shape), info.shape)
    if len(parts) == 1 and parts[0][0] == whole:
        return parts[0][1].derived(info)
    if sum(math.prod(part.shape) for part, _ in parts) != info.n_elements:
        raise CorruptFile(f"{path}: the slices of tensor {short(info.name)} do not make it whole")
    parts = sorted((each for each in parts if math.prod(each[0].shape)), key=lambda each: each[0].start)
    if len(info.shape) > 1 and all(part.shape[1:] == info.shape[1:] for part, _ in parts):
        return _stacked(path, info, parts)
    if len(parts) > _MAX_BOXES:
        raise UnsupportedFeature(f"{path}: tensor {short(info.name)} is in more than {_MAX_BOXES} slices")
    for index, (one, _) in enumerate(parts):
        for two, _ in parts[:index]:
            if _overlap(one, two):
                raise CorruptFile(f"{path}: two slices of tensor {short(info.name)} overlap")

    def read(first: int, last: int) -> Rows:
        out = np.zeros((*info.shape, info.dtype.type_size), np.uint8)
        for part, tensor in parts:
            where = tuple(slice(begin, begin + size) for begin, size in zip(part.start, part.shape, strict=True))
            out[where] = tensor.rows(0, tensor.info.n_rows).reshape(*part.shape, info.dtype.type_size)
        return out.reshape(info.n_rows, info.row_nbytes)[first:last]

    return LazyTensor(info, read, parts[0][1].source, grain=info.n_rows)


def _overlap(one: Box, two: Box) -> bool:
    axes = zip(one.start, one.shape, two.start, two.shape, strict=True)
    return all(a < b + n and b < a + m for a, m, b, n in axes)


def _stacked(path: Path, info: TensorInfo, parts: list[tuple[Box, LazyTensor]]) -> LazyTensor:
    end = 0
    for part, _ in parts:
        if part.start[0] != end:
            raise CorruptFile(f"{path}: two slices of tensor {short(info.name)} overlap")
        end += part.shape[0]
    tensors = [tensor for _, tensor in parts]
    ends = np.cumsum([tensor.info.n_rows for tensor in tensors])

    def read(first: int, last: int) -> Rows:
        pieces = [np.empty((0, info.row_nbytes), np.uint8)]
        at = int(np.searchsorted(ends, first, side="right"))
        while first < last:
            begin = int(ends[at]) - tensors[at].info.n_rows
            upto = min(last, int(ends[at]))
            pieces.append(tensors[at].rows(first - begin, upto - begin))
            first, at = upto, at + 1
        return np.concatenate(pieces)

    return LazyTensor(info, read, tensors[0].source, work_nbytes=2 * info.row_nbytes)


def slice_key(name: str, part: Slice) -> bytes:
    """The key a slice of a tensor has in a table (tensorflow/core/lib/strings/ordered_code.cc).

    A 0, the name with an end mark, the number of axes, and per axis start and length (-1: all). Names with bytes 0
    or 255, which would be escaped, are refused or no UTF-8 before.
    """
    size = len(part)
    numbers = [number for begin, length in part for number in (begin, -1 if length is None else length)]
    return b"\0" + name.encode() + b"\0\1" + (bytes([1, size]) if size else b"\0") + b"".join(map(_ordered, numbers))


def _ordered(value: int) -> bytes:
    """A signed number whose bytes sort as it does: as many leading bits as it has bytes are inverted."""
    length = (~value if value < 0 else value).bit_length() // 7 + 1
    mask = (1 << 8 * length) - 1
    return ((value & mask) ^ ((1 << length) - 1) << 7 * length).to_bytes(length, "big")
