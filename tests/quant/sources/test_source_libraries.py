"""Weights that the libraries themselves pack, here and now, against their decoders. Skipped where one is missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.builders import CONFIG

from converter.formats.registry import open_checkpoint
from converter.quant.sources import unpacked
from converter.tensors.streams import values

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
NAME = "model.layers.0.mlp.up_proj"
DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32")}


def saved(
    folder: Path, tensors: dict[str, Any], config: dict[str, Any], metadata: dict[str, str] | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors_torch.save_file(whole, folder / "model.safetensors", metadata or {"format": "pt"})
    return folder


def check(folder: Path, wanted: Any, name: str = NAME, step: int = 5, off_by: float = 2**-8) -> str:
    """Compares every number, and what near codes lose with what is said; the type that keeps codes, or "none"."""
    expected = wanted.float().numpy()
    with open_checkpoint(folder) as opened:
        tensor = unpacked(opened).tensors[name + ".weight"]
        assert tensor.info.shape == expected.shape
        rows = tensor.info.n_rows
        whole = values(tensor, 0, rows).reshape(expected.shape)
        assert np.array_equal(whole, expected), f"{np.mean(whole != expected):.2%} differ"
        slabs = [values(tensor, at, min(at + step, rows)) for at in range(0, rows, step)]
        assert np.array_equal(np.concatenate(slabs).reshape(expected.shape), expected)
        near = unpacked(opened, keep="near")
        kept = near.tensors[name + ".weight"]
        if not kept.info.dtype.quantized:
            return "none"
        off = np.abs(values(kept, 0, rows).reshape(expected.shape) - expected)
        assert off.max() <= off_by * np.abs(expected).max()
        return kept.info.dtype.name


# ------------------------------------------------------------------------------------------------- HQQ


@pytest.mark.parametrize("view_as_float", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2, 1])
def test_hqq(tmp_path: Path, bits: int, axis: int, view_as_float: bool) -> None:
    core = pytest.importorskip("hqq.core.quantize")
    for number, (out, row, size, dtype) in enumerate(
        ((96, 128, 64, "float16"), (48, 96, 32, "bfloat16"), (64, 40, 32, "float16"), (80, 64, None, "bfloat16"))
    ):
        torch.manual_seed(number)
        linear = torch.nn.Linear(row, out, bias=False, dtype=DTYPES[dtype])
        config = core.BaseQuantizeConfig(nbits=bits, group_size=size, axis=axis, view_as_float=view_as_float)
        layer = core.HQQLinear(linear, config, compute_dtype=DTYPES[dtype], device="cpu")
        meta = dict(layer.meta)
        meta |= {"scale": meta["scale"].float(), "zero": meta["zero"].float(), "compute_dtype": torch.float32}
        wanted = core.Quantizer.dequantize(layer.W_q, meta)
        tensors = {f"{NAME}.{key}": value for key, value in layer.state_dict().items()}
        settings = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": bits}}}
        folder = saved(tmp_path / str(number), tensors, {"quantization_config": settings})
        kept = check(folder, wanted)
        if axis == 1 and (size or row) % 32 == 0 and row % (size or row) == 0:
            assert kept == {1: "Q4_1", 2: "Q4_1", 3: "Q4_1", 4: "Q4_1", 5: "Q5_1"}.get(bits, "none")


# --------------------------------------------------------------------------------------------- torchao


def _configs() -> dict[str, tuple[str, Any, str]]:
    api = pytest.importorskip("torchao.quantization")
    integers, floats = api.IntxWeightOnlyConfig, api.Float8WeightOnlyConfig
    asymmetric = api.MappingType.ASYMMETRIC
    return {
        "int8 rows": ("bfloat16", api.Int8WeightOnlyConfig(version=2), "Q8_0"),
        "int8 whole": ("float16", api.Int8WeightOnlyConfig(version=2, granularity=api.PerTensor()), "Q8_0"),
        "int8 activations": ("bfloat16", api.Int8DynamicActivationInt8WeightConfig(version=2), "Q8_0"),
        "int4": ("bfloat16", integers(weight_dtype=torch.int4, granularity=api.PerGroup(32)), "Q4_0"),
        "int4 asymmetric": (
            "bfloat16",
            integers(weight_dtype=torch.int4, granularity=api.PerGroup(64), mapping_type=asymmetric),
            "Q5_0",
        ),
        "int3 rows": ("float32", integers(weight_dtype=torch.int3, granularity=api.PerAxis(0)), "Q4_0"),
        "int8 groups": (
            "float32",
            integers(weight_dtype=torch.int8, granularity=api.PerGroup(64), scale_dtype=torch.bfloat16),
            "Q8_0",
        ),
        "int2 half": ("float16", integers(weight_dtype=torch.int2, granularity=api.PerGroup(32)), "Q4_0"),
        "fp8 rows": ("bfloat16", floats(), "none"),
        "fp8 half": ("float16", floats(weight_dtype=torch.float8_e5m2), "none"),
    }


@pytest.mark.parametrize("name", [
    "int8 rows", "int8 whole", "int8 activations", "int4", "int4 asymmetric", "int3 rows", "int8 groups", "int2 half",
    "fp8 rows", "fp8 half",
])  # fmt: skip
def test_torchao(tmp_path: Path, name: str) -> None:
    dtype, config, kept = _configs()[name]
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    from torchao.quantization import quantize_

    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(256, 96, bias=False, dtype=DTYPES[dtype])})
    quantize_(model, config)
    tensors, labels = support.flatten_tensor_state_dict({NAME + ".weight": model["up_proj"].weight.data})
    folder = saved(tmp_path / "m", tensors, {"quantization_config": {"quant_method": "torchao"}}, labels)
    assert check(folder, model["up_proj"].weight.dequantize().detach()) == kept
    with open_checkpoint(folder) as opened:
        assert not unpacked(opened).metadata


# ---------------------------------------------------------------------------------------------- quanto


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["qint8", "qfloat8_e4m3fn", "qfloat8_e5m2", "qint4", "qint2"])
@pytest.mark.parametrize("hidden", [128, 96, 256, 288, 320])
def test_quanto(tmp_path: Path, kind: str, dtype: str, hidden: int) -> None:
    """Groups of 128, 96 or 64 columns, or whole rows; layers that read the hidden state, and one that writes it."""
    quanto = pytest.importorskip("optimum.quanto")
    from optimum.quanto import library

    def unpack(packed: Any, bits: int) -> Any:
        return torch.cat([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)])

    # It would be compiled for minutes.
    library.extensions.extension.get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=unpack)
    torch.manual_seed(hidden)
    wide = hidden * 2 + 64
    shapes = {"q_proj": (hidden + 32, hidden), "up_proj": (wide, hidden), "down_proj": (hidden, wide)}
    model = torch.nn.ModuleDict(
        {n: torch.nn.Linear(s[1], s[0], bias=False, dtype=DTYPES[dtype]) for n, s in shapes.items()}
    )
    quanto.quantize(model, weights=getattr(quanto, kind))
    quanto.freeze(model)
    prefix = "model.layers.0.mlp."
    tensors = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    folder = saved(tmp_path / "m", tensors, {"hidden_size": hidden})
    said = {prefix + name: each for name, each in quanto.quantization_map(model).items()}
    (folder / "quanto_qmap.json").write_text(json.dumps(said))
    for name in shapes:
        weight = model[name].weight
        if type(weight).__name__.startswith("TinyGemm"):  # packed for a kernel in memory, which a file never is
            weight = weight.weight_qbits_tensor()
        kept = check(folder, weight.dequantize().detach(), prefix + name, off_by=2**-6)  # its own roundings
        assert kept == {"qint8": "Q8_0", "qint4": "Q4_1", "qint2": "Q4_1"}.get(kind, "none")


# ---------------------------------------------------------------------------------------- bitsandbytes


@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float32"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes(tmp_path: Path, kind: str, nested: bool, storage: str) -> None:
    """Blocks that span rows, and a storage of wider types: the same bytes."""
    functional = pytest.importorskip("bitsandbytes.functional")
    default = pytest.importorskip("bitsandbytes.backends.default.ops")  # that of the CPU is wrong across rows
    decode = default._dequantize_4bit_compute
    decode = getattr(decode, "__wrapped__", decode)
    for number, (out, row, block) in enumerate(((96, 128, 64), (40, 168, 64), (33, 72, 128), (32, 100, 256))):
        torch.manual_seed(number)
        weight = torch.randn(out, row, dtype=torch.bfloat16)
        packed, state = functional.quantize_4bit(
            weight, blocksize=block, quant_type=kind, compress_statistics=nested, quant_storage=getattr(torch, storage)
        )
        absmax = state.absmax
        if nested:
            absmax = functional.dequantize_blockwise(state.absmax, state.state2).float() + state.offset
        codes = packed.view(torch.uint8).reshape(-1, 1)
        wanted = decode(codes.reshape(-1), absmax, state.code, block, (out, row), torch.float32)
        tensors = {NAME + ".weight": packed}
        tensors |= {f"{NAME}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        assert check(saved(tmp_path / str(number), tensors, {"quantization_config": settings}), wanted) == "none"


def test_bitsandbytes_rows(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    codes, scales, _ = functional.int8_vectorwise_quant(torch.randn(40, 96, dtype=torch.float16))
    wanted = functional.int8_vectorwise_dequant(codes, scales)
    tensors = {
        NAME + ".weight": codes,
        NAME + ".SCB": scales,
        NAME + ".weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert check(saved(tmp_path / "m", tensors, {"quantization_config": settings}), wanted) == "Q8_0"


# ------------------------------------------------------------------------------------------------- MLX


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(tmp_path: Path, bits: int, size: int, dtype: str) -> None:
    mx = pytest.importorskip("mlx.core")
    rng = np.random.default_rng(bits * size)
    weight = mx.array(rng.standard_normal((24, 256)).astype(np.float32)).astype(getattr(mx, dtype))
    packed = dict(zip(("weight", "scales", "biases"), mx.quantize(weight, group_size=size, bits=bits), strict=True))
    scales, biases = (packed[key].astype(mx.float32) for key in ("scales", "biases"))
    wanted = mx.dequantize(packed["weight"], scales, biases, group_size=size, bits=bits)
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization": {"group_size": size, "bits": bits}}))
    mx.save_safetensors(str(folder / "model.safetensors"), {f"{NAME}.{key}": value for key, value in packed.items()})
    kept = check(folder, torch.tensor(np.array(wanted)))
    assert kept == ({5: "Q5_1", 6: "Q8_0", 8: kept}.get(bits, "Q4_1"))


@pytest.mark.parametrize(("mode", "bits", "kept"), [("mxfp4", 4, "MXFP4"), ("nvfp4", 4, "NVFP4"), ("mxfp8", 8, "none")])
def test_mlx_modes(tmp_path: Path, mode: str, bits: int, kept: str) -> None:
    mx = pytest.importorskip("mlx.core")
    weight = mx.array(np.random.default_rng(bits).standard_normal((24, 256)).astype(np.float32)).astype(mx.bfloat16)
    packed = dict(zip(("weight", "scales"), mx.quantize(weight, mode=mode), strict=True))
    wanted = mx.dequantize(*packed.values(), mode=mode).astype(mx.float32)
    folder = tmp_path / "m"
    folder.mkdir()
    said = {
        "group_size": 64,
        "bits": 4,
        NAME: {"group_size": 16 if mode == "nvfp4" else 32, "bits": bits, "mode": mode},
    }
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization": said}))
    mx.save_safetensors(str(folder / "model.safetensors"), {f"{NAME}.{key}": value for key, value in packed.items()})
    assert check(folder, torch.tensor(np.array(wanted))) == kept
