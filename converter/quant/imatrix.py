"""Importance matrices: how much each column of a weight matters, as llama-imatrix measured it on a text.

Two kinds of files are read, both lazily:

- GGUF (`general.type` "imatrix"): for every weight NAME a tensor `NAME.in_sum2`, sums of squared activations, F32
  (matrices, row), and `NAME.counts`, how many activations went into each of the stacked matrices, F32 (matrices, 1).
- the older `.dat`, little-endian: int32 number of entries; for each an int32 length and a name, int32 calls, int32
  number of values and the values, float32, already divided by the count and multiplied by the calls; then, in all but
  the oldest, int32 chunks and an int32 length and name of the data set.

Importance is the mean of squares, in float32. A matrix of which nothing was counted (an expert that never spoke) has
importance 1 everywhere. Importance belongs to the columns that a weight is multiplied by, so that what conversion does
to its rows (as the permutation for rotary positions) does not touch it. Source: llama.cpp's imatrix loader and
llama-quantize; where they crash or go on with nonsense, this raises.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingImportance, QuantizationError, UsageError, short
from converter.events import Event, NoImportance, Note
from converter.formats.gguf import MAGIC, open_gguf
from converter.metadata import Metadata, Value, array_of, number_of, u32
from converter.quant.recipes import TOKEN_EMBEDDINGS, Recipe, needs_imatrix
from converter.remote.mirror import hold
from converter.storage.files import Bytes, open_bytes
from converter.storage.windows import Cursor
from converter.tensors.tensor import LazyTensor, TensorInfo

Floats = NDArray[np.float32]

# Types whose encoder asks for importance. The others (Q8_0, the ternary and the 1-, 2- and 4-bit float types, all
# dense ones) come out the same with and without.
WEIGHTED = frozenset((
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M",
))  # fmt: skip

KEYS = (
    "quantize.imatrix.file",
    "quantize.imatrix.dataset",
    "quantize.imatrix.entries_count",
    "quantize.imatrix.chunks_count",
)
TYPE, DATASETS = "general.type", "imatrix.datasets"
CHUNKS, CHUNK_SIZE = "imatrix.chunk_count", "imatrix.chunk_size"
SUMS, COUNTS = ".in_sum2", ".counts"
_MAX_TEXT = 127  # bytes of a text that llama-quantize's overrides hold
MAX_DATASETS = 1000  # that are read of a file
_I32 = struct.Struct("<i")
_SMALLEST_ENTRY = 4 + 1 + 4 + 4 + 4
_CHECKED_AT_ONCE = 1 << 20  # values


@dataclass(frozen=True)
class Entry:
    """What a file says of one tensor: `size` sums, of which `read(start, stop)` returns a range as float32.

    `read_counts()` returns what divides them, whole float32 numbers, each for an equal share; where one is zero the
    importance is 1. Both come from the map every time, so that no matrix has to fit into memory.
    """

    size: int
    read_counts: Callable[[], Floats]
    read: Callable[[int, int], Floats]

    def values(self, start: int, stop: int) -> Floats:
        """Importance [start, stop), float32."""
        counts = self.read_counts()
        counts = counts[np.arange(start, stop) // (self.size // len(counts))]
        return np.divide(self.read(start, stop), counts, out=np.ones(stop - start, np.float32), where=counts > 0)


@dataclass(frozen=True)
class Weights:
    """Importance of the columns of a tensor's stacked matrices: a sequence of float32 (row,), read when asked for."""

    entry: Entry
    row: int
    matrix: str

    def __len__(self) -> int:
        return self.entry.size // self.row

    def __getitem__(self, matrix: int) -> Floats:
        if not 0 <= matrix < len(self):
            raise IndexError(f"matrix {matrix} of {len(self)}")
        return self.entry.values(matrix * self.row, (matrix + 1) * self.row)


@dataclass(frozen=True)
class ImportanceMatrix:
    """An open file. `left_out` are the names of entries that the user excluded; `n_chunks` is 0 where unknown.

    `chunk_size` is the tokens of a chunk; 0 in a `.dat`, where sums are of chunks and not of tokens.
    """

    path: Path
    entries: Mapping[str, Entry]
    datasets: tuple[str | bytes, ...]
    n_chunks: int
    close: Callable[[], None]
    left_out: frozenset[str] = frozenset()
    chunk_size: int = 0

    def metadata(self) -> Metadata:
        """The keys that llama-quantize adds, in its order and with its types; texts end after 127 bytes as there.

        Unlike there, `quantize.imatrix.file` and `.dataset` are names without the folders before them, which are
        nobody's business.
        """
        keys: Metadata = {KEYS[0]: file_name(self.path.name)}
        if self.datasets:
            keys[KEYS[1]] = file_name(self.datasets[0])
        keys[KEYS[2]] = u32(len(self.entries))
        if self.n_chunks > 0:
            keys[KEYS[3]] = u32(self.n_chunks)
        return keys


def file_name(path: str | bytes) -> Value:
    """The name at the end of a path, as much of it as llama-quantize has room for."""
    data = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    name = re.split(rb"[/\\]", data.split(b"\0")[0].rstrip(b"/\\"))[-1][:_MAX_TEXT]
    try:
        return Value("str", name.decode("utf-8"))
    except UnicodeDecodeError:
        return Value("str", name)


@dataclass(frozen=True)
class Foreseen:
    """Weights of a tensor by a matrix that is not at hand: of a plan that only tells."""

    info: TensorInfo
    matrix: str = "none"

    def __len__(self) -> int:
        return math.prod(self.info.shape[:-2])

    def __getitem__(self, matrix: int) -> Floats:
        raise MissingImportance(f"{self.info.name}: was planned for an importance matrix; pass --imatrix FILE")


# --------------------------------------------------------------------------------------------- reading


def open_imatrix(path: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> ImportanceMatrix:
    """The importance matrix in `path`, GGUF or `.dat`, without what the user does not want.

    Args:
        path: the file.
        include: parts of names; if there are any, only entries with one of them in their names stay.
        exclude: parts of names; entries with one of them in their names go.

    Raises:
        CorruptFile: neither kind of file, truncated, contradictory, or with values that no mean of squares can have.
        UsageError: a part that is in no name, or nothing is left.
        OutputError: it cannot be read.
    """
    with ExitStack() as held:
        held.callback(hold(path))
        mapped = open_bytes(path)
        held.callback(mapped.close)
        if bytes(mapped.view(0, min(4, mapped.size), "the magic")) == MAGIC:
            matrix = _from_gguf(path)
            held.callback(matrix.close)
        else:
            matrix = _from_dat(mapped)
        matrix = _selected(matrix, include, exclude)
        for name, entry in matrix.entries.items():
            _check_values(path, name, entry)
        return replace(matrix, close=held.pop_all().close)


def _selected(matrix: ImportanceMatrix, include: Sequence[str], exclude: Sequence[str]) -> ImportanceMatrix:
    for flag, parts in (("--include-weights", include), ("--exclude-weights", exclude)):
        for part in parts:
            if not any(part in name for name in matrix.entries):
                raise UsageError(
                    f"{flag} {part}: is in no name of {matrix.path.name}, which has {_some(matrix.entries)}"
                )
    kept = {
        name: entry
        for name, entry in matrix.entries.items()
        if not any(part in name for part in exclude) and (not include or any(part in name for part in include))
    }
    if not kept:
        raise UsageError(f"{matrix.path.name}: --exclude-weights leaves no entry; leave out --imatrix instead")
    return replace(matrix, entries=kept, left_out=frozenset(matrix.entries.keys() - kept.keys()))


def _check_values(path: Path, name: str, entry: Entry) -> None:
    if not _sound(entry.read_counts()):
        raise CorruptFile(f"{path}: the counts of {short(name)} are negative, infinite or NaN")
    for start in range(0, entry.size, _CHECKED_AT_ONCE):
        if not _sound(entry.read(start, min(entry.size, start + _CHECKED_AT_ONCE))):
            raise CorruptFile(
                f"{path}: the entry of {short(name)} has values that are negative, infinite or NaN\n"
                "--exclude-weights NAME does without it"
            )


def _sound(numbers: Floats) -> bool:
    return bool((np.isfinite(numbers) & (numbers >= 0)).all())


def _from_gguf(path: Path) -> ImportanceMatrix:
    checkpoint = open_gguf(path)
    try:
        _check_kind(path, checkpoint)
        tensors = checkpoint.tensors
        names = {name.removesuffix(end) for end in (SUMS, COUNTS) for name in tensors if name.endswith(end)}
        if not names:
            raise CorruptFile(f"{path}: this importance matrix has no entry")
        entries = {
            name: _gguf_entry(path, name, tensors.get(name + SUMS), tensors.get(name + COUNTS))
            for name in sorted(names)
        }
        chunks, size = (_count(path, checkpoint, key) for key in (CHUNKS, CHUNK_SIZE))
        return ImportanceMatrix(path, entries, _datasets(path, checkpoint), chunks, checkpoint.close, chunk_size=size)
    except BaseException:
        checkpoint.close()
        raise


def _check_kind(path: Path, checkpoint: Checkpoint) -> None:
    kind = checkpoint.config.get(TYPE)
    missing = [key for key in (DATASETS, CHUNKS, CHUNK_SIZE) if key not in checkpoint.config]
    if missing or (kind is not None and kind != Value("str", "imatrix")):
        reason = f"{missing[0]} is missing" if missing else f"{TYPE} is {short(getattr(kind, 'value', kind))}"
        raise CorruptFile(f"{path}: a GGUF file, but not an importance matrix ({reason})")


def _gguf_entry(path: Path, name: str, sums: LazyTensor | None, counts: LazyTensor | None) -> Entry:
    if sums is None or counts is None:
        raise CorruptFile(f"{path}: {short(name)} has {COUNTS if sums is None else SUMS} alone")
    if sums.info.dtype.name != "F32" or counts.info.dtype.name != "F32":
        raise CorruptFile(f"{path}: the entry of {short(name)} is not of type F32")
    size, n = sums.info.n_elements, counts.info.n_elements
    if not size or not n or size % n:
        raise CorruptFile(f"{path}: {short(name)} has {size} values, which {n} counts do not share")

    def read_counts() -> Floats:
        counted = counts.array().reshape(-1).astype(np.float64)
        return np.floor(counted + 0.5).astype(np.float32)  # as C's lround, where they are not negative

    def read(start: int, stop: int) -> Floats:
        row = sums.info.row
        first, last = start // row, -(-stop // row)
        return sums.rows(first, last).reshape(-1).view("<f4")[start - first * row : stop - first * row]

    return Entry(size, read_counts, read)


def _datasets(path: Path, checkpoint: Checkpoint) -> tuple[str | bytes, ...]:
    names = array_of(checkpoint.config, DATASETS, "str")
    if names is None:
        raise CorruptFile(f"{path}: {DATASETS} is not a list of texts")
    return tuple(name for name in names.values[:MAX_DATASETS] if isinstance(name, str | bytes))


def _count(path: Path, checkpoint: Checkpoint, key: str) -> int:
    count = number_of(checkpoint.config, key, "u32")
    if count is None:
        raise CorruptFile(f"{path}: {key} is not a u32")
    return count


def _from_dat(mapped: Bytes) -> ImportanceMatrix:
    cursor = Cursor(mapped)
    count = _int32(cursor, "the number of entries")
    if not 0 < count <= cursor.left // _SMALLEST_ENTRY:
        raise CorruptFile(f"{mapped.path}: not an importance matrix, neither GGUF nor .dat")
    entries: dict[str, Entry] = {}
    for number in range(count):
        name, entry = _dat_entry(mapped, cursor, f"entry {number + 1} of {count}")
        if name in entries:
            raise CorruptFile(f"{mapped.path}: two entries are called {short(name)}")
        entries[name] = entry
    n_chunks = _int32(cursor, "the number of chunks") if cursor.left else 0
    datasets = (_dat_text(cursor, "the data set"),) if cursor.left else ()
    if cursor.left:
        raise CorruptFile(f"{mapped.path}: {cursor.left} bytes follow the end")
    return ImportanceMatrix(mapped.path, entries, tuple(text for text in datasets if text), n_chunks, mapped.close)


def _int32(cursor: Cursor, what: str) -> int:
    return int(_I32.unpack(cursor.take(4, what))[0])


def _dat_text(cursor: Cursor, what: str) -> bytes:
    length = _int32(cursor, what)
    if length < 0:
        raise CorruptFile(f"{cursor.path}: {what} at offset {cursor.position} has {length} bytes")
    return bytes(cursor.take(length, what))


def _dat_entry(mapped: Bytes, cursor: Cursor, what: str) -> tuple[str, Entry]:
    text = _dat_text(cursor, what)
    name = text.decode("utf-8", "replace")
    if not name or not name.isprintable() or "\ufffd" in name:
        raise CorruptFile(f"{mapped.path}: {what} has no readable name ({short(text)})")
    calls, size = _int32(cursor, what), _int32(cursor, what)
    if size < 1 or calls < 0:
        raise CorruptFile(f"{mapped.path}: {what}, {short(name)}, has {size} values of {calls} calls")
    offset = cursor.position
    cursor.skip(4 * size, f"{what}, {short(name)},")
    divisor = np.array([calls if calls > 0 else 1], np.float32)

    def read(start: int, stop: int) -> Floats:
        return mapped.view(offset + 4 * start, 4 * (stop - start), short(name)).view("<f4")

    return name, Entry(size, lambda: divisor, read)


# --------------------------------------------------------------------------------- meeting the tensors


def assign_weights(
    matrix: ImportanceMatrix | None, recipe: Recipe, tensors: Iterable[TensorInfo], types: Mapping[str, str]
) -> tuple[dict[str, Weights], list[Event]]:
    """What each tensor's encoder shall know of importance, by name, and what the user should know of the rest.

    Args:
        matrix: None when there is none.
        recipe: decides which types need importance.
        tensors: with the types they have; those that `types` leaves as they are do not take part.
        types: name -> type that the tensor will have.

    Raises:
        MissingImportance: a type needs importance that the tensor has not, or no entry names a tensor.
        QuantizationError: an entry has another size than the tensor needs.
    """
    infos = {info.name: info for info in tensors}
    if matrix is not None and not any(name in infos for name in matrix.entries):
        raise MissingImportance(
            f"{matrix.path.name}: is of another model: it has {_some(matrix.entries)}, the model {_some(infos)}"
        )
    weights: dict[str, Weights] = {}
    events: list[Event] = []
    for name, info in infos.items():
        if types[name] == info.dtype.name:
            continue
        found, reason = _weights(matrix, info)
        if found is None and needs_imatrix(recipe, name, types[name]):
            raise MissingImportance(
                f"{name}: {types[name]} needs an importance matrix, and there is {reason}\n"
                + ("choose a larger type" if matrix else "pass --imatrix FILE, or choose a larger type")
            )
        if types[name] not in WEIGHTED or matrix is None:
            continue
        if found is None:
            events.append(NoImportance(name, types[name], reason))
        else:
            weights[name] = found
    return weights, events + (_unused(matrix, infos, weights) if matrix else [])


def _weights(matrix: ImportanceMatrix | None, info: TensorInfo) -> tuple[Weights | None, str]:
    """The entry of a tensor, or why there is none."""
    if matrix is None:
        return None, "none"
    entry = matrix.entries.get(info.name)
    if entry is None:
        left_out = info.name in matrix.left_out
        return None, "an excluded entry for it" if left_out else f"no entry for it in {matrix.path.name}"
    stacked = info.shape[-3] if len(info.shape) > 2 else 1
    if entry.size == info.row * stacked:
        return Weights(entry, info.row, matrix.path.name), ""
    sizes = f"{matrix.path.name} has {entry.size} values for it, it needs {stacked} times {info.row}"
    if info.name in TOKEN_EMBEDDINGS:  # its "input" is a token id, whatever was measured means something else
        return None, f"an entry of another size ({entry.size} values, not {stacked} times {info.row})"
    raise QuantizationError(
        f"{info.name}: {sizes}\nthe matrix is of another model; --exclude-weights {info.name} does without it"
    )


def _unused(matrix: ImportanceMatrix, infos: Mapping[str, TensorInfo], weights: Mapping[str, Weights]) -> list[Event]:
    strangers = [name for name in matrix.entries if name not in infos]
    idle = [name for name in matrix.entries if name in infos and name not in weights]
    notes: list[Event] = []
    if strangers:
        notes.append(Note(f"{matrix.path.name}: no tensor of this model is called {_some(strangers)}"))
    if idle:
        notes.append(Note(f"{matrix.path.name}: not needed for the types these tensors get: {_some(idle)}"))
    return notes


def _some(names: Iterable[str]) -> str:
    """Names for a message, the first few of them."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(name if name.isprintable() and len(name) < 80 else short(name) for name in every[:3]) + more
