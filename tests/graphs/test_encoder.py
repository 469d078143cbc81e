"""Encoders as ONNX graphs: what ONNX Runtime computes against transformers, in batches with padding on either side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures, onnx_cases
from support.llama_runner import ask
from support.onnx_texts import CLOSE, PADDED, Reference, batches, far, outputs, pooled
from support.torch_logits import TOKENS

import converter
from converter.architectures import architectures as known
from converter.architectures.traits import CLS, LAST, MEAN
from converter.mapping.detect import detect

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")


def architecture(name: str) -> Any:
    return detect(architectures.facts(name)["files"]["config.json"])[0]


def writes(name: str) -> bool:
    return not architectures.facts(name)["request"].get("mmproj") and architecture(name).traits.encoder is not None


#: Samples of encoders that transformers runs, and of those that it has no class for.
TRIED = [name for name in architectures.NAMES if writes(name) and architectures.facts(name)["logits"] is not None]
OTHERS = [name for name in architectures.NAMES if writes(name) and name not in TRIED]


def test_every_architecture_with_a_graph_is_tried() -> None:
    graphs = {each.gguf for each in known().values() if each.traits.encoder is not None}
    assert graphs == {architecture(name).gguf for name in (*TRIED, *OTHERS)}


@pytest.mark.parametrize("name", TRIED)
def test_states_and_scores(name: str, tmp_path: Path) -> None:
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    session, reference = onnx_cases.session(tmp_path / "model.onnx"), Reference(folder)
    for case, feeds in batches(reference.n_vocab, reference.pad, reference.n_types).items():
        if reference.model.config.model_type == "distilbert" and PADDED[case][0][0]:
            continue  # its class counts positions from the first token of padding, and cannot be told otherwise
        wanted, found = reference(feeds), outputs(session, feeds)
        mask = feeds["attention_mask"]
        assert all(np.isfinite(each).all() for each in found.values()), case
        if "logits" in found:
            if PADDED[case][0][0] and architecture(name).gguf != "modern-bert":
                continue  # transformers takes the vector of the first token, be it padding
            assert far(found["logits"], wanted) < CLOSE, case
            continue
        states = found["last_hidden_state"]
        assert far(states[mask > 0], wanted[mask > 0]) < CLOSE, case


POOLED = {"mean": (MEAN, "pooling_mode_mean_tokens"), "cls": (CLS, "pooling_mode_cls_token"),
          "last": (LAST, "pooling_mode_lasttoken")}  # fmt: skip


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("way", POOLED)
def test_the_vector_of_a_text(way: str, normalised: bool, tmp_path: Path) -> None:
    folder = architectures.build("bert-tiny", tmp_path)
    kind, flag = POOLED[way]
    modules = json.loads((folder / "modules.json").read_text())
    if normalised:
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, flag: True}))
    converter.convert(folder, tmp_path / "model.onnx")
    session, reference = onnx_cases.session(tmp_path / "model.onnx"), Reference(folder)
    for case, feeds in batches(reference.n_vocab, reference.pad, reference.n_types).items():
        wanted = pooled(reference(feeds), feeds["attention_mask"], kind)
        wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True) if normalised else wanted
        assert far(outputs(session, feeds)["sentence_embedding"], wanted) < CLOSE, case


def test_a_text_that_is_all_padding_stays_finite(tmp_path: Path) -> None:
    folder = architectures.build("bert-tiny", tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    ids = np.full((2, 6), 7)
    feeds = {"input_ids": ids, "attention_mask": ids * 0, "token_type_ids": ids * 0}
    found = outputs(onnx_cases.session(tmp_path / "model.onnx"), feeds)
    assert all(np.isfinite(each).all() for each in found.values())


def test_dense_layers_after_the_pooling(tmp_path: Path) -> None:
    folder = architectures.build("gemma-embedding-dense", tmp_path)
    converter.convert(folder, tmp_path / "model.onnx", converter.Request(dense_modules=True))
    session, reference = onnx_cases.session(tmp_path / "model.onnx"), Reference(folder)
    from safetensors.numpy import load_file

    dense = [load_file(folder / f"{name}_Dense" / "model.safetensors")["linear.weight"] for name in (2, 3)]
    for case, feeds in batches(reference.n_vocab, reference.pad, 0).items():
        wanted = pooled(reference(feeds), feeds["attention_mask"], MEAN)
        for weight in dense:
            wanted = wanted @ weight.astype(np.float32).T
        wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)  # its modules say so
        assert far(outputs(session, feeds)["sentence_embedding"], wanted) < CLOSE, case


@pytest.mark.parametrize("quant", ["q4_0", "q5_1", "q8_0"])
def test_blocks_of_a_gguf_compute_what_they_hold(quant: str, tmp_path: Path) -> None:
    folder = architectures.build("bert-tiny", tmp_path)
    converter.convert(folder, tmp_path / "model.gguf", converter.Request(quant=quant))
    converter.convert(tmp_path / "model.gguf", f"{tmp_path / 'decoded'}/", converter.Request(dtype="f32"))
    converter.convert(tmp_path / "model.gguf", tmp_path / "model.onnx", converter.Request(exact=True))
    session, reference = onnx_cases.session(tmp_path / "model.onnx"), Reference(tmp_path / "decoded")
    feeds = batches(reference.n_vocab, reference.pad, reference.n_types)["behind"]
    mask, found = feeds["attention_mask"], outputs(session, feeds)
    wanted = reference(feeds)
    assert far(found["last_hidden_state"][mask > 0], wanted[mask > 0]) < CLOSE
    assert far(found["sentence_embedding"], pooled(wanted, mask, MEAN)) < CLOSE


def test_half_precision(tmp_path: Path) -> None:
    folder = architectures.build("bert-tiny", tmp_path)
    converter.convert(folder, tmp_path / "model.onnx", converter.Request(dtype="f16"))
    session, reference = onnx_cases.session(tmp_path / "model.onnx"), Reference(folder)
    feeds = batches(reference.n_vocab, reference.pad, reference.n_types)["behind"]
    mask, found = feeds["attention_mask"], outputs(session, feeds)
    assert found["last_hidden_state"].dtype == found["sentence_embedding"].dtype == np.float32
    assert far(found["last_hidden_state"][mask > 0], reference(feeds)[mask > 0]) < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_states_of_llama_cpp(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    converter.convert(folder, tmp_path / "model.gguf", converter.Request(quant="f32"))
    session, ids = onnx_cases.session(tmp_path / "model.onnx"), np.array(TOKENS)
    names = {each.name for each in session.get_inputs()}
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    ours = outputs(session, {key: value for key, value in feeds.items() if key in names})["last_hidden_state"][0]
    theirs = np.array(ask(tmp_path / "model.gguf", embeddings=TOKENS[0]))
    assert far(ours, theirs) < 1e-3


def test_the_checker_of_onnx_finds_nothing(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("bert-tiny", "modern-bert-classifier"):
        converter.convert(architectures.build(name, tmp_path), tmp_path / f"{name}.onnx")
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
