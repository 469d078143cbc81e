"""Hugging Face folders that transformers reads to, under the names that their GGUF has.

Which weight of a GGUF comes of which tensors of the folder is what the mapping says that would convert it; and which of
its columns is which column there, the mapping says, too: it is given tensors whose numbers are their own columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.calibration.activations import Observed, Told, Wanted, in_blocks, longest, read_all
from converter.calibration.readers import Reader
from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature
from converter.extras import package
from converter.formats.registry import open_checkpoint
from converter.mapping.tensors import Translation, to_gguf
from converter.request import Source
from converter.runtimes import transformers
from converter.runtimes.base import Floats, RuntimeTokenizer, Writer
from converter.runtimes.products import Observer
from converter.runtimes.transformers import Transformers
from converter.storage.slabs import ProgressCallback
from converter.tensors.dtypes import F32
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo
from converter.workers import default_threads

Order = NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """A weight of the GGUF that a parameter goes into: `order` says which of its columns each one there is, and
    `expert` which matrix of a stack the parameter is, where it is one."""

    name: str
    order: Order
    expert: int | None = None


class ByTransformers(Reader):
    """The model of a folder. Its code is not run; weights are safetensors, or read by our own reader.

    Raises:
        MissingDependency: torch or transformers is not installed.
        UnsupportedFeature: it is no such folder.
    """

    def __init__(self, source: Source) -> None:
        self.path = source.path
        package("torch", f"{self.path}: running it")
        package("transformers", f"{self.path}: running it")
        if not is_folder(source):
            raise UnsupportedFeature(f"{self.path}: transformers reads to a Hugging Face folder, and this is none")

    def tokenizer(self, special: bool = True) -> RuntimeTokenizer | None:
        return transformers.tokenizer(self.path, special)

    def writer(self, context: int, threads: int, texts: int = 1) -> Writer:
        return Transformers(self.path, context, threads)

    def made_for(self) -> int | None:
        return transformers.made_for(self.path)

    def infos(self) -> Sequence[TensorInfo]:
        return [tensor.info for tensor in self._mapped[0].tensors.values()]

    @cached_property
    def _mapped(self) -> tuple[Translation, Translation]:
        """The folder's tensors as a GGUF has them, their numbers being their last axis, and the axis before."""
        with open_checkpoint(self.path) as checkpoint:
            return _places(checkpoint, -1), _places(checkpoint, -2)

    def observe(
        self,
        chunks: Sequence[Sequence[int]],
        observer: Observer,
        *,
        wanted: Wanted = in_blocks,
        threads: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Observed:
        told, by_experts = Told(observer), set[str]()
        with Transformers(self.path, longest(chunks), threads or default_threads(), exact=True) as runtime:
            columns = self._columns(runtime, wanted)

            def seen(parameter: str, matrix: int | None, rows: Floats) -> None:
                for column in columns[parameter]:
                    expert = matrix if column.expert is None else column.expert
                    own = rows if _is_plain(column.order) else np.ascontiguousarray(rows[:, column.order])
                    told.take(column.name, own, expert)
                    if expert is not None:
                        by_experts.add(column.name)

            with runtime.products(columns, seen):
                total = read_all(runtime, self.path, chunks, progress)
            return Observed(runtime.name, total, frozenset(told.seen), frozenset(by_experts))

    def _columns(self, runtime: Transformers, wanted: Wanted) -> dict[str, list[Column]]:
        """The weights that each parameter goes into, of those that are wanted and that it can be told of."""
        last, before = (each.tensors for each in self._mapped)
        weights = {name: tensor for name, tensor in last.items() if len(tensor.info.shape) > 1 and wanted(name)}
        sources = {name: tensor.parts or (tensor.name,) for name, tensor in weights.items()}
        filled = runtime.filled(source for parts in sources.values() for source in parts)
        found: dict[str, list[Column]] = {}
        for name, tensor in weights.items():
            order = _order(tensor)
            order = _order(before[name]) if order is None else order
            parameters = [filled[source] for source in sources[name] if source in filled]
            if order is None or len(parameters) != len(sources[name]):
                continue
            for parameter, expert in _used(tensor.info, parameters, runtime.shapes):
                found.setdefault(parameter, []).append(Column(name, order, expert))
        return found


def is_folder(source: Source) -> bool:
    """Whether a source is a folder as transformers wants it, and nothing beside it."""
    plain = source == Source(source.path)
    return plain and Path(source.path).is_dir() and (Path(source.path) / "config.json").is_file()


def _places(checkpoint: Checkpoint, axis: int) -> Translation:
    """The tensors of a folder as a GGUF has them, each number being its place on an axis of the folder's tensor."""
    counted = {name: _counted(each.info, axis) for name, each in checkpoint.tensors.items()}
    return to_gguf(checkpoint.replace(tensors=counted))


def _counted(info: TensorInfo, axis: int) -> LazyTensor:
    """A tensor of this shape whose numbers are their place on an axis; as F32, of up to 2^24 places."""
    own = TensorInfo(info.name, info.shape, F32)

    def read(start: int, stop: int) -> Rows:
        rows = np.arange(start, stop, dtype=np.int64) % info.shape[-2] if axis == -2 and len(info.shape) > 1 else None
        numbers = np.arange(own.row) if rows is None else rows[:, None]
        return np.ascontiguousarray(np.broadcast_to(numbers, (stop - start, own.row)), "<f4").view(np.uint8)

    return LazyTensor(own, read, "its columns")


def _order(tensor: LazyTensor) -> Order | None:
    """Which column of the source each of a tensor's is, by its first row; None where that row is none of the source."""
    found = values(tensor, 0, 1)[0]
    order = found.astype(np.int64)
    return order if np.array_equal(np.sort(found), np.arange(len(found))) else None


def _is_plain(order: Order) -> bool:
    return bool((order[1:] > order[:-1]).all())


def _used(
    info: TensorInfo, parameters: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> Iterable[tuple[str, int | None]]:
    """The parameters whose products tell of a weight, and which of its matrices each is; those that are rows of one
    matrix have the same input, so that the first tells of all."""
    stacked, first = info.shape[:-2], parameters[0]
    if len(set(parameters)) == 1 and shapes[first][:-2] == stacked:
        return [(first, None)]
    if len(stacked) == 1 and len(parameters) == stacked[0] and all(len(shapes[each]) == 2 for each in parameters):
        return [(parameter, number) for number, parameter in enumerate(parameters)]
    return [] if stacked else [(first, None)]
