"""Every architecture that llama.cpp runs: the F32 GGUF computes what torch computes. No wrong rule can pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import architectures
from support.llama_runner import ask
from support.torch_logits import TOKENS, logits

import converter

RUN = [name for name in architectures.NAMES if architectures.facts(name)["runtime"] is not None]
#: What a class is asked for that has no head, or a classifier for one; others for logits.
ANSWERS = {"LMHeadModel": "logits", "Model": "embeddings", "ForSequenceClassification": "scores"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_llama_cpp_computes_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")
    facts = architectures.facts(name)
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "m.gguf", converter.Request(quant="f32", **facts["request"]), threads=1)
    ends = (end for end in ANSWERS if facts["class"].endswith(end))
    ours = np.atleast_2d(ask(tmp_path / "m.gguf", **{ANSWERS.get(next(ends, ""), "logits"): TOKENS[0]})) * facts.get(
        "scaled", 1
    )
    theirs = np.atleast_2d(logits(folder, architectures.unread(name))[0])
    rows = min(len(ours[0]), theirs.shape[-1])  # an embedding may have more rows than the tokenizer has tokens
    worst = float(np.abs(ours[:, :rows] - theirs[:, :rows]).max()) / float(np.abs(theirs).max())
    assert worst <= facts["runtime"]
