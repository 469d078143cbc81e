"""Zip archives, read strictly: one meaning per file, nothing hidden, every checksum compared.

Source: PKWARE's APPNOTE 6.3 for the structures. What readers disagree on is refused: names that stand twice, data
between or after the members, a comment, headers that contradict the directory, encryption, links.
Members are stored or deflated.
"""

from __future__ import annotations

import stat
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.storage.checksums import Checksum
from converter.storage.files import Bytes, Part, check_inside
from converter.tensors.tensor import Rows

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64, LOCATOR, DESCRIPTOR = b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08"
LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
CENTRAL_HEADER = struct.Struct("<4sHHHHHHIIIHHHHHII")
END_RECORD = struct.Struct("<4sHHHHIIH")
END64_RECORD = struct.Struct("<4sQHHIIQQQQ")
LOCATOR_RECORD = struct.Struct("<4sIQI")
DESCRIPTOR_32, DESCRIPTOR_64 = struct.Struct("<4sIII"), struct.Struct("<4sIQQ")
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
STORED, DEFLATED = 0, 8
HAS_DESCRIPTOR, IS_UTF8 = 1 << 3, 1 << 11
ZIP64_EXTRA, UNICODE_PATH_EXTRA = 0x0001, 0x7075

MAX_ENTRIES = 1 << 18
MAX_DIRECTORY = 64 << 20
_MAX_RATIO = 1032  # deflate cannot do better
_CHUNK = 1 << 20
_BLOCK, _BLOCKS = 1 << 18, 32  # bytes of a block that is inflated at once, and how many are kept
_SNAPSHOTS = 128  # of 44 kB each


@dataclass(frozen=True)
class Entry:
    """A member as the central directory describes it; `data` is where its bytes start. Sizes and offsets are bytes."""

    name: str
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    header: int
    data: int = 0


class Record(Bytes, Protocol):
    """The bytes of one member, on demand; a view of them raises where the whole is known to be damaged."""

    def check(self) -> None:
        """Compare what nobody has read yet, too; raises CorruptFile."""


class Plain(Part):
    """A stored member, zero-copy; with a checksum where the archive has one."""

    def __init__(self, whole: Bytes, offset: int, size: int, crc: int | None, what: str) -> None:
        super().__init__(whole, offset, size)
        self._what = what
        self._sum = Checksum(size, crc) if crc is not None else None
        self.touched = False

    def view(self, offset: int, nbytes: int, what: str) -> Rows:
        self.touched = True
        data = super().view(offset, nbytes, what)
        if self._sum is not None and not self._sum.complete and not self._sum.add(offset, data):
            raise CorruptFile(_damaged(self.path, self._what))
        return data

    def check(self) -> None:
        while self._sum is not None and (gaps := self._sum.gaps(0, self.size)):
            for start, stop in gaps:
                for low in range(start, stop, _CHUNK):
                    self.view(low, min(_CHUNK, stop - low), self._what)


def _damaged(path: Path, what: str) -> str:
    return f"{path}: {what} does not have the CRC-32 that the archive says\nthe file is damaged; download it again"


@dataclass
class _Inflating:
    """Where a decompressor stands: bytes that came out, bytes that went in."""

    out: int
    taken: int
    engine: zlib._Decompress

    def copy(self) -> _Inflating:
        return _Inflating(self.out, self.taken, self.engine.copy())


class Inflated:
    """A deflated member. It inflates in blocks, of which the latest are kept, and goes on from the nearest snapshot.

    Reading forward costs what it should; a look elsewhere what lies between two snapshots.
    """

    touched = False

    def __init__(self, whole: Bytes, entry: Entry, crc: int | None, what: str) -> None:
        self.path, self.size = whole.path, entry.size
        self._packed, self._what = Part(whole, entry.data, entry.packed), what
        self._crc, self._expected = 0, crc
        self._summed = 0  # bytes from the start that are in `_crc`
        self._stride = max(_BLOCK, self.size // _SNAPSHOTS)
        self._last = _Inflating(0, 0, zlib.decompressobj(-zlib.MAX_WBITS))
        self._snapshots = {0: self._last.copy()}  # by the number of strides that came out
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._finished = False
        self._lock = threading.Lock()

    def view(self, offset: int, nbytes: int, what: str) -> Rows:
        self.touched = True
        check_inside(self, offset, nbytes, what)
        result = np.empty(nbytes, np.uint8)
        with self._lock:
            for number in range(offset // _BLOCK, -(-(offset + nbytes) // _BLOCK)):
                start = number * _BLOCK - offset
                piece = np.frombuffer(self._block(number), np.uint8)[max(-start, 0) : nbytes - start]
                result[max(start, 0) : max(start, 0) + len(piece)] = piece
            if offset + nbytes == self.size and not self._finished:
                self._finish()
        return result

    def scattered(self) -> AbstractContextManager[None]:
        return self._packed.scattered()

    def forward(self, edges: Iterable[int]) -> None:
        """Nothing: what is packed has no such offsets."""

    def close(self) -> None:
        """Nothing: the archive is closed by whoever opened it."""

    def check(self) -> None:
        while not self._finished:
            self.view(self._summed, min(_CHUNK, self.size - self._summed), self._what)

    def _block(self, number: int) -> bytes:
        """One block of the member; those on the way to it are kept as well."""
        if number not in self._blocks:
            known = (each for each in (*self._snapshots.values(), self._last) if each.out <= number * _BLOCK)
            state = max(known, key=lambda each: each.out).copy()
            while state.out < min((number + 1) * _BLOCK, self.size):
                at, end = state.out // _BLOCK, min(state.out + _BLOCK, self.size)
                pieces = []
                while state.out < end:
                    pieces.append(self._step(state, end - state.out))
                self._blocks[at] = b"".join(pieces)
                if len(self._blocks) > _BLOCKS:
                    self._blocks.popitem(last=False)
                if (strides := state.out // self._stride) not in self._snapshots:
                    self._snapshots[strides] = state.copy()
            self._last = state
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _step(self, state: _Inflating, most: int) -> bytes:
        """The next bytes, at least one."""
        piece = b""
        while not piece:
            chunk = self._packed.view(state.taken, min(_BLOCK, self._packed.size - state.taken), self._what)
            ended = state.engine.eof
            try:
                piece = b"" if ended else state.engine.decompress(chunk.data, most)
            except zlib.error as error:
                raise CorruptFile(f"{self.path}: {self._what} is not deflated data ({error})") from None
            used = len(chunk) - len(state.engine.unconsumed_tail) - len(state.engine.unused_data)
            state.taken += used
            if ended or not (piece or used):
                raise CorruptFile(f"{self.path}: {self._what} inflates to {state.out} bytes instead of {self.size}")
        if state.out <= self._summed < state.out + len(piece):  # some of it may have come out before
            self._crc = zlib.crc32(memoryview(piece)[self._summed - state.out :], self._crc)
            self._summed = state.out + len(piece)
        state.out += len(piece)
        return piece

    def _finish(self) -> None:
        """The stream ends where it should, and so does its sum."""
        while self._last.out < self.size:  # the block at the end was known, and something else was read since
            self._blocks.pop(self._last.out // _BLOCK, None)
            self._block(self._last.out // _BLOCK)
        state = self._last
        rest = self._packed.view(state.taken, self._packed.size - state.taken, self._what)
        try:
            more = state.engine.decompress(rest.data, 1)
        except zlib.error:
            more = b"?"
        if more or not state.engine.eof or state.engine.unused_data or state.engine.unconsumed_tail:
            raise CorruptFile(f"{self.path}: {self._what} does not inflate to {self.size} bytes")
        if self._expected is not None and self._crc != self._expected:
            raise CorruptFile(_damaged(self.path, self._what))
        state.taken = self._packed.size
        self._finished = True


@dataclass
class Archive:
    """An open archive: `entries` by name, in the order of the file; `summed` is False where it has no checksums."""

    mapped: Bytes
    entries: dict[str, Entry]
    summed: bool
    _records: dict[str, Plain | Inflated] = field(default_factory=dict)

    def record(self, name: str) -> Record:
        """The member of this name, which must exist."""
        if name not in self._records:
            entry, what = self.entries[name], f"member {short(name)}"
            crc = entry.crc if self.summed else None
            if entry.method == STORED:
                self._records[name] = Plain(self.mapped, entry.data, entry.size, crc, what)
            else:
                self._records[name] = Inflated(self.mapped, entry, crc, what)
        return self._records[name]

    def small(self, name: str, limit: int) -> bytes:
        """A whole member of at most `limit` bytes, checked.

        Raises:
            CorruptFile: larger, or damaged.
        """
        entry = self.entries[name]
        if entry.size > limit:
            raise CorruptFile(f"{self.mapped.path}: member {short(name)} has {entry.size} bytes, the limit is {limit}")
        record = self.record(name)
        record.check()
        return record.view(0, entry.size, f"member {short(name)}").tobytes()

    def check(self) -> None:
        """Compare what is left of every member that was read in part.

        Raises:
            CorruptFile: one is damaged.
        """
        for record in list(self._records.values()):
            if record.touched:
                record.check()


def open_archive(mapped: Bytes, *, paths: bool = True) -> Archive:
    """Read the directory and compare it with every local header; no member is read.

    Names must be plain relative paths that no file system confuses; where they are mere keys (`paths` False) they
    must only differ and have no control characters.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    path = mapped.path
    reader = _Reader(mapped)
    with mapped.scattered():
        count, start, size = _end(reader)
        entries = _directory(reader, count, start, size, paths)
        end, located = 0, []
        for entry in sorted(entries, key=lambda entry: entry.header):
            if entry.header != end:
                where = "overlaps the one before it" if entry.header < end else "does not follow the one before it"
                raise CorruptFile(f"{path}: member {short(entry.name)} {where}")
            placed, end = _local(reader, entry, start)
            located.append(placed)
        if end != start:
            raise CorruptFile(f"{path}: {start - end} bytes stand between the last member and the directory")
    mapped.forward(entry.header for entry in entries)
    summed = any(entry.crc for entry in entries)
    return Archive(mapped, {entry.name: entry for entry in located}, summed)


class _Reader:
    """Small reads here and there."""

    def __init__(self, source: Bytes) -> None:
        self.path, self.size, self._source = source.path, source.size, source

    def at(self, offset: int, nbytes: int, what: str) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise CorruptFile(f"{self.path}: {what} at offset {offset} lies outside the file of {self.size} bytes")
        return self._source.view(offset, nbytes, what).tobytes()


def _end(reader: _Reader) -> tuple[int, int, int]:
    """Number of entries, offset and size of the directory."""
    path, position = reader.path, reader.size - END_RECORD.size
    fields = END_RECORD.unpack(reader.at(position, END_RECORD.size, "the end record")) if position >= 0 else (b"",)
    if fields[0] != END:
        raise CorruptFile(
            f"{path}: does not end as a zip archive does; it is cut off, or something was appended\ndownload it again"
        )
    _, disk, first_disk, here, count, size, start, comment = fields
    if comment:
        raise CorruptFile(f"{path}: a comment of {comment} bytes follows the archive")
    before = max(0, position - LOCATOR_RECORD.size)
    locator = reader.at(before, LOCATOR_RECORD.size, "the zip64 locator")
    if locator[:4] == LOCATOR:
        position, wide = _end64(reader, before, locator)
        narrow = (disk, first_disk, here, count, size, start)
        for small, large, full in zip(narrow, wide, (FULL16,) * 4 + (FULL32,) * 2, strict=True):
            if small not in (large, full) or (small == full and large < full):
                raise CorruptFile(f"{path}: its two end records contradict each other")
        disk, first_disk, here, count, size, start = wide
    if disk or first_disk or here != count:
        raise UnsupportedFeature(f"{path}: one part of a zip archive of several; join them first")
    if start + size != position:
        raise CorruptFile(f"{path}: the zip directory should end at {start + size}, but does so at {position}")
    if count > MAX_ENTRIES or size > MAX_DIRECTORY or count * CENTRAL_HEADER.size > size:
        raise CorruptFile(f"{path}: {count} members in a directory of {size} bytes make no sense")
    return count, start, size


def _end64(reader: _Reader, position: int, locator: bytes) -> tuple[int, tuple[int, ...]]:
    """Where the 64-bit end record stands, and its fields; it must stand right before its locator."""
    _, disk, offset, disks = LOCATOR_RECORD.unpack(locator)
    start = position - END64_RECORD.size
    if offset != start or disk or disks > 1:
        raise CorruptFile(f"{reader.path}: its zip64 locator points to {offset}, the end record should be at {start}")
    magic, size, _, _, *fields = END64_RECORD.unpack(reader.at(start, END64_RECORD.size, "the zip64 end record"))
    if magic != END64 or size != END64_RECORD.size - 12:
        raise CorruptFile(f"{reader.path}: its zip64 end record is damaged")
    return start, tuple(fields)


def _directory(reader: _Reader, count: int, start: int, size: int, paths: bool) -> list[Entry]:
    path, data, position = reader.path, reader.at(start, size, "the zip directory"), 0
    entries: list[Entry] = []
    names: set[str] = set()
    for _ in range(count):
        if position + CENTRAL_HEADER.size > size:
            raise CorruptFile(f"{path}: the zip directory is shorter than its {count} entries")
        fields = CENTRAL_HEADER.unpack_from(data, position)
        name_end = position + CENTRAL_HEADER.size + fields[10]
        extra_end = name_end + fields[11]
        if fields[0] != CENTRAL or extra_end + fields[12] > size:
            raise CorruptFile(f"{path}: entry {len(entries)} of the zip directory is damaged")
        name = _name(path, data[position + CENTRAL_HEADER.size : name_end], paths)
        key = name.casefold() if paths else name
        if key in names:
            raise CorruptFile(f"{path}: two members are called {short(name)}")
        names.add(key)
        entries.append(_entry(path, name, fields, data[name_end:extra_end]))
        position = extra_end + fields[12]
    if position != size:
        raise CorruptFile(f"{path}: {size - position} bytes follow the {count} entries of the zip directory")
    return entries


def _name(path: Path, raw: bytes, paths: bool) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptFile(f"{path}: the member name {short(raw)} is not UTF-8") from None
    parts = name.removesuffix("/").split("/") if paths else []
    if any(part in ("", ".", "..") for part in parts) or any(c in "\\:" for part in parts for c in part):
        raise CorruptFile(f"{path}: the member name {short(name)} is not a plain relative path")
    if any(c < " " or c == "\x7f" for c in name):
        raise CorruptFile(f"{path}: the member name {short(name)} has control characters in it")
    return name


def _entry(path: Path, name: str, fields: tuple[int, ...], extra: bytes) -> Entry:
    _, _, _, flags, method, _, _, crc, packed, size, _, _, comment, disk, _, attributes, header = fields
    what = f"member {short(name)}"
    if flags & ~(HAS_DESCRIPTOR | IS_UTF8):
        raise UnsupportedFeature(f"{path}: {what} has the zip flags {flags:#x} (encrypted or patched)")
    if method not in (STORED, DEFLATED):
        raise UnsupportedFeature(f"{path}: {what} is packed with method {method}; stored and deflated can be read")
    kind = stat.S_IFMT(attributes >> 16)
    if kind not in (0, stat.S_IFREG) and not (kind == stat.S_IFDIR and name.endswith("/")):
        raise CorruptFile(f"{path}: {what} is a link or a device")
    wide = _zip64(path, what, extra, [size == FULL32, packed == FULL32, header == FULL32, disk == FULL16])
    narrow = (size, packed, header, disk)
    size, packed, header, disk = (n if w is None else w for n, w in zip(narrow, wide, strict=True))
    if disk or comment:
        raise CorruptFile(f"{path}: {what} has a comment, or lies on another disk")
    if method == STORED and size != packed:
        raise CorruptFile(f"{path}: {what} is stored, but its two sizes are {size} and {packed}")
    if size > packed * _MAX_RATIO + _CHUNK or (name.endswith("/") and size):
        raise CorruptFile(f"{path}: {what} cannot have {size} bytes, {packed} are there")
    if size == 0 and crc:
        raise CorruptFile(_damaged(path, what))
    return Entry(name, method, flags, crc, packed, size, header)


def _extras(path: Path, what: str, extra: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = 0
    while position < len(extra):
        code, length = struct.unpack_from("<HH", extra, position) if position + 4 <= len(extra) else (0, len(extra))
        position += 4
        if position + length > len(extra) or code in found or code == UNICODE_PATH_EXTRA:
            raise CorruptFile(f"{path}: {what} has damaged extra fields")
        found[code] = extra[position : position + length]
        position += length
    return found


def _zip64(path: Path, what: str, extra: bytes, wanted: list[bool]) -> list[int | None]:
    """The 64-bit values of those fields that are `wanted`: size, packed size, offset; the disk has 32."""
    data, position = _extras(path, what, extra).get(ZIP64_EXTRA), 0
    values: list[int | None] = []
    for size, want in zip((8, 8, 8, 4), wanted, strict=True):
        values.append(None)
        if want:
            if data is None or position + size > len(data):
                raise CorruptFile(f"{path}: {what} lacks its 64-bit sizes")
            values[-1] = int.from_bytes(data[position : position + size], "little")
            position += size
    if data is not None and position != len(data):
        raise CorruptFile(f"{path}: {what} has 64-bit sizes that it does not need")
    return values


def _local(reader: _Reader, entry: Entry, limit: int) -> tuple[Entry, int]:
    """The entry with the place of its bytes, and where what belongs to it ends; `limit` is the directory's offset."""
    path, what = reader.path, f"member {short(entry.name)}"
    fields = LOCAL_HEADER.unpack(reader.at(entry.header, LOCAL_HEADER.size, what))
    magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
    variable = reader.at(entry.header + LOCAL_HEADER.size, name_length + extra_length, what)
    late = bool(entry.flags & HAS_DESCRIPTOR)
    same = (magic, flags, method) == (LOCAL, entry.flags, entry.method)
    same &= variable[:name_length] == entry.name.encode()
    wide = _extras(path, what, variable[name_length:]).get(ZIP64_EXTRA, b"")
    numbers = [int.from_bytes(wide[i : i + 8], "little") for i in range(0, len(wide), 8)]
    same &= crc == entry.crc or (late and crc == 0)
    for given, true in ((packed, entry.packed), (size, entry.size)):
        same &= given == true or (late and given == 0) or (given == FULL32 and true in numbers)
    same &= len(wide) % 8 == 0 and all(n in (0, entry.packed, entry.size, entry.header) for n in numbers)
    if not same:
        raise CorruptFile(f"{path}: the header of {what} contradicts the zip directory")
    data = entry.header + LOCAL_HEADER.size + len(variable)
    end = data + entry.packed
    if end > limit:
        raise CorruptFile(f"{path}: {what} needs bytes {data} to {end}, the directory starts at {limit}")
    if late:
        end += _descriptor(reader, entry, end, limit)
    return Entry(**{**vars(entry), "data": data}), end


def _descriptor(reader: _Reader, entry: Entry, position: int, limit: int) -> int:
    """Length of the data descriptor at `position`, which repeats the directory."""
    tail = reader.at(position, min(DESCRIPTOR_64.size, limit - position), f"member {short(entry.name)}")
    for layout in (DESCRIPTOR_32, DESCRIPTOR_64):
        if len(tail) >= layout.size and layout.unpack_from(tail) == (DESCRIPTOR, entry.crc, entry.packed, entry.size):
            return layout.size
    raise CorruptFile(f"{reader.path}: what follows member {short(entry.name)} contradicts the zip directory")
