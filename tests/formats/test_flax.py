"""Flax checkpoints: what is refused, what is read, and that writing gives back the same."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, UnsupportedFeature
from converter.formats.base import WriteOptions
from converter.formats.flax import reader, writer
from converter.formats.registry import open_checkpoint
from converter.request import Source
from converter.storage import output
from converter.tensors.dtypes import BY_NUMPY, DTYPES

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ------------------------------------------------------------------- MessagePack by hand, from its specification


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return b"\xd9" + struct.pack(">B", len(data)) + data


def items(first: int, *parts: bytes) -> bytes:
    return bytes([first + len(parts)]) + b"".join(parts)


def maps(**entries: bytes) -> bytes:
    return bytes([0x80 + len(entries)]) + b"".join(text(key) + value for key, value in entries.items())


def binary(data: bytes, length: int | None = None) -> bytes:
    return b"\xc6" + struct.pack(">I", len(data) if length is None else length) + data


def ext(code: int, payload: bytes, length: int | None = None) -> bytes:
    return b"\xc9" + struct.pack(">Ib", len(payload) if length is None else length, code) + payload


def number(value: int) -> bytes:
    return b"\xd3" + struct.pack(">q", value)


def ndarray(shape: Any, dtype: str, data: bytes, code: int = 1) -> bytes:
    sizes = shape if isinstance(shape, bytes) else items(0x90, *map(number, shape))
    return ext(code, items(0x90, sizes, text(dtype), binary(data)))


F6 = np.arange(6, dtype="<f4").tobytes()
GOOD = ndarray((2, 3), "float32", F6)
MARK = text("__msgpack_chunked_array__")


def chunked(shape: bytes, chunks: bytes) -> bytes:
    return b"\x83" + MARK + b"\xc3" + text("shape") + shape + text("chunks") + chunks


def written(folder: Path, data: bytes) -> Path:
    path = folder / "m.msgpack"
    path.write_bytes(data)
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(Source(path, format="flax")) as checkpoint:
        return {name: tensor.array() for name, tensor in checkpoint.tensors.items()}


def save(path: Path, target: Path) -> Path:
    """The checkpoint at `path`, written as Flax."""
    with open_checkpoint(path) as checkpoint:
        output.write(writer.layout(checkpoint, target, WriteOptions()), threads=2)
    return target


# ------------------------------------------------------------------------------------------------- reading

BAD = {
    "empty": b"",
    "root is a number": b"\x01",
    "root is an array": items(0x90, GOOD),
    "no array": maps(a=b"\x01"),
    "empty map": b"\x80",
    "truncated": maps(a=GOOD)[:-3],
    "trailing byte": maps(a=GOOD) + b"\xc0",
    "unused byte": maps(a=GOOD, b=b"\xc1"),
    "key twice": b"\x82" + text("a") + GOOD + text("a") + GOOD,
    "key is a number": b"\x81\x01" + GOOD,
    "key is not UTF-8": b"\x81" + text(b"\xff") + GOOD,
    "key with a NUL": b"\x81" + text("a\0b") + GOOD,
    "key of the mark, not first": b"\x82" + text("a") + GOOD + MARK + b"\xc3",
    "map bomb": b"\xdf\xff\xff\xff\xff" + text("a") + GOOD,
    "array bomb": maps(a=GOOD, b=b"\xdd\xff\xff\xff\xff"),
    "ext bomb": maps(a=ext(1, b"", 0xFFFFFFFF)),
    "text bomb": maps(a=GOOD, b=b"\xdb\xff\xff\xff\xff"),
    "two paths, one name": b"\x82" + text("a.b") + GOOD + text("a") + maps(b=GOOD),
    "shape is a number": maps(a=ndarray(b"\x06", "float32", F6)),
    "shape of texts": maps(a=ndarray(items(0x90, text("6")), "float32", F6)),
    "shape of floats": maps(a=ndarray(items(0x90, b"\xcb" + struct.pack(">d", 6.0)), "float32", F6)),
    "shape of bools": maps(a=ndarray(b"\x91\xc3", "float32", F6[:4])),
    "shape is negative": maps(a=ndarray((-2, -3), "float32", F6)),
    "shape infers": maps(a=ndarray((-1,), "float32", F6)),
    "shape overflows to zero": maps(a=ndarray((1 << 32, 1 << 32, 0), "float32", b"")),
    "shape is huge": maps(a=ndarray((1 << 40, 1 << 20), "float32", F6)),
    "rank 65": maps(a=ndarray(b"\xdc\x00\x41" + b"\x01" * 65, "float32", F6[:4])),
    "bytes too few": maps(a=ndarray((2, 3), "float32", F6[:-1])),
    "bytes too many": maps(a=ndarray((2, 3), "float32", F6 + b"\0")),
    "bytes are a text": maps(a=ext(1, items(0x90, b"\x91\x06", text("float32"), text(F6)))),
    "bytes longer than the extension": maps(a=ext(1, items(0x90, b"\x91\x06", text("float32"), binary(F6, 99)))),
    "two of three": maps(a=ext(1, items(0x90, b"\x91\x06", text("float32")))),
    "more in the extension": maps(a=ext(1, items(0x90, b"\x91\x06", text("float32"), binary(F6)) + b"\xc0")),
    "empty extension": maps(a=ext(1, b"")),
    "type is a number": maps(a=ext(1, items(0x90, b"\x91\x06", b"\x04", binary(F6)))),
    "complex of one": maps(a=GOOD, b=ext(2, b"\x91\x01")),
    "complex of texts": maps(a=GOOD, b=ext(2, items(0x90, text("1"), text("2")))),
    "chunks are a text": maps(a=chunked(maps(), text("x"))),
    "chunk is missing": maps(a=chunked(b"\x81" + text("0") + b"\x0c", b"\x81" + text("1") + GOOD)),
    "chunk is not flat": maps(a=chunked(b"\x81" + text("0") + b"\x06", b"\x81" + text("0") + GOOD)),
    "chunk is no array": maps(a=chunked(b"\x81" + text("0") + b"\x06", b"\x81" + text("0") + b"\x01")),
    "no chunks": maps(a=chunked(b"\x81" + text("0") + b"\x00", b"\x80")),
    "chunks are too few": maps(
        a=chunked(b"\x81" + text("0") + number(1 << 60), b"\x81" + text("0") + ndarray((6,), "float32", F6))
    ),
    "mark is false": maps(a=b"\x83" + MARK + b"\xc2" + text("shape") + b"\x80" + text("chunks") + b"\x80"),
}
UNSUPPORTED = {
    **{
        f"type {name}": maps(a=ndarray((6,), name, F6))
        for name in ("object", "|O8", "f4,f4", "V2000000000", "M8[ns]", "float31", ">f4", "<U1", "complex256", "")
    },
    "unknown extension": maps(a=GOOD, b=ext(42, b"x")),
    "timestamp": maps(a=GOOD, b=ext(-1, b"\0\0\0\0")),
    "deep": b"\x81\xa1a" * 100_000 + GOOD,
    "long paths": b"\x81\xda\x0f\x00" + b"k" * 3840 + b"\xdd\x00\x01\x00\x00" + b"\xc0" * (1 << 16),
    "many leaves": maps(a=GOOD, b=b"\xdd\x00\x00\x40\x01" + b"\xc0" * ((1 << 14) + 1)),
    "deep arrays": maps(b=b"\x91" * 100_000 + b"\xc0", a=GOOD),
    "long text": maps(a=GOOD, b=b"\xdb" + struct.pack(">I", 70000) + b"x" * 70000),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_flax_is_refused(tmp_path: Path, case: str) -> None:
    path = written(tmp_path, BAD[case])
    with pytest.raises(CorruptFile) as caught:
        read_all(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_no_checkpoint_needs_is_unsupported(tmp_path: Path, case: str) -> None:
    with pytest.raises(UnsupportedFeature):
        read_all(written(tmp_path, UNSUPPORTED[case]))


def test_more_items_than_any_checkpoint_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_NODES", 100)
    path = written(tmp_path, maps(a=GOOD, b=b"\xdc\x00\x62" + b"\xc0" * 98))
    assert set(read_all(path)) == {"a"}
    with pytest.raises(UnsupportedFeature, match="100 items"):
        read_all(written(tmp_path, maps(a=GOOD, b=b"\xdc\x00\x63" + b"\xc0" * 99)))


@pytest.mark.parametrize("name", reader.TYPES)
def test_every_type_arrives_bit_for_bit(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[reader.TYPES[name]]
    data = bytes(range(1, 1 + 2 * dtype.type_size)) if name != "bool" else b"\1\0"
    path = written(tmp_path, maps(a=maps(b=ndarray((2,), name, data)), s=ndarray((), name, data[: dtype.type_size], 3)))
    found = read_all(path)
    assert found["a.b"].dtype == dtype.numpy
    assert found["a.b"].tobytes() == data
    assert found["s"].shape == ()
    assert found["s"].tobytes() == data[: dtype.type_size]


def test_a_chunked_array_whose_rows_straddle_chunks(tmp_path: Path) -> None:
    values = np.arange(35, dtype="<i2")
    parts = [values[:4], values[4:4], values[4:19], values[19:]]
    chunks = items(0x80) + b"".join(
        text(str(i)) + ndarray(part.shape, "int16", part.tobytes()) for i, part in enumerate(parts)
    )
    shape = b"\x82" + text("0") + b"\x05" + text("1") + b"\x07"
    path = written(tmp_path, maps(a=chunked(shape, bytes([0x80 + len(parts)]) + chunks[1:])))
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint.tensors["a"]
        assert np.array_equal(tensor.array(), values.reshape(5, 7))
        assert tensor.rows(1, 3).tobytes() == values[7:21].tobytes()


def test_zero_sizes_and_empty_states(tmp_path: Path) -> None:
    path = written(tmp_path, maps(a=ndarray((0, 4), "float32", b""), state=b"\x80", more=b"\x90"))
    assert read_all(path)["a"].shape == (0, 4)
    assert save(path, tmp_path / "out.msgpack").stat().st_size < path.stat().st_size
    assert read_all(tmp_path / "out.msgpack")["a"].shape == (0, 4)


def test_opening_reads_no_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, maps(a=GOOD))
    with open_checkpoint(path) as checkpoint:
        monkeypatch.setattr("converter.storage.files.MappedFile.view", lambda *_: pytest.fail("read unasked"))
        assert checkpoint.tensors["a"].info.shape == (2, 3)


# ------------------------------------------------------------------------------------------------- writing


def double(value: float) -> bytes:
    return b"\xcb" + struct.pack(">d", value)


LEAVES = (
    (b"\xc0", b"\xc0"), (b"\xc3", b"\xc3"), (b"\xc2", b"\xc2"), (number(3), b"\x03"), (number(127), b"\x7f"),
    (number(128), b"\xcc\x80"), (number(-32), b"\xe0"), (number(-33), b"\xd0\xdf"), (number(300), b"\xcd\x01\x2c"),
    (number(-300), b"\xd1\xfe\xd4"), (number(70000), b"\xce\0\x01\x11\x70"), (number(-(2**63)), number(-(2**63))),
    (b"\xcf" + b"\xff" * 8, b"\xcf" + b"\xff" * 8), (number(-70000), b"\xd2\xff\xfe\xee\x90"),
    (double(0.1), double(0.1)), (double(-np.inf), double(-np.inf)), (double(-0.0), double(-0.0)),
    (b"\xca" + struct.pack(">f", 0.1), double(float(np.float32(0.1)))),
    (text("ä\n"), b"\xa3\xc3\xa4\n"), (text("x" * 32), text("x" * 32)), (binary(b"\0\xff"), b"\xc4\x02\0\xff"),
    (b"\xda" + struct.pack(">H", 300) + b"x" * 300, b"\xda" + struct.pack(">H", 300) + b"x" * 300),
    (b"\x80", b"\x80"), (b"\x90", b"\x90"), (b"\xde\0\0", b"\x80"), (b"\xdc\0\0", b"\x90"),
    (items(0x90, b"\x01", b"\xc0"), b"\x82\xa10\x01\xa11\xc0"),
)  # fmt: skip


@pytest.mark.parametrize(("given_", "expected"), LEAVES)
def test_what_is_no_array_comes_back(tmp_path: Path, given_: bytes, expected: bytes) -> None:
    """In the shortest form there is, as MessagePack's encoders write it; arrays as maps, as Flax's state dicts do."""
    path = written(tmp_path, maps(a=GOOD, leaf=given_))
    array = b"\xc7\x26\x01" + b"\x93\x92\x02\x03\xa7float32\xc4\x18" + F6
    assert save(path, tmp_path / "out.msgpack").read_bytes() == b"\x82\xa1a" + array + b"\xa4leaf" + expected


def test_complex_and_nan_come_back(tmp_path: Path) -> None:
    number_ = ext(2, b"\x92" + struct.pack(">BdBd", 0xCB, -0.0, 0xCB, 1e300))
    path = written(tmp_path, maps(a=GOOD, c=number_, n=b"\xcb" + struct.pack(">d", float("nan"))))
    once = save(path, tmp_path / "out.msgpack")
    assert number_[5:] in once.read_bytes()
    assert struct.pack(">d", float("nan")) in once.read_bytes()
    assert save(once, tmp_path / "again.msgpack").read_bytes() == once.read_bytes()


@pytest.mark.parametrize(
    "leaves",
    ["", "5", "[5]", '[["a", 1]]', '[[["x"], {"a": 1}]]', "[[[], 1]]", '[[["x"], 18446744073709551616]]', "[[[1], 2]]"],
)
def test_leaves_that_are_not_ours(tmp_path: Path, leaves: str) -> None:
    with open_checkpoint(written(tmp_path, maps(a=GOOD))) as checkpoint, pytest.raises(CorruptFile):
        writer.layout(checkpoint.replace(metadata={reader.LEAVES: leaves}), tmp_path / "o.msgpack", WriteOptions())


def test_a_leaf_cannot_replace_an_array(tmp_path: Path) -> None:
    with open_checkpoint(written(tmp_path, maps(a=GOOD))) as checkpoint, pytest.raises(UnsupportedFeature):
        writer.layout(checkpoint.replace(metadata={reader.LEAVES: '[[["a"], 1]]'}), tmp_path / "o", WriteOptions())


@pytest.mark.parametrize("limit", [8, 24, 40, 1000])
def test_large_arrays_are_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    values = np.arange(40, dtype="<f4")
    raw = values.tobytes()
    path = written(tmp_path, maps(a=ndarray((2, 4, 5), "float32", raw), b=ndarray((40,), "float32", raw)))
    monkeypatch.setattr(writer, "CHUNK_NBYTES", limit)
    out = save(path, tmp_path / "out.msgpack")
    assert (MARK[2:] in out.read_bytes()) == (limit < 160)
    found = read_all(out)
    assert np.array_equal(found["a"], values.reshape(2, 4, 5))
    assert np.array_equal(found["b"], values)


def checkpoint_of(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    from converter.checkpoint import Checkpoint
    from converter.tensors.tensor import from_array

    tensors = {name: from_array(name, array, BY_NUMPY[array.dtype], "test") for name, array in arrays.items()}
    target = folder / "w.msgpack"
    output.write(writer.layout(Checkpoint("test", folder, None, tensors), target, WriteOptions()), threads=1)
    return target


def test_names_that_stand_in_each_others_way(tmp_path: Path) -> None:
    names = ["a", "a.b", "a.b.c", "b.c.d", "b.c", "", "..", "x." * 200 + "y"]
    arrays = {name: np.full((2,), i, "<i4") for i, name in enumerate(names)}
    found = read_all(checkpoint_of(tmp_path, arrays))
    assert {name: int(array[0]) for name, array in found.items()} == {name: i for i, name in enumerate(names)}


def test_a_name_that_would_be_a_mark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature):
        checkpoint_of(tmp_path, {"a.__msgpack_chunked_array__": np.zeros(1, "<f4")})


KEYS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), max_size=5)
ARRAYS = st.dictionaries(
    st.lists(KEYS, min_size=1, max_size=4).map(".".join),
    st.tuples(st.sampled_from(sorted(reader.TYPES)), st.lists(st.integers(0, 4), max_size=4)),
    min_size=1,
    max_size=6,
)


@RELAXED
@given(ARRAYS)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, spec: dict[str, tuple[str, list[int]]]) -> None:
    folder = tmp_path_factory.mktemp("flax")
    arrays = {}
    for seed, (name, (type_, shape)) in enumerate(spec.items()):
        numpy = DTYPES[reader.TYPES[type_]].numpy
        assert numpy is not None
        data = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * numpy.itemsize, np.uint8)
        arrays[name] = (data % 2 if type_ == "bool" else data).view(numpy).reshape(shape)
    target = checkpoint_of(folder, arrays)
    found = read_all(target)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].tobytes() == array.tobytes()
    assert save(target, folder / "again.msgpack").read_bytes() == target.read_bytes()


SAMPLE = maps(
    p=maps(k=GOOD, c=chunked(b"\x81" + text("0") + b"\x06", b"\x81" + text("0") + ndarray((6,), "float32", F6))),
    step=b"\x03",
    z=ext(2, b"\x92\x01\x02"),
    s=ndarray((), "bfloat16", b"\x80?", 3),
    l=items(0x90, b"\xc0", text("t")),
)


@RELAXED
@given(st.data())
def test_damage_is_refused_or_read(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path, bytes(damaged))
    try:
        read_all(path)
    except ConverterError as error:
        assert path.name in str(error)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(ConverterError):
            read_all(written(tmp_path, SAMPLE[:length]))


@RELAXED
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    try:
        read_all(written(tmp_path, data))
    except ConverterError as error:
        assert "m.msgpack" in str(error)
    for name in ("x.msgpack", "x.bin"):
        assert reader.sniff(Path(name), data[:64]) in (True, False)


# ---------------------------------------------------------------------------------------------- real files


def test_real_model(data: Path, tmp_path: Path) -> None:
    """The Flax layout of the same weights: kernels transposed, Flax's words for weight. And back, byte for byte."""
    source = data / "derived-flax-stories260K" / "flax_model.msgpack"
    with open_checkpoint(data / "lm-stories260K-hf" / "model.safetensors") as other:
        expected = {name: tensor.array() for name, tensor in other.tensors.items()}
    found = read_all(source)
    for name, array in found.items():
        plain = name.removesuffix(".kernel").removesuffix(".embedding").removesuffix(".weight") + ".weight"
        if plain in expected:
            assert np.array_equal(array.T if name.endswith(".kernel") else array, expected.pop(plain))
    assert not expected.keys() - {"lm_head.weight"}
    assert main([str(source), str(tmp_path / "m.safetensors")]) == 0
    assert main([str(tmp_path / "m.safetensors"), str(tmp_path / "m.msgpack"), "--tensors-only"]) == 0
    back = read_all(tmp_path / "m.msgpack")
    assert {name: array.tobytes() for name, array in back.items()} == {n: a.tobytes() for n, a in found.items()}
    assert main([str(source), str(tmp_path / "same.msgpack")]) == 0
    assert (tmp_path / "same.msgpack").read_bytes() == source.read_bytes()


def test_flax_itself_reads_and_writes_the_same(tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    tree = {"params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int8)}, "step": 3}
    path = written(tmp_path, serialization.msgpack_serialize(tree))
    out = save(path, tmp_path / "out.msgpack").read_bytes()
    assert out == path.read_bytes()
    assert np.array_equal(serialization.msgpack_restore(out)["params"]["w"], tree["params"]["w"])
