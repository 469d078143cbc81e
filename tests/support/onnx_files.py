"""ONNX models by hand, from the wire format of Protocol Buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from support.protobuf import blob, number, varint


def tensor(name: str, shape: tuple[int, ...], code: int, *fields: bytes) -> bytes:
    dims = b"".join(number(1, size) for size in shape)
    return dims + number(2, code) + blob(8, name) + b"".join(fields)


def external(location: str, **entries: Any) -> bytes:
    pairs = {"location": location, **entries}
    return b"".join(blob(13, blob(1, key) + blob(2, str(value))) for key, value in pairs.items()) + number(14, 1)


def attribute(name: str, *fields: bytes) -> bytes:
    return blob(5, blob(1, name) + b"".join(fields))


def node(op: str, output: str, *attributes: bytes) -> bytes:
    return blob(1, blob(2, output) + blob(4, op) + b"".join(attributes))


def initializers(*tensors: bytes) -> bytes:
    return b"".join(blob(5, each) for each in tensors)


def model(*graph: bytes, tail: bytes = b"") -> bytes:
    return number(1, 8) + blob(7, b"".join(graph)) + tail


SIX = np.arange(6, dtype="<f4")
RAW = blob(9, SIX.tobytes())
GOOD = tensor("w", (2, 3), 1, RAW)


def saved(folder: Path, data: bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


WHOLE = model(
    initializers(GOOD, tensor("i", (3,), 7, blob(7, varint(-1) + varint(1) + varint(300)))),
    node("If", "y", attribute("then_branch", blob(6, node("Constant", "c", attribute("value", blob(5, GOOD)))))),
    initializers(tensor("e", (2, 3), 1, external("w.bin", offset=0, length=24)), tensor("n", (3,), 22, blob(9, b"12"))),
)


def retold(source: Path, target: Path, text: str) -> None:
    """A copy of a model with another text of what its graph was written of."""
    import onnx

    model = onnx.load(source)
    told = next(each for each in model.metadata_props if each.key == "converter.gguf")
    told.value = text
    onnx.save(model, target)
