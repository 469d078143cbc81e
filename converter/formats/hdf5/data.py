"""The values of HDF5 datasets: compact, contiguous and chunked storage, deflate, LZF, shuffle, Fletcher-32 and
scale-offset.

Source: the HDF5 File Format Specification 3.0. Chunks are inflated here, to no more than the size they must have;
filters that would need a plugin are refused. What was never written is the fill value, as the format says.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from converter.errors import short
from converter.formats.base import check_elements
from converter.formats.hdf5 import scale_offset
from converter.formats.hdf5.chunks import (
    EXTENSIBLE_ARRAY,
    FIXED_ARRAY,
    IMPLICIT,
    SINGLE_CHUNK,
    TREE,
    Place,
    coordinates,
    extensible_array,
    fixed_array,
    tree,
)
from converter.formats.hdf5.file import Cursor, Hdf5File
from converter.formats.hdf5.reader import (
    EXTERNAL,
    FILL,
    FILTERS,
    LAYOUT,
    OLD_FILL,
    SPACE,
    TYPE,
    Messages,
    Type,
    datatype,
    extents,
    tree_nodes,
)
from converter.formats.hdf5.scale_offset import ScaleOffset
from converter.tensors.tensor import Rows

COMPACT, CONTIGUOUS, CHUNKED, VIRTUAL = range(4)
DEFLATE, SHUFFLE, FLETCHER32, SCALE_OFFSET, LZF = 1, 2, 3, 6, 32000
FREE = {DEFLATE, LZF, SCALE_OFFSET}  # those whose output may have any size
PARTIAL_UNFILTERED, SINGLE_FILTERED = 1, 2  # flags of chunked layouts
INDEX_FIELDS = {FIXED_ARRAY: 1, EXTENSIBLE_ARRAY: 5, TREE: 6}  # bytes about an index that its own header repeats
MAX_CHUNK = 256 << 20  # bytes
_BANDS = 4  # decoded bands of chunks that are kept, for all datasets of a file
_FLETCHER_BLOCK = 1 << 20
Limits = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where a chunk is stored, and which filters were not applied to it."""

    address: int
    nbytes: int
    skipped: int


@dataclass(frozen=True)
class Chunks:
    """The grid: a chunk's shape, the filters in the order of writing, the chunks there are by their first element."""

    shape: tuple[int, ...]
    filters: tuple[int, ...]
    stored: dict[tuple[int, ...], Chunk]
    scale: ScaleOffset | None = None

    @cached_property
    def by_row(self) -> dict[int, list[tuple[int, ...]]]:
        """The chunks by their first element's index along the first axis."""
        rows: dict[int, list[tuple[int, ...]]] = {}
        for corner in self.stored:
            rows.setdefault(corner[0], []).append(corner)
        return rows


@dataclass(frozen=True)
class Dataset:
    """One dataset.

    Its bytes are `compact`, lie at `address`, are in `chunks`, or (none of these) are all `fill`, which is zero where
    it is empty.
    """

    file: Hdf5File
    path: str
    shape: tuple[int, ...] | None
    type: Type
    fill: bytes
    compact: bytes | None = None
    address: int | None = None
    chunks: Chunks | None = None

    @property
    def what(self) -> str:
        return f"dataset {short(self.path)}"

    @property
    def nbytes(self) -> int:
        return 0 if self.shape is None else math.prod(self.shape) * self.type.size

    @property
    def element(self) -> Rows:
        """One element where nothing was written."""
        return np.frombuffer(self.fill or bytes(self.type.size), np.uint8)

    def extents(self) -> list[tuple[int, int]]:
        """First byte and length of everything that it has in the file."""
        if self.chunks is not None:
            return [(chunk.address, chunk.nbytes) for chunk in self.chunks.stored.values()]
        return [(self.address, self.nbytes)] if self.address is not None and self.nbytes else []


def dataset(file: Hdf5File, path: str, messages: Messages) -> Dataset:
    """What the messages say, checked; no value is read.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    what = f"dataset {short(path)}"
    if EXTERNAL in messages:
        raise file.unsupported(f"{what} keeps its values in another file; that is not followed")
    bodies = {kind: messages.get(kind, []) for kind in (SPACE, TYPE, LAYOUT)}
    if any(len(found) != 1 for found in bodies.values()):
        raise file.corrupt(f"{what} lacks its type, its shape or its layout, or has two")
    kind = datatype(file, Cursor(file, bodies[TYPE][0], what))
    shape, limits = extents(file, Cursor(file, bodies[SPACE][0], what))
    check_elements(file.path, path, shape or ())
    result = Dataset(file, path, shape, kind, _fill(file, messages, kind, what))
    filters = _filters(file, messages, what)
    placed = _placed(result, Cursor(file, bodies[LAYOUT][0], what), tuple(filters), limits)
    if placed.chunks is None or SCALE_OFFSET not in filters:
        return placed
    return replace(placed, chunks=replace(placed.chunks, scale=_scale(placed, placed.chunks, filters[SCALE_OFFSET])))


def _fill(file: Hdf5File, messages: Messages, kind: Type, what: str) -> bytes:
    """The bytes of one element where nothing was written, none where that is zero."""
    data = b""
    for body in messages.get(OLD_FILL, []):
        fields = Cursor(file, body, what)
        data = fields.take(fields.uint(4))
    for body in messages.get(FILL, []):
        fields = Cursor(file, body, what)
        version, flags = fields.uint(1), fields.uint(1)
        if version not in (1, 2, 3):
            raise file.unsupported(f"{what} has a fill value of version {version}")
        defined = bool(flags & 32) if version == 3 else fields.take(2)[1:] != b"\0"
        data = fields.take(fields.uint(4)) if defined or version == 1 else b""
    if data and len(data) != kind.size:
        raise file.corrupt(f"{what} has a fill value of {len(data)} bytes, its elements have {kind.size}")
    return data


def _scale(of: Dataset, chunks: Chunks, values: tuple[int, ...]) -> ScaleOffset:
    """How scale-offset packed the chunks; it must have been told of such chunks as there are."""
    how, dtype = scale_offset.scale_offset(values), of.type.dtype
    if how is None:
        raise of.file.unsupported(f"{of.what} is packed with scale-offset of a kind that libraries do not write")
    floats = dtype is not None and dtype.floating
    if (how.count, how.size, how.floats) != (math.prod(chunks.shape), of.type.size, floats):
        raise of.file.corrupt(f"{of.what} has chunks of {list(chunks.shape)[:8]}, its scale-offset filter others")
    return how


def _filters(file: Hdf5File, messages: Messages, what: str) -> dict[int, tuple[int, ...]]:
    """The filters in the order of writing, with what each was told."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for body in messages.get(FILTERS, []):
        fields = Cursor(file, body, what)
        version, count = fields.uint(1), fields.uint(1)
        if version not in (1, 2):
            raise file.unsupported(f"{what} has filters of version {version}")
        fields.take(6 if version == 1 else 0)
        for _ in range(count):
            number = fields.uint(2)
            length = fields.uint(2) if version == 1 or number >= 256 else 0
            fields.take(2)
            values = fields.uint(2)
            fields.take(length + (-length % 8 if version == 1 else 0))
            found.append((number, tuple(fields.uint(4) for _ in range(values))))
            fields.take(4 * (values % 2) if version == 1 else 0)
    for number, _ in found:
        if number not in (DEFLATE, SHUFFLE, FLETCHER32, SCALE_OFFSET, LZF):
            raise file.unsupported(
                f"{what} is packed with filter {number}, which needs a plugin; "
                "deflate, LZF, shuffle, scale-offset and Fletcher-32 can be read: `h5repack -f GZIP=4` packs it so"
            )
    filters = dict(found)
    if len(filters) != len(found):
        raise file.unsupported(f"{what} has a filter twice")
    return filters


def _placed(result: Dataset, fields: Cursor, filters: tuple[int, ...], limits: Limits) -> Dataset:
    """With where its bytes are."""
    file, what = result.file, result.what
    version, kind = fields.uint(1), fields.uint(1)
    if version not in (3, 4, 5):
        raise file.unsupported(f"{what} has a layout of version {version}; 3 to 5 can be read")
    if kind == VIRTUAL:
        raise file.unsupported(f"{what} is made of parts of other files; that is not followed")
    if kind == COMPACT:
        data = fields.take(fields.uint(2))
        if len(data) != result.nbytes:
            raise file.corrupt(f"{what} needs {result.nbytes} bytes and has {len(data)}")
        return replace(result, compact=data)
    if kind == CONTIGUOUS:
        address, size = fields.address(), fields.length()
        if address is None or result.nbytes == 0:
            return result
        if size != result.nbytes or address + size > file.size:
            raise file.corrupt(f"{what} needs {result.nbytes} bytes, {size} at {address} are given to it")
        return replace(result, address=address)
    if kind != CHUNKED or not result.shape:
        raise file.corrupt(f"{what} has a layout of class {kind} and shape {result.shape}")
    if version == 3:
        return replace(result, chunks=_chunks_3(result, fields, filters))
    return replace(result, chunks=_chunks_4(result, fields, filters, limits))


def _grid(result: Dataset, sizes: list[int]) -> tuple[int, ...]:
    """A chunk's shape, from its sizes, of which the last is that of an element."""
    assert result.shape is not None  # `_placed` looked
    if len(sizes) != len(result.shape) + 1 or sizes[-1] != result.type.size or 0 in sizes:
        raise result.file.corrupt(f"{result.what} has chunks of {sizes[:8]}, which do not suit it")
    if math.prod(sizes) > MAX_CHUNK:
        raise result.file.unsupported(f"{result.what} has chunks of {math.prod(sizes)} bytes, {MAX_CHUNK} can be read")
    return tuple(sizes[:-1])


def _chunks_3(result: Dataset, fields: Cursor, filters: tuple[int, ...]) -> Chunks:
    """Chunks that a version 1 B-tree lists."""
    file, what = result.file, result.what
    rank, address = fields.uint(1), fields.address()
    shape = _grid(result, [fields.uint(4) for _ in range(rank)])
    stored: dict[tuple[int, ...], Chunk] = {}
    if address is not None:
        for key, where in tree_nodes(file, address, 1, 8 + 8 * rank):
            entry = Cursor(file, key, what)
            nbytes, skipped = entry.uint(4), entry.uint(4)
            start = tuple(entry.uint(8) for _ in shape)
            if entry.uint(8) or start in stored:
                raise file.corrupt(f"{what} has the chunk at {list(start)} twice")
            stored[start] = _chunk(result, shape, filters, start, Chunk(where, nbytes, skipped))
    return Chunks(shape, filters, stored)


def _chunks_4(result: Dataset, fields: Cursor, filters: tuple[int, ...], limits: Limits) -> Chunks:
    """Chunks by the indexes of newer files; `limits` are the sizes that the dataset may grow to."""
    file, what = result.file, result.what
    flags, rank, width = fields.uint(1), fields.uint(1), fields.uint(1)
    shape = _grid(result, [fields.uint(width) for _ in range(rank)])
    kind = fields.uint(1)
    single: Place | None = None
    if kind == SINGLE_CHUNK and flags & SINGLE_FILTERED:
        single = (0, fields.length(), fields.uint(4))
    fields.take(INDEX_FIELDS.get(kind, 0))
    address = fields.address()
    counts = [None if size is None else -(-size // step) for size, step in zip(limits, shape, strict=True)]
    stored: dict[tuple[int, ...], Chunk] = {}
    for at, place in _index(result, kind, address, filters, counts, single, shape):
        start = tuple(i * step for i, step in zip(at, shape, strict=True))
        if kind == IMPLICIT and any(i >= size for i, size in zip(start, result.shape or (), strict=True)):
            continue  # room to grow
        if start in stored:
            raise file.corrupt(f"{what} has the chunk at {list(start)} twice")
        where, nbytes, skipped = place
        if flags & PARTIAL_UNFILTERED and any(
            i + step > size for i, step, size in zip(start, shape, result.shape or (), strict=True)
        ):
            skipped = (1 << len(filters)) - 1
        nbytes = math.prod(shape) * result.type.size if nbytes is None else nbytes
        stored[start] = _chunk(result, shape, filters, start, Chunk(where, nbytes, skipped))
    return Chunks(shape, filters, stored)


def _index(
    result: Dataset,
    kind: int,
    address: int | None,
    filters: tuple[int, ...],
    counts: list[int | None],
    single: Place | None,
    shape: tuple[int, ...],
) -> Iterator[tuple[tuple[int, ...], Place]]:
    """Every chunk that an index of this kind has, by its coordinates."""
    file, what = result.file, result.what
    if address is None:
        return
    if kind == TREE:
        yield from tree(file, address, bool(filters), len(counts))
        return
    if kind == SINGLE_CHUNK:
        _, nbytes, skipped = single or (0, None, 0)
        yield (0,) * len(counts), (address, nbytes, skipped)
        return
    numbered: Iterable[tuple[int, Place]]
    if kind == FIXED_ARRAY:
        numbered = fixed_array(file, address, bool(filters))
    elif kind == EXTENSIBLE_ARRAY:
        numbered = extensible_array(file, address, bool(filters))
    elif kind == IMPLICIT and not filters:
        numbered = _in_a_row(result, address, counts, math.prod(shape) * result.type.size)
    else:
        raise file.unsupported(f"{what} has a chunk index of kind {kind}; `h5repack --high=0` writes it as 1.6 did")
    if counts.count(None) != (kind == EXTENSIBLE_ARRAY):
        raise file.corrupt(f"{what} may grow in other ways than its chunk index")
    for number, place in numbered:
        yield coordinates(number, counts), place


def _in_a_row(result: Dataset, address: int, counts: list[int | None], nbytes: int) -> Iterator[tuple[int, Place]]:
    total = math.prod(count or 0 for count in counts)
    if address + total * nbytes > result.file.size:
        raise result.file.corrupt(f"{result.what} has {total} chunks of {nbytes} bytes, the file {result.file.size}")
    for number in range(total):
        yield number, (address + number * nbytes, None, 0)


def _chunk(
    result: Dataset, shape: tuple[int, ...], filters: tuple[int, ...], start: tuple[int, ...], chunk: Chunk
) -> Chunk:
    """The chunk, if it stands on the grid and in the file and can have the size it must have."""
    file, shape_of = result.file, result.shape
    file.count_chunk()
    assert shape_of is not None  # `_placed` looked
    bad = ""
    for at, step, size in zip(start, shape, shape_of, strict=True):
        if at % step or at >= size:
            bad = "does not lie on its grid"
    if not chunk.nbytes or chunk.address + chunk.nbytes > file.size:
        bad = f"has {chunk.nbytes} bytes at {chunk.address}, the file has {file.size}"
    used = {number for i, number in enumerate(filters) if not chunk.skipped >> i & 1}
    needed = math.prod(shape) * result.type.size + (4 if FLETCHER32 in used else 0)
    if not FREE & used and chunk.nbytes != needed:
        bad = bad or f"has {chunk.nbytes} bytes, {needed} are needed"
    if bad:
        raise file.corrupt(f"the chunk of {result.what} at {list(start)} {bad}")
    return chunk


# ------------------------------------------------------------------------------------------------- values


@dataclass
class _Band:
    """One band, decoded by whoever comes first; others wait for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    data: NDArray[np.uint8] | None = None


@dataclass
class Bands:
    """The last decoded bands (all chunks that begin at one index of the first axis), for all datasets of a file.

    Several threads decode several bands at once, none of them twice.
    """

    kept: OrderedDict[tuple[str, int], _Band] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def band(self, of: Dataset, start: int) -> NDArray[np.uint8]:
        """Bytes of elements [start, start + chunk) of the first axis, in order."""
        with self.lock:
            found = self.kept.pop((of.path, start), None) or _Band()
            self.kept[of.path, start] = found
            while len(self.kept) > _BANDS:
                self.kept.popitem(last=False)
        with found.lock:
            if found.data is None:
                found.data = _band(of, start)
            return found.data


def stored_bytes(of: Dataset, bands: Bands, start: int, nbytes: int) -> Rows:
    """Bytes [start, start + nbytes) of the values in order, as they are stored; mapped where they are in one piece.

    Raises:
        CorruptFile: a chunk that does not inflate to its size, or has not its checksum.
    """
    if of.compact is not None:
        return np.frombuffer(of.compact, np.uint8)[start : start + nbytes]
    if of.address is not None:
        return of.file.source.view(of.address + start, nbytes, of.what)
    if of.chunks is None or not nbytes:
        return _filled(of, start, nbytes)
    assert of.shape  # chunked datasets have an axis
    slab = math.prod(of.shape[1:]) * of.type.size * of.chunks.shape[0]
    pieces = []
    for number in range(start // slab, -(-(start + nbytes) // slab)):
        band = bands.band(of, number * of.chunks.shape[0])
        low = max(start - number * slab, 0)
        pieces.append(band[low : start + nbytes - number * slab])
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _filled(of: Dataset, start: int, nbytes: int) -> Rows:
    size = of.type.size
    count = -(-(start + nbytes) // size) - start // size
    return np.tile(of.element, count)[start % size : start % size + nbytes]


def _band(of: Dataset, start: int) -> NDArray[np.uint8]:
    chunks, shape = of.chunks, of.shape
    assert chunks is not None and shape
    extent = (min(chunks.shape[0], shape[0] - start), *shape[1:])
    band = np.empty((*extent, of.type.size), np.uint8)
    band[...] = of.element
    for corner in chunks.by_row.get(start, ()):
        data = _decoded(of, chunks, corner).reshape(*chunks.shape, of.type.size)
        axes = zip(corner[1:], chunks.shape[1:], shape[1:], strict=True)
        target = band[(slice(None), *(slice(at, min(at + step, size)) for at, step, size in axes))]
        target[...] = data[tuple(slice(0, size) for size in target.shape[:-1])]
    return band.reshape(-1)


def _decoded(of: Dataset, chunks: Chunks, corner: tuple[int, ...]) -> NDArray[np.uint8]:
    """A whole chunk, its filters undone in reverse order."""
    chunk, size = chunks.stored[corner], math.prod(chunks.shape) * of.type.size
    what = f"the chunk of {of.what} at {list(corner)}"
    data = of.file.source.view(chunk.address, chunk.nbytes, what)
    applied = [number for i, number in enumerate(chunks.filters) if not chunk.skipped >> i & 1]
    for i in reversed(range(len(applied))):
        if applied[i] == FLETCHER32:
            data = _verified(of, data, what)
        elif applied[i] in (DEFLATE, LZF):
            unpacked = _inflated if applied[i] == DEFLATE else _unlzf
            data = unpacked(of, data, _before(applied[:i], size), what)
        elif applied[i] == SCALE_OFFSET:
            data = _unscaled(of, chunks, data, what)
        else:
            data = _unshuffled(data, of.type.size)
    if len(data) != size:
        raise of.file.corrupt(f"{what} has {len(data)} bytes, {size} are needed")
    return data


def _before(applied: Iterable[int], size: int) -> range:
    """The sizes that a chunk of `size` bytes may have behind these filters."""
    sizes = range(size, size + 1)
    for number in applied:
        if number == FLETCHER32:
            sizes = range(sizes.start + 4, sizes.stop + 4)
        elif number == SCALE_OFFSET:
            sizes = range(scale_offset.HEADER, scale_offset.limit(sizes.stop - 1) + 1)
    return sizes


def _said(sizes: range) -> str:
    return f"{sizes.start} bytes" if len(sizes) == 1 else f"{sizes.start} to {sizes.stop - 1} bytes"


def _unscaled(of: Dataset, chunks: Chunks, data: Rows, what: str) -> Rows:
    assert chunks.scale is not None  # `dataset` looked
    values = scale_offset.unpacked(data, chunks.scale)
    if values is None:
        raise of.file.corrupt(f"{what} has {len(data)} bytes of scaled values, too few for what they say")
    swapped = values.view(f"<u{of.type.size}").byteswap().view(np.uint8) if of.type.swapped else values
    return swapped


def _inflated(of: Dataset, data: Rows, sizes: range, what: str) -> Rows:
    engine = zlib.decompressobj()
    try:
        result = engine.decompress(data.tobytes(), sizes.stop)
    except zlib.error as error:
        raise of.file.corrupt(f"{what} is not deflated data ({error})") from None
    if len(result) not in sizes or not engine.eof or engine.unused_data:
        raise of.file.corrupt(f"{what} does not inflate to the {_said(sizes)} it must have")
    return np.frombuffer(result, np.uint8)


def _unlzf(of: Dataset, data: Rows, sizes: range, what: str) -> Rows:
    """h5py's packing: runs of at most 32 bytes, and copies of what came out already (LibLZF's format)."""
    bad = of.file.corrupt(f"{what} is no LZF data of the {_said(sizes)} it must have")
    source, out, at = data.tobytes() + bytes(2), bytearray(), 0
    end = len(source) - 2
    while at < end and len(out) < sizes.stop:
        length, low = source[at] >> 5, source[at] & 31
        at += 1
        if not length:
            out += source[at : at + low + 1]
            at += low + 1
            continue
        if length == 7:
            length += source[at]
            at += 1
        start, length = len(out) - (low << 8 | source[at]) - 1, length + 2
        at += 1
        if start < 0:
            raise bad
        piece = out[start : start + length]
        out += (piece * -(-length // len(piece)))[:length]
    if at != end or len(out) not in sizes:
        raise bad
    return np.frombuffer(bytes(out), np.uint8)


def _unshuffled(data: Rows, size: int) -> Rows:
    """Bytes back in their order; what does not fill an element stands at the end as it is."""
    whole = len(data) // size * size
    planes = data[:whole].reshape(size, -1).transpose()
    return np.concatenate([np.ascontiguousarray(planes).reshape(-1), data[whole:]])


def _verified(of: Dataset, data: Rows, what: str) -> Rows:
    """The data without the Fletcher-32 that ends them. Old libraries stored its bytes swapped in pairs."""
    if len(data) < 4:
        raise of.file.corrupt(f"{what} is too short")
    body, stored = data[:-4], int.from_bytes(data[-4:].tobytes(), "little")
    swapped = (stored >> 8 & 0x00FF00FF) | (stored << 8 & 0xFF00FF00)
    low, high = fletcher32(body)
    if all((value & 0xFFFF) % 65535 != low or (value >> 16) % 65535 != high for value in (stored, swapped)):
        raise of.file.corrupt(f"{what} does not have its Fletcher-32 checksum\nthe file is damaged; download it again")
    return body


def fletcher32(data: Rows) -> tuple[int, int]:
    """Both sums modulo 65535, over big-endian words of two bytes; a last odd byte is the high one."""
    padded = np.concatenate([data, np.zeros(1, np.uint8)]) if len(data) % 2 else np.ascontiguousarray(data)
    words = padded.view(">u2")
    first = second = 0
    for low in range(0, len(words), _FLETCHER_BLOCK):
        block = words[low : low + _FLETCHER_BLOCK].astype(np.uint64)
        weights = np.arange(len(block), 0, -1, dtype=np.uint64)
        second = (second + len(block) * first + int((block * weights).sum())) % 65535
        first = (first + int(block.sum())) % 65535
    return first, second
