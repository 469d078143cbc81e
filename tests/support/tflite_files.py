"""TFLite models by hand: FlatBuffers from nested dictionaries."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

Node = dict[int, Any] | list[Any] | bytes | str


def vector(code: str, *values: Any) -> bytes:
    """A vector of numbers, with its length."""
    return struct.pack(f"<I{len(values)}{code}", len(values), *values)


def emit(out: bytearray, node: Node) -> int:
    """Append a node and what hangs on it; where it is."""
    out += bytes(-len(out) % 8)
    if isinstance(node, str):
        node = struct.pack("<I", len(node.encode())) + node.encode() + b"\0"
    if isinstance(node, bytes):
        out += node
        return len(out) - len(node)
    waiting = []
    if isinstance(node, list):
        start = len(out)
        out += struct.pack("<I", len(node)) + bytes(4 * len(node))
        waiting = [(start + 4 + 4 * index, each) for index, each in enumerate(node)]
    else:
        slots, inline = [0] * (max(node, default=-1) + 1), bytearray(4)
        for index, value in node.items():
            slots[index] = len(inline)
            if isinstance(value, tuple):
                inline += struct.pack("<" + value[0], value[1])
            else:
                waiting.append((len(inline), value))
                inline += bytes(4)
        vtable = struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), len(inline), *slots)
        inline[:4] = struct.pack("<i", len(vtable))
        out += vtable
        start = len(out)
        out += inline
        waiting = [(start + at, value) for at, value in waiting]
    for at, child in waiting:
        out[at : at + 4] = struct.pack("<I", emit(out, child) - at)
    return start


def flatbuffer(model: dict[int, Any], identifier: bytes = b"TFL3") -> bytes:
    out = bytearray(8)
    root = emit(out, model)
    out[:8] = struct.pack("<I", root) + identifier
    return bytes(out)


def tensor(name: str | None, shape: tuple[int, ...], kind: int, buffer: int, **more: Any) -> dict[int, Any]:
    node: dict[int, Any] = {0: vector("i", *shape), 1: ("b", kind), 2: ("I", buffer)}
    if name is not None:
        node[3] = name
    return node | {int(key[1:]): value for key, value in more.items()}


def data(content: bytes) -> dict[int, Any]:
    return {0: struct.pack("<I", len(content)) + content}


F6 = np.arange(6, dtype="<f4").reshape(2, 3)
EMPTY: dict[int, Any] = {}


def model(tensors: Any, buffers: Any, **more: Any) -> dict[int, Any]:
    subgraphs = [{0: group} for group in tensors] if tensors and isinstance(tensors[0], list) else [{0: tensors}]
    base = {0: ("I", 3), 1: [{3: ("i", 1)}], 2: subgraphs, 3: "made by hand", 4: [EMPTY, *buffers]}
    return base | {int(key[1:]): value for key, value in more.items()}


def write(folder: Path, content: dict[int, Any]) -> Path:
    path = folder / "m.tflite"
    path.write_bytes(flatbuffer(content))
    return path


GOOD = model([tensor("w", (2, 3), 0, 1), tensor("input", (2, 3), 0, 0)], [data(F6.tobytes())])
