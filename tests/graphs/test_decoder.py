"""Decoders as ONNX graphs: logits of ONNX Runtime against those of transformers, with caches and padding."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures, models, onnx_cases
from support.llama_runner import ask
from support.onnx_cases import CLOSE
from support.paths import ROOT
from support.torch_logits import TOKENS

import converter
from converter.architectures import architectures as known
from converter.errors import UnsupportedFeature
from converter.formats.registry import open_checkpoint
from converter.graphs.without import WITHOUT
from converter.mapping.detect import detect

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

KJV = models.FIXTURES / "kjv-llama"


#: How the names of classes end that make texts.
LANGUAGE = ("CausalLM", "LMHeadModel", "ConditionalGeneration", "DreamModel", "LLaDAModelLM", "LLaDAMoEModelLM", "RND1")


def writes(name: str) -> bool:
    """Whether a graph is written of a sample: of its language model."""
    said = architectures.facts(name)
    if said["request"].get("mmproj") or not said["class"].endswith(LANGUAGE):
        return False
    return detect(said["files"]["config.json"])[0].traits.decoder is not None


#: A router takes three experts of groups that have two: which one is the third, nothing says.
UNDECIDED = {"glm4moe-nextn"}


def is_tried(name: str) -> bool:
    """Whether transformers runs its class as a language model."""
    said = architectures.facts(name)
    named = said["class"].endswith(("CausalLM", "LMHeadModel"))
    return writes(name) and said["logits"] is not None and named and name not in UNDECIDED


TRIED = [name for name in architectures.NAMES if is_tried(name)]


def architecture(name: str) -> str:
    return detect(architectures.facts(name)["files"]["config.json"])[0].gguf


#: Architectures that transformers does not run by itself, with a sample each: llama.cpp is asked.
OTHERS = {architecture(name): name for name in architectures.NAMES if writes(name) and name not in TRIED}
OTHERS = {arch: name for arch, name in OTHERS.items() if arch not in {*map(architecture, TRIED)}}
#: What llama.cpp has otherwise for so few blocks: in four of four it rotates the first, too.
OTHERS |= {"smallthinker": "smallthinker-tiny"}
del OTHERS["plm"]  # of it llama.cpp reads no head
#: The first sample of each is tried always.
FIRST = {architecture(name): name for name in reversed(TRIED)}.values()


def test_every_architecture_with_a_graph_is_tried() -> None:
    graphs = {each.gguf for each in known().values() if each.traits.decoder is not None}
    assert graphs == {*map(architecture, TRIED), *OTHERS, *ELSEWHERE, "plm"}


def test_every_architecture_has_a_graph_or_a_reason() -> None:
    """And one of both only; the guide has every reason in its words."""
    rows = {each.gguf: each.traits for each in known().values()}
    bare = {name for name, traits in rows.items() if traits.decoder is None and traits.encoder is None}
    assert bare == set(WITHOUT)
    guide = (ROOT / "docs" / "onnx.md").read_text("utf-8")
    assert not [name for name, reason in WITHOUT.items() if f"| {name} | {reason} |" not in guide]


def test_the_guide_names_them() -> None:
    _, _, said = (ROOT / "docs" / "onnx.md").read_text("utf-8").partition("## What has a graph")
    graphs = {each.gguf for each in known().values() if each.traits.decoder is not None}
    assert graphs <= set(re.findall(r"[\w.-]+", said))


#: The fixtures of other tests are of these.
ELSEWHERE = {"qwen2", "qwen3moe"}


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in TRIED]
)
def test_logits(name: str, tmp_path: Path) -> None:
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    if architectures.facts(name)["logits"] > CLOSE:  # a GGUF has other numbers, rounded in the type of the folder
        converter.convert(folder, tmp_path / "model.gguf", converter.Request(quant="f32"))
        converter.convert(tmp_path / "model.gguf", f"{tmp_path / 'decoded'}/", converter.Request(dtype="f32"))
        folder = tmp_path / "decoded"
    reference, n_vocab = onnx_cases.torch_reference(folder)
    found = onnx_cases.differences(tmp_path / "model.onnx", reference, n_vocab)
    assert max(found.values()) < onnx_cases.close(architecture(name)), found


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS.values())
def test_logits_of_llama_cpp(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    assert far_from_llama_cpp(architectures.build(name, tmp_path), tmp_path) < 1e-3


def far_from_llama_cpp(folder: Path, tmp_path: Path) -> float:
    """The largest difference of logits, relative to the largest logit."""
    converter.convert(folder, tmp_path / "model.onnx")
    converter.convert(folder, tmp_path / "model.gguf", converter.Request(quant="f32"))
    ids = np.array([TOKENS[0]])
    theirs = np.array(ask(tmp_path / "model.gguf", logits=TOKENS[0]))
    ours = onnx_cases.run(onnx_cases.session(tmp_path / "model.onnx"), ids, np.ones_like(ids), None)["logits"][0]
    rows = min(theirs.shape[-1], ours.shape[-1])
    return float(np.abs(ours[:, :rows] - theirs[:, :rows]).max() / np.abs(theirs).max())


@pytest.mark.slow
def test_plm_with_a_tied_head(tmp_path: Path) -> None:
    """llama.cpp takes the embedding for the head, whatever the file has."""
    pytest.importorskip("llama_cpp")
    said = architectures.facts("plm-tiny")
    files = {**said["files"], "config.json": {**said["files"]["config.json"], "tie_word_embeddings": True}}
    tensors = {name: info for name, info in said["tensors"].items() if name != "lm_head.weight"}
    folder = architectures.write(tmp_path / "tied", files, said["tokenizer"], tensors)
    assert far_from_llama_cpp(folder, tmp_path) < 1e-5


def test_an_odd_number_of_turning_elements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="3 elements of a head rotate"):
        converter.convert(architectures.build("llava-stablelm", tmp_path), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("n_layer", [32, 40])
def test_baichuan_tells_positions_by_how_many_blocks_it_has(n_layer: int, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    said = architectures.facts("baichuan-tiny")
    files = {**said["files"], "config.json": {**said["files"]["config.json"], "num_hidden_layers": n_layer}}
    first = {name: info for name, info in said["tensors"].items() if ".layers." not in name}
    block = {name: info for name, info in said["tensors"].items() if ".layers.0." in name}
    every = ({name.replace(".0.", f".{index}."): info for name, info in block.items()} for index in range(n_layer))
    tensors = {**first, **{name: info for each in every for name, info in each.items()}}
    folder = architectures.write(tmp_path / "deep", files, said["tokenizer"], tensors)
    assert far_from_llama_cpp(folder, tmp_path) < 1e-3


def test_what_fills_in_words_sees_no_padding(tmp_path: Path) -> None:
    """And has no cache: what stands behind a token changes it."""
    converter.convert(architectures.build("llada-tiny", tmp_path), tmp_path / "model.onnx")
    session, ids = onnx_cases.session(tmp_path / "model.onnx"), np.array(TOKENS)
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask"]
    padded, mask = (np.pad(each, ((0, 0), (3, 5))) for each in (ids, np.ones_like(ids)))
    (alone,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    (found,) = session.run(None, {"input_ids": padded, "attention_mask": mask})
    assert np.abs(found[:, 3:-5] - alone).max() < CLOSE * np.abs(alone).max()
    (shorter,) = session.run(None, {"input_ids": ids[:, :-1], "attention_mask": np.ones_like(ids)[:, :-1]})
    assert np.abs(shorter - alone[:, :-1]).max() > 0.01 * np.abs(alone).max()


QUANTS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs")


def by_blocks(source: Path, quant: str | None, tmp_path: Path) -> dict[str, float]:
    """Differences between the graph of a quantized GGUF and what transformers makes of its decoded weights."""
    converter.convert(source, tmp_path / "model.gguf", converter.Request(quant=quant))
    converter.convert(tmp_path / "model.gguf", f"{tmp_path / 'decoded'}/", converter.Request(dtype="f32"))
    converter.convert(tmp_path / "model.gguf", tmp_path / "model.onnx", converter.Request(exact=True))
    reference, n_vocab = onnx_cases.torch_reference(tmp_path / "decoded")
    return onnx_cases.differences(tmp_path / "model.onnx", reference, n_vocab)


@pytest.mark.parametrize("quant", QUANTS)
def test_blocks_of_a_gguf_compute_what_they_hold(quant: str, tmp_path: Path) -> None:
    found = by_blocks(KJV, quant, tmp_path)
    assert max(found.values()) < CLOSE, found


@pytest.mark.parametrize("name", ["lfm2-tiny", "qwen35-tiny", "falcon-h1-tiny", "gemma3n-tiny"])
def test_blocks_beside_states_compute_what_they_hold(name: str, tmp_path: Path) -> None:
    found = by_blocks(architectures.build(name, tmp_path), "q8_0", tmp_path)
    assert max(found.values()) < CLOSE, found


def resized(name: str, tmp_path: Path, **sizes: Any) -> Path:
    """A sample of other sizes, with the tensors that transformers' class has then."""
    import torch
    import transformers

    said = architectures.facts(name)
    config = {**said["files"]["config.json"], **sizes}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    tensors = {key: ("BF16", list(value.shape)) for key, value in model.state_dict().items() if key != "lm_head.weight"}
    return architectures.write(tmp_path / name, {**said["files"], "config.json": config}, said["tokenizer"], tensors)


@pytest.mark.parametrize("quant", ["q4_k_m", "q8_0"])
def test_blocks_of_gemma4_compute_what_they_hold(quant: str, tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 16,
        "per_layer_config": {"2": {"head_dim": 32, "num_key_value_heads": 2}},
    }  # fmt: skip
    found = by_blocks(resized("gemma4-moe", tmp_path, **sizes), quant, tmp_path)
    assert max(found.values()) < onnx_cases.close("gemma4"), found


@pytest.mark.parametrize(("name", "quant"), [("mixtral-256", "q4_k_m"), ("qwen3moe-256", "q3_k_m")])
def test_blocks_of_experts_compute_what_they_hold(name: str, quant: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    found = by_blocks(models.build_model(name, tmp_path), quant, tmp_path)
    assert max(found.values()) < CLOSE, found
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    plain = [each.name for each in graph.initializer if "experts." in each.name and each.data_type == 1]
    assert plain and all(name.endswith((".scales", ".minima")) for name in plain)


def test_codes_of_gpt_oss_compute_what_they_hold(tmp_path: Path) -> None:
    """As they are published, in four bits, which torch has kernels for on GPUs alone."""
    found = by_blocks(architectures.build("gpt-oss-mxfp4", tmp_path), None, tmp_path)
    assert max(found.values()) < CLOSE, found
    with open_checkpoint(tmp_path / "model.onnx") as made:
        assert made.tensors["blk.0.ffn_down_exps.weight"].info.dtype.name == "MXFP4"


def test_experts_have_the_names_of_their_matrices(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = models.build_model("qwen3moe-96", tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    own = {each.name for each in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer}
    with open_checkpoint(folder) as source:
        assert set(source.tensors) <= own
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_a_quant_makes_the_blocks_that_a_gguf_of_it_has(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "model.gguf", converter.Request(quant="q4_k_m"))
    converter.convert(tmp_path / "model.gguf", tmp_path / "a.onnx")
    converter.convert(KJV, tmp_path / "b.onnx", converter.Request(quant="q4_k_m"))
    assert (tmp_path / "a.onnx_data").read_bytes() == (tmp_path / "b.onnx_data").read_bytes()


def test_half_precision(tmp_path: Path) -> None:
    converter.convert(KJV, tmp_path / "model.onnx", converter.Request(dtype="f16"))
    reference, n_vocab = onnx_cases.torch_reference(KJV)
    found = onnx_cases.differences(tmp_path / "model.onnx", reference, n_vocab)
    assert max(found.values()) < 2e-3, found


def test_the_checker_of_onnx_finds_nothing(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    converter.convert(KJV, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_tensors_have_their_names(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    converter.convert(KJV, tmp_path / "model.onnx")
    own = {each.name for each in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer}
    with open_checkpoint(KJV) as source:
        assert set(source.tensors) <= own
        weight = source.tensors["model.layers.0.self_attn.q_proj.weight"].array().astype(np.float32)
    model = onnx.load(tmp_path / "model.onnx")
    stored = next(each for each in model.graph.initializer if each.name == "model.layers.0.self_attn.q_proj.weight")
    assert np.array_equal(onnx.numpy_helper.to_array(stored), weight.T)


@pytest.mark.parametrize("name", ["lfm2-tiny", "qwen35-tiny", "falcon-h1-tiny", "jamba-tiny"])
def test_states_in_half_precision(name: str, tmp_path: Path) -> None:
    """What a recurrence keeps is F32 even there."""
    onnx = pytest.importorskip("onnx")
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "model.onnx", converter.Request(dtype="f16"))
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    session = onnx_cases.session(tmp_path / "model.onnx")
    kept = {each.name: each.type for each in session.get_inputs() if each.name.startswith(("past_ssm", "past_rec"))}
    assert set(kept.values()) <= {"tensor(float)"} and (kept or name == "lfm2-tiny")
    reference, n_vocab = onnx_cases.torch_reference(folder)
    found = onnx_cases.differences(tmp_path / "model.onnx", reference, n_vocab)
    assert max(found.values()) < 2e-2, found


def test_a_folder_of_it(tmp_path: Path) -> None:
    converter.convert(KJV, f"{tmp_path / 'out'}/", converter.Request(format="onnx"))
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data"} <= names


def test_what_no_graph_is_written_of_is_refused_by_name(tmp_path: Path) -> None:
    folder = architectures.build("t5-tiny", tmp_path)
    converter.convert(folder, tmp_path / "model.gguf")
    with pytest.raises(UnsupportedFeature, match="t5: no graph can be written of this architecture: it is two models"):
        converter.convert(tmp_path / "model.gguf", tmp_path / "model.onnx")
    converter.convert(folder, tmp_path / "model.onnx", converter.Request(tensors_only=True))
