"""The zip archive that `torch.save` writes, laid out before a byte is read, so that `torch.load(mmap=True)` can map it.

Source: `torch/serialization.py` (`_save`), `caffe2/serialize/inline_container.cc` (order of the records, padding to 64
bytes) and miniz (headers, data descriptors, zip64). The checksums are all that has to wait for the data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature, short
from converter.formats.base import WriteOptions, sharded
from converter.formats.torch.values import STORAGES, TYPES
from converter.storage import zip as zip_file
from converter.storage.checksums import combine_all
from converter.storage.layout import FileLayout, Layout, Slot
from converter.tensors.tensor import LazyTensor, TensorInfo

FOLDER = "archive"  # torch names it after the file; a constant keeps the bytes independent of that
ALIGNMENT = 64
_STORAGE_CLASS = {ours: name for name, ours in STORAGES.items()}
_TYPE_NAME = {ours: name for name, ours in TYPES.items()}
_BEFORE = ((".format_version", b"1"), (".storage_alignment", str(ALIGNMENT).encode()), ("byteorder", b"little"))
_VERSION = ("version", b"3\n")
_ID, _ID_LENGTH = ".data/serialization_id", 40


@dataclass(frozen=True)
class _Member:
    """One record and its place; `content` is None for a tensor's bytes. Offsets and sizes are bytes."""

    name: bytes
    size: int
    header: int
    content: bytes | None
    tensor: LazyTensor | None = None

    @property
    def wide(self) -> bool:
        """Whether it needs zip64."""
        return self.size >= zip_file.FULL32 or self.header >= zip_file.FULL32

    @property
    def flags(self) -> int:
        return zip_file.IS_UTF8 | (zip_file.HAS_DESCRIPTOR if self.size else 0)

    @property
    def data(self) -> int:
        return self.header + len(self.head())

    @property
    def end(self) -> int:
        if not self.size:
            return self.data
        return self.data + self.size + (zip_file.DESCRIPTOR_64 if self.wide else zip_file.DESCRIPTOR_32).size

    def head(self) -> bytes:
        """The local header, padded so that the bytes start at a multiple of 64."""
        wide = self._zip64()
        fixed = self.header + zip_file.LOCAL_HEADER.size + len(self.name) + len(wide) + 4
        padding = -fixed % ALIGNMENT
        extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        header = zip_file.LOCAL_HEADER.pack(
            zip_file.LOCAL, 0, self.flags, zip_file.STORED, 0, 0, 0, *self._narrow(0), len(self.name), len(extra)
        )
        return header + self.name + extra

    def _zip64(self) -> bytes:
        values = [self.size] * 2 if self.size >= zip_file.FULL32 else []
        values += [self.header] if self.header >= zip_file.FULL32 else []
        return struct.pack(f"<HH{len(values)}Q", zip_file.ZIP64_EXTRA, 8 * len(values), *values) if values else b""

    def _narrow(self, size: int) -> tuple[int, int]:
        return (zip_file.FULL32, zip_file.FULL32) if self.size >= zip_file.FULL32 else (size, size)

    def tail(self, crc: int) -> bytes:
        """The data descriptor."""
        if not self.size:
            return b""
        layout = zip_file.DESCRIPTOR_64 if self.wide else zip_file.DESCRIPTOR_32
        return layout.pack(zip_file.DESCRIPTOR, crc, self.size, self.size)

    def entry(self, crc: int) -> bytes:
        """Its line of the directory."""
        extra = self._zip64()
        lengths = (len(self.name), len(extra), 0)
        place = (0, 0, 0, min(self.header, zip_file.FULL32))  # disk and attributes before it
        header = zip_file.CENTRAL_HEADER.pack(
            zip_file.CENTRAL, 0, 0, self.flags, zip_file.STORED, 0, 0, crc, *self._narrow(self.size), *lengths, *place
        )
        return header + self.name + extra


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """One archive, or shards with their index, as transformers wrote `pytorch_model.bin`.

    An archive's pickle is a plain dict of tensors, in the order given; each has its own storage.

    Raises:
        UnsupportedFeature: a type that PyTorch has not.
        UsageError: a limit that is not positive.
    """
    tensors = list(checkpoint.tensors.values())
    for tensor in tensors:
        if tensor.info.dtype.name not in _TYPE_NAME:
            raise UnsupportedFeature(
                f"{target}: tensor {short(tensor.name)} is {tensor.info.dtype}, which PyTorch cannot hold; "
                "pass --dtype f16, bf16 or f32 to decode it"
            )
    return sharded(target, tensors, options, _file)


def _file(path: Path, tensors: Sequence[LazyTensor]) -> FileLayout:
    members = _members(tensors)
    directory = members[-1].end
    size = directory + sum(len(member.entry(0)) for member in members)
    size += zip_file.END64_RECORD.size + zip_file.LOCATOR_RECORD.size + zip_file.END_RECORD.size
    slots = tuple(Slot(member.data, member.tensor) for member in members if member.tensor is not None)

    def finish(crcs: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        return _finish(members, crcs)

    return FileLayout(path, b"", slots, size, finish)


def _members(tensors: Sequence[LazyTensor]) -> list[_Member]:
    plan: list[tuple[str, int, bytes | None, LazyTensor | None]] = []
    for name, known in (("data.pkl", pickle_of([tensor.info for tensor in tensors])), *_BEFORE):
        plan.append((name, len(known), known, None))
    plan += [(f"data/{index}", tensor.info.nbytes, None, tensor) for index, tensor in enumerate(tensors)]
    plan += [(_VERSION[0], len(_VERSION[1]), _VERSION[1], None), (_ID, _ID_LENGTH, b"", None)]
    members: list[_Member] = []
    for name, size, content, tensor in plan:
        start = members[-1].end if members else 0
        members.append(_Member(f"{FOLDER}/{name}".encode(), size, start, content, tensor))
    return members


def _finish(members: list[_Member], crcs: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Headers, small records, descriptors and the directory, from the CRC-32 of every tensor."""
    waiting, entries = iter(crcs), bytearray()
    sums: list[int] = []
    for member in members:
        content = member.content if member is not members[-1] else _serialization_id(members, sums)
        crc = next(waiting) if content is None else zlib.crc32(content)
        sums.append(crc)
        yield member.header, member.head() + (content or b"")
        yield member.data + member.size, member.tail(crc)
        entries += member.entry(crc)
    yield members[-1].end, bytes(entries) + _end(len(members), len(entries), members[-1].end)


def _serialization_id(members: list[_Member], sums: list[int]) -> bytes:
    """40 digits that depend on the names and on the content of all records before, and on nothing else."""
    names = zlib.crc32(b"\0".join(member.name for member in members))
    content = combine_all((crc, member.size) for crc, member in zip(sums, members, strict=False))
    return f"{names:020d}{content:020d}".encode()


def _end(count: int, size: int, start: int) -> bytes:
    """The end records; like torch, always with the 64-bit one."""
    wide = zip_file.END64_RECORD.pack(
        zip_file.END64, zip_file.END64_RECORD.size - 12, 0x031E, 45, 0, 0, count, count, size, start
    )
    locator = zip_file.LOCATOR_RECORD.pack(zip_file.LOCATOR, 0, start + size, 1)
    few, short_size, short_start = min(count, zip_file.FULL16), min(size, zip_file.FULL32), min(start, zip_file.FULL32)
    return wide + locator + zip_file.END_RECORD.pack(zip_file.END, 0, 0, few, few, short_size, short_start, 0)


# ---------------------------------------------------------------------------------------------- pickle


def pickle_of(infos: Sequence[TensorInfo]) -> bytes:
    """A dict of tensors as protocol 2 writes it; the tensor number i is the whole of the storage called i."""
    out = bytearray(b"\x80\x02}(")
    for index, info in enumerate(infos):
        out += _text(info.name)
        out += _tensor(index, info)
    return bytes(out + b"u.")


def _tensor(index: int, info: TensorInfo) -> bytes:
    untyped = info.dtype.name not in _STORAGE_CLASS
    kind = ("torch.storage", "UntypedStorage") if untyped else ("torch", _STORAGE_CLASS[info.dtype.name])
    numel = info.nbytes if untyped else info.n_elements
    location = b"(" + _text("storage") + _global(*kind) + _text(str(index)) + _text("cpu") + _integer(numel) + b"tQ"
    strides, step = [], 1
    for n in reversed(info.shape):
        strides.append(step)
        step *= max(n, 1)
    geometry = _integer(0) + _tuple(info.shape) + _tuple(strides[::-1])
    hooks = b"\x89" + _global("collections", "OrderedDict") + b")R"  # requires_grad is False, hooks there are none
    if untyped:
        hooks += _global("torch", _TYPE_NAME[info.dtype.name])
    rebuild = _global("torch._utils", "_rebuild_tensor_v3" if untyped else "_rebuild_tensor_v2")
    return rebuild + b"(" + location + geometry + hooks + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _integer(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + bytes((value,))
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes((len(raw),)) + raw
