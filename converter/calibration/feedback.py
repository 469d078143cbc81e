"""Make a calibration: read a text with the model, and keep how the inputs of each matrix go together.

    calibrate("llama-folder/", Path("llama.calibration.safetensors"), "own")

Second moments are columns times columns, so that those of a whole model are never in memory: the text is read again
for each group of blocks that memory has room for, and what came of a block is kept in a file of its own until all are
done. A run that was stopped goes on with those.

An expert that met as many tokens as it has columns is calibrated by these; the other experts of its block together, by
the tokens of all experts of the block.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter import __version__
from converter.calibration import texts
from converter.calibration.activations import Wanted, block_of, observe, runnable
from converter.calibration.moments import DAMPING, Moments, solved
from converter.calibration.texts import Text
from converter.checkpoint import Checkpoint
from converter.errors import ConverterError, FormatError, MissingPart, OutputExists
from converter.formats.base import WriteOptions
from converter.formats.registry import open_checkpoint
from converter.formats.safetensors import layout, open_file
from converter.planning.preflight import memory_free
from converter.quant.feedback import FORM, FORM_KEY, SUFFIX
from converter.request import CALIBRATION_TOKENS, PathLike, Source
from converter.storage import output
from converter.storage.json import read_json
from converter.storage.slabs import Progress, ProgressCallback
from converter.tensors.dtypes import BF16
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

_PARTS = ".parts"
_TEXT = "text.json"
_LEAST_MEMORY = 256 << 20
_NO_BLOCK = -1
_POOLED = -1  # of all experts of a block together

#: What one group of weights goes by: the first weight with an input, and the experts' numbers (None: no experts).
Moment = dict[int | None, Moments]


def default_path(source: Source, how: str | Path, folder: Path) -> Path:
    """Where a calibration of `source` by this text is kept that nobody gave a name."""
    path, text = source.path, how.name if isinstance(how, Path) else how
    return folder / f"{path.name.removesuffix(path.suffix) if path.is_file() else path.name}.{text}{SUFFIX}"


def calibrate(
    source: PathLike | Source,
    target: Path,
    how: str | Path,
    *,
    tokens: int = CALIBRATION_TOKENS,
    context: int = texts.CONTEXT,
    damping: float = DAMPING,
    memory: int | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Write the calibration of a model.

    Args:
        source: any model that can be converted to one that llama.cpp runs.
        target: the file to be; what is done of it is in `target`.parts meanwhile.
        how: "own" for a text that the model writes, "random" for tokens by lot, or a file with a text.
        tokens: how many are read at most.
        context: tokens of a chunk.
        damping: see `moments`.
        memory: bytes that second moments may take; by default half of what is free, at least those of one block.
        force: replace a file that is there.
        threads: workers; by default as many as there are processors.
        progress: called now and then; returning False cancels.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
        UnsupportedFeature: llama.cpp does not run the model, or activations that are not finite.
        UsageError, MissingPart: as `texts`; no matrix of the model was seen.
        OutputExists: the file is there.
        ConverterError: as `convert`.
    """
    source = Source.of(source)
    if os.path.lexists(target) and not force:
        raise OutputExists(f"{target}: exists; --calibrate {target} uses it, --force makes it again")
    with runnable(source, threads=threads) as model:
        run = _Run(target, model, how, tokens, context, damping, _identity(source, how), threads, progress)
        run.make(memory or usable_memory())


def usable_memory() -> int:
    """Bytes that second moments may take where nobody says."""
    return max(_LEAST_MEMORY, (memory_free() or 0) // 2)


def more_at_once(at_once: int, largest: int, memory: int) -> int:
    """Blocks of the next reading, by the bytes that second moments of the largest so far took."""
    return max(1, min(2 * at_once, memory // largest))


def _identity(source: Source, how: str | Path) -> str:
    """What tells the source and the text from any other, for a run that goes on."""
    with open_checkpoint(source) as opened:
        files = [f"{path}: {identity}" for path, identity in opened.opened.identities()]
    text = hashlib.sha256(how.read_bytes()).hexdigest() if isinstance(how, Path) else how
    return "\n".join([text, *files])


@dataclass(frozen=True)
class _Run:
    target: Path
    model: Path
    how: str | Path
    tokens: int
    context: int
    damping: float
    identity: str
    threads: int | None
    progress: ProgressCallback | None

    @property
    def folder(self) -> Path:
        return self.target.with_name(self.target.name + _PARTS)

    @property
    def key(self) -> str:
        """What parts must have been made of to be gone on with."""
        said = [__version__, self.identity, self.tokens, self.context, self.damping]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def make(self, memory: int) -> None:
        """Read the text as often as memory makes it necessary, and write the file."""
        text = self._text()
        left = [number for number in self._blocks() if not self._is_done(number)]
        at_once, largest = 1, 1  # what a block takes is learned of those before, and some are larger than others
        while left:
            now, left = left[:at_once], left[at_once:]
            largest = max(largest, self._read(now, text))
            at_once = more_at_once(at_once, largest, memory)
        self._join(text)
        shutil.rmtree(self.folder)

    def _blocks(self) -> list[int]:
        """The numbers of all blocks, and what stands for what is in none."""
        with open_checkpoint(self.model) as opened:
            names = [name for name, tensor in opened.tensors.items() if len(tensor.info.shape) > 1]
        numbers = {_number(name) for name in names}
        return [*sorted(numbers - {_NO_BLOCK}), *(numbers & {_NO_BLOCK})]

    def _text(self) -> Text:
        """The text, which a run that goes on reads again as it was."""
        kept = self.folder / _TEXT
        with suppress(OSError, ConverterError):
            said = read_json(kept)
            if said.get("key") == self.key:
                return Text(said["chunks"], said["name"], said["sha256"])
        context = min(self.tokens, texts.usual_context(self.model, self.context))
        chunks = max(1, self.tokens // context)
        text = texts.read(self.model, self.how, context, chunks, threads=self.threads, progress=self.progress)
        said = {"key": self.key, "name": text.name, "sha256": text.sha256, "chunks": text.chunks}
        self.folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(said), "utf-8")
        return text

    def _part(self, number: int) -> Path:
        return self.folder / f"{'rest' if number == _NO_BLOCK else f'block-{number}'}.safetensors"

    def _is_done(self, number: int) -> bool:
        part = self._part(number)
        try:
            if not part.is_file():
                return False
            with open_file(part) as opened:
                return opened.metadata.get("key") == self.key
        except FormatError:
            return False

    def _read(self, numbers: Sequence[int], text: Text) -> int:
        """Write the parts of some blocks; returns the bytes that second moments of the largest took."""
        seen = _Seen()
        found = observe(
            self.model, text.chunks, seen, wanted=_in(numbers), threads=self.threads, progress=self._told(numbers)
        )
        taken = Counter[int]()
        for name, moment in seen.moments.items():
            taken[_number(name)] += sum(each.nbytes for each in moment.values())
        for number in numbers:
            own = {name: first for name, first in seen.first.items() if _number(name) == number}
            self._write_part(number, own, seen.moments, found.runtime)
        return max(taken.values(), default=0)

    def _told(self, numbers: Sequence[int]) -> ProgressCallback | None:
        if self.progress is None:
            return None
        progress, names = self.progress, f"blocks {numbers[0]} to {numbers[-1]}"

        def told(now: Progress) -> bool | None:
            return progress(replace(now, tensor=names))

        return told

    def _write_part(self, number: int, first: Mapping[str, str], moments: dict[str, Moment], runtime: str) -> None:
        factors: dict[str, list[NDArray[np.uint8]]] = {}
        of: dict[str, dict[int | None, int]] = {}
        for name in dict.fromkeys(first.values()):
            factors[name], of[name] = _factors(name, moments.pop(name), self.damping)
        tensors = {name: _stored(name, each) for name, each in factors.items() if each}
        uses = {name: [own, self._use(name, of[own])] for name, own in first.items() if own in tensors}
        digests = {name: _digest(factors[name]) for name in tensors}
        said = {"key": self.key, "runtime": runtime, "tensors": json.dumps(uses), "digests": json.dumps(digests)}
        _write(self._part(number), tensors, said, self.threads)

    def _use(self, name: str, of: Mapping[int | None, int]) -> list[int]:
        """Which factor each matrix of a weight has: its own, or the last, which is that of all together."""
        if None in of:
            return [of[None]]
        with open_checkpoint(self.model) as opened:
            stacked = opened.tensors[name].info.shape[-3]
        return [of.get(expert, of[_POOLED]) for expert in range(stacked)]

    def _join(self, text: Text) -> None:
        """One file of all parts."""
        with ExitStack() as held:
            parts = [held.enter_context(open_file(self._part(number))) for number in self._blocks()]
            tables: dict[str, dict[str, Any]] = {"tensors": {}, "digests": {}}
            for part, (key, table) in ((part, each) for part in parts for each in tables.items()):
                table.update(json.loads(part.metadata[key]))
            if not tables["tensors"]:
                raise MissingPart(f"{self.model}: no input of a matrix was seen, so that there is nothing to calibrate")
            said = {
                FORM_KEY: FORM, "tool": f"converter {__version__}", "runtime": parts[0].metadata["runtime"],
                "kind": self.how if isinstance(self.how, str) else "text", "text_sha256": text.sha256,
                "tokens": str(text.tokens), "context": str(self.context), "damping": repr(self.damping),
                **{key: json.dumps(table, sort_keys=True) for key, table in tables.items()},
            }  # fmt: skip
            _write(self.target, {name: t for part in parts for name, t in part.tensors.items()}, said, self.threads)


class _Seen:
    """Second moments of all inputs that are handed out; weights with one input share them."""

    def __init__(self) -> None:
        self.moments: dict[str, Moment] = {}
        self.first: dict[str, str] = {}
        self._name = ""
        self._inputs: dict[int | None, NDArray[np.float32]] = {}

    def take(self, name: str, rows: NDArray[np.float32], expert: int | None) -> None:
        """Take the rows in, unless they are those of the weight before."""
        if self._inputs.get(expert) is not rows:
            if name != self._name:
                self._name, self._inputs = name, {}
            self._inputs[expert] = rows
        if self.first.setdefault(name, self._name) == name:
            moment = self.moments.setdefault(name, {})
            if expert not in moment:
                moment[expert] = Moments(rows.shape[1])
            moment[expert].add(rows)


def _number(name: str) -> int:
    number = block_of(name)
    return _NO_BLOCK if number is None else number


def _in(numbers: Sequence[int]) -> Wanted:
    wanted = frozenset(numbers)
    return lambda name: _number(name) in wanted


def _factors(name: str, moment: Moment, damping: float) -> tuple[list[NDArray[np.uint8]], dict[int | None, int]]:
    """The factors of an input, and which of them each expert (or None) has; those that lack have that of `_POOLED`."""
    made: list[NDArray[np.uint8]] = []
    of: dict[int | None, int] = {}

    def solve(whose: int | None, moments: Moments) -> None:
        if (found := solved(moments, name, damping)) is not None:
            of[whose] = len(made)
            made.append(found.packed())

    for expert, each in moment.items():
        if expert is None or each.finish().tokens >= len(each.sums):
            solve(expert, each)
    if None not in moment:
        first, *others = moment.values()
        for other in others:
            first.merge(other)
        solve(_POOLED, first)
    return made, of


def _digest(factors: Sequence[NDArray[np.uint8]]) -> str:
    sha = hashlib.sha256()
    for each in factors:
        sha.update(each.data)
    return sha.hexdigest()


def _stored(name: str, factors: Sequence[NDArray[np.uint8]]) -> LazyTensor:
    info = TensorInfo(name, (len(factors), len(factors[0]) // 2), BF16)

    def read(start: int, stop: int) -> Rows:
        return np.stack(factors[start:stop]) if stop > start else np.empty((0, info.row_nbytes), np.uint8)

    return LazyTensor(info, read, "a factor")


def _write(path: Path, tensors: Mapping[str, LazyTensor], said: Mapping[str, str], threads: int | None) -> None:
    made = Checkpoint("safetensors", path, None, tensors, metadata=said)
    output.write(layout(made, path, WriteOptions()), threads=threads)
