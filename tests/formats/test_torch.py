"""PyTorch files by their bytes: every way of being wrong is refused, nothing runs, what is right comes back exactly."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import torch_files as tf
from support.builders import CONFIG, examples, llama_folder, llama_weights
from support.torch_files import DATA, Member, W, dictionary, members, storage, tensor, text, tuple_of, zipped
from support.torch_tensors import ALL_TYPES, checkpoint_of, read

from converter.checkpoint import Checkpoint
from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, MissingPart, UnsupportedFeature, UsageError
from converter.events import Dropped, MetadataLost, Note
from converter.formats.base import WriteOptions
from converter.formats.registry import open_checkpoint, source_format
from converter.formats.torch import pickle as pickle_machine
from converter.formats.torch.checkpoint import open_torch, open_torch_key, sniff
from converter.formats.torch.writer import layout
from converter.request import Source
from converter.storage import output
from converter.storage.checksums import CRC32
from converter.storage.files import InMemory, MappedFile
from converter.storage.windows import Windows
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo

ARRAY = np.arange(6, dtype="<f4").reshape(2, 3)
PARTS = members(dictionary({"w": W}), {"0": DATA})
UNTYPED = storage("UntypedStorage", "0", 24, module="torch.storage")


def opened(tmp_path: Path, content: bytes, key: str | None = None) -> Checkpoint:
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    return open_torch(path) if key is None else open_torch_key(path, key)


def refused(tmp_path: Path, content: bytes, kind: type[ConverterError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught, opened(tmp_path, content) as checkpoint:
        read(checkpoint)
    message = str(caught.value)
    assert "m.pt" in message or "m.pt" in message.replace("\\", "")
    assert len(message.splitlines()) <= 3
    assert all(line.isprintable() and len(line) < 400 for line in message.splitlines())


# ------------------------------------------------------------------------------------- what is right


def test_one_tensor(tmp_path: Path) -> None:
    with opened(tmp_path, tf.archive()) as checkpoint:
        (found,) = checkpoint.tensors.values()
        assert found.info == TensorInfo("w", (2, 3), DTYPES["F32"])
        assert np.array_equal(found.array(), ARRAY)
        assert np.array_equal(found.rows(1, 2).view("<f4"), [[3, 4, 5]])
        assert checkpoint.dialect is None
        assert checkpoint.metadata == {"format": "pt"}
        assert not checkpoint.events


def test_stream(tmp_path: Path) -> None:
    with opened(tmp_path, tf.stream()) as checkpoint:
        assert np.array_equal(read(checkpoint)["w"], ARRAY)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("descriptor", [False, True])
@pytest.mark.parametrize("zip64", [None, {}])
def test_ways_to_zip(tmp_path: Path, deflate: bool, descriptor: bool, zip64: Mapping[str, int] | None) -> None:
    parts = [part.with_(deflate=deflate, descriptor=descriptor) for part in PARTS.values()]
    with opened(tmp_path, zipped(parts, zip64=zip64)) as checkpoint:
        assert np.array_equal(read(checkpoint)["w"], ARRAY)


def test_folders_in_the_archive_are_nothing(tmp_path: Path) -> None:
    parts = [Member("archive/", b""), *PARTS.values()]
    with opened(tmp_path, zipped(parts)) as checkpoint:
        assert read(checkpoint).keys() == {"w"}


def test_shared_and_tied(tmp_path: Path) -> None:
    body = dictionary({
        "a": W, "b": W, "tail": tensor(storage(), 4, (2,), (1,)), "t": tensor(storage(), 0, (3, 2), (1, 3)),
        "scalar": tensor(storage(), 5, (), ()), "none": tensor(storage(), 99, (0, 3), (3, 1)),
        "wide": tensor(storage(), 2, (4, 2), (0, 1)), "one": tensor(storage(), 0, (1, 2), (1 << 40, 1)),
    })  # fmt: skip
    with opened(tmp_path, tf.archive(body)) as checkpoint:
        found = read(checkpoint)
        notes = [str(event) for event in checkpoint.events]
    flat = ARRAY.reshape(-1)
    expected = {
        "a": ARRAY, "b": ARRAY, "tail": flat[4:], "t": ARRAY.T, "scalar": flat[5], "none": np.empty((0, 3), "f4"),
        "wide": np.broadcast_to(flat[2:4], (4, 2)), "one": flat[None, :2],
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array), name
    assert notes == ["tied tensors, written under each of their names: b = a"]


def test_deflated_and_strided_is_read_whole(tmp_path: Path) -> None:
    body = dictionary({"t": tensor(storage(), 0, (3, 2), (1, 3))})
    parts = members(body, {"0": DATA})
    with opened(tmp_path, zipped(part.with_(deflate=True) for part in parts.values())) as checkpoint:
        assert checkpoint.tensors["t"].grain == 3
        assert np.array_equal(read(checkpoint)["t"], ARRAY.T)


def test_no_checksums(tmp_path: Path) -> None:
    with opened(tmp_path, zipped(part.with_(crc=0) for part in PARTS.values())) as checkpoint:
        assert np.array_equal(read(checkpoint)["w"], ARRAY)
        assert "written without checksums" in str(checkpoint.events[0])


@pytest.mark.parametrize(
    "body",
    [
        dictionary({"w": b"ctorch._utils\n_rebuild_parameter\n(" + W + b"\x88" + tf.ORDERED_DICT + b"tR"}),
        dictionary({"w": b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor\nctorch\nTensor\n("
                    + storage() + b"K\x00" + tuple_of((2, 3)) + tuple_of((3, 1)) + b"t}tR"}),
        dictionary({"w": b"ctorch._utils\n_rebuild_tensor_v3\n(" + UNTYPED + b"K\x00" + tuple_of((2, 3))
                    + tuple_of((3, 1)) + b"\x89" + tf.ORDERED_DICT + b"ctorch\nfloat32\ntR"}),
        tf.ORDERED_DICT + b"(" + text("w") + W + b"u}" + text("_metadata") + tf.ORDERED_DICT + b"sb",
        b"ccollections\nOrderedDict\n(]]" + text("w") + b"a" + W + b"aatR",  # as Python 2 wrote it
        dictionary({"w": tensor(storage(), 0, b"ctorch\nSize\n(" + tuple_of((2, 3)) + b"tR")}),
        dictionary({"state_dict": dictionary({"w": W}), "callbacks": b"c__builtin__\nset\n(]tR",
                    "when": b"cdatetime\ndatetime\n(" + b"C\x03abc" + b"tR", "args": b"cargparse\nNamespace\n)R}b"}),
    ],
    ids=["parameter", "subclass", "untyped", "metadata", "python 2", "size", "training"],
)  # fmt: skip
def test_ways_to_pickle(tmp_path: Path, body: bytes) -> None:
    with opened(tmp_path, tf.archive(body)) as checkpoint:
        assert {name: array.tolist() for name, array in read(checkpoint).items()} == {"w": ARRAY.tolist()}


def test_pickles_of_every_protocol_are_values() -> None:
    import pickle

    shared = [1, 2]
    value = {
        "": None, "t": (True, False, (), (1,), (1, 2, 3, 4)), "n": [0, -1, 255, 65536, 1 << 40, -(1 << 60)], "f": 1.5,
        "s": "é\n\\", "b": b"\x00\xff", "l": [shared, shared, [], {}], 5: {"long": "x" * 300},
    }  # fmt: skip
    encode = pickle_machine.Named("_codecs.encode", lambda text, _="": text.encode("latin1"))
    for protocol in range(6):
        data = pickle.dumps(value, protocol)
        machine = pickle_machine.PickleMachine(Windows(InMemory(Path("x"), data)), "it", lambda _, name: encode, id)
        assert machine.run() == value
        assert machine.position == len(data)


# --------------------------------------------------------------------- what is wrong with an archive


def changed(name: str, **changes: Any) -> bytes:
    return zipped([part.with_(**changes) if key == name else part for key, part in PARTS.items()])


def with_more(*more: Member) -> bytes:
    return zipped([*PARTS.values(), *more])


GOOD = tf.archive()
ZIP64 = struct.pack("<HHQQ", 1, 16, 24, 24)
ARCHIVES: dict[str, tuple[bytes, type[ConverterError], str]] = {
    "empty": (zipped([]), UnsupportedFeature, ""),
    "cut": (GOOD[:-1], CorruptFile, "cut off"),
    "no end": (GOOD[:-22], CorruptFile, "cut off"),
    "half": (GOOD[: len(GOOD) // 2], CorruptFile, "cut off"),
    "appended": (GOOD + b"\0", CorruptFile, "appended"),
    "archive behind": (GOOD + GOOD, CorruptFile, "directory should end"),
    "archive in the comment": (zipped(PARTS.values(), comment=GOOD), CorruptFile, "directory should end"),
    "comment": (zipped(PARTS.values(), comment=b"hello"), CorruptFile, "cut off, or something"),
    "gap": (zipped(PARTS.values(), gap=b"hidden"), CorruptFile, "6 bytes stand between"),
    "gap between": (changed("data/0", before=b"hidden"), CorruptFile, "does not follow"),
    "count": (zipped(PARTS.values(), count=3), CorruptFile, "bytes follow the 3 entries"),
    "count too large": (zipped(PARTS.values(), count=5), CorruptFile, "shorter than its 5"),
    "count bomb": (zipped(PARTS.values(), count=65535), CorruptFile, "make no sense"),
    "directory": (zipped(PARTS.values(), start=0), CorruptFile, "directory should end"),
    "disks": (zipped(PARTS.values(), disk=1), UnsupportedFeature, "one part"),
    "zip64 offset": (zipped(PARTS.values(), zip64={"at": 1}), CorruptFile, "locator points to 1"),
    "zip64 length": (zipped(PARTS.values(), zip64={"length": 45}), CorruptFile, "zip64 end record is damaged"),
    "zip64 count": (zipped(PARTS.values(), zip64={"number": 3}), CorruptFile, "contradict each other"),
    "zip64 size": (zipped(PARTS.values(), zip64={"size": 1 << 63}), CorruptFile, "contradict each other"),
    "two names": (with_more(Member("archive/data.pkl", b"")), CorruptFile, "two members are called"),
    "two cases": (with_more(Member("archive/Version", b"")), CorruptFile, "two members are called"),
    "two folders": (with_more(Member("other/data.pkl", b"")), CorruptFile, "outside the archive's folder"),
    "parent": (with_more(Member("archive/../evil", b"")), CorruptFile, "not a plain relative path"),
    "absolute": (with_more(Member("/evil", b"")), CorruptFile, "not a plain relative path"),
    "backslash": (with_more(Member("archive\\evil", b"")), CorruptFile, "not a plain relative path"),
    "control": (with_more(Member("archive/\x1b[2J", b"")), CorruptFile, "control characters"),
    "not utf-8": (with_more(Member(b"archive/\xff", b"")), CorruptFile, "not UTF-8"),
    "link": (changed("data/0", attributes=0o120777 << 16), CorruptFile, "a link"),
    "comment of a member": (changed("data/0", comment=b"x"), CorruptFile, "comment"),
    "encrypted": (changed("data/0", flags=1), UnsupportedFeature, "zip flags 0x1"),
    "encrypted, says only the header": (changed("data/0", local={"flags": 1}), CorruptFile, "contradicts"),
    "method 12": (changed("data/0", method=12), UnsupportedFeature, "method 12"),
    "method differs": (changed("data/0", local={"method": 8}), CorruptFile, "contradicts"),
    "name differs": (changed("data/0", local_name=b"archive/data/1"), CorruptFile, "contradicts"),
    "size differs": (changed("data/0", local={"size": 25}), CorruptFile, "contradicts"),
    "packed size differs": (changed("data/0", local={"packed": 25}), CorruptFile, "contradicts"),
    "crc differs": (changed("data/0", local={"crc": 1}), CorruptFile, "contradicts"),
    "descriptor differs": (changed("data/0", descriptor=True, late_size=25), CorruptFile, "what follows"),
    "stored with two sizes": (changed("data/0", size=25), CorruptFile, "two sizes are 25 and 24"),
    "too long": (changed("data/0", size=1 << 20, packed_size=1 << 20), CorruptFile, "the directory starts at"),
    "overlap": (changed("version", header=0), CorruptFile, "overlaps"),
    "storage crc": (changed("data/0", crc=zlib.crc32(DATA) ^ 1), CorruptFile, "does not have the CRC-32"),
    "pickle crc": (changed("data.pkl", crc=1), CorruptFile, "does not have the CRC-32"),
    "empty with a crc": (with_more(Member("archive/x", b"", crc=7)), CorruptFile, "CRC-32"),
    "extra": (changed("data/0", extra=b"\1\0\xff\0"), CorruptFile, "damaged extra fields"),
    "extra cut": (changed("data/0", extra=b"\1\0\0"), CorruptFile, "damaged extra fields"),
    "extra twice": (changed("data/0", extra=b"\2\0\0\0" * 2), CorruptFile, "damaged extra fields"),
    "another name": (changed("data/0", extra=b"up\1\0x"), CorruptFile, "damaged extra fields"),
    "needless zip64": (changed("data/0", extra=ZIP64), CorruptFile, "does not need"),
    "zip64 missing": (changed("data/0", size=0xFFFFFFFF, packed_size=0xFFFFFFFF), CorruptFile, "lacks its 64-bit"),
    "zip64 lies": (
        changed("data/0", size=0xFFFFFFFF, packed_size=0xFFFFFFFF, extra=struct.pack("<HHQQ", 1, 16, 1 << 63, 1 << 63)),
        CorruptFile, "contradicts|directory starts",
    ),
    "local zip64 lies": (changed("data/0", local_extra=struct.pack("<HHQ", 1, 8, 999)), CorruptFile, "contradicts"),
    "no pickle": (zipped([p for k, p in PARTS.items() if k != "data.pkl"]), MissingPart, "without data.pkl"),
    "no storage": (zipped([p for k, p in PARTS.items() if k != "data/0"]), CorruptFile, "'0' has no member"),
    "big endian": (changed("byteorder", data=b"big"), UnsupportedFeature, "only little-endian"),
    "not deflated": (changed("data/0", deflate=True, packed=b"\xff" * 20), CorruptFile, "not deflated data"),
    "deflate ends early": (
        changed("data/0", deflate=True, packed=zlib.compress(DATA, wbits=-15)[:-4]), CorruptFile, "inflate",
    ),
    "deflate is longer": (changed("data/0", deflate=True, data=DATA * 2, size=24), CorruptFile, "not inflate to 24"),
    "deflate is shorter": (changed("data/0", deflate=True, data=DATA[:-1], size=24), CorruptFile, "inflates to 23"),
    "deflate and more": (
        changed("data/0", deflate=True, packed=zlib.compress(DATA, wbits=-15) + b"x"), CorruptFile, "does not inflate",
    ),
    "deflated crc": (changed("data/0", deflate=True, crc=5), CorruptFile, "does not have the CRC-32"),
    "deflate bomb": (changed("data/0", deflate=True, size=1 << 30), CorruptFile, "cannot have"),
    "pickle bomb": (
        changed("data.pkl", deflate=True, data=bytes(8), size=(128 << 20) + 1, packed_size=200_000), CorruptFile, ".",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_are_refused(tmp_path: Path, case: str) -> None:
    content, kind, says = ARCHIVES[case]
    if case == "empty":
        assert not sniff_of(tmp_path, content)
        return
    refused(tmp_path, content, kind, says)


def sniff_of(tmp_path: Path, content: bytes) -> bool:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    return sniff(path, content[:64])


def test_a_bomb_that_tells_the_truth(tmp_path: Path) -> None:
    nbytes = 120 << 20
    body = dictionary({"w": tensor(storage(numel=nbytes // 4), 0, (nbytes // 4,), (1,))})
    parts = members(body, {})
    content = zipped([*parts.values(), Member("archive/data/0", bytes(nbytes), deflate=True)])
    refused(tmp_path, content, UnsupportedFeature, "expand to 125829120 are refused")


def test_a_deflated_view_over_too_much(tmp_path: Path) -> None:
    nbytes = 120 << 20
    body = dictionary({"w": tensor(storage(numel=nbytes // 4), 0, (2,), (nbytes // 4 - 1,))})
    content = zipped([*members(body, {}).values(), Member("archive/data/0", bytes(nbytes), deflate=True)])
    refused(tmp_path, content, UnsupportedFeature, "expand to 125829120 are refused")


def test_a_pickle_that_would_take_long(tmp_path: Path) -> None:
    part = members(b"(" + b"}" * (3 << 20), {})["data.pkl"]
    refused(tmp_path, zipped([part.with_(deflate=True)]), CorruptFile, "has more than 10[0-9]{5} opcodes")


def test_storages_that_nobody_uses_are_said(tmp_path: Path) -> None:
    with opened(tmp_path, with_more(Member("archive/data/7", b"hidden"))) as checkpoint:
        assert checkpoint.events == (Dropped("archive/data/7", "no tensor uses it"),)


# ---------------------------------------------------------------------- what is wrong with a pickle

PICKLES: dict[str, tuple[bytes, type[ConverterError], str]] = {
    "empty": (b"", CorruptFile, "stack"),
    "opcode": (b"\xff", CorruptFile, "byte 2"),
    "extension": (b"\x82\x01", CorruptFile, "byte 2"),
    "buffer": (b"\x97", CorruptFile, "byte 2"),
    "text persistent id": (b"Pabc\n", CorruptFile, "byte 2"),
    "memo": (b"h\x00", CorruptFile, "memo"),
    "odd": (b"}(" + text("a") + b"u", CorruptFile, "1 keys and values"),
    "twice": (b"}(" + (text("a") + b"N") * 2 + b"u", CorruptFile, "a key stands twice"),
    "list as key": (b"}(]Nu", CorruptFile, "a list as key"),
    "deep key": (b"}()\x85\x85Nu", CorruptFile, "a tuple as key"),
    "huge key": (b"}(\x8a\x10" + b"\x7f" * 16 + b"Nu", CorruptFile, "more than 64 bits"),
    "item of a tensor": (W + b"(NNu", CorruptFile, "added to a Tensor"),
    "state of a tensor": (W + b"}b", CorruptFile, "a Tensor is given a state"),
    "state of a dict": (b"}}(" + text("__class__") + b"Nub", CorruptFile, "a dict is given a state"),
    "call of a value": (b"K\x01)R", CorruptFile, "a int is called"),
    "call with a value": (b"ccollections\nOrderedDict\nK\x01R", CorruptFile, "a Named is called"),
    "mark": (b"(", CorruptFile, "left on the stack"),
    "two values": (b"NN", CorruptFile, "left on the stack"),
    "no stack": (b"0", CorruptFile, "byte 2"),
    "protocol": (b"\x80\x63N", CorruptFile, "protocol 99"),
    "frame": (b"\x95" + b"\xff" * 8, CorruptFile, "a frame of"),
    "text bomb": (b"X\xff\xff\xff\xff", CorruptFile, "4294967295 bytes wanted"),
    "bytes bomb": (b"\x8e" + b"\xff" * 7 + b"\x7f", CorruptFile, "bytes wanted"),
    "number bomb": (b"\x8b\xff\xff\xff\x7f", CorruptFile, "a number of 2147483647 bytes"),
    "decimal bomb": (b"L" + b"9" * 900 + b"L\n", CorruptFile, "a number in text"),
    "endless line": (b"I" + b"9" * 70000, CorruptFile, "does not end"),
    "not utf-8": (b"X\x01\0\0\0\xff", CorruptFile, "utf-8"),
    "surrogate": (b"V\\ud800\n", CorruptFile, "surrogates"),
    "no tensors": (dictionary({"epoch": b"K\x03"}), UnsupportedFeature, "holds no tensors"),
    "deep": (b"}" + text("x") + b"}" * 3 + b"K\x01", CorruptFile, "."),
    "within itself": (b"}q\x00" + text("w") + W + b"s" + text("a") + b"h\x00s", CorruptFile, "within itself"),
    "laughs": (
        b"]q\x000" + (b"](" + b"h\0" * 8 + b"eq\x000") * 12 + dictionary({"w": W, "x": b"h\0"}),
        CorruptFile, "values, or names",
    ),
    "collision": (dictionary({"1": W, 1: W}), CorruptFile, "two tensors are called '1'"),
    "collision of paths": (dictionary({"a.b": W, "a": dictionary({"b": W})}), CorruptFile, "are called 'a.b'"),
    "control": (dictionary({"a\x1b[2J": W}), CorruptFile, "control characters"),
    "long name": (dictionary({"a" * 2000: W}), CorruptFile, "names longer than"),
    "quantized": (dictionary({"q": b"ctorch._utils\n_rebuild_qtensor\n)R"}), UnsupportedFeature, "'q': quantized"),
    "sparse": (dictionary({"s": b"ctorch._utils\n_rebuild_sparse_tensor\n)R"}), UnsupportedFeature, "'s': sparse"),
    "conjugate": (
        dictionary({"c": W[:-2] + b"}" + text("conj") + b"\x88stR"}), UnsupportedFeature, "'c': it is stored as a lazy",
    ),
    "unknown metadata": (dictionary({"c": W[:-2] + b"}" + text("x") + b"\x88stR"}), CorruptFile, "unknown tensor meta"),
    "bytes": (b"c_codecs\nencode\n(" + text("x") + text("rot13") + b"tR", CorruptFile, "unknown encoding"),
    "no storage": (b"ctorch._utils\n_rebuild_tensor\n(NK\0))tR", CorruptFile, "without a storage"),
    "type": (b"ctorch._utils\n_rebuild_tensor_v3\n(NNNNNNNtR", CorruptFile, "without storage or dtype"),
    "parameter": (b"ctorch._utils\n_rebuild_parameter\n(NtR", CorruptFile, "without data"),
    "subclass": (b"ctorch._tensor\n_rebuild_from_type_v2\n(c_codecs\nencode\nN)NtR", CorruptFile, "rebuilt by some"),
    "pairs": (b"ccollections\nOrderedDict\n(NtR", CorruptFile, "something else than pairs"),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLES)
def test_pickles_that_are_refused(tmp_path: Path, case: str) -> None:
    body, kind, says = PICKLES[case]
    if case == "deep":
        body = b"}" + (text("x") + b"}") * 500 + text("w") + W + b"s" * 501
    refused(tmp_path, tf.archive(body), kind, says)


def test_bytes_after_the_pickle(tmp_path: Path) -> None:
    part = PARTS["data.pkl"]
    refused(tmp_path, changed("data.pkl", data=part.data + b"N."), CorruptFile, "2 bytes follow the end of data.pkl")


F32 = "FloatStorage"
GEOMETRY: dict[str, tuple[bytes, str]] = {
    "numel": (tensor(storage(numel=1_000_000)), "should have 1000000 elements"),
    "numel negative": (tensor(storage(numel=-1)), "make no sense"),
    "numel text": (tensor(storage(numel="6")), "make no sense"),
    "numel bool": (tensor(storage(numel=b"\x88")), "make no sense"),
    "key": (tensor(storage(key=0)), "make no sense"),
    "key elsewhere": (tensor(storage(key="../version")), "has no member"),
    "class": (tensor(storage("OrderedDict", module="collections")), "make no sense"),
    "kind": (b"(" + text("module") + b"N" * 4 + b"tQ", "whole module"),
    "no tuple": (b"NQ", "not that of a storage"),
    "short": (tuple_of(("storage", "x")) + b"Q", "not that of a storage"),
    "two types": (dictionary({"a": W, "b": tensor(storage("IntStorage"))}), "described in two ways"),
    "offset": (tensor(storage(), 5), "needs bytes 20 to 44 of a storage of 24"),
    "offset negative": (tensor(storage(), -1), "out of range"),
    "offset huge": (tensor(storage(), 1 << 62), "of a storage of 24"),
    "stride negative": (tensor(storage(), 0, (2, 3), (-3, 1)), "out of range"),
    "stride huge": (tensor(storage(), 0, (2, 3), (1 << 62, 1)), "of a storage of 24"),
    "size negative": (tensor(storage(), 0, (-2, 3)), "out of range"),
    "size float": (tensor(storage(), 0, (2.0, 3)), "out of range"),
    "size bool": (tensor(storage(), 0, (b"\x88", 3)), "out of range"),
    "rank": (tensor(storage(), 0, (2, 3), (1,)), "do not match"),
    "rank 65": (tensor(storage(), 0, (1,) * 65, (1,) * 65), "do not match"),
    "list": (tensor(storage(), 0, b"](K\2K\3e"), "do not match"),
    "product": (tensor(storage(), 0, (1 << 32, 1 << 32), (0, 0)), "more than 2\\*\\*63"),
    "product with zero": (tensor(storage(), 0, (0, 1 << 40, 1 << 40), (0, 0, 0)), "more than 2\\*\\*63"),
    "expansion": (tensor(storage(), 0, (1 << 40,), (0,)), "are refused"),
}  # fmt: skip


@pytest.mark.parametrize("case", GEOMETRY)
def test_geometry_that_is_refused(tmp_path: Path, case: str) -> None:
    body, says = GEOMETRY[case]
    kind = UnsupportedFeature if case in ("expansion", "kind") else CorruptFile
    refused(tmp_path, tf.archive(body if body[:1] == b"}" else dictionary({"w": body})), kind, says)


L6 = storage(F32, "0", 6, b"N")
STREAMS: dict[str, tuple[bytes, type[ConverterError], str]] = {
    "magic": (tf.stream(magic=b"\x80\x02K\x01."), CorruptFile, "not one that torch.save wrote"),
    "protocol": (tf.stream(protocol=b"\x80\x02K\x01."), CorruptFile, "protocol is 1001"),
    "system": (tf.stream(system=b"\x80\x02N."), CorruptFile, "protocol is 1001"),
    "big endian": (tf.stream(system=tf.pickle(dictionary({"little_endian": b"\x89"}))), UnsupportedFeature, "endian"),
    "storage in the system": (tf.stream(system=tf.pickle(L6)), CorruptFile, "where there can be none"),
    "keys": (tf.stream(keys=b"K\1"), CorruptFile, "not a list of different names"),
    "key type": (tf.stream(keys=b"](K\1e"), CorruptFile, "not a list of different names"),
    "key twice": (tf.stream(keys=b"](" + text("0") * 2 + b"e"), CorruptFile, "not a list of different names"),
    "key missing": (tf.stream(keys=b"]"), CorruptFile, "0 storages listed are not the 1"),
    "key too many": (tf.stream(storages=(("0", 6, DATA), ("1", 1, DATA))), CorruptFile, "2 storages listed"),
    "numel": (tf.stream(storages=(("0", 1 << 60, DATA),)), CorruptFile, "its header says 1152921504606846976"),
    "numel negative": (tf.stream(storages=(("0", -1, DATA),)), CorruptFile, "its header says -1"),
    "numel of the id": (tf.stream(dictionary({"w": tensor(storage(F32, "0", 1 << 40, b"N"))})), CorruptFile, "says 6"),
    "cut": (tf.stream()[:-1], CorruptFile, "needs 24 bytes"),
    "no storages": (tf.stream()[:-32], CorruptFile, "needs 8 bytes"),
    "appended": (tf.stream() + b"\0", CorruptFile, "1 bytes follow"),
    "view": (
        tf.stream(dictionary({"w": tensor(storage(F32, "0", 6, tuple_of(("v", 4, 3))))})), CorruptFile, "needs 4 to 7",
    ),
    "view type": (tf.stream(dictionary({"w": tensor(storage(F32, "0", 6, tuple_of("v")))})), CorruptFile, "a view"),
    "quantized": (
        tf.stream(dictionary({"w": tensor(storage("QInt8Storage", "0", 6, b"N"))})), UnsupportedFeature, "QInt8Storage",
    ),
    "tar": (b"sys_info".ljust(257, b"\0") + b"ustar" + bytes(1000), UnsupportedFeature, "a tar file"),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS)
def test_streams_that_are_refused(tmp_path: Path, case: str) -> None:
    refused(tmp_path, *STREAMS[case])


def test_a_view_of_a_stream(tmp_path: Path) -> None:
    place = storage(F32, "0", 6, tuple_of(("v", 2, 4)))
    with opened(tmp_path, tf.stream(dictionary({"w": tensor(place, 1, (3,), (1,))}))) as checkpoint:
        assert read(checkpoint)["w"].tolist() == [3, 4, 5]


# --------------------------------------------------------------------------------- nothing ever runs

EVIL = {
    "global": b"cos\nsystem\n(" + text("touch {}") + b"tR",
    "stack global": b"\x8c\x02os\x8c\x06system\x93(" + text("touch {}") + b"tR",
    "inst": b"(" + text("touch {}") + b"ios\nsystem\n",
    "obj": b"(cos\nsystem\n" + text("touch {}") + b"o",
    "new": b"csubprocess\nPopen\n(" + text("touch {}") + b"t\x81",
    "new with keywords": b"csubprocess\nPopen\n(" + text("touch {}") + b"t}\x92",
    "python 2": b"c__builtin__\neval\n(" + text("open('{}', 'w')") + b"tR",
    "dotted": b"\x8c\x13torch.serialization\x8c\x09os.system\x93(" + text("touch {}") + b"tR",
    "module of torch": b"ctorch.hub\n_get_torch_home\n)R",
    "getattr": b"cbuiltins\ngetattr\n(ccollections\nOrderedDict\n" + text("__class__") + b"tR",
    "builtin": b"cbuiltins\nexec\n(" + text("open('{}', 'w')") + b"tR",
    "table name with another module": b"cevil\nOrderedDict\n)R",
}


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """What the interpreter does while the flag is up: anything that runs or imports code."""
    seen: list[str] = []
    active = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active[0] and event in ("exec", "compile", "import", "os.system", "subprocess.Popen", "pickle.find_class"):
            seen.append(f"{event} {arguments[:1]}")

    sys.addaudithook(hook)
    yield seen
    active[0] = False


@pytest.mark.parametrize("place", ["root", "key", "hooks", "stream", "magic", "constants"])
@pytest.mark.parametrize("case", EVIL)
def test_nothing_runs(tmp_path: Path, case: str, place: str, watched: list[str]) -> None:
    marker = tmp_path / "marker"
    payload = EVIL[case].replace(text("touch {}"), text(f"touch {marker}"))
    payload = payload.replace(text("open('{}', 'w')"), text(f"open('{marker}', 'w')"))
    code = Member("archive/constants.pkl", tf.pickle(b"(" + payload + b"t"))
    content = {
        "root": lambda: tf.archive(dictionary({"w": W, "x": payload})),
        "key": lambda: tf.archive(b"}(" + payload + W + b"u"),
        "hooks": lambda: tf.archive(dictionary({"w": W.replace(tf.ORDERED_DICT, payload)})),
        "stream": lambda: tf.stream(dictionary({"w": tensor(L6), "x": payload})),
        "magic": lambda: tf.stream(magic=tf.pickle(payload)),
        "constants": lambda: with_more(code),
    }[place]()
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    before = len(watched)
    with pytest.raises(UnsupportedFeature, match="holds Python objects, which are never loaded") as caught:
        open_torch(path)
    assert len(str(caught.value).splitlines()) == 2
    assert watched[before:] == []
    assert not marker.exists()


def test_reading_and_writing_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(tf.archive())
    code = (
        "import sys; from converter.cli.main import main\n"
        "assert main([sys.argv[1], sys.argv[2], '--quiet']) == 0\n"
        "assert not {'torch', 'multiprocessing'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.pt"), str(tmp_path / "n.pt")], check=True)
    with open_torch(tmp_path / "n.pt") as checkpoint:
        assert np.array_equal(read(checkpoint)["w"], ARRAY)


# ------------------------------------------------------------------------------------ which tensors

TRAINING = dictionary({
    "epoch": b"K\x03", "loss": b"G" + struct.pack(">d", 0.25), "note": text("x"), "schedule": dictionary({"a": b"K\1"}),
    "model_state_dict": dictionary({"a.w": W, "b": dictionary({"c": W})}),
    "optimizer": dictionary({"state": b"}(K\x00" + dictionary({"m": W, "step": b"K\1"}) + b"u", "lr": b"K\1"}),
    "ema": b"](" + W + W + b"e",
})  # fmt: skip


def test_the_model_is_taken_and_the_rest_is_said(tmp_path: Path) -> None:
    with opened(tmp_path, tf.archive(TRAINING)) as checkpoint:
        assert list(checkpoint.tensors) == ["a.w", "b.c"]
        assert checkpoint.metadata == {"epoch": "3", "loss": "0.25", "note": "x", "format": "pt"}
        kinds = [type(event) for event in checkpoint.events]
        said = [str(event) for event in checkpoint.events]
    assert kinds == [Dropped, Dropped, Note, MetadataLost, Note]
    assert said[0] == "optimizer: dropped (1 tensor beside 'model_state_dict'; --key optimizer takes them)"
    assert "ema: dropped (2 tensors" in said[1]
    assert "epoch, loss, note" in said[2]
    assert "metadata schedule: dropped" in said[3]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("optimizer", ["state.0.m"]), ("optimizer.state.0", ["m"]), ("ema", ["0", "1"]), ("ema.1", ["1"]),
        ("model_state_dict.b", ["c"]),
        (".", ["model_state_dict.a.w", "model_state_dict.b.c", "optimizer.state.0.m", "ema.0", "ema.1"]),
    ],
)  # fmt: skip
def test_key(tmp_path: Path, key: str, names: list[str]) -> None:
    with opened(tmp_path, tf.archive(TRAINING), key) as checkpoint:
        assert list(checkpoint.tensors) == names


def test_key_and_strict_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "m.ckpt", tmp_path / "m.safetensors"
    source.write_bytes(tf.archive(TRAINING))
    assert main([str(source), str(target), "--strict", "--quiet"]) == 40
    assert "optimizer: dropped" in capsys.readouterr().err
    assert not target.exists()
    assert main([str(source), str(target), "--key", "optimizer", "--quiet"]) == 0
    with open_checkpoint(target) as checkpoint:
        assert list(checkpoint.tensors) == ["state.0.m"]
        assert checkpoint.metadata["epoch"] == "3"
    assert main([str(source), str(target), "--key", "absent", "--force", "--quiet"]) == 2


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--key optim.*there are: model_state_dict, optimizer, ema"):
        opened(tmp_path, tf.archive(TRAINING), "optim")
    good = llama_folder(tmp_path / "hf", tokenizer=False)
    with pytest.raises(UsageError, match="holds one model"):
        open_checkpoint(Source(good / "model.safetensors", key="x"))


def test_flat_names_that_begin_like_a_model_are_all_taken(tmp_path: Path) -> None:
    with opened(tmp_path, tf.archive(dictionary({"model.a": W, "head.b": W, "model": b"K\1"}))) as checkpoint:
        assert list(checkpoint.tensors) == ["model.a", "head.b"]


@pytest.mark.parametrize(
    ("body", "names"), [(W, ["tensor"]), (b"](" + W + W + b"e", ["0", "1"]), (tuple_of([W]), ["0"])], ids=str
)
def test_roots_that_are_no_dict(tmp_path: Path, body: bytes, names: list[str]) -> None:
    with opened(tmp_path, tf.archive(body)) as checkpoint:
        assert list(checkpoint.tensors) == names


SCRIPT = (
    b"c__torch__.net\nNet\n)\x81}(" + text("training") + b"\x89" + text("w") + W
    + text("layer") + b"c__torch__.net\nLayer\n)\x81}" + text("b") + W + b"sb" + b"ub"
)  # fmt: skip


def test_torchscript(tmp_path: Path) -> None:
    constants = Member("archive/constants.pkl", tf.pickle(b"(" + tensor(storage(numel=1), 0, (), ()) + b"t"))
    more = [constants, Member("archive/constants/0", b"\0\0\x80?"), Member("archive/code/__torch__/net.py", b"evil()")]
    content = zipped([*members(SCRIPT, {"0": DATA}).values(), *more])
    with opened(tmp_path, content) as checkpoint:
        found = read(checkpoint)
        assert str(checkpoint.events[0]) == "TorchScript: only tensors are read, neither programs nor settings"
    assert list(found) == ["w", "layer.b", "CONSTANTS.c0"]
    assert found["CONSTANTS.c0"] == 1
    assert np.array_equal(found["layer.b"], ARRAY)
    # Outside of TorchScript its classes are foreign ones.
    refused(tmp_path, tf.archive(SCRIPT), UnsupportedFeature, r"never loaded: __torch__.net.Net, __torch__.net.Layer")


# ---------------------------------------------------------------------------------- sets and folders


def shards(folder: Path, weights: Mapping[str, Any], count: int = 2, **changes: Any) -> Path:
    """A sharded set with its index; `changes` of the weight map."""
    names = list(weights)
    weight_map: dict[str, Any] = {}
    folder.mkdir(exist_ok=True)
    for number in range(count):
        own = names[number::count]
        name = f"pytorch_model-{number + 1:05d}-of-{count:05d}.bin"
        (folder / name).write_bytes(saved({key: weights[key] for key in own}))
        weight_map |= dict.fromkeys(own, name)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map | changes}))
    return index


def saved(weights: Mapping[str, Any]) -> bytes:
    """An archive of numpy arrays."""
    body = {}
    for number, (name, array) in enumerate(weights.items()):
        strides = [step // array.itemsize for step in array.strides]
        place = storage(tf.STORAGES[array.dtype.str], str(number), array.size)
        body[name] = tensor(place, 0, array.shape, strides)
    return tf.archive(dictionary(body), {str(i): array.tobytes() for i, array in enumerate(weights.values())})


def test_sharded(tmp_path: Path) -> None:
    weights = llama_weights()
    index = shards(tmp_path / "m", weights)
    (index.parent / "config.json").write_text(json.dumps(CONFIG))
    for path in (index, index.parent):
        with open_checkpoint(path) as checkpoint:
            assert len(checkpoint.files) == 2
            assert checkpoint.dialect == "hf"
            found = read(checkpoint)
        assert found.keys() == weights.keys()
        assert all(np.array_equal(found[name], weights[name]) for name in weights)
    with pytest.raises(UsageError, match="index of a set"):
        open_torch_key(index, "x")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.norm.weight": "../m.bin"}, "leads out of the folder"),
        ({"model.norm.weight": "absent.bin"}, "is not there"),
        ({"ghost": "pytorch_model-00001-of-00002.bin"}, "'ghost' should be in"),
    ],
)
def test_indexes_that_are_refused(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    index = shards(tmp_path / "m", llama_weights(), **changes)
    with pytest.raises(ConverterError, match=says):
        open_torch(index)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    index = shards(tmp_path, {"a": ARRAY, "b": ARRAY})
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(saved({"a": ARRAY, "b": ARRAY}))
    with pytest.raises(CorruptFile, match=r"'a' is also in pytorch_model-00001-of-00002\.bin"):
        open_torch(index)


def test_a_folder_of_bin_becomes_the_same_gguf(tmp_path: Path) -> None:
    weights = llama_weights()
    llama_folder(tmp_path / "a" / "m", weights=weights)
    other = llama_folder(tmp_path / "b" / "m", weights=weights)
    (other / "model.safetensors").unlink()
    (other / "pytorch_model.bin").write_bytes(saved(weights))
    (other / "training_args.bin").write_bytes(tf.pickle(EVIL["global"]))
    for side in "ab":
        assert main([str(tmp_path / side / "m"), str(tmp_path / f"{side}.gguf"), "--quant", "q8_0", "--quiet"]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_tied_head_is_left_out_where_the_config_says_so(tmp_path: Path) -> None:
    body = {"model.embed_tokens.weight": W, "lm_head.weight": W, "x": W}
    (tmp_path / "pytorch_model.bin").write_bytes(tf.archive(dictionary(body)))
    for tied, names in ((True, 2), (False, 3)):
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": tied}))
        with open_checkpoint(tmp_path) as checkpoint:
            assert len(checkpoint.tensors) == names
            said = [str(event) for event in checkpoint.events]
    assert said == ["tied tensors, written under each of their names: "
                    "lm_head.weight = model.embed_tokens.weight, x = model.embed_tokens.weight"]  # fmt: skip


def test_what_is_taken_for_a_torch_file(tmp_path: Path) -> None:
    def of(content: bytes, name: str = "x.bin") -> bool:
        path = tmp_path / name
        path.write_bytes(content)
        return sniff(path, content[:64])

    assert of(tf.archive()) and of(tf.stream()) and of(tf.pickle(EVIL["global"]), "x.pt")
    npz = io.BytesIO()
    np.savez(npz, **{"a/b": ARRAY})
    assert not of(npz.getvalue()) and not of(zipped([Member("metadata.json", b"{}")]))
    assert not of(struct.pack("<7i", 640, 1, 1, 1, 1, 1, 1))  # llama2.c: 80 02 00 00
    assert not of(b"") and not of(b"PK\3\4") and not of(b"{}") and of(b" {}", "pytorch_model.bin.index.json")
    assert source_format(tmp_path / "x.pt").name == "torch"


# ------------------------------------------------------------------------------------------- lazily


def large(tmp_path: Path, **changes: Any) -> tuple[Path, Any]:
    """Five megabytes in one tensor."""
    array = np.random.default_rng(1).integers(0, 9, (1250, 1000)).astype("<f4")
    body = dictionary({"w": tensor(storage(numel=array.size), 0, array.shape, (1000, 1))})
    parts = members(body, {"0": array.tobytes()})
    parts["data/0"] = parts["data/0"].with_(**changes)
    path = tmp_path / "large.pt"
    path.write_bytes(zipped(parts.values()))
    return path, array


def test_opening_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, array = large(tmp_path)
    seen = []
    view = MappedFile.view
    monkeypatch.setattr(MappedFile, "view", lambda self, offset, n, what: seen.append(n) or view(self, offset, n, what))
    with open_torch(path) as checkpoint:
        assert sum(seen) < 4096
        assert np.shares_memory(checkpoint.tensors["w"].rows(0, 5), checkpoint.tensors["w"].rows(4, 6))
        checkpoint.check()
        assert sum(seen) >= array.nbytes  # what was touched is checked whole


@pytest.mark.parametrize("deflate", [False, True])
def test_rows_in_any_order(tmp_path: Path, deflate: bool) -> None:
    path, array = large(tmp_path, deflate=deflate)
    with open_torch(path) as checkpoint:
        tensor = checkpoint.tensors["w"]
        for start, stop in ((1240, 1250), (0, 3), (700, 900), (2, 4), (1249, 1250), (300, 300), (0, 1250)):
            assert np.array_equal(tensor.rows(start, stop).view("<f4"), array[start:stop])


@pytest.mark.parametrize("deflate", [False, True])
def test_a_wrong_checksum_fails_the_run_before_the_rename(
    tmp_path: Path, deflate: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = large(tmp_path, deflate=deflate, crc=12345)
    target = tmp_path / "out" / "x.safetensors"
    target.parent.mkdir()
    target.write_bytes(b"old")
    assert main([str(path), str(target), "--force", "--quiet"]) == 11
    assert "large.pt: member 'archive/data/0' does not have the CRC-32" in capsys.readouterr().err
    assert [each.name for each in target.parent.iterdir()] == ["x.safetensors"]
    assert target.read_bytes() == b"old"


def test_a_checksum_is_compared_though_only_a_part_is_wanted(tmp_path: Path) -> None:
    body = dictionary({"w": tensor(storage(), 0, (2,), (1,))})
    parts = members(body, {"0": DATA})
    parts["data/0"] = parts["data/0"].with_(crc=1)
    refused(tmp_path, zipped(parts.values()), CorruptFile, "CRC-32")
    path, _ = large(tmp_path, crc=1)
    with open_torch(path) as checkpoint:
        checkpoint.tensors["w"].rows(0, 1)  # nothing is known yet
        with pytest.raises(CorruptFile, match="CRC-32"):
            checkpoint.check()


# ------------------------------------------------------------------------------------------ writing


def test_what_is_written_is_a_zip_with_aligned_records(tmp_path: Path) -> None:
    path, again = tmp_path / "a.pt", tmp_path / "b.pt"
    for target, threads in ((path, 1), (again, 2)):
        output.write(layout(checkpoint_of(ALL_TYPES), target, WriteOptions()), threads=threads)
    assert path.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        assert archive.testzip() is None
        infos = archive.infolist()
        assert [info.filename for info in infos[:4]] == [
            f"archive/{name}" for name in ("data.pkl", ".format_version", ".storage_alignment", "byteorder")
        ]
        assert archive.read("archive/version") == b"3\n" and len(archive.read("archive/.data/serialization_id")) == 40
        for info in infos:
            file.seek(info.header_offset + 26)
            assert (info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))) % 64 == 0
    with open_torch(path) as checkpoint:
        assert list(checkpoint.tensors) == [each.name for each in ALL_TYPES]
        for each in ALL_TYPES:
            found = checkpoint.tensors[each.name]
            assert found.info == each.info
            assert np.array_equal(found.rows(0, each.info.n_rows), each.rows(0, each.info.n_rows))
        checkpoint.check()


def test_an_empty_one_and_what_cannot_be_written(tmp_path: Path) -> None:
    output.write(layout(checkpoint_of([]), tmp_path / "a.pt", WriteOptions()))
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
    quantized = LazyTensor(TensorInfo("q", (1, 32), DTYPES["Q8_0"]), lambda a, b: np.zeros((b - a, 34), "u1"), "test")
    with pytest.raises(UnsupportedFeature, match="Q8_0, which PyTorch cannot hold"):
        layout(checkpoint_of([quantized]), tmp_path / "a.pt", WriteOptions())


def huge(path: Path) -> list[TensorInfo]:
    """A file of 10 GB of zeros that takes no room: 5 GB twice, then a small one."""
    infos = [TensorInfo(f"w{i}", (n,), DTYPES["U8"]) for i, n in enumerate((5 << 30, 5 << 30, 24))]
    tensors = [LazyTensor(info, lambda a, b: np.zeros((1, 1), "u1"), "test") for info in infos]
    (file,) = layout(checkpoint_of(tensors), path, WriteOptions()).files
    block = zlib.crc32(bytes(1 << 20))
    assert file.finish is not None
    crcs = [CRC32.combine_all((block, 1 << 20) for _ in range(info.nbytes >> 20)) for info in infos[:2]] + [
        zlib.crc32(DATA)
    ]
    with open(path, "wb") as out:
        out.truncate(file.size)
        for offset, data in (*file.finish(crcs), (file.slots[2].offset, DATA)):
            out.seek(offset)
            out.write(data)
    return infos


def test_beyond_four_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "huge.pt"
    infos = huge(path)
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        assert archive.read("archive/data/2") == DATA
    assert [sizes[f"archive/data/{i}"] for i in range(3)] == [info.nbytes for info in infos]
    with open_torch(path) as checkpoint:
        assert [each.info for each in checkpoint.tensors.values()] == infos
        assert bytes(checkpoint.tensors["w2"].rows(0, 1)) == DATA


# --------------------------------------------------------------------------------------- properties

SEEDS = [
    tf.archive(), tf.stream(), tf.archive(TRAINING),
    zipped([m.with_(deflate=True, descriptor=True) for m in PARTS.values()], zip64={}),
    zipped([*members(SCRIPT, {"0": DATA}).values(), Member("archive/constants.pkl", tf.pickle(b")"))]),
]  # fmt: skip


@examples(250)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 4000)),
    more=st.binary(max_size=5),
)
def test_mutations_open_or_are_refused(
    tmp_path: Path, seed: bytes, edits: list[tuple[int, int]], cut: int | None, more: bytes
) -> None:
    content = bytearray(seed)
    for position, byte in edits:
        content[position % len(content)] = byte
    try:
        with opened(tmp_path, bytes(content[:cut] + more)) as checkpoint:
            read(checkpoint)
    except ConverterError as error:
        assert "m.pt" in str(error)


@examples(250)
@given(st.sampled_from([b"", b"}", b"](", W, TRAINING, SCRIPT]), st.binary(max_size=60), st.integers(0, 600))
def test_any_pickle_is_a_value_or_refused(tmp_path: Path, start: bytes, more: bytes, cut: int) -> None:
    try:
        with opened(tmp_path, tf.archive(start[:cut] + more)) as checkpoint:
            read(checkpoint)
    except ConverterError as error:
        assert "m.pt" in str(error)


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    for content in (tf.archive(), tf.stream()):
        for cut in range(2, len(content), 2):
            with pytest.raises(ConverterError, match=r"m\.pt"), opened(tmp_path, content[:cut]) as checkpoint:
                read(checkpoint)


@st.composite
def views(draw: Callable[..., Any]) -> tuple[Any, Any]:
    """A storage, and a view of it as slicing, permuting, expanding and selecting make them."""
    kind = draw(st.sampled_from(["<f4", "<f2", "|u1", "<i8", "<c16"]))
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    nbytes = int(np.prod(shape)) * np.dtype(kind).itemsize
    base = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, nbytes, "u1").view(kind).reshape(shape)
    view = base.transpose(draw(st.permutations(range(base.ndim))))
    for axis in range(view.ndim):
        start, step = draw(st.integers(0, view.shape[axis])), draw(st.integers(1, 3))
        view = view[(slice(None),) * axis + (slice(start, None, step),)]
    if draw(st.booleans()):
        view = np.broadcast_to(view[None], (draw(st.integers(0, 3)), *view.shape))
    return base, view


@examples(150)
@given(views(), st.booleans(), st.data())
def test_views_are_what_numpy_says(tmp_path: Path, pair: tuple[Any, Any], deflate: bool, data: st.DataObject) -> None:
    base, view = pair
    offset = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // base.itemsize
    offset = min(max(offset, 0), base.size)
    place = storage(tf.STORAGES[base.dtype.str], "0", base.size)
    body = tensor(place, offset, view.shape, [step // base.itemsize for step in view.strides])
    parts = members(dictionary({"w": body}), {"0": base.tobytes()})
    with opened(tmp_path, zipped(part.with_(deflate=deflate) for part in parts.values())) as checkpoint:
        found = checkpoint.tensors["w"]
        assert found.array().tobytes() == view.tobytes()
        start = data.draw(st.integers(0, found.info.n_rows))
        stop = data.draw(st.integers(start, found.info.n_rows))
        expected = np.ascontiguousarray(view).reshape(found.info.n_rows, found.info.row)[start:stop]
        assert found.rows(start, stop).tobytes() == expected.tobytes()


# ------------------------------------------------------------------------------------ strangers beside the model

STRANGER = b"c__main__\nTrainConfig\n)R}" + text("lr") + b"K\x01sb"
HOLDS_A_TENSOR = b"c__main__\nLayer\n)R}" + text("weight") + W + b"sb"


def test_objects_beside_the_model_are_left_out_and_told(tmp_path: Path) -> None:
    for beside in (STRANGER, HOLDS_A_TENSOR, b"c__main__\nTrainConfig\n"):
        content = tf.archive(dictionary({"state_dict": dictionary({"w": W}), "config": beside}))
        for key in (None, "state_dict"):
            with opened(tmp_path, content, key) as checkpoint:
                assert list(checkpoint.tensors) == ["w"]
                assert np.array_equal(read(checkpoint)["w"], ARRAY)
                said = [str(event) for event in checkpoint.events if isinstance(event, MetadataLost)]
            assert said[0].startswith("metadata config: dropped (Python objects, never loaded: __main__.")


@pytest.mark.parametrize("key", [".", "w"])
def test_objects_beside_what_was_asked_for(tmp_path: Path, key: str) -> None:
    with opened(tmp_path, tf.archive(dictionary({"w": W, "x": STRANGER})), key) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert "x: dropped (Python objects, never loaded: __main__.TrainConfig)" in str(checkpoint.events[0])


@pytest.mark.parametrize("key", [None, ".", "model", "model.layer"])
def test_tensors_within_unknown_objects_are_no_model(tmp_path: Path, key: str | None) -> None:
    file = tmp_path / "m.pt"
    file.write_bytes(tf.archive(dictionary({"model": dictionary({"layer": HOLDS_A_TENSOR})})))
    with pytest.raises(UnsupportedFeature, match=r"never loaded: __main__\.Layer"):
        open_torch(file) if key is None else open_torch_key(file, key)


@pytest.mark.parametrize("case", EVIL)
def test_nothing_runs_beside_a_model(tmp_path: Path, case: str, watched: list[str]) -> None:
    marker = tmp_path / "marker"
    payload = EVIL[case].replace(text("touch {}"), text(f"touch {marker}"))
    payload = payload.replace(text("open('{}', 'w')"), text(f"open('{marker}', 'w')"))
    file = tmp_path / "m.pt"
    file.write_bytes(tf.archive(dictionary({"state_dict": dictionary({"w": W}), "x": payload})))
    before = len(watched)
    try:
        with open_torch(file) as checkpoint:
            assert list(checkpoint.tensors) == ["w"]
    except UnsupportedFeature as error:
        assert "never loaded" in str(error)
    assert watched[before:] == [] and not marker.exists()


def test_whole_numbers_of_any_length_that_a_state_has(tmp_path: Path) -> None:
    numbers = {17: 2**130 + 1, 33: -(2**260), 256: 2**2040}
    body = {f"n{size}": b"\x8b" + struct.pack("<i", size) + n.to_bytes(size, "little", signed=True)
            for size, n in numbers.items()}  # fmt: skip
    with opened(tmp_path, tf.archive(dictionary({"state_dict": dictionary({"w": W}), **body}))) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert {name: int(value) for name, value in checkpoint.metadata.items() if name != "format"} == {
            f"n{size}": n for size, n in numbers.items()
        }
