"""Codes that a graph multiplies by, as numbers: those that ONNX Runtime computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import Array

from converter.formats.registry import open_checkpoint

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
RANDOM = np.random.default_rng(5)
ROWS, WIDTH = 24, 80


def graph(path: Path, op: str, weights: dict[str, Array], domain: str = "", **attributes: Any) -> Path:
    """x -> op(x, weights), or x @ op(weights) for an operator that gives the weights back."""
    helper = onnx.helper
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    alone = op == "DequantizeLinear"
    inputs = [*([] if alone else ["x"]), *weights]
    nodes = [helper.make_node(op, inputs, ["numbers" if alone else "y"], "/layer/MatMul", domain=domain, **attributes)]
    if alone:
        nodes.append(helper.make_node("MatMul", ["x", "numbers"], ["y"], "/next/MatMul"))
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None]) for name in "xy"]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return path


def decoded(path: Path, name: str) -> Array:
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.structure is not None
        tensor = checkpoint.structure.decoded[name]
        whole = tensor.array()
        pieces = [tensor.rows(start, min(start + 7, tensor.info.n_rows)) for start in range(0, tensor.info.n_rows, 7)]
        np.testing.assert_array_equal(np.concatenate(pieces).view(np.float32), whole.reshape(-1, tensor.info.row))
        return whole


def by_runtime(path: Path, width: int) -> Array:
    """The matrix that a graph multiplies by, which an identity gives back."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"x": np.eye(width, dtype=np.float32)})[0]
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "codes", "numbers"])
def test_blocks(bits: int, zeros: str, tmp_path: Path) -> None:
    block, count = 32, -(-WIDTH // 32)
    if (bits, zeros) == (8, "numbers"):
        pytest.skip("ONNX Runtime takes no such zeros of 8 bits")
    weights: dict[str, Array] = {
        "w_Q4": RANDOM.integers(0, 256, (ROWS, count, block * bits // 8), np.uint8),
        "w_scales": RANDOM.normal(size=(ROWS, count)).astype(np.float32),
    }
    if zeros == "codes":
        weights["w_zeros"] = RANDOM.integers(0, 256, (ROWS, -(-count * bits // 8)), np.uint8)
    if zeros == "numbers":
        weights["w_zeros"] = RANDOM.integers(0, 1 << bits, (ROWS, count)).astype(np.float32)
    said = {"N": ROWS, "K": WIDTH, "bits": bits, "block_size": block}
    path = graph(tmp_path / "m.onnx", "MatMulNBits", weights, "com.microsoft", **said)
    found, computed = decoded(path, "w_Q4"), by_runtime(path, WIDTH).T
    if zeros == "numbers":  # ONNX Runtime multiplies the two apart and rounds twice
        largest = float(np.abs(weights["w_scales"]).max()) * (1 << bits)
        np.testing.assert_allclose(found, computed, rtol=0, atol=2**-23 * largest)
    else:
        np.testing.assert_array_equal(found, computed)


@pytest.mark.parametrize("along", [None, 0, 1, -1])
@pytest.mark.parametrize("signed", [True, False])
def test_one_scale_or_one_of_each_row_or_column(along: int | None, signed: bool, tmp_path: Path) -> None:
    kind = np.int8 if signed else np.uint8
    shape = () if along is None else ((WIDTH, ROWS)[along],)
    weights = {
        "w": RANDOM.integers(-128 if signed else 0, 128, (WIDTH, ROWS)).astype(kind),
        "scale": RANDOM.normal(size=shape).astype(np.float32),
        "zero": RANDOM.integers(0, 9, shape).astype(kind),
    }
    axis = {} if along is None else {"axis": along}
    path = graph(tmp_path / "m.onnx", "DequantizeLinear", weights, **axis)
    np.testing.assert_array_equal(decoded(path, "w"), by_runtime(path, WIDTH))


def test_dynamic_quantization_of_onnx_runtime(tmp_path: Path) -> None:
    """The scale stands behind the product; it is found by its name."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    numbers = RANDOM.normal(size=(WIDTH, ROWS)).astype(np.float32)
    plain = graph(tmp_path / "plain.onnx", "MatMul", {"w": numbers})
    path = tmp_path / "m.onnx"
    quantization.quantize_dynamic(plain, path, per_channel=True, op_types_to_quantize=["MatMul"])
    found = decoded(path, "w_quantized")
    step = np.abs(numbers).max(axis=0) / 127
    assert (np.abs(found - numbers) <= step * 0.51).all() and (found != numbers).any()


def test_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    codes = RANDOM.integers(0, 256, (ROWS, 3, 16), np.uint8)
    for changed in ({"K": 0}, {"N": ROWS + 1}, {"bits": 3}, {"block_size": 16}, {"block_size": -32}):
        said = {"N": ROWS, "K": WIDTH, "bits": 4, "block_size": 32} | changed
        weights = {"w_Q4": codes, "w_scales": np.ones((ROWS, 3), np.float32)}
        path = graph(tmp_path / "m.onnx", "MatMulNBits", weights, "com.microsoft", **said)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.structure is not None and not checkpoint.structure.decoded
