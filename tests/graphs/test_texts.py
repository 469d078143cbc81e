"""Decoders that read texts at once: vectors and scores, in batches with padding on either side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures, onnx_cases
from support.llama_runner import ask
from support.onnx_texts import CLOSE, Floats, Reference, batches, far, outputs, pooled
from support.torch_logits import TOKENS

import converter
from converter.architectures.traits import CLS, LAST, MEAN

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")


def alone(reference: Reference, feeds: dict[str, Any]) -> list[Floats]:
    """What transformers makes of each text without its padding."""
    rows = zip(feeds["input_ids"], feeds["attention_mask"], strict=True)
    texts = [ids[real > 0][None] for ids, real in rows]
    return [reference({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0] for ids in texts]


def states(found: dict[str, Floats], feeds: dict[str, Any]) -> Floats:
    """Those of real tokens, of one text after the other."""
    return found["last_hidden_state"][feeds["attention_mask"] > 0]


WAYS = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS, "pooling_mode_lasttoken": LAST}


@pytest.mark.parametrize("way", WAYS)
def test_the_vector_of_a_text(way: str, tmp_path: Path) -> None:
    folder = architectures.build("qwen3-embedding-tiny", tmp_path)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, way: True}))
    converter.convert(folder, tmp_path / "model.onnx")
    session, reference = onnx_cases.session(tmp_path / "model.onnx"), Reference(folder)
    for case, feeds in batches(reference.n_vocab, reference.pad, 0).items():
        wanted, found = alone(reference, feeds), outputs(session, feeds)
        assert set(found) == {"last_hidden_state", "sentence_embedding"}
        assert far(states(found, feeds), np.concatenate(wanted)) < CLOSE, case
        vectors = np.concatenate([pooled(each[None], np.ones((1, len(each)), np.int64), WAYS[way]) for each in wanted])
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)  # its modules say so
        assert far(found["sentence_embedding"], vectors) < CLOSE, case


def test_the_scores_of_a_classifier(tmp_path: Path) -> None:
    folder = architectures.build("qwen3-classifier", tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    session, reference = onnx_cases.session(tmp_path / "model.onnx"), Reference(folder)
    for case, feeds in batches(reference.n_vocab, reference.pad, 0).items():
        assert far(outputs(session, feeds)["logits"], np.array(alone(reference, feeds))) < CLOSE, case


def test_a_reranker_answers_yes_or_no(tmp_path: Path) -> None:
    """Its scores are the logits of the two words that it may say next."""
    folder = architectures.build("qwen3-reranker-tiny", tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    converter.convert(folder, tmp_path / "model.gguf", converter.Request(quant="f32"))
    session, reference = onnx_cases.session(tmp_path / "model.onnx"), Reference(folder)
    for case, feeds in batches(reference.n_vocab, reference.pad, 0).items():
        last = np.array([each[-1] for each in alone(reference, feeds)])
        ranked = outputs(session, feeds)["logits"]
        apart = np.abs(last[:, :, None] - ranked[:, None]).min(1).max() / np.abs(last).max()
        assert ranked.shape == (len(last), 2) and apart < CLOSE, case
    ids = np.array(TOKENS)
    scores = outputs(session, {"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"][0]
    shares = np.exp(scores) / np.exp(scores).sum()
    assert far(shares, np.array(ask(tmp_path / "model.gguf", scores=TOKENS[0]), np.float32)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "output"), [("lfm2-embedding", "last_hidden_state"), ("lfm2-colbert", "token_embeddings")]
)
def test_vectors_of_llama_cpp(name: str, output: str, tmp_path: Path) -> None:
    """Convolutions see both ways where tokens do, and none sees padding."""
    pytest.importorskip("llama_cpp")
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "model.onnx")
    converter.convert(folder, tmp_path / "model.gguf", converter.Request(quant="f32"))
    session, ids = onnx_cases.session(tmp_path / "model.onnx"), np.array(TOKENS)
    found = outputs(session, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[output]
    theirs = np.ravel(ask(tmp_path / "model.gguf", embeddings=TOKENS[0]))[: found.size]
    assert far(found, theirs.astype(np.float32).reshape(found.shape)) < 1e-3
    padded = np.pad(ids, ((0, 0), (3, 5)), constant_values=7)
    mask = np.pad(np.ones_like(ids), ((0, 0), (3, 5)))
    again = outputs(session, {"input_ids": padded, "attention_mask": mask})[output]
    assert far(again[:, 3:-5], found) < CLOSE


def test_the_checker_of_onnx_finds_nothing(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("qwen3-embedding-tiny", "lfm2-embedding"):
        converter.convert(architectures.build(name, tmp_path), tmp_path / f"{name}.onnx")
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
