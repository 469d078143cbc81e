"""What a worker does: it plans the conversion again from the same files, and fills slabs of the coordinator's files.

Nothing but a description of the work goes there, and nothing but counts and sums comes back: the bytes go from the
source to the output on storage that both see. A unit that is done twice, after a worker was lost, writes the same
bytes to the same places.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from converter import __version__, pipeline
from converter.errors import EngineError
from converter.planning.plan import Plan
from converter.planning.several import together
from converter.request import Request, Source
from converter.storage import output
from converter.storage.handles import Handles
from converter.storage.layout import Layout
from converter.storage.output import Piece, Prepared
from converter.storage.slabs import Slab
from converter.tensors.encode import Counts

Seen = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Work:
    """A conversion, as every worker must come to understand it.

    `plans` are the plans' fingerprints, `seen` the sizes and times of the files that they read, `paths` the temporary
    files of the coordinator, which are there and as long as they will be; `host` is its machine.
    """

    version: str
    source: Source
    target: str
    requests: tuple[Request, ...]
    plans: tuple[str, ...]
    seen: Seen
    paths: tuple[Path, ...]
    host: str

    @classmethod
    def of(cls, asked: pipeline.Asked, plans: Sequence[Plan], paths: Sequence[Path]) -> Work:
        """The work of plans that were made of what was asked."""
        return cls(__version__, *asked, tuple(plan.fingerprint() for plan in plans), seen(plans), tuple(paths), _host())


class Filled(NamedTuple):
    """What a unit came to: the pieces that it wrote, and what casts lost in each output."""

    pieces: list[Piece]
    lost: list[Counts]


def seen(plans: Sequence[Plan]) -> Seen:
    """The files that plans read: sizes and times, which every machine sees alike, as no number of a device is."""
    found = plans[0].checkpoint.opened.identities()
    return tuple((path, each if isinstance(each, str) else (each.size, each.mtime_ns)) for path, each in found)


def fill(work: Work, slabs: Sequence[Slab]) -> Filled:
    """Fill slabs; in a process of a worker.

    Raises:
        EngineError: this worker has another version, or sees other files.
        ConverterError: what a source raised while it was read.
    """
    if work.version != __version__:
        raise EngineError(f"{_host()}: a worker has version {__version__}, the conversion was begun by {work.version}")
    here = _opened(work)
    output.fill(here.prepared, slabs, threads=1, stop=here.plans[0].checkpoint.opened.lost)
    here.files.flush()
    return Filled(here.prepared.taken(), [plan.watch.take() for plan in here.plans])


# ------------------------------------------------------------------------------------------------- in a worker


class _Files:
    """An `Output` of files that somebody else made and publishes."""

    keeps = False

    def __init__(self, work: Work) -> None:
        self._handles, self._away = Handles(work.paths), work.host != _host()
        self._written: set[int] = set()

    def check_room(self) -> None: ...

    def create(self) -> None: ...

    def kept(self, file: int, offset: int, nbytes: int) -> memoryview | None:
        return None

    def write(self, file: int, offset: int, data: memoryview) -> None:
        self._handles.write(file, offset, data)
        self._written.add(file)

    def flush(self) -> None:
        """Close the files; on another machine than the coordinator's, which makes them safe, do that first."""
        for file in self._written if self._away else ():
            with self._handles.opened(file) as out:
                os.fsync(out.fileno())
        self._written.clear()
        self._handles.close()

    def publish(self) -> None: ...

    def abandon(self) -> None: ...


class _Part(Prepared):
    """A part of the slabs: what is filled is told, and no file is finished."""

    def __init__(self, layout: Layout, files: _Files) -> None:
        super().__init__(layout, files)
        self._taken: list[Piece] = []

    def take(self, pieces: Sequence[Piece]) -> None:
        self._taken += pieces

    def taken(self) -> list[Piece]:
        """What was filled since this was asked for last."""
        taken, self._taken = self._taken, []
        return taken


@dataclass
class _Here:
    """A work as this thread of a worker has opened it."""

    work: Work
    plans: Sequence[Plan]

    @cached_property
    def files(self) -> _Files:
        return _Files(self.work)

    @cached_property
    def prepared(self) -> _Part:
        return _Part(together(self.plans), self.files)


_local = threading.local()


def _opened(work: Work) -> _Here:
    """The work, planned once a thread; that of before is let go."""
    here: _Here | None = getattr(_local, "here", None)
    if here is not None and here.work == work:
        return here
    if here is not None:
        _local.here = None
        here.plans[0].checkpoint.close()
    plans = pipeline.plan_several(work.source, work.target, work.requests)
    if tuple(plan.fingerprint() for plan in plans) != work.plans or seen(plans) != work.seen:
        plans[0].checkpoint.close()
        raise EngineError(
            f"{work.source.path}: a worker on {_host()} sees other files, or plans otherwise\n"
            "all machines need the same files under the same names, and the same packages and plugins"
        )
    here = _local.here = _Here(work, plans)
    return here


def _host() -> str:
    return socket.gethostname()
