"""A checkpoint written again by its own format, its tensors as they are stored."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature
from converter.events import Event
from converter.formats.base import INDEX, WriteOptions
from converter.formats.hub import shard_of
from converter.formats.registry import formats
from converter.pipeline import refuse_same, write
from converter.request import PathLike
from converter.storage.disk import Disk
from converter.storage.folders import nearest
from converter.storage.layout import Layout
from converter.storage.slabs import ProgressCallback
from converter.telemetry import log_events, span

#: Formats that hold one model in one file or in several, and whose tensors are their stored bytes.
FORMATS = ("gguf", "safetensors", "hf")


@dataclass(frozen=True)
class Rewritten:
    """What was written: files with their sizes, how many tensors they hold, and what there is to say."""

    source: Path
    files: tuple[tuple[Path, int], ...]
    tensors: int
    events: tuple[Event, ...]
    seconds: float

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self.files)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "source": str(self.source),
            "files": [{"path": str(path), "bytes": size} for path, size in self.files],
            "tensors": self.tensors,
            "total_bytes": self.nbytes,
            "seconds": round(self.seconds, 3),
            "events": [event.as_dict() for event in self.events],
        }


def check_format(checkpoint: Checkpoint, verb: str) -> None:
    """Refuse a format that cannot be written as it is.

    Raises:
        UnsupportedFeature: as said.
    """
    if checkpoint.format not in FORMATS:
        raise UnsupportedFeature(
            f"{checkpoint.path}: a {checkpoint.format} file; `convert {verb}` is for {', '.join(FORMATS)}\n"
            "`convert IN OUT` makes another format of it"
        )


def rewrite(
    checkpoint: Checkpoint,
    layout: Layout,
    *,
    in_place: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Rewritten:
    """Write `layout`, which was made of `checkpoint`, whole or not at all; the checkpoint is closed.

    Args:
        checkpoint: what is read.
        layout: what is to be.
        in_place: whether it takes the place of what is read; else that is refused.
        force, threads, progress: as for `convert`.

    Raises:
        OutputExists, SameFile, DiskFull, OutputError: it cannot be written.
        CorruptFile, OutputError: it cannot be read, or was changed meanwhile.
        Cancelled: `progress` returned False.
    """
    if not in_place:
        refuse_same(layout, checkpoint)

    def finished() -> None:
        checkpoint.check()
        checkpoint.close()  # a file that is mapped cannot be replaced everywhere

    started, found, force = time.monotonic(), list[Event](), force or in_place
    target = Disk(layout, replace=force)
    with span("write", bytes=layout.size, format=checkpoint.format):
        write(checkpoint, target, force=force, threads=threads, progress=progress, claimed=found.extend, check=finished)
    files = tuple((file.path, file.size) for file in layout.files)
    said = (*checkpoint.events, *layout.events, *found)
    log_events(said)
    return Rewritten(checkpoint.path, files, len(checkpoint.tensors), said, time.monotonic() - started)


def made_anew(
    checkpoint: Checkpoint,
    target: PathLike,
    options: WriteOptions | None = None,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Rewritten:
    """Write a checkpoint of a format that `check_format` lets through as its own writer lays it out; as `rewrite`."""
    layout_of = formats()[checkpoint.format].layout
    assert layout_of is not None  # of these formats
    layout = layout_of(checkpoint, place(checkpoint, target), options or WriteOptions())
    return rewrite(checkpoint, layout, force=force, threads=threads, progress=progress)


def fewer_weights(before: Checkpoint, after: Checkpoint) -> str:
    """How many of the weights are left out, and which share of them."""
    old, new = before.n_elements, after.n_elements
    return f"{old - new:,} of {old:,} weights ({(old - new) / max(1, old):.1%})"


def place(checkpoint: Checkpoint, target: PathLike) -> Path:
    """The name of the whole, with its extension.

    Raises:
        OutputError: there can be no such folder.
    """
    form, path = formats()[checkpoint.format], Path(target)
    if not form.folder:
        (extension,) = form.extensions
        if path.is_dir() or os.fspath(target).endswith(("/", os.sep)):
            path /= _name_of_whole(checkpoint.path, extension)
        elif path.suffix.lower() != extension:
            path = path.with_name(path.name + extension)
    nearest(path.parent)
    return path


def _name_of_whole(path: Path, extension: str) -> str:
    """What the whole is called that `path` is, or is the index or a shard of."""
    name = path.name.removesuffix(INDEX)
    shard = shard_of(path.with_name(name))
    return f"{shard[0]}{extension}" if shard is not None else name
