"""What is in a model file, without reading its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint import GraphFacts, Part
from converter.errors import ConverterError
from converter.inspection.tree import Node, tree
from converter.mapping.recovered import open_model
from converter.mapping.view import ModelView, view
from converter.metadata import Array, Metadata, Value, spelled
from converter.request import PathLike, Source
from converter.tensors.tensor import LazyTensor, TensorInfo
from converter.text import counted, human_bytes, human_count

if TYPE_CHECKING:
    from converter.inspection.running_memory import Estimate
    from converter.inspection.tuning_memory import TuningEstimate

_SHOWN_ITEMS = 4
_SHOWN_CHARS = 80
_SHOWN_NAMES = 12  # of a graph's inputs, outputs and operators


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the table."""

    info: TensorInfo
    source: str

    def row(self) -> list[str]:
        """Cells for people."""
        shape = "x".join(map(str, self.info.shape)) or "scalar"
        return [self.info.name, shape, self.info.dtype.name, f"{self.info.nbytes:,}"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.info.name,
            "shape": list(self.info.shape),
            "type": self.info.dtype.name,
            "bytes": self.info.nbytes,
            "source": self.source,
        }


@dataclass(frozen=True)
class Description:
    """A file's format, metadata, tensors, and what it takes to run it and to fine-tune it; None where unknown."""

    path: Path
    format: str
    architecture: str | None
    metadata: dict[str, Value | Array]
    tensors: tuple[TensorRow, ...]
    files: tuple[Path, ...]
    memory: Estimate | None
    tuning: TuningEstimate | None = None
    #: where the file holds more than the model: the model and the rest, with the number of their tensors
    parts: tuple[Part, ...] = ()
    graph: GraphFacts | None = None

    @cached_property
    def tree(self) -> Node:
        """Its tensors as modules, layers that are alike folded."""
        return tree(tensor.info for tensor in self.tensors)

    @property
    def n_parameters(self) -> int:
        """Numbers in all tensors, without a graph's constants."""
        return sum(tensor.info.n_elements for tensor in self.tensors if not self._is_constant(tensor))

    @property
    def n_constants(self) -> int:
        """Tensors of a graph that are shapes, positions and the like: of 64-bit integers or truth values."""
        return sum(map(self._is_constant, self.tensors))

    def _is_constant(self, tensor: TensorRow) -> bool:
        return self.graph is not None and tensor.info.dtype.name in ("I64", "BOOL")

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.info.nbytes for tensor in self.tensors)

    def summary(self) -> list[tuple[str, str]]:
        """The first lines for people."""
        types: dict[str, int] = {}
        for tensor in self.tensors:
            types[tensor.info.dtype.name] = types.get(tensor.info.dtype.name, 0) + 1
        bits = 8 * self.tensor_bytes / self.n_parameters if self.n_parameters else 0.0
        named = ", ".join(f"{count} {name}" for name, count in sorted(types.items(), key=lambda item: -item[1]))
        return [
            ("file", str(self.path)),
            ("format", self.format + (f", {len(self.files)} files" if len(self.files) > 1 else "")),
            ("architecture", self.architecture or "unknown"),
            ("parameters", f"{self.n_parameters:,}{_beside(self.n_constants)}"),
            ("size", f"{self.tensor_bytes:,} bytes of tensors, {bits:.2f} bits per weight"),
            ("tensors", f"{len(self.tensors)} ({named})" if self.tensors else "none"),
            *([("parts", ", ".join(map(str, self.parts)))] if self.parts else []),
            *_of_graph(self.graph),
        ]

    def metadata_rows(self, full: bool) -> Iterator[list[str]]:
        """Key, type, value; long values cut unless `full`."""
        for key, value in self.metadata.items():
            kind = f"{value.type}[{len(value)}]" if isinstance(value, Array) else value.type
            yield [key, kind, _printed(value, full)]

    def memory_table(self, limit: int | None = None) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the memory to run it: types down, context lengths across, `*` at what fits `limit` bytes;
        empty where unknown."""
        needs = self.memory.needs if self.memory else ()
        contexts = sorted({need.context for need in needs})
        totals = {(need.type, need.context): need.total for need in needs}
        bits = {need.type: need.bits_per_weight for need in needs}
        rows = [
            [kind, f"{bits[kind]:.2f}", *(_fitting(totals[kind, context], limit) for context in contexts)]
            for kind in bits
        ]
        return ["type", "bits", *(f"{context:,} tokens" for context in contexts)], rows

    def tuning_table(self, limit: int | None = None) -> tuple[list[str], list[list[str]]]:
        """The same of fine-tuning: methods down, lengths of sequences across."""
        needs = self.tuning.needs if self.tuning else ()
        lengths = sorted({need.tokens for need in needs})
        totals = {(need.method, need.tokens): need.total for need in needs}
        trained = {need.method: (need.rank, need.trained) for need in needs}
        rows = [
            [
                method if rank is None else f"{method}, rank {rank}",
                human_count(count),
                *(_fitting(totals[method, length], limit) for length in lengths),
            ]
            for method, (rank, count) in trained.items()
        ]
        return ["method", "trained", *(f"{length:,} tokens" for length in lengths)], rows

    def as_dict(self, full: bool = False) -> dict[str, Any]:
        """The description as JSON; arrays are cut to a few items unless `full`."""
        return {
            "file": str(self.path),
            "format": self.format,
            "files": [str(path) for path in self.files],
            "architecture": self.architecture,
            "parameters": self.n_parameters,
            "tensor_bytes": self.tensor_bytes,
            "constants": self.n_constants,
            "parts": [vars(part) for part in self.parts],
            "graph": asdict(self.graph) if self.graph else None,
            "metadata": {key: _as_json(value, full) for key, value in self.metadata.items()},
            "tensors": [tensor.as_dict() for tensor in self.tensors],
            "memory": self.memory.as_dict() if self.memory else None,
            "fine_tuning": self.tuning.as_dict() if self.tuning else None,
        }


def inspect(
    path: PathLike, *, format: str | None = None, key: str | None = None, rank: int | None = None
) -> Description:
    """Describe a model file or folder.

    Args:
        format: its name, where the content does not tell.
        key: the part of a file that holds several, as of `Source`; "." for all.
        rank: of LoRA's factors, for the memory of fine-tuning.

    Raises:
        FormatError, OutputError: unknown, damaged or missing.
        UsageError: no such part.
    """
    with open_model(Source(path, format, key=key)) as checkpoint:
        model = view(checkpoint)
        running, tuning = _memory(model.keys, model.ggml, rank)
        described = Description(
            path=checkpoint.path,
            format=checkpoint.format,
            architecture=model.name,
            metadata=_metadata(model),
            tensors=tuple(TensorRow(tensor.info, tensor.source) for tensor in checkpoint.tensors.values()),
            files=checkpoint.files,
            memory=running,
            tuning=tuning,
            parts=checkpoint.parts,
            graph=checkpoint.graph,
        )
        checkpoint.opened.check()
        return described


def _memory(
    keys: Metadata, tensors: Mapping[str, LazyTensor], rank: int | None
) -> tuple[Estimate | None, TuningEstimate | None]:
    """What running it takes, and fine-tuning it."""
    if not tensors:
        return None, None
    from converter.inspection import running_memory, tuning_memory  # the recipes' tables take a while to build

    described = {name: (tensor.info.shape, tensor.info.dtype.name) for name, tensor in tensors.items()}
    try:
        running = running_memory.estimate(keys, described)
        return running, tuning_memory.estimate(keys, described, rank or tuning_memory.RANK)
    except ConverterError:
        return None, None


def _fitting(nbytes: int, limit: int | None) -> str:
    return human_bytes(nbytes) + ("" if limit is None else " *" if nbytes <= limit else "  ")


def _metadata(model: ModelView) -> Metadata:
    """Typed key/values as they are; else free texts, and config.json's entries as JSON."""
    checkpoint = model.checkpoint
    if model.keyed:
        return dict(checkpoint.config)
    found: dict[str, Value | Array] = {key: Value("str", text) for key, text in checkpoint.metadata.items()}
    found.update((f"config.{key}", Value("json", str(value))) for key, value in checkpoint.config.items())
    return found


def _beside(constants: int) -> str:
    return f", beside {counted(constants, 'constant')} of its graph" if constants else ""


def _of_graph(graph: GraphFacts | None) -> Iterator[tuple[str, str]]:
    """What a graph says of itself, as lines for people."""
    if graph is None:
        return
    opsets = (f"{domain} {version}".strip() for domain, version in graph.opsets.items())
    operators = [f"{count} {name}" for name, count in graph.operators.items()]
    lines = {
        "producer": graph.producer,
        "opset": ", ".join(opsets),
        "inputs": _some(graph.inputs),
        "outputs": _some(graph.outputs),
        "operators": _some(operators),
    }
    yield from ((label, words) for label, words in lines.items() if words)


def _some(words: Sequence[str]) -> str:
    more = f", {len(words) - _SHOWN_NAMES} more" if len(words) > _SHOWN_NAMES else ""
    return ", ".join(words[:_SHOWN_NAMES]) + more


def _printed(value: Value | Array, full: bool) -> str:
    if isinstance(value, Array):
        items = value.values[:] if full else value.values[:_SHOWN_ITEMS]
        texts = [str(item) for item in items]
        return "[" + ", ".join(texts) + (", ...]" if len(value) > len(texts) else "]")
    text = repr(value.value) if value.type == "str" else spelled(value)
    return text if full or len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _as_json(value: Value | Array, full: bool) -> Any:
    if isinstance(value, Array):
        items = value.values if full else value.values[:_SHOWN_ITEMS]
        cut = [_as_json(item, full) if isinstance(item, Array) else _json(item) for item in items]
        return cut if full or len(value) <= len(cut) else {"type": value.type, "length": len(value), "first": cut}
    return _json(value.value)


def _json(item: Any) -> Any:
    if isinstance(item, bytes):
        return item.decode("utf-8", "backslashreplace")
    return item.item() if hasattr(item, "item") else item
