"""safetensors by its bytes: every way of being wrong is refused, what is right comes back bit for bit."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import (
    CONFIG,
    F32_2X3,
    assembled,
    entry,
    examples,
    llama_weights,
    safetensors,
    safetensors_of,
    sharded,
)

from converter.checkpoint import Checkpoint
from converter.errors import ConverterError, CorruptFile, FormatError, MissingPart, OutputError, UnsupportedFeature
from converter.formats.base import WriteOptions
from converter.formats.safetensors import MAX_HEADER, layout, open_safetensors
from converter.storage import output
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo

W = entry("F32", (2, 3), 0, 24)
GOOD = safetensors({"w": W}, F32_2X3)


def shown(value: object) -> str:
    """The id of a case; some are megabytes long."""
    return ascii(value)[:48]


def opened(tmp_path: Path, content: bytes) -> Checkpoint:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    return open_safetensors(path)


def refused(tmp_path: Path, content: bytes, kind: type[ConverterError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        opened(tmp_path, content)
    message = str(caught.value)
    assert "m.safetensors" in message
    assert len(message.splitlines()) <= 3
    assert all(line.isprintable() and len(line) < 400 for line in message.splitlines())


# ------------------------------------------------------------------------------------- what is right


def test_one_tensor(tmp_path: Path) -> None:
    with opened(tmp_path, GOOD) as checkpoint:
        (tensor,) = checkpoint.tensors.values()
        assert tensor.info == TensorInfo("w", (2, 3), DTYPES["F32"])
        assert tensor.source.endswith(f"m.safetensors@{len(GOOD) - 24}")
        assert np.array_equal(tensor.array(), np.arange(6, dtype=np.float32).reshape(2, 3))
        assert np.array_equal(tensor.rows(1, 2).view("<f4"), [[3, 4, 5]])
        assert checkpoint.dialect is None and checkpoint.metadata == {}


@pytest.mark.parametrize("code", sorted(dtype.name for dtype in DTYPES.values() if dtype.safetensors))
def test_every_type(tmp_path: Path, code: str) -> None:
    size = DTYPES[code].type_size
    data = bytes(range(6 * size))
    with opened(tmp_path, safetensors({"w": entry(code, (2, 3), 0, 6 * size)}, data)) as checkpoint:
        assert checkpoint.tensors["w"].info.dtype is DTYPES[code]
        assert checkpoint.tensors["w"].rows(0, 2).tobytes() == data


@pytest.mark.parametrize(
    ("shape", "nbytes"), [((), 4), ((1,), 4), ((0,), 0), ((3, 0), 0), ((0, 3), 0), ((1, 1, 1, 1, 1), 4)]
)
def test_scalars_and_zero_sizes(tmp_path: Path, shape: tuple[int, ...], nbytes: int) -> None:
    with opened(tmp_path, safetensors({"w": entry("F32", shape, 0, nbytes)}, b"\0\0\x80\x3f"[:nbytes])) as checkpoint:
        array = checkpoint.tensors["w"].array()
        assert array.shape == shape and array.tolist() == np.ones(shape).tolist()


def test_the_header_s_order_is_kept_and_need_not_be_the_offsets_order(tmp_path: Path) -> None:
    header = {"z": entry("I8", (2,), 2, 4), "a": entry("I8", (2,), 0, 2), "empty": entry("I8", (0,), 2, 2)}
    with opened(tmp_path, safetensors(header, b"\1\2\3\4")) as checkpoint:
        assert list(checkpoint.tensors) == ["z", "a", "empty"]
        assert checkpoint.tensors["z"].array().tolist() == [3, 4]


def test_header_padded_with_spaces_and_of_odd_length(tmp_path: Path) -> None:
    text = json.dumps({"w": W}).encode()
    for padding in (b"", b" ", b"       "):
        with opened(tmp_path, safetensors(text + padding, F32_2X3)) as checkpoint:
            assert checkpoint.tensors["w"].array()[1, 2] == 5


def test_metadata_and_unicode_names(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt", "ü": "日本"}, "gewicht.ß.重み": W}
    with opened(tmp_path, safetensors(header, F32_2X3)) as checkpoint:
        assert checkpoint.metadata == {"format": "pt", "ü": "日本"}
        assert list(checkpoint.tensors) == ["gewicht.ß.重み"]


def test_no_tensors(tmp_path: Path) -> None:
    with opened(tmp_path, safetensors({})) as checkpoint:
        assert checkpoint.tensors == {}


# ------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 20, len(GOOD) - 25, len(GOOD) - 24, len(GOOD) - 1])
def test_truncated(tmp_path: Path, size: int) -> None:
    refused(tmp_path, GOOD[:size], CorruptFile, "needs|bad JSON|the tensors end")


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_header_length_over_the_limit(tmp_path: Path, length: int) -> None:
    refused(tmp_path, safetensors({"w": W}, F32_2X3, length=length), CorruptFile, "over the limit")


def test_header_length_beyond_the_file(tmp_path: Path) -> None:
    refused(tmp_path, safetensors({"w": W}, F32_2X3, length=MAX_HEADER), CorruptFile, "the header at offset 8")


def test_header_length_that_cuts_the_json_or_reaches_into_the_data(tmp_path: Path) -> None:
    length = len(json.dumps({"w": W}))
    refused(tmp_path, safetensors({"w": W}, F32_2X3, length=length - 1), CorruptFile, "bad JSON")
    refused(tmp_path, safetensors({"w": W}, F32_2X3, length=length + 1), CorruptFile, "bad JSON")
    refused(tmp_path, safetensors({"w": W}, F32_2X3, length=0), CorruptFile, "does not start")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b" {}", "does not start"),
        (b"\xef\xbb\xbf{}", "does not start"),
        (b"[]", "does not start"),
        (b"null", "does not start"),
        (b"{}\0\0", "bad JSON"),
        (b"{}x", "bad JSON"),
        (b"{} {}", "bad JSON"),
        (b'{"w":}', "bad JSON"),
        (b'{"w\xff":{}}', "bad JSON"),
        (b'{"\n":{}}', "bad JSON"),
        (b'{"w\\ud800":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', "surrogate"),
        (b'{"__metadata__":{"a":"\\udfff\\ud800"}}', "surrogate"),
        (b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', "NaN"),
        (b'{"w":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', "Infinity"),
        (b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', "40 digits"),
        (b'{"a":' + b"[" * 200_000, "bad JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bad JSON|bad header entry"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "bad JSON"),
    ],
    ids=shown,
)
def test_header_that_is_no_strict_json_object(tmp_path: Path, header: bytes, says: str) -> None:
    refused(tmp_path, safetensors(header, F32_2X3[:4]), CorruptFile, says)


ENTRY = json.dumps(W).encode()


@pytest.mark.parametrize(
    "header",
    [
        b'{"w":%b,"w":%b}' % (ENTRY, ENTRY),
        b'{"w":%b,"\\u0077":%b}' % (ENTRY, ENTRY),
        b'{"__metadata__":{},"w":%b,"__metadata__":{}}' % ENTRY,
        b'{"__metadata__":{"a":"1","a":"2"},"w":%b}' % ENTRY,
        b'{"w":{"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}',
    ],
    ids=["tensor", "escaped", "metadata", "inside metadata", "field"],
)
def test_a_key_twice(tmp_path: Path, header: bytes) -> None:
    refused(tmp_path, safetensors(header, F32_2X3), CorruptFile, "stands twice")


@pytest.mark.parametrize(
    "value",
    [
        1,
        None,
        "x",
        [],
        [W],
        {},
        {**W, "extra": 1},
        {"shape": [2, 3], "data_offsets": [0, 24]},
        {"dtype": "F32", "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [2, 3]},
        entry("F32", (2, 3), 0, 24) | {"data_offsets": [0]},
        entry("F32", (2, 3), 0, 24) | {"data_offsets": [0, 24, 24]},
        entry("F32", (2, 3), 0, 24) | {"data_offsets": None},
        entry("F32", (2, 3), 0, 24) | {"data_offsets": "ab"},
        entry("F32", (2, 3), 0, 24) | {"data_offsets": {"0": 0, "1": 24}},
        entry("F32", (2, 3), 0, 24) | {"data_offsets": [0.0, 24]},
        entry("F32", (2, 3), 0, 24) | {"data_offsets": [False, 24]},
        entry("F32", (2, 3), 0, 24) | {"data_offsets": [-24, 0]},
        entry("F32", (2, 3), 0, 24) | {"data_offsets": [24, 0]},
        entry("F32", (2, 3), 0, 24) | {"shape": 6},
        entry("F32", (2, 3), 0, 24) | {"shape": None},
        entry("F32", (2, 3), 0, 24) | {"shape": "6"},
        entry("F32", (2, 3), 0, 24) | {"shape": {"a": 6}},
        entry("F32", (2, 3), 0, 24) | {"shape": [[2, 3]]},
        entry("F32", (2, 3), 0, 24) | {"shape": ["6"]},
        entry("F32", (2, 3), 0, 24) | {"shape": [6.0]},
        entry("F32", (True, 6), 0, 24),
        entry("F32", (-2, -3), 0, 24),
        entry("F32", (-1, 3), 0, 24),
        entry("F32", (2, 2), 0, 24),
        entry("F32", (1000, 1000), 0, 24),
        entry("F32", (1,) * 63 + (6, 1), 0, 24),
        entry("F32", (1,) * 100_000, 0, 24),
        entry("F32", (1 << 62, 4, 6), 0, 24),
        entry("F32", (1 << 32, 1 << 32, 6), 0, 24),
        entry("F32", (1 << 63, 1 << 63, 0), 0, 0),
    ],
    ids=shown,
)
def test_bad_entry(tmp_path: Path, value: Any) -> None:
    refused(tmp_path, safetensors({"w": value}, F32_2X3), CorruptFile, "m.safetensors: (bad header entry|tensor) 'w'")


@pytest.mark.parametrize("code", ["F128", "f32", "torch.float32", "", "F5", 0, None, ["F32"], {"F32": 1}], ids=shown)
def test_unknown_type(tmp_path: Path, code: Any) -> None:
    refused(tmp_path, safetensors({"w": {**W, "dtype": code}}, F32_2X3), UnsupportedFeature, "unknown type")


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x1b[2J", "a\x7f"])
def test_name_with_control_characters(tmp_path: Path, name: str) -> None:
    refused(tmp_path, safetensors({name: W}, F32_2X3), CorruptFile, "control characters")


@pytest.mark.parametrize(
    ("spans", "size"),
    [
        ([(0, 24), (0, 24)], 24),
        ([(0, 24), (20, 44)], 44),
        ([(0, 24), (32, 56)], 56),
        ([(8, 32)], 32),
        ([(0, 24)], 25),
        ([(0, 24)], 4096),
        ([(0, 24)], 23),
        ([(0, 24), (24, 48)], 47),
        ([((1 << 64) - 24, 1 << 64)], 24),
        ([(0, 24), (1 << 40, (1 << 40) + 24)], 48),
    ],
    ids=["same", "overlap", "hole", "late start", "one more", "appended", "one less", "one less of two", "wrap", "far"],
)
def test_tensors_must_cover_the_data_exactly(tmp_path: Path, spans: list[tuple[int, int]], size: int) -> None:
    header = {f"t{number}": entry("F32", (2, 3), *span) for number, span in enumerate(spans)}
    refused(tmp_path, safetensors(header, bytes(size)), CorruptFile, "starts at|the tensors end at")


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2"])
def test_types_of_less_than_a_byte_are_called_by_name(tmp_path: Path, code: str) -> None:
    header = {"w": {**W, "dtype": code}}
    refused(tmp_path, safetensors(header, F32_2X3), UnsupportedFeature, f"'w' has type {code}, of less than a byte")


def test_metadata_of_null_is_none(tmp_path: Path) -> None:
    with opened(tmp_path, safetensors({"__metadata__": None, "w": W}, F32_2X3)) as checkpoint:
        assert list(checkpoint.tensors) == ["w"] and checkpoint.metadata == {}


@pytest.mark.parametrize("metadata", [[], "x", {"a": 1}, {"a": None}, {"a": {}}, {"a": ["b"]}], ids=shown)
def test_metadata_that_is_no_map_of_texts(tmp_path: Path, metadata: Any) -> None:
    refused(tmp_path, safetensors({"__metadata__": metadata, "w": W}, F32_2X3), CorruptFile, "__metadata__")


def test_the_message_of_a_long_name_is_short(tmp_path: Path) -> None:
    refused(tmp_path, safetensors({"w" * 500_000: entry("F32", (9,), 0, 24)}, F32_2X3), CorruptFile, r"www'\.\.\.")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.safetensors"
    os.mkfifo(fifo)
    for path in (fifo, Path(os.devnull), tmp_path):
        with pytest.raises(OutputError, match="not a regular file"):
            open_safetensors(path)
    with pytest.raises(OutputError, match="No such file"):
        open_safetensors(tmp_path / "absent.safetensors")


# ------------------------------------------------------------------------------------- sharded sets

SHARDS = [{"a": np.arange(3, dtype="<f4")}, {"b": np.arange(4, dtype="<f4"), "c": np.zeros((0, 2), "<f2")}]
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def open_index(folder: Path) -> Checkpoint:
    return open_safetensors(folder / "model.safetensors.index.json")


def test_a_set_is_one_checkpoint(tmp_path: Path) -> None:
    with open_index(sharded(tmp_path, SHARDS)) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a", "b", "c"]
        assert checkpoint.tensors["b"].array().tolist() == [0, 1, 2, 3]
        assert [path.name for path in checkpoint.files] == [FIRST, SECOND]


@pytest.mark.parametrize(
    "weight_map",
    [
        None, [], "x", 1, {}, {"a": 1}, {"a": None}, {"a": [FIRST]}, {"a": ""}, {"a": "."}, {"a": ".."},
        {"a": "../" + FIRST}, {"a": "x/../../" + FIRST}, {"a": "./" + FIRST}, {"a": "/etc/passwd"},
        {"a": "..\\" + FIRST}, {"a": "C:" + FIRST}, {"a": "https://example.org/x"}, {"a": FIRST + "\0"},
        {"a": "x" * 5000}, {"a": "model.safetensors.index.json"}, {"a": "\x1b[2J" + FIRST}, {"a": "\u202e" + FIRST},
    ],
    ids=shown,
)  # fmt: skip
def test_an_index_that_leads_elsewhere(tmp_path: Path, weight_map: Any) -> None:
    folder = sharded(tmp_path / "inner", SHARDS)
    (tmp_path / FIRST).write_bytes((folder / FIRST).read_bytes())
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"index\.json") as caught:
        open_index(folder)
    assert all(line.isprintable() for line in str(caught.value).splitlines())


@pytest.mark.parametrize("name", [".", "sub"])
def test_an_index_that_names_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(ConverterError, match=r"not a regular file|leads out"):
        open_index(sharded(tmp_path, SHARDS, {"a": name, "b": SECOND, "c": SECOND}))


def test_a_missing_shard(tmp_path: Path) -> None:
    (sharded(tmp_path, SHARDS) / SECOND).unlink()
    with pytest.raises(MissingPart, match=SECOND):
        open_index(tmp_path)


def test_a_truncated_shard(tmp_path: Path) -> None:
    shard = sharded(tmp_path, SHARDS) / SECOND
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match=SECOND):
        open_index(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"a": FIRST, "b": SECOND, "c": SECOND, "d": SECOND}, "'d' should be in .* is in no shard"),
        ({"a": SECOND, "b": SECOND, "c": SECOND}, "'a' should be in"),
        ({"a": FIRST, "b": FIRST, "c": SECOND}, f"'b' should be in {FIRST} and is in {SECOND}"),
        ({"a": FIRST, "b": SECOND}, "'c' of .* is not in the index"),
    ],
)
def test_an_index_that_disagrees_with_its_shards(tmp_path: Path, weight_map: Mapping[str, str], says: str) -> None:
    with pytest.raises(CorruptFile, match=says):
        open_index(sharded(tmp_path, SHARDS, weight_map))


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    shards = [{"a": np.zeros(3, "<f4")}, {"a": np.ones(3, "<f4"), "b": np.ones(1, "<f4")}]
    with pytest.raises(CorruptFile, match="'a' is also in"):
        open_index(sharded(tmp_path, shards, {"a": FIRST, "b": SECOND}))


def test_a_shard_that_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", SHARDS)
    (folder / SECOND).rename(tmp_path / "secret")
    (folder / SECOND).symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptFile, match="leads out of the folder"):
        open_index(folder)


def test_an_index_that_the_user_reaches_by_a_link_has_its_shards_beside_its_real_place(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "store", SHARDS)
    (tmp_path / "links").mkdir()
    for name in (FIRST, SECOND, "model.safetensors.index.json"):
        (tmp_path / "links" / name).symlink_to(folder / name)
    with open_index(tmp_path / "links") as checkpoint:
        assert len(checkpoint.tensors) == 3


def test_a_shard_in_a_sub_folder_is_fine(tmp_path: Path) -> None:
    folder = sharded(tmp_path, SHARDS, {"a": "sub/" + FIRST, "b": SECOND, "c": SECOND})
    (folder / "sub").mkdir()
    (folder / FIRST).rename(folder / "sub" / FIRST)
    with open_index(folder) as checkpoint:
        assert len(checkpoint.tensors) == 3


def test_config_and_tokenizer_come_from_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"never opened")
    with opened(tmp_path, safetensors_of(llama_weights())) as checkpoint:
        assert checkpoint.dialect == "hf" and checkpoint.config == CONFIG
        assert set(checkpoint.assets) == {"config.json", "tokenizer.json"}


# ------------------------------------------------------------------------------------- laziness


def test_opening_reads_the_header_only(tmp_path: Path) -> None:
    """A terabyte of declared data, sparse on disk: opening and planning neither read nor allocate it."""
    size = 1 << 40
    head = safetensors({"w": entry("U8", (1 << 20, 1 << 20), 0, size)})
    path = tmp_path / "huge.safetensors"
    with open(path, "wb") as file:
        file.write(head)
        try:
            file.truncate(len(head) + size)
        except OSError as error:
            pytest.skip(f"no sparse file of that size here: {error}")
    tracemalloc.start()
    with open_safetensors(path) as checkpoint:
        out = layout(checkpoint, tmp_path / "out.safetensors", WriteOptions())
        last = checkpoint.tensors["w"].rows((1 << 20) - 1, 1 << 20)
        assert last.shape == (1, 1 << 20) and not last.any()
        assert out.size == size + len(out.files[0].header)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_no_tensor_byte_is_read_on_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.storage.files import MappedFile

    spans: list[tuple[int, int]] = []
    view = MappedFile.view

    def watched(self: MappedFile, offset: int, nbytes: int, what: str) -> Any:
        spans.append((offset, offset + nbytes))
        return view(self, offset, nbytes, what)

    monkeypatch.setattr(MappedFile, "view", watched)
    with opened(tmp_path, GOOD) as checkpoint:
        assert max(stop for _, stop in spans) == len(GOOD) - 24
        checkpoint.tensors["w"].rows(1, 2)
        assert spans[-1] == (len(GOOD) - 12, len(GOOD))


def test_rows_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path, GOOD) as checkpoint, pytest.raises(IndexError):
        checkpoint.tensors["w"].rows(1, 3)


# ------------------------------------------------------------------------------------- writing


def written(checkpoint: Checkpoint, path: Path) -> bytes:
    output.write(layout(checkpoint, path, WriteOptions()), threads=1)
    return path.read_bytes()


def test_written_files_follow_the_specification(tmp_path: Path) -> None:
    header = {"__metadata__": {"k": "v"}, "i": entry("I8", (3,), 0, 3), "w": entry("F32", (2, 3), 3, 27)}
    with opened(tmp_path, safetensors(header, b"\1\2\3" + F32_2X3)) as checkpoint:
        out = written(checkpoint, tmp_path / "out.safetensors")
    (length,) = struct.unpack("<Q", out[:8])
    assert length % 8 == 0
    assert json.loads(out[8 : 8 + length]) == {
        "__metadata__": {"k": "v"},
        "w": entry("F32", (2, 3), 0, 24),
        "i": entry("I8", (3,), 24, 27),
    }
    assert out[8 + length :] == F32_2X3 + b"\1\2\3"


def test_a_type_it_cannot_hold(tmp_path: Path) -> None:
    info = TensorInfo("blk.0", (1, 256), DTYPES["Q4_K"])
    tensor = LazyTensor(info, lambda start, stop: np.zeros((stop - start, 144), np.uint8), "test")
    checkpoint = Checkpoint("gguf", tmp_path, None, {"blk.0": tensor})
    with pytest.raises(UnsupportedFeature, match=r"blk\.0.*Q4_K"):
        layout(checkpoint, tmp_path / "x.safetensors", WriteOptions())


def test_the_official_library_reads_what_we_write(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    random = np.random.default_rng(3)
    tensors = {
        "scalar": np.float64(np.pi).reshape(()), "half": random.standard_normal((3, 5)).astype("<f2"),
        "zero": np.zeros((0, 4), "<f4"), "ints": np.array([[-(2**63), 2**63 - 1]], "<i8"),
        "bytes": np.arange(256, dtype="u1"), "ä.weight": random.standard_normal((2, 2, 2)).astype("<f4"),
    }  # fmt: skip
    with opened(tmp_path, safetensors_of(tensors, {"a": "ß"})) as checkpoint:
        written(checkpoint, tmp_path / "out.safetensors")
    read = library.load_file(tmp_path / "out.safetensors")
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def test_we_read_and_copy_what_the_official_library_writes(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    tensors = {
        "b": np.arange(5, dtype=np.float16), "a": np.array([True, False]), "c": np.array(7, np.uint64),
        "d": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "e": np.zeros((2, 0), np.int16),
    }  # fmt: skip
    path = tmp_path / "theirs.safetensors"
    library.save_file(tensors, path, metadata={"format": "np"})
    with open_safetensors(path) as checkpoint:
        assert checkpoint.metadata == {"format": "np"}
        for name, array in tensors.items():
            ours = checkpoint.tensors[name].array()
            assert ours.dtype == array.dtype and ours.shape == array.shape and np.array_equal(ours, array)
        assert written(checkpoint, tmp_path / "ours.safetensors") == path.read_bytes()


def test_the_official_torch_library_agrees_on_bf16_and_fp8(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    tensors = {
        "bf16": torch.linspace(-3, 3, 8).to(torch.bfloat16).reshape(2, 4),
        "e4m3": torch.linspace(-3, 3, 8).to(torch.float8_e4m3fn),
        "e5m2": torch.linspace(-3, 3, 8).to(torch.float8_e5m2),
    }
    library.save_file(tensors, tmp_path / "theirs.safetensors")
    with open_safetensors(tmp_path / "theirs.safetensors") as checkpoint:
        written(checkpoint, tmp_path / "ours.safetensors")
        ours = checkpoint.tensors["bf16"].array().astype(np.float32)
        assert np.array_equal(ours, tensors["bf16"].float().numpy())
    read = library.load_file(tmp_path / "ours.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(read[name].view(torch.uint8), tensor.view(torch.uint8))


# ------------------------------------------------------------------------------------- properties

SEEDS = [
    GOOD,
    safetensors_of({"a": np.arange(3, dtype="i1"), "b": np.ones((2, 2)), "c": np.zeros((0,), "<f2")}, {"k": "v"}),
    safetensors(json.dumps({"a": entry("BF16", (2,), 0, 4), "é": entry("F32", (), 4, 8)}).encode() + b"  ", bytes(8)),
]


@examples(300)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 400)),
    more=st.binary(max_size=9),
)
def test_mutations_open_or_are_refused(
    tmp_path: Path, seed: bytes, edits: list[tuple[int, int]], cut: int | None, more: bytes
) -> None:
    content = bytearray(seed)
    for position, byte in edits:
        content[position % len(content)] = byte
    try:
        with opened(tmp_path, bytes(content[:cut]) + more) as checkpoint:
            for tensor in checkpoint.tensors.values():
                assert tensor.rows(0, tensor.info.n_rows).nbytes == tensor.info.nbytes
    except ConverterError as error:
        assert "m.safetensors" in str(error) and len(str(error).splitlines()) <= 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["F32", "I8", "dtype", "shape", "data_offsets", "__metadata__", (0, 24), (2, 3)]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@examples(100)
@given(header=st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), json_values, max_size=4))
def test_any_json_opens_or_is_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    try:
        opened(tmp_path, safetensors(header, F32_2X3)).close()
    except ConverterError as error:
        assert "m.safetensors" in str(error)


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
arrays = st.tuples(
    st.sampled_from(["<f4", "<f2", "<f8", "i1", "<i2", "<i4", "<i8", "u1"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.binary(max_size=8),
)


@examples(60)
@given(
    content=st.dictionaries(names, arrays, max_size=6),
    metadata=st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=3),
)
def test_round_trip_is_exact(tmp_path: Path, content: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors = {}
    for name, (dtype, shape, seed) in content.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensors[name] = np.frombuffer((seed * size)[:size].ljust(size, b"\x7f"), dtype).reshape(shape)
    with opened(tmp_path, safetensors_of(tensors, metadata)) as checkpoint:
        (file,) = layout(checkpoint, tmp_path / "out.safetensors", WriteOptions()).files
        file.path.write_bytes(assembled(file))
    with open_safetensors(tmp_path / "out.safetensors") as again:
        assert again.metadata == metadata
        assert again.tensors.keys() == tensors.keys()
        for name, array in tensors.items():
            ours = again.tensors[name].array()
            assert ours.dtype == array.dtype and ours.shape == array.shape and ours.tobytes() == array.tobytes()
