"""What a batch has done, so that it is not done again: for each target, of what and how, and which files came of it.

A file of this machine is known by its name from the ledger's folder on, its size and its time; one that lies elsewhere
by its address, its size and the hash or ETag that its host says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from converter.address import is_address, place
from converter.errors import ConverterError
from converter.remote.mirror import state
from converter.storage import output
from converter.storage.layout import Layout, whole_file

SCHEMA, NAME, SUMS = 1, ".convert-batch.json", "SHA256SUMS"


class Ledger:
    """The records of one folder. What is damaged or of another kind counts as nothing."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock = threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}
        try:
            found = json.loads(self.path.read_text("utf-8"))
            if found["schema"] == SCHEMA and all(isinstance(each, dict) for each in found["done"].values()):
                self._records = found["done"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass

    def has(self, key: str) -> dict[str, str] | None:
        """The files that came of a run with this key and their SHA-256, where all of them are as they were then."""
        record = self._records.get(key, {})
        files = record.get("files")
        if not isinstance(files, dict) or not files:
            return None
        try:
            same = all(self._state(name) == each["state"] for name, each in files.items())
            return {name: str(each["sha256"]) for name, each in files.items()} if same else None
        except (OSError, KeyError, TypeError, ConverterError):
            return None

    def owns(self, names: Iterable[str]) -> bool:
        """Whether these files are what a run of this folder's made, of anything, and as they were then."""
        known = {name: each["state"] for own in self._records.values() for name, each in own.get("files", {}).items()}
        try:
            return all(known.get(name) == self._state(name) for name in names)
        except (OSError, ConverterError):
            return False

    def add(self, key: str, sums: Mapping[str, str]) -> None:
        """Remember files, by their names, with their SHA-256. Older records of them are gone.

        Raises:
            OSError, ConverterError: one is not there, or its host does not say.
        """
        with self._lock:
            files = {name: {"state": self._state(name), "sha256": each} for name, each in sums.items()}
            kept = {each: own for each, own in self._records.items() if not set(own.get("files", ())) & set(files)}
            self._records = {**kept, key: {"files": files}}
            content = json.dumps({"schema": SCHEMA, "done": self._records}, indent=1).encode()
            output.write(Layout((whole_file(self.path, content),)), threads=1)

    def _state(self, name: str) -> list[int | str]:
        """What no other file of this name has; raises OSError, and ConverterError where its host is silent."""
        if not is_address(name):
            status = (self.path.parent / name).stat()
            return [status.st_size, status.st_mtime_ns]
        if (found := state(place(name))) is None:
            raise FileNotFoundError(name)
        return [*found]


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """SHA256SUMS of a folder, which `sha256sum -c` reads: lines of files that are there already stay."""
    path = folder / SUMS
    known = dict(_lines(path.read_text("utf-8").splitlines())) if path.is_file() else {}
    lines = [f"{each} *{name}\n" for name, each in sorted({**known, **sums}.items())]
    output.write(Layout((whole_file(path, "".join(lines).encode()),)), threads=1)


def _lines(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        digest, _, name = line.partition(" ")
        if len(digest) == 64 and name[:1] in (" ", "*"):
            yield name[1:], digest
