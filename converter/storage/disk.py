"""The output that is a folder of this machine: temporary files beside their targets, renamed when all is there."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from io import FileIO
from pathlib import Path

from converter.errors import DiskFull, OutputError
from converter.storage.layout import FileLayout, Layout


class Disk:
    """An `Output` (storage/output.py) on a local disk.

    Each file is written under a temporary name beside its target; a folder is built beside its place and renamed as
    one, or, where it exists, filled file by file from a folder inside it, which is sure to be the same disk.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._stage = _stage(layout.folder) if layout.folder is not None else None
        self._paths = [self._temporary(file) for file in layout.files]
        self._files: list[FileIO] = []
        self._lock = threading.Lock()

    def _temporary(self, file: FileLayout) -> Path:
        if self._stage is None or self._layout.folder is None:
            return _beside(file.path)
        return self._stage / file.path.relative_to(self._layout.folder)

    def check_room(self) -> None:
        """Compare what will be written with what is free.

        Raises:
            DiskFull: it does not fit.
            OutputError: the folder is not there.
        """
        layout = self._layout
        folder = layout.files[0].path.parent if layout.folder is None else layout.folder.parent
        try:
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise OutputError(f"{folder}: {error.strerror}") from error
        if layout.size > free:
            raise DiskFull(f"{folder}: the output needs {layout.size:,} bytes, {free:,} are free")

    def create(self) -> None:
        for file, path in zip(self._layout.files, self._paths, strict=True):
            if self._stage is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._files.append(open(path, "xb", buffering=0))
            _reserve(self._files[-1], file.size)

    def write(self, file: int, offset: int, data: memoryview) -> None:
        out = self._files[file]
        if hasattr(os, "pwrite"):
            while data:
                written = os.pwrite(out.fileno(), data, offset)
                data, offset = data[written:], offset + written
            return
        with self._lock:
            out.seek(offset)
            while data:
                data = data[out.write(data) or 0 :]

    def flush(self) -> None:
        for file in self._files:
            os.fsync(file.fileno())
        self._close()

    def publish(self) -> None:
        folder, stage = self._layout.folder, self._stage
        renamed = {file.path.parent for file in self._layout.files}
        if folder is not None and stage is not None and stage.parent == folder.parent:
            # A new folder appears in one step, which fails if another has come there meanwhile.
            _flush_folders({path.parent for path in self._paths})
            os.rename(stage, folder)
            renamed = {folder.parent}
        else:
            for file, path in zip(self._layout.files, self._paths, strict=True):
                file.path.parent.mkdir(exist_ok=True)
                os.replace(path, file.path)
        _flush_folders(renamed)

    def abandon(self) -> None:
        self._close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        if self._stage is not None:
            shutil.rmtree(self._stage, ignore_errors=True)

    def _close(self) -> None:
        while self._files:
            self._files.pop().close()


def _stage(folder: Path) -> Path:
    return _beside(folder / folder.name if folder.exists() else folder)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(4)}.part")


def _reserve(file: FileIO, size: int) -> None:
    """Make the file this long, all zero; its room is taken now where the file system can."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    file.truncate(size)


def _flush_folders(folders: set[Path]) -> None:
    """Make the renames durable where the system can open folders."""
    for folder in folders:
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.fsync(handle)
        except OSError:
            pass
        finally:
            os.close(handle)
