"""Good files made bad: a GGUF written again with other keys or tensors, and bytes changed in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import converter
from converter.formats import gguf
from converter.formats.base import WriteOptions
from converter.metadata import Array, Value
from converter.storage import output
from converter.tensors.tensor import LazyTensor, TensorInfo

Keys = Mapping[str, Value | Array | None]
Tensors = Callable[[dict[str, LazyTensor]], dict[str, LazyTensor]]


def rewritten(source: Path, target: Path, keys: Keys | None = None, tensors: Tensors = lambda old: old) -> Path:
    """The GGUF `source` as `target`, some keys replaced or (None) removed, and what `tensors` makes of its tensors."""
    with converter.open_checkpoint(source) as model:
        config = {**model.config, **(keys or {})}
        changed = model.replace(
            config={key: value for key, value in config.items() if value is not None},
            tensors=tensors(dict(model.tensors)),
        )
        output.write(gguf.layout(changed, target, WriteOptions()))
    return target


def without(*names: str) -> Tensors:
    """Tensors less some."""
    return lambda old: {name: tensor for name, tensor in old.items() if name not in names}


def reshaped(name: str, shape: tuple[int, ...]) -> Tensors:
    """One tensor under another shape of as many elements, or only its first rows."""

    def change(old: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        data = old[name].array().view(np.uint8).reshape(-1)
        info = TensorInfo(name, shape, old[name].info.dtype)
        rows = data[: info.nbytes].reshape(info.n_rows, info.row_nbytes)
        return {**old, name: LazyTensor(info, lambda start, stop: rows[start:stop], "test")}

    return change


def again(name: str, copy: str) -> Tensors:
    """One tensor a second time under another name."""
    return lambda old: {**old, copy: old[name].renamed(copy)}


def patched(path: Path, tensor: str, offset: int, data: bytes) -> None:
    """Bytes of a tensor changed where they lie."""
    with converter.open_checkpoint(path) as model:
        start = int(model.tensors[tensor].source.rpartition("@")[2])
    with open(path, "r+b") as file:
        file.seek(start + offset)
        file.write(data)


def item(metadata: Mapping[str, Any], key: str) -> Any:
    """The value of a key, arrays as lists."""
    entry = metadata[key]
    return entry.value if isinstance(entry, Value) else list(entry.values)


def apart(old: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Experts in tensors of their own, as llama.cpp's files had them until April 2024: `blk.0.ffn_gate.3.weight`."""
    made: dict[str, LazyTensor] = {}
    for name, tensor in old.items():
        stem, is_stack, _ = name.partition("_exps.weight")
        data = tensor.array().view(np.uint8).reshape(tensor.info.n_rows, -1) if is_stack else None
        if data is None:
            made[name] = tensor
            continue
        count, *shape = tensor.info.shape
        for expert, rows in enumerate(np.split(data, count)):
            info = TensorInfo(f"{stem}.{expert}.weight", tuple(shape), tensor.info.dtype)
            made[info.name] = LazyTensor(info, lambda start, stop, rows=rows: rows[start:stop], "test")  # type: ignore[misc]
    return made
