"""Layouts of which no real sample is at hand, packed here with numpy bit by bit, against what was packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.builders import CONFIG, safetensors_of
from support.packers import awq_gemm, awq_gemv, awq_gemv_fast, gptq, parts, words_of

from converter.formats.registry import open_checkpoint
from converter.quant.sources import unpacked
from converter.request import Source
from converter.tensors.streams import values

NAME = "model.layers.0.mlp.up_proj"


def decoded(
    folder: Path, tensors: dict[str, Any], settings: dict[str, Any], key: str = "quantization_config", **more: Any
) -> np.ndarray:
    """The weight of a folder with these tensors under NAME, as it is decoded and as its codes are kept."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, key: settings, **more}))
    (folder / "model.safetensors").write_bytes(safetensors_of({f"{NAME}.{k}": v for k, v in tensors.items()}))
    with open_checkpoint(folder) as opened:
        tensor = unpacked(opened).tensors[NAME + ".weight"]
        kept = unpacked(opened, keep="exact").tensors[NAME + ".weight"]
        rows = tensor.info.n_rows
        whole = values(tensor, 0, rows)
        assert np.array_equal(
            whole, np.concatenate([values(tensor, at, min(at + 5, rows)) for at in range(0, rows, 5)])
        )
        assert np.array_equal(whole, values(kept, 0, rows))
        return whole.reshape(tensor.info.shape)


class Kind(NamedTuple):
    """A weight that GPTQ packs: bits, columns of a group (0: whole rows), version, and what else it does."""

    bits: int
    size: int
    version: int
    zeros: str = "middle"
    shuffled: bool = False
    told: str | None = "checkpoint_format"


KINDS = {
    "asymmetric, version 1, a tenth of the zero points 0": Kind(4, 32, 1, "some 0"),
    "two bits, version 1, zero points 0 and the highest": Kind(2, 32, 1, "any"),
    "act-order, version 2": Kind(4, 32, 2, shuffled=True),
    "whole rows, no format said": Kind(4, 0, 1, told=None),
    "eight bits, asymmetric, act-order": Kind(8, 64, 1, "some 0", shuffled=True),
    "three bits, version 1": Kind(3, 32, 1, "some 0"),
    "three bits, version 2": Kind(3, 64, 2, "any", told="format"),
    "two bits, version 2, act-order": Kind(2, 32, 2, "any", shuffled=True),
    "eight bits, symmetric, version 2": Kind(8, 0, 2),
}


def made(kind: Kind, out: int = 64, row: int = 192) -> tuple[dict[str, Any], np.ndarray]:
    """Tensors, and the weight that they hold."""
    rng = np.random.default_rng(kind.bits + 10 * kind.size + 1000 * kind.version)
    size, top = kind.size or row, 1 << kind.bits
    groups = row // size
    codes = rng.integers(0, top, (out, row))
    zeros = np.full((out, groups), top // 2)
    if kind.zeros != "middle":
        zeros = rng.integers(0 if kind.zeros == "any" else 1, top, (out, groups))
        zeros[rng.random(zeros.shape) < 0.1] = 0
    scales = rng.uniform(0.001, 0.1, (out, groups)).astype(np.float16)
    order = np.arange(row) // size
    if kind.shuffled:
        order = rng.permutation(order)
    weight = scales.astype(np.float32)[:, order] * (codes - zeros[:, order]).astype(np.float32)
    return gptq(codes, zeros, scales, order, kind.bits, version=kind.version), weight


@pytest.mark.parametrize("name", KINDS)
def test_gptq(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    tensors, weight = made(kind)
    settings = {"quant_method": "gptq", "bits": kind.bits, "group_size": kind.size or -1}
    if kind.told:
        settings[kind.told] = "gptq" if kind.version == 1 else "gptq_v2"
    assert np.array_equal(decoded(tmp_path / "m", tensors, settings), weight)
    if not kind.shuffled:  # AutoGPTQ's oldest files have no g_idx
        del tensors["g_idx"]
        assert np.array_equal(decoded(tmp_path / "m", tensors, settings), weight)


def test_gptq_beside_a_config_that_says_nothing(tmp_path: Path) -> None:
    kind = KINDS["asymmetric, version 1, a tenth of the zero points 0"]
    tensors, weight = made(kind)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "sym": False}))
    assert np.array_equal(decoded(tmp_path / "m", tensors, {}, "other"), weight)


def test_gptq_dynamic_and_autoround_have_bits_for_a_module(tmp_path: Path) -> None:
    tensors, weight = made(Kind(8, 32, 1, "any"))
    del tensors["g_idx"]
    general = {"bits": 4, "group_size": 128}
    own = {"bits": 8, "group_size": 32}
    dynamic = {"-:.*lm_head.*": {}, r"+:.*\.up_proj": own}
    assert np.array_equal(
        decoded(tmp_path / "m", tensors, {"quant_method": "gptq", **general, "dynamic": dynamic}), weight
    )
    rounded = {
        "quant_method": "auto-round",
        "packing_format": "auto_round:auto_gptq",
        **general,
        "extra_config": {NAME: own},
    }
    assert np.array_equal(decoded(tmp_path / "m", tensors, rounded), weight)
    second, weight = made(Kind(4, 128, 2, "any"), row=256)
    rounded = {"quant_method": "auto-round", "packing_format": "auto_round:gptqmodel", **general}
    assert np.array_equal(decoded(tmp_path / "m", second, rounded), weight)


AWQ = {  # layout, columns of a group, words of zero points of a row
    "gemm, whole rows": ("gemm", 0, 0),
    "gemm, groups of 64": ("gemm", 64, 0),
    "gemv, groups of 32, padded": ("gemv", 32, 4),
    "gemv, groups of 64, padded": ("gemv", 64, 2),
    "gemv, groups of 128, padded": ("gemv", 128, 1),
    "gemv, whole rows": ("gemv", 0, 1),
    "gemv_fast, groups of 32": ("gemv_fast", 32, 4),
    "gemv_fast, groups of 64": ("gemv_fast", 64, 2),
    "gemv_fast, groups of 128": ("gemv_fast", 128, 1),
    "gemv_fast, whole rows": ("gemv_fast", 0, 1),
}


def awq(name: str) -> tuple[dict[str, Any], np.ndarray]:
    """The tensors of a weight of AWQ, and its numbers."""
    version, size, wide = AWQ[name]
    out, row = 40, 256
    rng = np.random.default_rng(size)
    codes = rng.integers(0, 16, (out, row))
    zeros = rng.integers(0, 16, (out, row // (size or row)))
    scales = rng.uniform(0.001, 0.1, zeros.shape).astype(np.float16)
    scale, zero = (np.repeat(each.astype(np.float32), size or row, 1) for each in (scales, zeros))
    if version == "gemv_fast":
        least = -(scale * zero).astype(np.float16).astype(np.float32)
        return awq_gemv_fast(codes, zeros, scales, wide), scale * codes.astype(np.float32) + least
    tensors = awq_gemm(codes, zeros, scales) if version == "gemm" else awq_gemv(codes, zeros, scales, wide)
    return tensors, scale * (codes.astype(np.float32) - zero)


@pytest.mark.parametrize("name", AWQ)
def test_awq(tmp_path: Path, name: str) -> None:
    tensors, weight = awq(name)
    version, size, _ = AWQ[name]
    said = {"bits": 4, "group_size": size or -1, "zero_point": True}
    assert np.array_equal(decoded(tmp_path / "m", tensors, {"quant_method": "awq", "version": version, **said}), weight)
    if version == "gemv_fast":
        other = {"qzeros" if key == "scaled_zeros" else key: each for key, each in tensors.items()}
        assert np.array_equal(decoded(tmp_path / "m", other, {"quant_method": "awq", "version": version}), weight)
    if version == "gemm":
        rounded = {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", **said}
        assert np.array_equal(decoded(tmp_path / "m", tensors, rounded), weight)
        (tmp_path / "m" / "quant_config.json").write_text(
            json.dumps({"zero_point": True, "q_group_size": size or -1, "w_bit": 4, "version": "GEMM"})
        )
        assert np.array_equal(decoded(tmp_path / "m", tensors, {}, "other"), weight)


@pytest.mark.parametrize("name", AWQ)
def test_awq_is_told_by_what_is_stored(tmp_path: Path, name: str) -> None:
    """llm-awq's config says gemv of every layout, and its .pt files have none that says anything."""
    tensors, weight = awq(name)
    version, size, _ = AWQ[name]
    if version == "gemv":
        tensors["scales"][:, weight.shape[1] // (size or weight.shape[1]) :] = 0  # as llm-awq pads
    said = {"quant_method": "awq", "version": "gemv"}
    assert np.array_equal(decoded(tmp_path / "m", tensors, said), weight)
    assert np.array_equal(decoded(tmp_path / "m", tensors, {}, "other"), weight)


@pytest.mark.parametrize("name", ["gemm, groups of 64", "gemv_fast, groups of 64"])
def test_a_file_of_llm_awq_with_the_config_of_the_original(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    tensors, weight = awq(name)
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "config.json").write_text(json.dumps(CONFIG))
    file = tmp_path / "tiny-w4-g64-awq-v2.pt"
    state = {f"{NAME}.{key}": each for key, each in tensors.items()} | {"model.norm.weight": np.ones(4, np.float16)}
    torch.save({key: torch.from_numpy(np.ascontiguousarray(each)) for key, each in state.items()}, file)
    with open_checkpoint(Source(file, config=tmp_path / "original")) as opened:
        plain = unpacked(opened)
        assert set(plain.tensors) == {f"{NAME}.weight", "model.norm.weight"}
        assert np.array_equal(plain.tensors[f"{NAME}.weight"].array(), weight)
        kept = unpacked(opened, keep="exact").tensors[f"{NAME}.weight"]
        assert kept.info.dtype.name == ("Q5_0" if name.startswith("gemm") else "Q4_1")


@pytest.mark.parametrize("kind", ["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("row", [64, 512])
def test_bitnet(tmp_path: Path, kind: str, row: int) -> None:
    """A scale that F16 holds: TQ2_0 where the row divides, Q4_0 where it does not, nothing else is asked of it."""
    numbers = np.random.default_rng(row).integers(-1, 2, (96, row))
    tensors = {"weight": parts(numbers + 1, (0, 2, 4, 6)).astype(np.uint8), "weight_scale": np.float32([0.25])}
    found = decoded(tmp_path / "m", tensors, {"quant_method": "bitnet", "linear_class": kind})
    assert np.array_equal(found, numbers * np.float32(4 if kind == "bitlinear" else 0.25))
    with open_checkpoint(tmp_path / "m") as opened:
        kept = unpacked(opened, keep="exact").tensors[NAME + ".weight"]
        assert kept.info.dtype.name == ("Q4_0" if row == 64 else "TQ2_0")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("experts", [0, 3])
def test_mlx(tmp_path: Path, bits: int, experts: int) -> None:
    """`metal` says qbiases; experts are one tensor; scales may be negative."""
    rng = np.random.default_rng(bits)
    outer, row, size = ((experts, 8) if experts else (8,)), 128, 32
    codes = rng.integers(0, 1 << bits, (*outer, row))
    scales = (rng.uniform(0.01, 0.1, (*outer, row // size)) * rng.choice([-1, 1], (*outer, row // size))).astype("<f2")
    biases = rng.uniform(-1, 1, scales.shape).astype("<f2")
    spread = [np.repeat(each.astype(np.float32), size, axis=-1) for each in (scales, biases)]
    weight = codes.astype(np.float32) * spread[0] + spread[1]
    tensors = {"weight": words_of(codes.reshape(-1, row), bits).reshape(*outer, -1), "scales": scales, "biases": biases}
    settings = {"group_size": 64, "bits": 4, "language_model." + NAME: {"bits": bits, "group_size": size}}
    assert np.array_equal(decoded(tmp_path / "m", tensors, settings, "quantization"), weight)
    tensors["qbiases"] = tensors.pop("biases")
    metal = {"quant_method": "metal", "bits": bits, "group_size": size}
    assert np.array_equal(decoded(tmp_path / "m", tensors, metal), weight)


@pytest.mark.parametrize(
    ("module", "each"),
    [
        ("model.layers.0.mlp.switch_mlp.up_proj", "model.layers.0.mlp.experts.{}.up_proj"),
        ("model.layers.0.block_sparse_moe.switch_mlp.down_proj", "model.layers.0.block_sparse_moe.experts.{}.w2"),
    ],
)
def test_experts_that_mlx_stacks_are_one_by_one(tmp_path: Path, module: str, each: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (3, 8, 64))
    scales, biases = rng.uniform(0.1, 1, (2, 3, 8, 2)).astype("<f2")
    tensors = {"weight": words_of(codes.reshape(-1, 64), 4).reshape(3, 8, -1), "scales": scales, "biases": biases}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "quantization": {"group_size": 32, "bits": 4}}))
    (tmp_path / "model.safetensors").write_bytes(safetensors_of({f"{module}.{k}": v for k, v in tensors.items()}))
    wanted = codes * np.repeat(scales.astype(np.float32), 32, -1) + np.repeat(biases.astype(np.float32), 32, -1)
    with open_checkpoint(tmp_path) as opened:
        for keep in ("never", "exact"):
            found = unpacked(opened, keep=keep).tensors
            assert list(found) == [each.format(expert) + ".weight" for expert in range(3)]
            for expert, tensor in enumerate(found.values()):
                assert np.array_equal(values(tensor, 0, 8), wanted[expert])
                assert np.array_equal(values(tensor, 3, 7), wanted[expert, 3:7])
