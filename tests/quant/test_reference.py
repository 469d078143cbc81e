"""Whole files against llama.cpp's converter and quantizer: every tensor's bytes, every key and value, and the order.

The facts were recorded by fixtures/make_expected.py. `general.name` and what is derived from it come from the
folder's name, so the models are built under the names they had then.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support import models
from support.recorded import digest, recorded_value

import converter
from converter.errors import MissingImportance

RECORDED = sorted(path.stem for path in models.EXPECTED.glob("*.json") if path.stem not in ("greedy", "perplexity"))
FLAGS: dict[str, dict[str, object]] = {
    "--pure": {"pure": True},
    "--leave-output-tensor": {"leave_output": True},
    "--output-tensor-type q8_0": {"output_type": "q8_0"},
    "--token-embedding-type q8_0": {"embedding_type": "q8_0"},
    "--output-tensor-type q6_k --token-embedding-type q6_k": {"output_type": "q6_k", "embedding_type": "q6_k"},
}


# docs/differences.md: the reference gives all tokens of a SentencePiece tokenizer.json one score, with which its own
# runtime cuts text elsewhere than the tokenizer does (tests/runtimes/test_runtime.py).
SCORELESS = frozenset(name for name, spec in models.MODELS.items() if spec.tokenizer == "spm-json")


@cache
def build(name: str, folder: Path) -> Path:
    if name in models.FIXTURE_MODELS:
        return models.FIXTURES / name
    return models.build_model(name, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")
    return lambda name: build(name, folder)


def request(label: str) -> converter.Request:
    if label == "source":
        return converter.Request()
    ftype, _, flags = label.partition(" ")
    return converter.Request(quant=ftype.lower(), **(FLAGS[flags] if flags else {}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECORDED)
def test_same_file_as_the_reference(name: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    facts = models.load_expected(name)
    folder = model(name)
    assert models.file_sha256(folder / "model.safetensors") == facts["model_sha256"], "the builder changed, not us"
    for label in facts["ftypes"]:
        with converter.plan(folder, tmp_path / "out.gguf", request(label)).checkpoint as made:
            compare(made, name, label)
    converter.convert(folder, tmp_path / "out.gguf", request("Q4_K_M"))
    with converter.open_checkpoint(tmp_path / "out.gguf") as written:
        compare(written, name, "Q4_K_M")


def compare(made: converter.Checkpoint, name: str, label: str) -> None:
    """Tensors (planned or written) and keys against the recorded ones."""
    ours = [
        (t.name, t.info.dtype.name, t.info.shape, digest(t.rows(0, t.info.n_rows).tobytes()))
        for t in made.tensors.values()
    ]
    theirs = [(t.name, t.type, t.shape, t.sha256) for t in models.expected_tensors(name, label)]
    keys = [(key, *recorded_value(value)) for key, value in made.config.items()]
    wanted = [(value.key, value.type, value.value) for value in models.expected_metadata(name, label)]
    if name in SCORELESS:
        keys, wanted = ([row for row in rows if row[0] != "tokenizer.ggml.scores"] for rows in (keys, wanted))
    if label == "source":  # the converter keeps the source's order, we always write the quantizer's
        ours, theirs, keys, wanted = sorted(ours), sorted(theirs), sorted(keys, key=str), sorted(wanted, key=str)
    assert ours == theirs, label
    assert keys == wanted, label


@pytest.mark.parametrize("name", RECORDED)
def test_refuses_what_the_reference_refuses_for_want_of_an_importance_matrix(
    name: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    refused = [label for label in models.load_expected(name)["refused"] if label != "Q1_0"]
    for label in refused:
        with pytest.raises(MissingImportance):
            converter.plan(model(name), tmp_path / "out.gguf", request(label))
    if not refused:
        pytest.skip("the reference refuses none of them for this model")


def test_bytes_do_not_depend_on_the_source_layout(tmp_path: Path) -> None:
    """A bare file with its folder's config, and the folder, make the same GGUF."""
    folder = tmp_path / "stories260K"
    shutil.copytree(models.FIXTURES / "stories260K", folder)
    results = []
    for source in (folder, folder / "model.safetensors"):
        converter.convert(source, tmp_path / "out.gguf", converter.Request(quant="q4_0"), force=True)
        results.append((tmp_path / "out.gguf").read_bytes())
    assert results[0] == results[1]
