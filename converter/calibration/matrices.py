"""Importance matrices as people ask for them: made of a model, added up, looked at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.calibration import texts
from converter.calibration.activations import refuse_crashing, runnable
from converter.calibration.folders import ByTransformers
from converter.calibration.importance import Made, dataset_text, measure
from converter.calibration.readers import ByLlamaCpp, Reader
from converter.calibration.statistics import Layer, Statistics, layers, statistics
from converter.calibration.texts import CONTEXT, Text
from converter.errors import MissingDependency, OutputError, SameFile, UnsupportedFeature, UsageError, said_of
from converter.events import Event, Note
from converter.pipeline import refuse_existing
from converter.quant.imatrix import open_imatrix
from converter.quant.imatrix_writer import DAT, Importance, stored
from converter.request import OWN, PathLike, Source
from converter.storage import output
from converter.storage.disk import Disk
from converter.storage.layout import Layout, whole_file
from converter.storage.slabs import ProgressCallback

EXTENSIONS = (".gguf", DAT)
#: What runs a model meanwhile.
LLAMA_CPP, TRANSFORMERS = RUNTIMES = ("llama.cpp", "transformers")

#: What shows the progress of a stage by its name, and takes it while it is entered.
Showing = Callable[[str], AbstractContextManager[ProgressCallback | None]]


def _silent(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Asked:
    """What is read and looked at.

    Attributes:
        text: a file; else `calibrate` says where text comes from, "own" or "random".
        chunks: how many at most; of a file all, of others `texts.CHUNKS`.
        context: tokens of a chunk; by default 512, or as many as the model was made for.
        special: special tokens that are written out in the file are these.
        process_output: the output's weight is looked at, too.
        complete: what cannot be measured gets what something like it has.
        runtime: "llama.cpp" or "transformers", which reads to Hugging Face folders alone; None takes the first that
            runs the model, in this order.
        run_as: a quant for the temporary GGUF file of a source that is none, or is to be run as another.
        seed: of lots.
    """

    text: Path | None = None
    calibrate: str | None = None
    chunks: int | None = None
    context: int | None = None
    special: bool = False
    process_output: bool = False
    complete: bool = False
    run_as: str | None = None
    runtime: str | None = None
    seed: int = texts.SEED


@dataclass(frozen=True)
class Written:
    """An importance matrix that was written: `made` is None where earlier ones were added up alone."""

    path: Path
    importance: Importance
    events: tuple[Event, ...]
    seconds: float
    made: Made | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        measured = {"runtime": None, "tokens": 0, "missing": []} if self.made is None else self.made.as_dict()
        return {"file": str(self.path), **_of(self.importance), **measured, "seconds": self.seconds,
                "events": [event.as_dict() for event in self.events]}  # fmt: skip


@dataclass(frozen=True)
class Looked:
    """What an importance matrix is like."""

    file: str
    importance: Importance
    weights: Sequence[Statistics]
    layers: Sequence[Layer]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        weights, by_layer = [each.as_dict() for each in self.weights], [vars(each) for each in self.layers]
        return {"file": self.file, **_of(self.importance), "weights": weights, "layers": by_layer}


def _of(importance: Importance) -> dict[str, Any]:
    return {
        "entries": len(importance.entries), "chunks": importance.chunks, "chunk_size": importance.chunk_size,
        "datasets": [dataset_text(each) for each in importance.datasets],
        "silent_experts": {name: found for name, each in importance.entries.items() if (found := each.silent)},
    }  # fmt: skip


def look(path: Path, importance: Importance | None = None) -> Looked:
    """What the importance matrix in a file is like, or what was just written there.

    Raises:
        CorruptFile, OutputError: as `open_imatrix`.
    """
    importance = importance or read(path)
    weights = statistics(importance)
    return Looked(str(path), importance, weights, layers(weights))


def read(path: Path, chunk_size: int = CONTEXT) -> Importance:
    """All of an importance matrix; of a `.dat`, which counts chunks, as if each had `chunk_size` tokens.

    Raises:
        CorruptFile, OutputError: as `open_imatrix`.
    """
    matrix = open_imatrix(path)
    with closing(matrix):
        return stored(matrix, chunk_size)


def make(
    source: PathLike | Source,
    target: PathLike,
    asked: Asked,
    *,
    earlier: Sequence[Path] = (),
    force: bool = False,
    threads: int | None = None,
    showing: Showing = _silent,
) -> Written:
    """Measure a model's importance matrix and write it.

    Args:
        source: any model that llama.cpp runs, or that can be converted to one; a folder that transformers runs.
        target: the file; its name ends in .gguf or .dat.
        asked: what is read.
        earlier: importance matrices of the same model that are added to it, so that a long text can be read in parts.
        force: replace an existing file.
        threads: of the runtime.
        showing: what shows one of the stages, "convert" (of a source that is no GGUF), "write" (its own text), "read".

    Raises:
        UsageError: neither a text nor where it comes from, or a name of no kind of file.
        MissingDependency: the runtime is not installed.
        UnsupportedFeature: it does not run the model.
        OutputExists, SameFile: the file is there already, or is read.
        ConverterError: as `measure`, `texts` and `convert`.
    """
    origin, path = Source.of(source), _target(target, force, [*Source.of(source).paths, *earlier])
    if (asked.text is None) == (asked.calibrate is None):
        raise UsageError("what the model reads: one of --text FILE, --calibrate own, --calibrate random")
    with ExitStack() as held:
        model, notes = _reader(origin, asked, held, threads, showing)
        with showing("write") as progress:
            text = _text(model, asked, threads, progress)
        before = [read(each, max(map(len, text.chunks))) for each in earlier]
        with showing("read") as progress:
            made = measure(model, text, process_output=asked.process_output, threads=threads, progress=progress)
    made = made.with_earlier(before)
    made = made.completed() if asked.complete else made
    made = replace(made, notes=(*notes, *made.notes))
    _write(made.importance.layout(path), force)
    return Written(path, made.importance, made.events, made.seconds, made)


def merge(sources: Sequence[Path], target: PathLike, *, chunk_size: int = CONTEXT, force: bool = False) -> Written:
    """Add importance matrices up, of any kind of file, and write the sum.

    Args:
        sources: of one model.
        target: the file; its name ends in .gguf or .dat.
        chunk_size: tokens of a chunk in a `.dat`.
        force: replace an existing file.

    Raises:
        CorruptFile, OutputError: one of them cannot be read.
        QuantizationError: they are of different models.
        OutputExists, SameFile, UsageError: as `make`.
    """
    started, path = time.monotonic(), _target(target, force, sources)
    total, *others = [read(each, chunk_size) for each in sources]
    for other in others:
        total = total.plus(other)
    _write(total.layout(path), force)
    return Written(path, total, (), time.monotonic() - started)


def _reader(
    source: Source, asked: Asked, held: ExitStack, threads: int | None, showing: Showing
) -> tuple[Reader, tuple[Event, ...]]:
    """The model and what runs it, and what there is to say of that.

    Raises:
        ConverterError: as `make`.
    """
    if asked.runtime == TRANSFORMERS:
        if asked.run_as is not None:
            raise UsageError("--run-as: is the type of a GGUF that llama.cpp runs; transformers computes in F32")
        return ByTransformers(source), ()
    model = source.path
    try:
        with showing("convert") as progress:
            model = held.enter_context(runnable(source, dtype=asked.run_as, threads=threads, progress=progress))
        refuse_crashing(model, threads)
        return ByLlamaCpp(model), ()
    except (MissingDependency, UnsupportedFeature) as error:
        other = _other(source) if asked.runtime is None and asked.run_as is None else None
        if other is None:
            raise
        return other, (Note(f"read by transformers: {said_of(model, error).splitlines()[0]}"),)


def _other(source: Source) -> Reader | None:
    try:
        return ByTransformers(source)
    except (MissingDependency, UnsupportedFeature):
        return None


def _text(model: Reader, asked: Asked, threads: int | None, progress: ProgressCallback | None) -> Text:
    return texts.read(
        model, asked.text or asked.calibrate or OWN, asked.context or texts.usual_context(model), asked.chunks,
        special=asked.special, seed=asked.seed, threads=threads, progress=progress,
    )  # fmt: skip


def _target(target: PathLike, force: bool, inputs: Sequence[Path]) -> Path:
    """Where to write; what stands against it is said before the work."""
    path = Path(target)
    if path.suffix.lower() not in EXTENSIONS:
        raise UsageError(f"{path}: an importance matrix is a .gguf file, or of the older kind a {DAT} file")
    if os.path.lexists(path) and any(each.exists() and path.samefile(each) for each in inputs):
        raise SameFile(f"{path}: output and input are the same file; choose another name")
    refuse_existing(Layout((whole_file(path, b""),)), force, None)
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.parent}: is no folder; make it first")
    return path


def _write(layout: Layout, force: bool) -> None:
    output.write(layout, Disk(layout, replace=force), threads=1)
