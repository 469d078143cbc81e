"""Every reader with every writer, because it is registered: what goes in comes out, or an event or error says why."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import samples

from converter import pipeline
from converter.checkpoint import Checkpoint
from converter.errors import ConverterError, MissingPart, QuantizationError, UnsupportedFeature, UsageError
from converter.events import Decoded, MetadataLost
from converter.formats.base import Format
from converter.formats.registry import formats, open_checkpoint, readers, writers
from converter.planning.plan import Plan
from converter.request import Request, Source
from converter.storage import files as mapped
from converter.tensors.dtypes import F32
from converter.tensors.streams import decoded
from converter.tensors.tensor import LazyTensor, TensorInfo

PLAIN = Request(tensors_only=True)
PAIRS = [
    pytest.param(reader, writer, id=f"{reader.name}-{writer.name}") for reader in readers() for writer in writers()
]
every_pair = pytest.mark.parametrize(("reader", "writer"), PAIRS)
every_reader = pytest.mark.parametrize("reader", readers(), ids=lambda reader: reader.name)
GENERATED = [reader for reader in readers() if reader.layout is not None and reader.name not in samples.MADE]
# What a format makes of a shape or of the name that it has no room for.
AT_LEAST_ONE_AXIS = {"gguf"}
NAMELESS = {"npy"}
# An archive is about the model that its text describes, which only another archive has.
NEED_A_MODEL = {"keras"}
# Free texts that say which framework a file is for.
FRAMEWORK = {"format"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk: that data is flushed is tests/storage/test_output.py's."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, whose files are mapped by small pages: on a disk the kernel maps megabytes around a touch."""
    shared = Path("/dev/shm")
    if not (shared.is_dir() and Path("/proc/self/smaps").exists() and shutil.disk_usage(shared).free > 4 * LARGE):
        pytest.skip("needs Linux's /proc, and room in /dev/shm")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    return tmp_path / "in", tmp_path / "out"


def convert(source: Path, reader: Format, folder: Path, writer: Format, request: Request = PLAIN) -> tuple[Plan, Path]:
    target = folder / f"output{'' if writer.folder else writer.extensions[0]}"
    named = Source(source, format=reader.name)
    return pipeline.convert(named, target, request.replace(format=writer.name), threads=1), target


def sample_for(reader: Format, writer: Format, folder: Path) -> Path:
    """A sample of `reader`, of what `writer` can hold."""
    path = samples.sample(reader, folder)
    if reader not in GENERATED:
        return path
    tensors = {
        name: each for name, each in samples.tensors_for(reader).items() if each.info.dtype.name in writer.dtypes
    }
    if writer.name in AT_LEAST_ONE_AXIS:
        tensors = {name: each for name, each in tensors.items() if each.info.n_elements > 1}
    if writer.name in NAMELESS:
        tensors = dict(list(tensors.items())[-1:])
    return samples.write(reader, tensors, path, samples.METADATA)


def digests(source: Path) -> dict[str, str]:
    """What is in every file of a folder, or of the folder that a file is in."""
    files = sorted(path for path in (source if source.is_dir() else source.parent).rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def whole(tensor: LazyTensor) -> bytes:
    return tensor.rows(0, tensor.info.n_rows).tobytes()


# --------------------------------------------------------------------------------------------------- there


@every_pair
def test_what_goes_in_comes_out(folders: tuple[Path, Path], reader: Format, writer: Format) -> None:
    check_conversion(sample_for(reader, writer, folders[0]), reader, folders[1], writer)


def check_conversion(source: Path, reader: Format, folder: Path, writer: Format) -> None:
    before = digests(source)
    with open_checkpoint(Source(source, format=reader.name)) as given:
        if refusal := refused(given, writer):
            with pytest.raises(refusal):
                convert(source, reader, folder, writer)
            assert not list(folder.iterdir())
            return
        plan, target = convert(source, reader, folder, writer)
        with open_checkpoint(Source(target, format=writer.name)) as found:
            check_tensors(given, found, writer, plan)
            check_texts(given, found, plan)
            found.check()
    assert digests(source) == before


def refused(given: Checkpoint, writer: Format) -> type[ConverterError] | None:
    """The pairs that make no sense end as an error."""
    if writer.folder and not (given.dialect == "hf" and given.config):
        return MissingPart
    if writer.name in NEED_A_MODEL and given.format != writer.name:
        return UnsupportedFeature
    if writer.name == "gguf" and any(len(name.encode()) > 63 for name in given.tensors):
        return UnsupportedFeature
    if writer.name in NAMELESS and len(given.tensors) > 1:
        return UsageError
    return None


def check_tensors(given: Checkpoint, found: Checkpoint, writer: Format, plan: Plan) -> None:
    events = {event.tensor for event in plan.report.events if isinstance(event, Decoded)}
    wanted = dict(given.tensors)
    if writer.name in NAMELESS:
        wanted = dict(zip(found.tensors, wanted.values(), strict=True))
    assert sorted(found.tensors) == sorted(wanted)
    for name, tensor in wanted.items():
        held = tensor.info.dtype.name in writer.dtypes
        assert held or name in events, name
        kept = tensor if held else decoded(tensor)
        shape = kept.info.shape or (1,) if writer.name in AT_LEAST_ONE_AXIS else kept.info.shape
        assert (found.tensors[name].info.shape, found.tensors[name].info.dtype) == (shape, kept.info.dtype)
        assert whole(found.tensors[name]) == whole(kept), name


def check_texts(given: Checkpoint, found: Checkpoint, plan: Plan) -> None:
    """Every text arrives, or an event says that it is lost; never both."""
    kept = {key for key, value in given.metadata.items() if found.metadata.get(key) == value}
    lost = {event.key for event in plan.report.events if isinstance(event, MetadataLost)}
    assert given.metadata.keys() - kept - FRAMEWORK == lost


# --------------------------------------------------------------------------------------------- and back again


@pytest.mark.parametrize(
    ("reader", "writer"),
    [
        pytest.param(reader, writer, id=f"{reader.name}-{writer.name}")
        for reader in GENERATED
        for writer in writers()
        if writer.open is not None and writer.name not in NAMELESS | NEED_A_MODEL and not writer.folder
    ],
)
def test_back_again_it_is_the_same_file(folders: tuple[Path, Path], reader: Format, writer: Format) -> None:
    """Between formats that write, the way there and back is exact to the byte, but for texts lost on the way."""
    source = samples.sample(reader, folders[0])
    tensors = {
        name: each for name, each in samples.tensors_for(reader).items() if each.info.dtype.name in writer.dtypes
    }
    if writer.name in AT_LEAST_ONE_AXIS:
        tensors = {name: each for name, each in tensors.items() if each.info.n_elements > 1}
    samples.write(reader, tensors, source, {})
    _, between = convert(source, reader, folders[1], writer)
    _, back = convert(between, writer, folders[1] / "..", reader)
    with (
        open_checkpoint(Source(source, format=reader.name)) as first,
        open_checkpoint(Source(back, format=reader.name)) as second,
    ):
        assert {name: (each.info, whole(each)) for name, each in first.tensors.items()} == {
            name: (each.info, whole(each)) for name, each in second.tensors.items()
        }


@pytest.mark.parametrize("writer", writers(), ids=lambda writer: writer.name)
def test_types_a_target_cannot_hold_are_refused(folders: tuple[Path, Path], writer: Format) -> None:
    reader = formats()["torch"]  # which holds every dense type
    left = [each for each in samples.tensors_for(reader).values() if each.info.dtype.name not in writer.dtypes]
    for tensor in left:
        source = samples.write(reader, {"w": tensor}, folders[0] / "one.pt", {})
        with pytest.raises((QuantizationError, UnsupportedFeature), match=tensor.info.dtype.name):
            convert(source, reader, folders[1], writer)
        assert not list(folders[1].iterdir())


# ------------------------------------------------------------------------------------------------- real files

# Real files of each format, by the patterns they have among the test data; the smallest is taken.
REAL = {
    "flax": "derived-flax-stories260K/*.msgpack",
    "ggml": "ggml-legacy-whispercpp/*tiny.bin",
    "gguf": "derived-gguf-stories260K/*q4_0.gguf",
    "hdf5": "keras-h5-*/*.h*5",
    "hf": "lm-stories260K-hf",
    "keras": "derived-tf-face-emotion/*.keras",
    "llama2c": "lm-stories260K-llama2c/stories*.bin",
    "npy": "basic-pitch/*.npy",
    "npz": "npz-cs336/*.npz",
    "onnx": "basic-pitch/*.onnx",
    "safetensors": "derived-hf-sharded-stories260K/bf16/*.safetensors",
    "tensorflow": "derived-tf-face-emotion/ckpt_v2/*.index",
    "tf-graph": "derived-tf-face-emotion/*.pb",
    "tflite": "basic-pitch/*.tflite",
    "torch": "derived-pytorch-stories260K/*.bin",
}


@pytest.mark.parametrize(
    ("reader", "writer"),
    [pytest.param(formats()[name], writer, id=f"{name}-{writer.name}") for name in REAL for writer in writers()],
)
def test_real_files_come_out_as_they_went_in(data: Path, tmp_path: Path, reader: Format, writer: Format) -> None:
    found = sorted(data.glob(REAL[reader.name]), key=lambda path: path.stat().st_size)
    if not found:
        pytest.skip(f"no {REAL[reader.name]} among the test data")
    check_conversion(found[0], reader, tmp_path, writer)


# ----------------------------------------------------------------------------------------- laziness and memory

LARGE = 96 << 20
OPENING, BOUND = 1 << 20, 64 << 20
# Formats without a directory have a header before each tensor, and the kernel maps what lies around it.
SCATTERED, AROUND = {"ggml"}, 64 << 10


def large(reader: Format, folder: Path) -> Path:
    """A file of `reader` whose tensors have more than LARGE bytes, with no time lost in making it."""
    row = np.arange(1 << 20, dtype="<f4").view(np.uint8)
    info = TensorInfo("w", (LARGE >> 22, 1 << 20), F32)
    tensor = LazyTensor(info, lambda start, stop: np.broadcast_to(row, (stop - start, len(row))), "large")
    return samples.large(reader, tensor, folder)


def read_bytes() -> int:
    """Bytes that this process has read by system calls."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def resident(folder: Path) -> int:
    """Bytes of files in `folder` that this process has mapped and touched, or that lie close by."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@every_reader
def test_opening_reads_under_a_megabyte(memory: Path, reader: Format) -> None:
    path = large(reader, memory)
    assert sum(file.stat().st_size for file in memory.rglob("*") if file.is_file()) >= LARGE
    open_checkpoint(Source(path, format=reader.name)).close()  # imports what it needs
    before = read_bytes()
    with open_checkpoint(Source(path, format=reader.name)) as checkpoint:
        around = AROUND * len(checkpoint.tensors) if reader.name in SCATTERED else 0
        assert read_bytes() - before + resident(memory) < OPENING + around
        next(iter(checkpoint.tensors.values())).rows(0, 1)
        assert read_bytes() - before + resident(memory) > 0, "what is touched is seen"
        assert sum(tensor.info.nbytes for tensor in checkpoint.tensors.values()) >= LARGE // 2


def peak_of(source: Path, reader: Format, folder: Path, writer: Format) -> int:
    """By how many bytes the process grew, at most, while it converted."""
    convert(samples.sample(reader, folder), reader, folder, writer)  # imports what it needs
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    (folder / "large").mkdir()
    convert(source, reader, folder / "large", writer)
    return status("VmHWM") - before


def status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) << 10


@every_reader
def test_reading_takes_bounded_memory(memory: Path, reader: Format) -> None:
    (memory / "in").mkdir()
    assert peak_of(large(reader, memory / "in"), reader, memory, formats()["safetensors"]) < BOUND


@pytest.mark.parametrize("writer", writers(), ids=lambda writer: writer.name)
def test_writing_takes_bounded_memory(memory: Path, writer: Format) -> None:
    reader = writer if writer.folder or writer.name in NEED_A_MODEL else formats()["npy"]
    (memory / "in").mkdir()
    assert peak_of(large(reader, memory / "in"), reader, memory, writer) < BOUND


# --------------------------------------------------------------------------------------------------- truncation

RANDOM_CUTS, MOST_CUTS = 12, 48


def boundaries(path: Path, reader: Format) -> dict[Path, set[int]]:
    """Where the structures of each file begin and end: the spans that the reader asks for."""
    spans: dict[Path, set[int]] = {}
    view = mapped.MappedFile.view

    def noted(self: mapped.MappedFile, offset: int, nbytes: int, what: str) -> np.ndarray:
        spans.setdefault(self.path, set()).update((offset, offset + nbytes))
        return view(self, offset, nbytes, what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped.MappedFile, "view", noted)
        with open_checkpoint(Source(path, format=reader.name)) as checkpoint:
            for tensor in checkpoint.tensors.values():
                whole(tensor)
            checkpoint.check()
    return spans


def cuts(size: int, spans: set[int]) -> list[int]:
    """Every boundary with its neighbours, or a choice of them, and a few places anywhere."""
    rng = random.Random(size)
    near = sorted({at + step for at in spans for step in (-1, 0, 1) if 0 <= at + step < size})
    chosen = rng.sample(near, min(len(near), MOST_CUTS))
    return sorted({0, 1, size - 1, *chosen, *(rng.randrange(size) for _ in range(RANDOM_CUTS))})


@every_reader
def test_truncated_anywhere_it_is_a_clean_error(folders: tuple[Path, Path], reader: Format) -> None:
    """Or nothing of the model was in the part that is gone: padding, or what only describes the file."""
    source, writer = samples.sample(reader, folders[0]), formats()["safetensors"]
    spans = boundaries(source, reader)
    _, target = convert(source, reader, folders[1], writer)
    expected = target.read_bytes()
    refused = 0
    for path, edges in spans.items():
        data = path.read_bytes()
        for at in cuts(len(data), edges):
            target.unlink(missing_ok=True)
            path.write_bytes(data[:at])
            try:
                convert(source, reader, folders[1], writer)
                assert target.read_bytes() == expected, at
            except ConverterError as error:
                refused += 1
                assert source.name in str(error) and len(str(error).splitlines()) <= 3
                assert not list(folders[1].iterdir())
        path.write_bytes(data)
    assert refused > 10
