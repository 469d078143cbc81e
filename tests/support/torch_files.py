"""PyTorch files built byte by byte: pickles from opcodes, zip archives whose every field can lie.

Nothing here uses the package under test.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# ---------------------------------------------------------------------------------------------- pickles

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
STORAGES = {
    "<f4": "FloatStorage",
    "<f8": "DoubleStorage",
    "<f2": "HalfStorage",
    "<i8": "LongStorage",
    "<i4": "IntStorage",
    "<i2": "ShortStorage",
    "|i1": "CharStorage",
    "|u1": "ByteStorage",
    "|b1": "BoolStorage",
    "<c8": "ComplexFloatStorage",
    "<c16": "ComplexDoubleStorage",
}


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: Any) -> bytes:
    """An int in the fewest opcodes; bytes stand for themselves, floats and texts are what they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes((len(raw),)) + raw


def tuple_of(items: Iterable[Any]) -> bytes:
    return b"(" + b"".join(integer(item) for item in items) + b"t"


def storage(kind: str = "FloatStorage", key: Any = "0", numel: Any = 6, *more: bytes, module: str = "torch") -> bytes:
    """A persistent id and its opcode."""
    name = f"c{module}\n{kind}\n".encode()
    return b"(" + text("storage") + name + integer(key) + text("cpu") + integer(numel) + b"".join(more) + b"tQ"


def tensor(
    place: bytes, offset: Any = 0, shape: Sequence[Any] | bytes = (2, 3), stride: Sequence[Any] | bytes = (3, 1)
) -> bytes:
    """`_rebuild_tensor_v2` of a storage."""
    sizes, steps = (part if isinstance(part, bytes) else tuple_of(part) for part in (shape, stride))
    geometry = integer(offset) + sizes + steps
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + geometry + b"\x89" + ORDERED_DICT + b"tR"


def dictionary(items: Mapping[Any, bytes]) -> bytes:
    """A dict; keys are texts or numbers, values are opcodes."""
    return b"}(" + b"".join(integer(key) + value for key, value in items.items()) + b"u"


def pickle(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes((protocol,)) + body + b"."


W = tensor(storage())  # F32 (2, 3) in storage 0
DATA = np.arange(6, dtype="<f4").tobytes()

# -------------------------------------------------------------------------------------------- archives


@dataclass(frozen=True)
class Member:
    """A member of an archive; a field that is set says something else than the truth."""

    name: str | bytes
    data: bytes
    deflate: bool = False
    descriptor: bool = False
    local_name: bytes | None = None
    packed: bytes | None = None
    crc: int | None = None
    size: int | None = None
    packed_size: int | None = None
    method: int | None = None
    flags: int = 0
    local: Mapping[str, int] | None = None
    late_size: int | None = None
    attributes: int = 0
    extra: bytes = b""
    local_extra: bytes = b""
    comment: bytes = b""
    header: int | None = None
    before: bytes = b""

    def with_(self, **changes: Any) -> Member:
        return replace(self, **changes)


def zipped(
    members: Iterable[Member],
    *,
    before: bytes = b"",
    gap: bytes = b"",
    comment: bytes = b"",
    count: int | None = None,
    start: int | None = None,
    disk: int = 0,
    zip64: Mapping[str, int] | None = None,
) -> bytes:
    """The bytes of an archive; keywords are what its end records claim, `zip64` adds the 64-bit ones with changes."""
    out, directory, number = bytearray(before), bytearray(), 0
    for member in members:
        out += member.before
        local, central = _headers(member, len(out))
        out += local
        directory += central
        number += 1
    out += gap
    place = len(out) if start is None else start
    number = number if count is None else count
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", disk, disk, number, number, len(directory), place, len(comment))
    wide = _zip64(number, len(directory), place, zip64) if zip64 is not None else b""
    return bytes(out + directory) + wide + end + comment


def _zip64(number: int, size: int, start: int, changes: Mapping[str, int]) -> bytes:
    fields = {"length": 44, "disk": 0, "number": number, "size": size, "start": start, "at": start + size, "disks": 1}
    fields |= changes
    record = struct.pack(
        "<4sQHHIIQQQQ",
        b"PK\6\6",
        fields["length"],
        45,
        45,
        fields["disk"],
        0,
        fields["number"],
        fields["number"],
        fields["size"],
        fields["start"],
    )
    return record + struct.pack("<4sIQI", b"PK\6\7", 0, fields["at"], fields["disks"])


def _headers(m: Member, position: int) -> tuple[bytes, bytes]:
    name = m.name.encode() if isinstance(m.name, str) else m.name
    engine = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = m.packed if m.packed is not None else engine.compress(m.data) + engine.flush() if m.deflate else m.data
    crc = zlib.crc32(m.data) if m.crc is None else m.crc
    size = len(m.data) if m.size is None else m.size
    packed_size = len(packed) if m.packed_size is None else m.packed_size
    method = (8 if m.deflate else 0) if m.method is None else m.method
    flags = m.flags | (8 if m.descriptor else 0)
    local = {"flags": flags, "method": method, "crc": crc, "packed": packed_size, "size": size}
    if m.descriptor:
        local |= {"crc": 0, "packed": 0, "size": 0}
    local |= m.local or {}
    shown = name if m.local_name is None else m.local_name
    head = struct.pack(
        "<4sHHHHHIIIHH",
        b"PK\3\4",
        20,
        local["flags"],
        local["method"],
        0,
        0,
        local["crc"],
        local["packed"],
        local["size"],
        len(shown),
        len(m.local_extra),
    )
    late = size if m.late_size is None else m.late_size
    tail = struct.pack("<4sIII", b"PK\7\x08", crc, packed_size, late) if m.descriptor else b""
    central = struct.pack(
        "<4sHHHHHHIIIHHHHHII",
        b"PK\1\2",
        20,
        20,
        flags,
        method,
        0,
        0,
        crc,
        packed_size,
        size,
        len(name),
        len(m.extra),
        len(m.comment),
        0,
        0,
        m.attributes,
        position if m.header is None else m.header,
    )
    return head + shown + m.local_extra + packed + tail, central + name + m.extra + m.comment


def members(body: bytes, storages: Mapping[str, bytes], prefix: str = "archive/") -> dict[str, Member]:
    """What `torch.save` would write, by short name."""
    contents = {"data.pkl": pickle(body), "byteorder": b"little", "version": b"3\n"}
    contents |= {f"data/{key}": data for key, data in storages.items()}
    return {name: Member(prefix + name, data) for name, data in contents.items()}


def archive(body: bytes = dictionary({"w": W}), storages: Mapping[str, bytes] | None = None) -> bytes:
    """A valid archive with these storages, if the pickle is valid."""
    return zipped(members(body, {"0": DATA} if storages is None else storages).values())


# -------------------------------------------------------------------------------------------- streams

SYSTEM = dictionary({"protocol_version": b"M\xe9\x03", "little_endian": b"\x88"})


def stream(
    body: bytes = dictionary({"w": tensor(storage("FloatStorage", "0", 6, b"N"))}),
    storages: Sequence[tuple[str, int, bytes]] = (("0", 6, DATA),),
    *,
    magic: bytes = MAGIC,
    protocol: bytes = PROTOCOL,
    system: bytes = pickle(SYSTEM),
    keys: bytes | None = None,
) -> bytes:
    """A file of before 1.6: pickles, then storages as (key, number of elements, bytes)."""
    listed = b"](" + b"".join(text(key) for key, _, _ in storages) + b"e" if keys is None else keys
    tail = b"".join(struct.pack("<q", numel) + data for _, numel, data in storages)
    return magic + protocol + system + pickle(body) + pickle(listed) + tail
