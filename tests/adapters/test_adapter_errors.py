"""What is no merge is an error that names the adapter's folder, the tensor, and what to do."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import builders
from support.adapters import lora, written

import converter
from converter.errors import (
    ConverterError,
    CorruptFile,
    LossyError,
    MissingPart,
    ShapeMismatch,
    UnmatchedTensor,
    UnsupportedFeature,
    UsageError,
)
from converter.request import Request, Source

Q, HEAD, EMBEDDING = "model.layers.0.self_attn.q_proj", "lm_head", "model.embed_tokens"
Q_SHAPE = builders.llama_shapes()[f"{Q}.weight"]
VOCABULARY = builders.llama_shapes()[f"{EMBEDDING}.weight"]
WHOLE = np.ones(VOCABULARY, np.float32)
STEM = "base_model.model."


def plan(base: Path, adapter: Path, strength: float = 1.0, **request: Any) -> list[str]:
    made = converter.plan(Source(base, adapters=[(adapter, strength)]), f"{base.parent}/out/", Request(**request))
    made.checkpoint.close()
    return [str(event) for event in made.report.events]


def tied(folder: Path) -> Path:
    weights = {name: each for name, each in builders.llama_weights().items() if name != "lm_head.weight"}
    return builders.llama_folder(folder, config={"tie_word_embeddings": True}, weights=weights)


ZERO_B = {name: each * ("lora_A" in name) for name, each in lora(Q, *Q_SHAPE).items()}
CONFIGS: dict[str, tuple[dict[str, Any], type[ConverterError], str]] = {
    "a type that is not computed": ({"peft_type": "VERA"}, UnsupportedFeature, "adapter of type VERA"),
    "one with a list of moments": ({"alora_invocation_tokens": [1]}, UnsupportedFeature, "alora_invocation_tokens"),
    "a deeper model": ({"layer_replication": [[0, 2], [1, 3]]}, UnsupportedFeature, "layer_replication"),
    "averages of columns": ({"use_qalora": True}, UnsupportedFeature, "use_qalora"),
    "a base that was changed": ({"init_lora_weights": "pissa_niter_4"}, UnsupportedFeature, "pissa_niter_4"),
    "no number": ({"lora_alpha": "much"}, CorruptFile, "lora_alpha is 'much'"),
    "a pattern that could hang": ({"alpha_pattern": {"(?=a)": 2}}, UnsupportedFeature, r"pattern"),
}
TENSORS: dict[str, tuple[dict[str, Any], type[ConverterError], str]] = {
    "all of B is zero": (ZERO_B, UsageError, "changes nothing, every product of its matrices is zero"),
    "nothing in it": ({}, UsageError, "changes nothing, it holds nothing"),
    "another model": (lora("transformer.h.0.attn", 8, 8), UnmatchedTensor, r"no partner for .*h\.0\.attn.*lora_A"),
    "other sizes": (lora(Q, 128, 32), ShapeMismatch, rf"{Q}\.lora_B.* is for a weight of \[128, 32\], {Q}"),
    "half a pair": (
        {name: each for name, each in lora(Q, *Q_SHAPE).items() if "lora_A" in name},
        CorruptFile, "has no lora_B beside it",
    ),
    "ranks that differ": (
        {**lora(Q, *Q_SHAPE), f"{STEM}{Q}.lora_A.weight": np.ones((3, Q_SHAPE[1]), np.float32)},
        CorruptFile, r"A is \[3, ",
    ),
    "two adapters": (
        {f"{STEM}{Q}.lora_A.{name}.weight": np.ones((2, Q_SHAPE[1]), np.float32) for name in ("one", "two")},
        ConverterError, "another name|several adapters",
    ),
    "a convolution": (
        {name: each[..., None] for name, each in lora(Q, *Q_SHAPE).items()}, UnsupportedFeature, "no convolutions",
    ),
    "a vocabulary that grew": (
        {f"{STEM}{EMBEDDING}.weight": np.ones((VOCABULARY[0] + 8, VOCABULARY[1]), np.float32)},
        ShapeMismatch, "vocabulary that was changed must be changed in the base",
    ),
    "a scale of no axes": ({f"{STEM}{Q}.ia3_l": np.float32(2)}, UnsupportedFeature, "only matrices are merged"),
    "a scale of another size": ({f"{STEM}{Q}.ia3_l": np.ones((5, 1), np.float32)}, ShapeMismatch, "ia3_l"),
    "tokens that nobody named": (
        {f"{STEM}{EMBEDDING}.token_adapter.trainable_tokens_delta": np.ones((2, 32), np.float32)},
        CorruptFile, "does not say which tokens",
    ),
    "a classifier that the base has not": (
        {f"{STEM}score.weight": np.ones((2, 32), np.float32)}, UnmatchedTensor, "score.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_settings_that_are_not_computed(case: str, tmp_path: Path) -> None:
    config, kind, said = CONFIGS[case]
    adapter = written(tmp_path / "adapter", lora(Q, *Q_SHAPE), **config)
    with pytest.raises(kind, match=said) as error:
        plan(builders.llama_folder(tmp_path / "base"), adapter)
    assert str(adapter) in str(error.value)


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_not_merged(case: str, tmp_path: Path) -> None:
    tensors, kind, said = TENSORS[case]
    adapter = written(tmp_path / "adapter", tensors)
    with pytest.raises(kind, match=said) as error:
        plan(builders.llama_folder(tmp_path / "base"), adapter)
    assert str(adapter) in str(error.value)


@pytest.mark.parametrize(
    "tensors",
    [
        lora(HEAD, *VOCABULARY),
        {f"{STEM}{HEAD}.weight": WHOLE},
        {f"{STEM}{EMBEDDING}.weight": WHOLE},
        {f"{STEM}{HEAD}.weight": WHOLE, f"{STEM}{EMBEDDING}.weight": WHOLE * 2},
    ],
    ids=["LoRA of the head", "head saved", "embedding saved", "both saved, and not the same"],
)
def test_a_tied_head_that_would_split(tensors: dict[str, Any], tmp_path: Path) -> None:
    base, adapter = tied(tmp_path / "base"), written(tmp_path / "adapter", tensors)
    with pytest.raises(UnmatchedTensor, match="would split the two"):
        plan(base, adapter)


def test_both_saved_alike_stay_tied(tmp_path: Path) -> None:
    both = {f"{STEM}{name}.weight": WHOLE for name in (HEAD, EMBEDDING)}
    assert "merged into 1 tensor" in plan(tied(tmp_path / "base"), written(tmp_path / "a", both))[0]


def test_a_stored_copy_of_a_tied_head_is_left_out(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base", config={"tie_word_embeddings": True})
    tensors = {
        f"{STEM}{EMBEDDING}.lora_embedding_{side}": np.ones((2, 512) if side == "A" else (32, 2)) for side in "AB"
    }
    adapter = written(tmp_path / "a", {name: each.astype(np.float32) for name, each in tensors.items()})
    converter.convert(Source(base, adapters=[(adapter, 1)]), f"{tmp_path}/out/", threads=1)
    with converter.open_checkpoint(tmp_path / "out") as made:
        assert "lm_head.weight" not in made.tensors


def test_tokens_beyond_the_vocabulary(tmp_path: Path) -> None:
    rows = {f"{STEM}{EMBEDDING}.token_adapter.trainable_tokens_delta": np.ones((2, 32), np.float32)}
    adapter = written(tmp_path / "adapter", rows, trainable_token_indices={"embed_tokens": [3, 512]})
    with pytest.raises(ShapeMismatch, match="trainable_tokens_delta"):
        plan(builders.llama_folder(tmp_path / "base"), adapter)


def test_strengths(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    for strength in (0.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"a strength of (0|nan|inf) is none"):
            plan(base, written(tmp_path / "a", lora(Q, *Q_SHAPE)), strength)
    saved = written(tmp_path / "b", {f"{STEM}model.norm.weight": np.ones(32, np.float32)})
    with pytest.raises(UsageError, match="nothing in it is multiplied by a strength"):
        plan(base, saved, 0.5)
    assert "merged into 1 tensor" in plan(base, saved)[0]


def test_folders_that_hold_no_adapter(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    with pytest.raises(MissingPart, match=r"no adapter_config\.json"):
        plan(base, base)
    alone = written(tmp_path / "alone", lora(Q, *Q_SHAPE))
    (alone / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingPart, match=r"no adapter_model\.safetensors or"):
        plan(base, alone)
    damaged = written(tmp_path / "damaged", lora(Q, *Q_SHAPE))
    (damaged / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ConverterError):
        plan(base, damaged)


def test_a_gguf_is_no_base(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    converter.convert(base, tmp_path / "m.gguf", threads=1)
    with pytest.raises(UsageError, match="adapters are merged into Hugging Face models"):
        plan(tmp_path / "m.gguf", written(tmp_path / "a", lora(Q, *Q_SHAPE)))


def test_values_that_the_base_cannot_hold_are_told(tmp_path: Path) -> None:
    weights = {name: each.astype(np.float16) for name, each in builders.llama_weights().items()}
    base = builders.llama_folder(tmp_path / "base", weights=weights)
    large = {name: each * 1e4 for name, each in lora(Q, *Q_SHAPE).items()}
    source = Source(base, adapters=[(written(tmp_path / "a", large), 1)])
    told = converter.convert(source, f"{tmp_path}/out/", threads=1).report.events
    assert any("too large for F16" in str(event) for event in told)
    with pytest.raises(LossyError):
        converter.convert(source, f"{tmp_path}/strict/", Request(strict=True), threads=1)


@pytest.mark.parametrize("number", [1e30, np.inf, np.uint32(0x7F800001).view(np.float32)], ids=["large", "inf", "NaN"])
def test_products_that_are_no_numbers_are_told_without_a_word_of_numpy(number: float, tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    factors = {name: np.full_like(each, number) for name, each in lora(Q, *Q_SHAPE).items()}
    adapter = written(tmp_path / "a", factors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = converter.convert(Source(base, adapters=[(adapter, 1)]), f"{tmp_path}/out/", threads=1).report.events
        converter.convert(Source(adapter, base=base), tmp_path / "a.gguf", threads=1)
    assert any(f"{Q}.weight: 1,024 values are NaN or infinite" in str(event) for event in told), told


def test_the_base_that_was_used_is_told(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    same = written(tmp_path / "same", lora(Q, *Q_SHAPE))
    other = written(tmp_path / "other", lora(Q, *Q_SHAPE), base_model_name_or_path="unsloth/base-bnb-4bit")
    assert len(plan(base, same)) == 1
    assert "trained on 'unsloth/base-bnb-4bit'" in plan(base, other)[1]


def test_its_files_are_among_those_that_are_read(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    adapter = written(tmp_path / "a", lora(Q, *Q_SHAPE))
    with converter.open_checkpoint(Source(base, adapters=[(adapter, 1)])) as opened:
        assert {adapter / "adapter_model.safetensors", adapter / "adapter_config.json"} <= set(opened.files)
    with pytest.raises(ConverterError, match="output and input are the same file"):
        converter.plan(Source(base, adapters=[(adapter, 1)]), adapter / "adapter_model.safetensors")


def test_equal_sources_give_equal_plans(tmp_path: Path) -> None:
    base = builders.llama_folder(tmp_path / "base")
    adapter = written(tmp_path / "a", lora(Q, *Q_SHAPE))
    copy = shutil.copytree(adapter, tmp_path / "copy")
    sources = [Source(base, adapters=[(adapter, 1)]), Source(base, adapters=[(adapter, 0.5)]), Source(base)]
    sources += [Source(base, adapters=[(copy, 1)]), Source.from_dict(json.loads(json.dumps(sources[0].as_dict())))]
    prints = []
    for source in sources:
        made = converter.plan(source, tmp_path / "m.gguf")
        made.checkpoint.close()
        prints.append(made.fingerprint())
    assert prints[4] == prints[0] and len(set(prints)) == 4
