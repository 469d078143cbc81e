"""Flax checkpoints, written: names nest at their dots, and what is no array is put back where it was."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.formats.base import WriteOptions
from converter.formats.flax.reader import CHUNKED, COMPLEX, LEAVES, MAX_DEPTH, NAMES, NDARRAY
from converter.storage.json import parse_json
from converter.storage.layout import FileLayout, Layout, Slot
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo, from_array

CHUNK_NBYTES = 1 << 30


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """One file: names nest at their dots, in the order of their first tensors; arrays over 2**30 bytes in chunks.

    What lies between two arrays (keys, shapes, types) is known here and goes into slots of its own.

    Raises:
        UnsupportedFeature: a type that Flax cannot hold, a name that would be taken for a mark, a split.
        CorruptFile: `flax.leaves` in the metadata is not what the reader makes.
    """
    if options.split_max_size is not None or options.split_max_tensors is not None:
        raise UnsupportedFeature(f"{target}: splitting is for GGUF, safetensors and PyTorch output")
    items: list[tuple[tuple[str, ...], Any]] = []
    names = set(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        if tensor.info.dtype.name not in NAMES:
            raise UnsupportedFeature(
                f"{target}: tensor {short(name)} is {tensor.info.dtype}, which Flax cannot hold; "
                "pass --dtype f16, bf16 or f32 to decode it"
            )
        items.append((_nested(target, name, names), tensor))
    return Layout((_Writer(target).file(_as_tree(target, [*items, *_leaves(checkpoint)])),))


def _nested(target: Path, name: str, names: set[str]) -> tuple[str, ...]:
    """The keys of a name: its parts; where a tensor stands in the way, or it goes too deep, a key keeps its dots."""
    parts = name.split(".")
    if CHUNKED in parts:
        raise UnsupportedFeature(f"{target}: tensor {short(name)} would be taken for a chunked array")
    keys: list[str] = []
    key = prefix = parts[0]
    for part in parts[1:]:
        if prefix in names or len(keys) >= MAX_DEPTH - 4:
            key = f"{key}.{part}"
        else:
            keys.append(key)
            key = part
        prefix = f"{prefix}.{part}"
    return (*keys, key)


def _leaves(checkpoint: Checkpoint) -> list[tuple[tuple[str, ...], bytes]]:
    """What the reader found besides arrays, as MessagePack."""
    text = checkpoint.metadata.get(LEAVES)
    if text is None:
        return []
    where = f"{checkpoint.path}: metadata {LEAVES}"
    entries = parse_json(b'{"leaves":' + text.encode("utf-8", "replace") + b"}", where)["leaves"]
    try:
        return [(_keys(at), _packed(value)) for at, value in entries]
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptFile(f"{where} is not what the Flax reader writes ({str(error)[:80]})") from None


def _keys(at: Any) -> tuple[str, ...]:
    if not isinstance(at, list) or not 0 < len(at) <= MAX_DEPTH or not all(isinstance(key, str) for key in at):
        raise TypeError(f"{short(at)} is no path")
    if CHUNKED in at:
        raise ValueError(f"{short(at)} would be taken for a chunked array")
    return tuple(at)


def _packed(value: Any) -> bytes:
    """The MessagePack of what `_leaf` makes."""
    match value:
        case None | bool():
            return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
        case int():
            return _int(value)
        case float():
            return struct.pack(">Bd", 0xCB, value)
        case str():
            return _text(value)
        case {"bytes": str(text)} if len(value) == 1:
            data = bytes.fromhex(text)
            return _head("bin", len(data)) + data
        case {"float": str(text)} if len(value) == 1:
            return struct.pack(">Bd", 0xCB, float(text))
        case {"complex": [str(real), str(imaginary)]} if len(value) == 1:
            inner = b"\x92" + struct.pack(">BdBd", 0xCB, float(real), 0xCB, float(imaginary))
            return _head("ext", len(inner), COMPLEX) + inner
        case {} if not value:
            return b"\x80"
        case [] if not value:
            return b"\x90"
    raise ValueError(f"{short(value)} is no leaf")


def _as_tree(target: Path, items: Sequence[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """Nested maps."""
    root: dict[str, Any] = {}
    for at, value in items:
        node: Any = root
        for key in at[:-1]:
            node = node.setdefault(key, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or at[-1] in node:
            raise UnsupportedFeature(f"{target}: {short('.'.join(at))} cannot be both a value and a map of values")
        node[at[-1]] = value
    return root


class _Writer:
    """Lays a tree out: bytes that are known gather until an array comes, then both get their slots."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._known = bytearray()
        self._header: bytes | None = None
        self._slots: list[Slot] = []
        self._at = 0

    def file(self, root: dict[str, Any]) -> FileLayout:
        self._known += _head("map", len(root))
        stack = [iter(root.items())]
        while stack:
            item = next(stack[-1], None)
            if item is None:
                stack.pop()
                continue
            key, value = item
            self._known += _text(key)
            if isinstance(value, dict):
                self._known += _head("map", len(value))
                stack.append(iter(value.items()))
            elif isinstance(value, bytes):
                self._known += value
            else:
                self._tensor(value)
        self._flush()
        return FileLayout(self._target, self._header or b"", tuple(self._slots), self._at)

    def _tensor(self, tensor: LazyTensor) -> None:
        info = tensor.info
        if info.nbytes <= CHUNK_NBYTES:
            self._array(info.shape, info.dtype, tensor)
            return
        chunks = list(_chunks(tensor))
        self._known += _head("map", 3) + _text(CHUNKED) + b"\xc3" + _text("shape") + _head("map", len(info.shape))
        for axis, size in enumerate(info.shape):
            self._known += _text(str(axis)) + _int(size)
        self._known += _text("chunks") + _head("map", len(chunks))
        for index, chunk in enumerate(chunks):
            self._known += _text(str(index))
            self._array((chunk.info.n_elements,), info.dtype, chunk)

    def _array(self, shape: Sequence[int], dtype: DType, tensor: LazyTensor) -> None:
        nbytes = tensor.info.nbytes
        inner = b"\x93" + _head("array", len(shape)) + b"".join(map(_int, shape))
        inner += _text(NAMES[dtype.name]) + _head("bin", nbytes)
        self._known += _head("ext", len(inner) + nbytes, NDARRAY) + inner
        self._flush()
        self._slots.append(Slot(self._at, tensor))
        self._at += nbytes

    def _flush(self) -> None:
        """Known bytes to the header or, behind an array, to a slot."""
        known, self._known = bytes(self._known), bytearray()
        if self._header is None:
            self._header = known
        elif known:
            keys = from_array("keys", np.frombuffer(known, np.uint8), DTYPES["U8"], "names, shapes and types")
            self._slots.append(Slot(self._at, keys))
        self._at += len(known)


def _chunks(tensor: LazyTensor) -> Iterator[LazyTensor]:
    """The tensor in pieces of at most CHUNK_NBYTES: some of its rows, or a part of one row that is longer."""
    info, row = tensor.info, tensor.info.row_nbytes
    step = max(1, CHUNK_NBYTES // row)
    width = min(info.row, CHUNK_NBYTES // info.dtype.type_size)
    for start in range(0, info.n_rows, step):
        for low in range(0, info.row, width):
            yield _window(tensor, start, min(info.n_rows, start + step), low, min(info.row, low + width))


def _window(tensor: LazyTensor, start: int, stop: int, low: int, high: int) -> LazyTensor:
    """Rows [start, stop) and elements [low, high) of each."""
    size = tensor.info.dtype.type_size

    def read(first: int, last: int) -> Rows:
        return tensor.rows(start + first, start + last)[:, low * size : high * size]

    info = TensorInfo(tensor.name, (stop - start, high - low), tensor.info.dtype)
    return tensor.derived(info, read)


# Kind -> (largest length, first byte, struct format of the length), smallest first; "fix" forms are added to the byte.
_HEADS = {
    "map": ((15, 0x80, ""), (0xFFFF, 0xDE, ">H"), (0xFFFFFFFF, 0xDF, ">I")),
    "array": ((15, 0x90, ""), (0xFFFF, 0xDC, ">H"), (0xFFFFFFFF, 0xDD, ">I")),
    "str": ((31, 0xA0, ""), (0xFF, 0xD9, ">B"), (0xFFFF, 0xDA, ">H"), (0xFFFFFFFF, 0xDB, ">I")),
    "bin": ((0xFF, 0xC4, ">B"), (0xFFFF, 0xC5, ">H"), (0xFFFFFFFF, 0xC6, ">I")),
    "ext": ((0xFF, 0xC7, ">B"), (0xFFFF, 0xC8, ">H"), (0xFFFFFFFF, 0xC9, ">I")),
}
_FIXEXT = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
_UINTS = ((0xFF, 0xCC, ">B"), (0xFFFF, 0xCD, ">H"), (0xFFFFFFFF, 0xCE, ">I"), (2**64 - 1, 0xCF, ">Q"))
_INTS = ((-0x80, 0xD0, ">b"), (-0x8000, 0xD1, ">h"), (-0x80000000, 0xD2, ">i"), (-(2**63), 0xD3, ">q"))


def _head(kind: str, length: int, code: int = 0) -> bytes:
    """The shortest head of an item, as every MessagePack encoder writes it."""
    suffix = bytes([code]) if kind == "ext" else b""
    if kind == "ext" and length in _FIXEXT:
        return bytes([_FIXEXT[length]]) + suffix
    first, form = next((first, form) for most, first, form in _HEADS[kind] if length <= most)
    return (bytes([first]) + struct.pack(form, length) if form else bytes([first + length])) + suffix


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return _head("str", len(data)) + data


def _int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value) if value < 0 else bytes([value])
    table = _UINTS if value >= 0 else _INTS
    for limit, first, form in table:
        if abs(value) <= abs(limit):
            return bytes([first]) + struct.pack(form, value)
    raise OverflowError(f"{value} does not fit 64 bits")
