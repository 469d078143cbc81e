"""Every architecture back: the folder holds the source's tensors, and transformers computes the same with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support import architectures
from support.torch_logits import logits

import converter
from converter.formats.hf_folder import open_folder

#: A projector comes back beside its text model only.
WHOLE = [name for name in architectures.NAMES if not architectures.facts(name)["request"].get("mmproj")]
RUNNABLE = [name for name in architectures.NAMES if architectures.facts(name)["logits"] is not None]


@pytest.fixture(params=WHOLE)
def trip(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """A sample's name, its folder, and the folder that came back through a GGUF."""
    return made(request.param, tmp_path)


def made(name: str, parent: Path) -> tuple[str, Path, Path]:
    folder = architectures.build(name, parent)
    request = converter.Request(**architectures.facts(name)["request"])
    converter.convert(architectures.source(folder), parent / "m.gguf", request, threads=1)
    converter.convert(parent / "m.gguf", parent / "back", converter.Request(format="hf"), threads=1)
    return name, folder, parent / "back"


def stored(folder: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    with open_folder(folder) as checkpoint:
        return {
            name: (t.info.shape, t.array().astype(np.float64).tobytes()) for name, t in checkpoint.tensors.items()
        }  # fmt: skip


def renamed(tensor: str, pairs: Sequence[tuple[str, str]]) -> str:
    return next((new + tensor.removeprefix(old) for old, new in pairs if tensor.startswith(old)), tensor)


def test_the_same_tensors_come_back(trip: tuple[str, Path, Path]) -> None:
    """Under the same names, in the same shapes, with the same values, but where the facts say otherwise."""
    name, folder, back = trip
    facts = architectures.facts(name)
    dropped, changed = tuple(facts.get("dropped", ())), facts.get("changed", ())
    given = {
        renamed(tensor, facts.get("renamed", ())): content
        for tensor, content in stored(folder).items()
        if not tensor.startswith(dropped or ("no tensor",))
    }
    found = stored(back)
    names = [{tensor for tensor in side if not any(part in tensor for part in changed)} for side in (given, found)]
    assert names[0] == names[1]
    assert [tensor for tensor in names[0] if given[tensor] != found[tensor]] == []


@pytest.mark.parametrize("name", RUNNABLE)
def test_transformers_computes_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    _, folder, back = made(name, tmp_path)
    unread = architectures.unread(name)
    dropped = tuple(architectures.facts(name).get("dropped", ()))
    ours, theirs = logits(back, unread, dropped), logits(folder, unread)
    worst = float(np.abs(ours - theirs).max()) / float(np.abs(theirs).max())
    assert worst <= architectures.facts(name)["logits"]
