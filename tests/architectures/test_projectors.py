"""The second file of a multimodal model: written on request, verified, and told of where it is left out."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures

import converter
from converter.architectures import projectors
from converter.architectures.spec import TensorRule
from converter.errors import UnknownArchitecture
from converter.tensors.expressions import evaluate
from converter.tensors.ops import Reshape, Row, Rows, Softplus, Sum, apply, infer, inverse
from converter.verify.verifier import verify

MMPROJ = converter.Request(mmproj=True)
NAMES = [name for name in architectures.NAMES if architectures.facts(name)["request"].get("mmproj")]


def test_every_projector_has_a_sample() -> None:
    known = {hf.name for architecture in projectors() for hf in architecture.hf}
    tried = {architectures.facts(name)["class"] for name in NAMES}
    assert tried <= known
    assert all(tried & {hf.name for hf in architecture.hf} for architecture in projectors())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_verified_like_any_other(name: str, tmp_path: Path) -> None:
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "mmproj.gguf", MMPROJ, threads=1)
    found = verify(folder, tmp_path / "mmproj.gguf", MMPROJ, threads=1)
    assert found.passed and found.tensors
    assert found.tensors == verify(folder, tmp_path / "mmproj.gguf", threads=1).tensors, "the file says what it is"


def test_a_model_without_one_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitecture, match="no tower of 'Qwen2MoeForCausalLM' is known"):
        converter.plan(architectures.build("qwen2moe-tiny", tmp_path), tmp_path / "m.gguf", MMPROJ)


def test_a_folder_without_a_text_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitecture, match="'UltravoxModel': no text model of it is known here"):
        converter.plan(architectures.build("ultravox-mmproj", tmp_path), tmp_path / "m.gguf")


def test_one_that_goes_one_way_only(tmp_path: Path) -> None:
    folder = architectures.build("ultravox-mmproj", tmp_path)
    converter.convert(folder, tmp_path / "p.gguf", MMPROJ, threads=1)
    converter.convert(architectures.build("qwen2moe-tiny", tmp_path), tmp_path / "m.gguf", threads=1)
    with pytest.raises(UnknownArchitecture, match=r"of .UltravoxModel. goes to GGUF only\n.*text model alone"):
        converter.plan(tmp_path / "m.gguf", f"{tmp_path / 'back'}/", converter.Request(mmproj=tmp_path / "p.gguf"))


@pytest.mark.parametrize("listed", [5, "LlamaForCausalLM", [7], None])
def test_classes_that_are_no_list_of_texts(listed: Any, tmp_path: Path) -> None:
    folder = architectures.build("qwen2moe-tiny", tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": listed}), "utf-8")
    with pytest.raises(UnknownArchitecture, match="no tower of a model without a class is known"):
        converter.plan(folder, tmp_path / "m.gguf", MMPROJ)


def test_what_is_left_to_the_other_file_is_said(tmp_path: Path) -> None:
    folder = architectures.build("gemma3-mmproj", tmp_path)
    plan = converter.plan(folder, tmp_path / "m.gguf", MMPROJ)
    plan.checkpoint.close()
    assert "26 tensors are the text model's; without --mmproj they are converted" in map(str, plan.report.events)
    plan = converter.plan(folder, tmp_path / "m.gguf")
    plan.checkpoint.close()
    assert "what sees or hears is left out: convert FOLDER mmproj.gguf --mmproj writes it" in map(
        str, plan.report.events
    )


RULES = [(architecture.hf[0].name, rule) for architecture in projectors() for rule in architecture.tensors]


#: What the reference writes into the samples' files, the number of a block as a word.
WRITTEN = {
    re.sub(r"(?<=blk\.)\d+(?=\.)", "{block}", tensor)
    for name in NAMES for tensor, *_ in architectures.facts(name)["reference"]["tensors"]
}  # fmt: skip


@pytest.mark.parametrize(("name", "rule"), RULES, ids=lambda value: getattr(value, "gguf", (value,))[0])
def test_names_are_those_of_gguf_py(name: str, rule: TensorRule) -> None:
    """Or, where the package is older than the reference, those that the reference writes."""
    gguf = pytest.importorskip("gguf")
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.MMPROJ]}
    for each in rule.gguf:
        stem = re.sub(r"\.(weight(\.1)?|bias|(in|out)put_(min|max))$", "", each)
        assert {stem, re.sub(r"\{\w+\}|(?<=\.)\d+(?=\.|$)", "{bid}", stem)} & known or each in WRITTEN, each
    number = rule.ops[:1] == (Reshape((), (1,)),)
    assert (rule.shape or number) and len({"{block}" in each for each in (*rule.hf, *rule.gguf)}) == 1


class _Sizes(dict[str, Any]):
    """Sizes, of which each that is not given is four."""

    def __missing__(self, name: str) -> int:
        return 4


def test_every_op_leads_back() -> None:
    """On the tensors of the samples: what a chain makes, its inverse unmakes."""
    for _, rule in RULES:
        sizes = _Sizes(n_embd=8, n_head=2, patch_size=3, merge=2, scale=2, image_size=12, n_vocab=6, present=())
        chain = tuple(op.bind(sizes) for op in rule.ops)
        shape = tuple(evaluate(size, sizes) for size in rule.shape)
        arrays = [np.arange(math.prod(shape), dtype=np.float32).reshape(shape)]
        made = apply(chain, arrays)
        assert [each.shape for each in made] == infer(chain, [shape]) and len(made) == len(rule.gguf)
        if any(isinstance(op, Softplus) for op in chain):
            assert np.allclose(apply(inverse(chain), made)[0], arrays[0], rtol=1e-6)
        elif not any(isinstance(op, Row | Rows | Sum) for op in chain):
            assert all(np.array_equal(a, b) for a, b in zip(apply(inverse(chain), made), arrays, strict=True))
