"""Open, plan, save: where the output goes, what it may replace, and what is closed and told on the way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import builders, models

import converter
from converter import Request, pipeline
from converter.checkpoint import Checkpoint
from converter.errors import ConverterError, DiskFull, LossyError, MissingPart, OutputExists, SameFile
from converter.events import Note, Overflow
from converter.formats.registry import formats
from converter.storage import disk
from converter.storage.layout import Layout, whole_file

STORIES = models.FIXTURES / "stories260K"


def planned(target: Path | str, **fields: Any) -> converter.Plan:
    plan = converter.plan(STORIES, target, Request(**fields))
    plan.checkpoint.close()
    return plan


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    path.write_bytes(builders.safetensors_of({"w": np.array([1, 1e9], "<f4")}))
    return path


# ------------------------------------------------------------------------------------- where it goes


@pytest.mark.parametrize(
    ("target", "fields", "writer", "place"),
    [
        ("there", {}, "hf", "there"),
        ("there/", {}, "hf", "there"),
        ("new/", {}, "hf", "new"),
        ("there", {"quant": "q8_0"}, "gguf", "there/*-Q8_0.gguf"),
        ("there/", {"format": "gguf"}, "gguf", "there/*-F32.gguf"),
        ("there", {"format": "hf"}, "hf", "there"),
        ("new", {"format": "hf"}, "hf", "new"),
        ("new", {"format": "gguf"}, "gguf", "new"),
        ("new.gguf", {}, "gguf", "new.gguf"),
        ("there.gguf", {}, "gguf", "there.gguf"),  # a folder, but its name says what is wanted
        ("THERE.NPZ", {}, "npz", "THERE.NPZ"),
    ],
)
def test_a_target_says_what_it_is(tmp_path: Path, target: str, fields: dict[str, Any], writer: str, place: str) -> None:
    for name in ("there", "there.gguf", "THERE.NPZ"):
        (tmp_path / name).mkdir()
    plan = planned(f"{tmp_path}/{target}", **fields)
    assert plan.request.output.format == writer and plan.target.relative_to(tmp_path).match(place)
    assert (plan.layout.folder or plan.layout.files[0].path) == plan.target


@pytest.mark.parametrize("target", ["new/", "there"])
def test_a_file_that_has_no_name_is_refused(tmp_path: Path, target: str) -> None:
    """Only a GGUF is given one."""
    (tmp_path / "there").mkdir()
    with pytest.raises(MissingPart, match="npz file needs a name"):
        planned(f"{tmp_path}/{target}", format="npz")


@pytest.mark.parametrize("sep", ["/", "\\"])
def test_a_slash_says_folder_on_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sep: str) -> None:
    monkeypatch.setattr(os, "sep", "\\")
    assert planned(f"{tmp_path}/new{sep}").request.output.format == "hf"


@pytest.mark.parametrize(
    ("folder", "files"), [(True, ("inner/a", "b")), (True, ("a", "inner/b")), (False, ("out.made", "inner/b"))]
)
def test_a_writer_may_fill_folders_within(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, folder: bool, files: tuple[str, ...]
) -> None:
    target = tmp_path / "out.made"
    place = target if folder else tmp_path
    layout = Layout(tuple(whole_file(place / name, b"new") for name in files), place if folder else None)
    made = replace(formats()["npz"], name="made", extensions=(".made",), layout=lambda *_: layout, folder=folder)
    monkeypatch.setitem(formats(), "made", made)
    converter.convert(source, target)
    assert all((place / name).read_bytes() == b"new" for name in files)


# ------------------------------------------------------------------------------------- what is closed


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets a line for every source that is closed."""
    lines: list[str] = []
    opened = pipeline.open_model

    def watched(*given: Any) -> Checkpoint:
        checkpoint = opened(*given)
        return checkpoint.replace(closers=(*checkpoint.closers, lambda: lines.append("closed")))

    monkeypatch.setattr(pipeline, "open_model", watched)
    return lines


@pytest.mark.parametrize(("target", "fields"), [("out.npz", {"quant": "q8_0"}), ("in.safetensors", {})])
def test_a_source_is_closed_where_there_is_no_plan(
    tmp_path: Path, source: Path, closed: list[str], target: str, fields: dict[str, Any]
) -> None:
    """Before the passes are at their end and after."""
    with pytest.raises(ConverterError):
        converter.plan(source, tmp_path / target, Request(**fields))
    assert closed == ["closed"]


def test_a_plan_keeps_its_source_open_and_a_conversion_does_not(
    tmp_path: Path, source: Path, closed: list[str]
) -> None:
    plan = converter.plan(source, tmp_path / "out.npz")
    assert closed == []
    plan.checkpoint.close()
    assert closed == ["closed"]
    converter.convert(source, tmp_path / "out.npz")
    assert closed == ["closed"] * 2


# ------------------------------------------------------------------------------------- what is there


def test_an_output_is_replaced_only_by_force(tmp_path: Path, source: Path) -> None:
    for name, make in (("file", Path.touch), ("link", lambda path: path.symlink_to("nowhere"))):
        target = tmp_path / f"{name}.npz"
        make(target)
        with pytest.raises(OutputExists, match=f"{name}.npz: exists already; --force replaces it"):
            converter.convert(source, target)
        converter.convert(source, target, force=True)
        assert np.load(target)["w"].tolist() == [1, np.float32(1e9)] and not target.is_symlink()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["folder", "device or pipe"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, source: Path, kind: str, force: bool) -> None:
    if kind != "folder" and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with a name")
    target = tmp_path / "out.npz"
    (Path.mkdir if kind == "folder" else os.mkfifo)(target)
    with pytest.raises(OutputExists, match=f"out.npz: is a {kind}, not a file"):
        converter.convert(source, target, force=force)
    assert target.exists() and not target.is_file()


def test_an_empty_folder_is_taken_and_another_only_by_force(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    for folder in (empty, full):
        folder.mkdir()
    (full / "diary.txt").touch()
    plan = converter.convert(STORIES, empty)
    assert {path.name for path in empty.iterdir()} == {file.path.name for file in plan.layout.files}
    with pytest.raises(OutputExists, match="full: is not empty; --force"):
        converter.convert(STORIES, full)
    assert [path.name for path in full.iterdir()] == ["diary.txt"]


def test_a_folder_may_be_a_link(tmp_path: Path, source: Path) -> None:
    """Who made it knows where it leads; not so one within, which may have come with the model."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").symlink_to(elsewhere)
    plan = converter.convert(STORIES, tmp_path / "out")
    names = {path.name for path in elsewhere.iterdir()}
    assert names == {file.path.name for file in plan.layout.files}
    converter.convert(source, tmp_path / "out" / "out.npz")
    assert (elsewhere / "out.npz").is_file()
    with_inner = replace(plan, layout=Layout((whole_file(tmp_path / "new" / "inner" / "a", b"new"),), tmp_path / "new"))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "inner").symlink_to(elsewhere)
    with pytest.raises(OutputExists, match="inner: is a link, which leads out of the folder; remove it"):
        converter.run(with_inner, force=True)
    assert not (elsewhere / "a").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_no_file_of_the_source_is_written_over(tmp_path: Path, name: str) -> None:
    """By whatever name it goes."""
    folder = builders.llama_folder(tmp_path / "in")
    before = (folder / name).read_bytes()
    os.link(folder / name, tmp_path / "out.gguf")
    with pytest.raises(SameFile, match=r"out\.gguf: output and input are the same file"):
        converter.convert(folder, tmp_path / "out.gguf", force=True)
    assert (folder / name).read_bytes() == before


# ------------------------------------------------------------------------------------- what is told


def test_values_out_of_range_are_told_or_refused(tmp_path: Path, source: Path) -> None:
    plan = converter.convert(source, tmp_path / "out.npz", Request(dtype="f16"))
    assert plan.report.events == [Overflow("w", "F16", 1)]
    with pytest.raises(LossyError, match="w: 1 value is too large for F16\nrefused under --strict; nothing was"):
        converter.convert(source, tmp_path / "other.npz", Request(dtype="f16", strict=True))
    assert not (tmp_path / "other.npz").exists()
    strict = converter.convert(source, tmp_path / "other.npz", Request(dtype="f32", strict=True))
    assert strict.report.events == []


def test_what_a_killed_run_left_is_told(tmp_path: Path, source: Path) -> None:
    (tmp_path / ".out.npz.0123abcd.part").write_bytes(b"12345")
    plan = converter.convert(source, tmp_path / "out.npz")
    assert plan.report.events == [Note(".out.npz.0123abcd.part: left by a run that was killed, removed (5 bytes)")]


def test_the_plan_is_shown_when_nothing_stands_against_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where there is no room, or something in its place; and an error of who looks ends the run."""
    seen: list[converter.Plan] = []
    (tmp_path / "old.npz").touch()
    with pytest.raises(OutputExists):
        converter.convert(source, tmp_path / "old.npz", on_plan=seen.append)
    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 3}))
        with pytest.raises(DiskFull, match="3 are free"):
            converter.convert(source, tmp_path / "out.npz", on_plan=seen.append)
    assert seen == []
    with pytest.raises(ZeroDivisionError):
        converter.convert(source, tmp_path / "out.npz", on_plan=lambda plan: 1 // 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "old.npz"]


def test_what_one_run_wrote_the_next_may_write(tmp_path: Path, source: Path) -> None:
    """A run leaves no claim on the place, however it ended."""
    plan = converter.plan(source, tmp_path / "out.npz")
    with plan.checkpoint:
        for _ in range(2):
            converter.run(plan, force=True)
        with pytest.raises(OutputExists):
            converter.run(plan)
        other = replace(plan, layout=Layout((whole_file(tmp_path / "out.npz", b"other"),)))
        converter.run(other, force=True)
    assert (tmp_path / "out.npz").read_bytes() == b"other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "out.npz"]
