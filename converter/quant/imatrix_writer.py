"""Importance matrices as files: the two kinds that quant/imatrix.py reads, with the bytes that llama-imatrix writes.

Sums are flat, float64 here and float32 in a file, of as many equal shares as there are counts; one count stands for all
matrices of a stack that are multiplied together. Source: llama.cpp's tools/imatrix/imatrix.cpp (`save_imatrix`,
`save_imatrix_legacy`, and `load_imatrix` for sums of several files). Unlike there, a data set is a name, never a path.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint import Checkpoint
from converter.errors import QuantizationError
from converter.formats.base import WriteOptions
from converter.formats.gguf import layout
from converter.metadata import Array, Metadata, Value, text, u32
from converter.quant.imatrix import (
    CHUNK_SIZE,
    CHUNKS,
    COUNTS,
    DATASETS,
    SUMS,
    TYPE,
    Entry,
    ImportanceMatrix,
    file_name,
)
from converter.storage.layout import Layout, whole_file
from converter.tensors.dtypes import F32
from converter.tensors.tensor import LazyTensor, from_array

DAT = ".dat"


@dataclass(frozen=True)
class Measured:
    """Of one weight: `sums` of squares of what its columns are multiplied by, float64 (matrices x columns,), and
    `counts`, how many rows these were, int64 (shares,)."""

    sums: NDArray[np.float64] = field(repr=False)
    counts: NDArray[np.int64] = field(repr=False)

    @property
    def columns(self) -> NDArray[np.float64]:
        """Sums by share: (shares, columns)."""
        return self.sums.reshape(len(self.counts), -1)

    @property
    def silent(self) -> list[int]:
        """Shares, which are experts, that got no row."""
        return np.flatnonzero(self.counts == 0).tolist()

    def means(self) -> NDArray[np.float64]:
        """Importance (shares, columns): 1 where nothing was counted."""
        counts = self.counts[:, None]
        return np.divide(self.columns, counts, out=np.ones_like(self.columns), where=counts > 0)

    def plus(self, other: Measured, name: str) -> Measured:
        """Both together; one count stands for as many as the other has.

        Raises:
            QuantizationError: they have different sizes.
        """
        if self.sums.size != other.sums.size or 1 < len(self.counts) != len(other.counts) > 1:
            sizes = f"{self.sums.size} values of {len(self.counts)} and {other.sums.size} of {len(other.counts)}"
            raise QuantizationError(f"{name}: {sizes} cannot be added; the importance matrices are of different models")
        return Measured(self.sums + other.sums, self.counts + other.counts)


@dataclass(frozen=True)
class Importance:
    """What was measured of a model, by weight; `datasets` are the names of what it read, `chunk_size` tokens each."""

    entries: Mapping[str, Measured]
    datasets: tuple[str | bytes, ...]
    chunk_size: int

    @property
    def chunks(self) -> int:
        """How many, by the weight that got the most rows."""
        most = max((int(each.counts.max(initial=0)) for each in self.entries.values()), default=0)
        return most // self.chunk_size

    def plus(self, other: Importance) -> Importance:
        """Both together.

        Raises:
            QuantizationError: a weight has different sizes in them.
        """
        entries = dict(self.entries)
        for name, each in other.entries.items():
            entries[name] = entries[name].plus(each, name) if name in entries else each
        return Importance(entries, (*self.datasets, *other.datasets), self.chunk_size)

    def layout(self, path: Path) -> Layout:
        """The file that it becomes: the older kind where its name ends in .dat, else GGUF.

        Raises:
            UnsupportedFeature: a name that is too long for GGUF.
        """
        entries = sorted(self.entries.items(), key=lambda entry: entry[0].encode())
        if path.suffix.lower() == DAT:
            return Layout((whole_file(path, self._dat(entries)),))
        return layout(Checkpoint("gguf", path, "gguf", dict(_tensors(entries)), self._metadata()), path, WriteOptions())

    def _metadata(self) -> Metadata:
        return {
            TYPE: text("imatrix"),
            DATASETS: Array("str", list(self.datasets)),
            CHUNKS: u32(self.chunks),
            CHUNK_SIZE: u32(self.chunk_size),
        }

    def _dat(self, entries: Sequence[tuple[str, Measured]]) -> bytes:
        """Values are means times calls; a weight of which nothing was counted is left out."""
        spoken = [(name, each) for name, each in entries if each.counts.any()]
        out = bytearray(struct.pack("<i", len(spoken)))
        for name, each in spoken:
            calls = -(-int(each.counts.max()) // self.chunk_size)
            counts, sums = each.counts.astype("<f4")[:, None], each.columns.astype("<f4")
            means = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
            out += struct.pack("<i", len(name.encode())) + name.encode() + struct.pack("<ii", calls, sums.size)
            out += (means * np.float32(calls)).tobytes()
        last = self.datasets[-1] if self.datasets else b""
        name_bytes = last.encode() if isinstance(last, str) else last
        return bytes(out + struct.pack("<ii", self.chunks, len(name_bytes)) + name_bytes)


def _tensors(entries: Iterable[tuple[str, Measured]]) -> Iterable[tuple[str, LazyTensor]]:
    """Axes of length 1 in front are none, as ggml counts them."""
    for name, each in entries:
        shares = len(each.counts)
        for end, array in ((SUMS, each.columns), (COUNTS, each.counts.reshape(shares, 1))):
            values = array.astype("<f4").reshape(array.shape if shares > 1 else -1)
            yield name + end, from_array(name + end, values, F32, "measured")


def stored(matrix: ImportanceMatrix, chunk_size: int) -> Importance:
    """What an open file says, read whole; of a `.dat`, which counts chunks, as if each had `chunk_size` tokens."""
    legacy = not matrix.chunk_size
    entries = {name: _stored(entry, chunk_size if legacy else 1) for name, entry in matrix.entries.items()}
    names = tuple(_name(dataset) for dataset in matrix.datasets)
    return Importance(entries, names, chunk_size if legacy else matrix.chunk_size)


def _stored(entry: Entry, times: int) -> Measured:
    counts = entry.read_counts().astype(np.int64) * times
    return Measured(entry.read(0, entry.size).astype(np.float64) * times, counts)


def _name(dataset: str | bytes) -> str | bytes:
    found: Value = file_name(dataset)
    assert isinstance(found.value, str | bytes)
    return found.value
