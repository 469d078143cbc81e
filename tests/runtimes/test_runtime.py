"""What our files do in llama.cpp: they load, and they say what the torch model says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import models, sparse
from support.llama_runner import ask

import converter

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def greedy() -> dict[str, Any]:
    """64 greedy tokens of each fixture by torch, from fixtures/make_expected.py."""
    facts: dict[str, Any] = json.loads((models.EXPECTED / "greedy.json").read_text("utf-8"))
    return facts


@pytest.mark.parametrize("quant", ["f32", "q8_0"])
def test_stories_says_what_torch_says(quant: str, greedy: dict[str, Any], tmp_path: Path) -> None:
    wanted = greedy["stories260K"]
    converter.convert(models.FIXTURES / "stories260K", tmp_path / "s.gguf", converter.Request(quant=quant))
    assert ask(tmp_path / "s.gguf", generate=wanted["prompt_tokens"], count=64) == wanted["tokens"]


@pytest.mark.parametrize("model", ["stories260K", "kjv-llama"])
def test_llama_cpp_tokenizes_as_the_original(model: str, greedy: dict[str, Any], tmp_path: Path) -> None:
    converter.convert(models.FIXTURES / model, tmp_path / "m.gguf")
    assert ask(tmp_path / "m.gguf", tokenize=[greedy[model]["prompt"]]) == [greedy[model]["prompt_tokens"]]


def test_a_tokenizer_json_alone_keeps_its_merges(tmp_path: Path) -> None:
    """Its scores are derived from the order of the merges, so that llama.cpp cuts text where the tokenizer does."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = models.build_model("mixtral-96", tmp_path)
    converter.convert(folder, tmp_path / "m.gguf")
    wanted = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = ["Once upon a time, there was a little girl named Lily.", "a  b\nçé 12", "the end"]
    assert ask(tmp_path / "m.gguf", tokenize=texts) == [wanted.encode(text).ids for text in texts]


def test_perplexity_grows_as_bits_shrink(tmp_path: Path) -> None:
    """On the trained fixture and unseen text: within a hair for 8 bits, in order below."""
    text = (models.FIXTURES / "kjv-heldout.txt").read_text()[:8_000]
    found = {}
    for quant in ("f16", "q8_0", "q4_k_m", "q2_k"):
        converter.convert(models.FIXTURES / "kjv-llama", tmp_path / f"{quant}.gguf", converter.Request(quant=quant))
        found[quant] = ask(tmp_path / f"{quant}.gguf", perplexity=text)
    assert math.isclose(found["q8_0"], found["f16"], rel_tol=0.01)
    assert found["f16"] < found["q4_k_m"] * 1.001 < found["q2_k"]
    assert found["q4_k_m"] < found["f16"] * 1.1


def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Two sparse Llamas, one four times the other, in processes of their own: the same peak within 10 %."""
    peaks = []
    for layers in (2, 8):
        config = {**sparse.LLAMAS["llama-1b"], "num_hidden_layers": layers, "vocab_size": 32000}
        folder = sparse.folder(config, tmp_path / str(layers), tokenizer=models.FIXTURES / "stories260K")
        peaks.append(_peak(folder, tmp_path / "out.gguf"))
    assert peaks[1] < peaks[0] * 1.1
    assert peaks[1] < 300 << 20


def _peak(source: Path, target: Path) -> int:
    """Peak resident bytes of a conversion to Q4_K_M, by the kernel's own count for that process alone."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to read the peak from")
    code = (
        "import re, sys; from converter.cli.main import main; code = main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, str(source), str(target), "-q", "q4_k_m", "--quiet", "--force"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) << 10
