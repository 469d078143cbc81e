"""Where newer HDF5 files keep many links or attributes: version 2 B-trees and fractal heaps.

Source: the HDF5 File Format Specification 3.0, III.A.2 and III.G. Blocks are placed first, each with its checksum
verified; objects are then read where they lie.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property

from converter.formats.hdf5.file import Hdf5File

MAX_LEVELS = 32
MAX_BLOCK = 1 << 20  # bytes of a block with objects; libraries make 64 KiB of it
MAX_WIDTH = 1 << 10  # blocks in a row; libraries make it 4
MANAGED, HUGE, TINY = range(3)
HUGE_OBJECTS = 1  # records of version 2 B-trees


def tree_records(file: Hdf5File, address: int | None, kind: int, width: int | None) -> Iterator[bytes]:
    """All records of a version 2 B-tree, in no order; `width` is the bytes each must have, None for any.

    Raises:
        CorruptFile: damaged, or not of this kind.
    """
    what = "a B-tree of version 2"
    fields = file.block(address, 22 + file.offset_width + file.length_width, b"BTHD", what)
    this, node, record, depth = fields.uint(1), fields.uint(4), fields.uint(2), fields.uint(2)
    fields.take(2)  # when to split and to merge
    root, count, total = fields.address(), fields.uint(2), fields.length()
    if this != kind or width not in (None, record) or not record or depth > MAX_LEVELS:
        raise file.corrupt(f"{what} at {address} is damaged")
    most, pointers = _node_sizes(node, record, depth, file.offset_width)
    stack: list[tuple[int | None, int, int]] = [(root, count, depth)] if root is not None else []
    found = 0
    while stack:
        where, used, level = stack.pop()
        pointer = sum(pointers[level])
        nbytes = 10 + used * record + ((used + 1) * pointer if level else 0)
        if used > most[level] or nbytes > node:
            raise file.corrupt(f"{what} at {address} is damaged")
        body = file.block(where, nbytes, b"BTIN" if level else b"BTLF", "a node of " + what)
        if body.uint(1) != kind:
            raise file.corrupt(f"{what} at {address} is damaged")
        for _ in range(used):
            yield body.take(record)
        found += used
        for _ in range(used + 1 if level else 0):
            child, below = body.address(), body.uint(pointers[level][1])
            body.take(pointers[level][2])
            stack.append((child, below, level - 1))
    if found != total:
        raise file.corrupt(f"{what} at {address} should have {total} records and has {found}")


def _node_sizes(node: int, record: int, depth: int, offset_width: int) -> tuple[list[int], list[tuple[int, int, int]]]:
    """For each level, leaves first: the most records of a node, and the bytes of a pointer's parts.

    These are the address, the number of records of the child, and that of all below it.
    """
    most = [max(node - 10, 0) // record]
    pointers = [(0, 0, 0)]
    below = most[0]
    for level in range(1, depth + 1):
        counts = (_width(most[0]), _width(below) if level > 1 else 0)
        pointers.append((offset_width, *counts))
        size = offset_width + sum(counts)
        most.append(max(node - 10 - size, 0) // (record + size))
        below = (most[level] + 1) * below + most[level]
    return most, pointers


def _width(value: int) -> int:
    """Bytes that a number of at most this value takes."""
    return max(1, -(-value.bit_length() // 8))


class FractalHeap:
    """Objects by their identifiers of `id_width` bytes.

    Raises:
        CorruptFile: damaged.
        UnsupportedFeature: filters, or blocks beyond what libraries make.
    """

    def __init__(self, file: Hdf5File, address: int) -> None:
        what = "a fractal heap"
        offset, length = file.offset_width, file.length_width
        if file.cursor(address + 7, 2, what).uint(2):
            raise file.unsupported(f"{what} is packed with filters")
        fields = file.block(address, 26 + 12 * length + 3 * offset, b"FRHP", what)
        self.file, self._address = file, address
        self.id_width, _, flags, most = fields.uint(2), fields.uint(2), fields.uint(1), fields.uint(4)
        fields.take(length)
        self._huge_tree = fields.address()
        fields.take(length + offset + 8 * length)  # free space and statistics
        self._width, self._start, self._largest = fields.uint(2), fields.length(), fields.length()
        bits, _, root, rows = fields.uint(2), fields.uint(2), fields.address(), fields.uint(2)
        powers = (self._width, self._start, self._largest)
        if any(not value or value & (value - 1) for value in powers) or self._start > self._largest or bits > 64:
            raise file.corrupt(f"{what} at {address} has blocks of {self._start} to {self._largest} bytes")
        if self._largest > MAX_BLOCK or self._width > MAX_WIDTH:
            raise file.unsupported(f"{what} has blocks of {self._largest} bytes; {MAX_BLOCK} can be read")
        self._offset_width = -(-bits // 8)
        self._length_width = min(-(-(self._largest.bit_length() - 1) // 8), _width(most))
        if self.id_width <= self._offset_width + self._length_width:
            raise file.corrupt(f"{what} at {address} has identifiers of {self.id_width} bytes")
        self._summed = bool(flags & 2)
        self._blocks: list[tuple[int, int, int]] = []  # where each begins in the heap, its size, its address
        if root is not None:
            self._place(root, rows, bits)
        self._blocks.sort()

    def _corrupt(self) -> Exception:
        return self.file.corrupt(f"the fractal heap at {self._address} is damaged")

    def _place(self, root: int, rows: int, bits: int) -> None:
        """Find all blocks with objects; rows of blocks double in size from the third on."""
        direct_rows = (self._largest // self._start).bit_length() + 1
        stack: list[tuple[int, int, int]] = [(root, rows, 0)]
        if not rows:
            self._block(root, 0, self._start)
            stack.clear()
        while stack:
            where, rows, position = stack.pop()
            if not 0 < rows <= bits:
                raise self._corrupt()
            head = self.file.offset_width + self._offset_width
            nbytes = 9 + head + rows * self._width * self.file.offset_width
            fields = self.file.block(where, nbytes, b"FHIB", "an indirect block of a fractal heap")
            if fields.address() != self._address or fields.uint(self._offset_width) != position:
                raise self._corrupt()
            for row in range(rows):
                size = self._start << max(row - 1, 0)
                for _ in range(self._width):
                    child = fields.address()
                    if child is not None and row < direct_rows:
                        self._block(child, position, size)
                    elif child is not None:
                        stack.append((child, (size // (self._start * self._width)).bit_length(), position))
                    position += size

    def _block(self, address: int, position: int, size: int) -> None:
        file, what = self.file, "a block of a fractal heap"
        head = 5 + file.offset_width + self._offset_width
        raw = file.at(address, size, what) if self._summed else file.at(address, head, what)
        file.once(what, address)
        if self._summed:
            blank = raw[:head] + bytes(4) + raw[head + 4 :]
            file.checked(blank + raw[head : head + 4], what)
        expected = b"FHDB\0" + self._address.to_bytes(file.offset_width, "little")
        if raw[:head] != expected + position.to_bytes(self._offset_width, "little"):
            raise self._corrupt()
        self._blocks.append((position, size, address))

    def object(self, identifier: bytes) -> bytes:
        """The bytes of an object.

        Raises:
            CorruptFile: it does not lie in a block.
        """
        kind, version = identifier[0] >> 4 & 3, identifier[0] >> 6
        if version or kind > TINY:
            raise self._corrupt()
        if kind == TINY:
            return identifier[1 : 2 + (identifier[0] & 15)]
        if kind == HUGE:
            address, nbytes = self._huge.get(int.from_bytes(identifier[1:9], "little"), (None, 0))
        else:
            end = 1 + self._offset_width
            offset = int.from_bytes(identifier[1:end], "little")
            nbytes = int.from_bytes(identifier[end : end + self._length_width], "little")
            i = bisect_right(self._blocks, (offset, MAX_BLOCK + 1, 0)) - 1
            start, size, where = self._blocks[i] if i >= 0 else (0, 0, 0)
            address = where + offset - start if start <= offset <= offset + nbytes <= start + size else None
        if address is None:
            raise self._corrupt()
        self.file.count_text(nbytes)
        return self.file.at(address, nbytes, "an object of a fractal heap")

    @cached_property
    def _huge(self) -> dict[int, tuple[int | None, int]]:
        """Objects that are larger than blocks: where they lie and their bytes, by number."""
        file, found = self.file, dict[int, tuple[int | None, int]]()
        width = file.offset_width + 2 * file.length_width
        if self.id_width > file.offset_width + file.length_width:
            raise file.unsupported("a fractal heap of large objects without a tree")
        for record in tree_records(file, self._huge_tree, HUGE_OBJECTS, width):
            end = file.offset_width + file.length_width
            place = int.from_bytes(record[: file.offset_width], "little")
            nbytes = int.from_bytes(record[file.offset_width : end], "little")
            found[int.from_bytes(record[end:], "little")] = (place, nbytes)
        return found
