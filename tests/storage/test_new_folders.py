"""Folders that an output goes into: made where they are missing, gone again where nothing came into them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import models

from converter import pipeline
from converter.errors import Cancelled, OutputError, QuantizationError
from converter.request import Request
from converter.storage.folders import Folders, nearest

STORIES = models.FIXTURES / "stories260K"


def test_only_what_was_made_goes_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    folders = Folders(tmp_path / "there" / "a" / "b")
    folders.make()
    folders.make()
    assert (tmp_path / "there/a/b").is_dir()
    folders.remove()
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_what_has_something_in_it_stays(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "a" / "b" / "c")
    folders.make()
    (tmp_path / "a/other").write_text("theirs")
    folders.remove()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "other"]


def test_a_file_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("precious")
    for folder in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(OutputError, match="file: is a file, not a folder"):
            nearest(folder)
    with pytest.raises(OutputError, match="cannot be made"):
        Folders(tmp_path / "file" / "a").make()
    monkeypatch.chdir(tmp_path)
    assert nearest(Path("a/b")) == tmp_path and nearest(Path(".")) == Path(".")


def test_a_run_that_fails_leaves_none(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "model.gguf"
    with pytest.raises(Cancelled):
        pipeline.convert(STORIES, target, progress=lambda _: False)
    with pytest.raises(QuantizationError):
        pipeline.convert(STORIES, target, Request(quant="q4_k_m", no_fallback=True))
    with pytest.raises(Cancelled):
        pipeline.convert(STORIES, f"{tmp_path}/new/hf/", progress=lambda _: False)
    assert list(tmp_path.iterdir()) == []
    pipeline.plan(STORIES, target).checkpoint.close()
    assert list(tmp_path.iterdir()) == [], "a plan writes nothing"
    pipeline.convert(STORIES, target)
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
