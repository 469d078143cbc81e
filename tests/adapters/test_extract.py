"""Adapters out of two models: what is extracted from a merge is that adapter again, and PEFT loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import adapters, builders

import converter
from converter.adapters.extract import nearest
from converter.cli.main import main
from converter.errors import (
    ConverterError,
    CorruptFile,
    LossyError,
    OutputExists,
    ShapeMismatch,
    UnmatchedTensor,
    UsageError,
)
from converter.extract import Extraction, extract_lora
from converter.request import Request, Source
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, from_array

Floats = npt.NDArray[np.float32]
Q, UP, EMBEDDING, HEAD = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.embed_tokens",
    "lm_head",
)


def tensor(array: npt.NDArray[Any]) -> LazyTensor:
    return from_array("w", array.astype(np.float32), DTYPES["F32"], "a test")


def numbers(path: Path | Source) -> dict[str, Floats]:
    with converter.open_checkpoint(path) as made:
        return {name: each.array().astype(np.float32) for name, each in made.tensors.items()}


def tuned(folder: Path, changes: dict[str, npt.NDArray[Any]], **config: Any) -> Path:
    """The small Llama with other tensors, or more."""
    return builders.llama_folder(folder, weights=builders.llama_weights() | changes, config=config)


def moved(name: str, rank: int = 3, seed: int = 1) -> Floats:
    """A weight of the small Llama with a change of some rank added to it."""
    weight, rng = builders.llama_weights()[name], np.random.default_rng(seed)
    b, a = rng.standard_normal((weight.shape[0], rank)), rng.standard_normal((rank, weight.shape[1]))
    return np.asarray(weight + 0.1 * b @ a, np.float32)


def merged(base: Path, adapter: Path, to: Path) -> dict[str, Floats]:
    converter.convert(Source(base, adapters=[(adapter, 1)]), f"{to}/", threads=1)
    return numbers(to)


# ----------------------------------------------------------------------------------------------------- factors


@pytest.mark.parametrize("shape", [(700, 900), (900, 700), (2000, 150), (64, 48)])
def test_the_factors_are_the_nearest_of_their_rank(shape: tuple[int, int]) -> None:
    """Against the whole decomposition, for singular values that fall off slowly: the worst case of a few passes."""
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.standard_normal((size, min(shape)))).Q for size in shape)
    strengths = 1 / np.arange(1, min(shape) + 1)
    base = rng.standard_normal(shape).astype(np.float32)
    other = base + ((left * strengths) @ right.T).astype(np.float32)
    difference = (other - base).astype(np.float64)
    found = nearest(tensor(base), tensor(other), 8)
    assert found is not None
    best = np.linalg.svd(difference, compute_uv=False)
    missing = np.linalg.norm(difference - found.b.astype(np.float64) @ found.a)
    assert missing <= 1.01 * np.sqrt(np.sum(best[8:] ** 2))
    assert found.energy == pytest.approx(np.sum(difference**2))
    assert found.noise == pytest.approx(missing**2, rel=1e-5)


@pytest.mark.parametrize("shape", [(600, 700), (40, 30)])
def test_what_has_the_rank_is_had_whole(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(6)
    base = np.zeros(shape, np.float32)
    product = rng.standard_normal((shape[0], 4)) @ np.diag([1, 0.1, 0.01, 0.001]) @ rng.standard_normal((4, shape[1]))
    found = nearest(tensor(base), tensor(product), 4)
    assert found is not None and found.noise < 1e-11 * found.energy
    assert np.abs(found.b @ found.a - product).max() < 1e-6 * np.abs(product).max()
    again = nearest(tensor(base), tensor(product), 4)
    assert again is not None and np.array_equal(found.a, again.a) and np.array_equal(found.b, again.b)


def test_equal_matrices_and_such_that_are_no_numbers() -> None:
    same = tensor(np.ones((600, 700)))
    assert nearest(same, same, 4) is None
    assert nearest(tensor(np.ones((6, 7))), tensor(np.ones((6, 7))), 2) is None
    wrong = np.ones((6, 7))
    wrong[3, 4] = np.nan
    with pytest.raises(CorruptFile, match="a test: w: the difference of the two models is infinite or no number"):
        nearest(tensor(np.ones((6, 7))), tensor(wrong), 2)


# ------------------------------------------------------------------------------------------------------- models


def extract(tmp_path: Path, other: Path, rank: int = 3, **options: Any) -> Extraction:
    base = builders.llama_folder(tmp_path / "base")
    return extract_lora(base, other, tmp_path / "adapter", rank, threads=1, **options)


def test_a_merge_of_what_was_extracted_is_the_tuned_model(tmp_path: Path) -> None:
    changes: dict[str, Any] = {f"{name}.weight": moved(f"{name}.weight") for name in (Q, UP, EMBEDDING, HEAD)}
    changes["model.norm.weight"] = np.full(32, 0.5, np.float32)
    other = tuned(tmp_path / "tuned", changes)
    found = extract(tmp_path, other)
    assert [fit.module for fit in found.fits] == [EMBEDDING, Q, UP, HEAD]
    assert all(fit.relative_error < 1e-5 and fit.rank == 3 for fit in found.fits) and found.relative_error < 1e-5
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config["target_modules"] == [EMBEDDING, Q, UP, HEAD] and config["modules_to_save"] == ["model.norm"]
    assert (config["r"], config["lora_alpha"], config["bias"], config["fan_in_fan_out"]) == (3, 3, "none", False)
    ours, wanted = merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "again"), numbers(other)
    assert ours.keys() == wanted.keys()
    assert all(np.abs(ours[name] - wanted[name]).max() < 1e-6 for name in wanted)


def test_a_lower_rank_says_what_is_lost(tmp_path: Path) -> None:
    other = tuned(tmp_path / "tuned", {f"{UP}.weight": moved(f"{UP}.weight", rank=6)})
    found = extract(tmp_path, other, rank=2)
    strengths = np.linalg.svd(moved(f"{UP}.weight", 6) - builders.llama_weights()[f"{UP}.weight"], compute_uv=False)
    wanted = np.sqrt(np.sum(strengths[2:] ** 2) / np.sum(strengths**2))
    assert found.relative_error == found.fits[0].relative_error == pytest.approx(wanted, rel=1e-4)
    difference = numbers(other)[f"{UP}.weight"] - builders.llama_weights()[f"{UP}.weight"]
    ours = merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "again")[f"{UP}.weight"]
    missing = np.linalg.norm(ours - numbers(other)[f"{UP}.weight"]) / np.linalg.norm(difference)
    assert missing == pytest.approx(wanted, rel=1e-3)


def test_what_peft_has_no_place_for_is_told(tmp_path: Path) -> None:
    changes = {f"{Q}.weight": moved(f"{Q}.weight"), "model.layers.0.A_log": np.ones(4, np.float32)}
    base = tuned(tmp_path / "base", {"model.layers.0.A_log": np.zeros(4, np.float32)})
    other = tuned(tmp_path / "tuned", changes | {"score.weight": np.ones((2, 32), np.float32)})
    found = extract_lora(base, other, tmp_path / "adapter", 3)
    losses = [str(event) for event in found.plan.report.events if event.loss]
    assert [text.split(":")[0] for text in losses] == ["model.layers.0.A_log", "score.weight"]
    with pytest.raises(LossyError):
        extract_lora(base, other, tmp_path / "strict", 3, Request(strict=True))
    assert not (tmp_path / "strict").exists()


def test_matrices_smaller_than_their_factors_are_saved_whole(tmp_path: Path) -> None:
    gate = "model.layers.0.mlp.gate.weight"  # a router, which is no kind that PEFT knows
    small = "model.layers.0.mlp.shared_expert_gate.weight"
    base = tuned(tmp_path / "base", {gate: np.zeros((64, 32), np.float32), small: np.zeros((1, 32), np.float32)})
    news = {
        gate: np.ones((64, 32), np.float32),
        small: np.ones((1, 32), np.float32),
        f"{Q}.weight": moved(f"{Q}.weight"),
    }
    extract_lora(base, tuned(tmp_path / "tuned", news), tmp_path / "adapter", 3)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config["modules_to_save"] == [gate.removesuffix(".weight"), small.removesuffix(".weight")]
    ours = merged(base, tmp_path / "adapter", tmp_path / "again")
    assert np.array_equal(ours[gate], news[gate]) and np.array_equal(ours[small], news[small])


def test_modules_are_called_as_in_the_whole_model(tmp_path: Path) -> None:
    """GPT-2 as it was first published has its names without the `transformer.` of the class with a head."""
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4}
    name, weight = "h.0.mlp.c_fc", np.ones((32, 128), np.float32)
    weights = {f"{name}.weight": weight, f"{name}.bias": np.ones(128, np.float32)}
    base = builders.llama_folder(tmp_path / "base", config=config, weights=weights)
    other = builders.llama_folder(tmp_path / "tuned", config=config, weights={**weights, f"{name}.weight": weight * 2})
    found = extract_lora(base, other, tmp_path / "adapter", 1)
    assert [fit.module for fit in found.fits] == [f"transformer.{name}"]
    assert np.allclose(merged(base, tmp_path / "adapter", tmp_path / "again")[f"{name}.weight"], 2)


def test_types_are_those_that_are_asked_for(tmp_path: Path) -> None:
    extract(tmp_path, tuned(tmp_path / "tuned", {f"{Q}.weight": moved(f"{Q}.weight")}), request=Request(dtype="bf16"))
    with converter.open_checkpoint(tmp_path / "adapter" / "adapter_model.safetensors") as made:
        assert {each.info.dtype.name for each in made.tensors.values()} == {"BF16"}


@pytest.mark.parametrize("name", ["gptq-4bit-g32-sym-v1", "fp8-block128"])
def test_bases_that_arrive_in_codes_count_as_decoded(name: str, data: Path, tmp_path: Path) -> None:
    base = data / "quantized" / name
    if not base.is_dir():
        pytest.skip(f"no {base}")
    converter.convert(base, f"{tmp_path}/plain/", Request(dtype="f32"), threads=1)
    factors = adapters.lora(Q, *numbers(tmp_path / "plain")[f"{Q}.weight"].shape)
    lora = adapters.written(tmp_path / "lora", factors)
    converter.convert(Source(base, adapters=[(lora, 1)]), f"{tmp_path}/tuned/", Request(dtype="f32"), threads=1)
    found = extract_lora(base, tmp_path / "tuned", tmp_path / "adapter", 2)
    assert [fit.module for fit in found.fits] == [Q] and found.relative_error < 1e-5


def other_vocabulary(folder: Path) -> Path:
    return builders.llama_folder(folder, vocab=520)


def other_names(folder: Path) -> Path:
    return builders.llama_folder(folder, weights={"h.0.weight": np.ones((4, 4), np.float32)})


def no_other(folder: Path) -> Path:
    return builders.llama_folder(folder)


def other_norm(folder: Path) -> Path:
    return tuned(folder, {"model.norm.weight": np.full(32, 0.5, np.float32)})


def a_gguf(folder: Path) -> Path:
    converter.convert(builders.llama_folder(folder), folder / "m.gguf", threads=1)
    return folder / "m.gguf"


WRONG: dict[Any, tuple[type[ConverterError], str]] = {
    other_vocabulary: (
        ShapeMismatch,
        r"model\.embed_tokens\.weight' is \[520, 32\], of base \[512, 32\]\n.*vocabulary",
    ),
    other_names: (UnmatchedTensor, "no tensor of a name that base has"),
    no_other: (UsageError, "differs from .*base in nothing at rank 3"),
    other_norm: (UsageError, "1 tensors, none of them a matrix for factors of rank 3"),
    a_gguf: (UsageError, "is no Hugging Face model"),
}


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_what_cannot_be_extracted(make: Any, tmp_path: Path) -> None:
    kind, said = WRONG[make]
    with pytest.raises(kind, match=said):
        extract(tmp_path, make(tmp_path / "tuned"))
    assert not (tmp_path / "adapter").exists()


# --------------------------------------------------------------------------------------------------------- PEFT

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "every matrix": ("llama", {"target_modules": LINEAR}),
    "embedding, head and norms": (
        "llama", {"target_modules": ["v_proj", "embed_tokens", "lm_head"], "modules_to_save": ["norm"]},
    ),
    "a tied embedding": ("tied", {"target_modules": ["v_proj", "embed_tokens"]}),
    "biases": ("qwen2", {"target_modules": ["v_proj"], "bias": "all"}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_peft_makes_the_tuned_model_of_it(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model, settings = KINDS[kind]
    base = adapters.model(model, tmp_path / "base")
    given = adapters.adapter(base, tmp_path / "given", r=4, **settings)
    wanted = merged(base, given, tmp_path / "tuned")
    found = extract_lora(base, tmp_path / "tuned", tmp_path / "adapter", 4)
    assert found.relative_error < 1e-5 and not [event for event in found.plan.report.events if event.loss]
    theirs = adapters.merged(base, [tmp_path / "adapter"])
    if model == "tied":
        theirs.pop("lm_head.weight", None)
    assert theirs.keys() == wanted.keys()
    for name in wanted:
        assert np.abs(theirs[name] - wanted[name]).max() <= 1e-6 * np.abs(wanted[name]).max(), name


# ------------------------------------------------------------------------------------------------- command line


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = builders.llama_folder(tmp_path / "base"), f"{tmp_path}/lora/"
    other = tuned(tmp_path / "tuned", {f"{UP}.weight": moved(f"{UP}.weight")})
    argv = [str(base), str(other), "--extract-lora", "2", out]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rank"] == 2 and 0 < found["relative_error"] < 1
    assert found["modules"] == [
        {"name": UP, "shape": [64, 32], "rank": 2, "relative_error": pytest.approx(found["relative_error"])}
    ]
    assert main(argv) == OutputExists.exit_code
    capsys.readouterr()
    assert main([*argv, "--force"]) == 0
    shown = capsys.readouterr().out
    assert f"{found['relative_error']:.2%}" in shown and UP in shown and "rank 2" in shown
    for more in (["--quant", "q8_0"], ["--verify"], ["--lora", out], ["--to", "hf"]):
        assert main([*argv, "--force", *more]) == UsageError.exit_code
    assert main([str(base), str(other), "--extract-lora", "none", out]) == UsageError.exit_code
    assert "'none' is not a positive number" in capsys.readouterr().err
