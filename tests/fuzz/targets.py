"""What the fuzzer tries: one row per format or use of it, and what must hold whatever the bytes are.

A target turns bytes into one or several files, opens them, plans a conversion and reads tensors. The only way to fail
is a ConverterError of one to three printable lines; what is read is bounded by what was given, the same every time,
and no file stays mapped.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from support import adapters

from converter.checkpoint import Checkpoint
from converter.errors import ConverterError
from converter.formats import registry
from converter.formats.hdf5 import data as hdf5_data
from converter.formats.hdf5 import file as hdf5_file
from converter.formats.registry import source_format
from converter.formats.tensorflow import checkpoint as tensorflow
from converter.formats.tensorflow import sstable
from converter.mapping.recovered import open_model
from converter.planning.build import build
from converter.plugins import BrokenPlugin
from converter.quant.imatrix import open_imatrix
from converter.request import Request, Source
from converter.storage import files as mapped
from converter.storage import zip as zip_file
from converter.tensors.tensor import LazyTensor

# Between the files of an input that is several.
SEPARATOR = b"\0<next file>\0"
MEMORY = Path("/dev/shm")
MAX_TENSORS, MAX_READ = 48, 1 << 20
# Promised: what comes out of a file is at most this much larger than the file.
GROWTH, GROWTH_ROOM = 64, 64 << 20


@dataclass(frozen=True)
class Target:
    """One format under test.

    Attributes:
        format: its name, by which the files are opened whatever they look like.
        files: names of the files an input is cut into, those left out are empty; the first, or their folder, is opened.
        seeds: patterns of files that inputs are made of, one for each of `files`.
        pack: makes the bytes of the first file.
        to: the format that a conversion is planned to.
        folder: whether the folder is opened.
        use: what of the files is opened, where that is more than a model in their format.
    """

    format: str
    files: tuple[str, ...]
    seeds: tuple[str, ...]
    pack: Callable[[bytes], bytes] = bytes
    to: str = "safetensors"
    folder: bool = False
    use: Callable[[Path], Source] | None = None

    def source(self, path: Path) -> Source:
        """What is opened of files that were laid out at `path`."""
        return self.use(path) if self.use is not None else Source(path, format=self.format)


def pickle_of(data: bytes) -> bytes:
    """The pickle in a PyTorch file with the sizes of its storages, for seeds; nothing where there is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = {member.filename.partition("/")[2]: member.file_size for member in archive.infolist()}
            program = next((archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")), b"")
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError):
        return b""
    return program + b"".join((sizes.get(f"data/{key}", 0) & 0xFFFF).to_bytes(2) for key in range(_STORAGES))


_STORAGES = 16


def _archive(data: bytes) -> bytes:
    """A PyTorch file of this pickle and storages of these sizes."""
    program, sizes = data[: -2 * _STORAGES], data[-2 * _STORAGES :]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/byteorder", b"little")
        for key in range(len(sizes) // 2):
            archive.writestr(f"a/data/{key}", bytes(int.from_bytes(sizes[2 * key : 2 * key + 2])))
        archive.writestr("a/version", b"3\n")
    return out.getvalue()


def _merged(path: Path) -> Source:
    return Source(adapters.small_base(path / "base"), adapters=[(path, 1.0)])


def _apart(path: Path) -> Source:
    return Source(path, base=adapters.small_base(path / "base"))


_HF = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md", "tokenizer.model",
    "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
)  # fmt: skip
_PACKED = ("model.safetensors", "config.json")
_DCP = (".metadata", "__0_0.distcp", "__1_0.distcp")
_RANKS = ("model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt")
_ZERO = (
    "mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
)  # fmt: skip
_ZERO_3 = ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt", *_ZERO[1:])
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_MISTRAL = ("params.json", "consolidated.safetensors", "tokenizer.model")

TARGETS: dict[str, Target] = {
    "safetensors": Target("safetensors", ("f.safetensors",), ("*.safetensors",)),
    "gguf": Target("gguf", ("f.gguf",), ("*.gguf",)),
    "gguf-to-hf": Target("gguf", ("f.gguf",), ("model*.gguf",), to="hf"),
    "torch": Target("torch", ("f.pt",), ("*.pt|*.pth|*.bin",)),
    "pickle": Target("torch", ("f.pt",), ("*.pt|*.pth|*.bin",), pack=_archive),
    "onnx": Target("onnx", ("f.onnx", "w.data"), ("*.onnx", "*.data")),
    "onnx-names": Target("onnx", ("f.onnx", "config.json"), ("exported*.onnx", "config.json")),
    "hdf5": Target("hdf5", ("f.h5",), ("*.h5|*.hdf5",)),
    "keras": Target("keras", ("f.keras",), ("*.keras",)),
    "npy": Target("npy", ("f.npy",), ("*.npy",)),
    "npz": Target("npz", ("f.npz",), ("*.npz",)),
    "flax": Target("flax", ("f.msgpack",), ("*.msgpack",)),
    "tensorflow": Target("tensorflow", ("m.index", "m.data-00000-of-00001"), ("*.index|*.ckpt", "*.data-*")),
    "tf-graph": Target("tf-graph", ("f.pb",), ("*.pb",)),
    "tflite": Target("tflite", ("f.tflite",), ("*.tflite",)),
    "llama2c": Target("llama2c", ("f.bin",), ("*.llama2c|stories*.bin",)),
    "ggml": Target("ggml", ("f.bin",), ("*.ggml|for-tests-ggml*.bin",)),
    "hf": Target("hf", _HF, _HF, to="gguf", folder=True),
    "packed": Target("hf", _PACKED, _PACKED, to="npz", folder=True),
    "mistral": Target("mistral", _MISTRAL, _MISTRAL, to="gguf", folder=True),
    "dcp": Target("distributed", _DCP, _DCP, folder=True),
    "ranks": Target("distributed", _RANKS, _RANKS, folder=True),
    "zero": Target("distributed", _ZERO, _ZERO, folder=True),
    "zero-3": Target("distributed", _ZERO_3, _ZERO_3, folder=True),
    "adapter": Target("peft", _ADAPTER, _ADAPTER, folder=True, use=_merged),
    "adapter-to-gguf": Target("peft", _ADAPTER, _ADAPTER, to="gguf", folder=True, use=_apart),
    "imatrix": Target("imatrix", ("f.dat",), ("*imatrix*.dat|*imatrix*.gguf|stories260K.dat",)),
}


def matches(pattern: str, name: str) -> bool:
    """Whether a file's name fits a target's pattern."""
    return any(fnmatch(name, each) for each in pattern.split("|"))


# ------------------------------------------------------------------------------------------ checksums do not stop it


class _Equal(int):
    """A checksum that equals every other."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


class _Unsummed:
    """`Archive.summed`, always false."""

    def __get__(self, instance: object, owner: type) -> bool:
        return False

    def __set__(self, instance: object, value: bool) -> None:
        pass


def ignore_checksums() -> None:
    """Let every checksum pass, for the fuzzer's process alone: behind one, mutated bytes would reach no parser."""
    zip_file.Archive.summed = _Unsummed()  # type: ignore[assignment]
    hdf5_file.lookup3 = lambda data: _Equal()
    hdf5_data.fletcher32 = lambda data: (_Equal(), _Equal())
    sstable.masked = tensorflow.masked = lambda crc: _Equal()  # type: ignore[assignment,return-value]


# ---------------------------------------------------------------------------------------------------------- one input


def run(target: Target, data: bytes) -> ConverterError | None:
    """Try one input; the clean error it ended with, if any.

    Raises:
        AssertionError, or anything that is no ConverterError: a finding.
    """
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    try:
        return attempt(target, _lay_out(target, data, folder))
    finally:
        shutil.rmtree(folder)


def attempt(target: Target, path: Path) -> ConverterError | None:
    """The same with a file or folder that is there."""
    failed = None
    with _all_unmapped(), warnings.catch_warnings():
        for kind in (BrokenPlugin, RuntimeWarning):  # the latter numpy's, of numbers that nobody looked after
            warnings.simplefilter("error", kind)
        try:
            _open(target, path)
        except ConverterError as error:
            failed = error.with_traceback(None)
            _check_message(str(error))
    return failed


def _lay_out(target: Target, data: bytes, folder: Path) -> Path:
    parts = data.split(SEPARATOR)
    for name, part in zip(target.files, [target.pack(parts[0]), *parts[1:]], strict=False):
        if part or name == target.files[0]:
            (folder / name).write_bytes(part)
    return folder if target.folder else folder / target.files[0]


@contextmanager
def _all_unmapped() -> Iterator[None]:
    """Whatever is mapped in here is closed in here."""
    maps: list[weakref.ref[mapped.MappedFile]] = []
    init = mapped.MappedFile.__init__

    def noted(self: mapped.MappedFile, path: Path) -> None:
        init(self, path)
        maps.append(weakref.ref(self))

    mapped.MappedFile.__init__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        mapped.MappedFile.__init__ = init  # type: ignore[method-assign]
    assert not [each for ref in maps if (each := ref()) is not None and each._map is not None], "a file stays mapped"


def _check_message(text: str) -> None:
    lines = text.splitlines()
    assert 1 <= len(lines) <= 3, f"{len(lines)} lines: {text[:400]!r}"
    assert all(line.isprintable() and len(line) < 1000 for line in lines), f"unprintable: {text[:1000]!r}"


def _open(target: Target, path: Path) -> None:
    if target.format == "imatrix":
        open_imatrix(path).close()
        return
    try:
        source_format(path)  # asks every format whether it is one of its files
    except ConverterError as error:
        _check_message(str(error))
    with open_model(target.source(path)) as checkpoint:
        _read(checkpoint, path)
        made = build(checkpoint, _folder(path) / "out", registry.formats()[target.to], Request())
        _read_some(list(made.checkpoint.tensors.values()))


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _read(checkpoint: Checkpoint, path: Path) -> None:
    given = sum(file.stat().st_size for file in _folder(path).rglob("*") if file.is_file())
    tensors = list(checkpoint.tensors.values())
    declared = sum(tensor.info.nbytes for tensor in tensors)
    assert declared <= GROWTH * given + GROWTH_ROOM, f"{declared} bytes out of {given}"
    _read_some(tensors)
    checkpoint.check()


def _read_some(tensors: list[LazyTensor]) -> None:
    for tensor in [*tensors[: MAX_TENSORS // 2], *tensors[MAX_TENSORS // 2 :][-MAX_TENSORS // 2 :]]:
        info = tensor.info
        count = min(info.n_rows, 3, MAX_READ // max(1, info.row_nbytes))
        for start in {0, info.n_rows - count}:
            rows = tensor.rows(start, start + count)
            assert rows.dtype == np.uint8 and rows.shape == (count, info.row_nbytes), (info, rows.shape)
            assert rows.tobytes() == tensor.rows(start, start + count).tobytes(), f"{info}: not repeatable"
