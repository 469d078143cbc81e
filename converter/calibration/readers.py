"""Models that a text is read to, by one runtime or another; all else here asks for no more than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from converter.calibration.activations import Observed, Wanted, in_blocks, observe
from converter.formats.registry import open_checkpoint
from converter.metadata import number_of, text_of
from converter.runtimes import llama_cpp
from converter.runtimes.base import RuntimeTokenizer, Writer
from converter.runtimes.products import Observer
from converter.storage.slabs import ProgressCallback
from converter.tensors.tensor import TensorInfo


class Reader(ABC):
    """A model, and what runs it. `path` is where it lies, for messages."""

    path: Path

    @abstractmethod
    def tokenizer(self, special: bool = True) -> RuntimeTokenizer | None:
        """What cuts its text; None where it has no vocabulary. `special`: tokens that are written out are these."""

    @abstractmethod
    def writer(self, context: int, threads: int, texts: int = 1) -> Writer:
        """The model, opened to write so many texts of so many tokens side by side."""

    @abstractmethod
    def made_for(self) -> int | None:
        """Tokens of a text that it was made for, where it says so."""

    @abstractmethod
    def infos(self) -> Sequence[TensorInfo]:
        """All weights, under the names that a GGUF has for them."""

    @abstractmethod
    def observe(
        self,
        chunks: Sequence[Sequence[int]],
        observer: Observer,
        *,
        wanted: Wanted = in_blocks,
        threads: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Observed:
        """Let it read chunks of tokens, each from nothing, and tell what goes into its products.

        Raises:
            ConverterError: as `activations.observe`.
        """


class ByLlamaCpp(Reader):
    """A GGUF file, read to by llama.cpp."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def tokenizer(self, special: bool = True) -> RuntimeTokenizer | None:
        return llama_cpp.tokenizer(self.path, special)

    def writer(self, context: int, threads: int, texts: int = 1) -> Writer:
        return llama_cpp.LlamaCpp(self.path, context, threads, texts=texts)

    def made_for(self) -> int | None:
        with open_checkpoint(self.path) as checkpoint:
            architecture = text_of(checkpoint.config, "general.architecture")
            return number_of(checkpoint.config, f"{architecture}.context_length", "u32", "u64")

    def infos(self) -> Sequence[TensorInfo]:
        with open_checkpoint(self.path) as checkpoint:
            return [tensor.info for tensor in checkpoint.tensors.values()]

    def observe(
        self,
        chunks: Sequence[Sequence[int]],
        observer: Observer,
        *,
        wanted: Wanted = in_blocks,
        threads: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Observed:
        return observe(self.path, chunks, observer, wanted=wanted, threads=threads, progress=progress)


def reader_of(model: Path | Reader) -> Reader:
    """A GGUF file's reader is llama.cpp."""
    return ByLlamaCpp(model) if isinstance(model, Path) else model
