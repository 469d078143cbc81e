"""ONNX to ONNX: the graph stays, tensors move and change type, and the model does what it did."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.onnx_files import SIX, WHOLE, external, initializers, model, node, saved, tensor
from support.protobuf import blob, number

import converter
from converter.cli.main import main
from converter.errors import ConverterError, UnsupportedFeature, UsageError
from converter.formats.onnx import writer
from converter.storage.protobuf import blob_key

onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")
numpy_helper = pytest.importorskip("onnx.numpy_helper")
FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16
RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RNG = np.random.default_rng(11)


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def named(name: str, value: np.ndarray[Any, Any]) -> Any:
    return numpy_helper.from_array(value, name)


def value_info(name: str, *shape: int, code: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, code, shape)


def branch(name: str) -> Any:
    """A graph with an initializer and a Constant of its own that also uses one from outside."""
    nodes = [
        helper.make_node("Constant", [], [f"{name}.c"], value=named("", weight(24, 24))),
        helper.make_node("MatMul", ["h", f"{name}.w"], [f"{name}.1"]),
        helper.make_node("MatMul", [f"{name}.1", f"{name}.c"], [f"{name}.2"]),
        helper.make_node("MatMul", [f"{name}.2", "outer"], [f"{name}.out"]),
    ]
    own = [named(f"{name}.w", weight(24, 24))]
    return helper.make_graph(nodes, name, [], [value_info(f"{name}.out", 2, 24)], own)


def rich() -> Any:
    """A model that runs, with all that must be kept: branches, a function, texts, annotations, what nobody knows."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("yes"), else_branch=branch("no")),
        helper.make_node("Constant", [], ["k"], value=named("k", weight(24, 24))),
        helper.make_node("MatMul", ["y", "k"], ["z"]),
        helper.make_node("Half", ["z"], ["out"], domain="test"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["codes"], axis=0),
        helper.make_node("MatMul", ["out", "codes"], ["out2"]),
    ]
    tensors = [
        named("w", weight(16, 24)), named("outer", weight(24, 24)), named("small", weight(4)),
        named("q", RNG.integers(-9, 9, (24, 300)).astype(np.int8)), named("scale", np.float32(0.5)),
        named("optional", weight(300)),
    ]  # fmt: skip
    inputs = [value_info("x", 2, 16), value_info("flag", code=9), value_info("optional", 300)]
    graph = helper.make_graph(
        nodes, "rich", inputs, [value_info("out", 2, 24), value_info("out2", 2, 300)], tensors,
        value_info=[value_info("w", 16, 24), value_info("h", 2, 24)],
    )  # fmt: skip
    annotation = graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    half = helper.make_function(
        "test", "Half", ["a"], ["b"],
        [
            helper.make_node("Constant", [], ["t"], value=named("t", np.full((24,), 0.5, np.float32))),
            helper.make_node("Mul", ["a", "t"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("test", 1)]
    built = helper.make_model(graph, functions=[half], opset_imports=opsets, ir_version=8, producer_name="tests")
    helper.set_model_props(built, {"author": "ü"})
    return built


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.onnx"
    onnx.save(rich(), str(path))
    return path


def graphs(graph: Any) -> Iterator[Any]:
    """A graph and those in its nodes."""
    yield graph
    for each in graph.node:
        for attribute in each.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)


def uncast(graph: Any) -> tuple[dict[str, np.ndarray[Any, Any]], list[Any]]:
    """Values by the names that a graph's operators use, and its nodes but Constants and the Casts of stored tensors."""
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    nodes = []
    for each in graph.node:
        if each.op_type == "Constant":
            values[each.output[0]] = numpy_helper.to_array(each.attribute[0].t)
        elif each.op_type == "Cast" and each.input[0] in values:
            assert each.attribute[0].name == "to"
            wanted = helper.tensor_dtype_to_np_dtype(each.attribute[0].i)
            values[each.output[0]] = values.pop(each.input[0]).astype(wanted)
        else:
            nodes.append(each)
    return values, nodes


def check_same_graph(before: Path, after: Path, rounded: Any = None) -> None:
    """Same nodes, names and values in every graph; values in `rounded` type where they are floats over 1 KiB."""
    onnx.checker.check_model(str(after), full_check=True)
    pairs = zip(graphs(onnx.load(str(before)).graph), graphs(onnx.load(str(after)).graph), strict=True)
    for old, new in pairs:
        (old_values, old_nodes), (new_values, new_nodes) = uncast(old), uncast(new)
        assert [each.op_type for each in old_nodes] == [each.op_type for each in new_nodes]
        assert [(list(each.input), list(each.output)) for each in old_nodes] == [
            (list(each.input), list(each.output)) for each in new_nodes
        ]
        assert (list(old.input), list(old.output), list(old.value_info)) == (
            list(new.input), list(new.output), list(new.value_info),
        )  # fmt: skip
        assert old_values.keys() == new_values.keys()
        inputs = {each.name for each in old.input}
        for name, value in old_values.items():
            changes = rounded is not None and value.dtype == np.float32 and value.nbytes > 1024 and name not in inputs
            wanted = value.astype(rounded).astype(np.float32) if changes else value
            assert new_values[name].dtype == value.dtype and new_values[name].tobytes() == wanted.tobytes(), name


def test_nothing_asked_nothing_changed(source: Path, tmp_path: Path) -> None:
    assert main([str(source), str(tmp_path / "out.onnx")]) == 0
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("external_data", ["auto", "always", "never"])
@pytest.mark.parametrize("dtype", [None, "f16", "bf16"])
@pytest.mark.parametrize("outside", [False, True])
def test_the_graph_is_kept(tmp_path: Path, external_data: str, dtype: str | None, outside: bool) -> None:
    path = tmp_path / "source.onnx"
    onnx.save(
        rich(), str(path), save_as_external_data=outside, location="all.bin", size_threshold=0, convert_attribute=True
    )
    target = tmp_path / "out.onnx"
    given_ = path.read_bytes()
    converter.convert(path, target, converter.Request(dtype=dtype, external_data=external_data))
    rounded = {None: None, "f16": np.float16, "bf16": helper.tensor_dtype_to_np_dtype(BFLOAT16)}[dtype]
    check_same_graph(path, target, rounded)
    old, new = onnx.load(str(path)), onnx.load(str(target), load_external_data=False)
    for kept in ("functions", "metadata_props", "opset_import", "ir_version", "producer_name"):
        if not (outside and kept == "functions"):  # whose tensors may have moved
            assert getattr(old, kept) == getattr(new, kept)
    assert list(old.graph.quantization_annotation) == list(new.graph.quantization_annotation)
    everything = [each for graph in graphs(new.graph) for each in graph.initializer]
    locations = [each for each in everything if each.data_location == 1]
    for each in locations:
        entries = {entry.key: entry.value for entry in each.external_data}
        assert entries["location"] == "out.onnx.data" and int(entries["offset"]) % writer.ALIGNMENT == 0
    assert bool(locations) == (external_data == "always" or (external_data == "auto" and outside))
    assert (tmp_path / "out.onnx.data").exists() == bool(locations)
    assert path.read_bytes() == given_
    stored = {each.name: each.data_type for each in everything}
    if dtype is not None:
        code = {"f16": FLOAT16, "bf16": BFLOAT16}[dtype]
        assert {name for name, each in stored.items() if each == code} == {
            "w.stored", "outer.stored", "yes.w.stored", "no.w.stored",
        }  # fmt: skip
    assert stored["scale"] == stored["small"] == stored["optional"] == FLOAT


def test_kept_types_are_told(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(source), str(tmp_path / "out.onnx"), "--dtype", "f16"]) == 0
    assert "type kept of 4 tensors, which the graph relies on" in capsys.readouterr().err
    assert main(["plan", str(source), str(tmp_path / "out.onnx"), "--dtype", "f16", "--json"]) == 0
    rules = {each["name"]: each["rule"] for each in json.loads(capsys.readouterr().out)["tensors"]}
    assert rules["w"] == "--dtype f16"
    assert rules["optional"] == "as in the source: an input of the graph, too"
    assert rules["scale"] == "as in the source: what DequantizeLinear works with"
    assert rules["small"] == "as in the source: no more than 1024 bytes"
    assert rules["t"] == "as in the source: part of a function"


def test_there_and_back(source: Path, tmp_path: Path) -> None:
    """Out into a data file and back in: the bytes of the start, but for where the values stand in a tensor."""
    assert main([str(source), str(tmp_path / "out.onnx"), "--external-data", "always"]) == 0
    assert main([str(tmp_path / "out.onnx"), str(tmp_path / "back.onnx"), "--external-data", "never"]) == 0
    assert onnx.load(str(tmp_path / "back.onnx")) == onnx.load(str(source))


def test_a_second_change_of_type_finds_free_names(source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    assert main([str(source), str(first), "--dtype", "f16"]) == 0
    assert main([str(first), str(second), "--dtype", "f32"]) == 0
    onnx.checker.check_model(str(second), full_check=True)
    names = [each.name for graph in graphs(onnx.load(str(second)).graph) for each in graph.initializer]
    assert len(names) == len(set(names)) and "outer.stored.stored" in names


def test_shared_bytes_stay_shared(tmp_path: Path) -> None:
    """Tied weights lie once in the data file, as they did."""
    value = weight(40, 40)
    (tmp_path / "w.bin").write_bytes(value.tobytes())
    both = [tensor(name, (40, 40), FLOAT, external("w.bin", offset=0, length=value.nbytes)) for name in "ab"]
    path = saved(tmp_path, model(initializers(*both), node("Relu", "y")))
    assert main([str(path), str(tmp_path / "out.onnx")]) == 0
    assert (tmp_path / "out.onnx.data").stat().st_size == value.nbytes
    found = onnx.load(str(tmp_path / "out.onnx")).graph.initializer
    assert [numpy_helper.to_array(each).tobytes() for each in found] == [value.tobytes()] * 2


def test_sparse_training_and_unknown_parts_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.bin").write_bytes(SIX.tobytes())
    values = tensor("s", (6,), FLOAT, external("w.bin", offset=0, length=24))
    indices = tensor("", (6,), 7, blob(7, bytes(range(6))))
    sparse = blob(15, blob(1, values) + blob(2, indices) + number(3, 100))
    training = blob(20, blob(2, initializers(tensor("t", (600,), FLOAT, blob(9, bytes(2400))))))
    large = tensor("w", (600,), FLOAT, blob(9, bytes(2400)), blob(12, "what it is"), blob(77, "unknown"))
    path = saved(tmp_path, model(initializers(large), sparse, node("Relu", "y"), blob(99, "unknown"), tail=training))
    target = tmp_path / "out.onnx"
    assert main([str(path), str(target), "--external-data", "never"]) == 0
    kept = onnx.load(str(target))
    assert kept.graph.sparse_initializer[0].values.raw_data == SIX.tobytes()
    assert list(kept.graph.sparse_initializer[0].dims) == [100]
    assert kept.graph.initializer[0].doc_string == "what it is"
    assert len(kept.training_info[0].algorithm.initializer[0].raw_data) == 2400
    assert target.read_bytes().count(b"unknown") == 2
    capsys.readouterr()
    assert main(["plan", str(path), str(tmp_path / "f16.onnx"), "--dtype", "f16"]) == 0
    assert "a training graph updates it" in capsys.readouterr().out
    assert main([str(path), str(tmp_path / "out.safetensors")]) == 12
    assert "'s' is a sparse tensor" in capsys.readouterr().err


def test_packed_and_typed_tensors_move_as_they_are(tmp_path: Path) -> None:
    """INT4 codes are not decoded on their way from ONNX to ONNX; varints go out as the numbers that they are."""
    packed = tensor("p", (3000,), 22, blob(9, bytes(range(250)) * 6))
    coded = tensor("v", (2000,), 7, blob(7, b"\x05" * 2000))
    path = saved(tmp_path, model(initializers(packed, coded), node("Relu", "y")))
    target = tmp_path / "out.onnx"
    assert main([str(path), str(target), "--external-data", "always", "--dtype", "f16"]) == 0
    found = {each.name: each for each in onnx.load(str(target)).graph.initializer}
    assert found["p"].data_type == 22 and found["p"].raw_data == bytes(range(250)) * 6
    assert numpy_helper.to_array(found["v"]).tolist() == [5] * 2000
    assert main([str(path), str(target), "--force"]) == 0
    found = {each.name: each for each in onnx.load(str(target)).graph.initializer}
    assert found["p"].raw_data == bytes(range(250)) * 6 and found["v"].raw_data == np.full(2000, 5, "<i8").tobytes()


# ------------------------------------------------------------------------------------------------- refused


def test_operator_sets_without_the_cast_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = initializers(tensor("w", (600,), FLOAT, blob(9, bytes(2400))))
    path = saved(tmp_path, model(large, node("Relu", "y"), tail=blob(8, number(2, 12))))
    assert main([str(path), str(tmp_path / "out.onnx"), "--dtype", "bf16"]) == 12
    assert "operator set 13, the model has 12" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx"]
    assert main([str(path), str(tmp_path / "out.onnx"), "--dtype", "f16"]) == 0


def test_tensors_that_are_not_the_graphs_are_refused(source: Path, tmp_path: Path) -> None:
    from converter.formats.base import WriteOptions
    from converter.formats.onnx.checkpoint import layout
    from converter.tensors.dtypes import DTYPES
    from converter.tensors.tensor import from_array

    with converter.open_checkpoint(source) as checkpoint:
        tensors = dict(checkpoint.tensors)
        w = tensors.pop("w")
        others = {
            "missing": tensors,
            "another shape": {**tensors, "w": from_array("w", np.zeros((2, 2), "<f4"), DTYPES["F32"], "")},
            "a type the graph relies on": {
                **tensors, "w": w, "scale": from_array("scale", np.zeros((), "<f2"), DTYPES["F16"], ""),
            },
            "no float": {**tensors, "w": from_array("w", np.zeros((16, 24), "<i4"), DTYPES["I32"], "")},
        }  # fmt: skip
        for each in others.values():
            with pytest.raises(UnsupportedFeature, match=r"'w'|'scale'"):
                layout(checkpoint.replace(tensors=each), tmp_path / "out.onnx", WriteOptions())


def test_data_files_are_for_onnx(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only ONNX has data files"):
        converter.convert(source, tmp_path / "out.npz", converter.Request(external_data="always"))
    with pytest.raises(UsageError, match="auto, always, never"):
        converter.convert(source, tmp_path / "out.onnx", converter.Request(external_data="sometimes"))


def test_two_gibibytes_are_where_a_file_ends(tmp_path: Path) -> None:
    """3 GiB, nearly all of it a hole, stay outside, and cannot go in."""
    (tmp_path / "big.data").touch()
    os.truncate(tmp_path / "big.data", 3 << 30)
    path = saved(
        tmp_path, model(initializers(tensor("w", (3 << 10, 1 << 18), FLOAT, external("big.data"))), node("Relu", "y"))
    )
    with pytest.raises(UnsupportedFeature, match="ends at 2 GiB"):
        converter.plan(path, tmp_path / "out.onnx", converter.Request(external_data="never"))
    plan = converter.plan(path, tmp_path / "out.onnx")
    with plan.checkpoint:
        assert [file.path.name for file in plan.layout.files] == ["out.onnx", "out.onnx.data"]
        assert plan.layout.files[1].size == 3 << 30


def test_what_outgrows_its_file_goes_outside(tmp_path: Path) -> None:
    """An embedded F16 tensor of 1.2 GiB becomes 2.4 GiB of F32."""
    n = 600 << 20
    head = number(1, 8) + blob(8, number(2, 17))
    fields = number(1, 600) + number(1, 1 << 20) + number(2, FLOAT16) + blob(8, "w")
    body = fields + blob_key(9, 2 * n)
    graph = blob(1, blob(2, "y") + blob(4, "Relu")) + blob_key(5, len(body) + 2 * n) + body
    data = head + blob_key(7, len(graph) + 2 * n) + graph
    path = saved(tmp_path, data)
    os.truncate(path, len(data) + 2 * n)
    plan = converter.plan(path, tmp_path / "out.onnx", converter.Request(dtype="f32"))
    with plan.checkpoint:
        assert [file.size > 4 * n - 1 for file in plan.layout.files] == [False, True]
        assert plan.memory(2) < 400 << 20


# -------------------------------------------------------------------------------------------- any graph


@st.composite
def any_model(draw: st.DrawFn) -> Any:
    """Graphs of MatMuls and Ifs over square weights, initializers or Constants, of sizes around what is small."""

    def graph(depth: int, prefix: str, taken: str) -> Any:
        nodes, tensors, last = [], [], taken
        for index in range(draw(st.integers(1, 3))):
            name, out = f"{prefix}w{index}", f"{prefix}y{index}"
            size = draw(st.sampled_from([15, 16, 17]))
            value = np.arange(size * size, dtype=np.float32).reshape(size, size) / 3
            if draw(st.booleans()):
                tensors.append(named(name, value))
            else:
                nodes.append(helper.make_node("Constant", [], [name], value=named("", value)))
            nodes.append(helper.make_node("Sum", [last, name] if size == 16 else [last], [out]))
            last = out
        if depth and draw(st.booleans()):
            inner = {each: graph(depth - 1, prefix + each[0], last) for each in ("then_branch", "else_branch")}
            nodes.append(helper.make_node("If", ["flag"], [f"{prefix}if"], **inner))
            last = f"{prefix}if"
        inputs = [value_info("x", 16, 16), value_info("flag", code=9)] if not prefix else []
        return helper.make_graph(nodes, "g", inputs, [value_info(last, 16, 16)], tensors)

    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph(2, "", "x"), opset_imports=opsets, ir_version=8)


@RELAXED
@given(any_model(), st.sampled_from([None, "f16", "f64"]), st.sampled_from(["auto", "always", "never"]), st.booleans())
def test_any_graph_stays_what_it_is(
    tmp_path: Path, built: Any, dtype: str | None, external_data: str, outside: bool
) -> None:
    path, target = tmp_path / "any.onnx", tmp_path / "out.onnx"
    for each in tmp_path.iterdir():
        each.unlink()
    onnx.save(built, str(path), save_as_external_data=outside, location="any.bin", size_threshold=700)
    converter.convert(path, target, converter.Request(dtype=dtype, external_data=external_data))
    check_same_graph(path, target, {None: None, "f16": np.float16, "f64": np.float64}[dtype])


@RELAXED
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=3),
    st.sampled_from(["auto", "always", "never"]),
)
def test_mutations_are_copied_or_refused(tmp_path: Path, changes: list[tuple[int, int]], external_data: str) -> None:
    """Whatever is accepted comes out with the tensors that it had."""
    for each in tmp_path.iterdir():
        each.unlink()
    (tmp_path / "w.bin").write_bytes(SIX.tobytes())
    data = bytearray(WHOLE)
    for at, byte in changes:
        data[at] = byte
    path = saved(tmp_path, bytes(data))
    try:
        converter.convert(path, tmp_path / "out.onnx", converter.Request(external_data=external_data))
    except ConverterError as error:
        assert len(str(error).splitlines()) <= 3 and not (tmp_path / "out.onnx").exists()
        return
    with converter.open_checkpoint(path) as before, converter.open_checkpoint(tmp_path / "out.onnx") as after:
        assert before.tensors.keys() == after.tensors.keys()
        for name, each in before.tensors.items():
            assert each.array().tobytes() == after.tensors[name].array().tobytes()


# ------------------------------------------------------------------------------------------ it still runs


def outputs(path: Path, feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime computes, on the processor, one thread."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def check_outputs(before: Path, after: Path, feeds: dict[str, np.ndarray[Any, Any]]) -> None:
    for old, new in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_array_equal(old, new)


def rounded_model(path: Path, code: int) -> Path:
    """The model with F32 values rounded to another type where ours change, by the onnx package."""
    built = onnx.load(str(path))
    inputs = {each.name for each in built.graph.input}
    for graph in graphs(built.graph):
        constants = [each.attribute[0].t for each in graph.node if each.op_type == "Constant"]
        for each in (*graph.initializer, *constants):
            if each.data_type == FLOAT and len(each.raw_data) > 1024 and each.name not in inputs:
                value = numpy_helper.to_array(each)
                each.raw_data = value.astype(helper.tensor_dtype_to_np_dtype(code)).astype(np.float32).tobytes()
    target = path.with_name("rounded.onnx")
    onnx.save(built, str(target))
    return target


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"external_data": "always"}, None),
        ({"dtype": "f16"}, FLOAT16),
        ({"dtype": "bf16", "external_data": "always"}, BFLOAT16),
    ],
)
def test_onnx_runtime_computes_the_same(
    source: Path, tmp_path: Path, request_: dict[str, str], code: int | None, flag: bool
) -> None:
    converter.convert(source, tmp_path / "out.onnx", converter.Request(**request_))
    wanted = rounded_model(source, code) if code else source
    check_outputs(wanted, tmp_path / "out.onnx", {"x": weight(2, 16), "flag": np.array(flag)})


IDS = np.arange(5, dtype=np.int64)[None]
REAL: dict[str, dict[str, np.ndarray[Any, Any]]] = {
    "silero-vad/silero_vad.onnx": {
        "input": weight(1, 576), "state": weight(2, 1, 128), "sr": np.array(16000, np.int64),
    },
    "onnx-ortext/pytorch_super_resolution.onnx": {"input": weight(1, 1, 224, 224)},
    "derived-onnx-stories260K/external/model.onnx": {"input_ids": IDS},
    "derived-onnx-stories260K/model.dynq8.onnx": {"input_ids": IDS},
    "derived-onnx-stories260K/model.matmulnbits4.onnx": {"input_ids": IDS},
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("dtype", [None, "f16"])
def test_real_models_compute_the_same(data: Path, tmp_path: Path, name: str, dtype: str | None) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = data / name
    if not path.is_file():
        pytest.skip(f"{name} is not among the test data")
    target = tmp_path / "out.onnx"
    converter.convert(path, target, converter.Request(dtype=dtype, external_data="always"))
    onnx.checker.check_model(str(target), full_check=True)
    session = runtime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    feeds = {each.name: REAL[name][each.name] for each in session.get_inputs() if each.name in REAL[name]}
    for old, new in zip(outputs(path, feeds), outputs(target, feeds), strict=True):
        if dtype is None:
            np.testing.assert_array_equal(old, new)
        else:
            assert np.abs(old - new).max() <= 0.002 * max(1.0, float(np.abs(old).max()))
