"""Importance of a weight's columns, measured as llama-imatrix measures it: sums of squares of what they multiply.

    with runnable("llama-folder/") as model:
        made = measure(model, from_file(model, Path("wiki.txt")))
    made.importance.layout(Path("imatrix.gguf"))

Memory is that of the runtime and 8 bytes for every column of every weight, of experts each: a thousandth of the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.architectures.traits import Traits
from converter.calibration.activations import and_output, block_of, in_blocks
from converter.calibration.readers import Reader, reader_of
from converter.calibration.texts import Text
from converter.errors import UnsupportedFeature, UsageError
from converter.events import Event, Note, few
from converter.quant.imatrix_writer import Importance, Measured
from converter.quant.recipes import TensorSpec, kept_because
from converter.runtimes.base import Floats
from converter.storage.slabs import ProgressCallback
from converter.tensors.tensor import TensorInfo
from converter.text import counted

_LONGEST = 48  # bytes of a text's name that is kept beside its hash: llama-quantize has room for 127 of both


@dataclass(frozen=True)
class Made:
    """What measuring gave.

    Attributes:
        importance: of every weight that was seen.
        tokens: that were read.
        runtime: which read them.
        missing: weights that may be quantized and have no importance, as nothing was multiplied by them.
        notes: what was completed, and by what.
        seconds: it took.
    """

    importance: Importance
    tokens: int
    runtime: str
    missing: tuple[TensorInfo, ...]
    seconds: float
    notes: tuple[Event, ...] = ()

    @property
    def silent(self) -> dict[str, list[int]]:
        """Experts that got no row, by weight."""
        return {name: found for name, each in self.importance.entries.items() if (found := each.silent)}

    @property
    def events(self) -> tuple[Event, ...]:
        """What the user should know of it."""
        notes = []
        if self.silent:
            experts = sum(map(len, self.silent.values()))
            words = f"{counted(experts, 'expert')} of {counted(len(self.silent), 'weight')} got no token"
            notes.append(f"{words} and count as equally important in all columns; more text may reach them")
        if self.missing:
            notes.append(
                f"nothing was multiplied by {few([info.name for info in self.missing])}: no importance for them"
            )
        return (*map(Note, notes), *self.notes)

    def completed(self) -> Made:
        """With what could not be measured, by analogy (`completed`)."""
        importance, notes = completed(self.importance, self.missing)
        missing = tuple(info for info in self.missing if info.name not in importance.entries)
        return replace(self, importance=importance, missing=missing, notes=notes)

    def with_earlier(self, earlier: Iterable[Importance]) -> Made:
        """Together with what was measured before.

        Raises:
            QuantizationError: a weight has another size there.
        """
        importance = self.importance
        for each in earlier:
            importance = importance.plus(each)
        missing = tuple(info for info in self.missing if info.name not in importance.entries)
        return replace(self, importance=importance, missing=missing)

    def as_dict(self) -> dict[str, Any]:
        """What the matrix itself does not say, as JSON."""
        return {"runtime": self.runtime, "tokens": self.tokens, "missing": [info.name for info in self.missing]}


@dataclass
class Sums:
    """An observer that adds up squares. Those of an input that several weights share are computed once."""

    entries: dict[tuple[str, int | None], tuple[NDArray[np.float64], int]] = field(default_factory=dict)
    _last: Floats | None = None
    _squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def take(self, name: str, rows: Floats, expert: int | None) -> None:
        """As an observer is told.

        Raises:
            UnsupportedFeature: the model computes what is no number.
        """
        if rows is not self._last:
            self._last, self._squares = rows, np.einsum("ij,ij->j", rows, rows).astype(np.float64)
            if not np.isfinite(self._squares).all():
                raise UnsupportedFeature(f"{name}: what it is multiplied by is infinite or NaN on this text")
        sums, count = self.entries.get((name, expert), (0.0, 0))
        self.entries[name, expert] = (sums + self._squares, count + len(rows))

    def measured(self, infos: Iterable[TensorInfo], by_experts: frozenset[str]) -> Iterator[tuple[str, Measured]]:
        """What was added up of each of these weights; of stacks that are no experts one count for all matrices."""
        for info in infos:
            stacked = int(np.prod(info.shape[:-2]))
            keys: list[int | None] = [None] if (info.name, None) in self.entries else list(range(stacked))
            found = [self.entries.get((info.name, key), (np.zeros(info.row), 0)) for key in keys]
            counts = np.array([count for _, count in found], np.int64)
            if counts.any():
                shared = info.name not in by_experts
                yield info.name, Measured(np.concatenate([sums for sums, _ in found]), counts[:1] if shared else counts)


def dataset(text: Text) -> str:
    """What a file says of a text: its name, without the folders before it, and its hash."""
    return f"{text.name.encode()[:_LONGEST].decode('utf-8', 'ignore')} sha256:{text.sha256}"


def dataset_text(name: str | bytes) -> str:
    """The name of a data set for people."""
    return name if isinstance(name, str) else name.decode("utf-8", "replace")


def measure(
    model: Path | Reader,
    text: Text,
    *,
    process_output: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Made:
    """Let a model read a text, and add up what goes into its products.

    Args:
        model: a GGUF file (`activations.runnable` makes one), or another model that can be read to.
        text: what it reads.
        process_output: also of the output's weight.
        threads, progress: as for `observe`.

    Raises:
        ConverterError: as `observe`; the model has no product that is looked at, or computes what is no number.
    """
    started, sums = time.monotonic(), Sums()
    wanted = and_output if process_output else in_blocks
    reader = reader_of(model)
    seen = reader.observe(text.chunks, sums, wanted=wanted, threads=threads, progress=progress)
    infos = reader.infos()
    entries = dict(sums.measured((info for info in infos if info.name in seen.seen), seen.by_experts))
    if not entries:
        raise UsageError(f"{reader.path}: {seen.runtime} multiplies no weight of its blocks: nothing to measure")
    importance = Importance(entries, (dataset(text),), max(map(len, text.chunks)))
    missing = tuple(info for info in infos if info.name not in entries and _wants(info))
    return Made(importance, seen.tokens, seen.runtime, missing, time.monotonic() - started)


def completed(importance: Importance, missing: Iterable[TensorInfo]) -> tuple[Importance, tuple[Event, ...]]:
    """With what could not be measured, by analogy, as if one row had been seen, so that more text soon outweighs it.

    An expert without a row gets the mean over those of its weight that got some. A weight that nothing was multiplied
    by (of blocks that predict further tokens) gets the importance of the same weight in the nearest block before that
    has one of its size; what has none stays without.
    """
    entries = {name: _all_spoken(each) for name, each in importance.entries.items()}
    experts = sum(len(each.silent) for each in importance.entries.values())
    found: dict[str, str] = {}
    for info in missing:
        size = int(np.prod(info.shape[:-2])) * info.row
        model = next(
            (name for name in _earlier(info.name) if name in entries and entries[name].sums.size == size), None
        )
        if model is not None:
            found[info.name] = model
    for name, model in found.items():
        means = entries[model].means()
        entries[name] = Measured(means.reshape(-1), np.ones(len(means), np.int64))
    notes = [f"{counted(experts, 'expert')} that got no token: the mean of the others"] * bool(experts)
    notes += [f"{name}: as {model}" for name, model in found.items()]
    return Importance(entries, importance.datasets, importance.chunk_size), tuple(map(Note, notes))


def _all_spoken(each: Measured) -> Measured:
    silent = each.counts == 0
    if not silent.any() or silent.all():
        return each
    columns = np.where(silent[:, None], each.means()[~silent].mean(axis=0), each.columns)
    return Measured(columns.reshape(-1), np.where(silent, 1, each.counts))


def _earlier(name: str) -> Iterator[str]:
    """The same weight in the blocks before, the nearest first."""
    block = block_of(name)
    for number in range((block or 0) - 1, -1, -1):
        yield name.replace(f"blk.{block}.", f"blk.{number}.", 1)


def _wants(info: TensorInfo) -> bool:
    """Whether a weight of a block may be quantized to a type whose encoder asks for importance."""
    kept = kept_because(TensorSpec(info.name, info.shape, info.dtype.name), Traits(), leave_output=True)
    return in_blocks(info.name) and kept is None
