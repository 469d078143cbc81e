"""The engine: the result does not depend on how it is made, and is there whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import assembled

from converter import interrupts
from converter.cli import process
from converter.errors import CorruptFile, DiskFull, Interrupted, LossyError, OutputError, OutputExists
from converter.storage import disk, output
from converter.storage.layout import FileLayout, Layout, Slot
from converter.storage.output import write
from converter.storage.slabs import Progress, Slab
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES
from converter.tensors.encode import Watch, encoded
from converter.tensors.tensor import Extent, LazyTensor, TensorInfo, from_array

F32, Q8_0 = DTYPES["F32"], DTYPES["Q8_0"]
HEADER = b"header" + bytes(26)


def layout_of(*tensors: LazyTensor, path: Path, alignment: int = 32) -> Layout:
    """One file: a header and the tensors, aligned."""
    offset, slots = len(HEADER), []
    for tensor in tensors:
        slots.append(Slot(offset, tensor))
        offset += -(-tensor.info.nbytes // alignment) * alignment
    return Layout((FileLayout(path, HEADER, tuple(slots), offset),))


def numbers(name: str, *shape: int) -> LazyTensor:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype("<f4")
    return from_array(name, values, F32, "test")


def model() -> list[LazyTensor]:
    """Dense, encoded, scalar, empty, one long row, many short rows, and one that is computed whole."""
    whole = numbers("whole", 33, 64)
    return [
        numbers("matrix", 100, 96),
        encoded(numbers("packed", 77, 256), Q8_0, Watch()),
        numbers("scalar"),
        numbers("empty", 0, 64),
        numbers("hollow", 5, 0),
        numbers("row", 1, 5000),
        numbers("stack", 3, 7, 11, 2),
        LazyTensor(whole.info, whole.read, "test", grain=33),
    ]


@pytest.mark.parametrize("slab", [1, 1000, 4096, 1 << 16, 1 << 30])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_result_is_the_same_for_any_threads_and_slabs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int, threads: int
) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", slab)
    layout = layout_of(*model(), path=tmp_path / "out")
    write(layout, threads=threads)
    assert (tmp_path / "out").read_bytes() == assembled(layout.files[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_lies_between_slots_is_zero(tmp_path: Path) -> None:
    layout = layout_of(numbers("a", 3), numbers("b", 3), path=tmp_path / "out", alignment=4096)
    write(layout, threads=2)
    content = (tmp_path / "out").read_bytes()
    assert len(content) == layout.size == len(HEADER) + 2 * 4096
    assert content[:32] == HEADER and not any(content[32 + 12 : 32 + 4096])


def test_reads_that_are_not_contiguous(tmp_path: Path) -> None:
    values = np.arange(600, dtype="<f4").reshape(20, 30)
    packed = values.view(np.uint8).reshape(20, 120)
    wide = np.concatenate([packed, packed], axis=1)
    tensor = LazyTensor(TensorInfo("w", (20, 30), F32), lambda start, stop: wide[start:stop, :120], "test")
    write(layout_of(tensor, path=tmp_path / "out"), threads=2)
    assert (tmp_path / "out").read_bytes()[32:] == values.tobytes()


def test_rows_that_are_computed_together_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 64)
    calls = []
    data = np.zeros((50, 40), np.uint8)

    def read(start: int, stop: int) -> Any:
        calls.append((start, stop))
        return data[start:stop]

    info = TensorInfo("w", (50, 10), F32)
    write(layout_of(LazyTensor(info, read, "test", grain=50), path=tmp_path / "out"), threads=3)
    assert calls == [(0, 50)]
    calls.clear()
    write(layout_of(LazyTensor(info, read, "test", grain=20), path=tmp_path / "out"), threads=1)
    assert calls == [(0, 20), (20, 40), (40, 50)]
    calls.clear()
    write(layout_of(LazyTensor(info, read, "test"), path=tmp_path / "out"), threads=1)
    assert calls == [(start, start + 1) for start in range(50)]


def test_several_files(tmp_path: Path) -> None:
    parts = [layout_of(tensor, path=tmp_path / f"{i}").files[0] for i, tensor in enumerate(model())]
    write(Layout(tuple(parts)), threads=3)
    assert [(tmp_path / f"{i}").read_bytes() for i in range(len(parts))] == [assembled(part) for part in parts]


def test_a_file_without_tensors(tmp_path: Path) -> None:
    write(layout_of(path=tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == HEADER


# ------------------------------------------------------------------------------------- without pwrite


@pytest.mark.parametrize("threads", [1, 4])
def test_without_pwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """As on Windows, where a lock around seek and write takes its place."""
    for name in ("pwrite", "posix_fallocate"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 3000)
    layout = layout_of(*model(), path=tmp_path / "out")
    write(layout, threads=threads)
    assert (tmp_path / "out").read_bytes() == assembled(layout.files[0])


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, data[:7], offset))
    layout = layout_of(numbers("a", 13, 3), path=tmp_path / "out")
    write(layout, threads=2)
    assert (tmp_path / "out").read_bytes() == assembled(layout.files[0])


# ------------------------------------------------------------------------------------- whole or not at all

OLD = b"an old output that must survive\n"


def unharmed(folder: Path) -> bool:
    """Only the old output is there, byte for byte."""
    return [path.name for path in folder.iterdir()] == ["out"] and (folder / "out").read_bytes() == OLD


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").write_bytes(OLD)
    return tmp_path / "out"


def failing(error: Callable[[], BaseException], at: int = 60) -> LazyTensor:
    good = numbers("bad", 100, 96)

    def read(start: int, stop: int) -> Any:
        if stop > at:
            raise error()
        return good.rows(start, stop)

    return LazyTensor(good.info, read, "test")


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    "error", [lambda: CorruptFile("x: truncated"), lambda: MemoryError(), lambda: RuntimeError("a bug")],
    ids=["corrupt", "memory", "bug"],
)  # fmt: skip
def test_a_tensor_that_cannot_be_read(
    out: Path, monkeypatch: pytest.MonkeyPatch, threads: int, error: Callable[[], BaseException]
) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 1000)
    threads_before = threading.active_count()
    with pytest.raises(type(error())):
        write(layout_of(numbers("good", 50, 50), failing(error), numbers("late", 9, 9), path=out), threads=threads)
    assert unharmed(out.parent)
    assert threading.active_count() == threads_before


def test_an_interrupt_while_a_worker_runs(out: Path) -> None:
    started = threading.Event()

    def read(start: int, stop: int) -> Any:
        if not started.is_set():
            started.set()
            os.kill(os.getpid(), signal.SIGINT)
        return np.zeros((stop - start, 400), np.uint8)

    tensor = LazyTensor(TensorInfo("w", (100_000, 100), F32), read, "test")
    threads_before = threading.active_count()
    with pytest.raises(Interrupted):
        write(layout_of(tensor, path=out), threads=2)
    assert unharmed(out.parent)
    assert threading.active_count() == threads_before


@pytest.fixture
def command_line() -> Iterator[None]:
    """The handlers that the command line sets, and what was there before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    process.raise_on_signals()
    yield
    process.seen.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("command_line")
def test_an_interrupt_between_the_renames_of_a_set_does_not_cut_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def interrupted(source: Any, target: Any) -> None:
        real(source, target)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "link", interrupted)
    parts = [layout_of(numbers("a", 4), path=tmp_path / f"{i}").files[0] for i in range(3)]
    write(Layout(tuple(parts)), threads=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert not process.seen and not interrupts.held()


def test_an_interrupt_of_a_program_around_us_undoes_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its own handlers, which do not wait: here that of Python."""
    real = os.link

    def interrupted(source: Any, target: Any) -> None:
        real(source, target)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "link", interrupted)
    parts = [layout_of(numbers("a", 4), path=tmp_path / f"{i}").files[0] for i in range(3)]
    with pytest.raises(Interrupted, match="nothing was written"):
        write(Layout(tuple(parts)), threads=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("command_line")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_does_not_cut_the_removal(out: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The run had failed already; its error is what is told, and the signal does its work again afterwards."""
    number, unlink = getattr(signal, name), Path.unlink

    def interrupted(path: Path, *given: Any, **more: Any) -> None:
        if path.suffix == ".part":
            os.kill(os.getpid(), number)
        unlink(path, *given, **more)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(CorruptFile):
        write(layout_of(failing(lambda: CorruptFile("x: truncated")), path=out), threads=1)
    assert unharmed(out.parent)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_no_handler_is_set(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals are the affair of the program around us; Python cannot even say what another one's handler was."""
    handlers: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.append(handler))
    layout = layout_of(numbers("a", 4), path=out)
    write(layout)
    assert out.read_bytes() == assembled(layout.files[0])
    assert handlers == []


def test_writing_from_a_thread(tmp_path: Path) -> None:
    """Where signals cannot be had."""
    layout = layout_of(*model(), path=tmp_path / "out")
    thread = threading.Thread(target=write, args=(layout,))
    thread.start()
    thread.join()
    assert (tmp_path / "out").read_bytes() == assembled(layout.files[0])


def test_the_old_output_is_there_until_the_new_one_is_whole(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 500)
    layout = layout_of(*model(), path=out)
    seen: set[bytes] = set()
    replaced: list[bytes] = []
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        replaced.append(Path(source).read_bytes())
        seen.add(out.read_bytes())
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write(layout, threads=2, progress=lambda _: seen.add(out.read_bytes()))
    assert seen == {OLD}
    assert replaced == [out.read_bytes()] == [assembled(layout.files[0])]


def test_data_is_flushed_before_it_gets_its_name(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file))[1])
    monkeypatch.setattr(os, "replace", lambda source, target: (calls.append("replace"), replace(source, target))[1])
    write(layout_of(numbers("a", 4), path=out), threads=1)
    assert calls == ["fsync", "replace", "fsync"]


def test_a_rename_that_fails(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        write(layout_of(numbers("a", 4), path=out))
    assert unharmed(out.parent)


def test_names_at_the_limit_of_the_file_system(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):
        layout = layout_of(numbers("a", 4), path=tmp_path / name)
        write(layout, threads=1)
        assert (tmp_path / name).read_bytes() == assembled(layout.files[0])


ROWS: dict[str, Callable[[int, int], Any]] = {
    "too few": lambda start, stop: np.zeros((stop - start - 1, 12), np.uint8),
    "too many": lambda start, stop: np.zeros((stop - start + 1, 12), np.uint8),
    "too narrow": lambda start, stop: np.zeros((stop - start, 11), np.uint8),
    "too wide": lambda start, stop: np.zeros((stop - start, 13), np.uint8),
    "flat": lambda start, stop: np.zeros((stop - start) * 12, np.uint8),
    "values": lambda start, stop: np.zeros((stop - start, 3), np.float32),
    "signed": lambda start, stop: np.zeros((stop - start, 12), np.int8),
    "bytes": lambda start, stop: bytes((stop - start) * 12),
    "nothing": lambda start, stop: None,
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_reader_that_gives_what_was_not_asked_for(out: Path, rows: Callable[[int, int], Any]) -> None:
    wrong = LazyTensor(TensorInfo("wrong", (10, 3), F32), rows, "a plugin")
    with pytest.raises(OutputError, match=r"^wrong: rows 0 to 10 came as .*, not as uint8 \[10, 12\] \(a plugin\)"):
        write(layout_of(numbers("before", 4), wrong, numbers("after", 4), path=out), threads=1)
    assert unharmed(out.parent)


# ------------------------------------------------------------------------------------- room on the disk


class _Usage:
    free = 1000


def test_no_room_is_noticed_before_a_byte_is_written(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: _Usage)
    monkeypatch.setattr(disk.Disk, "create", lambda *_: pytest.fail("something was written"))
    with pytest.raises(DiskFull, match=r"needs [\d,]+ bytes, 1,000 are free"):
        write(layout_of(numbers("a", 100, 100), path=out))
    assert unharmed(out.parent)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("where", ["posix_fallocate", "pwrite", "fsync"])
def test_no_room_while_writing(out: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int) -> None:
    def full(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, where, full)
    with pytest.raises(DiskFull, match="nothing was written"):
        write(layout_of(numbers("a", 100, 100), path=out), threads=2)
    assert unharmed(out.parent)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_that_cannot_allocate_ahead(out: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def unable(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", unable)
    layout = layout_of(*model(), path=out)
    write(layout, threads=2)
    assert out.read_bytes() == assembled(layout.files[0])


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(errno.EACCES, "Permission denied", "there"), OutputError, "there: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), OutputError, "{out}: Input/output error"),
        (OSError("no number"), OutputError, "{out}: no number"),
        (OSError(errno.EEXIST, "File exists"), OutputExists, "{out}: File exists"),
        (OSError(errno.ENOTEMPTY, "Directory not empty"), OutputExists, "{out}: Directory not empty"),
    ],
)
def test_what_the_system_refuses_is_told(out: Path, error: OSError, kind: type[OutputError], says: str) -> None:
    def refuse() -> None:
        raise error

    with pytest.raises(OutputError) as caught:
        write(layout_of(numbers("a", 4), path=out), check=refuse)
    assert type(caught.value) is kind
    assert str(caught.value) == f"{says.format(out=out)}; nothing was written"
    assert unharmed(out.parent)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match="file: is a file, not a folder"):
        write(layout_of(numbers("a", 4), path=tmp_path / "file" / "out"))


# ------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 2000)
    seen: list[Progress] = []
    layout = layout_of(*model(), path=tmp_path / "out")
    write(layout, threads=threads, progress=seen.append)
    total = sum(slot.tensor.info.nbytes for slot in layout.files[0].slots)
    assert {progress.total for progress in seen} == {total}
    assert [progress.done for progress in seen] == sorted({progress.done for progress in seen})
    assert seen[-1].done == total
    assert {progress.tensor for progress in seen} == {"matrix", "packed", "scalar", "row", "stack", "whole"}
    assert len(seen) > 20


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("after", [1, 10])
def test_returning_false_cancels(out: Path, monkeypatch: pytest.MonkeyPatch, threads: int, after: int) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 2000)
    calls = []

    def progress(_: Progress) -> bool:
        calls.append(1)
        return len(calls) < after

    with pytest.raises(Interrupted, match="cancelled"):
        write(layout_of(*model(), path=out), threads=threads, progress=progress)
    assert unharmed(out.parent)
    assert after <= len(calls) < after + threads


def test_cancelling_at_the_last_slab_still_cancels(out: Path) -> None:
    with pytest.raises(Interrupted):
        write(layout_of(numbers("a", 4), path=out), threads=1, progress=lambda progress: progress.done < progress.total)
    assert unharmed(out.parent)


def test_an_error_in_the_callback_ends_the_run(out: Path) -> None:
    def progress(_: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(layout_of(*model(), path=out), threads=2, progress=progress)
    assert unharmed(out.parent)


def test_stop_ends_the_run(out: Path) -> None:
    with pytest.raises(LossyError, match="strict"):
        write(layout_of(*model(), path=out), threads=2, stop=lambda: LossyError("refused under --strict"))
    assert unharmed(out.parent)


def test_memory_in_flight_is_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 1 << 16)
    big, small = numbers("big", 1000, 256), numbers("small", 3, 4)
    layout = layout_of(big, small, path=tmp_path / "out")
    assert output.working_nbytes(layout, 3) == 3 * (1 << 16)
    whole = LazyTensor(big.info, big.read, "test", grain=1000)
    assert output.working_nbytes(layout_of(whole, path=tmp_path / "out"), 2) == 2 * big.info.nbytes
    assert output.working_nbytes(layout_of(path=tmp_path / "out"), 2) == 0


# ------------------------------------------------------------------------------------- in three parts, and elsewhere


class Memory:
    """An output that is no disk: what it was told to do, and what is to be seen of it."""

    keeps = False

    def __init__(self, layout: Layout, room: int = 1 << 30) -> None:
        self._layout, self._room = layout, room
        self._files: list[bytearray] = []
        self.calls: list[str] = []
        self.published: dict[str, bytes] = {}

    def check_room(self) -> None:
        self.calls.append("check_room")
        if self._layout.size > self._room:
            raise DiskFull("no room in memory")

    def create(self) -> None:
        self.calls.append("create")
        self._files = [bytearray(file.size) for file in self._layout.files]

    def kept(self, file: int, offset: int, nbytes: int) -> None:
        """Nothing."""

    def write(self, file: int, offset: int, data: memoryview) -> None:
        assert data.format == "B" and offset + len(data) <= len(self._files[file])
        self._files[file][offset : offset + len(data)] = data

    def flush(self) -> None:
        self.calls.append("flush")

    def publish(self) -> None:
        self.calls.append("publish")
        for file, content in zip(self._layout.files, self._files, strict=True):
            self.published[file.path.name] = bytes(content)

    def abandon(self) -> None:
        self.calls.append("abandon")
        self._files.clear()


def finished(layout: Layout) -> Layout:
    """The layout with an end that depends on the CRC-32 of each slot."""
    (file,) = layout.files
    at = file.size

    def finish(crcs: Sequence[int]) -> Iterable[tuple[int, bytes]]:
        yield at, b"".join(crc.to_bytes(4, "little") for crc in crcs)

    return Layout((replace(file, size=at + 4 * len(file.slots), finish=finish),))


def with_sums(file: FileLayout) -> bytes:
    """What a file that is `finished` must hold."""
    sums = (zlib.crc32(np.ascontiguousarray(s.tensor.rows(0, s.tensor.info.n_rows))) for s in file.slots)
    end = b"".join(crc.to_bytes(4, "little") for crc in sums)
    return assembled(replace(file, size=file.size - len(end))) + end


@pytest.mark.parametrize("threads", [1, 4])
def test_an_output_that_is_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 3000)
    layout = finished(layout_of(*model(), path=tmp_path / "out"))
    memory = Memory(layout)
    write(layout, memory, threads=threads)
    assert memory.published == {"out": with_sums(layout.files[0])}
    assert memory.calls == ["check_room", "create", "flush", "publish", "abandon"]
    assert not list(tmp_path.iterdir())


def test_an_output_without_room(tmp_path: Path) -> None:
    layout = layout_of(*model(), path=tmp_path / "out")
    memory = Memory(layout, room=10)
    with pytest.raises(DiskFull, match=r"^no room in memory$"):
        write(layout, memory)
    with pytest.raises(DiskFull, match=r"^no room in memory$"):
        output.prepare(layout, memory)
    assert memory.calls == ["check_room", "abandon"] * 2


def test_what_fails_is_abandoned(tmp_path: Path) -> None:
    layout = layout_of(failing(lambda: CorruptFile("x: truncated")), path=tmp_path / "out")
    memory = Memory(layout)
    with pytest.raises(CorruptFile):
        write(layout, memory)
    assert memory.calls == ["check_room", "create", "abandon"] and not memory.published


@pytest.mark.parametrize("order", ["in order", "backwards", "odd ones first"])
def test_slabs_filled_by_several_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    """In any order, the checksums of what was filled included."""
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 3000)
    layout = finished(layout_of(*model(), path=tmp_path / "out"))
    prepared = output.prepare(layout)
    slabs = list(prepared.slabs())
    assert len(slabs) > 40
    if order == "backwards":
        slabs.reverse()
    elif order == "odd ones first":
        slabs = slabs[1::2] + slabs[::2]
    output.fill(prepared, slabs[:25], threads=3)
    assert not (tmp_path / "out").exists()
    output.fill(prepared, slabs[25:], threads=2)
    output.publish(prepared)
    output.abandon(prepared)
    assert (tmp_path / "out").read_bytes() == with_sums(layout.files[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_filling_can_be_watched_and_stopped(tmp_path: Path) -> None:
    layout = layout_of(numbers("a", 4), numbers("b", 4), path=tmp_path / "out")
    prepared = output.prepare(layout, Memory(layout))
    seen: list[Progress] = []
    with pytest.raises(LossyError, match="strict"):
        output.fill(prepared, threads=1, progress=seen.append, stop=lambda: LossyError("strict") if seen else None)
    assert seen == [Progress(16, 32, "a", "out")]


def test_slabs_that_are_missing_are_not_published(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 3000)
    prepared = output.prepare(layout_of(*model(), path=out))
    slabs = list(prepared.slabs())
    output.fill(prepared, slabs[:4] + slabs[5:], threads=2)
    with pytest.raises(ValueError, match="matrix: bytes 10752 to 13440 were not filled"):
        output.publish(prepared)
    output.abandon(prepared)
    assert unharmed(out.parent)


@pytest.mark.parametrize("missing", range(3))
def test_one_byte_that_is_missing_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 1)
    layout = layout_of(from_array("w", np.ones((3, 1)), DTYPES["I8"], "test"), path=tmp_path / "out")
    prepared = output.prepare(layout, Memory(layout))
    output.fill(prepared, [slab for slab in prepared.slabs() if slab.start != missing])
    with pytest.raises(ValueError, match=f"w: bytes {missing} to {missing + 1} were not filled"):
        output.publish(prepared)


def test_a_fill_that_failed_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab may be filled twice; it counts once."""
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 3000)
    layout = finished(layout_of(*model(), path=tmp_path / "out"))
    prepared = output.prepare(layout)
    with pytest.raises(Interrupted, match=r"^cancelled$"):
        output.fill(prepared, threads=2, progress=lambda progress: progress.done < progress.total / 2)
    output.fill(prepared, threads=2)
    output.publish(prepared)
    output.abandon(prepared)
    assert (tmp_path / "out").read_bytes() == with_sums(layout.files[0])


def test_equal_layouts_have_equal_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab's job is the number of its slot, through all files."""
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 3000)

    def slabs() -> list[Slab]:
        parts = [layout_of(tensor, path=tmp_path / f"{i}").files[0] for i, tensor in enumerate(model())]
        layout = Layout(tuple(parts))
        return list(output.Prepared(layout, Memory(layout)).slabs())

    assert slabs() == slabs() == sorted(set(slabs()))
    assert {slab.job for slab in slabs()} == {0, 1, 2, 5, 6, 7}  # the empty ones have none
    assert [slab for slab in slabs() if slab.job == 7] == [Slab(7, 0, 33)]


def test_a_prepared_folder_is_not_there_before_it_is_published(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    file = layout_of(numbers("a", 4), path=folder / "inner" / "file").files[0]
    prepared = output.prepare(Layout((file,), folder))
    output.fill(prepared)
    assert not folder.exists()
    output.publish(prepared)
    assert (folder / "inner" / "file").read_bytes() == assembled(file)
    output.abandon(prepared)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ------------------------------------------------------------------------------------- bytes that are copied


def stored(path: Path, *shape: int, offset: int = 0) -> LazyTensor:
    """A tensor that says where its bytes lie, and cannot be read in any other way."""

    def unread(start: int, stop: int) -> Any:
        raise AssertionError("read")

    return LazyTensor(TensorInfo("stored", shape, F32), unread, "test", extent=Extent(path, offset))


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="a system without it reads")
@pytest.mark.parametrize("offset", [0, 100, 4096, 5000, 5000 - len(HEADER)])
@pytest.mark.parametrize("slab", [1000, 1 << 30])
def test_what_is_stored_is_copied_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int, slab: int
) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", slab)
    content = np.random.default_rng(1).bytes(40_000)
    (tmp_path / "in").write_bytes(content)
    layout = layout_of(numbers("a", 5), stored(tmp_path / "in", 60, 90, offset=offset), path=tmp_path / "out")
    write(layout, threads=2)
    found = (tmp_path / "out").read_bytes()
    assert found[layout.files[0].slots[1].offset :][:21600] == content[offset : offset + 21600]


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="a system without it reads")
def test_blocks_can_be_shared_where_both_files_have_a_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems share whole blocks at best: what is before the first goes by itself, where both begin alike."""
    asked: list[tuple[int, int, int]] = []

    def copy(read: int, out: int, count: int, at: int, to: int) -> int:
        asked.append((count, at, to))
        return count

    monkeypatch.setattr(os, "copy_file_range", copy)
    (tmp_path / "in").write_bytes(bytes(40_000))
    out = disk.Disk(Layout((FileLayout(tmp_path / "out", b"", (), 40_000),)))
    out.create()
    for target, offset, nbytes in ((5000, 904, 20_000), (5000, 900, 20_000), (8192, 4096, 20_000), (5000, 904, 10)):
        assert out.copy(0, target, Extent(tmp_path / "in", offset), nbytes)
    out.abandon()
    assert asked == [
        (3192, 904, 5000), (16_808, 4096, 8192), (20_000, 900, 5000), (20_000, 4096, 8192), (10, 904, 5000),
    ]  # fmt: skip


@pytest.mark.parametrize("fails", ["no such call", "other file system", "nothing copied", "gone"])
def test_what_cannot_be_copied_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    (tmp_path / "in").write_bytes(bytes(400))

    def copy(*_: int) -> int:
        if fails == "nothing copied":
            return 0
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if fails == "no such call":
        monkeypatch.setattr(disk.sys, "platform", "somewhere")
    elif fails == "gone":
        (tmp_path / "in").unlink()
    monkeypatch.setattr(os, "copy_file_range", copy, raising=False)
    tensor = replace(numbers("a", 10, 10), extent=Extent(tmp_path / "in", 0))
    layout = layout_of(tensor, path=tmp_path / "out")
    write(layout, threads=2)
    assert (tmp_path / "out").read_bytes() == assembled(layout.files[0])


def test_what_is_summed_or_computed_is_read(tmp_path: Path) -> None:
    """Writers that finish with the sums of their slots, and tensors that are made of stored ones."""
    (tmp_path / "in").write_bytes(bytes(400))
    plain = replace(numbers("a", 10, 10), extent=Extent(tmp_path / "in", 0))
    sums: list[int] = []

    def finish(crcs: Sequence[int]) -> Iterable[tuple[int, bytes]]:
        sums.extend(crcs)
        return ()

    file = replace(layout_of(plain, path=tmp_path / "out").files[0], finish=finish)
    write(Layout((file,)))
    assert sums == [zlib.crc32(plain.rows(0, 10).tobytes())] and (tmp_path / "out").read_bytes() == assembled(file)
    assert plain.renamed("b").extent == plain.extent
    assert plain.derived(read=plain.read).extent is None
    assert plain.derived(replace(plain.info, shape=(9, 10))).extent is None
