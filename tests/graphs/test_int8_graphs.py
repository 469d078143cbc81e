"""INT8 in graphs: products of whole numbers, near what the model computes; the weights themselves, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import architectures, models, onnx_cases

import converter
from converter.errors import QuantizationError, UsageError
from converter.formats.onnx.program import Program, Value, laid_out
from converter.formats.registry import open_checkpoint
from converter.graphs.builder import Builder
from converter.graphs.linear import Matrices
from converter.graphs.profiles import STANDARD
from converter.storage import output
from converter.tensors import int8, kernels
from converter.tensors.dtypes import F32, INT8
from converter.tensors.encode import Watch, encoded
from converter.tensors.streams import values
from converter.tensors.tensor import from_array
from converter.verify import verify

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")

KJV = models.FIXTURES / "kjv-llama"
#: Relative to the largest logit: weights in 8 bits and activations in 8 bits.
NEAR = 0.08
CLOSE = 2e-5
Floats = NDArray[np.float32]


def near(path: Path, folder: Path) -> float:
    return max(onnx_cases.differences(path, *onnx_cases.torch_reference(folder)).values())


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def checked(path: Path) -> None:
    onnx.checker.check_model(str(path), full_check=True)


# --------------------------------------------------------------------------------------------------- one matrix


def in_codes(x: Floats) -> tuple[NDArray[np.int64], np.float32]:
    """DynamicQuantizeLinear of ONNX, less its zero point: whole numbers, and their scale."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero).astype(np.int64), scale


def test_a_product_is_that_of_whole_numbers(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    weight = random.standard_normal((24, 80)).astype(np.float32)
    weight[5] = 3  # all codes of a row are the largest
    x = random.standard_normal((2, 7, 80)).astype(np.float32)
    build = Builder(F32)
    matrix = encoded(from_array("w", weight, F32, "here"), INT8, Watch())
    made = Matrices(build, Watch(), exact=False).multiply("x", matrix)
    build.op("Identity", made, output="y")
    ends = Value("x", "F32", ("b", "t", 80)), Value("y", "F32", ("b", "t", 24))
    program = Program(
        "one", tuple(build.nodes), ends[:1], ends[1:], build.initializers, STANDARD.opsets, STANDARD.ir_version
    )
    output.write(laid_out(program, tmp_path / "one.onnx", "auto"))
    checked(tmp_path / "one.onnx")
    found = onnx_cases.session(tmp_path / "one.onnx").run(None, {"x": x})[0]
    codes, scale = in_codes(x)
    stored = kernels.encode(weight, INT8)
    own = int8.codes_of(stored).astype(np.int64) - 128
    wanted = (codes @ own.T).astype(np.float32) * (scale * int8.scales_of(stored))
    assert np.array_equal(found, wanted)


# ---------------------------------------------------------------------------------------------------- decoders


def test_a_decoder(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "model.onnx", converter.Request(quant="int8"))
    checked(tmp_path / "model.onnx")
    assert near(tmp_path / "model.onnx", KJV) < NEAR
    found = operators(tmp_path / "model.onnx")
    n_layer = 6
    assert found.count("MatMulInteger") == 7 * n_layer + 1 and "MatMul" not in found
    assert found.count("DynamicQuantizeLinear") == 4 * n_layer + 1  # q, k, v share one, and so do gate and up
    own = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    codes = [each.name for each in own if each.data_type == onnx.TensorProto.UINT8 and len(each.dims) == 2]
    assert len(codes) == 7 * n_layer + 2


@pytest.mark.parametrize("name", ["mixtral-256", "qwen3moe-96"])
def test_a_mixture(name: str, tmp_path: Path) -> None:
    folder = models.build_model(name, tmp_path)
    converter.convert(folder, tmp_path / "model.onnx", converter.Request(quant="int8"))
    checked(tmp_path / "model.onnx")
    ids = np.random.default_rng(7).integers(3, 90, (4, 40))
    reference, _ = onnx_cases.torch_reference(folder)
    wanted = reference(ids, np.ones_like(ids))
    found = onnx_cases.run(onnx_cases.session(tmp_path / "model.onnx"), ids, np.ones_like(ids), None)["logits"]
    errors = np.abs(found - wanted).max(axis=-1) / np.abs(wanted).max()
    assert np.median(errors) < NEAR  # random routers are nearly undecided: some tokens go to other experts


def test_in_half_precision(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "model.onnx", converter.Request(quant="int8", dtype="f16"))
    checked(tmp_path / "model.onnx")
    assert near(tmp_path / "model.onnx", KJV) < NEAR


@pytest.mark.parametrize("name", ["kjv-llama", "mixtral-256", "qwen3moe-256"])
def test_weights_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    """With activations as they are, logits are those of the decoded weights: codes, scales, embedding and head."""
    folder = KJV if name == "kjv-llama" else models.build_model(name, tmp_path)
    converter.convert(folder, f"{tmp_path / 'out'}/", converter.Request(quant="int8", exact=True, format="onnx"))
    graph = next((tmp_path / "out" / "onnx").glob("*.onnx"))
    checked(graph)
    plan = converter.convert(graph, f"{tmp_path / 'back'}/")
    assert any("INT8 decoded to F32" in str(event) for event in plan.report.events)
    assert near(graph, tmp_path / "back") < CLOSE


def test_back_to_a_gguf(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "int8.onnx", converter.Request(quant="int8"))
    plan = converter.convert(tmp_path / "int8.onnx", tmp_path / "back.gguf", converter.Request(no_tokenizer=True))
    told = [str(event) for event in plan.report.events if "INT8 decoded to F32" in str(event)]
    with open_checkpoint(tmp_path / "back.gguf") as back, open_checkpoint(tmp_path / "int8.onnx") as own:
        coded = [name for name, tensor in own.tensors.items() if tensor.info.dtype is INT8]
        assert len(told) == len(coded) == 7 * 6 + 2
        assert {tensor.info.dtype for tensor in back.tensors.values()} == {F32}
        for name in coded:
            found, stored = (values(each.tensors[name], 0, 8) for each in (back, own))
            assert np.array_equal(found, stored), name
        assert back.config["general.file_type"].value == 0  # type: ignore[union-attr]


def test_codes_stay_what_they_are_in_another_graph(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "int8.onnx", converter.Request(quant="int8"))
    converter.convert(tmp_path / "int8.onnx", tmp_path / "exact.onnx", converter.Request(exact=True))
    with open_checkpoint(tmp_path / "exact.onnx") as exact, open_checkpoint(tmp_path / "int8.onnx") as own:
        for name, tensor in own.tensors.items():
            assert np.array_equal(exact.tensors[name].array(), tensor.array()), name
    assert "MatMulInteger" not in operators(tmp_path / "exact.onnx")


def test_the_graph_kept_in_half_precision(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "int8.onnx", converter.Request(quant="int8"))
    converter.convert(tmp_path / "int8.onnx", tmp_path / "half.onnx", converter.Request(dtype="f16"))
    with open_checkpoint(tmp_path / "half.onnx") as half, open_checkpoint(tmp_path / "int8.onnx") as own:
        name = "blk.0.attn_q.weight"
        assert half.tensors[name].info.dtype is INT8
        assert np.array_equal(half.tensors[name].array(), own.tensors[name].array())


# ---------------------------------------------------------------------------------------------------- encoders


def test_an_encoder(tmp_path: Path) -> None:
    folder = architectures.build("bert-tiny", tmp_path)
    made: dict[str, Any] = {}
    ids = np.random.default_rng(4).integers(5, 90, (2, 12))
    for quant in (None, "int8"):
        path = tmp_path / f"{quant}.onnx"
        converter.convert(folder, path, converter.Request(quant=quant))
        checked(path)
        session = onnx_cases.session(path)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        made[str(quant)] = session.run(["last_hidden_state"], feeds)[0]
    assert np.abs(made["int8"] - made["None"]).max() < NEAR * np.abs(made["None"]).max()
    assert "MatMulInteger" in operators(tmp_path / "int8.onnx")


# ---------------------------------------------------------------------------------------------------- verifying


def test_the_verifier_reads_codes(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "model.onnx", converter.Request(quant="int8"))
    found = verify(KJV, tmp_path / "model.onnx")
    assert found.passed, [str(each) for each in found.findings]
    matrices = [each for each in found.tensors if each.type == "INT8"]
    assert len(matrices) == 7 * 6 + 2 and all(each.reproduced for each in matrices)


def test_the_verifier_sees_a_code_that_is_not_right(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "model.onnx", converter.Request(quant="int8"))
    data = bytearray((tmp_path / "model.onnx_data").read_bytes())
    with open_checkpoint(tmp_path / "model.onnx") as own:
        assert own.stored is not None
        at = int(own.stored.tensors["model.layers.2.mlp.up_proj.weight"].source.rpartition("@")[2])
    data[at + 77] ^= 0x40
    (tmp_path / "model.onnx_data").write_bytes(data)
    found = verify(KJV, tmp_path / "model.onnx")
    assert not found.passed
    assert {each.subject for each in found.findings if each.failed} == {"blk.2.ffn_up.weight"}


# ------------------------------------------------------------------------------------------------------- asking


def test_what_cannot_have_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a type of ONNX graphs"):
        converter.convert(KJV, tmp_path / "model.gguf", converter.Request(quant="int8"))
    with pytest.raises(UsageError, match="holds plain types"):
        converter.convert(KJV, tmp_path / "model.safetensors", converter.Request(quant="int8"))
    converter.convert(KJV, tmp_path / "model.gguf", converter.Request(quant="q4_0"))
    with pytest.raises(QuantizationError, match="already quantized as Q"):
        converter.convert(tmp_path / "model.gguf", tmp_path / "model.onnx", converter.Request(quant="int8"))


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    folder = models.FIXTURES / "stories260K"
    converter.convert(folder, f"{tmp_path / 'out'}/", converter.Request(quant="int8", exact=True, format="onnx"))
    graph = next((tmp_path / "out" / "onnx").glob("*.onnx"))
    converter.convert(graph, f"{tmp_path / 'back'}/")
    assert near(graph, tmp_path / "back") < CLOSE
    own = [each.name for each in onnx.load(graph, load_external_data=False).graph.initializer]
    assert "model.embed_tokens.weight" in own and "lm_head.weight" not in own
