"""TFLite: a flatbuffer made by hand, every way it can lie, and real models against their twins."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tflite_files import EMPTY, F6, GOOD, data, emit, flatbuffer, model, tensor, vector, write

from converter.cli.main import main
from converter.errors import ConverterError, CorruptFile, UnsupportedFeature
from converter.events import Dropped
from converter.formats.registry import open_checkpoint
from converter.formats.tflite import QUANTIZATION, TYPES
from converter.request import Source
from converter.storage.files import MappedFile
from converter.storage.protobuf import fields
from converter.storage.windows import Windows

RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def everything(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(Source(path, format="tflite")) as checkpoint:
        return {name: tensor.array() for name, tensor in checkpoint.tensors.items()}


def same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


# ------------------------------------------------------------------------------------------------- what is read


def test_every_type(tmp_path: Path) -> None:
    arrays = {f"t{code}": np.arange(6).astype(dtype.numpy).reshape(2, 3) for code, dtype in TYPES.items()}
    tensors = [tensor(f"t{code}", (2, 3), code, index + 1) for index, code in enumerate(TYPES)]
    path = write(tmp_path, model(tensors, [data(array.tobytes()) for array in arrays.values()]))
    same(everything(path), arrays)


def test_int4_by_rows(tmp_path: Path) -> None:
    path = write(tmp_path, model([tensor("w", (3, 3), 17, 1)], [data(bytes([0x21, 0x83, 0xF7, 0x65, 0x04]))]))
    wanted = np.array([[1, 2, 3], [-8, 7, -1], [5, 6, 4]], np.int8)
    same(everything(path), {"w": wanted})
    with open_checkpoint(path) as checkpoint:
        for row in range(3):
            assert checkpoint.tensors["w"].rows(row, row + 1).tobytes() == wanted[row].tobytes()


def test_names_are_made_unique(tmp_path: Path) -> None:
    first = [tensor("w", (2, 3), 0, 1), tensor("w", (2, 3), 0, 1), tensor(None, (), 2, 2)]
    second = [tensor("w", (2, 3), 0, 1), tensor("w", (2, 3), 0, 1)]
    path = write(tmp_path, model([first, second], [data(F6.tobytes()), data(b"\7\0\0\0")]))
    assert list(everything(path)) == ["w", "w:2", "tensor", "subgraph1/w", "subgraph1/w:2"]


def test_scales_are_metadata(tmp_path: Path) -> None:
    scales = {2: vector("f", 0.5, 0.25), 3: vector("q", -3, 4), 6: ("i", 1)}
    path = write(tmp_path, model([tensor("w", (3, 2), 9, 1, _4=scales)], [data(bytes(range(6)))]))
    assert main([str(path), str(tmp_path / "m.safetensors")]) == 0
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        value = json.loads(checkpoint.metadata[QUANTIZATION + "w"])
    assert value == {"scale": [0.5, 0.25], "zero_point": [-3, 4], "quantized_dimension": 1}


def test_buffers_outside(tmp_path: Path) -> None:
    content = flatbuffer(model([tensor("w", (2, 3), 0, 1)], [{1: ("Q", 4096), 2: ("Q", 24)}]))
    path = tmp_path / "m.tflite"
    path.write_bytes(content.ljust(4096, b"\0") + F6.tobytes())
    same(everything(path), {"w": F6})
    path.write_bytes(content.ljust(4096, b"\0") + F6.tobytes()[:-1])
    with pytest.raises(CorruptFile, match="buffer"):
        open_checkpoint(path)


def test_texts_are_dropped(tmp_path: Path) -> None:
    tensors = [tensor("s", (1,), 5, 1), tensor("w", (2, 3), 0, 2)]
    path = write(tmp_path, model(tensors, [data(b"x"), data(F6.tobytes())]))
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert [event.name for event in checkpoint.events if isinstance(event, Dropped)] == ["s"]


# ---------------------------------------------------------------------------------------------- what is refused

BUFFER = data(F6.tobytes())


@pytest.mark.parametrize(
    ("error", "content"),
    [
        (CorruptFile, model([tensor("w", (2, 3), 0, 1)], [data(F6.tobytes()[:20])])),
        (CorruptFile, model([tensor("w", (2, 3), 0, 1)], [data(F6.tobytes() + b"\0\0\0\0")])),
        (CorruptFile, model([tensor("w", (-2, -3), 0, 1)], [BUFFER])),
        (CorruptFile, model([tensor("w", (1 << 30, 1 << 30, 1 << 30), 0, 1)], [BUFFER])),
        (CorruptFile, model([tensor("w", (2, 3), 0, 2)], [BUFFER])),
        (CorruptFile, model([tensor("w\x1b[0m", (2, 3), 0, 1)], [BUFFER])),
        (CorruptFile, model([tensor("w", (1,) * 65, 0, 1)], [data(b"\0\0\0\0")])),
        (CorruptFile, model([tensor("w", (2, 3), 0, 1)], [{1: ("Q", (1 << 64) - 9), 2: ("Q", 24)}])),
        (CorruptFile, model([tensor("w", (2, 3), 0, 1)], [BUFFER | {1: ("Q", 16), 2: ("Q", 24)}])),
        (CorruptFile, model([tensor("w", (2, 3), 0, 1, _4={2: vector("f", float("nan"))})], [BUFFER])),
        (CorruptFile, {0: ("I", 3), 4: [EMPTY]}),
        (CorruptFile, {0: ("I", 3), 2: [], 4: [EMPTY]}),
        (UnsupportedFeature, GOOD | {0: ("I", 2)}),
        (UnsupportedFeature, model([tensor("w", (2, 3), 77, 1)], [BUFFER])),
        (UnsupportedFeature, model([tensor("w", (2, 3), -1, 1)], [BUFFER])),
        (UnsupportedFeature, model([tensor("w", (2, 3), 0, 1, _6=EMPTY)], [BUFFER])),
    ],
)
def test_refused(tmp_path: Path, error: type[ConverterError], content: dict[int, Any]) -> None:
    with pytest.raises(error, match=r"m\.tflite"):
        open_checkpoint(write(tmp_path, content))


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ConverterError):
            everything(path)


def test_offsets_to_the_same_bytes_are_bounded(tmp_path: Path) -> None:
    """A vector of 10000 offsets to one tensor of 400 kB: 4 GB, out of half a megabyte."""
    out = bytearray(8)
    root = emit(out, model([tensor("w", (100_000,), 0, 1)], [data(bytes(400_000))]))
    out[:8] = struct.pack("<I", root) + b"TFL3"
    out += bytes(-len(out) % 4)
    many = len(out)
    out += struct.pack("<I", 10_000) + bytes(40_000)
    one = emit(out, tensor("w", (100_000,), 0, 1))
    for at in range(many + 4, many + 40_004, 4):
        out[at : at + 4] = struct.pack("<I", one - at)

    def field(table: int, index: int) -> int:
        vtable = table - int.from_bytes(out[table : table + 4], "little", signed=True)
        return table + int.from_bytes(out[vtable + 4 + 2 * index : vtable + 6 + 2 * index], "little")

    def follow(at: int) -> int:
        return at + int.from_bytes(out[at : at + 4], "little")

    tensors = field(follow(follow(field(root, 2)) + 4), 0)  # of the first subgraph
    out[tensors : tensors + 4] = struct.pack("<I", many - tensors)
    (tmp_path / "m.tflite").write_bytes(out)
    with pytest.raises(CorruptFile, match=r"far larger|over and over"):
        open_checkpoint(tmp_path / "m.tflite")


@RELAXED
@given(draw=st.data())
def test_mutations_end_as_errors(tmp_path: Path, draw: st.DataObject) -> None:
    scales = {2: vector("f", 0.5), 3: vector("q", 3)}
    tensors = [tensor("w", (2, 3), 0, 1, _4=scales), tensor("i", (5,), 17, 2)]
    path = write(tmp_path, model(tensors, [BUFFER, data(b"abc")]))
    content = bytearray(path.read_bytes())
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(content) - 4))
        value = draw.draw(st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from([b"\xff" * 4, b"\0" * 4])))
        content[at : at + len(value)] = value
    path.write_bytes(content)
    try:
        everything(path)
    except ConverterError:
        pass


# --------------------------------------------------------------------------------------------------- real models


def twin(data: Path, name: str) -> Path:
    path = data / name
    if not path.is_file():
        pytest.skip(f"{name} is not among the test data")
    return path


def test_halves_are_the_floats_rounded(data: Path) -> None:
    floats = everything(twin(data, "derived-tf-face-emotion/model.f32.tflite"))
    halves = everything(twin(data, "derived-tf-face-emotion/model.f16.tflite"))
    rounded = {(array.shape, array.astype("<f2").tobytes()) for array in floats.values() if array.dtype == np.float32}
    found = [(array.shape, array.tobytes()) for array in halves.values() if array.dtype == np.float16]
    assert len(found) == 43
    assert all(each in rounded for each in found)


def test_codes_and_scales_are_the_floats_within_half_a_step(data: Path) -> None:
    floats = everything(twin(data, "derived-tf-face-emotion/model.f32.tflite")).values()
    with open_checkpoint(data / "derived-tf-face-emotion" / "model.int8.tflite") as checkpoint:
        codes = {name: each.array() for name, each in checkpoint.tensors.items() if each.info.dtype.name == "I8"}
        metadata = checkpoint.metadata
    assert len(codes) == 23
    for name, code in codes.items():
        value = json.loads(metadata[QUANTIZATION + name])
        along = [1] * code.ndim
        along[value["quantized_dimension"]] = -1
        scale = np.array(value["scale"]).reshape(along)
        steps = [np.abs(array / scale - code).max() for array in floats if array.shape == code.shape]
        assert min(steps) < 0.501, name


def test_constants_are_those_of_the_onnx_twin(data: Path) -> None:
    path = twin(data, "basic-pitch/nmp.onnx")
    content = Windows(MappedFile(path))
    wanted = set()
    for graph in (field for field in fields(content, 0, content.size) if field.number == 7):
        for initializer in fields(content, graph.start, graph.stop):
            if initializer.number == 5:
                parts = {each.number: each for each in fields(content, initializer.start, initializer.stop)}
                if parts[2].value == 1 and 9 in parts:
                    values = content.at(parts[9].start, parts[9].stop - parts[9].start, "values")
                    wanted.add(np.sort(np.frombuffer(values, "<f4")).tobytes())
    found = [array for array in everything(data / "basic-pitch" / "nmp.tflite").values() if array.dtype == np.float32]
    assert sum(array.size for array in found) == 35740
    assert all(np.sort(array.ravel()).tobytes() in wanted for array in found)  # the layouts differ, the numbers do not


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("hello_world_float", 6),
        ("keyword_scrambled", 31),
        ("micro_speech_quantized", 5),
        ("person_detect", 57),
        ("trained_lstm", 15),
        ("mobilenet_v2_quantized_1x3x224x224", 127),
    ],
)
def test_real_models_to_safetensors(data: Path, tmp_path: Path, name: str, tensors: int) -> None:
    source = twin(data, f"tflite-tflm/{name}.tflite")
    assert main([str(source), str(tmp_path / "m.safetensors")]) == 0
    found = everything(source)
    assert len(found) == tensors
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        same({each: checkpoint.tensors[each].array() for each in found}, found)
