"""Hugging Face -> GGUF -> Hugging Face on small random models, and the ways in which config and tensors disagree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures, builders, models
from support.families import FAMILIES, NO_TOKENIZER, SIZES, Tensors, family_config, planned, random_tensors, write

import converter
from converter import Request
from converter.errors import (
    ArchitectureError,
    ConverterError,
    MissingTensor,
    ShapeMismatch,
    UnknownArchitecture,
    UnmatchedTensor,
)
from converter.events import Dropped
from converter.formats.safetensors import open_safetensors
from converter.mapping.generators import LLAMA3_DEFAULTS, llama3_rope_config, llama3_rope_freqs
from converter.mapping.hparams import flat_config
from converter.mapping.tensors import to_gguf, to_hf
from converter.metadata import Value
from converter.tensors.dtypes import F32
from converter.tensors.tensor import from_array

PLAIN_FACTS = (*list(SIZES)[:6], "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def read(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with open_safetensors(path) as checkpoint:
        return {
            name: (t.info.dtype.name, t.info.shape, t.rows(0, t.info.n_rows).tobytes())
            for name, t in checkpoint.tensors.items()
        }


def gguf_contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    with converter.open_checkpoint(path) as checkpoint:
        return dict(checkpoint.config), {
            name: (t.info.dtype.name, t.info.shape, t.rows(0, t.info.n_rows).tobytes())
            for name, t in checkpoint.tensors.items()
        }


def there_and_back(folder: Path, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and config after HF -> GGUF -> HF, through real files."""
    converter.convert(folder, folder / "model.gguf", NO_TOKENIZER, threads=1)
    back = folder / "back.safetensors"
    request = Request(dtype=None if dtype == "F32" else dtype.lower())
    plan = converter.convert(folder / "model.gguf", back, request, threads=1)
    return read(back), dict(plan.checkpoint.config)


# ------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
def test_hf_to_gguf_and_back_is_bit_exact(family: str, dtype: str, tmp_path: Path) -> None:
    config = family_config(family)
    folder = write(tmp_path / "m", config, random_tensors(config, dtype), dtype)
    tensors, restored = there_and_back(folder, dtype)
    assert tensors == read(folder / "model.safetensors")
    assert facts(restored) == facts(config)


def facts(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json says that a GGUF can hold, whatever the transformers version that wrote it."""
    flat = flat_config(config)
    kept = {key: flat[key] for key in PLAIN_FACTS}
    kept["head_dim"] = flat.get("head_dim") or flat["hidden_size"] // flat["num_attention_heads"]
    for names in (("num_local_experts", "num_experts"), ("num_experts_per_tok",), ("moe_intermediate_size",)):
        kept[names[0]] = next((flat[name] for name in names if name in flat), None)
    rope = {key: value for key, value in flat["rope"].items() if key != "type"}
    return {**kept, "rope": {"rope_type": "default", **rope}}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_restored_config_is_read_by_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = family_config(family)
    folder = write(tmp_path / "m", config, random_tensors(config, "BF16"), "BF16")
    _, restored = there_and_back(folder, "BF16")
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "config.json").write_text(json.dumps(restored))
    before = transformers.AutoConfig.from_pretrained(folder).to_dict()
    after = transformers.AutoConfig.from_pretrained(tmp_path / "restored").to_dict()
    kept = (*PLAIN_FACTS, "rope_parameters", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size")
    assert {key: after.get(key) for key in kept} == {key: before.get(key) for key in kept}


def test_shards_are_one_model(tmp_path: Path) -> None:
    config = family_config("llama")
    tensors = random_tensors(config, "BF16")
    whole = write(tmp_path / "m", config, tensors, "BF16")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "config.json").write_text(json.dumps(config))
    models.write_safetensors(tmp_path / "s", tensors, "BF16", shards=3)
    for folder in (whole, tmp_path / "s"):
        converter.convert(folder, folder / "out.gguf", Request(no_tokenizer=True, name="m"))
    assert (whole / "out.gguf").read_bytes() == (tmp_path / "s" / "out.gguf").read_bytes()


def test_quantized_rows_pass_through_the_map_back_and_forth(tmp_path: Path) -> None:
    """Packed rows are permuted, stacked and split without being decoded."""
    config = family_config("mixtral")
    folder = write(tmp_path / "m", config, random_tensors(config, "F32"), "F32")
    converter.convert(folder, tmp_path / "q.gguf", Request(no_tokenizer=True, quant="q8_0", pure=True))
    with converter.open_checkpoint(tmp_path / "q.gguf") as gguf:
        hf = to_hf(gguf)
        again = to_gguf(gguf.replace(tensors=hf.tensors, config=hf.config, dialect="hf"))
        assert {tensor.info.dtype.name for tensor in hf.tensors.values()} == {"Q8_0", "F32"}
        for name, tensor in again.tensors.items():
            same = gguf.tensors[name]
            assert tensor.info == same.info
            assert tensor.rows(0, tensor.info.n_rows).tobytes() == same.rows(0, same.info.n_rows).tobytes()


# ----------------------------------------------------------------------------------------- rope scaling


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3,
        {**LLAMA3, "factor": 32.0},
        {**LLAMA3, "factor": 16.0, "original_max_position_embeddings": 4096},
    ],
    ids=["3.1", "3.2", "other"],
)
def test_llama3_scaling_becomes_a_tensor_and_is_recognized_again(scaling: dict[str, Any], tmp_path: Path) -> None:
    config = family_config("llama", rope_parameters={**scaling, "rope_theta": 500000.0}, head_dim=64)
    folder = write(tmp_path / "m", config, random_tensors(config, "BF16"), "BF16")
    plan = planned(folder)
    freqs = plan.checkpoint.tensors["rope_freqs.weight"]
    assert (freqs.info.shape, freqs.info.dtype.name) == ((32,), "F32")
    assert "llama.rope.scaling.type" not in plan.checkpoint.config
    tensors, restored = there_and_back(folder, "BF16")
    assert tensors == read(folder / "model.safetensors")
    assert restored["rope_scaling"] == scaling
    assert restored["rope_theta"] == 500000.0


def test_llama3_frequencies() -> None:
    """Fast dimensions are left alone, slow ones stretched by the factor, and between them it grows."""
    freqs = llama3_rope_freqs({**LLAMA3, "rope_theta": 500000.0}, {"head_dim": 128})
    assert freqs.dtype == np.float32 and freqs.shape == (64,)
    assert freqs[0] == 1.0 and freqs[-1] == 8.0
    assert (np.diff(freqs) >= 0).all()
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, 128, 2) / 128)
    assert (freqs[wavelengths < 8192 / 4] == 1.0).all()
    assert (freqs[wavelengths > 8192] == 8.0).all()
    assert llama3_rope_config(freqs * np.float32(1.01), {"rope_theta": 500000.0}, {"head_dim": 128}) == {}


@pytest.mark.slow
def test_llama3_frequencies_against_transformers() -> None:
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.modeling_rope_utils")
    configuration = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={**LLAMA3, "rope_theta": 500000.0},
    )
    scaled, _ = modeling.ROPE_INIT_FUNCTIONS["llama3"](configuration, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    freqs = llama3_rope_freqs({**LLAMA3, "rope_theta": 500000.0}, {"head_dim": 64})
    np.testing.assert_allclose(freqs, (plain / scaled).numpy(), rtol=1e-5)


def test_scaling_values_that_are_left_out_are_those_of_transformers() -> None:
    implied, said = (llama3_rope_freqs(rope, {"head_dim": 64}) for rope in ({}, LLAMA3_DEFAULTS))
    assert implied.tolist() == said.tolist()


def test_frequencies_of_no_known_scaling_are_a_note(tmp_path: Path) -> None:
    config = family_config("llama")
    folder = write(tmp_path / "m", config, random_tensors(config, "F32"), "F32")
    with converter.open_checkpoint(folder) as hf:
        gguf = to_gguf(hf)
        freqs = gguf.tensors["rope_freqs.weight"].array()
        values = freqs * np.linspace(1, 3, len(freqs), dtype=np.float32)
        tensors = {**gguf.tensors, "rope_freqs.weight": from_array("rope_freqs.weight", values, F32, "test")}
        metadata = {"general.architecture": Value("str", "llama"), **gguf.config}
        back = to_hf(hf.replace(tensors=tensors, config=metadata, dialect="gguf"))
    assert "rope_scaling" not in back.config
    assert any("no known rope scaling" in str(event) for event in back.events)


@pytest.mark.parametrize(
    ("scaling", "keys"),
    [
        ({"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}),
        ({"type": "linear", "factor": 2}, {"type": "linear", "factor": 2}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0},
            {"type": "yarn", "factor": 4.0, "original_context_length": 128, "yarn_beta_fast": 32.0},
        ),
        ({"rope_type": "dynamic", "factor": 2.0}, {}),
        (None, {}),
    ],
    ids=["linear", "old spelling", "yarn", "dynamic is left to the runtime", "none"],
)
def test_other_scalings_are_keys(scaling: dict[str, Any] | None, keys: dict[str, Any], tmp_path: Path) -> None:
    config = models.as_transformers_4(family_config("llama", dtype="float32")) | {"rope_scaling": scaling}
    folder = write(tmp_path / "m", config, random_tensors(family_config("llama"), "F32"), "F32")
    plan = planned(folder)
    prefix = "llama.rope.scaling."
    found = {key.removeprefix(prefix): value for key, value in plan.checkpoint.config.items() if key.startswith(prefix)}
    assert {key: value.value for key, value in found.items()} == keys
    assert "rope_freqs.weight" not in plan.checkpoint.tensors
    _, restored = there_and_back(folder, "F32")
    if keys:
        assert facts(restored)["rope"] == facts(config)["rope"]


# ------------------------------------------------------------------------------------------ heads and names


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_tied_and_untied_heads(family: str, tmp_path: Path) -> None:
    untied = family_config(family)
    tensors = random_tensors(untied, "BF16")
    plan = planned(write(tmp_path / "untied", untied, tensors, "BF16"))
    assert "output.weight" in plan.checkpoint.tensors
    tied = {**untied, "tie_word_embeddings": True}
    headless = {name: array for name, array in tensors.items() if name != "lm_head.weight"}
    folder = write(tmp_path / "tied", tied, headless, "BF16")
    plan = planned(folder)
    assert "output.weight" not in plan.checkpoint.tensors
    assert any("tied" in str(event) for event in plan.report.events)
    back, restored = there_and_back(folder, "BF16")
    assert restored["tie_word_embeddings"] is True
    assert back == read(folder / "model.safetensors")
    with pytest.raises(MissingTensor, match="lm_head"):
        planned(write(tmp_path / "lost", untied, headless, "BF16"))


def test_rows_of_mixtral_experts_are_stacked_in_order(tmp_path: Path) -> None:
    config = family_config("mixtral")
    tensors = random_tensors(config, "F32")
    folder = write(tmp_path / "m", config, tensors, "F32")
    converter.convert(folder, tmp_path / "m.gguf", NO_TOKENIZER)
    _, stacked = gguf_contents(tmp_path / "m.gguf")
    for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        parts = [tensors[f"model.layers.1.block_sparse_moe.experts.{i}.{theirs}.weight"] for i in range(3)]
        kind, shape, data = stacked[f"blk.1.ffn_{ours}_exps.weight"]
        assert (kind, shape) == ("F32", np.stack(parts).shape)
        assert data == np.stack(parts).tobytes()


@pytest.mark.parametrize(
    ("family", "gate", "expert"),
    [
        ("mixtral", "block_sparse_moe.gate.weight", ("block_sparse_moe.experts.{}.w1.weight",
         "block_sparse_moe.experts.{}.w3.weight", "block_sparse_moe.experts.{}.w2.weight")),
        ("qwen3_moe", "mlp.gate.weight", ("mlp.experts.{}.gate_proj.weight",
         "mlp.experts.{}.up_proj.weight", "mlp.experts.{}.down_proj.weight")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("quant", [None, "q8_0"])
def test_fused_experts_make_the_same_file(
    family: str, gate: str, expert: tuple[str, str, str], quant: str | None, tmp_path: Path
) -> None:
    """transformers 5 can save a layer's experts in two tensors; the GGUF does not show which."""
    config = family_config(family)
    tensors = random_tensors(config, "F32")
    fused: Tensors = {}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        gates, ups, downs = (
            np.stack([tensors[prefix + name.format(i)] for i in range(config["num_local_experts"])]) for name in expert
        )
        fused[prefix + "mlp.experts.gate_up_proj"] = np.concatenate([gates, ups], axis=1)
        fused[prefix + "mlp.experts.down_proj"] = downs
        fused[prefix + "mlp.gate.weight"] = tensors[prefix + gate]
    plain = {name: array for name, array in tensors.items() if ".experts." not in name and "gate.weight" not in name}
    for name, contents in (("split", tensors), ("fused", {**plain, **fused})):
        folder = write(tmp_path / name, config, contents, "F32")
        converter.convert(folder, tmp_path / f"{name}.gguf", Request(no_tokenizer=True, name="m", quant=quant))
    assert (tmp_path / "fused.gguf").read_bytes() == (tmp_path / "split.gguf").read_bytes()


@pytest.mark.parametrize(
    ("rename", "changes"),
    [
        (lambda name: name.removeprefix("model."), {"architectures": ["LlamaModel"]}),
        (lambda name: name.replace("model.", "model.language_model."), {}),
        (lambda name: "language_model." + name, {}),
    ],
    ids=["bare LlamaModel", "model.language_model.", "language_model.model."],
)
def test_prefixes_are_aliases(rename: Callable[[str], str], changes: dict[str, Any], tmp_path: Path) -> None:
    bare = "architectures" in changes
    config = family_config("llama")
    tensors = random_tensors(config, "BF16")
    if bare:
        tensors.pop("lm_head.weight")
    plain = write(tmp_path / "plain", config | {"tie_word_embeddings": bare}, tensors, "BF16")
    renamed = {rename(name): array for name, array in tensors.items()}
    other = write(tmp_path / "other", config | changes, renamed, "BF16")
    for folder in (plain, other):
        converter.convert(folder, folder / "out.gguf", Request(no_tokenizer=True, name="m"))
    assert (plain / "out.gguf").read_bytes() == (other / "out.gguf").read_bytes()
    if bare:
        assert any("LlamaModel has no head" in str(event) for event in planned(other).report.events)


def test_what_the_runtime_computes_is_ignored_aloud(tmp_path: Path) -> None:
    config = family_config("llama")
    tensors = random_tensors(config, "F32")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, "<f4")
    plan = planned(write(tmp_path / "m", config, tensors, "F32"))
    assert [event.name for event in plan.report.events if event.kind == "Ignored"] == [  # type: ignore[attr-defined]
        "model.layers.0.self_attn.rotary_emb.inv_freq"
    ]


def test_arch_names_what_the_config_does_not(tmp_path: Path) -> None:
    config = family_config("llama")
    config["architectures"] = ["SomethingElse"]
    folder = write(tmp_path / "m", config, random_tensors(config, "F32"), "F32")
    with pytest.raises(UnknownArchitecture, match="SomethingElse"):
        planned(folder)
    for name in ("llama", "LlamaForCausalLM"):
        plan = planned(folder, Request(no_tokenizer=True, arch=name))
        assert plan.checkpoint.config["general.architecture"] == Value("str", "llama")


# ------------------------------------------------------------------------------------------------ errors


def without(name: str) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, config: tensors.__delitem__(name)


def extra(name: str, *shape: int) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, config: tensors.update({name: np.zeros(shape, "<f4")})


def configured(**changes: Any) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, config: config.update(changes)


LAYER = "model.layers.1."
EXPERTS = LAYER + "block_sparse_moe.experts."


@pytest.mark.parametrize(
    ("family", "break_it", "error", "named"),
    [
        ("llama", without(LAYER + "mlp.up_proj.weight"), MissingTensor, LAYER + "mlp.up_proj.weight"),
        ("llama", without("model.norm.weight"), MissingTensor, "model.norm.weight"),
        ("llama", without("model.embed_tokens.weight"), MissingTensor, "model.embed_tokens.weight"),
        ("qwen3", without(LAYER + "self_attn.q_norm.weight"), MissingTensor, LAYER + "self_attn.q_norm.weight"),
        ("mixtral", without(EXPERTS + "1.w2.weight"), MissingTensor, EXPERTS + "1.w2.weight"),
        ("mixtral", without(LAYER + "block_sparse_moe.gate.weight"), MissingTensor, LAYER + "block_sparse_moe.gate"),
        ("llama", extra("model.layers.0.mlp.extra.weight", 4, 4), UnmatchedTensor, "mlp.extra.weight"),
        ("llama", extra("model.layers.01.mlp.up_proj.weight", 4, 4), UnmatchedTensor, "layers.01"),
        ("llama", extra(EXPERTS + "0.w1.weight", 96, 64), UnmatchedTensor, "experts.0.w1"),
        ("llama", extra("model.layers.2.mlp.up_proj.weight", 96, 64), ShapeMismatch, "model.layers.2.mlp"),
        ("mixtral", extra(EXPERTS + "3.w2.weight", 64, 96), ShapeMismatch, EXPERTS + "3.w2.weight"),
        ("llama", extra(LAYER + "mlp.up_proj.weight", 95, 64), ShapeMismatch, LAYER + "mlp.up_proj.weight"),
        ("llama", extra(LAYER + "self_attn.q_proj.weight", 64), ShapeMismatch, LAYER + "self_attn.q_proj.weight"),
        ("llama", extra("norm.weight", 64), UnmatchedTensor, "model.norm.weight"),
        ("llama", configured(num_hidden_layers=1), ShapeMismatch, "config.json says 1 layers"),
        ("llama", configured(num_hidden_layers=3), MissingTensor, "model.layers.2."),
        ("llama", configured(num_attention_heads=8), ShapeMismatch, "self_attn"),
        ("llama", configured(num_key_value_heads=1), ShapeMismatch, "k_proj"),
        ("llama", configured(vocab_size=49), ShapeMismatch, "embed_tokens|lm_head"),
        ("mixtral", configured(num_local_experts=2), ShapeMismatch, "config.json says 2 experts"),
        ("mixtral", configured(num_local_experts=4), MissingTensor, "experts.3."),
        ("llama", configured(num_attention_heads=0), ArchitectureError, "0"),
        ("llama", configured(hidden_size="64"), ArchitectureError, "hidden_size"),
        ("llama", configured(num_hidden_layers=-1), ArchitectureError, "num_hidden_layers"),
        ("llama", configured(num_hidden_layers=2**40), ArchitectureError, "num_hidden_layers"),
        ("llama", configured(num_hidden_layers=True), ArchitectureError, "num_hidden_layers"),
        ("llama", configured(rms_norm_eps="tiny"), ArchitectureError, "rms_norm_eps"),
        ("llama", configured(hidden_size=None), ArchitectureError, "hidden_size"),
    ],
)  # fmt: skip
def test_disagreement_is_an_error_that_names_it(
    family: str,
    break_it: Callable[[Tensors, dict[str, Any]], None],
    error: type[ConverterError],
    named: str,
    tmp_path: Path,
) -> None:
    config = family_config(family)
    tensors = random_tensors(config, "F32")
    break_it(tensors, config)
    folder = write(tmp_path / "m", config, tensors, "F32")
    with pytest.raises(error, match=named) as caught:
        planned(folder)
    assert type(caught.value) is error or error is ArchitectureError
    assert len(str(caught.value).splitlines()) <= 3
    assert not (folder / "out.gguf").exists()


def test_way_back_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    config = family_config("llama")
    folder = write(tmp_path / "m", config, random_tensors(config, "F32"), "F32")
    with converter.open_checkpoint(folder) as hf:
        gguf = to_gguf(hf)
        metadata = {"general.architecture": Value("str", "llama"), **gguf.config}
        base = hf.replace(tensors=gguf.tensors, config=metadata, dialect="gguf")
        one = gguf.tensors["output_norm.weight"]
        with pytest.raises(UnmatchedTensor, match=r"blk\.0\.strange"):
            to_hf(base.replace(tensors={**gguf.tensors, "blk.0.strange": one.renamed("blk.0.strange")}))
        with pytest.raises(UnknownArchitecture, match="grok"):
            to_hf(base.replace(config={**metadata, "general.architecture": Value("str", "grok")}))
        with pytest.raises(ArchitectureError, match=r"llama\.block_count"):
            to_hf(base.replace(config={key: value for key, value in metadata.items() if key != "llama.block_count"}))


def test_a_classifier_that_the_target_has_no_place_for_is_named(tmp_path: Path) -> None:
    folder = builders.llama_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    with converter.open_checkpoint(folder) as checkpoint:
        tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != "lm_head.weight"}
        score = from_array("score.weight", np.zeros((2, config["hidden_size"]), np.float32), F32, "made")
        made = to_gguf(checkpoint.replace(tensors={**tensors, "score.weight": score}))
        assert "output.weight" not in made.tensors and made.architecture.gguf == "llama"
        dropped = [str(event) for event in made.events if event.loss]
        assert dropped == ["score.weight: dropped (of a classifier, which a GGUF of llama has no place for)"]
        with pytest.raises(UnmatchedTensor):  # of a text model it is a tensor that nobody knows
            said = {**config, "architectures": ["LlamaForCausalLM"]}
            to_gguf(checkpoint.replace(tensors={**checkpoint.tensors, "score.weight": score}, config=said))


def test_a_pooler_that_a_class_needs_and_the_file_lacks_is_named(tmp_path: Path) -> None:
    folder = architectures.build("bert-classifier", tmp_path)
    converter.convert(folder, tmp_path / "m.gguf", threads=1)
    with converter.open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert not [event for event in to_hf(checkpoint).events if event.loss]
        less = {name: t for name, t in checkpoint.tensors.items() if name not in ("cls.weight", "cls.bias")}
        lost = [event.name for event in to_hf(checkpoint.replace(tensors=less)).events if isinstance(event, Dropped)]
        assert lost == ["pooler.dense.weight", "pooler.dense.bias"]
