"""The one value that goes from a reader to a writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from converter.events import Event
from converter.storage.files import Opened
from converter.tensors.bound import Codes
from converter.tensors.tensor import LazyTensor
from converter.text import counted, printable


@dataclass(frozen=True)
class Use:
    """What computes with a tensor of a graph.

    Attributes:
        module: the module of the model that was exported in which it does so, as the graph tells; "" where it does not.
        op: the operator.
        bias: whether what it does with it is to add it, as a bias.
        turned: whether the rows of a matrix are its inputs, where those of a model's linear layer are its outputs;
            None where the operator does not tell.
    """

    module: str
    op: str
    bias: bool = False
    turned: bool | None = None


@dataclass(frozen=True)
class GraphFacts:
    """What a graph says of itself: for people, nothing computes with it.

    Attributes:
        producer: the program that wrote it, with its version.
        opsets: versions of operator sets by their domains, "" being the usual one.
        inputs, outputs: names of its inputs without those that are stored, and of its outputs.
        operators: how many nodes are of each, those of other domains with it, in all graphs inside it, too.
    """

    producer: str = ""
    opsets: Mapping[str, int] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    operators: Mapping[str, int] = field(default_factory=dict)


class Structure(Protocol):
    """What a file has around its tensors (an ONNX model's graph) and a writer of the same format keeps.

    `fixed` are the tensors whose type it relies on, and why: `--dtype` leaves them as they are. `leave` says what is
    lost where another format gets the tensors alone; it raises UnsupportedFeature where that is too much. `uses` are
    the tensors that something computes with, and what; a graph of ours has none, whose tensors have their names.
    `decoded` are, by the names of codes, the numbers that it computes with.
    """

    @property
    def fixed(self) -> Mapping[str, str]: ...
    @property
    def uses(self) -> Mapping[str, Sequence[Use]]: ...
    @property
    def decoded(self) -> Mapping[str, LazyTensor]: ...
    def leave(self) -> tuple[Event, ...]: ...


class Around:
    """A structure that relies on nothing, and of which nothing but its own events is told."""

    @property
    def fixed(self) -> Mapping[str, str]:
        return {}

    @property
    def uses(self) -> Mapping[str, Sequence[Use]]:
        return {}

    @property
    def decoded(self) -> Mapping[str, LazyTensor]:
        return {}

    def leave(self) -> tuple[Event, ...]:
        return ()


@dataclass(frozen=True)
class Part:
    """One of several things in a file (`model`, `optimizer`), and whether its tensors are those of the checkpoint.

    `--key` takes the others by their names.
    """

    name: str
    tensors: int
    shown: bool = False

    def __str__(self) -> str:
        how = "shown" if self.shown else f"--key {printable(self.name)}"
        return f"{printable(self.name)} {counted(self.tensors, 'tensor')} ({how})"


@dataclass(frozen=True)
class Checkpoint:
    """A model that has been opened, not read.

    Attributes:
        format: name of the format it came from.
        path: the file or folder that was opened.
        dialect: "hf" (Hugging Face names, `config` is config.json), "gguf" (ggml names, `config` is
            the typed key/values), "peft" (an adapter, `config` is adapter_config.json) or None (plain named arrays,
            `config` is empty).
        tensors: name -> tensor, in file order.
        config: what the dialect says.
        metadata: free text that the container carries (safetensors `__metadata__`).
        assets: small files beside the weights (tokenizer, README ...) by name, with `/` where they are in a folder.
        made: small files of the target whose content was made here, by file name; they replace assets of that name.
        events: what the reader has to say.
        files: the files the tensors come from, for `output equals input` and sizes.
        checks: to be called when everything that is wanted was read and before it is relied on: what raises here
            (a checksum over bytes of which some were never asked for) fails the run with nothing written.
        opened: all files that were opened for it, as they were then; `check` compares them.
        structure: what the file has around its tensors, for a writer of the same format.
        stored: the same file as its format has it, where that is not what it means (a graph that was written of a
            GGUF); what a writer that keeps the structure works with.
        adapters: what is to be merged into it, one after the other, and how strongly.
        base: the model that an adapter is for, or whose words a draft model guesses: of this its small files alone.
        codes: what became of weights that arrived in codes, by the name of the tensor that held these.
        graph: what a file with a graph says of that.
        parts: what else the file holds beside the tensors here, and these first; empty where they are all.
    """

    format: str
    path: Path
    dialect: str | None
    tensors: Mapping[str, LazyTensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    assets: Mapping[str, Path] = field(default_factory=dict)
    made: Mapping[str, bytes] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    files: tuple[Path, ...] = ()
    closers: tuple[Callable[[], None], ...] = ()
    checks: tuple[Callable[[], None], ...] = ()
    opened: Opened = field(default_factory=Opened)
    structure: Structure | None = None
    stored: Checkpoint | None = None
    adapters: tuple[tuple[Checkpoint, float], ...] = ()
    base: Checkpoint | None = None
    codes: Mapping[str, Codes] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    graph: GraphFacts | None = None

    def __repr__(self) -> str:
        count = counted(len(self.tensors), "tensor")
        return f"<Checkpoint {str(self.path)!r}: {self.format}, {count}, {counted(self.n_elements, 'number')}>"

    @property
    def n_elements(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.info.n_elements for tensor in self.tensors.values())

    def replace(self, **changes: Any) -> Checkpoint:
        """A copy with some fields changed; the maps stay shared."""
        return replace(self, **changes)

    def check(self) -> None:
        """Run the checks; raises CorruptFile, or OutputError where a file was changed since it was opened."""
        try:
            for check in self.checks:
                check()
        finally:
            self.opened.check()  # that explains whatever else is wrong
        self.opened.prove()

    def close(self) -> None:
        for close in self.closers:
            close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.opened.explain(error)
        finally:
            self.close()
