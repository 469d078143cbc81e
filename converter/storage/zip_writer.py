"""Zip archives laid out before a byte of their members is read: stored, each member's bytes at a multiple of 64.

Source: PKWARE's APPNOTE 6.3; miniz for what PyTorch's archives do differently. A member is a file to be, with its own
header and slots, so that an array, a pickle's storage and a whole HDF5 file are laid out alike. What depends on the
values, the CRC-32 in the headers and in the directory, is written when all slots are full.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.storage import zip as zf
from converter.storage.checksums import CRC32
from converter.storage.layout import FileLayout, Slot

ALIGNMENT = 64
_VERSION_64 = 45  # of the specification, the first that has 64-bit sizes
_DOS_1980, _UNIX, _UNIX_FILE = 0x21, 3 << 8, 0o100644 << 16  # the first day there is; a file that all may read


@dataclass(frozen=True)
class Style:
    """What writers of archives do differently.

    Attributes:
        padding: the extra field that fills up to the alignment: its number, what its data begin with, what follows.
        version, made_by, date, attributes: as in every header and entry.
        end_made_by: who made the 64-bit end record.
        streamed: as miniz writes for PyTorch: CRC and sizes follow the data in a descriptor, names are marked as UTF-8
            even where they are ASCII, and there always is a 64-bit end record.
    """

    padding: tuple[int, bytes, bytes]
    version: int = _VERSION_64
    made_by: int = _UNIX | _VERSION_64
    date: int = _DOS_1980
    attributes: int = _UNIX_FILE
    end_made_by: int = _UNIX | _VERSION_64
    streamed: bool = False


@dataclass(frozen=True)
class Member:
    """A file to be inside the archive; `late` makes its header, of the same length, from the CRC-32 of those before."""

    name: str
    file: FileLayout
    late: Callable[[Sequence[int]], bytes] | None = None


def archive(path: Path, members: Sequence[Member], style: Style) -> FileLayout:
    """The archive of these members, in this order."""
    placed: list[_Placed] = []
    for member in members:
        placed.append(_Placed(style, member, member.name.encode("utf-8"), placed[-1].end if placed else 0))
    end = placed[-1].end if placed else 0
    slots = tuple(Slot(each.data + slot.offset, slot.tensor) for each in placed for slot in each.member.file.slots)

    def finish(crcs: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Headers, descriptors and the directory."""
        waiting, directory = iter(crcs), bytearray()
        sums: list[int] = []
        for each in placed:
            member = each.member
            header = member.file.header if member.late is None else member.late(sums)
            sums.append(CRC32.combine_all(_pieces(member.file, header, [next(waiting) for _ in member.file.slots])))
            yield each.start, each.local(sums[-1]) + header
            yield each.data + each.size, each.descriptor(sums[-1])
            directory += each.entry(sums[-1])
        yield end, bytes(directory) + _end(style, len(placed), end, len(directory))

    directory = sum(len(each.entry(0)) for each in placed)
    size = end + directory + len(_end(style, len(placed), end, directory))
    return FileLayout(path, b"", slots, size, finish)


@dataclass(frozen=True)
class _Placed:
    """A member whose header stands at `start`. Offsets and sizes are bytes."""

    style: Style
    member: Member
    name: bytes
    start: int

    @property
    def size(self) -> int:
        return self.member.file.size

    @property
    def data(self) -> int:
        """Where its bytes begin."""
        return self.start + len(self.local(0))

    @property
    def end(self) -> int:
        return self.data + self.size + len(self.descriptor(0))

    @property
    def _streamed(self) -> bool:
        return self.style.streamed and self.size > 0

    def local(self, crc: int) -> bytes:
        """The header in front of its bytes."""
        wide = self._wide(self.style.streamed)
        number, head, fill = self.style.padding
        fixed = self.start + zf.LOCAL_HEADER.size + len(self.name) + len(wide) + 4 + len(head)
        padding = -fixed % ALIGNMENT
        extra = wide + struct.pack("<HH", number, len(head) + padding) + head + fill * padding
        sums = (0, *self._sizes(0)) if self._streamed else (crc, *self._sizes(self.size))
        return zf.LOCAL_HEADER.pack(zf.LOCAL, *self._common(), *sums, len(self.name), len(extra)) + self.name + extra

    def descriptor(self, crc: int) -> bytes:
        """What follows its bytes."""
        if not self._streamed:
            return b""
        wide = self.size >= zf.FULL32 or self.start >= zf.FULL32
        return (zf.DESCRIPTOR_64 if wide else zf.DESCRIPTOR_32).pack(zf.DESCRIPTOR, crc, self.size, self.size)

    def entry(self, crc: int) -> bytes:
        """Its entry in the directory."""
        extra = self._wide(True)
        sums = (crc, *self._sizes(self.size))
        lengths = (len(self.name), len(extra), 0)
        place = (0, 0, self.style.attributes, min(self.start, zf.FULL32))
        made = (self.style.made_by, *self._common())
        return zf.CENTRAL_HEADER.pack(zf.CENTRAL, *made, *sums, *lengths, *place) + self.name + extra

    def _common(self) -> tuple[int, ...]:
        """What header and entry say alike, up to the time of day."""
        flags = zf.HAS_DESCRIPTOR if self._streamed else 0
        if self.style.streamed or not self.name.isascii():
            flags |= zf.IS_UTF8
        return self.style.version, flags, zf.STORED, 0, self.style.date

    def _sizes(self, size: int) -> tuple[int, int]:
        """Both sizes in 32 bits; where the member needs 64, the mark that says so."""
        return (zf.FULL32, zf.FULL32) if self.size >= zf.FULL32 else (size, size)

    def _wide(self, offset: bool) -> bytes:
        """The extra field of what needs 64 bits: both sizes and, if wanted, the header's offset."""
        values = [self.size] * 2 if self.size >= zf.FULL32 else []
        values += [self.start] if offset and self.start >= zf.FULL32 else []
        return struct.pack(f"<HH{len(values)}Q", zf.ZIP64_EXTRA, 8 * len(values), *values) if values else b""


def _pieces(file: FileLayout, header: bytes | bytearray, crcs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """CRC-32 and length of all that a file consists of: its header, its tensors, the zeros between."""
    yield CRC32.of(memoryview(header)), len(header)
    position = len(header)
    for slot, crc in sorted(zip(file.slots, crcs, strict=True), key=lambda each: each[0].offset):
        yield CRC32.of(bytes(slot.offset - position)), slot.offset - position
        yield crc, slot.tensor.info.nbytes
        position = slot.offset + slot.tensor.info.nbytes
    yield CRC32.of(bytes(file.size - position)), file.size - position


def _end(style: Style, count: int, start: int, size: int) -> bytes:
    """What ends an archive: where its directory is, in 64 bits too where it must be."""
    wide = b""
    if style.streamed or count >= zf.FULL16 or start >= zf.FULL32 or size >= zf.FULL32:
        fields = (zf.END64_RECORD.size - 12, style.end_made_by, _VERSION_64, 0, 0, count, count, size, start)
        wide = zf.END64_RECORD.pack(zf.END64, *fields) + zf.LOCATOR_RECORD.pack(zf.LOCATOR, 0, start + size, 1)
    few, size, start = min(count, zf.FULL16), min(size, zf.FULL32), min(start, zf.FULL32)
    return wide + zf.END_RECORD.pack(zf.END, 0, 0, few, few, size, start, 0)
