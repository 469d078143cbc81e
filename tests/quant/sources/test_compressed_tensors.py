"""Weights that the real compressed-tensors packs, against what it unpacks, in every format, strategy and width."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import packed

from converter.formats.registry import open_checkpoint
from converter.quant.sources import unpacked
from converter.tensors.streams import values

ct = pytest.importorskip("compressed_tensors")
torch = pytest.importorskip("torch")

X = "model.layers.0.mlp.down_proj"
TYPES = {
    torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32",
    torch.int64: "I64",
}  # fmt: skip


def integers(bits: int, strategy: str, symmetric: bool, **more: object) -> dict[str, object]:
    return {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": symmetric, **more}


def floats(bits: int, strategy: str, **more: object) -> dict[str, object]:
    return {"num_bits": bits, "type": "float", "strategy": strategy, "symmetric": True, **more}


G32: dict[str, object] = {"group_size": 32}
MX: dict[str, object] = {"group_size": 32, "scale_dtype": torch.uint8}
#: The format, what it is told of weights, and the type that a GGUF gets.
CASES: dict[str, tuple[str, dict[str, object], str]] = {
    **{
        f"{bits} bits, {'symmetric' if symmetric else 'zero points'}": (
            "pack-quantized",
            integers(bits, "group", symmetric, **G32),
            kept,
        )
        for symmetric, types in ((True, "4444588"), (False, "4445888"))
        for bits, kept in zip(range(1, 8), (f"Q{each}_0" for each in types), strict=True)
    },
    "8 bits": ("pack-quantized", integers(8, "group", True, **G32), "Q8_0"),
    "8 bits, zero points": ("pack-quantized", integers(8, "group", False, **G32), "BF16"),
    "rows": ("pack-quantized", integers(4, "channel", False), "Q5_0"),
    "a tensor": ("pack-quantized", integers(4, "tensor", True), "Q4_0"),
    "int8 tensor": ("int-quantized", integers(8, "tensor", True), "Q8_0"),
    "int8 rows, zero points": ("int-quantized", integers(8, "channel", False), "BF16"),
    "naive int4 groups": ("naive-quantized", integers(4, "group", False, **G32), "Q5_0"),
    "naive int8 groups": ("naive-quantized", integers(8, "group", True, group_size=64), "Q8_0"),
    "fp8 tensor": ("float-quantized", floats(8, "tensor"), "BF16"),
    "naive fp8 groups": ("naive-quantized", floats(8, "group", **G32), "BF16"),
    "naive fp8 blocks": ("naive-quantized", floats(8, "block", block_structure=[64, 128]), "BF16"),
    "mxfp4": ("mxfp4-pack-quantized", floats(4, "group", **MX), "MXFP4"),
    "mxfp6": ("mxfp6-pack-quantized", floats(6, "group", **MX), "BF16"),
    "mxfp8": ("mxfp8-quantized", floats(8, "group", **MX), "BF16"),
}


def scales(weight: Any, args: Any) -> tuple[Any, Any]:
    """The library's own scales and zero points of a weight."""
    from compressed_tensors.quantization.utils import calculate_qparams

    rows, row = weight.shape
    if args.strategy == "block":
        tall, wide = args.block_structure
        padded = torch.zeros(math.ceil(rows / tall) * tall, math.ceil(row / wide) * wide)
        padded[:rows, :row] = weight
        parts, axes = padded.reshape(-1, tall, math.ceil(row / wide), wide), (1, 3)
    else:
        size = {"tensor": rows * row, "channel": row, "group": args.group_size}[args.strategy]
        parts, axes = weight.reshape(-1, max(1, row // size), size), (2,)
    least, most = parts.amin(axes), parts.amax(axes)
    shape = (1,) if args.strategy == "tensor" else least.shape
    found = calculate_qparams(least.reshape(shape).bfloat16(), most.reshape(shape).bfloat16(), args)
    return found[0], found[1]


@pytest.mark.parametrize("case", CASES)
def test_the_librarys_own_numbers(tmp_path: Path, case: str) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    format_, said, type_ = CASES[case]
    args = QuantizationArgs(**said)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = torch.randn((72, 192), generator=torch.Generator().manual_seed(7)) * 0.05 + 0.01
    scale, zero = scales(weight, args)
    given = {"weight": weight.bfloat16(), "weight_scale": scale} | (
        {} if args.symmetric else {"weight_zero_point": zero}
    )
    compressor = BaseCompressor.get_value_from_registry(format_)
    stored = compressor.compress(given, scheme)
    wide = stored if format_.startswith("mx") else stored | {"weight_scale": stored["weight_scale"].float()}
    wanted = compressor.decompress(wide, scheme)["weight"].float().numpy()
    config = {
        "architectures": ["Unheard"], "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": format_,
            "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        },
    }  # fmt: skip
    tensors = {}
    for name, tensor in stored.items():
        kind = TYPES[tensor.dtype]
        raw = (
            tensor.float() if kind == "BF16" else tensor.contiguous().view(torch.uint8) if kind == "F8_E4M3" else tensor
        )
        tensors[f"{X}.{name}"] = (kind, raw.numpy())
    folder = packed.write(tmp_path / "m", tensors, config)
    with open_checkpoint(folder) as opened:
        (plain,), (kept,) = (
            unpacked(opened, typed=False, keep=keep, rounded=keep == "exact").tensors.values()
            for keep in ("never", "exact")
        )
        assert values(plain, 0, 72).tobytes() == np.ascontiguousarray(wanted).tobytes()
        assert kept.info.dtype.name == type_
