"""ONNX models as pieces, laid out: bytes of ours, ranges of the source, tensors; and the data file beside them.

A model of 2 GiB is never in memory: small pieces are gathered as they are written, large tensors are streamed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.errors import UnsupportedFeature, UsageError
from converter.formats.onnx.model import INLINE_NBYTES
from converter.formats.onnx.values import Span
from converter.storage.files import Bytes
from converter.storage.layout import FileLayout, Layout, Slot
from converter.storage.protobuf import blob, blob_key, number
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo

# What a model's file is made of; a span is of the source's file.
Piece = bytes | Span | LazyTensor

ALIGNMENT = 4096
DATA_SUFFIX = ".data"
MAX_MESSAGE = (1 << 31) - 1  # what Protocol Buffers' own readers take


class DataFile:
    """The data file to be, `<name>.onnx.data`: every tensor begins at a whole page, so that it can be mapped."""

    def __init__(self, target: Path, suffix: str = DATA_SUFFIX) -> None:
        self._path = target.with_name(target.name + suffix)
        self._slots: list[Slot] = []
        self._end = 0
        self._offsets: dict[Hashable, int] = {}

    def add(self, tensor: LazyTensor, same: Hashable = None) -> bytes:
        """The fields of a TensorProto that say where the tensor is; tensors with the same `same` share their bytes.

        Raises:
            UsageError: a name that external data cannot have.
        """
        if any(character in self._path.name for character in "\\:\r\n"):
            raise UsageError(
                f"{self._path}: a model cannot name its data file with a colon, a backslash or a line break in it"
            )
        offset = self._offsets.get(same) if same is not None else None
        if offset is None:
            offset = -(-self._end // ALIGNMENT) * ALIGNMENT
            self._slots.append(Slot(offset, tensor))
            self._end = offset + tensor.info.nbytes
            self._offsets[same] = offset
        entries = {"location": self._path.name, "offset": str(offset), "length": str(tensor.info.nbytes)}
        return b"".join(blob(13, entry(*each)) for each in entries.items()) + number(14, 1)

    def files(self) -> tuple[FileLayout, ...]:
        """One, or none where nothing lies in it."""
        return (FileLayout(self._path, b"", tuple(self._slots), self._end),) if self._slots else ()


def entry(key: str, value: str) -> bytes:
    """A StringStringEntryProto."""
    return blob(1, key.encode()) + blob(2, value.encode())


def values(tensor: LazyTensor, data: DataFile | None, same: Hashable = None) -> list[Piece]:
    """The fields of a TensorProto that have its values, or say that they are in `data`."""
    if data is not None:
        return [data.add(tensor, same)]
    return [blob_key(9, tensor.info.nbytes), tensor]


def nbytes(pieces: Iterable[Piece]) -> int:
    """Bytes that the pieces have together."""
    return sum(map(_nbytes, pieces))


def _nbytes(piece: Piece) -> int:
    if isinstance(piece, bytes):
        return len(piece)
    return piece[1] - piece[0] if isinstance(piece, tuple) else piece.info.nbytes


def assembled(target: Path, pieces: Iterable[Piece], source: Bytes | None, data: DataFile) -> Layout:
    """The model's file of `pieces`, and its data file where there is one.

    Raises:
        UnsupportedFeature: the model's file would be larger than any reader takes.
    """
    slots: list[Slot] = []
    small: list[Piece] = []
    at = 0

    def flush() -> None:
        nonlocal at
        if small:
            rope = _rope(small.copy(), source)
            slots.append(Slot(at, rope))
            at += rope.info.nbytes
            small.clear()

    for piece in pieces:
        if isinstance(piece, LazyTensor) and piece.info.nbytes > INLINE_NBYTES:
            flush()
            slots.append(Slot(at, piece))
            at += piece.info.nbytes
        else:
            small.append(piece)
    flush()
    if at > MAX_MESSAGE:
        raise UnsupportedFeature(
            f"{target}: a model's file ends at 2 GiB, this one needs {at} bytes\n"
            "--external-data always puts tensors into a file beside it"
        )
    return Layout((FileLayout(target, b"", tuple(slots), at), *data.files()))


def _rope(pieces: list[Piece], source: Bytes | None) -> LazyTensor:
    """Pieces one after the other, as rows of a byte; a small tensor is read whole for any part of it."""
    ends = list(accumulate(map(_nbytes, pieces)))

    def part(index: int, low: int, high: int) -> NDArray[np.uint8]:
        piece = pieces[index]
        if isinstance(piece, bytes):
            return np.frombuffer(piece, np.uint8)[low:high]
        if isinstance(piece, tuple):
            assert source is not None
            return source.view(piece[0] + low, high - low, "the graph")
        return piece.rows(0, piece.info.n_rows).reshape(-1)[low:high]

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        found = [np.empty(0, np.uint8)]
        for index in range(bisect_right(ends, start), bisect_left(ends, stop) + 1):
            begin = ends[index - 1] if index else 0
            found.append(part(index, max(start, begin) - begin, min(stop, ends[index]) - begin))
        return np.concatenate(found).reshape(-1, 1)

    return LazyTensor(TensorInfo("graph", (ends[-1], 1), DTYPES["U8"]), read, "the model's graph")
