"""Protocol Buffers' wire format, read where it lies: fields of a message as ranges of the file, nothing copied.

And written: the bytes of one field each.

Source: the "Encoding" page of the Protocol Buffers documentation. Which field is what is the business of the formats.
Groups (deprecated before any model format existed) are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile
from converter.storage.windows import BLOCK, Windows

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT = 10
_U64 = (1 << 64) - 1
_FIXED = {FIXED64: 8, FIXED32: 4}
_CHUNK = 1 << 18


class Field(NamedTuple):
    """One field: `value` is its unsigned number (0 for BYTES), [start, stop) where its payload lies in the file."""

    number: int
    wire: int
    value: int
    start: int
    stop: int

    @property
    def signed(self) -> int:
        """The number as int64 (and as int32 and enum, which are sign-extended to it)."""
        return self.value - (1 << 64) if self.value >> 63 else self.value


def varint(data: Windows, position: int, stop: int) -> tuple[int, int]:
    """An unsigned varint at `position` and where it ends.

    Raises:
        CorruptFile: it leaves [position, stop), or is longer than 10 bytes.
    """
    buffer, base = data.near(position)
    value = 0
    for shift in range(0, 7 * MAX_VARINT, 7):
        if position >= stop:
            break
        byte = buffer[position - base]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _U64, position
    raise CorruptFile(f"{data.path}: a number at offset {position} does not end")


def fields(data: Windows, start: int, stop: int, wanted: Container[int] | None = None) -> Iterator[Field]:
    """The fields of the message in [start, stop), in the order they stand; of `wanted` numbers, or all.

    Payloads are stepped over, so that of a tensor's bytes none is asked for.

    Raises:
        CorruptFile: a field leaves the message, has number 0 or a wire type that is not one of the four.
    """
    position, end = start, -1
    while position < stop:
        if position >= end:  # what stands before a payload is shorter than a block's margin
            buffer, base = data.near(position)
            end = base + BLOCK
        at = position
        key = buffer[position - base]
        position += 1
        if key > 0x7F:
            key, position = varint(data, at, stop)
        number, wire = key >> 3, key & 7
        value, begin = 0, position
        if wire == BYTES or wire == VARINT:
            # Most numbers are of one byte; a call for each would take as long as all the rest.
            if position < stop and (value := buffer[position - base]) < 0x80:
                position += 1
            else:
                value, position = varint(data, position, stop)
            if wire == BYTES:
                begin, position, value = position, position + value, 0
        elif wire in _FIXED:
            position += _FIXED[wire]
            value = int.from_bytes(buffer[begin - base : min(position, stop) - base], "little")
        else:
            raise CorruptFile(f"{data.path}: wire type {wire} at offset {at} is none of Protocol Buffers'")
        if not 0 < number < 1 << 29 or position > stop:
            raise CorruptFile(
                f"{data.path}: field {number} at offset {at} needs {position - begin} bytes, {stop - begin} are left\n"
                "the file is truncated or damaged; download it again"
            )
        if wanted is None or number in wanted:
            yield Field(number, wire, value, begin, position)


def text(data: Windows, field: Field, limit: int = 1 << 16) -> str:
    """A string field.

    Raises:
        CorruptFile: it is no string, longer than `limit` bytes, or not UTF-8.
    """
    size = field.stop - field.start
    if field.wire != BYTES or size > limit:
        raise CorruptFile(
            f"{data.path}: field {field.number} at offset {field.start} is no text of at most {limit} bytes"
        )
    try:
        return str(data.at(field.start, size, "a text"), "utf-8")
    except UnicodeDecodeError:
        raise CorruptFile(f"{data.path}: the text at offset {field.start} is not UTF-8") from None


def count_varints(packed: NDArray[np.uint8]) -> int:
    """How many numbers a packed field of varints holds."""
    return sum(int(np.count_nonzero(packed[at : at + _CHUNK] < 0x80)) for at in range(0, len(packed), _CHUNK))


def varints(packed: NDArray[np.uint8], path: Path) -> NDArray[np.uint64]:
    """The numbers of a packed field of varints, uint64 (view as int64 for signed ones).

    Raises:
        CorruptFile: the last one does not end, or one is longer than 10 bytes.
    """
    parts, at = [np.empty(0, np.uint64)], 0
    while at < len(packed):
        chunk = packed[at : at + _CHUNK]
        ends = np.flatnonzero(chunk < 0x80) + 1
        starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
        lengths = ends - starts
        if not len(ends) or int(lengths.max()) > MAX_VARINT:
            raise CorruptFile(f"{path}: a number in a packed field does not end")
        values = np.zeros(len(ends), np.uint64)
        for byte in range(int(lengths.max())):
            longer = lengths > byte
            values[longer] |= (chunk[starts[longer] + byte] & 0x7F).astype(np.uint64) << np.uint64(7 * byte)
        parts.append(values)
        at += int(ends[-1])
    return np.concatenate(parts)


# ------------------------------------------------------------------------------------------------- writing


def number(field: int, value: int) -> bytes:
    """A field that is a whole number, at most of 64 bits; negative ones in two's complement."""
    return _key(field, VARINT) + varint_bytes(value & _U64)


def float32(field: int, value: float) -> bytes:
    """A field that is a float of 32 bits."""
    return _key(field, FIXED32) + struct.pack("<f", value)


def blob(field: int, data: bytes) -> bytes:
    """A field of bytes, of text in UTF-8, or that is a message."""
    return blob_key(field, len(data)) + data


def blob_key(field: int, nbytes: int) -> bytes:
    """What stands before the `nbytes` bytes of a field."""
    return _key(field, BYTES) + varint_bytes(nbytes)


def varint_bytes(value: int) -> bytes:
    """An unsigned number, in as few bytes as it needs."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _key(field: int, wire: int) -> bytes:
    return varint_bytes(field << 3 | wire)
