"""Keras 3 archives out: the configuration as it was read, the weights laid out anew inside a zip archive.

Source: what `keras.saving` writes, PKWARE's APPNOTE 6.3 for the archive. Members are stored; the weights begin at a
multiple of 64, so that they can be mapped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature, short
from converter.formats.base import WriteOptions
from converter.formats.hdf5 import writer
from converter.storage import zip as zf
from converter.storage.checksums import combine_all
from converter.storage.layout import FileLayout, Layout, Slot

WEIGHTS, CONFIG, METADATA, ASSETS = "model.weights.h5", "config.json", "metadata.json", "assets/"
# Member -> the metadata key it travels under; assets have their own names.
TEXTS = {METADATA: "keras_metadata", CONFIG: "model_config"}
ALIGNMENT = 64
MAX_NAME = 4096
_NEEDS, _DOS_1980, _UNIX, _UNIX_FILE = 45, 0x21, 3 << 8, 0o100644 << 16
_PADDING = 0xFFFF  # an extra field that nobody has


@dataclass(frozen=True)
class _Member:
    """A stored member whose header stands at `start`; its bytes are at a multiple of 64."""

    name: str
    size: int
    start: int

    @property
    def data(self) -> int:
        return self.start + len(self.local(0))

    def local(self, crc: int) -> bytes:
        """The header in front of its bytes."""
        wide = struct.pack("<HHQQ", zf.ZIP64_EXTRA, 16, self.size, self.size) if self.size >= zf.FULL32 else b""
        raw = self.name.encode("utf-8")
        padding = -(self.start + zf.LOCAL_HEADER.size + len(raw) + len(wide) + 4) % ALIGNMENT
        extra = wide + struct.pack("<HH", _PADDING, padding) + bytes(padding)
        return zf.LOCAL_HEADER.pack(zf.LOCAL, *self._common(crc, raw), len(extra)) + raw + extra

    def central(self, crc: int) -> bytes:
        """Its entry in the directory."""
        raw = self.name.encode("utf-8")
        values = [self.size] * 2 if self.size >= zf.FULL32 else []
        values += [self.start] if self.start >= zf.FULL32 else []
        extra = struct.pack(f"<HH{len(values)}Q", zf.ZIP64_EXTRA, 8 * len(values), *values) if values else b""
        place = (len(extra), 0, 0, 0, _UNIX_FILE, min(self.start, zf.FULL32))
        return zf.CENTRAL_HEADER.pack(zf.CENTRAL, _UNIX | _NEEDS, *self._common(crc, raw), *place) + raw + extra

    def _common(self, crc: int, raw: bytes) -> tuple[int, ...]:
        size = min(self.size, zf.FULL32)
        return (_NEEDS, 0 if raw.isascii() else zf.IS_UTF8, zf.STORED, 0, _DOS_1980, crc, size, size, len(raw))


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """One archive; the configuration must have been read from one, for nothing else has it whole.

    Raises:
        UnsupportedFeature: no configuration, an asset's name that is no plain path, or what HDF5 cannot hold.
    """
    if any(key not in checkpoint.metadata for key in TEXTS.values()):
        raise UnsupportedFeature(
            f"{target}: an archive has the model's configuration, which comes from another .keras file only\n"
            "write a .weights.h5 and load it by model.load_weights"
        )
    texts = {name: checkpoint.metadata[key].encode("utf-8") for name, key in TEXTS.items()}
    texts |= {key: text.encode("utf-8") for key, text in checkpoint.metadata.items() if key.startswith(ASSETS)}
    inside = {key: text for key, text in checkpoint.metadata.items() if key not in (*TEXTS.values(), *texts)}
    (weights,) = writer.layout(checkpoint.replace(metadata=inside), target, options).files
    return Layout((_laid_out(target, texts, weights),))


def _laid_out(target: Path, texts: Mapping[str, bytes], weights: FileLayout) -> FileLayout:
    members: list[_Member] = []
    end, header = 0, bytearray()
    for name, size in (*((name, len(text)) for name, text in texts.items()), (WEIGHTS, weights.size)):
        _check(target, name)
        members.append(_Member(name, size, end))
        end = members[-1].data + size
        if name in texts:
            header += members[-1].local(zlib.crc32(texts[name])) + texts[name]
    last = members[-1]
    header = header.ljust(last.data, b"\0") + weights.header
    slots = tuple(Slot(last.data + slot.offset, slot.tensor) for slot in weights.slots)
    sums = [zlib.crc32(text) for text in texts.values()]

    def finish(crcs: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """What depends on the values: the header of the weights and the directory."""
        crc = combine_all(_pieces(weights, crcs))
        yield last.start, last.local(crc)
        directory = b"".join(each.central(sum) for each, sum in zip(members, (*sums, crc), strict=True))
        yield end, directory + _end(len(members), end, len(directory))

    *_, (_, tail) = finish([0] * len(slots))
    return FileLayout(target, bytes(header), slots, end + len(tail), finish)


def _check(target: Path, name: str) -> None:
    parts = name.split("/")
    plain = name.isprintable() and not any(character in name for character in "\\:")
    if len(name) > MAX_NAME or not plain or any(part in ("", ".", "..") for part in parts):
        raise UnsupportedFeature(f"{target}: {short(name)} cannot be a file's name in the archive")


def _pieces(file: FileLayout, crcs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """CRC-32 and length of all that a file consists of: its header, its tensors, the zeros between."""
    yield zlib.crc32(file.header), len(file.header)
    position = len(file.header)
    for slot, crc in zip(file.slots, crcs, strict=True):
        gap = slot.offset - position
        yield zlib.crc32(bytes(gap)), gap
        yield crc, slot.tensor.info.nbytes
        position = slot.offset + slot.tensor.info.nbytes
    yield zlib.crc32(bytes(file.size - position)), file.size - position


def _end(count: int, start: int, size: int) -> bytes:
    """The end records, of 64 bits too where they must be."""
    wide = b""
    if count >= zf.FULL16 or start >= zf.FULL32:
        fields = (zf.END64_RECORD.size - 12, _UNIX | _NEEDS, _NEEDS, 0, 0, count, count, size, start)
        wide = zf.END64_RECORD.pack(zf.END64, *fields) + zf.LOCATOR_RECORD.pack(zf.LOCATOR, 0, start + size, 1)
    few, start = min(count, zf.FULL16), min(start, zf.FULL32)
    return wide + zf.END_RECORD.pack(zf.END, 0, 0, few, few, size, start, 0)
