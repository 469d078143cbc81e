"""Folders that an output goes into and that are not there yet: made for a run, gone again if nothing comes of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from converter.errors import OutputError


def nearest(folder: Path) -> Path:
    """`folder`, or what is there of the way to it.

    Raises:
        OutputError: what is there is no folder.
    """
    way = folder if folder.is_absolute() else Path.cwd() / folder
    there = next(place for place in (way, *way.parents) if place.exists())
    if not there.is_dir():
        raise OutputError(f"{there}: is a file, not a folder")
    return folder if there == way else there


class Folders:
    """A folder with all that it lies in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Path] = []

    def make(self) -> None:
        """Make what is missing.

        Raises:
            OutputError: it cannot be made.
        """
        missing = [place for place in (self._folder, *self._folder.parents) if not place.exists()]
        for place in reversed(missing):
            try:
                place.mkdir()
            except FileExistsError:  # another run was faster
                continue
            except OSError as error:
                raise OutputError(f"{place}: the folder cannot be made: {error.strerror}") from error
            self._made.append(place)

    def remove(self) -> None:
        """Remove those that were made here and have nothing in them."""
        while self._made:
            with contextlib.suppress(OSError):
                self._made.pop().rmdir()
