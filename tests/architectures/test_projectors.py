"""The second file of a multimodal model: written on request, verified, and told of where it is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import architectures

import converter
from converter.architectures import projectors
from converter.errors import UnknownArchitecture
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
    with pytest.raises(UnknownArchitecture, match="no vision tower of 'Qwen2MoeForCausalLM' is known"):
        converter.plan(architectures.build("qwen2moe-tiny", tmp_path), tmp_path / "m.gguf", MMPROJ)


def test_what_is_left_to_the_other_file_is_said(tmp_path: Path) -> None:
    folder = architectures.build("gemma3-mmproj", tmp_path)
    plan = converter.plan(folder, tmp_path / "m.gguf", MMPROJ)
    plan.checkpoint.close()
    assert "26 tensors are the text model's; without --mmproj they are converted" in map(str, plan.report.events)
    plan = converter.plan(folder, tmp_path / "m.gguf")
    plan.checkpoint.close()
    assert "the vision tower is left out: convert FOLDER mmproj.gguf --mmproj writes it" in map(str, plan.report.events)
