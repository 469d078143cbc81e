"""TensorFlow's files: checkpoints V1 and V2, SavedModel variables, frozen graphs; made by hand here, and real ones."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.protobuf import blob, number, varint
from support.tensorflow_files import (
    ALL,
    BIG,
    CODES,
    F6,
    HALVES,
    HEADER,
    NUMBERS,
    S23,
    V1,
    Axes,
    block,
    bundle,
    const,
    entry,
    extent,
    good,
    graph,
    mask,
    masked,
    shape,
    table,
    v1,
)

from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, MissingPart, UnsupportedFeature
from converter.events import Dropped, Note
from converter.formats.registry import open_checkpoint
from converter.formats.tensorflow import sstable
from converter.formats.tensorflow.sstable import MAGIC, unsnappy
from converter.formats.tensorflow.values import slice_key
from converter.request import Source
from converter.storage.files import InMemory

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def everything(path: Path, name: str | None = None) -> dict[str, np.ndarray]:
    with open_checkpoint(Source(path, format=name)) as checkpoint:
        return {name: tensor.array() for name, tensor in checkpoint.tensors.items()}


def same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


# ------------------------------------------------------------------------------------------ checksums, compression


def test_stored_checksums_are_masked() -> None:
    """By the rotation and the constant of TensorFlow's crc32c.h."""
    for crc in (0, 1, 0xE3069283, 0xFFFFFFFF, 1 << 31, 0x5D7D1528):
        assert sstable.masked(crc) == mask(crc)


def test_snappy() -> None:
    # a literal, a copy of 4 from 3 before (overlapping itself), a copy of 5 by a 16-bit offset, one by 32 bits
    packed = b"\x12" + b"\x08abc" + bytes([0b001, 3]) + bytes([4 << 2 | 2, 7, 0]) + bytes([5 << 2 | 3, 12, 0, 0, 0])
    assert unsnappy(InMemory(Path("t"), packed)) == b"abcabcaabcababcabc"
    for bad in (packed[:-1], packed[:1] + b"\x08ab", b"\x05\x01\x03", b"\xff\xff\xff\xff\x0f\x00a", packed + b"\x00z"):
        with pytest.raises(CorruptFile):
            unsnappy(InMemory(Path("t"), bad))


# --------------------------------------------------------------------------------------------------- version 2


def test_every_type_and_many_blocks(tmp_path: Path) -> None:
    numbers = np.arange(12).reshape(3, 4)
    arrays: dict[str, np.ndarray] = {f"v/{code:02}": numbers.astype(kind) for kind, code in CODES.items()}
    arrays |= {"w/scalar": np.array(7, "<f4"), "w/zero": np.zeros((0, 3), "<f4")}
    same(everything(bundle(tmp_path, arrays)), arrays)


def test_texts_alone_are_no_model(tmp_path: Path) -> None:
    texts = {b"_CHECKPOINTABLE_OBJECT_GRAPH": entry(7, (), 0, b""), b"words": entry(7, (2,), 0, b"")}
    path = bundle(tmp_path, {}, extra=texts)
    with pytest.raises(UnsupportedFeature, match="holds no tensors of numbers"):
        open_checkpoint(path)


def test_object_names_and_texts(tmp_path: Path) -> None:
    texts = {b"_CHECKPOINTABLE_OBJECT_GRAPH": entry(7, (), 0, b""), b"words": entry(7, (2,), 0, b"")}
    path = bundle(tmp_path, {"net/w/.ATTRIBUTES/VARIABLE_VALUE": F6, "step": np.array(3)}, extra=texts)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["net/w", "step"]
        assert checkpoint.dialect is None
        assert [type(event) for event in checkpoint.events] == [Note, Dropped]


def test_suffix_stays_where_names_would_meet(tmp_path: Path) -> None:
    arrays = {"w": F6, "w/.ATTRIBUTES/VARIABLE_VALUE": -F6}
    same(everything(bundle(tmp_path, arrays)), arrays)


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (UnsupportedFeature, {"header": number(1, 1) + blob(3, number(1, 1), number(2, 1000))}),
        (UnsupportedFeature, {"header": number(1, 1) + blob(3, number(1, 1), number(3, 1))}),
        (UnsupportedFeature, {"header": number(1, 1) + number(2, 1)}),
        (CorruptFile, {"header": number(1, 0)}),
        (CorruptFile, {"shard": 1}),
        (CorruptFile, {"shard": -1}),
        (CorruptFile, {"begin": 1 << 62}),
        (CorruptFile, {"begin": -1}),
        (CorruptFile, {"size": 8}),
        (CorruptFile, {"size": -1}),
        (CorruptFile, {"extra": {b"x": entry(1, (2,), 0, F6.tobytes()[:8])}}),  # on the bytes of another tensor
        (CorruptFile, {"extra": {b"x": entry(0, (2,), 24, b"")}}),
        (UnsupportedFeature, {"extra": {b"x": entry(99, (0,), 24, b"")}}),
        (CorruptFile, {"extra": {b"x": entry(1, (-1,), 24, b"")}}),
        (CorruptFile, {"extra": {b"x": entry(1, (1 << 40, 1 << 40), 24, b"")}}),
        (CorruptFile, {"extra": {b"x\xff": entry(1, (0,), 24, b"")}}),
        (CorruptFile, {"extra": {b"x\x1b[31m": entry(1, (0,), 24, b"")}}),
        (CorruptFile, {"extra": {b"\0lost": entry(1, (0,), 24, b"")}}),
    ],
)
def test_refused(tmp_path: Path, error: type[ConverterError], changes: dict[str, Any]) -> None:
    path = bundle(tmp_path, {"a": F6}, **changes)
    with pytest.raises(error, match=r"m\."):
        open_checkpoint(path)


def test_data_is_read_late_and_compared(tmp_path: Path) -> None:
    path = bundle(tmp_path, {"a": F6, "b": F6})
    data = bytearray((tmp_path / "m.data-00000-of-00001").read_bytes())
    data[30] ^= 1
    (tmp_path / "m.data-00000-of-00001").write_bytes(data)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["a"].array().tobytes() == F6.tobytes()
        with pytest.raises(CorruptFile, match="'b' does not have its CRC-32C"):
            checkpoint.tensors["b"].array()
    assert main([str(path), str(tmp_path / "out.safetensors")]) == 11
    assert not (tmp_path / "out.safetensors").exists()


def test_shards(tmp_path: Path) -> None:
    entries = {b"a": entry(1, (2, 3), 0, F6.tobytes()), b"b": entry(1, (2, 3), 4, F6.tobytes(), shard=1)}
    (tmp_path / "m.index").write_bytes(table({b"": number(1, 2)} | entries))
    (tmp_path / "m.data-00000-of-00002").write_bytes(F6.tobytes())
    with pytest.raises(MissingPart, match="00001-of-00002"):
        open_checkpoint(tmp_path / "m.index")
    (tmp_path / "m.data-00001-of-00002").write_bytes(b"rest" + F6.tobytes())
    same(everything(tmp_path / "m.data-00001-of-00002"), {"a": F6, "b": F6})


def test_shards_stay_in_the_folder(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    path = bundle(model, {"a": F6})
    (model / "m.data-00000-of-00001").rename(tmp_path / "outside")
    (model / "m.data-00000-of-00001").symlink_to(tmp_path / "outside")
    with pytest.raises(CorruptFile, match="leads out of the folder"):
        open_checkpoint(path)


def partitioned(folder: Path, array: np.ndarray, parts: Sequence[Axes], leave_out: int | None = None) -> Path:
    data, entries = b"", {}
    for index, part in enumerate(parts):
        piece = array[tuple(slice(a, None if n is None else a + n) for a, n in part)]
        if index != leave_out:
            entries[slice_key("p", part)] = entry(1, piece.shape, len(data), piece.tobytes())
        data += piece.tobytes()
    whole = number(1, 1) + blob(2, shape(*array.shape)) + b"".join(blob(7, extent(*part)) for part in parts)
    (folder / "m.index").write_bytes(table({b"": HEADER} | dict(sorted((entries | {b"p": whole}).items()))))
    (folder / "m.data-00000-of-00001").write_bytes(data)
    return folder / "m.index"


@pytest.mark.parametrize(
    "parts",
    [
        [((0, None), (0, None))],
        [((200, 100), (0, None)), ((0, 70), (0, None)), ((70, 130), (0, None))],
        [((0, 100), (0, 3)), ((0, 100), (3, 4)), ((100, 200), (0, 7))],
    ],
)
def test_partitioned(tmp_path: Path, parts: list[Axes]) -> None:
    path = partitioned(tmp_path, BIG, parts)
    same(everything(path), {"p": BIG})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["p"].rows(60, 210).tobytes() == BIG[60:210].tobytes()


def test_partitioned_vector(tmp_path: Path) -> None:
    same(everything(partitioned(tmp_path, BIG.reshape(-1), [((0, 1000),), ((1000, 1100),)])), {"p": BIG.reshape(-1)})


@pytest.mark.parametrize(
    ("parts", "leave_out"),
    [
        ([((0, 200), (0, 7))], None),
        ([((0, 200), (0, 7)), ((100, 100), (0, 7))], None),
        ([((0, 150), (0, 6)), ((0, 150), (5, 2)), ((150, 150), (0, 6)), ((150, 150), (5, 1))], None),
        ([((0, 200), (0, 7)), ((200, 100), (0, 7))], 1),
        ([((0, 200), (0, 7)), ((200, 101), (0, 7))], None),
    ],
)
def test_partitioned_badly(tmp_path: Path, parts: list[Axes], leave_out: int | None) -> None:
    with pytest.raises(CorruptFile, match="slice"):
        open_checkpoint(partitioned(tmp_path, BIG, parts, leave_out))


# ------------------------------------------------------------------------------------------------- state files


@pytest.mark.parametrize("named", ["m", "/somewhere/else/m"])
def test_state_file(tmp_path: Path, named: str) -> None:
    bundle(tmp_path, {"a": F6})
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "old"\n')
    same(everything(tmp_path), {"a": F6})
    same(everything(tmp_path / "checkpoint"), {"a": F6})


@pytest.mark.parametrize("named", ["../m", "x/../../m", "..", "", "m\0", "a:m", "\\m"])
def test_state_file_leads_nowhere_else(tmp_path: Path, named: str) -> None:
    bundle(tmp_path, {"a": F6})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
    with pytest.raises(CorruptFile):
        open_checkpoint(tmp_path / "model")


def test_state_file_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m"\n')
    with pytest.raises(MissingPart, match="download"):
        open_checkpoint(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m"\nmodel_checkpoint_path: "n"\n')
    with pytest.raises(CorruptFile, match="one model_checkpoint_path"):
        open_checkpoint(tmp_path)


def test_saved_model_without_variables(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    with pytest.raises(MissingPart, match=r"variables\.index"):
        open_checkpoint(tmp_path)


# --------------------------------------------------------------------------------------------------- version 1


WANTED = {"f": F6, "i": NUMBERS, "h": HALVES, "p": F6}


@pytest.mark.parametrize("compress", [False, True])
def test_version_1(tmp_path: Path, compress: bool) -> None:
    (tmp_path / "m.ckpt").write_bytes(v1(V1, compress))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m.ckpt"\n')
    same(everything(tmp_path / "m.ckpt"), WANTED)
    same(everything(tmp_path), WANTED)


def test_version_1_in_parts(tmp_path: Path) -> None:
    halves = [{"p": (1, (2, 3), [part])} for part in V1["p"][2]]
    (tmp_path / "m-00000-of-00002").write_bytes(v1(halves[0]))
    with pytest.raises(MissingPart):
        open_checkpoint(tmp_path / "m-00000-of-00002")
    (tmp_path / "m-00001-of-00002").write_bytes(v1(halves[1]))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m-?????-of-00002"\n')
    same(everything(tmp_path), {"p": F6})
    same(everything(tmp_path / "m-00001-of-00002"), {"p": F6})


@pytest.mark.parametrize(
    "changed",
    [
        {"f": (1, (2, 3), [(ALL, blob(5, F6.tobytes() + b"\0\0\0\0"))])},  # more values than elements
        {"f": (1, (2, 3), [(ALL, blob(5, F6.tobytes()[:-1]))])},
        {"f": (1, (2, 3), [(ALL, blob(6, F6.tobytes()))])},  # doubles
        {"f": (1, (1 << 20, 1 << 10), [(ALL, blob(5, F6.tobytes()))])},  # 4 GB of the last value
        {"f": (1, (2, 3), [(((0, 1), (0, None)), blob(5, F6[:1].tobytes()))])},
    ],
)
def test_version_1_refused(tmp_path: Path, changed: Any) -> None:
    (tmp_path / "m.ckpt").write_bytes(v1(changed))
    with pytest.raises(CorruptFile):
        open_checkpoint(tmp_path / "m.ckpt")


def test_version_1_checksums_are_compared(tmp_path: Path) -> None:
    data = bytearray(v1(V1))
    at = data.index(F6.tobytes())
    data[at] ^= 1
    (tmp_path / "m.ckpt").write_bytes(data)
    with pytest.raises(CorruptFile, match="CRC-32C"):
        everything(tmp_path / "m.ckpt")


# ----------------------------------------------------------------------------------------------- frozen graphs


def test_constants(tmp_path: Path) -> None:
    function = blob(1, blob(1, blob(1, b"fn")), blob(3, const("inner", number(1, 1), S23, blob(4, F6.tobytes()))))
    path = graph(
        tmp_path,
        const("raw", number(1, 1), S23, blob(4, F6.tobytes())),
        const("last", number(1, 1), S23, blob(5, F6.tobytes()[:12])),
        const("one", number(1, 3), S23, blob(7, varint(-9))),
        const("none", number(1, 10), S23),
        const("scalar", number(1, 1), blob(2), varint(5 << 3 | 5) + struct.pack("<f", 2.5)),
        const("packed", number(1, 9), S23, blob(10, *map(varint, range(4))), number(10, 4), number(10, -5)),
        const("text", number(1, 7), blob(2), blob(8, b"hello")),
        const("ignored", number(1, 1), operation=b"Placeholder"),
        library=blob(2, function),
    )
    wanted: dict[str, np.ndarray] = {
        "raw": F6,
        "last": np.array([[0, 1, 2], [2, 2, 2]], "<f4"),
        "one": np.full((2, 3), -9, "<i4"),
        "none": np.zeros((2, 3), "?"),
        "scalar": np.array(2.5, "<f4"),
        "packed": np.array([[0, 1, 2], [3, 4, -5]]),
        "fn/inner": F6,
    }
    same(everything(path), wanted)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "tf-graph"
        assert any("text" in str(event) for event in checkpoint.events)


@pytest.mark.parametrize(
    "nodes",
    [
        [const("a", number(1, 1), S23, blob(4, F6.tobytes()[:20]))],
        [const("a", number(1, 1), S23, blob(4, F6.tobytes()), blob(5, F6.tobytes()))],
        [const("a", number(1, 1), S23, blob(6, F6.tobytes()))],
        [const("a", number(1, 3), S23, blob(7, varint(1 << 40)))],
        [const("a", number(1, 3), S23, blob(7, b"\xff\xff"))],
        [const("a", number(1, 1), blob(2, shape(1 << 15, 1 << 15)), blob(5, b"\0\0\0\0"))],
        [const("a", number(1, 1), blob(2, shape(1 << 40, 1 << 40)))],
        [const("a", number(1, 1), S23)] * 2,
        [const("a", number(1, 1), blob(2, number(3, 1)))],
        [const("a", number(1, 0), S23)],
        [const("a", number(1, 1), S23, operation=b"Placeholder")],
    ],
)
def test_constants_refused(tmp_path: Path, nodes: list[bytes]) -> None:
    path = graph(tmp_path, *nodes)
    with pytest.raises(CorruptFile, match=r"g\.pb"):
        everything(path)


# ------------------------------------------------------------------------------------------ mutations, truncation


@RELAXED
@given(data=st.data())
def test_mutations_end_as_errors(tmp_path: Path, data: st.DataObject) -> None:
    path, kind = data.draw(st.sampled_from(good(tmp_path)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        everything(path, kind)
    except ConverterError as error:
        assert str(tmp_path) in str(error)


@RELAXED
@given(key=st.binary(max_size=12), value=st.binary(max_size=40), header=st.booleans())
def test_any_entry_ends_as_an_error(tmp_path: Path, key: bytes, value: bytes, header: bool) -> None:
    """Whole tables with right checksums around bytes that mean nothing."""
    entries = {b"": value} if header else {b"": HEADER, (key or b"k"): value}
    (tmp_path / "t.index").write_bytes(table(entries))
    (tmp_path / "t.data-00000-of-00001").write_bytes(bytes(64))
    try:
        everything(tmp_path / "t.index")
    except ConverterError as error:
        assert str(tmp_path) in str(error)


def test_truncated_tables_are_refused(tmp_path: Path) -> None:
    for path, kind in good(tmp_path)[:3]:
        content = path.read_bytes()
        for size in range(0, len(content), 7):
            path.write_bytes(content[:size])
            with pytest.raises(ConverterError):
                everything(path, kind)


def test_keys_that_repeat_each_other_are_bounded(tmp_path: Path) -> None:
    """A long key of which every entry takes all but the last byte: a megabyte in, gigabytes of keys."""
    long = b"k" * 60_000
    out = bytearray(varint(0) + varint(len(long)) + varint(0) + long)
    for key in range(100_000):
        tail = struct.pack(">I", key)
        out += varint(len(long)) + varint(4) + varint(0) + tail
    content = bytes(out) + struct.pack("<2I", 0, 1)
    data = bytearray(content + b"\0" + masked(content + b"\0"))
    handles = []
    for part in (block([]), block([(b"\xff", varint(0) + varint(len(content)))])):
        handles.append(varint(len(data)) + varint(len(part)))
        data += part + b"\0" + masked(part + b"\0")
    (tmp_path / "t.index").write_bytes(bytes(data) + b"".join(handles).ljust(40, b"\0") + MAGIC)
    with pytest.raises(CorruptFile, match="too long or out of order"):
        open_checkpoint(tmp_path / "t.index")


# ------------------------------------------------------------------------------------------------- real files


def keras_weights(path: Path) -> set[tuple[tuple[int, ...], bytes]]:
    h5py = pytest.importorskip("h5py")
    found: list[np.ndarray] = []
    keep: Callable[[str, Any], None] = lambda _, item: found.append(item[()]) if hasattr(item, "dtype") else None  # noqa: E731
    with h5py.File(path) as file:
        file.visititems(keep)
    return {(array.shape, array.tobytes()) for array in found}


def test_variables_that_are_exported_twice_are_read_once(tmp_path: Path) -> None:
    """Keras lists all of them once more; one that stands in that list alone stays, and twins stay two."""
    zero = np.zeros(3, "<f4")
    own = {"trainable_variables/0": F6, "variables/0": zero, "variables/1": zero}
    again = {f"_all_variables/{i}": array for i, array in enumerate((F6, zero, zero, zero, F6 + 1))}
    every = {f"{name}/.ATTRIBUTES/VARIABLE_VALUE": array for name, array in (own | again).items()}
    with open_checkpoint(bundle(tmp_path, every)) as found:
        assert set(found.tensors) == {*own, "_all_variables/3", "_all_variables/4"}
        assert [str(event) for event in found.events] == [
            "3 variables under _all_variables/ are those of other names again; left out"
        ]


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("ckpt_v1", 80),
        ("ckpt_v1/model.ckpt", 80),
        ("ckpt_v2", 80),
        ("ckpt_v2/model.ckpt.index", 80),
        ("savedmodel", 80),
        ("savedmodel/saved_model.pb", 80),
        ("frozen.pb", 96),
    ],
)
def test_real_files_hold_the_weights_of_their_keras_twin(data: Path, name: str, tensors: int) -> None:
    folder = data / "derived-tf-face-emotion"
    if not folder.is_dir():
        pytest.skip("derived-tf-face-emotion is not among the test data")
    weights = keras_weights(folder / "model.keras3.h5")
    found = everything(folder / name)
    assert len(found) == tensors
    equal = {(array.shape, array.tobytes()) for array in found.values()} & weights
    assert equal == weights
    if name != "frozen.pb":  # which has constants of its own
        assert all((array.shape, array.tobytes()) in weights for array in found.values())


@pytest.mark.parametrize("name", ["ckpt_v1", "savedmodel", "frozen.pb"])
def test_real_files_to_safetensors(data: Path, tmp_path: Path, name: str) -> None:
    source = data / "derived-tf-face-emotion" / name
    if not source.exists():
        pytest.skip("derived-tf-face-emotion is not among the test data")
    assert main([str(source), str(tmp_path / "m.safetensors")]) == 0
    same(dict(sorted(everything(tmp_path / "m.safetensors").items())), dict(sorted(everything(source).items())))
