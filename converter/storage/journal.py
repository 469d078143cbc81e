"""What a run has written so far, in a file beside its temporary ones, so that the same run can go on after its end.

A line of JSON says which run it is, by a key that covers what it reads and what is asked for; then come records of
where bytes were written and their CRC-32C, each with a CRC-32C of its own. Nothing is made safe for it: a record whose
bytes did not reach the disk is found out when they are read again.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from contextlib import suppress
from pathlib import Path

from converter.storage.checksums import CRC32C

FORMAT = 1
_RECORD = struct.Struct("<IQQI")  # file, offset, bytes, their CRC-32C
_SUM = struct.Struct("<I")
_SIZE = _RECORD.size + _SUM.size
_LONGEST_KEY = 1 << 12

Piece = tuple[int, int, int]  # file, offset, bytes


class Journal:
    """Records of one run; `done` are those that were found when it was opened."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path, key
        self.done: dict[Piece, int] = {}
        self._handle: int | None = None
        self._lock = threading.Lock()

    def read(self) -> bool:
        """Whether there are records of a run with this key, which `done` has then; damaged ones count for nothing."""
        try:
            with open(self.path, "rb") as file:
                first = file.readline(_LONGEST_KEY)
                data = file.read() if first == self._first else b""
        except OSError:
            return False
        for at in range(0, len(data) - _SIZE + 1, _SIZE):
            record = data[at : at + _RECORD.size]
            if _SUM.unpack_from(data, at + _RECORD.size)[0] == CRC32C.of(record):
                number, offset, nbytes, crc = _RECORD.unpack(record)
                self.done[number, offset, nbytes] = crc
        return bool(self.done)

    @property
    def nbytes(self) -> int:
        """Bytes that are done."""
        return sum(nbytes for _, _, nbytes in self.done)

    @property
    def _first(self) -> bytes:
        return json.dumps({"journal": FORMAT, "key": self._key}).encode() + b"\n"

    def open(self) -> None:
        """Begin the file, with what is done already; where none can be written, the run goes without."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | getattr(os, "O_BINARY", 0)
        records = (_record(*piece, crc) for piece, crc in self.done.items())
        with suppress(OSError):
            self._handle = os.open(self.path, flags, 0o666)
            os.write(self._handle, b"".join((self._first, *records)))

    def wrote(self, file: int, offset: int, data: memoryview) -> None:
        """Remember bytes that are in a file now; from any thread."""
        if self._handle is None:
            return
        record = _record(file, offset, len(data), CRC32C.of(data))
        with self._lock, suppress(OSError):
            os.write(self._handle, record)

    def close(self) -> None:
        """Let go of the file, which stays."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                os.close(handle)

    def remove(self) -> None:
        """Let go of the file, and remove it."""
        self.close()
        with suppress(OSError):
            self.path.unlink()


def _record(file: int, offset: int, nbytes: int, crc: int) -> bytes:
    record = _RECORD.pack(file, offset, nbytes, crc)
    return record + _SUM.pack(CRC32C.of(record))
