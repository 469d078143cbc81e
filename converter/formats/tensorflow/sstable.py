"""Sorted tables (LevelDB's, as TensorFlow writes them): keys and values in blocks, keys prefix-compressed.

Source: LevelDB's doc/table_format.md and Snappy's format_description.txt. Strict: keys ascend through the whole file,
the blocks follow each other without gaps from its beginning to its footer, restart points are entries.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile, OutputError, UnsupportedFeature
from converter.storage.checksums import CRC32C
from converter.storage.files import Bytes, InMemory, Part, check_inside, peek
from converter.storage.protobuf import varint
from converter.storage.windows import Windows

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48
_TRAILER = 5  # compression, CRC-32C
_PLAIN, _SNAPPY = 0, 1
_MAX_RATIO = 22  # Snappy's best: three bytes that copy 64
_MAX_UNPACKED = 1 << 27  # of one table: compressed blocks are held in memory
_KEYS_RATIO, _KEYS_ROOM = 16, 1 << 20  # how much longer keys may be than what they are stored in
_PIECE = 16 << 20
_MASK_DELTA = 0xA282EAD8


def masked(crc: int) -> int:
    """A CRC-32C as LevelDB and TensorFlow store it (crc32c.h): rotated by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """A key and where its value lies: in the file, or in what a compressed block unpacks to."""

    key: bytes
    data: Windows
    start: int
    stop: int
    block: Block


class Block:
    """One block: found where a handle says, unpacked when looked into, its checksum compared when asked for."""

    def __init__(self, file: Windows, offset: int, size: int) -> None:
        self.path, self.offset, self.size = file.path, offset, size
        self._file = file
        self._lock = threading.Lock()
        self._verified = False
        check_inside(file.source, offset, size + _TRAILER, "a block")
        self.compression = file.at(offset + size, 1, "a block")[0]

    @property
    def end(self) -> int:
        return self.offset + self.size + _TRAILER

    @property
    def unpacked(self) -> int:
        """How many bytes a compressed block says it is; 0 for others."""
        if self.compression == _PLAIN:
            return 0
        return varint(self._file, self.offset, self.offset + self.size)[0]

    def verify(self) -> None:
        """Compare the checksum, once.

        Raises:
            CorruptFile: it differs.
        """
        with self._lock:
            if self._verified:
                return
            crc = 0
            for at in range(0, self.size + 1, _PIECE):
                piece = self._file.source.view(self.offset + at, min(_PIECE, self.size + 1 - at), "a block")
                crc = CRC32C.of(piece.data, crc)
            stored = self._file.source.view(self.end - 4, 4, "a checksum").tobytes()
            if int.from_bytes(stored, "little") != masked(crc):
                raise CorruptFile(
                    f"{self.path}: the block at offset {self.offset} does not have its CRC-32C\n"
                    "the file is damaged; download it again"
                )
            self._verified = True

    def content(self) -> tuple[Windows, int, int]:
        """What the block holds: bytes [start, stop) of the file, or of what they unpack to.

        Raises:
            CorruptFile, UnsupportedFeature: compressed badly, or in a way that is not Snappy's.
        """
        if self.compression == _PLAIN:
            return self._file, self.offset, self.offset + self.size
        if self.compression != _SNAPPY:
            raise UnsupportedFeature(f"{self.path}: a block has compression {self.compression}; 0 and 1 can be read")
        self.verify()
        unpacked = unsnappy(Part(self._file.source, self.offset, self.size))
        return Windows(InMemory(self.path, unpacked)), 0, len(unpacked)

    def entries(self) -> Iterator[Entry]:
        """The entries in order.

        Raises:
            CorruptFile: lengths that leave the block, restart points that are no entries.
        """
        data, start, end = self.content()
        restarts, stop = self._restarts(data, start, end)
        position, key, seen = start, b"", 0
        while position < stop:
            begin = position
            shared, position = varint(data, position, stop)
            fresh, position = varint(data, position, stop)
            length, position = varint(data, position, stop)
            restart = seen < len(restarts) and int(restarts[seen]) == begin - start
            if shared > len(key) or fresh + length > stop - position or (restart and shared):
                raise CorruptFile(
                    f"{self.path}: entry at {begin - start} of the block at offset {self.offset} leaves the block"
                )
            seen += restart
            key = key[:shared] + bytes(data.at(position, fresh, "a key"))
            position += fresh + length
            yield Entry(key, data, position - length, position, self)
        if seen < len(restarts) and not (stop == start and len(restarts) == 1):
            raise CorruptFile(f"{self.path}: the block at offset {self.offset} has restart points that are no entries")

    def _restarts(self, data: Windows, start: int, end: int) -> tuple[NDArray[np.uint32], int]:
        """Where entries with a whole key begin, and where the entries end."""
        count = int.from_bytes(data.at(end - 4, 4, "restart points"), "little") if end - start >= 4 else 0
        stop = end - 4 - 4 * count
        if stop < start or count == 0:
            raise CorruptFile(
                f"{self.path}: the block at {self.offset} claims {count} restart points in {end - start} bytes"
            )
        return np.frombuffer(data.at(stop, 4 * count, "restart points"), "<u4"), stop


def is_table(path: Path) -> bool:
    """Whether a file ends as a table does."""
    try:
        return peek(path, len(MAGIC), -len(MAGIC)) == MAGIC
    except (OSError, OutputError):
        return False


def read_table(mapped: Bytes) -> list[Entry]:
    """All entries, in order. Values stay in the file; of blocks that are not compressed only keys are looked at.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    path, file, footer = mapped.path, Windows(mapped), mapped.size - FOOTER
    if file.at(footer, FOOTER, "the footer")[-8:] != MAGIC:
        raise CorruptFile(f"{path}: does not end as a TensorFlow table does\nthe file is truncated or of another kind")
    handles = footer + FOOTER - len(MAGIC)
    meta, position = _handle(file, file, footer, handles)
    index, position = _handle(file, file, position, handles)
    if any(file.at(position, handles - position, "the footer")):
        raise CorruptFile(f"{path}: the footer has more in it than it should")
    for block in (meta, index):
        block.verify()
    blocks, limits = [], []
    for entry in index.entries():
        block, end = _handle(file, entry.data, entry.start, entry.stop)
        if end != entry.stop:
            raise CorruptFile(f"{path}: an entry of the index of blocks is longer than it should be")
        blocks.append(block)
        limits.append(entry.key)
    _check_cover(path, [*blocks, meta, index], footer)
    if sum(block.unpacked for block in blocks) > _MAX_UNPACKED:
        raise UnsupportedFeature(f"{path}: more than {_MAX_UNPACKED} bytes in compressed blocks; save it without")
    entries: list[Entry] = []
    room = _KEYS_ROOM + _KEYS_RATIO * sum(block.unpacked or block.size for block in blocks)
    for block, limit in zip(blocks, limits, strict=True):
        for entry in block.entries():
            room -= len(entry.key)
            if entry.key > limit or (entries and entry.key <= entries[-1].key) or room < 0:
                raise CorruptFile(f"{path}: keys of the block at offset {block.offset} are too long or out of order")
            entries.append(entry)
    return entries


def _handle(file: Windows, data: Windows, position: int, stop: int) -> tuple[Block, int]:
    """The block of `file` that the handle at `position` of `data` means."""
    offset, position = varint(data, position, stop)
    size, position = varint(data, position, stop)
    return Block(file, offset, size), position


def _check_cover(path: Path, blocks: list[Block], stop: int) -> None:
    end = 0
    for block in sorted(blocks, key=lambda block: block.offset):
        if block.offset != end:
            raise CorruptFile(f"{path}: the block at offset {block.offset} does not follow the one that ends at {end}")
        end = block.end
    if end != stop:
        raise CorruptFile(f"{path}: the blocks end at {end}, the footer starts at {stop}")


def unsnappy(packed: Bytes) -> bytes:
    """Snappy-compressed bytes, unpacked.

    Raises:
        CorruptFile: damaged, or claiming a size that so few bytes cannot have.
    """
    path, data = packed.path, packed.view(0, packed.size, "a compressed block").data
    size, position = varint(Windows(packed), 0, packed.size)
    if size > min(_MAX_RATIO * len(data), _MAX_UNPACKED):
        raise CorruptFile(f"{path}: {len(data)} compressed bytes say that they are {size}")
    out = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:
            length, position = _literal(data, tag >> 2, position)
            piece = data[position : position + length]
            position += length
        else:
            width = (1, 2, 4)[(tag & 3) - 1]
            offset = int.from_bytes(data[position : position + width], "little")
            position += width
            length = 1 + (tag >> 2)
            if width == 1:
                length, offset = 4 + (tag >> 2 & 7), offset | tag >> 5 << 8
            if not 0 < offset <= len(out):
                raise CorruptFile(f"{path}: a compressed block copies from before its beginning")
            seed = out[-offset:][:length]
            piece = memoryview((seed * -(-length // len(seed)))[:length])
        if len(piece) != length or position > len(data) or len(out) + length > size:
            raise CorruptFile(f"{path}: a compressed block is damaged")
        out += piece
    if len(out) != size:
        raise CorruptFile(f"{path}: a compressed block is shorter than it says")
    return bytes(out)


def _literal(data: memoryview, code: int, position: int) -> tuple[int, int]:
    if code < 60:
        return code + 1, position
    width = code - 59
    return int.from_bytes(data[position : position + width], "little") + 1, position + width
