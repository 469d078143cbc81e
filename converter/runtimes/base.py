"""What every runtime offers the comparison, and what the runtimes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConverterError, UnsupportedFeature

Floats = NDArray[np.float32]
Named = dict[str, NDArray[Any]]
Kind = Literal["logits", "embedding", "values"]


@dataclass(frozen=True)
class RuntimeTokenizer:
    """A text's token ids, with the special tokens that the tokenizer puts around it.

    `bos` is the id that it puts in front of every text, None if it puts none there.
    """

    encode: Callable[[str], list[int]]
    bos: int | None


class Runtime(ABC):
    """A model that is loaded and can be asked. A context manager that lets go of it.

    What it can be asked for depends on its `kind`; a runtime has the methods of the kinds that it loads.

    Attributes:
        name: of the runtime, with its version, for the report.
        kind: what it can be asked for: "logits" (causal language models), "embedding" (encoders) or "values" (any
            other graph).
        context: tokens that it takes at once; None where nothing says.
    """

    name: str
    kind: Kind
    context: int | None = None

    def logits(self, ids: Sequence[int], first: int) -> Floats:
        """The logits that follow the positions from `first` to the last but one, a row of the vocabulary each."""
        raise NotImplementedError

    def embedding(self, ids: Sequence[int]) -> Floats:
        """The mean of the last layer's vectors over all tokens, one axis."""
        raise NotImplementedError

    def inputs(self, random: np.random.Generator) -> Named:
        """Random inputs that the graph takes, float32."""
        raise NotImplementedError

    def values(self, inputs: Named) -> Named:
        """The graph's outputs."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Writer(Runtime):
    """A language model that reads and continues texts."""

    @abstractmethod
    def read(self, ids: Sequence[int]) -> None:
        """Compute all positions of a text, and all that a model computes of one, for the sake of its products."""

    @abstractmethod
    def controls(self) -> NDArray[np.bool_]:
        """Which token ids no text has: control tokens and such, unused ones, and those that end a text."""

    @abstractmethod
    def continued(self, last: Sequence[int], position: int) -> Floats:
        """The logits behind each of several texts, (texts, vocabulary), of which these are the last tokens.

        All have `position` tokens in front of it, which were given before; 0 begins anew.
        """


@contextmanager
def failures(path: Path, runtime: str) -> Iterator[None]:
    """Whatever a runtime raises about a model is one line that names both: they raise nearly anything."""
    try:
        yield
    except (ConverterError, MemoryError):
        raise
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        raise UnsupportedFeature(f"{path}: {runtime} does not run it: {text.splitlines()[0][:300]}") from error
