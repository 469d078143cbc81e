"""What goes into the matrix products of a model while it reads: every input of every weight, to an observer.

    class Sums:
        def take(self, name, rows, expert): ...     # rows: float32 (tokens, columns)

    with runnable("llama-folder/") as model:
        text = from_file(model, Path("wiki.txt"))
        observe(model, text.chunks, Sums(), wanted=in_block(3))

Nothing is kept here, so that memory is that of the runtime and of the observer; one that cannot hold all of a model (a
second moment is columns times columns) asks for block after block, each in a run of its own.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from converter import pipeline
from converter.errors import Cancelled, UnsupportedFeature, UsageError
from converter.extras import package
from converter.formats.registry import open_checkpoint, source_format
from converter.request import PathLike, Request, Source
from converter.runtimes.base import Floats, Writer
from converter.runtimes.generation import try_out
from converter.runtimes.llama_cpp import LlamaCpp
from converter.runtimes.products import Observer, Products
from converter.storage.files import refuse_elsewhere
from converter.storage.slabs import Progress, ProgressCallback
from converter.workers import default_threads

#: Weights by name.
Wanted = Callable[[str], bool]
OUTPUT = "output.weight"
#: Blocks of a model, of its encoder, of its decoder.
_BLOCK = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.")


def in_blocks(name: str) -> bool:
    """Weights of all blocks, which are those that llama-imatrix looks at."""
    return block_of(name) is not None


def in_block(number: int) -> Wanted:
    """Weights of one block."""
    return lambda name: block_of(name) == number


def and_output(name: str) -> bool:
    """Weights of all blocks, and the output, as llama-imatrix has it with --process-output."""
    return in_blocks(name) or name == OUTPUT


def block_of(name: str) -> int | None:
    """The number of a weight's block."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Observed:
    """What was run.

    Attributes:
        runtime: its name and version.
        tokens: that were read.
        seen: weights whose inputs were handed out; `by_experts` those of them that chosen experts got.
    """

    runtime: str
    tokens: int
    seen: frozenset[str]
    by_experts: frozenset[str]


def observe(
    model: Path,
    chunks: Sequence[Sequence[int]],
    observer: Observer,
    *,
    wanted: Wanted = in_blocks,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Observed:
    """Let a model read chunks of tokens, each from nothing, and tell `observer` what goes into its products.

    Args:
        model: a GGUF file (`runnable` makes one).
        chunks: token ids.
        observer: gets everything from one thread, which is not the one that called this.
        wanted: which weights' inputs, of those in the file.
        threads: of the runtime; None takes all processors.
        progress: called after every chunk, in tokens.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
        UnsupportedFeature: llama.cpp does not run the model, or does not show its products.
        UsageError: tokens that the model has not, or a chunk that is longer than its context.
        Cancelled: `progress` returned False.
        Whatever the observer raises.
    """
    stored = _names(model)
    told = Told(observer)
    products = Products(model, told, lambda name: name in stored and wanted(name))
    with LlamaCpp(model, longest(chunks), threads or default_threads(), products=products) as runtime:
        total = read_all(runtime, model, chunks, progress)
        return Observed(runtime.name, total, frozenset(told.seen), frozenset(products.by_experts))


def longest(chunks: Sequence[Sequence[int]]) -> int:
    """Tokens of the longest."""
    return max(map(len, chunks), default=1)


def read_all(runtime: Writer, model: Path, chunks: Sequence[Sequence[int]], progress: ProgressCallback | None) -> int:
    """Let an opened model read chunks, each from nothing; how many tokens these are.

    Raises:
        UsageError, Cancelled: as `observe`.
    """
    total, done, most = sum(map(len, chunks)), 0, longest(chunks)
    if runtime.context is not None and most > runtime.context:
        raise UsageError(f"{model}: was made for texts of {runtime.context} tokens, not {most}; take shorter chunks")
    for chunk in chunks:
        runtime.read(chunk)
        done += len(chunk)
        if progress is not None and progress(Progress(done, total, runtime.name, unit="tokens")) is False:
            raise Cancelled("cancelled")
    return total


class Told:
    """The observer, and the names that it was told."""

    def __init__(self, observer: Observer) -> None:
        self._take, self.seen = observer.take, set[str]()

    def take(self, name: str, rows: Floats, expert: int | None) -> None:
        self.seen.add(name)
        self._take(name, rows, expert)


def _names(model: Path) -> frozenset[str]:
    with open_checkpoint(model) as checkpoint:
        return frozenset(checkpoint.tensors)


def refuse_crashing(model: Path, threads: int | None = None) -> None:
    """Whether llama.cpp runs a GGUF file, found out in another process: what it dislikes may end the one it is in.

    Raises:
        UnsupportedFeature: it does not.
    """
    finding = try_out(model, "gguf", threads).finding
    if finding is not None:
        raise UnsupportedFeature(f"{model}: llama.cpp does not run it: {finding.message}")


@contextmanager
def runnable(
    source: PathLike | Source,
    *,
    dtype: str | None = None,
    folder: Path | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Iterator[Path]:
    """A GGUF file that llama.cpp runs: the source itself if it is one, else made of it and gone in the end.

    Args:
        source: any model that can be converted.
        dtype: a quant for the file that is made ("q8_0" takes half the room of BF16); by default the numbers as the
            source has them.
        folder: where it lies meanwhile; by default the system's place for such files.
        threads, progress: of the conversion.

    Raises:
        MissingDependency: llama-cpp-python is not installed; this is said before anything is converted.
        ConverterError: as `convert`.
    """
    origin = Source.of(source)
    package("llama_cpp", f"{origin.path}: running it")
    if dtype is None and source_format(origin.path, origin.format).name == "gguf" and not origin.adapters:
        refuse_elsewhere(origin.path, "what runs a model")
        yield origin.path
        return
    with tempfile.TemporaryDirectory(prefix="model-converter-", dir=folder) as scratch:
        path = Path(scratch) / "model.gguf"
        pipeline.convert(origin, path, Request(quant=dtype), threads=threads, progress=progress)
        yield path
