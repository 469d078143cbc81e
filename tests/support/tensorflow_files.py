"""TensorFlow's files by hand, from their specifications: tables, bundles, frozen graphs."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converter.formats.tensorflow.sstable import MAGIC
from converter.formats.tensorflow.values import slice_key
from converter.storage.checksums import CRC32C
from support.protobuf import blob, number, varint


def shape(*sizes: int) -> bytes:
    return b"".join(blob(2, number(1, size)) for size in sizes)


def extent(*axes: tuple[int, int | None]) -> bytes:
    parts = [(number(1, a) if a else b"") + (number(2, n) if n is not None else b"") for a, n in axes]
    return b"".join(blob(1, part) for part in parts)


def mask(crc: int) -> int:
    """How TensorFlow's crc32c.h stores a sum."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    return struct.pack("<I", mask(CRC32C.of(data)))


def block(entries: Sequence[tuple[bytes, bytes]], every: int = 4) -> bytes:
    out, restarts, before = bytearray(), [], b""
    for index, (key, value) in enumerate(entries):
        shared = 0
        if index % every:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def snappy(data: bytes) -> bytes:
    """As one literal."""
    return varint(len(data)) + b"\xf4" + struct.pack("<H", len(data) - 1) + data


def table(entries: Mapping[bytes, bytes], per_block: int = 3, compress: bool = False) -> bytes:
    out, handles = bytearray(), []

    def add(content: bytes, kind: int = 0) -> bytes:
        data = snappy(content) if kind else content
        handle = varint(len(out)) + varint(len(data))
        out.extend(data + bytes([kind]) + masked(data + bytes([kind])))
        return handle

    items = list(entries.items())
    for at in range(0, len(items), per_block):
        part = items[at : at + per_block]
        handles.append((part[-1][0], add(block(part), int(compress))))
    footer = add(block([])) + add(block(handles, 1), int(compress))
    return bytes(out) + footer.ljust(40, b"\0") + MAGIC


HEADER = number(1, 1) + blob(3, number(1, 1))
CODES = {
    "<f4": 1,
    "<f8": 2,
    "<i4": 3,
    "u1": 4,
    "<i2": 5,
    "i1": 6,
    "<i8": 9,
    "?": 10,
    ml_dtypes.bfloat16: 14,
    "<u2": 17,
    "<f2": 19,
    "<u4": 22,
    "<u8": 23,
    "<c8": 8,
    ml_dtypes.float8_e5m2: 24,
}


def entry(code: int, sizes: Sequence[int], offset: int, data: bytes, **changes: Any) -> bytes:
    size = changes.get("size", len(data))
    return (
        number(1, code)
        + blob(2, shape(*sizes))
        + number(3, changes.get("shard", 0))
        + number(4, changes.get("begin", offset))
        + number(5, size)
        + varint(6 << 3 | 5)
        + masked(data)
    )


def bundle(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    header: bytes = HEADER,
    extra: Mapping[bytes, bytes] | None = None,
    **changes: Any,
) -> Path:
    """A checkpoint of one shard; `changes` go into every entry."""
    data, entries = b"", {}
    for name, array in arrays.items():
        code = next(code for kind, code in CODES.items() if np.dtype(kind) == array.dtype)
        entries[name.encode()] = entry(code, array.shape, len(data), array.tobytes(), **changes)
        data += array.tobytes()
    entries |= extra or {}
    (folder / "m.index").write_bytes(table({b"": header} | dict(sorted(entries.items()))))
    (folder / "m.data-00000-of-00001").write_bytes(data)
    return folder / "m.index"


F6 = np.arange(6, dtype="<f4").reshape(2, 3)
Axes = tuple[tuple[int, int | None], ...]
BIG = np.arange(300 * 7, dtype="<f4").reshape(300, 7)
Sliced = tuple[int, tuple[int, ...], Sequence[tuple[Axes, bytes]]]


def v1(tensors: Mapping[str, Sliced], compress: bool = False) -> bytes:
    """Name -> type, shape, slices with their TensorProtos."""
    metas, entries = [], {}
    for name, (code, sizes, parts) in tensors.items():
        slices = [blob(4, extent(*part)) for part, _ in parts]
        metas.append(blob(1, blob(1, name.encode()), blob(2, shape(*sizes)), number(3, code), *slices))
        for part, proto in parts:
            saved = blob(1, name.encode()) + blob(2, extent(*part)) + blob(3, proto)
            entries[slice_key(name, part)] = blob(2, saved)
    return table({b"": blob(1, *metas)} | dict(sorted(entries.items())), 2, compress)


ALL = ((0, None), (0, None))
NUMBERS = np.array([[0, -1, 5], [1 << 30, -(1 << 31), 7]], "<i4")
HALVES = F6.astype("<f2")
V1: dict[str, Any] = {
    "f": (1, (2, 3), [(ALL, blob(5, F6.tobytes()))]),
    "i": (3, (2, 3), [(ALL, blob(7, *map(varint, NUMBERS.ravel().tolist())))]),
    "h": (19, (2, 3), [(ALL, blob(13, *map(varint, HALVES.view("<u2").ravel().tolist())))]),
    "p": (1, (2, 3), [(((row, 1), (0, None)), blob(5, F6[row : row + 1].tobytes())) for row in (0, 1)]),
    "s": (7, (1,), [(((0, None),), blob(8, b"text"))]),
}


def const(name: str, *proto: bytes, operation: bytes = b"Const") -> bytes:
    value = blob(5, blob(1, b"value"), blob(2, blob(8, *proto)))
    kind = blob(5, blob(1, b"dtype"), blob(2, number(6, 1)))
    return blob(1, name.encode()) + blob(2, operation) + kind + value


def graph(folder: Path, *nodes: bytes, library: bytes = b"") -> Path:
    path = folder / "g.pb"
    path.write_bytes(b"".join(blob(1, node) for node in nodes) + library + blob(4, number(1, 1)))
    return path


S23 = blob(2, shape(2, 3))


def good(folder: Path) -> list[tuple[Path, str]]:
    bundle(folder, {"a": F6, "ab/.ATTRIBUTES/VARIABLE_VALUE": BIG[:4], "b": np.array(3)})
    (folder / "m.ckpt").write_bytes(v1(V1))
    (folder / "c.ckpt").write_bytes(v1(V1, compress=True))
    graph(
        folder,
        const("one", number(1, 3), S23, blob(7, varint(-9))),
        const("raw", number(1, 1), S23, blob(4, F6.tobytes())),
    )
    return [
        (folder / name, kind)
        for name, kind in (
            ("m.index", "tensorflow"),
            ("m.ckpt", "tensorflow"),
            ("c.ckpt", "tensorflow"),
            ("g.pb", "tf-graph"),
        )
    ]
