"""Flax checkpoints: one MessagePack map of maps whose leaves are arrays.

Sources: the MessagePack specification, and flax/serialization.py for what it puts into it:
- extension 1 is an array and 3 a numpy scalar: the MessagePack array (shape, dtype name, row-major bytes);
- extension 2 is a Python complex: the array (real, imaginary);
- an array over 2**30 bytes is a map {"__msgpack_chunked_array__": true, "shape": {"0": ...}, "chunks": {"0": ...}}
  of flat arrays.

The reader is our own: a loop over the file that builds nothing but names and offsets. Maps join their keys
by "." as transformers does. What is no array (a step count, a text, None, an empty state) is kept as JSON in the
metadata text `flax.leaves`, and the writer puts it back where it was.
"""

from __future__ import annotations

import json
import math
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.events import Event, Note
from converter.formats.base import MAX_AXES, check_elements, check_name
from converter.storage.files import Bytes, open_bytes
from converter.storage.windows import Windows
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

CHUNKED = "__msgpack_chunked_array__"
LEAVES = "flax.leaves"
NDARRAY, COMPLEX, SCALAR = 1, 2, 3

# numpy's name of an array's type -> ours. Nothing else is ever made of a name out of a file.
TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "complex64": "C64",
    "complex128": "C128",
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
NAMES = {ours: theirs for theirs, ours in TYPES.items()}

# What no checkpoint needs and a small file could ask for: a path costs memory for each item below it.
MAX_DEPTH = 64
MAX_NODES = 1 << 18
MAX_KEY = 4096
MAX_LEAVES = 1 << 14  # that are no arrays
MAX_PATHS = 32 << 20  # characters, of all paths together
MAX_LEAF = 1 << 16


# ------------------------------------------------------------------------------------------ the wire format

# First byte -> kind and struct format of what follows (a number, or a length).
_WIRE = {
    0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"),
    0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"), 0xC9: ("ext", ">I"),
    0xCA: ("number", ">f"), 0xCB: ("number", ">d"),
    0xCC: ("number", ">B"), 0xCD: ("number", ">H"), 0xCE: ("number", ">I"), 0xCF: ("number", ">Q"),
    0xD0: ("number", ">b"), 0xD1: ("number", ">h"), 0xD2: ("number", ">i"), 0xD3: ("number", ">q"),
    0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I"),
    0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip
_SIMPLE = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclass(frozen=True)
class _Token:
    """One item's head. `value` is a number, bool or None, the count of an array or map, else the byte length at
    `start`; `code` is the type of an extension."""

    kind: str
    value: Any
    start: int
    code: int = 0


class _Wire:
    """Reads items from bytes [position, end) of the file; every length is compared with what is left."""

    def __init__(self, data: Windows, position: int, end: int) -> None:
        self.path = data.path
        self._data = data
        self.position = position
        self.end = end

    @property
    def left(self) -> int:
        return self.end - self.position

    def inside(self, token: _Token) -> _Wire:
        """A reader of the items within an extension."""
        return _Wire(self._data, token.start, token.start + token.value)

    def _skip(self, size: int, what: str) -> None:
        if size > self.left:
            raise CorruptFile(
                f"{self.path}: {what} at offset {self.position} needs {size} bytes, {self.left} are left\n"
                "the file is truncated or damaged; download it again"
            )
        self.position += size

    def _take(self, size: int, what: str) -> memoryview:
        self._skip(size, what)
        return self._data.at(self.position - size, size, what)

    def token(self) -> _Token:
        """The next item; a text, bin or extension is skipped, an array's or map's items come next."""
        at = self.position
        first = self._take(1, "an item")[0]
        if first < 0x80 or first >= 0xE0:
            return _Token("number", first - (256 if first >= 0xE0 else 0), self.position)
        if first in _SIMPLE:
            return _Token("number", _SIMPLE[first], self.position)
        if first < 0xA0:
            return self._body("map" if first < 0x90 else "array", first & 15)
        if first < 0xC0:
            return self._body("str", first & 31)
        if 0xD4 <= first <= 0xD8:
            return self._body("ext", 1 << (first - 0xD4))
        if first not in _WIRE:
            raise CorruptFile(f"{self.path}: byte 0x{first:02x} at offset {at} begins no MessagePack item")
        kind, form = _WIRE[first]
        return self._body(kind, struct.unpack(form, self._take(struct.calcsize(form), "an item"))[0])

    def _body(self, kind: str, value: Any) -> _Token:
        if kind == "number":
            return _Token(kind, value, self.position)
        if kind in ("array", "map"):
            if value * (2 if kind == "map" else 1) > self.left:
                where = f"{self.path}: {kind} at offset {self.position}"
                raise CorruptFile(f"{where} says {value} items, {self.left} bytes are left")
            return _Token(kind, value, self.position)
        code = struct.unpack(">b", self._take(1, "an extension"))[0] if kind == "ext" else 0
        start = self.position
        self._skip(value, {"str": "a text", "bin": "binary data", "ext": "an extension"}[kind])
        return _Token(kind, value, start, code)

    def raw(self, token: _Token) -> bytes:
        """The bytes of a short text or bin."""
        return bytes(self._data.at(token.start, token.value, "a text"))

    def text(self, token: _Token, what: str) -> str:
        try:
            return self.raw(token).decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptFile(f"{self.path}: {what} at offset {token.start} is not UTF-8") from None


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Array:
    """An array's shape and type, and the pieces of the file, (offset, bytes), that hold it one after the other."""

    shape: tuple[int, ...]
    dtype: DType
    pieces: tuple[tuple[int, int], ...]


@dataclass
class _Tree:
    """What a file holds: arrays and other leaves, both by path."""

    arrays: dict[tuple[str, ...], _Array] = field(default_factory=dict)
    leaves: dict[tuple[str, ...], Any] = field(default_factory=dict)
    nodes: int = 0
    characters: int = 0


@dataclass
class _Frame:
    """A map or an array being walked."""

    path: tuple[str, ...]
    left: int
    is_map: bool
    seen: set[str] = field(default_factory=set)
    index: int = 0


def sniff(path: Path, start: bytes) -> bool:
    """A map with a text as its first key; what is not called .msgpack must show a map or an array below it."""
    after = _after_map(start)
    if after is None or not 0xA0 <= start[after : after + 1][0] <= 0xBF:
        return after is not None and path.suffix.lower() == ".msgpack"
    below = start[after + 1 + (start[after] & 31) :][:1]
    return path.suffix.lower() == ".msgpack" or below in _BELOW


_BELOW = frozenset(bytes([code]) for code in (*range(0x80, 0x90), 0xDE, 0xDF, 0xC7, 0xC8, 0xC9))


def _after_map(start: bytes) -> int | None:
    """Where the first key of a map that is not empty stands."""
    if not start:
        return None
    if 0x81 <= start[0] <= 0x8F:
        after = 1
    elif start[0] in (0xDE, 0xDF):
        after = 3 if start[0] == 0xDE else 5
    else:
        return None
    return after if len(start) > after else None


def open_flax(path: Path) -> Checkpoint:
    """A `.msgpack` file of flax.serialization.

    Raises:
        CorruptFile: truncated, contradictory, not of Flax's making, without an array.
        UnsupportedFeature: a type that is not plain numbers, an unknown extension, too deep or too large a tree.
    """
    mapped = open_bytes(path)
    try:
        with mapped.scattered():
            tree = _walk(mapped)
        tensors, events = _tensors(mapped, tree)
    except BaseException:
        mapped.close()
        raise
    return Checkpoint(
        format="flax",
        path=path,
        dialect=None,
        tensors=tensors,
        metadata={LEAVES: json.dumps([[list(at), value] for at, value in tree.leaves.items()])} if tree.leaves else {},
        events=events,
        files=(path,),
        closers=(mapped.close,),
    )


def _walk(mapped: Bytes) -> _Tree:
    """Every leaf of the file, by a stack of our own: depth and size are bounded whatever the file says."""
    wire, tree = _Wire(Windows(mapped), 0, mapped.size), _Tree()
    first = wire.token()
    if first.kind != "map":
        raise CorruptFile(f"{mapped.path}: not a map of parameters; a Flax checkpoint is one")
    stack = [_Frame((), first.value, True)]
    while stack:
        frame = stack[-1]
        if frame.left == 0:
            stack.pop()
            continue
        frame.left -= 1
        at = (*frame.path, _key(wire, frame))
        token = _counted(wire, tree, at)
        if token.kind in ("map", "array") and token.value:
            _check_depth(wire, at)
            if token.kind == "map" and (array := _chunked(wire, token, ".".join(at))):
                tree.arrays[at] = array
            else:
                stack.append(_Frame(at, token.value, token.kind == "map"))
        elif token.kind == "ext" and token.code in (NDARRAY, SCALAR):
            tree.arrays[at] = _array(wire, token, ".".join(at))
        else:
            if len(tree.leaves) >= MAX_LEAVES:
                raise UnsupportedFeature(f"{mapped.path}: more than {MAX_LEAVES} values that are no arrays")
            tree.leaves[at] = _leaf(wire, token, ".".join(at))
    if wire.position != mapped.size:
        raise CorruptFile(f"{mapped.path}: {mapped.size - wire.position} bytes follow the end of the map")
    if not tree.arrays:
        raise CorruptFile(f"{mapped.path}: not one array in it")
    return tree


def _counted(wire: _Wire, tree: _Tree, at: tuple[str, ...]) -> _Token:
    """The next item, whose path is `at`; not more of them than there can be a reason for."""
    tree.nodes += 1
    tree.characters += sum(map(len, at))
    if tree.nodes > MAX_NODES or tree.characters > MAX_PATHS:
        limits = f"{MAX_NODES} items or {MAX_PATHS} characters of paths"
        raise UnsupportedFeature(f"{wire.path}: a tree of more than {limits}; no checkpoint needs that")
    return wire.token()


def _check_depth(wire: _Wire, at: tuple[str, ...]) -> None:
    if len(at) >= MAX_DEPTH:
        raise UnsupportedFeature(f"{wire.path}: maps nested more than {MAX_DEPTH} deep")


def _key(wire: _Wire, frame: _Frame) -> str:
    """The next key of a map, or the next index of an array."""
    if not frame.is_map:
        frame.index += 1
        return str(frame.index - 1)
    token = wire.token()
    if token.kind != "str":
        raise CorruptFile(f"{wire.path}: a key at offset {token.start} is not a text")
    if token.value > MAX_KEY:
        raise CorruptFile(f"{wire.path}: a key at offset {token.start} of {token.value} bytes")
    key = wire.text(token, "a key")
    check_name(wire.path, key)
    if key == CHUNKED:
        raise CorruptFile(f"{wire.path}: a map's mark of a chunked array at offset {token.start} is not its first key")
    if key in frame.seen:
        raise CorruptFile(f"{wire.path}: key {short(key)} stands twice in one map")
    frame.seen.add(key)
    return key


def _array(outer: _Wire, token: _Token, name: str) -> _Array:
    """An array's shape and type; its bytes must be exactly as many as those say."""
    path, what = outer.path, f"array {short(name)}"
    wire = outer.inside(token)
    head = wire.token()
    if head.kind != "array" or head.value != 3:
        raise CorruptFile(f"{path}: {what} is not (shape, type, bytes)")
    shape = _shape(wire, what)
    type_ = wire.token()
    if type_.kind not in ("str", "bin") or type_.value > MAX_KEY:
        raise CorruptFile(f"{path}: {what} has no name of a type")
    typename = wire.text(type_, "the name of a type")
    if typename not in TYPES:
        raise UnsupportedFeature(f"{path}: {what} has type {short(typename)}, which is not one of plain numbers")
    dtype = DTYPES[TYPES[typename]]
    data = wire.token()
    if data.kind != "bin" or wire.position != wire.end:
        raise CorruptFile(f"{path}: {what} does not end with its bytes")
    _check_size(path, name, shape, dtype, data.value)
    return _Array(shape, dtype, ((data.start, data.value),))


def _shape(wire: _Wire, what: str) -> tuple[int, ...]:
    head = wire.token()
    if head.kind != "array":
        raise CorruptFile(f"{wire.path}: {what} has a shape that is no list")
    if head.value > MAX_AXES:
        raise CorruptFile(f"{wire.path}: {what} has {head.value} axes, at most {MAX_AXES} are possible")
    return tuple(_size(wire, wire.token(), what) for _ in range(head.value))


def _size(wire: _Wire, token: _Token, what: str) -> int:
    if token.kind != "number" or type(token.value) is not int or token.value < 0:
        raise CorruptFile(f"{wire.path}: {what} has a shape of other than whole numbers")
    return token.value


def _check_size(path: Path, name: str, shape: Sequence[int], dtype: DType, nbytes: int) -> None:
    check_elements(path, name, shape)
    if math.prod(shape) * dtype.type_size != nbytes:
        raise CorruptFile(f"{path}: array {short(name)} is {dtype}{list(shape[:8])} but has {nbytes} bytes")


def _chunked(wire: _Wire, head: _Token, name: str) -> _Array | None:
    """The chunked array that a map is; None, and nothing read, where it is a plain map. The mark is the first key."""
    path, what = wire.path, f"chunked array {short(name)}"
    before, key = wire.position, wire.token()
    if key.kind != "str" or key.value > MAX_KEY or wire.raw(key) != CHUNKED.encode():
        wire.position = before
        return None
    if wire.token().value is not True or head.value != 3:
        raise CorruptFile(f"{path}: {what} is not a mark, a shape and chunks")
    sizes: dict[str, int] = {}
    chunks: dict[str, _Array] = {}
    for _ in range(2):
        frame = _Frame((), 2, True)
        part, inner = _key(wire, frame), wire.token()
        if part not in ("shape", "chunks") or inner.kind != "map" or (sizes if part == "shape" else chunks):
            raise CorruptFile(f"{path}: {what} is not a mark, a shape and chunks")
        entries = _Frame((), inner.value, True)
        for _ in range(inner.value):
            index, token = _key(wire, entries), wire.token()
            if part == "shape":
                sizes[index] = _size(wire, token, what)
            else:
                chunks[index] = _chunk(wire, token, f"{name}.{index}")
    return _joined(path, name, _in_order(path, what, sizes), _in_order(path, what, chunks))


def _chunk(wire: _Wire, token: _Token, name: str) -> _Array:
    if token.kind != "ext" or token.code != NDARRAY:
        raise CorruptFile(f"{wire.path}: chunk {short(name)} is not an array")
    return _array(wire, token, name)


def _in_order(path: Path, what: str, parts: Mapping[str, Any]) -> list[Any]:
    if set(parts) != {str(index) for index in range(len(parts))}:
        raise CorruptFile(f"{path}: {what} lacks one of its parts")
    return [parts[str(index)] for index in range(len(parts))]


def _joined(path: Path, name: str, shape: list[int], chunks: list[_Array]) -> _Array:
    if not chunks or any(len(chunk.shape) != 1 or chunk.dtype is not chunks[0].dtype for chunk in chunks):
        raise CorruptFile(f"{path}: the chunks of {short(name)} are not flat arrays of one type")
    if len(shape) > MAX_AXES:
        raise CorruptFile(f"{path}: array {short(name)} has {len(shape)} axes, at most {MAX_AXES} are possible")
    pieces = tuple(piece for chunk in chunks for piece in chunk.pieces if piece[1])
    _check_size(path, name, shape, chunks[0].dtype, sum(nbytes for _, nbytes in pieces))
    return _Array(tuple(shape), chunks[0].dtype, pieces)


def _leaf(wire: _Wire, token: _Token, name: str) -> Any:
    """What is no array, as JSON; a one-key object stands for what JSON has no word for."""
    if token.kind in ("str", "bin") and token.value > MAX_LEAF:
        raise UnsupportedFeature(f"{wire.path}: {short(name)} is {token.value} bytes that are no array")
    if token.kind == "str":
        return wire.text(token, f"the text {short(name)}")
    if token.kind == "bin":
        return {"bytes": wire.raw(token).hex()}
    if token.kind == "ext":
        return {"complex": _complex(wire, token, name)}
    if token.kind in ("map", "array"):
        return {} if token.kind == "map" else []
    return _plain(token.value)


def _plain(value: Any) -> Any:
    """A number that JSON can say, or its spelling."""
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _complex(outer: _Wire, token: _Token, name: str) -> list[str]:
    what = f"{outer.path}: {short(name)}"
    if token.code != COMPLEX:
        raise UnsupportedFeature(f"{what} is MessagePack extension {token.code}, which Flax does not have")
    wire = outer.inside(token)
    head = wire.token()
    parts = [wire.token() for _ in range(2)] if head.kind == "array" and head.value == 2 else []
    if not parts or wire.left or any(part.kind != "number" or type(part.value) not in (int, float) for part in parts):
        raise CorruptFile(f"{what} is not a complex number")
    return [repr(float(part.value)) for part in parts]


def _tensors(mapped: Bytes, tree: _Tree) -> tuple[dict[str, LazyTensor], tuple[Event, ...]]:
    tensors: dict[str, LazyTensor] = {}
    dotted = 0
    for at, array in tree.arrays.items():
        name = ".".join(at)
        if name in tensors:
            raise CorruptFile(f"{mapped.path}: two arrays are called {short(name)} once their keys are joined")
        dotted += any("." in key for key in at)
        tensors[name] = _tensor(mapped, TensorInfo(name, array.shape, array.dtype), array.pieces)
    note = Note(f"{dotted} names have a key with a dot in it: written again as Flax, they nest deeper")
    return tensors, (note,) if dotted else ()


def _tensor(mapped: Bytes, info: TensorInfo, pieces: tuple[tuple[int, int], ...]) -> LazyTensor:
    row, what = info.row_nbytes, f"array {short(info.name)}"
    starts = [0]
    for _, nbytes in pieces:
        starts.append(starts[-1] + nbytes)

    def parts(low: int, high: int) -> Iterator[Rows]:
        """Bytes [low, high) of the tensor, from the pieces they lie in."""
        index = bisect_right(starts, low) - 1
        while low < high:
            stop = min(high, starts[index + 1])
            yield mapped.view(pieces[index][0] + low - starts[index], stop - low, what)
            low, index = stop, index + 1

    def read(start: int, stop: int) -> Rows:
        found = list(parts(start * row, stop * row)) or [np.empty(0, np.uint8)]
        data = found[0] if len(found) == 1 else np.concatenate(found)
        return data.reshape(stop - start, row)

    return LazyTensor(info, read, f"{mapped.path}@{pieces[0][0] if pieces else 0}")
