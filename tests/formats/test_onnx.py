"""ONNX: what is refused, what is read, and that what is written is a model others read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.onnx_files import (
    GOOD,
    RAW,
    SIX,
    WHOLE,
    attribute,
    external,
    initializers,
    model,
    node,
    saved,
    tensor,
)
from support.protobuf import blob, number, varint

from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, MissingPart, UnsupportedFeature, UsageError
from converter.formats.base import WriteOptions
from converter.formats.onnx import checkpoint as ours
from converter.formats.onnx import model as onnx_model
from converter.formats.onnx import values as onnx_values
from converter.formats.onnx import writer
from converter.formats.registry import open_checkpoint
from converter.storage import output as fill
from converter.tensors.dtypes import DTYPES

RELAXED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def values(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with open_checkpoint(path) as checkpoint:
        return {name: each.array().copy() for name, each in checkpoint.tensors.items()}


def one(folder: Path, *fields: bytes, shape: tuple[int, ...] = (2,), code: int = 1) -> np.ndarray[Any, Any]:
    """The value of the one tensor of a model."""
    (value,) = values(saved(folder, model(initializers(tensor("w", shape, code, *fields))))).values()
    return value


# ------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("code", sorted(onnx_values.TYPES))
def test_every_type_in_raw_data(tmp_path: Path, code: int) -> None:
    dtype = DTYPES[onnx_values.TYPES[code][0]]
    data = bytes([0, 1] * dtype.type_size)
    value = one(tmp_path, blob(9, data), code=code)
    assert value.dtype == dtype.numpy and value.tobytes() == data


@pytest.mark.parametrize(
    ("code", "field", "given", "expected"),
    [
        (2, 5, [0, 255], "u1"),
        (3, 5, [-128, 127], "i1"),
        (4, 5, [0, 65535], "<u2"),
        (5, 5, [-32768, 1], "<i2"),
        (6, 5, [-(2**31), 7], "<i4"),
        (7, 7, [-(2**63), 2**63 - 1], "<i8"),
        (9, 5, [0, 1], "?"),
        (12, 11, [0, 2**32 - 1], "<u4"),
        (13, 11, [1, 2**64 - 1], "<u8"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_numbers_in_typed_fields(
    tmp_path: Path, code: int, field: int, given: list[int], expected: str, packed: bool
) -> None:
    form = blob(field, b"".join(map(varint, given))) if packed else b"".join(number(field, each) for each in given)
    value = one(tmp_path, form, code=code)
    assert value.dtype == np.dtype(expected) and value.tolist() == given


def test_floats_in_typed_fields(tmp_path: Path) -> None:
    wanted = np.array([1.5, -2.0], "<f4")
    assert one(tmp_path, blob(4, wanted.tobytes())).tolist() == [1.5, -2.0]
    single = b"".join(varint(4 << 3 | 5) + each.tobytes() for each in wanted)
    assert one(tmp_path, single).tolist() == [1.5, -2.0]
    assert one(tmp_path, blob(4, wanted[:1].tobytes()), blob(4, wanted[1:].tobytes())).tolist() == [1.5, -2.0]
    bits = blob(5, varint(0x3C00) + varint(0xC000))
    assert one(tmp_path, bits, code=10).tolist() == [1.0, -2.0]
    assert one(tmp_path, blob(4, SIX[:4].tobytes()), code=14).tolist() == [0 + 1j, 2 + 3j]


@pytest.mark.parametrize(
    ("code", "data", "expected"),
    [
        (21, b"\x10\x0f", [0, 1, 15]),
        (22, b"\x71\x08", [1, 7, -8]),
        (25, b"\xe4", [0, 1, 2]),
        (26, b"\xe4", [0, 1, -2]),
        (23, b"\x71\x0a", [0.5, 6.0, -1.0]),
    ],
)
def test_types_of_less_than_a_byte_are_decoded(tmp_path: Path, code: int, data: bytes, expected: list[float]) -> None:
    assert one(tmp_path, blob(9, data), shape=(3,), code=code).tolist() == expected
    assert one(tmp_path, blob(5, b"".join(map(varint, data))), shape=(3,), code=code).tolist() == expected


def test_rows_of_less_than_a_byte_begin_within_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path, model(initializers(tensor("w", (4, 3), 21, blob(9, bytes.fromhex("10325476 98ba"))))))
    with open_checkpoint(path) as checkpoint:
        w = checkpoint.tensors["w"]
        for row in range(4):
            assert w.rows(row, row + 1).tolist() == [[3 * row, 3 * row + 1, 3 * row + 2]]
        assert checkpoint.structure is not None
        assert [event.kind for event in checkpoint.structure.leave()] == ["Decoded"]


def test_names_of_constants_subgraphs_and_functions(tmp_path: Path) -> None:
    constant = tensor("inner", (), 1, blob(9, SIX[1:2].tobytes()))
    branch = node("Constant", "c", attribute("value", blob(5, constant)))
    graph = (
        initializers(GOOD),
        node("Constant", "lonely", attribute("value", blob(5, constant))),
        node("ConstantOfShape", "filled", attribute("value", blob(5, constant))),
        node("Constant", "ints", attribute("value_ints", number(8, 300), number(8, -1))),
        node("Constant", "float", attribute("value_float", varint(2 << 3 | 5) + SIX[2:3].tobytes())),
        node("If", "y", attribute("then_branch", blob(6, branch)), attribute("else_branch", blob(6, branch))),
    )
    function = blob(25, blob(1, "act") + blob(7, node("Constant", "alpha", attribute("value", blob(5, constant)))[2:]))
    found = values(saved(tmp_path, model(*graph, tail=function)))
    assert {name: value.tolist() for name, value in found.items()} == {
        "w": SIX.reshape(2, 3).tolist(), "lonely": 1.0, "filled.value": 1.0, "ints": [300, -1], "float": 2.0,
        "alpha": 1.0, "y.then_branch.c": 1.0, "y.else_branch.c": 1.0,
    }  # fmt: skip


def test_events_name_what_the_model_is(tmp_path: Path) -> None:
    texts = tensor("vocabulary", (1,), onnx_values.STRING, blob(6, b"\xff"))
    path = saved(tmp_path, model(initializers(GOOD, texts), node("MatMulNBits", "y"), node("DequantizeLinear", "z")))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.structure is not None
        told = [str(event) for event in (*checkpoint.events, *checkpoint.structure.leave())]
    assert any("vocabulary: dropped" in each for each in told)
    assert any(each.startswith("1 MatMulNBits nodes") for each in told)
    assert any(each.startswith("1 DequantizeLinear nodes (QDQ") for each in told)
    assert any("the 2 nodes of its graph are not" in each for each in told)


def test_texts_are_left_out_and_alone_they_are_no_model(tmp_path: Path) -> None:
    texts = tensor("vocabulary", (1,), onnx_values.STRING, blob(6, b"a"))
    constant = node("Constant", "words", attribute("value", blob(5, texts)))
    listed = node("Constant", "listed", attribute("value_strings", blob(9, b"a")))
    assert list(values(saved(tmp_path, model(initializers(GOOD, texts), constant, listed)))) == ["w"]
    for fields in ((initializers(texts),), (constant,), (listed,)):
        with pytest.raises(UnsupportedFeature, match="not one tensor of numbers"):
            open_checkpoint(saved(tmp_path, model(*fields)))


def test_external_data_in_several_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_bytes(b"....." + SIX.tobytes())
    (tmp_path / "b.bin").write_bytes(SIX[::-1].tobytes())
    tensors = initializers(
        tensor("a", (2, 3), 1, external("sub/a.bin", offset=5, length=24)),
        tensor("b", (6,), 1, external("./b.bin")),
        tensor("c", (3, 2), 1, external("b.bin", checksum="cf3c32e1a2e06b2a8f5c7c4f4a0a2a3c5f0c1b2d")),
    )
    path = saved(tmp_path, model(tensors))
    found = values(path)
    assert found["a"].tolist() == SIX.reshape(2, 3).tolist()
    assert found["b"].tolist() == SIX[::-1].tolist() == found["c"].reshape(-1).tolist()
    with open_checkpoint(path) as checkpoint:
        assert sorted(file.name for file in checkpoint.files) == ["a.bin", "b.bin", "model.onnx"]
        with pytest.raises(CorruptFile, match="SHA-1"):
            checkpoint.check()


def test_a_data_file_whose_name_would_steer_a_terminal(tmp_path: Path) -> None:
    path = saved(tmp_path, model(initializers(tensor("w", (2,), 1, external("w\x1b[2J.bin", offset=0, length=8)))))
    with pytest.raises(CorruptFile, match=r"'w\\x1b\[2J\.bin' is not a file name"):
        open_checkpoint(path)


def test_many_tensors_on_the_same_bytes_are_refused(tmp_path: Path) -> None:
    """Two may share them; a thousand are a file of a megabyte that would fill a disk."""
    (tmp_path / "w.bin").write_bytes(bytes(1 << 20))
    shared = [tensor(f"w{i}", (1 << 18,), 1, external("w.bin", offset=0, length=1 << 20)) for i in range(200)]
    assert len(values(saved(tmp_path, model(initializers(*shared[:2]))))) == 2
    with pytest.raises(CorruptFile, match="its tensors declare 209715200 bytes"):
        open_checkpoint(saved(tmp_path, model(initializers(*shared))))


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    """A model of 3 GiB, of which nearly all is a hole, opens at once, and its last values are where they are."""
    rows = 3 << 10
    (tmp_path / "big.data").touch()
    os.truncate(tmp_path / "big.data", rows << 20)
    with open(tmp_path / "big.data", "rb+") as file:
        file.seek(-4, os.SEEK_END)
        file.write(SIX[5:].tobytes())
    path = saved(tmp_path, model(initializers(tensor("w", (rows, 1 << 18), 1, external("big.data")))))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["w"].rows(rows - 1, rows)[0, -4:].tobytes() == SIX[5:].tobytes()


# ------------------------------------------------------------------------------------------------- refused

BAD_TENSORS = {
    "no type": (blob(8, "w") + RAW, CorruptFile, "says no type"),
    "type 999": (tensor("w", (2, 3), 999, RAW), UnsupportedFeature, "type 999"),
    "FLOAT6": (tensor("w", (2, 3), 27, RAW), UnsupportedFeature, "type 27"),
    "type -1": (tensor("w", (2, 3), -1, RAW), UnsupportedFeature, "type -1"),
    "short": (tensor("w", (2, 4), 1, RAW), CorruptFile, "has 24 bytes"),
    "none": (tensor("w", (2, 3), 1), CorruptFile, "has 0 bytes"),
    "negative size": (tensor("w", (-1,), 1, RAW), CorruptFile, "negative size"),
    "overflow": (tensor("w", (2**32, 2**32), 1), CorruptFile, r"2\*\*63"),
    "axes": (tensor("w", (1,) * 65, 1, RAW), CorruptFile, "axes"),
    "twice": (tensor("w", (2, 3), 1, RAW, blob(4, SIX.tobytes())), CorruptFile, "twice"),
    "raw twice": (tensor("w", (2, 3), 1, RAW, RAW), CorruptFile, "stands twice"),
    "raw and external": (tensor("w", (2, 3), 1, RAW, external("w.bin")), CorruptFile, "twice"),
    "other field": (tensor("w", (6,), 7, blob(4, SIX.tobytes())), CorruptFile, "wants int64_data"),
    "segment": (tensor("w", (2, 3), 1, RAW, blob(3, b"")), UnsupportedFeature, "part of"),
    "no name": (tensor("", (2, 3), 1, RAW), CorruptFile, "no name"),
    "control character": (tensor("w\x1b[2J", (2, 3), 1, RAW), CorruptFile, "control characters"),
    "wire type": (tensor("w", (2, 3), 1, number(9, 1)), CorruptFile, "another type"),
    "outside": (tensor("w", (2, 3), 1, external("../w.bin")), CorruptFile, "leads out"),
    "absolute": (tensor("w", (2, 3), 1, external("/etc/passwd")), CorruptFile, "leads out"),
    "missing": (tensor("w", (2, 3), 1, external("nowhere.bin")), MissingPart, "nowhere.bin"),
    "past the end": (tensor("w", (2, 3), 1, external("w.bin", offset=1)), CorruptFile, "has 24"),
    "length": (tensor("w", (2, 3), 1, external("w.bin", length=23)), CorruptFile, "says 23"),
    "negative": (tensor("w", (2, 3), 1, external("w.bin", length=-1)), CorruptFile, "'-1'"),
    "digits": (tensor("w", (2, 3), 1, external("w.bin", offset="9" * 20)), CorruptFile, "999"),
    "key": (tensor("w", (2, 3), 1, external("w.bin", basepath="..")), UnsupportedFeature, "basepath"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_initializers(tmp_path: Path, case: str) -> None:
    (tmp_path / "w.bin").write_bytes(SIX.tobytes())
    bad, error, message = BAD_TENSORS[case]
    with pytest.raises(error, match=message):
        open_checkpoint(saved(tmp_path, model(initializers(bad))))


@pytest.mark.parametrize("case", sorted(BAD_TENSORS.keys() - {"no name", "control character"}))
def test_bad_constants(tmp_path: Path, case: str) -> None:
    """A Constant's tensor needs no name; all else is as it is for initializers."""
    (tmp_path / "w.bin").write_bytes(SIX.tobytes())
    bad, error, message = BAD_TENSORS[case]
    with pytest.raises(error, match=message):
        open_checkpoint(saved(tmp_path, model(node("Constant", "w", attribute("value", blob(5, bad))))))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (number(1, 8), CorruptFile, "no graph"),
        (model(initializers(GOOD, GOOD)), CorruptFile, "called 'w'"),
        (model(initializers(GOOD)) * 2, CorruptFile, "stands twice"),
        (model(blob(15, b"")), CorruptFile, "has no values"),
        (model(node("Constant", "c", attribute("sparse_value", blob(22, b"")))), CorruptFile, "has no values"),
        (model(node("Relu", "y")), UnsupportedFeature, "not one tensor"),
        (model(initializers(GOOD))[:-1], CorruptFile, "truncated"),
        (number(1, 8) + varint(7 << 3 | 2) + varint(2**64 - 1), CorruptFile, "truncated"),
        (number(1, 8) + b"\x3b" * 100_000, CorruptFile, "wire type 3"),
        (number(1, 8) + b"\x3a" + b"\x80" * 10 + b"\x01", CorruptFile, "does not end"),
    ],
)
def test_bad_models(tmp_path: Path, data: bytes, error: type[ConverterError], message: str) -> None:
    with pytest.raises(error, match=message):
        open_checkpoint(saved(tmp_path, data))


def test_deep_graphs_are_refused_not_recursed_on(tmp_path: Path) -> None:
    graph = node("Relu", "y")
    for _ in range(onnx_model.MAX_DEPTH + 1):
        graph = node("If", "y", attribute("then_branch", blob(6, graph)))
    with pytest.raises(UnsupportedFeature, match="nested more than"):
        open_checkpoint(saved(tmp_path, model(graph)))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SIX.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptFile, match="leads out"):
        open_checkpoint(saved(folder, model(initializers(tensor("w", (2, 3), 1, external("w.bin"))))))


@pytest.mark.parametrize("form", [varint(1), varint(1) * 3, varint(1) + varint(256), varint(1) + b"\x80"])
def test_varints_are_counted_and_fit_when_they_are_read(tmp_path: Path, form: bytes) -> None:
    with pytest.raises(CorruptFile):
        one(tmp_path, blob(5, form), code=2)


def read_all(path: Path) -> None:
    """Open and read: a ConverterError is the only way to fail."""
    try:
        values(path)
    except ConverterError as error:
        assert len(str(error).splitlines()) <= 3
        assert "model.onnx" in str(error) or "w.bin" in str(error)


def test_truncation_anywhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(SIX.tobytes())
    for size in range(len(WHOLE)):
        with pytest.raises(ConverterError):
            open_checkpoint(saved(tmp_path, WHOLE[:size]))


@RELAXED
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutations_raise_only_our_errors(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    (tmp_path / "w.bin").write_bytes(SIX.tobytes())
    data = bytearray(WHOLE)
    for at, byte in changes:
        data[at] = byte
    read_all(saved(tmp_path, bytes(data)))


@RELAXED
@given(st.binary(max_size=200))
def test_any_bytes_raise_only_our_errors(tmp_path: Path, data: bytes) -> None:
    read_all(saved(tmp_path, b"\x08\x08\x3a" + data))


# ------------------------------------------------------------------------------------------------- writing


def written(folder: Path, source: Path, name: str = "out.onnx") -> Path:
    """The tensors of `source` as if they came from a format without graphs."""
    with open_checkpoint(source) as checkpoint:
        plain = checkpoint.replace(structure=None)
        fill.write(ours.layout(plain, folder / name, WriteOptions()), threads=2)
    return folder / name


def every_type(folder: Path) -> Path:
    """A model with each type twice, small (in the model) and large (in the data file), a scalar and an empty one."""
    rng = np.random.default_rng(4)
    parts = []
    for code, (name, _) in sorted(onnx_values.TYPES.items()):
        for size in (3, 1500):
            data = rng.integers(0, 2, size * DTYPES[name].type_size, np.uint8).tobytes()
            parts.append(tensor(f"{name}.{size}", (size,), code, blob(9, data)))
    parts += [tensor("scalar", (), 1, blob(9, SIX[:1].tobytes())), tensor("empty", (0, 4), 1)]
    metadata = blob(14, blob(1, "author") + blob(2, "ü"))
    return saved(folder, model(initializers(*parts), tail=metadata), "every.onnx")


def test_round_trip_of_every_type(tmp_path: Path) -> None:
    source = every_type(tmp_path)
    target = written(tmp_path, source)
    before, after = values(source), values(target)
    assert list(before) == list(after)
    for name, value in before.items():
        assert (value.dtype, value.shape, value.tobytes()) == (
            after[name].dtype, after[name].shape, after[name].tobytes(),
        )  # fmt: skip
    with open_checkpoint(target) as checkpoint:
        assert checkpoint.metadata == {"author": "ü"}
        outside = [t.source for t in checkpoint.tensors.values() if ".data@" in t.source]
    assert len(outside) == sum(value.nbytes > onnx_model.INLINE_NBYTES for value in before.values()) > 10
    assert all(int(source.rpartition("@")[2]) % writer.ALIGNMENT == 0 for source in outside)
    again = written(tmp_path, target, "again.onnx")
    assert again.with_name("again.onnx.data").read_bytes() == target.with_name("out.onnx.data").read_bytes()


def test_what_is_written_is_valid_for_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    source = every_type(tmp_path)
    target = written(tmp_path, source)
    onnx.checker.check_model(str(target), full_check=True)
    loaded = onnx.load(str(target))
    assert loaded.producer_name == ours.PRODUCER and loaded.doc_string == loaded.graph.doc_string == ours.LABEL
    ours_ = values(source)
    theirs = {each.name: numpy_helper.to_array(each) for each in loaded.graph.initializer}
    assert theirs.keys() == ours_.keys()
    for name, value in ours_.items():
        assert (theirs[name].shape, theirs[name].tobytes()) == (value.shape, value.tobytes()), name


def test_small_tensors_need_no_data_file(tmp_path: Path) -> None:
    target = written(tmp_path, saved(tmp_path, model(initializers(GOOD))))
    assert not target.with_name("out.onnx.data").exists()
    assert values(target)["w"].tolist() == SIX.reshape(2, 3).tolist()


def test_refused_before_anything_is_written(tmp_path: Path) -> None:
    with open_checkpoint(every_type(tmp_path)) as checkpoint:
        with pytest.raises(UnsupportedFeature, match="splitting"):
            ours.layout(checkpoint, tmp_path / "out.onnx", WriteOptions(split_max_tensors=2))
        with pytest.raises(UsageError, match="colon"):
            ours.layout(checkpoint, tmp_path / "o:ut.onnx", WriteOptions(external_data="always"))


def test_a_graph_is_not_lost_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path, model(initializers(GOOD), node("Relu", "y")))
    assert main([str(source), str(tmp_path / "out.safetensors")]) == 0
    assert "the 1 nodes of its graph are not" in capsys.readouterr().err
    assert main([str(source), str(tmp_path / "out.onnx")]) == 0
    assert "graph" not in capsys.readouterr().err
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_a_data_file_in_the_way_stops_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both files are there afterwards, or neither."""
    source = every_type(tmp_path)
    (tmp_path / "out.onnx.data").write_bytes(b"mine")
    assert main([str(source), str(tmp_path / "out.onnx"), "--external-data", "always"]) == 53
    assert "out.onnx.data: exists already" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists() and (tmp_path / "out.onnx.data").read_bytes() == b"mine"


def test_to_safetensors_and_back_by_the_command_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    large = rng.standard_normal((40, 30)).astype("<f4")
    source = saved(tmp_path, model(initializers(GOOD, tensor("large", (40, 30), 1, blob(9, large.tobytes())))))
    middle, target = tmp_path / "middle.safetensors", tmp_path / "target.onnx"
    assert main([str(source), str(middle)]) == 0
    assert main([str(middle), str(target)]) == 0
    for path in (middle, target):
        found = values(path)
        assert found["w"].tolist() == SIX.reshape(2, 3).tolist() and found["large"].tobytes() == large.tobytes()
    assert main([str(source), str(target), "--dtype", "bf16", "--force"]) == 0
    assert values(target)["large"].tobytes() == large.astype(DTYPES["BF16"].numpy).tobytes()


# ---------------------------------------------------------------------------------------------- real files

REAL = (
    "silero-vad/silero_vad.onnx", "silero-vad/silero_vad_16k_op15.onnx", "onnx-ortext/pytorch_super_resolution.onnx",
    "derived-onnx-stories260K/model.onnx", "derived-onnx-stories260K/external/model.onnx",
    "derived-onnx-stories260K/model.dynq8.onnx", "derived-onnx-stories260K/model.matmulnbits4.onnx",
    "basic-pitch/nmp.onnx",
)  # fmt: skip


def from_onnx(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a model by the onnx package, under the names that we give."""
    onnx = pytest.importorskip("onnx")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    found, graphs = {}, [onnx.load(str(path)).graph]
    while graphs:
        graph = graphs.pop()
        found.update({each.name: numpy_helper.to_array(each) for each in graph.initializer})
        for each in graph.node:
            for item in each.attribute:
                if item.HasField("t"):
                    suffix = "" if each.op_type == "Constant" else f".{item.name}"
                    found[each.output[0] + suffix] = numpy_helper.to_array(item.t)
                if item.HasField("g"):
                    graphs.append(item.g)
    return found


@pytest.mark.parametrize("name", REAL)
def test_real_files_by_value(data: Path, tmp_path: Path, name: str) -> None:
    path = data / name
    if not path.is_file():
        pytest.skip(f"{name} is not among the test data")
    wanted = from_onnx(path)
    for each in (path, written(tmp_path, path)):
        found = values(each)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
            assert found[key].tobytes() == value.tobytes(), key


def test_a_graph_without_tensors_is_told(data: Path) -> None:
    path = data / "onnx-ortext" / "test_bert_tokenizer.onnx"
    if not path.is_file():
        pytest.skip("test_bert_tokenizer.onnx is not among the test data")
    with pytest.raises(UnsupportedFeature, match="not one tensor of numbers"):
        open_checkpoint(path)
