"""What the page may read and write: two folders, links resolved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import OutputError, UsageError
from converter.formats.registry import readers, writers
from converter.storage.files import regular_size

MAX_ENTRIES = 2000  # of a folder; more are not listed


class Outside(UsageError):
    """A path that leads out of what the page may use."""


@dataclass(frozen=True)
class Roots:
    """Folders without links: models are read from both, outputs go to `write`.

    `start` is what is shown first: a model, or a folder to choose from.
    """

    read: Path
    write: Path
    start: Path

    @classmethod
    def of(cls, path: Path, write: Path) -> Roots:
        """Those of a path that somebody named: a folder, or the one that a file is in.

        Raises:
            OutputError: nothing is there.
        """
        if not path.exists():
            raise OutputError(f"{path}: no such file or folder")
        if not write.is_dir():
            raise OutputError(f"{write}: no such folder")
        start = path.resolve()
        return cls(start if start.is_dir() else start.parent, write.resolve(), start)

    def readable(self, text: object) -> Path:
        """A path to read, absolute or below the first root.

        Raises:
            Outside: it leads out, or is no path.
        """
        path = _resolved(self.read, text)
        if not self._holds(path):
            raise Outside(f"{text}: is not in {self.read}; start `convert ui` on a folder that has it")
        return path

    def writable(self, text: object) -> str:
        """A path to write, absolute or below the second root; a slash at its end stays.

        Raises:
            Outside: it leads out, or is no path.
        """
        path = _resolved(self.write, text)
        if not path.is_relative_to(self.write) or path == self.write:
            raise Outside(f"{text}: is not in {self.write}; `convert ui --out DIR` names where outputs go")
        return str(path) + "/" * str(text).endswith(("/", os.sep))

    def _holds(self, path: Path) -> bool:
        """Whether a path, links resolved, is in one of the roots."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError):  # a circle of links
            return False
        return any(real.is_relative_to(root) for root in (self.read, self.write))

    def entries(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Folders and what looks like a model in a folder, by name; hidden ones and links that lead out left out.

        Raises:
            OutputError: no such folder, or it cannot be read.
        """
        known = {extension for each in (*readers(), *writers()) for extension in each.extensions}
        try:
            found = sorted(folder.iterdir(), key=lambda path: path.name.casefold())
        except OSError as error:
            raise OutputError(f"{folder}: {error.strerror}") from error
        for path in found[:MAX_ENTRIES]:
            if path.name.startswith(".") or not self._holds(path):
                continue
            if path.is_dir():
                yield {"name": path.name, "path": str(path), "folder": True, "model": (path / "config.json").is_file()}
            elif path.is_file() and path.suffix.lower() in known:
                size = regular_size(path)
                yield {"name": path.name, "path": str(path), "folder": False, "model": True, "bytes": size}


def _resolved(root: Path, text: object) -> Path:
    if not isinstance(text, str) or not text or "\0" in text:
        raise Outside("no path was named")
    try:
        return (root / text).resolve()
    except (OSError, RuntimeError) as error:  # a circle of links
        raise Outside(f"{text}: {error}") from error
