"""One small weight in each scheme, as it should be; what lies and what fuzzers begin with are made of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from support.builders import CONFIG, safetensors_of
from support.packers import awq_gemm, awq_gemv_fast, gptq, parts, words_of

NAME = "model.layers.0.mlp.other_proj"
Tensors = dict[str, Any]
OUT, ROW, SIZE = 16, 64, 32
STATE = "weight.quant_state.bitsandbytes__nf4"
SCHEMES = ("gptq", "awq", "awq-fast", "bnb", "bnb8", "mlx", "hqq", "torchao", "quanto", "quanto8", "bitnet")


def given(scheme: str) -> tuple[Tensors, dict[str, Any], dict[str, str]]:
    """A weight that is as it should be: its tensors by suffix, the settings, the labels in the header."""
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 8, (OUT, ROW))
    zeros = rng.integers(0, 16, (OUT, ROW // SIZE))
    scales = rng.uniform(0.1, 1, zeros.shape).astype(np.float16)
    settings: dict[str, Any] = {"quant_method": scheme, "bits": 4, "group_size": SIZE}
    labels: dict[str, str] = {}
    if scheme == "gptq":
        return gptq(codes, zeros, scales, np.arange(ROW) // SIZE, 4, version=1), settings, labels
    if scheme == "awq":
        return awq_gemm(codes, zeros, scales), settings, labels
    if scheme == "awq-fast":
        return awq_gemv_fast(codes, zeros, scales, 4), {**settings, "quant_method": "awq"}, labels
    if scheme == "bnb":
        return four_bits(codes), {"quant_method": "bitsandbytes"}, labels
    if scheme == "bnb8":
        tensors = {"weight": codes.astype(np.int8), "SCB": np.ones(OUT, np.float32), "weight_format": np.uint8([0])}
        return tensors, {"quant_method": "bitsandbytes"}, labels
    if scheme == "mlx":
        return (
            {"weight": words_of(codes, 4), "scales": scales, "biases": scales},
            {**settings, "quant_method": None},
            labels,
        )
    if scheme == "hqq":
        return grouped(codes), settings, labels
    if scheme == "torchao":
        said = {"block_size": [1, SIZE], "dtype": {"_data": "float16"}, "target_dtype": {"_data": "int4"}}
        labels[NAME + ".weight"] = json.dumps({"_type": "IntxUnpackedToInt8Tensor", "_data": said})
        return {"_weight_qdata": codes.astype(np.int8), "_weight_scale": scales}, settings, labels
    if scheme == "quanto":
        tensors = {"weight._data._data": parts(codes[:, :40], (0, 4)).astype(np.uint8)}
        column = np.ones((OUT, 1), np.float16)
        return tensors | {"weight._scale": column, "weight._shift": column}, settings, labels
    if scheme == "quanto8":
        column = np.ones((OUT, 1), np.float16)
        return {"weight._data": codes.astype(np.int8), "weight._scale": column}, {"quant_method": "quanto"}, labels
    numbers = parts(rng.integers(0, 3, (OUT, ROW)), (0, 2, 4, 6)).astype(np.uint8)
    return {"weight": numbers, "weight_scale": np.float32([2])}, settings, labels


def four_bits(codes: np.ndarray, **said: Any) -> Tensors:
    """bitsandbytes' tensors; `said` changes its JSON."""
    state = {"quant_type": "nf4", "blocksize": SIZE, "dtype": "float16", "shape": list(codes.shape)} | said
    flat = codes.reshape(-1)
    return {
        "weight": (flat[::2] << 4 | flat[1::2]).astype(np.uint8)[:, None],
        "weight.absmax": np.ones(codes.size // SIZE, np.float32),
        "weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        STATE: text(json.dumps(state)),
    }


def grouped(codes: np.ndarray) -> Tensors:
    """HQQ's tensors."""
    column = np.ones((codes.size // SIZE, 1), np.float16)
    numbers = {"nbits": 4, "axis": 1, "group_size": SIZE}
    return {
        "W_q": parts(codes.reshape(-1, SIZE), (4, 0)).astype(np.uint8), "scale": column, "zero": column,
        "shape": np.array(codes.shape, np.int64), "packing": text("4bit_u8"),
        **{key: np.int32([number]) for key, number in numbers.items()},
    }  # fmt: skip


def text(content: str) -> np.ndarray:
    return np.frombuffer(content.encode(), np.uint8)


def write(folder: Path, tensors: Tensors, settings: dict[str, Any], labels: dict[str, str]) -> None:
    """The folder of a model that has this weight alone."""
    folder.mkdir(parents=True)
    key = "quantization_config" if settings.get("quant_method") else "quantization"
    (folder / "config.json").write_text(json.dumps({**CONFIG, key: settings}))
    named = {f"{NAME}.{suffix}": tensor for suffix, tensor in tensors.items()}
    (folder / "model.safetensors").write_bytes(safetensors_of(named, labels or {"format": "pt"}))
