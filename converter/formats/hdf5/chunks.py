"""Where chunks lie: the indexes of newer HDF5 files (fixed and extensible arrays, version 2 B-trees).

Source: the HDF5 File Format Specification 3.0, VII; for the order of an extensible array's chunks, what libhdf5 writes.
An index yields what it has as (number or coordinates, address, stored bytes or None for all, filters left out).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from converter.formats.hdf5.file import Cursor, Hdf5File
from converter.formats.hdf5.heap import tree_records

SINGLE_CHUNK, IMPLICIT, FIXED_ARRAY, EXTENSIBLE_ARRAY, TREE = range(1, 6)
PLAIN_CHUNKS, FILTERED_CHUNKS = 10, 11  # records of version 2 B-trees
Place = tuple[int, int | None, int]  # address, bytes, filters left out


def coordinates(number: int, counts: Sequence[int | None]) -> tuple[int, ...]:
    """Where the chunk of this number stands in a grid of `counts` chunks; an endless axis is the slowest.

    Numbers beyond the grid give coordinates beyond it.
    """
    endless = next((axis for axis, count in enumerate(counts) if count is None), 0)
    found = [0] * len(counts)
    for axis in reversed(range(len(counts))):
        if axis != endless:
            number, found[axis] = divmod(number, counts[axis] or 1)
    found[endless] = number
    return tuple(found)


def _places(fields: Cursor, first: int, count: int, width: int) -> Iterator[tuple[int, Place]]:
    """The next `count` elements of an array, from number `first`; those without address were never written."""
    offset = fields.file.offset_width
    for number in range(first, first + count):
        address = fields.address()
        nbytes = fields.uint(width - offset - 4) if width > offset else None
        skipped = fields.uint(4) if width > offset else 0
        if address is not None:
            yield number, (address, nbytes, skipped)


class _Array:
    """What both arrays have: elements of `width` bytes, in blocks that say whose they are, in pages of `page`."""

    def __init__(self, file: Hdf5File, address: int, what: str, filtered: bool, width: int, bits: int) -> None:
        self.file, self.address, self.what, self.width = file, address, what, width
        self.client, self.page = int(filtered), 1 << bits
        size = width - file.offset_width
        if bits > 32 or not (5 <= size <= 12 if filtered else size == 0):
            raise self.corrupt()

    def corrupt(self) -> Exception:
        return self.file.corrupt(f"{self.what} at {self.address} is damaged")

    def block(self, address: int, magic: bytes, nbytes: int) -> Cursor:
        """A block of the array with `nbytes` behind what all of them begin with."""
        fields = self.file.block(address, nbytes + 10 + self.file.offset_width, magic, "a block of " + self.what)
        if fields.uint(1) != self.client or fields.address() != self.address:
            raise self.corrupt()
        return fields

    def pages(self, start: int, first: int, count: int, written: bytes, bit: int) -> Iterator[tuple[int, Place]]:
        """The elements of a block in pages, which begin at `start`; the bits of `written`, from `bit`, tell of each
        whether it is there."""
        full, pages = self.page * self.width + 4, -(-count // self.page)
        if start + count * self.width + 4 * pages > self.file.size:
            raise self.file.corrupt(f"{self.what} at {self.address} leaves the file")
        for page in range(pages):
            flag = bit + page
            elements = min(self.page, count - page * self.page)
            if written[flag // 8] & (0x80 >> flag % 8):
                raw = self.file.at(start + page * full, elements * self.width + 4, "a page of " + self.what)
                fields = Cursor(self.file, self.file.checked(raw, "a page of " + self.what), self.what)
                yield from _places(fields, first + page * self.page, elements, self.width)


def fixed_array(file: Hdf5File, address: int, filtered: bool) -> Iterator[tuple[int, Place]]:
    """The chunks of a dataset that cannot grow without limit, by number.

    Raises:
        CorruptFile: damaged.
    """
    what = "a fixed array"
    fields = file.block(address, 12 + file.length_width + file.offset_width, b"FAHD", what)
    client, width, bits, count, start = (
        fields.uint(1),
        fields.uint(1),
        fields.uint(1),
        fields.length(),
        fields.address(),
    )
    array = _Array(file, address, what, filtered, width, bits)
    if client != array.client:
        raise array.corrupt()
    if start is None:
        return
    if count <= array.page:
        yield from _places(array.block(start, b"FADB", count * width), 0, count, width)
        return
    bitmap = -(-count // (8 * array.page))
    written = array.block(start, b"FADB", bitmap).take(bitmap)
    yield from array.pages(start + 10 + file.offset_width + bitmap, 0, count, written, 0)


def extensible_array(file: Hdf5File, address: int, filtered: bool) -> Iterator[tuple[int, Place]]:
    """The chunks of a dataset that can grow along one axis, by number.

    Raises:
        CorruptFile: damaged.
        UnsupportedFeature: blocks in pages where libraries do not make them.
    """
    what = "an extensible array"
    fields = file.block(address, 16 + 6 * file.length_width + file.offset_width, b"EAHD", what)
    client, width, bits, inside = (fields.uint(1) for _ in range(4))
    least, pointers, page_bits = (fields.uint(1) for _ in range(3))
    fields.take(6 * file.length_width)  # statistics
    start = fields.address()
    array = _Array(file, address, what, filtered, width, page_bits)
    if client != array.client or bits > 64 or any(not n or n & (n - 1) for n in (least, pointers)):
        raise array.corrupt()
    if start is None:
        return
    # Groups of data blocks; those of the first groups are in the index itself.
    groups = [(1 << u // 2, least << (u + 1) // 2) for u in range(max(bits - least.bit_length() + 2, 0))]
    direct = 2 * (pointers.bit_length() - 1)
    here = [size for count, size in groups[:direct] for _ in range(count)]
    addresses = len(here) + len(groups[direct:])
    body = array.block(start, b"EAIB", inside * width + addresses * file.offset_width)
    yield from _places(body, 0, inside, width)
    number = inside
    for size in here:
        yield from _data_block(array, body.address(), number, size, bits, b"", 0)
        number += size
    for count, size in groups[direct:]:
        yield from _group(array, body.address(), number, count, size, bits)
        number += count * size


def _group(
    array: _Array, address: int | None, first: int, count: int, size: int, bits: int
) -> Iterator[tuple[int, Place]]:
    """The elements of a group of `count` data blocks of `size` elements."""
    if address is None:
        return
    file, position = array.file, -(-bits // 8)
    pages = -(-size // array.page) if size > array.page else 0
    bitmap = count * -(-pages // 8)  # all bits stand first, without gaps
    fields = array.block(address, b"EASB", position + bitmap + count * file.offset_width)
    fields.take(position)
    written = fields.take(bitmap)
    for i in range(count):
        yield from _data_block(array, fields.address(), first + i * size, size, bits, written, i * pages)


def _data_block(
    array: _Array, address: int | None, first: int, size: int, bits: int, written: bytes, bit: int
) -> Iterator[tuple[int, Place]]:
    if address is None:
        return
    position = -(-bits // 8)
    if size <= array.page:
        fields = array.block(address, b"EADB", position + size * array.width)
        fields.take(position)
        yield from _places(fields, first, size, array.width)
    elif not written:
        raise array.file.unsupported(f"{array.what} has pages in its index")
    else:
        array.block(address, b"EADB", position)
        end = address + 10 + array.file.offset_width + position
        yield from array.pages(end, first, size, written, bit)


def tree(file: Hdf5File, address: int, filtered: bool, rank: int) -> Iterator[tuple[tuple[int, ...], Place]]:
    """The chunks of a dataset that can grow along several axes, by their coordinates.

    Raises:
        CorruptFile: damaged.
    """
    kind = FILTERED_CHUNKS if filtered else PLAIN_CHUNKS
    for record in tree_records(file, address, kind, None if filtered else file.offset_width + 8 * rank):
        fields = Cursor(file, record, "a chunk's record")
        size = len(record) - file.offset_width - 4 - 8 * rank
        if filtered and not 1 <= size <= 8:
            raise file.corrupt(f"a chunk's record has {len(record)} bytes")
        where = fields.address()
        nbytes, skipped = (fields.uint(size), fields.uint(4)) if filtered else (None, 0)
        if where is None:
            raise file.corrupt("a chunk without address")
        yield tuple(fields.uint(8) for _ in range(rank)), (where, nbytes, skipped)
