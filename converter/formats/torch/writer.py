"""The zip archive that `torch.save` writes, laid out before a byte is read, so that `torch.load(mmap=True)` can map it.

Source: `torch/serialization.py` (`_save`) and `caffe2/serialize/inline_container.cc` (order of the records, padding to
64 bytes). The checksums, and the identity that is made of them, are all that has to wait for the data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature, short
from converter.formats.base import WriteOptions, sharded
from converter.formats.torch.values import STORAGES, TYPES
from converter.storage.checksums import CRC32
from converter.storage.layout import FileLayout, Layout, Slot, whole_file
from converter.storage.zip_writer import ALIGNMENT, Member, Style, archive
from converter.tensors.tensor import LazyTensor, TensorInfo

FOLDER = "archive"  # torch names it after the file; a constant keeps the bytes independent of that
_STORAGE_CLASS = {ours: name for name, ours in STORAGES.items()}
_TYPE_NAME = {ours: name for name, ours in TYPES.items()}
_BEFORE = ((".format_version", b"1"), (".storage_alignment", str(ALIGNMENT).encode()), ("byteorder", b"little"))
_VERSION = ("version", b"3\n")
_STYLE = Style((0x4246, b"", b"Z"), version=0, made_by=0, date=0, attributes=0, end_made_by=0x031E, streamed=True)
_ID, _ID_LENGTH = ".data/serialization_id", 40


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
    known = (("data.pkl", pickle_of([tensor.info for tensor in tensors])), *_BEFORE)
    files = [(name, whole_file(path, content)) for name, content in known]
    files += [
        (f"data/{index}", FileLayout(path, b"", (Slot(0, tensor),), tensor.info.nbytes))
        for index, tensor in enumerate(tensors)
    ]
    files.append((_VERSION[0], whole_file(path, _VERSION[1])))
    members = [Member(f"{FOLDER}/{name}", file) for name, file in files]
    unknown = FileLayout(path, b"", (), _ID_LENGTH)
    members.append(Member(f"{FOLDER}/{_ID}", unknown, partial(_serialization_id, members)))
    return archive(path, members, _STYLE)


def _serialization_id(members: Sequence[Member], sums: Sequence[int]) -> bytes:
    """40 digits that depend on the names and on the content of all records before, and on nothing else."""
    names = zlib.crc32(b"\0".join(member.name.encode() for member in members))
    content = CRC32.combine_all((crc, member.file.size) for crc, member in zip(sums, members, strict=False))
    return f"{names:020d}{content:020d}".encode()


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
