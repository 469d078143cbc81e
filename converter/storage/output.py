"""The engine: writes a layout, in parallel, slab by slab, whole or not at all.

Three parts that may be called one by one: `prepare` makes the files, `fill` fills slabs of them, some or all and in any
order, `publish` gives them their names; `write` is all three. Workers take slabs of rows in file order, read them, and
write at their offset; what is in memory is what the workers hold, whatever the size of the model or of its largest
tensor. Where the bytes go is the business of an `Output`; the engine does not know what a disk is.
"""

from __future__ import annotations

import errno
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from converter.errors import ConverterError, DiskFull, Interrupted, OutputError, OutputExists
from converter.interrupts import holding
from converter.storage.checksums import Pieces
from converter.storage.disk import Disk
from converter.storage.layout import Layout, Slot
from converter.storage.slabs import Job, ProgressCallback, Slab, run, slab_rows, slabs_of
from converter.tensors.streams import once
from converter.tensors.tensor import Extent, LazyTensor, Rows


class Output(Protocol):
    """Where the files of a layout go, by their numbers in it. Nothing is to be seen of them before `publish`.

    A method may raise a ConverterError or an OSError. `keeps`: what is written stays where the run is stopped, and the
    next one of its kind goes on with it.
    """

    @property
    def keeps(self) -> bool: ...

    def check_room(self) -> None:
        """Raises DiskFull where all files together do not fit."""

    def create(self) -> None:
        """Make every file, as long as it will be and all zero."""

    def kept(self, file: int, offset: int, nbytes: int) -> memoryview | None:
        """What a run that was stopped wrote there, where it is still that."""

    def write(self, file: int, offset: int, data: memoryview) -> None:
        """Write all of `data`, bytes, at `offset`; from any thread and in any order."""

    def flush(self) -> None:
        """All is written; when this returns, it is safe."""

    def publish(self) -> None:
        """Give every file its name, all of them or none."""

    def abandon(self) -> None:
        """Remove what was not published; it may be called at any time, and again."""


@runtime_checkable
class Copying(Protocol):
    """An `Output` that may copy what is stored as it is without reading it."""

    def copy(self, file: int, offset: int, source: Extent, nbytes: int) -> bool:
        """Write `nbytes` of `source` at `offset`; False where that has to be done by reading them."""


def working_nbytes(layout: Layout, threads: int) -> int:
    """Memory the workers will hold at most, for the plan."""
    tensors = [slot.tensor for file in layout.files for slot in file.slots]
    return threads * max((slab_rows((tensor,), tensor.row_work) * tensor.row_work for tensor in tensors), default=0)


Place = tuple[int, int]  # a slot: the number of its file, and its own in there
Piece = tuple[int, int, int, int, int]  # a place, the first byte in it and that behind the last, their CRC-32


def _grouped(layout: Layout) -> list[list[Place]]:
    """Slots that are filled together, in the order of files and slots."""
    groups: dict[object, list[Place]] = {}
    for number, file in enumerate(layout.files):
        for index, slot in enumerate(file.slots):
            info = slot.tensor.info
            key = (info.name, info.n_rows) if layout.together else (number, index)
            groups.setdefault(key, []).append((number, index))
    return list(groups.values())


class Prepared:
    """A layout whose files exist and wait for their slabs: what `prepare` makes and `fill` and `publish` take.

    A job of it is a slot of the layout, in the order of files and slots, or all slots that are filled together.
    """

    def __init__(self, layout: Layout, output: Output) -> None:
        self.layout, self.output = layout, output
        self.pieces = [[Pieces() for _ in file.slots] for file in layout.files]
        self.jobs = [self._job(places) for places in _grouped(layout)]
        self._lock = threading.Lock()
        self._resumed = 0

    def _job(self, places: Sequence[Place]) -> Job:
        tensors = tuple(self.layout.files[file].slots[index].tensor for file, index in places)
        work = partial(self._fill, *places[0]) if len(places) == 1 else partial(self._fill_all, places)
        return Job(tensors, work, max(tensor.row_work for tensor in tensors), self.layout.files[places[0][0]].path.name)

    def told(self, progress: ProgressCallback | None) -> ProgressCallback | None:
        """`progress`, which hears, too, how much was there already."""
        return None if progress is None else lambda now: progress(replace(now, resumed=self._resumed))

    def slabs(self) -> Iterator[Slab]:
        """All there is to fill, in file order; equal for equal layouts, also in another process."""
        return slabs_of(self.jobs)

    def create(self) -> None:
        """Make the files, empty but for their headers."""
        self.output.check_room()
        self.output.create()
        for number, file in enumerate(self.layout.files):
            self.output.write(number, 0, memoryview(file.header))

    def _fill_all(self, places: Sequence[Place], start: int, stop: int) -> None:
        """Rows of tensors that are made of the same ones."""
        with once():
            for file, index in places:
                self._fill(file, index, start, stop)

    def _fill(self, file: int, index: int, start: int, stop: int) -> None:
        slot, summed = self.layout.files[file].slots[index], self.layout.files[file].finish is not None
        at, end = (row * slot.tensor.info.row_nbytes for row in (start, stop))
        if not summed and self._copied(file, slot, at, end):
            self.take([(file, index, at, end, 0)])
            return
        raw = self.output.kept(file, slot.offset + at, end - at)
        resumed = 0 if raw is None else end - at
        if raw is None:
            raw = np.ascontiguousarray(_checked(slot.tensor, start, stop)).data.cast("B")
            self.output.write(file, slot.offset + at, raw)
        crc = zlib.crc32(raw) if summed else 0  # for the writers that finish with it
        with self._lock:
            self._resumed += resumed
        self.take([(file, index, at, end, crc)])

    def take(self, pieces: Sequence[Piece]) -> None:
        """These are filled; by whom does not matter, nor how often."""
        with self._lock:
            for file, index, start, stop, crc in pieces:
                self.pieces[file][index].add(start, stop, crc)

    def _copied(self, file: int, slot: Slot, start: int, stop: int) -> bool:
        """Whether bytes [start, stop) of a slot could be copied from where they are stored as they are."""
        extent = slot.tensor.extent
        if extent is None or not isinstance(self.output, Copying):
            return False
        return self.output.copy(file, slot.offset + start, Extent(extent.path, extent.offset + start), stop - start)

    def finish(self) -> None:
        """What writers add when their slots are full.

        Raises:
            ValueError: they are not.
        """
        for number, (file, pieces) in enumerate(zip(self.layout.files, self.pieces, strict=True)):
            crcs = [_whole(slot, piece) for slot, piece in zip(file.slots, pieces, strict=True)]
            for offset, data in file.finish(crcs) if file.finish is not None else ():
                self.output.write(number, offset, memoryview(data))


def _checked(tensor: LazyTensor, start: int, stop: int) -> Rows:
    """Rows of a tensor, whoever reads them: as many and as wide as were asked for."""
    rows, wanted = tensor.rows(start, stop), (stop - start, tensor.info.row_nbytes)
    if getattr(rows, "dtype", None) != np.uint8 or rows.shape != wanted:
        found = f"{getattr(rows, 'dtype', type(rows).__name__)} {list(getattr(rows, 'shape', ()))}"
        raise OutputError(
            f"{tensor.name}: rows {start} to {stop} came as {found}, not as uint8 {list(wanted)} ({tensor.source})\n"
            "the format's reader is wrong; nothing was written"
        )
    return rows


def _whole(slot: Slot, pieces: Pieces) -> int:
    """The CRC-32 of a slot."""
    if missing := pieces.gaps(0, slot.tensor.info.nbytes):
        raise ValueError(f"{slot.tensor.name}: bytes {missing[0][0]} to {missing[0][1]} were not filled")
    return pieces.crc


def prepare(layout: Layout, output: Output | None = None) -> Prepared:
    """Make the files of `layout`, with their headers; on this machine's disk unless `output` says where.

    Raises:
        DiskFull: not enough room.
        OSError, ConverterError: the output refused; nothing is left of it.
    """
    prepared = Prepared(layout, output or Disk(layout))
    try:
        prepared.create()
    except BaseException:
        abandon(prepared)
        raise
    return prepared


def fill(
    prepared: Prepared,
    slabs: Sequence[Slab] | None = None,
    *,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    stop: Callable[[], ConverterError | None] = lambda: None,
) -> None:
    """Fill `slabs`, all by default; arguments and errors are those of `write`.

    It may be called again, for the slabs that are left or, after an error, for the same ones.
    """
    run(prepared.jobs, threads, prepared.told(progress), slabs=slabs, stop=stop)


class Filler(Protocol):
    """What fills all slabs, in this process (`fill`) or elsewhere."""

    def __call__(
        self, prepared: Prepared, progress: ProgressCallback | None, stop: Callable[[], ConverterError | None]
    ) -> None: ...


def publish(prepared: Prepared) -> None:
    """Finish the files, make them safe and give them their names.

    Raises:
        ValueError: slabs are missing.
        OSError, ConverterError: the output refused.
    """
    prepared.finish()
    prepared.output.flush()
    with holding():
        prepared.output.publish()


def abandon(prepared: Prepared) -> None:
    """Remove what was not published."""
    with holding():
        prepared.output.abandon()


def write(
    layout: Layout,
    output: Output | None = None,
    *,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    stop: Callable[[], ConverterError | None] = lambda: None,
    check: Callable[[], None] = lambda: None,
    filler: Filler | None = None,
) -> None:
    """Write every file of `layout`, or none.

    `filler` fills the slabs; by default `threads` of this process do. `stop` is asked after every slab; an error it
    returns ends the run. `check` is called when all is read; what it raises ends the run, too.

    Raises:
        DiskFull: not enough room, before or while writing.
        OutputError: the file system refused.
        Interrupted: Ctrl-C; Cancelled: `progress` returned False.
        ConverterError: what a source raised while it was read.
    """
    prepared = Prepared(layout, output or Disk(layout))
    left = "what is done is kept, the same command goes on with it" if prepared.output.keeps else "nothing was written"
    try:
        prepared.create()
        if filler is None:
            fill(prepared, threads=threads, progress=progress, stop=stop)
        else:
            filler(prepared, progress, stop)
        check()
        publish(prepared)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {left}") from None
    except Interrupted as error:
        raise type(error)(f"{error}; {left}") from None
    except OSError as error:
        raise _output_error(layout.files[0].path, error) from error
    finally:
        abandon(prepared)


_KINDS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), DiskFull),
    **dict.fromkeys((errno.EEXIST, errno.ENOTEMPTY), OutputExists),
}


def _output_error(path: Path, error: OSError) -> OutputError:
    kind = _KINDS.get(error.errno or 0, OutputError)
    return kind(f"{error.filename or path}: {error.strerror or error}; nothing was written")
