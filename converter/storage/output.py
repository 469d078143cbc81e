"""The engine: writes a layout, in parallel, slab by slab, whole or not at all.

Each output is written beside its target under a temporary name, flushed, and renamed when everything is there;
a folder is built beside its place and renamed as one, or, where it exists, filled file by file from a folder inside it.
Workers take slabs of rows in file order, read them, and write at their offset; what is in memory is what the
workers hold, whatever the size of the model or of its largest tensor.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.errors import ConverterError, DiskFull, Interrupted, OutputError
from converter.storage.checksums import combine_all
from converter.storage.layout import FileLayout, Layout
from converter.tensors.tensor import LazyTensor

# Memory a worker may hold for one slab; small enough to stay in a core's cache with its encoded result.
SLAB_NBYTES = 2 << 20


@dataclass(frozen=True)
class Progress:
    """How far a run is. `tensor` is the one that was just written to."""

    done: int
    total: int
    tensor: str


# Called after every slab; returning False cancels the run.
ProgressCallback = Callable[[Progress], "bool | None"]


def default_threads() -> int:
    """The processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def working_nbytes(layout: Layout, threads: int) -> int:
    """Memory the workers will hold at most, for the plan."""
    largest = max((_slab_nbytes(slot.tensor) for file in layout.files for slot in file.slots), default=0)
    return threads * largest


def _slab_nbytes(tensor: LazyTensor) -> int:
    return _slab_rows(tensor) * tensor.row_work


def _slab_rows(tensor: LazyTensor) -> int:
    if tensor.indivisible:
        return max(1, tensor.info.n_rows)
    return min(max(1, SLAB_NBYTES // max(1, tensor.row_work)), max(1, tensor.info.n_rows))


def write(
    layout: Layout,
    *,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    stop: Callable[[], ConverterError | None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write every file of `layout`, or none.

    `stop` is asked after every slab; an error it returns ends the run. `check` is called when all is
    read; what it raises ends the run, too.

    Raises:
        DiskFull: not enough room, before or while writing.
        OutputError: the file system refused.
        Interrupted: Ctrl-C, or `progress` returned False.
        ConverterError: what a source raised while it was read.
    """
    check_room(layout)
    stage = _stage(layout)
    temporaries = [_temporary(file.path) if stage is None else _staged(layout, stage, file) for file in layout.files]
    try:
        for file, temporary in zip(layout.files, temporaries, strict=True):
            if stage is not None:
                temporary.parent.mkdir(parents=True, exist_ok=True)
            _create(temporary, file)
        _fill(layout, temporaries, threads or default_threads(), progress, stop)
        check()
        for temporary in temporaries:
            _flush(temporary)
        with _uninterrupted():
            _publish(layout, stage, temporaries)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None
    except OSError as error:
        raise _output_error(layout.files[0].path, error) from error
    finally:
        with _uninterrupted():
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)


def _stage(layout: Layout) -> Path | None:
    """Where a folder is built: beside its place; where it exists, inside it, which is sure to be the same disk."""
    if layout.folder is None:
        return None
    return _temporary(layout.folder / layout.folder.name if layout.folder.exists() else layout.folder)


def _staged(layout: Layout, stage: Path, file: FileLayout) -> Path:
    assert layout.folder is not None
    return stage / file.path.relative_to(layout.folder)


def _publish(layout: Layout, stage: Path | None, temporaries: list[Path]) -> None:
    """Give everything its name. A new folder appears in one step, which fails if another has come there meanwhile."""
    folders = {file.path.parent for file in layout.files}
    if layout.folder is not None and stage is not None and stage.parent == layout.folder.parent:
        _flush_folders({temporary.parent for temporary in temporaries})
        os.rename(stage, layout.folder)
        folders = {layout.folder.parent}
    else:
        for file, temporary in zip(layout.files, temporaries, strict=True):
            file.path.parent.mkdir(exist_ok=True)
            os.replace(temporary, file.path)
    _flush_folders(folders)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """What must not stop half-way, the renames of a set and the removal of what is left, lets Ctrl-C and SIGTERM wait.

    A signal that comes meanwhile is dropped: the run is at its end either way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            if handler is not None:  # None: not set from Python, nothing to go back to
                signal.signal(number, handler)


def check_room(layout: Layout) -> None:
    """Compare what will be written with what is free.

    Raises:
        DiskFull: it does not fit.
        OutputError: the folder is not there.
    """
    folder = layout.files[0].path.parent if layout.folder is None else layout.folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    if layout.size > free:
        raise DiskFull(f"{folder}: the output needs {layout.size:,} bytes, {free:,} are free")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(4)}.part")


def _output_error(path: Path, error: OSError) -> OutputError:
    kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else OutputError
    return kind(f"{error.filename or path}: {error.strerror or error}; nothing was written")


def _create(temporary: Path, file: FileLayout) -> None:
    with open(temporary, "xb") as out:
        if hasattr(os, "posix_fallocate") and file.size:
            try:
                os.posix_fallocate(out.fileno(), 0, file.size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        out.truncate(file.size)
        out.write(file.header)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


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


@dataclass(frozen=True)
class _Slab:
    file: int
    slot: int
    offset: int
    tensor: LazyTensor
    start: int
    stop: int


def _slabs(layout: Layout) -> Iterator[_Slab]:
    for number, file in enumerate(layout.files):
        for index, slot in enumerate(file.slots):
            rows, step = slot.tensor.info.n_rows, _slab_rows(slot.tensor)
            if slot.tensor.info.nbytes == 0:
                continue
            for start in range(0, rows, step):
                offset = slot.offset + start * slot.tensor.info.row_nbytes
                yield _Slab(number, index, offset, slot.tensor, start, min(rows, start + step))


class _Files:
    """The open outputs; writes at an offset from any thread."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [open(path, "rb+", buffering=0) for path in paths]
        self._lock = threading.Lock()

    def write(self, file: int, data: memoryview, offset: int) -> None:
        if hasattr(os, "pwrite"):
            while data:
                written = os.pwrite(self._files[file].fileno(), data, offset)
                data, offset = data[written:], offset + written
            return
        with self._lock:
            self._files[file].seek(offset)
            while data:
                data = data[self._files[file].write(data) or 0 :]

    def close(self) -> None:
        for file in self._files:
            file.close()


class _Run:
    """What the workers share."""

    def __init__(
        self,
        layout: Layout,
        files: _Files,
        progress: ProgressCallback | None,
        stop: Callable[[], ConverterError | None],
    ) -> None:
        self._layout = layout
        self._slabs = _slabs(layout)
        self._files = files
        self._progress = progress
        self._stop = stop
        self._lock = threading.Lock()
        self._total = sum(slot.tensor.info.nbytes for file in layout.files for slot in file.slots)
        self._done = 0
        # (file, slot) -> offset, CRC-32 and length of its slabs, for the writers that finish with them
        self._sums: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        self.error: BaseException | None = None

    def work(self) -> None:
        while (slab := self._next()) is not None:
            try:
                data = slab.tensor.rows(slab.start, slab.stop)
                raw = np.ascontiguousarray(data).data.cast("B")
                self._files.write(slab.file, raw, slab.offset)
                if self._layout.files[slab.file].finish is not None:
                    self._sum(slab, raw)
                self._report(slab, data.nbytes)
            except BaseException as error:
                self.fail(error)

    def _sum(self, slab: _Slab, raw: memoryview) -> None:
        crc = zlib.crc32(raw)
        with self._lock:
            self._sums.setdefault((slab.file, slab.slot), []).append((slab.offset, crc, len(raw)))

    def finish(self) -> None:
        """What writers add when their slots are full."""
        for number, file in enumerate(self._layout.files):
            if file.finish is None:
                continue
            sums = (sorted(self._sums.get((number, slot), [])) for slot in range(len(file.slots)))
            crcs = [combine_all((crc, nbytes) for _, crc, nbytes in slabs) for slabs in sums]
            for offset, data in file.finish(crcs):
                self._files.write(number, memoryview(data), offset)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error

    def _next(self) -> _Slab | None:
        with self._lock:
            return None if self.error else next(self._slabs, None)

    def _report(self, slab: _Slab, nbytes: int) -> None:
        if (error := self._stop()) is not None:
            self.fail(error)
        with self._lock:
            self._done += nbytes
            if self._progress is None:
                return
            go_on = self._progress(Progress(self._done, self._total, slab.tensor.name))
        if go_on is False:
            self.fail(Interrupted("cancelled; nothing was written"))


def _fill(
    layout: Layout,
    temporaries: list[Path],
    threads: int,
    progress: ProgressCallback | None,
    stop: Callable[[], ConverterError | None],
) -> None:
    files = _Files(temporaries)
    run = _Run(layout, files, progress, stop)
    workers = [threading.Thread(target=run.work, daemon=True) for _ in range(max(1, threads))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.2)
        if run.error is None:
            run.finish()
    except BaseException as error:
        run.fail(error)
        raise
    finally:
        for worker in workers:
            if worker.ident is not None:
                worker.join()
        files.close()
    if run.error is not None:
        raise run.error
