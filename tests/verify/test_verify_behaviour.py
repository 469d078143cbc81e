"""What runtimes made of both models becomes part of a verification."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from support.verifications import behaviour, verification

from converter.verify import behaviour as module
from converter.verify.behaviour import with_behaviour


@pytest.mark.parametrize(
    ("wanted", "got", "words"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 5, 3], "from token 1 on"),
        ([1, 2, 3], [1, 2], "from token 2 on"),
        (None, [1], None),
        ([1], None, None),
    ],
)
def test_tokenizers_that_cut_a_text_differently(
    wanted: list[int] | None, got: list[int] | None, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {"model": wanted, "model-q4.gguf": got}
    monkeypatch.setattr(module, "probe_ids", lambda path, text: ids[path.name])
    monkeypatch.setattr(module, "behaviour", lambda *_, **__: behaviour())
    found = with_behaviour(verification(1))
    assert found.behaviour == behaviour()
    assert [finding.message.partition("differently ")[2] for finding in found.findings] == ([words] if words else [])
    assert found.passed == (words is None)


def test_it_runs_both_models_on_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(module, "probe_ids", lambda path, text: None)

    def run(*arguments: object, **options: object) -> object:
        asked.append((arguments, options))
        return behaviour()

    monkeypatch.setattr(module, "behaviour", run)
    with_behaviour(verification(1), "a text", tokens=7, context=5, threads=3)
    options = {"tokens": 7, "context": 5, "threads": 3, "progress": None}
    assert asked == [((Path("model"), Path("model-q4.gguf"), "a text"), options)]


@pytest.mark.parametrize(("kl", "fails"), [(0.1, False), (math.inf, True), (math.nan, True), (None, False)])
def test_logits_that_are_not_finite(kl: float | None, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "probe_ids", lambda path, text: None)
    monkeypatch.setattr(module, "behaviour", lambda *_, **__: replace(behaviour(), mean_kl=kl))
    found = with_behaviour(verification(1))
    assert [(each.check, each.subject) for each in found.findings] == [("behaviour", "logits")] * fails
