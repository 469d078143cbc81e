"""Tensors as text, one per line: name, shape, values. `bias;2x3;1,2,3,4,5,6`"""

from pathlib import Path

import numpy as np

from converter.checkpoint import Checkpoint
from converter.formats.base import Format
from converter.tensors.dtypes import F32
from converter.tensors.tensor import LazyTensor, from_array


def tensor(line: str, path: Path) -> LazyTensor:
    name, shape, values = line.split(";")
    array = np.array(values.split(","), np.float32).reshape([int(size) for size in shape.split("x")])
    return from_array(name, array, F32, str(path))


def read(path: Path) -> Checkpoint:
    lines = path.read_text().splitlines()
    return Checkpoint("csvt", path, None, {line.split(";")[0]: tensor(line, path) for line in lines}, files=(path,))


def sniff(path: Path, start: bytes) -> bool:
    return path.suffix == ".csvt"


FORMAT = Format("csvt", (".csvt",), None, "tensors as lines of text", frozenset(["F32"]), sniff, read)
