"""What is said on the way to a graph: nothing of GGUF files and of what llama.cpp makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import architectures

import converter

HEAD = "DistilBERT's classifier has a ReLU where the runtime has a hyperbolic tangent: its scores differ"
BASES = "llama.cpp rotates the blocks with windows by the base of the others"
BIASES = "the runtime adds no bias to what the experts make: it is left out, and the vectors differ by it"
OTHERS, WRITTEN = "what sees or hears is left out", "convert FOLDER mmproj.gguf --mmproj writes it"
#: Sample -> what is said of a graph, and of a GGUF.
SAID: dict[str, tuple[set[str], set[str]]] = {
    "distilbert-classifier": (set(), {HEAD}),
    "mellum-odd": (set(), {BASES}),
    "nomic-bert-moe-tiny": ({BIASES}, {BIASES}),
    "pixtral-tiny": ({OTHERS}, {f"{OTHERS}: {WRITTEN}"}),
}


@pytest.mark.parametrize("name", SAID)
def test_what_concerns_a_gguf_alone_is_not_said_of_a_graph(name: str, tmp_path: Path) -> None:
    folder = architectures.build(name, tmp_path)
    known = set.union(*(each for said in SAID.values() for each in said))
    for target, said in zip(("model.onnx", "model.gguf"), SAID[name], strict=True):
        with (plan := converter.plan(folder, tmp_path / target)).checkpoint:
            assert {str(event) for event in plan.report.events} & known == said, target
