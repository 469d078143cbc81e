"""HDF5 files as bytes: fields, ranges, checksums, the superblock, the heap of texts.

Source: the HDF5 File Format Specification 3.0. Everything is read through `Hdf5File.at`, which compares each range
with the file's size; structures are visited once; checksums are verified where the format has them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from converter.errors import CorruptFile, UnsupportedFeature
from converter.storage.files import Bytes, Part

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_TEXT = 64 << 20  # bytes of all attributes and links together
MAX_SUMMED = 16 << 20  # bytes of all structures that have checksums
MAX_ADDRESSES = 1 << 22
MAX_CHUNKS = 1 << 19
WIDTHS = (2, 4, 8)


class Cursor:
    """Fields of one structure, in order; little-endian."""

    def __init__(self, file: Hdf5File, data: bytes, what: str) -> None:
        self.file, self.data, self.what, self.position = file, data, what, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, nbytes: int) -> bytes:
        if nbytes > self.left:
            raise self.file.corrupt(f"{self.what} is cut off")
        self.position += nbytes
        return self.data[self.position - nbytes : self.position]

    def uint(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def length(self) -> int:
        return self.uint(self.file.length_width)

    def address(self) -> int | None:
        """An offset in the file, None where it is undefined."""
        value = self.uint(self.file.offset_width)
        return None if value == (1 << 8 * self.file.offset_width) - 1 else value


def user_block(source: Bytes) -> int:
    """Bytes before the superblock that are the user's: none, 512, or that doubled some times; addresses start behind.

    0 where there is no superblock at all.
    """
    offset = 0
    while offset + len(SIGNATURE) <= source.size:
        if source.view(offset, len(SIGNATURE), "the signature").tobytes() == SIGNATURE:
            return offset
        offset = 2 * offset or 512
    return 0


class Hdf5File:
    """An open file: the widths of its numbers, its root, what has been visited.

    Raises:
        CorruptFile, UnsupportedFeature: see `_superblock`.
    """

    def __init__(self, source: Bytes) -> None:
        self._user_block = user_block(source)
        behind = Part(source, self._user_block, source.size - self._user_block) if self._user_block else source
        self.path, self.source, self.size = source.path, behind, behind.size
        self.offset_width = self.length_width = 8
        self.text = 0
        self._visited: set[tuple[str, int]] = set()
        self._heaps: dict[int, dict[int, bytes]] = {}
        self._summed = self._chunks = 0
        self.root = self._superblock()

    def corrupt(self, text: str) -> CorruptFile:
        return CorruptFile(f"{self.path}: {text}")

    def unsupported(self, text: str) -> UnsupportedFeature:
        return UnsupportedFeature(f"{self.path}: {text}")

    def at(self, address: int | None, nbytes: int, what: str) -> bytes:
        """Bytes of the file; raises CorruptFile where they are not in it."""
        if address is None or address + nbytes > self.size:
            where = "has no address" if address is None else f"at {address} leaves the file of {self.size} bytes"
            raise self.corrupt(f"{what} {where}; it is damaged or truncated")
        return self.source.view(address, nbytes, what).tobytes()

    def cursor(self, address: int | None, nbytes: int, what: str) -> Cursor:
        return Cursor(self, self.at(address, nbytes, what), what)

    def once(self, kind: str, address: int) -> None:
        """Refuse a structure that is reached a second time: a loop, or a tree that shares branches."""
        if (kind, address) in self._visited or len(self._visited) >= MAX_ADDRESSES:
            raise self.corrupt(f"{kind} at {address} is reached in more than one way")
        self._visited.add((kind, address))

    def checked(self, data: bytes, what: str) -> bytes:
        """The data without the checksum that ends them."""
        self._summed += len(data)
        if self._summed > MAX_SUMMED:
            raise self.unsupported(f"more than {MAX_SUMMED} bytes that describe its tensors")
        if len(data) < 4 or lookup3(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise self.corrupt(f"{what} does not have its checksum; the file is damaged")
        return data[:-4]

    def block(self, address: int | None, nbytes: int, magic: bytes, what: str) -> Cursor:
        """A structure of version 0 with a signature and a checksum, which stand for themselves; each is read once."""
        raw = self.at(address, nbytes, what)
        if raw[:5] != magic + b"\0" or address is None:
            raise self.corrupt(f"{what} at {address} is damaged")
        self.once(what, address)
        fields = Cursor(self, self.checked(raw, what), what)
        fields.take(5)
        return fields

    def count_chunk(self) -> None:
        """Refuse more chunks than memory should hold."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            raise self.unsupported(
                f"more than {MAX_CHUNKS} chunks; `h5repack -l CONTI` makes one piece of each dataset"
            )

    def _superblock(self) -> int:
        """The address of the root group.

        Raises:
            CorruptFile: not HDF5, cut off, or with something appended.
            UnsupportedFeature: an unknown version.
        """
        what = "the superblock"
        fields = self.cursor(0, 16, what)
        if fields.take(8) != SIGNATURE:
            raise self.corrupt("not an HDF5 file")
        version = fields.uint(1)
        if version > 3:
            raise self.unsupported(f"{what} has version {version}; 0 to 3 can be read")
        fields.take(4 if version < 2 else 0)
        self.offset_width, self.length_width = fields.uint(1), fields.uint(1)
        if self.offset_width not in WIDTHS or self.length_width not in WIDTHS:
            raise self.corrupt(f"{what} has numbers of {self.offset_width} and {self.length_width} bytes")
        start = {0: 24, 1: 28}.get(version, 12)
        nbytes = start + 4 * self.offset_width + (2 * self.offset_width if version < 2 else 4)
        raw = self.at(0, nbytes, what)
        fields = Cursor(self, raw if version < 2 else self.checked(raw, what), what)
        fields.take(start)
        base, _, end = fields.address(), fields.address(), fields.address()
        if base != self._user_block:
            raise self.unsupported("its addresses do not start where its superblock lies")
        end = None if end is None else end - base
        if end != self.size:
            raise self.corrupt(
                f"should have {end} bytes and has {self.size}\n"
                "the file is truncated or has something appended; download it again"
            )
        if version < 2:
            fields.take(2 * self.offset_width)  # driver information, offset of the root's name
        root = fields.address()
        if root is None:
            raise self.corrupt("no root group")
        return root

    def heap_object(self, address: int, index: int) -> bytes:
        """An object of a global heap, where strings of variable length are."""
        if address not in self._heaps:
            self._heaps[address] = dict(self._collection(address))
        if index not in self._heaps[address]:
            raise self.corrupt(f"the global heap at {address} has no object {index}")
        return self._heaps[address][index]

    def _collection(self, address: int) -> Iterator[tuple[int, bytes]]:
        what = "a global heap"
        fields = self.cursor(address, 8 + self.length_width, what)
        if fields.take(8) != b"GCOL\1\0\0\0":
            raise self.corrupt(f"{what} at {address} is damaged")
        size = fields.length()
        self.count_text(size)
        fields = self.cursor(address, size, what)
        fields.take(8 + self.length_width)
        while fields.left >= 8 + self.length_width:
            index = fields.uint(2)
            fields.take(6)
            length = fields.length()
            if index == 0:  # free space up to the end
                return
            yield index, fields.take(length)
            fields.take(min(-length % 8, fields.left))

    def count_text(self, nbytes: int) -> None:
        """Refuse more text than any model's configuration has."""
        self.text += nbytes
        if self.text > MAX_TEXT:
            raise self.corrupt(f"more than {MAX_TEXT} bytes of attributes")


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash of that name (2006, public domain), the checksum of HDF5's newer structures."""
    m = 0xFFFFFFFF
    a: int
    b: int
    c: int
    a = b = c = (0xDEADBEEF + len(data)) & m
    if not data:
        return c
    padded = data + bytes(-len(data) % 12)
    *blocks, last = struct.iter_unpack("<3I", padded)
    for x, y, z in blocks:  # rotations are written out: calls would take most of the time
        a, b, c = a + x & m, b + y & m, c + z & m
        a = (a - c & m) ^ (c << 4 & m | c >> 28)
        c = c + b & m
        b = (b - a & m) ^ (a << 6 & m | a >> 26)
        a = a + c & m
        c = (c - b & m) ^ (b << 8 & m | b >> 24)
        b = b + a & m
        a = (a - c & m) ^ (c << 16 & m | c >> 16)
        c = c + b & m
        b = (b - a & m) ^ (a << 19 & m | a >> 13)
        a = a + c & m
        c = (c - b & m) ^ (b << 4 & m | b >> 28)
        b = b + a & m

    def turn(value: int, bits: int) -> int:
        return (value << bits | value >> 32 - bits) & m

    a, b, c = a + last[0] & m, b + last[1] & m, c + last[2] & m
    c = (c ^ b) - turn(b, 14) & m
    a = (a ^ c) - turn(c, 11) & m
    b = (b ^ a) - turn(a, 25) & m
    c = (c ^ b) - turn(b, 16) & m
    a = (a ^ c) - turn(c, 4) & m
    b = (b ^ a) - turn(a, 14) & m
    return (c ^ b) - turn(b, 24) & m
