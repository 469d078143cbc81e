"""A source that is cut short while it is mapped: a message instead of a bus error, whoever reads it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from converter import open_checkpoint
from converter.check.check import check
from converter.errors import ConverterError, OutputError
from converter.inspection.describe import inspect
from converter.pipeline import convert, plan, run
from converter.request import Request
from converter.storage import page_cache
from converter.storage.files import RELEASE_AFTER, MappedFile
from converter.verify.verifier import verify

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a file that is mapped cannot be cut short there")
CHANGED = r"in\.safetensors: was changed while it was read"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    values = np.random.default_rng(1).normal(size=(256, 1024)).astype(np.float32)
    safetensors.numpy.save_file({name: values for name in "abcd"}, path)
    return path


def cut(path: Path, size: int = 4096) -> None:
    os.truncate(path, size)


def test_what_is_lost_is_zeros_and_told(source: Path) -> None:
    mapped = MappedFile(source)
    size = mapped.size
    assert mapped.view(size - 4096, 4096, "the end").any()
    assert not mapped.faulted
    cut(source, 10_000)
    mapped._advise("MADV_DONTNEED")
    assert mapped.view(0, 10_000, "what is left").any()
    assert not mapped.faulted
    for offset in (size - 5, 1 << 20, 12_288):  # backwards, so that each is another fault
        assert not mapped.view(offset, 5, "what is gone").any()
    assert mapped.faulted
    held = mapped.view(0, size, "everything")
    mapped.close()
    assert mapped.faulted
    assert held[:10_000].any()
    assert not held[12_288:].any()


def test_a_map_tells_of_its_own_losses_alone(tmp_path: Path, source: Path) -> None:
    whole = tmp_path / "whole"
    whole.write_bytes(source.read_bytes())
    one, other = MappedFile(source), MappedFile(whole)
    cut(source)
    for mapped in (one, other):
        mapped.view(0, mapped.size, "everything").sum()
    assert (one.faulted, other.faulted) == (True, False)
    one.close()
    again = MappedFile(whole)  # what a map leaves is used again, and is clean then
    again.view(0, again.size, "everything").sum()
    assert not again.faulted


def test_a_map_holds_no_file_open(source: Path) -> None:
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("the system does not list open files")
    before = len(list(handles.iterdir()))
    maps = [MappedFile(source) for _ in range(50)]
    assert len(list(handles.iterdir())) == before
    assert all(mapped.view(0, 8, "the start").any() for mapped in maps)


@pytest.mark.parametrize("target", ["out.safetensors", "out.npz", "out.pt", "out.h5", "out.onnx", "out/"])
@pytest.mark.parametrize("dtype", [None, "bf16"], ids=["as it is", "cast"])
@pytest.mark.parametrize("threads", [1, 3])
def test_convert(tmp_path: Path, source: Path, target: str, dtype: str | None, threads: int) -> None:
    """Also where the system reads the map itself, as it does where bytes pass as they are."""
    names = {path.name for path in tmp_path.iterdir()}
    out = f"{tmp_path / target}{'/' * target.endswith('/')}"
    request = Request(dtype=dtype, tensors_only=True, format="safetensors" if target.endswith("/") else None)
    if target.endswith("/"):
        request = Request(dtype=dtype, tensors_only=True, format="hf")
        (tmp_path / "config.json").write_text("{}")
        names.add("config.json")
    with pytest.raises(OutputError, match=CHANGED):
        convert(source, out, request, threads=threads, progress=lambda done: cut(source) if done.done else None)
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_shard_or_the_output_of_several_files(tmp_path: Path, source: Path, number: int) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(OutputError, match=CHANGED):
        convert(
            source,
            out,
            Request(tensors_only=True, split_max_tensors=1),
            threads=1,
            progress=lambda done: cut(source) if done.done >= number << 20 else None,
        )
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_between_plan_and_run(tmp_path: Path, source: Path) -> None:
    made = plan(source, tmp_path / "out.npz")
    cut(source)
    with made.checkpoint, pytest.raises(OutputError, match=CHANGED):
        run(made)


def test_verify_on_either_side(tmp_path: Path, source: Path) -> None:
    copy = tmp_path / "copy.npz"
    convert(source, copy)
    verified = verify(source, copy)
    assert verified.passed
    content = source.read_bytes()
    with pytest.raises(OutputError, match=CHANGED):
        verify(source, copy, progress=lambda _: cut(source))
    source.write_bytes(content)
    with pytest.raises(OutputError, match=r"copy\.npz: was changed"):
        verify(source, copy, progress=lambda _: cut(copy))


def test_check(tmp_path: Path, source: Path) -> None:
    """Also where what is read as zeros contradicts a checksum."""
    packed = tmp_path / "in.npz"
    convert(source, packed)
    assert check(packed).passed
    for path in (source, packed):
        with pytest.raises(OutputError, match=f"{path.name}: was changed"):
            check(path, progress=lambda _, path=path: cut(path))  # type: ignore[misc]


def test_inspect(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect(source)
    monkeypatch.setattr("converter.inspection.describe._memory", lambda *_: cut(source))
    with pytest.raises(OutputError, match=CHANGED):
        inspect(source)


def test_while_it_is_opened(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader sees zeros and calls the file damaged; why they are there is said instead."""
    view = MappedFile.view

    def late(self: MappedFile, offset: int, nbytes: int, what: str) -> np.ndarray:
        if offset:
            cut(source, 0)
        return view(self, offset, nbytes, what)

    monkeypatch.setattr(MappedFile, "view", late)
    with pytest.raises(OutputError, match=CHANGED):
        open_checkpoint(source)


def test_an_error_that_has_another_reason_stays(source: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_checkpoint(source):
        raise ZeroDivisionError
    with pytest.raises(OutputError, match=CHANGED), open_checkpoint(source):
        cut(source)
        raise ZeroDivisionError
    assert not isinstance(ZeroDivisionError(), ConverterError)


CHILD = """
import ctypes, faulthandler, mmap, signal, sys
from converter.storage import page_cache
from converter.storage.files import RELEASE_AFTER, MappedFile
from pathlib import Path
when, path = sys.argv[1], Path(sys.argv[2])
if when == "before":
    faulthandler.enable()
ours = MappedFile(path)
if when == "after":
    faulthandler.enable()
if when == "ignored":
    signal.signal(signal.SIGBUS, signal.SIG_IGN)
file = open(path, "r+b")
foreign = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
file.truncate(4096)
if when == "sent":
    signal.raise_signal(signal.SIGBUS)
if when in ("before", "none"):
    assert not ours.view(8192, 4, "ours").any() and ours.faulted
print("so far", flush=True)
foreign[8192]
print("never")
"""


@pytest.mark.parametrize("when", ["none", "before", "after", "ignored", "sent"])
def test_a_bus_error_elsewhere_is_not_ours(source: Path, when: str) -> None:
    """It ends the process as it did, and faulthandler says where, whoever of the two came first."""
    done = subprocess.run([sys.executable, "-c", CHILD, when, source], capture_output=True, text=True, timeout=60)
    assert done.returncode == -7, done.stderr
    assert done.stdout == ("" if when == "sent" else "so far\n")
    assert ("Fatal Python error: Bus error" in done.stderr) == (when in ("before", "after"))


def begun(run: subprocess.Popen[str], verb: str, folder: Path) -> bool:
    """Whether a process reads the tensors: one that writes has its output open, others the source mapped."""
    if verb in ("file", "folder"):
        return any(folder.glob(".*.part"))
    with contextlib.suppress(OSError):
        return "in.safetensors" in Path(f"/proc/{run.pid}/maps").read_text()
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what a process has mapped")
@pytest.mark.parametrize("verb", ["file", "folder", "verify", "check"])
def test_at_random_moments(tmp_path: Path, source: Path, verb: str) -> None:
    """Ten times each: the process ends by itself, with the documented code where it noticed, and leaves nothing."""
    rng = np.random.default_rng(3)
    big = {name: rng.normal(size=(2048, 4096)).astype(np.float32) for name in "abcd"}
    copy = tmp_path / "copy.npz"
    (tmp_path / "config.json").write_text("{}")
    commands: dict[str, list[str | Path]] = {
        "file": [source, tmp_path / "out.npz", "--dtype", "bf16"],
        "folder": [source, f"{tmp_path / 'out'}/", "--to", "hf", "--shard-size", "40MB", "--tensors-only"],
        "verify": ["verify", source, copy],
        "check": ["check", source],
    }
    safetensors.numpy.save_file(big, source)
    convert(source, copy)
    command = [sys.executable, "-m", "converter", *map(str, commands[verb])]
    codes, whole = [], 0.0
    for part in (None, *np.linspace(0.3, 0.95, 10)):
        safetensors.numpy.save_file(big, source)
        started = time.monotonic()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if part is not None:
            while run.poll() is None and not begun(run, verb, tmp_path):
                time.sleep(0.002)
            wait = whole * (part - 0.3) / 5  # what is read is a small part of the whole time
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(wait)
            cut(source, int(rng.integers(4096, source.stat().st_size)))
        said = "\n".join(run.communicate(timeout=120))
        whole = whole or time.monotonic() - started
        codes.append(run.returncode)
        assert run.returncode in (0, 11, 50), said
        assert run.returncode == 0 or "in.safetensors" in said
        left = {path.name for path in tmp_path.iterdir()} - {source.name, copy.name, "config.json"}
        assert left == ({"file": {"out.npz"}, "folder": {"out"}}.get(verb, set()) if run.returncode == 0 else set())
        (tmp_path / "out.npz").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert codes[0] == 0 and 50 in codes, codes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc what is resident")
def test_many_files_hold_no_more_pages_than_one(tmp_path: Path) -> None:
    """A model of many shards, read from end to end."""
    files = []
    for number in range(6):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(bytes(24 << 20))
        files.append(MappedFile(path))
    before, most = resident(), 0
    for file in files:
        for at in range(0, file.size, 1 << 20):
            file.view(at, 1 << 20, "a slab").sum()
            most = max(most, resident() - before)
    assert 0 < most < RELEASE_AFTER + (16 << 20)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc what is resident")
def test_the_first_bytes_of_many_files_hold_few_pages(tmp_path: Path) -> None:
    """A model of many shards, opened again: the system has large pages of them in its cache, and maps those."""
    files = []
    for number in range(40):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(bytes(4 << 20))
        whole = MappedFile(path)
        whole.view(0, 4 << 20, "all of it").sum()
        files.append(whole)
    files[0].release()
    before = resident()
    for file in files:
        file.release()
        file.view(0, 8, "a length").sum()
    assert resident() - before < RELEASE_AFTER + (8 << 20)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not say what is in its cache")
def test_what_was_read_of_files_larger_than_memory_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(128 << 20))
    with open(path, "rb") as written:
        os.fsync(written.fileno())  # what is not on the disk cannot be forgotten
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(path):
        pytest.skip("a file system in memory")
    for large in (False, True):
        monkeypatch.setattr(page_cache, "outgrown", lambda nbytes, large=large: nbytes >= 128 << 20 and large)
        file = MappedFile(path)
        for at in range(0, file.size, 1 << 20):
            file.view(at, 1 << 20, "a slab").sum()
        assert is_cached(path) is not large


def is_cached(path: Path) -> bool:
    """Whether the system has the first bytes of a file in its cache."""
    with open(path, "rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT) == 4096
        except OSError:
            return False


def resident() -> int:
    """Bytes of files that this process has in its memory."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssFile:\s+(\d+)", status)[1]) << 10
