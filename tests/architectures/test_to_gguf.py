"""Every architecture forward: the file is the reference's, tensor by tensor and key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import architectures, models
from support.recorded import digest, recorded_value

import converter

LAST = ("general.file_type", "general.quantization_version")


CONVERTED = [name for name in architectures.NAMES if architectures.facts(name)["reference"]["tensors"]]


@pytest.mark.parametrize("name", CONVERTED)
def test_same_file_as_the_reference(name: str, tmp_path: Path) -> None:
    facts = architectures.facts(name)
    folder = architectures.build(name, tmp_path)
    assert models.file_sha256(folder / "model.safetensors") == facts["model_sha256"], "the builder changed, not us"
    with converter.plan(
        architectures.source(folder), tmp_path / "out.gguf", converter.Request(**facts["request"])
    ).checkpoint as made:
        tensors = [
            [t.name, t.info.dtype.name, list(t.info.shape), digest(t.rows(0, t.info.n_rows).tobytes())]
            for t in made.tensors.values()
            if t.name not in facts.get("forgotten", ())
        ]
        keys = [[key, *recorded_value(value)] for key, value in made.config.items()]
        keys = [row for row in keys if row[0] not in facts.get("forgotten", ())]
    # Its converter keeps the source's order of tensors; we always write its quantizer's, which also puts two keys last.
    near = facts.get("near", ())
    wanted = [[corrected(name, facts), *rest] for name, *rest in facts["reference"]["tensors"]]
    assert sorted(judged(row, near) for row in tensors) == sorted(judged(row, near) for row in wanted)
    theirs = [row for row in facts["reference"]["keys"] if row[0] not in facts.get("forgotten", ())]
    theirs = sorted(theirs, key=lambda row: LAST.index(row[0]) if row[0] in LAST else -1)
    assert sorted(keys, key=lambda row: LAST.index(row[0]) if row[0] in LAST else -1) == theirs


def judged(row: list[Any], near: list[str]) -> list[Any]:
    """Name, type and shape, and the bytes of a tensor that is not only near the reference's."""
    return row[:3] if row[0] in near else row


def corrected(name: str, facts: dict[str, Any]) -> str:
    for wrong, right in facts.get("corrected", {}).items():
        name = name.replace(wrong, right)
    return name
