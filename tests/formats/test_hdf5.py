"""HDF5 and Keras files: real ones against h5py, fixtures that h5py made, damaged and hostile ones, our output."""

from __future__ import annotations

import json
import shutil
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hdf5_files import FIXTURES, archive

from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, MissingPart, UnsupportedFeature, UsageError
from converter.events import Dropped
from converter.formats.base import WriteOptions
from converter.formats.hdf5 import data as hdf5_data
from converter.formats.hdf5 import file as hdf5_file
from converter.formats.hdf5 import writer
from converter.formats.hdf5.data import fletcher32
from converter.formats.hdf5.file import Hdf5File, lookup3
from converter.formats.hdf5.writer import WRITTEN
from converter.formats.registry import open_checkpoint
from converter.request import Source
from converter.storage import output
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, from_array

TREES = ("old", "v108")
NEWER = ("v110", "v200")
RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
REAL = (
    "keras-h5-face/tiny_XCEPTION_KDEF.hdf5",
    "keras-h5-face/fer2013_mini_XCEPTION.102-0.66.hdf5",
    "keras-h5-textgenrnn/textgenrnn_weights.hdf5",
    "derived-tf-face-emotion/model.weights.h5",
    "derived-tf-face-emotion/model.keras3.h5",
)
HOLES = np.full((5, 5), 7, "<f4")
HOLES[0, 0] = 1
EXPECTED: dict[str, tuple[str, Any]] = {
    "a/plain": ("F32", np.arange(12).reshape(3, 4)),
    "a/tied": ("F32", np.arange(12).reshape(3, 4)),
    "soft": ("F32", np.arange(12).reshape(3, 4)),
    "a/deep/big": ("F64", np.arange(6)),
    "b/half": ("F16", np.arange(3)),
    "b/bool": ("BOOL", np.array([True, False, True])),
    "b/scalar": ("I64", np.array(-5)),
    "b/empty": ("U8", np.zeros((0, 3))),
    "b/unwritten": ("F32", np.full((2, 3), 2.5)),
    "bf16": ("BF16", np.arange(6)),
    "packed": ("I32", np.arange(105).reshape(7, 5, 3)),
    "holes": ("F32", HOLES),
    "compact": ("U16", np.array([1, 2, 3])),
}


def opened(path: Path, data: bytes) -> Checkpoint:
    path.write_bytes(data)
    return open_checkpoint(path)


def read_all(path: Path) -> dict[str, bytes]:
    with open_checkpoint(path) as checkpoint:
        found = {name: tensor.array().tobytes() for name, tensor in checkpoint.tensors.items()}
        checkpoint.check()
        return found


def saved(target: Path, tensors: dict[str, LazyTensor], **metadata: str) -> Path:
    output.write(writer.layout(Checkpoint("test", target, None, tensors, metadata=metadata), target, WriteOptions()))
    return target


# ------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("name", TREES)
def test_tree(name: str) -> None:
    with open_checkpoint(FIXTURES / f"{name}.h5") as checkpoint:
        assert set(checkpoint.tensors) == set(EXPECTED)
        for tensor in checkpoint.tensors.values():
            dtype, values = EXPECTED[tensor.name]
            assert (tensor.info.dtype.name, tensor.info.shape) == (dtype, values.shape)
            assert (tensor.array() == values.astype(tensor.info.dtype.numpy)).all(), tensor.name
        assert checkpoint.metadata == {
            "text": "héllo", "list": '["a", "bb"]', "fixed": "abc", "number": "1.5", "a@ids": "[0, 1, 2]",
        }  # fmt: skip
        assert checkpoint.events == (Dropped("b/words", "text, no tensor"),)


@pytest.mark.parametrize(
    ("make", "label"),
    [
        (lambda h5py, file: file.create_dataset("odd", data=["a", "b"]), "text"),
        (lambda h5py, file: file.create_dataset("odd", data=np.zeros(2, [("a", "i4"), ("b", "f4")])), "records"),
        (lambda h5py, file: file.create_dataset("odd", data=np.zeros(2, "c8")), "records"),
        (lambda h5py, file: file.create_dataset("odd", (2,), dtype=h5py.ref_dtype), "references"),
        (lambda h5py, file: file.create_dataset("odd", (2,), dtype=h5py.regionref_dtype), "references"),
        (lambda h5py, file: file.create_dataset("odd", (2,), dtype=h5py.vlen_dtype(np.int32)), "lists"),
        (lambda h5py, file: file.create_dataset("odd", data=np.zeros(2, "V7")), "opaque bytes"),
        (lambda h5py, file: file.create_dataset("odd", data=h5py.Empty("f4")), "nothing"),
        (lambda h5py, file: file.create_group("odd"), None),
        (lambda h5py, file: file.__setitem__("odd", np.dtype("f8")), None),
    ],
)
def test_members_that_are_no_tensors_are_left_out(make: Any, label: str | None, tmp_path: Path) -> None:
    """And named, but for groups and types, which hold nothing; a file of them alone is refused."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.ones((2, 3), "f4")
        make(h5py, file)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert checkpoint.events == ((Dropped("odd", f"{label}, no tensor"),) if label else ())
    with h5py.File(path, "w") as file:
        make(h5py, file)
    with pytest.raises(UnsupportedFeature, match="no dataset of numbers"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", NEWER)
def test_newer_structures(name: str) -> None:
    """Links and attributes in fractal heaps, and every chunk index, with filters and without."""
    with open_checkpoint(FIXTURES / f"{name}.h5") as checkpoint:
        found = {name: tensor.array() for name, tensor in checkpoint.tensors.items()}
        many = {f"many/{'long' * 20}{i}": i for i in range(12)}
        assert {name: int(found.pop(name)) for name in many} == many
        ways = ("fixed", "grows", "grows_down", "both", "single")
        assert set(found) == {"implicit", *ways, *(f"{way}_packed" for way in ways)}
        for each, values in found.items():
            assert values.tolist() == np.arange(35).reshape(7, 5).tolist(), each
        numbers = {f"attribute{i}": str(i) for i in range(12)}
        assert checkpoint.metadata == {**numbers, "large": json.dumps(["x" * 100] * 50)}
        assert not checkpoint.events


def test_rows_of_chunks() -> None:
    """Any range of rows, within a band of chunks and across their edges."""
    with open_checkpoint(FIXTURES / "old.h5") as checkpoint:
        tensor = checkpoint.tensors["packed"]
        whole = tensor.array().reshape(35, 3)
        for start, stop in ((0, 1), (14, 16), (13, 34), (34, 35), (5, 5)):
            assert tensor.rows(start, stop).view("<i4").tolist() == whole[start:stop].tolist()


def test_contiguous_is_mapped() -> None:
    with open_checkpoint(FIXTURES / "old.h5") as checkpoint:
        assert not checkpoint.tensors["a/plain"].rows(0, 3).flags.owndata
        assert not checkpoint.tensors["a/plain"].rows(0, 3).flags.writeable


@pytest.mark.parametrize("name", REAL)
def test_real_files_against_h5py(data: Path, name: str) -> None:
    h5py = pytest.importorskip("h5py")
    path, seen = data / name, set()
    with open_checkpoint(Source(path, key=".")) as checkpoint, h5py.File(path) as file:
        for tensor in checkpoint.tensors.values():
            place = tensor.source.split("@")[1]
            reference = file[place]
            assert tensor.info.shape == reference.shape
            assert tensor.array().tobytes() == reference[()].tobytes(), place
            seen.add(place)
        datasets: list[str] = []
        file.visititems(lambda place, each: datasets.append(place) if isinstance(each, h5py.Dataset) else None)
        assert seen == set(datasets)
        for key in file.attrs:
            if isinstance(file.attrs[key], str):
                assert checkpoint.metadata[key] == file.attrs[key]


def test_keras_archive_has_the_weights_of_the_h5(data: Path) -> None:
    """The three files of one model hold the same numbers; the names of two of them are the same."""
    folder = data / "derived-tf-face-emotion"
    archive, weights = read_all(folder / "model.keras"), read_all(folder / "model.weights.h5")
    assert archive == weights
    assert sorted(archive.values()) == sorted(read_all(folder / "model.keras3.h5").values())


@pytest.mark.parametrize("version", ["earliest", "v108"])
@pytest.mark.parametrize(
    "shape, chunks", [((9, 7), (4, 3)), ((5,), (5,)), ((3, 4, 5), (1, 4, 2)), ((70, 31), (64, 31))]
)
def test_chunks_against_h5py(tmp_path: Path, version: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    h5py = pytest.importorskip("h5py")
    values = np.random.default_rng(0).integers(0, 9, shape, dtype="<i2")
    with h5py.File(tmp_path / "x.h5", "w", libver=(version, "v108")) as file:
        for i in range(16):
            packing = {"shuffle": bool(i & 1), "fletcher32": bool(i & 2), "compression": "gzip" if i & 4 else None}
            stored = values.astype(">i2" if i & 8 else "<i2")
            file.create_dataset(f"g{i // 8}/g{i % 8}/x", data=stored, chunks=chunks, **packing)
    found = read_all(tmp_path / "x.h5")
    assert len(found) == 16 and set(found.values()) == {values.tobytes()}


AXES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5), st.sampled_from((0, 3, None))), min_size=1, max_size=3)


@RELAXED
@given(
    axes=AXES,
    version=st.sampled_from(("earliest", "v108", "v110", "v114", "v200")),
    packing=st.fixed_dictionaries(
        {"shuffle": st.booleans(), "fletcher32": st.booleans(), "compression": st.sampled_from((None, "gzip", "lzf"))}
    ),
    dtype=st.sampled_from(("<i1", "<u2", ">i4", "<f8")),
    holes=st.booleans(),
)
def test_any_chunks_against_h5py(
    tmp_path: Path,
    axes: list[tuple[int, int, int | None]],
    version: str,
    packing: dict[str, Any],
    dtype: str,
    holes: bool,
) -> None:
    """Every way a dataset may grow, every chunk shape, every filter; chunks that were never written are the fill."""
    h5py = pytest.importorskip("h5py")
    shape, chunks = tuple(n for n, _, _ in axes), tuple(min(n, step) for n, step, _ in axes)
    most = tuple(None if more is None else n + more for n, _, more in axes)
    values = np.random.default_rng(1).integers(0, 99, shape).astype(dtype)
    with h5py.File(tmp_path / "x.h5", "w", libver=(version, version if version != "earliest" else "v200")) as file:
        made = file.create_dataset("x", shape, dtype, chunks=chunks, maxshape=most, fillvalue=7, **packing)
        if holes:
            made[shape[0] // 2] = values[shape[0] // 2]
        else:
            made[...] = values
        expected = made[()]
    assert read_all(tmp_path / "x.h5") == {"x": expected.astype(np.dtype(dtype).newbyteorder("<")).tobytes()}


@pytest.mark.parametrize("count", [9, 1000])
def test_heaps_against_h5py(tmp_path: Path, count: int) -> None:
    """Groups and attributes that need one block, blocks of blocks, trees of several levels; in order or not."""
    h5py = pytest.importorskip("h5py")
    texts = {f"{'key' * (i % 9)}{i}": f"{i}" * (i % 50) for i in range(count)}
    texts["large"] = "x" * 70_000
    for order in (False, True):
        path = tmp_path / f"{order}.h5"
        with h5py.File(path, "w", libver="latest", track_order=order) as file:
            for i in range(count):
                file[f"{'link' * (i % 60)}{i}"] = np.int32(i)
            for key, value in texts.items():
                file.attrs[key] = np.bytes_(value.encode()) if value else value
            links = {name: int(file[name][()]) for name in file}
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.metadata == texts
            assert {name: int(tensor.array()) for name, tensor in checkpoint.tensors.items()} == links
            assert not order or list(checkpoint.tensors) == list(links)


def test_pages_of_chunks_against_h5py(tmp_path: Path) -> None:
    """Indexes so long that they come in pages, some of which were never written."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        for name, size, most in (("fixed", 5_000, 5_000), ("grows", 170_000, None)):
            made = file.create_dataset(name, (size,), "u1", chunks=(1,), maxshape=(most,), fillvalue=9)
            for start in (0, 7, 2_040, 4_900, 131_050, 132_000, 139_000, 166_000, 169_950):
                made[start : start + 50] = np.arange(50)[: max(size - start, 0)]
        expected = {name: file[name][()].tobytes() for name in file}
    raw = (tmp_path / "x.h5").read_bytes()
    assert b"FADB" in raw and b"EASB" in raw
    assert read_all(tmp_path / "x.h5") == expected


def test_lzf_against_h5py(tmp_path: Path) -> None:
    """Runs, copies near and far, copies that overlap themselves, and what does not pack."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, values in {
            "same": np.full(9000, 3, "<i4"),
            "pattern": np.tile(rng.integers(0, 255, 700, "u1"), 50),
            "few": rng.integers(0, 2, 30_000, "u1"),
            "noise": rng.integers(0, 255, 5000, "u1"),
        }.items():
            file.create_dataset(name, data=values, chunks=values.shape, compression="lzf")
        expected = {name: file[name][()].tobytes() for name in file}
    assert read_all(tmp_path / "x.h5") == expected


SCALED = [
    (dtype, factor)
    for dtype in ("i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", ">i4", ">u2", "<f4", "<f8", ">f4", ">f8")
    for factor in ((0, 1, 3, 6) if "f" in dtype else (0, 3, 7))
]


@pytest.mark.parametrize(("dtype", "factor"), SCALED)
def test_scale_offset_against_h5py(dtype: str, factor: int, tmp_path: Path) -> None:
    """Integers with the bits that they need or were given, floats by decimals; equal values, wide ones, fill values."""
    h5py = pytest.importorskip("h5py")
    rng, kind = np.random.default_rng(5), np.dtype(dtype)
    if kind.kind == "f":
        values = {
            "small": rng.normal(size=1000), "same": np.full(1000, 1.25), "wide": rng.normal(size=1000) * 1e9,
            "fills": rng.choice([5, 9, 0, 20.5], 1000), "zeros": np.zeros(1000),
        }  # fmt: skip
    else:
        info, native = np.iinfo(kind), kind.newbyteorder("=")
        values = {
            "small": rng.integers(max(info.min, -50), 100, 1000), "same": np.full(1000, 7), "zeros": np.zeros(1000),
            "wide": rng.integers(info.min, info.max, 1000, native, endpoint=True),
            "fills": rng.choice([5, 9, 20], 1000),
        }  # fmt: skip
    packings: dict[str, dict[str, Any]] = {
        "": {}, "fill": {"fillvalue": 5}, "gzip": {"compression": "gzip"},
        "lzf": {"compression": "lzf", "shuffle": True},
    }  # fmt: skip
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, each in values.items():
            for title, packing in packings.items():
                file.create_dataset(
                    f"{name} {title}", data=each.astype(dtype), chunks=(300,), scaleoffset=factor, **packing
                )
        file.create_dataset(
            "two axes", data=rng.integers(0, 9, (20, 30)).astype(dtype), chunks=(7, 8), scaleoffset=factor
        )
    with h5py.File(tmp_path / "x.h5") as file:
        expected = {name: file[name][()].astype(kind.newbyteorder("<")).tobytes() for name in file}
    assert read_all(tmp_path / "x.h5") == expected


def test_scale_offset_that_lies(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    header = (5).to_bytes(4, "little") + b"\x08" + bytes(16)
    chunks = (b"", header[:20], header, header + bytes(9), b"\x21" + header[1:] + bytes(99), b"\xff" * 99)
    for raw in chunks:
        with h5py.File(path, "w") as file:
            made = file.create_dataset("x", (16,), "<i4", chunks=(16,), scaleoffset=0)
            made.id.write_direct_chunk((0,), raw or b"x")
        with pytest.raises(CorruptFile, match="scaled values, too few"):
            read_all(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(16, dtype="<i4"), chunks=(16,), scaleoffset=0)
    whole = path.read_bytes()
    told = np.array([2, 0, 16, 0, 4, 1, 0, 1], "<u4").tobytes()
    for at, value, kind in (
        (8, 17, CorruptFile),
        (16, 2, CorruptFile),
        (0, 1, UnsupportedFeature),
        (12, 2, UnsupportedFeature),
    ):
        raw = bytearray(whole)
        raw[raw.index(told) + at] = value
        path.write_bytes(raw)
        with pytest.raises(kind, match="scale-offset"):
            read_all(path)


def test_many_links_against_h5py(tmp_path: Path) -> None:
    """Group trees of more than one level."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w", libver="earliest") as file:
        for i in range(600):
            file[f"x{i}"] = np.int32(i)
    found = read_all(tmp_path / "x.h5")
    assert {name: int.from_bytes(raw, "little") for name, raw in found.items()} == {f"x{i}": i for i in range(600)}


# ------------------------------------------------------------------------------------------------- Keras


def test_legacy_names_and_key() -> None:
    path = FIXTURES / "legacy.h5"
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["dense/bias:0", "dense/kernel:0", "inner/conv/kernel:0"]
        assert checkpoint.metadata["model_config"] == '{"class_name": "Lambda", "config": "4wAA"}'
        assert "--key . takes all" in str(checkpoint.events[0])
    with open_checkpoint(Source(path, key=".")) as checkpoint:
        assert "optimizer_weights/iter:0" in checkpoint.tensors
    with open_checkpoint(Source(path, key="optimizer_weights")) as checkpoint:
        assert list(checkpoint.tensors) == ["optimizer_weights/iter:0"]
    with pytest.raises(UsageError, match="model_weights"):
        open_checkpoint(Source(path, key="nothing"))


def test_layers_get_their_own_names() -> None:
    with open_checkpoint(FIXTURES / "weights.h5") as checkpoint:
        values = {name: tensor.array().max() for name, tensor in checkpoint.tensors.items()}
        assert values == {"layers/first/vars/0": ord("f"), "layers/dense/vars/0": ord("d")}
        assert [tensor.source.split("@")[1] for tensor in checkpoint.tensors.values()] == [
            "layers/dense/vars/0", "layers/dense_1/vars/0",
        ]  # fmt: skip


def test_a_listed_weight_is_missing(tmp_path: Path) -> None:
    raw = (FIXTURES / "legacy.h5").read_bytes()
    damaged = raw.replace(b"dense/bias:0", b"dense/bias:9")
    assert damaged != raw
    with pytest.raises(MissingPart, match="bias:9"):
        opened(tmp_path / "x.h5", damaged)


@pytest.mark.parametrize("size", [512, 1024, 8192])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_a_user_block_before_the_file(tmp_path: Path, version: str, size: int) -> None:
    h5py = pytest.importorskip("h5py")
    path, rows = tmp_path / "m.h5", np.arange(1000, dtype="f8")
    with h5py.File(path, "w", userblock_size=size, libver=version) as file:
        file["a/w"] = np.arange(6, dtype="f4").reshape(2, 3)
        file.create_dataset("c", data=rows, chunks=(100,), compression="gzip")
    whole = path.read_bytes()
    path.write_bytes(b"#!" + whole[2:])
    assert read_all(path) == {"a/w": np.arange(6, dtype="<f4").tobytes(), "c": rows.tobytes()}
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptFile, match="should have"):
        open_checkpoint(path)
    path.write_bytes(whole[size:])
    with pytest.raises(UnsupportedFeature, match="where its superblock lies"):
        open_checkpoint(path)


def test_keras_archive(tmp_path: Path) -> None:
    """Weights in place, configurations as they are (not even parsed), assets reported, the checksum verified."""
    weights = (FIXTURES / "weights.h5").read_bytes()
    members = {"metadata.json": b"{}", "config.json": b"[" * 9999, "assets/vocabulary.txt": b"x"}
    members["assets/table.bin"] = b"\xff"
    members["model.weights.h5"] = weights
    path = archive(tmp_path / "m.keras", members)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "keras" and len(checkpoint.tensors) == 2
        assert checkpoint.metadata["model_config"] == "[" * 9999
        assert checkpoint.metadata["assets/vocabulary.txt"] == "x"
        assert [event.name for event in checkpoint.events if isinstance(event, Dropped)] == ["assets/table.bin"]
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.full(4, ord("f"), "<f4").tobytes())] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptFile, match="CRC-32"):
        read_all(path)
    with pytest.raises(MissingPart, match=r"model\.weights\.h5"):
        open_checkpoint(archive(tmp_path / "n.keras", {"metadata.json": b"{}"}))


def test_keras_archive_whose_weights_are_deflated(tmp_path: Path) -> None:
    """As who packs the folder again makes it: the same tensors, the checksum verified, no more than it can mean."""
    weights = (FIXTURES / "weights.h5").read_bytes()
    members = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": weights}
    path = archive(tmp_path / "d.keras", members, zipfile.ZIP_DEFLATED)
    assert read_all(path) == read_all(archive(tmp_path / "s.keras", members))
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        sum_ = file.getinfo("model.weights.h5").CRC.to_bytes(4, "little")
    for at in (raw.index(sum_), raw.rindex(sum_)):
        raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptFile, match="CRC-32"):
        read_all(path)


def test_keras_archive_that_unpacks_to_too_much(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["w"] = np.zeros(20 << 20, "<f4")
    members = {"metadata.json": b"{}", "model.weights.h5": (tmp_path / "x.h5").read_bytes()}
    with pytest.raises(CorruptFile, match="would unpack to"):
        open_checkpoint(archive(tmp_path / "zeros.keras", members, zipfile.ZIP_DEFLATED))
    with h5py.File(tmp_path / "x.h5", "w") as file:  # twice: a chunk that is packed, in a member that is
        file.create_dataset("w", (60 << 20,), "<f4", chunks=(1 << 20,), compression="gzip", fillvalue=1)[:] = 0
    members["model.weights.h5"] = (tmp_path / "x.h5").read_bytes()
    with pytest.raises(CorruptFile, match="its datasets declare"):
        open_checkpoint(archive(tmp_path / "twice.keras", members, zipfile.ZIP_DEFLATED))


# ------------------------------------------------------------------------------------------------- what is refused


def external_link(h5py: Any, file: Any, folder: Path) -> None:
    file["link"] = h5py.ExternalLink("other.h5", "/x")


def external_storage(h5py: Any, file: Any, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(16))
    file.create_dataset("x", (4,), "<f4", external=[(str(folder / "secret"), 0, 16)])


def virtual(h5py: Any, file: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((4,), "<f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(4,))
    file.create_virtual_dataset("x", layout)


def huge(h5py: Any, file: Any, folder: Path) -> None:
    file.create_dataset("x", (1 << 20, 1 << 20), "<f4")


def huge_text(h5py: Any, file: Any, folder: Path) -> None:
    file.create_dataset("x", (), "S2000000000")


def huge_chunks(h5py: Any, file: Any, folder: Path) -> None:
    file.create_dataset("x", (1 << 20, 1 << 20), "<f4", chunks=(1024, 1024))


def cycle(h5py: Any, file: Any, folder: Path) -> None:
    file.create_group("a/b")
    file["a/b/c"] = file["a"]


def dangling(h5py: Any, file: Any, folder: Path) -> None:
    file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")


def deep(h5py: Any, file: Any, folder: Path) -> None:
    file["/".join("a" * 300)] = 1


Maker = Callable[[Any, Any, Path], None]
REFUSED: tuple[tuple[Maker, type[ConverterError], str], ...] = (
    (external_link, UnsupportedFeature, "another file"),
    (external_storage, UnsupportedFeature, "another file"),
    (virtual, UnsupportedFeature, "other files"),
    (huge, CorruptFile, "declare"),
    (huge_text, CorruptFile, "declare"),
    (huge_chunks, CorruptFile, "declare"),
    (cycle, CorruptFile, "more than one way"),
    (dangling, UnsupportedFeature, "leads to no dataset"),
    (deep, CorruptFile, "groups within groups"),
)


@pytest.mark.parametrize("make, error, text", REFUSED, ids=[make.__name__ for make, _, _ in REFUSED])
def test_refused(tmp_path: Path, make: Maker, error: type[ConverterError], text: str) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["good"] = np.arange(3)
        make(h5py, file, tmp_path)
    with pytest.raises(error, match=text):
        open_checkpoint(path)
    assert main([str(path), str(tmp_path / "out.safetensors")]) == error.exit_code
    assert not (tmp_path / "out.safetensors").exists()


def test_a_chunk_that_lies(tmp_path: Path) -> None:
    """It inflates to more or less than it must, or its checksum is wrong: never a value."""
    h5py = pytest.importorskip("h5py")
    for raw in (zlib.compress(bytes(1 << 24)), zlib.compress(bytes(9)), b"abc"):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            made = file.create_dataset("x", (16,), "<f4", chunks=(16,), compression="gzip")
            made.id.write_direct_chunk((0,), raw)
        with pytest.raises(CorruptFile, match=r"inflate|deflated"):
            read_all(tmp_path / "x.h5")
    for raw in (b"\x04abc", b"\x20\0", b"\x00a\xe0", b"\x00a" + b"\xe0\xff\0" * 9, b"\x00a"):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            made = file.create_dataset("x", (16,), "<f4", chunks=(16,), compression="lzf")
            made.id.write_direct_chunk((0,), raw)
        with pytest.raises(CorruptFile, match="LZF"):
            read_all(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=np.arange(64), chunks=(64,), fletcher32=True)
    raw_file = bytearray((tmp_path / "x.h5").read_bytes())
    raw_file[raw_file.index(np.arange(64).tobytes()) + 8] ^= 4
    (tmp_path / "x.h5").write_bytes(raw_file)
    with pytest.raises(CorruptFile, match="Fletcher-32"):
        read_all(tmp_path / "x.h5")


def resealed(raw: bytes, start: int, nbytes: int) -> bytes:
    """The file with the checksum of the structure of `nbytes` at `start` made right again."""
    end = start + nbytes - 4
    return raw[:end] + lookup3(raw[start:end]).to_bytes(4, "little") + raw[end + 4 :]


def test_trees_and_heaps_that_lie(tmp_path: Path) -> None:
    """With right checksums: a node that is its own child, counts and sizes beyond the file, objects beyond blocks."""
    raw = (FIXTURES / "v200.h5").read_bytes()
    tree, heap = raw.index(b"BTHD"), raw.index(b"FRHP")
    array, extensible = raw.index(b"FAHD"), raw.index(b"EAHD")
    lies: tuple[tuple[int, int, int, bytes], ...] = (
        (tree, 38, 12, b"\xff\x7f"),  # depth
        (tree, 38, 6, b"\x0b\0\0\0"),  # node size
        (tree, 38, 24, b"\xff\xff"),  # records of the root
        (tree, 38, 26, b"\xff" * 8),  # of all nodes
        (tree, 38, 16, tree.to_bytes(8, "little")),  # the root
        (heap, 146, 5, b"\1\0"),  # bytes of an identifier
        (heap, 146, 110, b"\xff\xff"),  # blocks in a row
        (heap, 146, 112, (1 << 62).to_bytes(8, "little")),  # size of the first blocks
        (heap, 146, 120, (1 << 62).to_bytes(8, "little")),  # size of the largest
        (heap, 146, 140, b"\xff\xff"),  # rows of the root
        (heap, 146, 132, heap.to_bytes(8, "little")),  # the root
        (array, 28, 6, b"\0"),  # bytes of an element
        (array, 28, 8, b"\xff" * 7 + b"\x7f"),  # elements
        (array, 28, 16, array.to_bytes(8, "little")),  # the block
        (extensible, 72, 7, b"\xff"),  # bits of a number
        (extensible, 72, 9, b"\x80"),  # elements of the smallest block
        (extensible, 72, 10, b"\x80"),  # addresses in the index
        (extensible, 72, 60, extensible.to_bytes(8, "little")),  # the index
    )
    for start, nbytes, at, piece in lies:
        assert resealed(raw, start, nbytes) == raw, "the structure has not this size"
        lie = raw[: start + at] + piece + raw[start + at + len(piece) :]
        with pytest.raises(ConverterError):
            opened(tmp_path / "x.h5", resealed(lie, start, nbytes)).close()


def test_bands_are_decoded_side_by_side_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that want two bands meet inside their decoding; those that want the same one share what comes out."""
    both, decode, decoded = threading.Barrier(2), hdf5_data._band, list[int]()

    def met(of: hdf5_data.Dataset, start: int) -> Any:
        decoded.append(start)
        both.wait(timeout=30)
        return decode(of, start)

    monkeypatch.setattr(hdf5_data, "_band", met)
    with open_checkpoint(FIXTURES / "old.h5") as checkpoint, ThreadPoolExecutor(4) as pool:
        tensor = checkpoint.tensors["packed"]
        rows = [(0, 1), (16, 17), (0, 2), (16, 18)]  # a band is 15 of them
        found = list(pool.map(lambda each: tensor.rows(*each).tobytes(), rows))
    assert sorted(decoded) == [0, 3]
    whole = np.arange(105, dtype="<i4").reshape(35, 3)
    assert found == [whole[start:stop].tobytes() for start, stop in rows]


def test_chunks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_file, "MAX_CHUNKS", 30)
    with pytest.raises(UnsupportedFeature, match="more than 30 chunks"):
        open_checkpoint(FIXTURES / "v200.h5")
    monkeypatch.setattr(hdf5_file, "MAX_SUMMED", 3000)
    with pytest.raises(UnsupportedFeature, match="more than 3000 bytes"):
        open_checkpoint(FIXTURES / "v200.h5")


def test_nested_enumerations_do_not_recurse(tmp_path: Path) -> None:
    target = saved(tmp_path / "x.h5", {"x": from_array("x", np.ones(2), DTYPES["BOOL"], "test")})
    raw = target.read_bytes()
    at = raw.index(b"\x38\2\0\0\1\0\0\0\x10")
    body = bytearray(raw)
    body[at + 8] = 0x38
    start = raw.rindex(b"OHDR", 0, at)
    end = start + 10 + int.from_bytes(raw[start + 6 : start + 10], "little")
    body[end : end + 4] = lookup3(bytes(body[start:end])).to_bytes(4, "little")
    with pytest.raises(CorruptFile, match="enumeration"):
        opened(target, bytes(body))


@pytest.mark.parametrize("name", (*TREES, *NEWER))
def test_truncated_anywhere(tmp_path: Path, name: str) -> None:
    raw = (FIXTURES / f"{name}.h5").read_bytes()
    for length in (*range(0, len(raw), 997), len(raw) - 1):
        with pytest.raises(ConverterError):
            opened(tmp_path / "x.h5", raw[:length])
    with pytest.raises(CorruptFile, match="appended"):
        opened(tmp_path / "x.h5", raw + b"x")


@pytest.mark.parametrize("checked", [True, False], ids=["checksums", "no-checksums"])
@RELAXED
@given(name=st.sampled_from((*TREES, *NEWER, "legacy")), where=st.data())
def test_mutations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool, name: str, where: st.DataObject
) -> None:
    """Changed bytes give values or one of our errors; also where an attacker has made the checksums right."""
    if not checked:
        monkeypatch.setattr(Hdf5File, "checked", lambda self, data, what: data[:-4])
    raw = bytearray((FIXTURES / f"{name}.h5").read_bytes())
    for _ in range(where.draw(st.integers(1, 6))):
        at = where.draw(st.integers(0, len(raw) - 8))
        piece = where.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from((b"\xff" * 8, bytes(8)))))
        raw[at : at + len(piece)] = piece
    path = tmp_path / "x.h5"
    path.write_bytes(raw)
    try:
        read_all(path)
    except ConverterError as error:
        assert len(str(error).splitlines()) <= 3


def test_checksums() -> None:
    """The sums of published examples: Jenkins' own for lookup3, the usual one for Fletcher-32."""
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    words = np.frombuffer(b"ab", np.uint8)
    assert fletcher32(words) == (0x6162, 0x6162)
    large = np.random.default_rng(1).integers(0, 256, (1 << 21) + 3, dtype=np.uint8)
    first = second = 0
    for word in np.append(large, np.uint8(0)).view(">u2").tolist():
        first = (first + word) % 65535
        second = (second + first) % 65535
    assert fletcher32(large) == (first, second)


# ------------------------------------------------------------------------------------------------- writing


def one_of_each() -> dict[str, LazyTensor]:
    values = np.arange(24).reshape(2, 3, 4)
    tensors = [
        from_array(f"{name[0]}/{name}", values % 2 if name == "BOOL" else values, DTYPES[name], "test")
        for name in WRITTEN
    ]
    tensors += [from_array("scalar", np.array(2.5), DTYPES["F32"], "test")]
    tensors += [from_array("empty", np.zeros((0, 4)), DTYPES["F16"], "test")]
    return {tensor.name: tensor for tensor in tensors}


def test_written_and_read_back(tmp_path: Path) -> None:
    tensors = one_of_each()
    texts = {"a": "b", "config": "ü" * 70_000, "empty@note": "of a dataset", "F@k": "of a group", "no@where": ""}
    target = saved(tmp_path / "x.h5", tensors, **texts)
    with open_checkpoint(target) as checkpoint:
        assert checkpoint.metadata == texts
        assert {name: tensor.info for name, tensor in checkpoint.tensors.items()} == {
            name: tensor.info for name, tensor in tensors.items()
        }
        assert all(checkpoint.tensors[name].array().tobytes() == t.array().tobytes() for name, t in tensors.items())


def test_written_for_h5py(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    tensors = one_of_each()
    target = saved(tmp_path / "x.h5", tensors, text="héllo", **{"F@k": "v"})
    with h5py.File(target) as file:
        assert file.attrs["text"] == "héllo" and file["F"].attrs["k"] == "v"
        for name, tensor in tensors.items():
            found = file[name]
            assert found.shape == tensor.info.shape
            assert found[()].tobytes() == tensor.array().tobytes()
            assert found.id.get_offset() is None or found.id.get_offset() % 64 == 0
        assert file["B/BOOL"].dtype == bool and file["F/F16"].dtype == np.float16
        assert file["B/BF16"].attrs["dtype"] == "bfloat16"
        assert file["B/BF16"][()].view(ml_dtypes.bfloat16).astype("f4").max() == 23


def test_weights_go_back_where_keras_looks(tmp_path: Path) -> None:
    """Also through another format: the groups are called by class again, with the layers' names beside them."""
    assert main([str(FIXTURES / "weights.h5"), str(tmp_path / "x.safetensors")]) == 0
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "x.weights.h5")]) == 0
    with open_checkpoint(FIXTURES / "weights.h5") as before, open_checkpoint(tmp_path / "x.weights.h5") as after:
        assert after.metadata == before.metadata
        for name, tensor in before.tensors.items():
            again = after.tensors[name]
            assert again.source.split("@")[1] == tensor.source.split("@")[1]
            assert again.array().tobytes() == tensor.array().tobytes()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    one = np.ones((2, 2))
    for names in (("a", "a/b"), ("a/b", "a"), ("a//b",), ("../x",), ("/a",)):
        tensors = {name: from_array(name, one, DTYPES["F32"], "test") for name in names}
        with pytest.raises(UnsupportedFeature):
            saved(tmp_path / "x.h5", tensors)
    with pytest.raises(UnsupportedFeature, match="--dtype"):
        saved(tmp_path / "x.h5", {"a": from_array("a", one, DTYPES["C64"], "test")})
    assert not list(tmp_path.iterdir())


def test_command_line_round_trip(tmp_path: Path) -> None:
    """Through safetensors and back: the same tensors; the input stays as it was."""
    source = tmp_path / "in.h5"
    shutil.copy(FIXTURES / "old.h5", source)
    before = source.read_bytes()
    assert main([str(source), str(tmp_path / "x.safetensors")]) == 0
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "out.h5")]) == 0
    assert read_all(tmp_path / "out.h5") == read_all(source)
    assert source.read_bytes() == before
