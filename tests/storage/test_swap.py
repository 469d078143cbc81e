"""A set of files takes the place of another as one thing: all old, all new, or nothing that opens; never both."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.errors import OutputError, OutputExists
from converter.formats.registry import formats
from converter.pipeline import convert
from converter.storage import swap
from converter.storage.disk import Disk
from converter.storage.layout import FileLayout, Layout, whole_file
from converter.storage.output import write

SETS = {
    "split": ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"],
    "shards": ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"],
    "folder": ["model.safetensors", "config.json", "tokenizer.json", "onnx/extra.json"],
    "onnx": ["m.onnx", "m.onnx.data"],
}
MOVES = ("replace", "rename", "link", "unlink")


def layout_of(kind: str, place: Path) -> Layout:
    files: tuple[FileLayout, ...] = tuple(whole_file(place / name, b"new " + name.encode()) for name in SETS[kind])
    return Layout(files, place if kind == "folder" else None)


def old_set(kind: str, place: Path, names: list[str] | None = None) -> dict[str, bytes]:
    """What was there: all files of the set but one that is new to it, and a stranger."""
    for name in [*(SETS[kind][:-1] if names is None else names), "stranger"]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"old " + name.encode())
    return content(place)


def content(place: Path) -> dict[str, bytes]:
    """All files but those that have a dot before their names, or before that of their folder."""
    files = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".")}


def new_set(kind: str) -> dict[str, bytes]:
    return {**{name: b"new " + name.encode() for name in SETS[kind]}, "stranger": b"old stranger"}


def fail_at(patch: pytest.MonkeyPatch, number: int, done: bool) -> list[str]:
    """Let the `number`-th of all moves fail, before or after it was done; returns the moves as they come."""
    calls: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def move(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 != number:
                return real(*args, **kwargs)
            if done:
                real(*args, **kwargs)
            raise OSError(5, "Input/output error")

        patch.setattr(os, name, move)

    for name in MOVES:
        wrap(name)
    return calls


@pytest.mark.parametrize("kind", SETS)
def test_a_set_replaces_another(tmp_path: Path, kind: str) -> None:
    old_set(kind, tmp_path)
    write(layout_of(kind, tmp_path))
    assert content(tmp_path) == new_set(kind)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("kind", SETS)
def test_a_move_that_fails_leaves_the_old_set(tmp_path: Path, kind: str, done: bool) -> None:
    """Each move in turn, that of the journal too; where it is all over, the new set is there."""
    for number in range(100):
        place = tmp_path / str(number)
        old = old_set(kind, place)
        with pytest.MonkeyPatch.context() as patch:
            calls = fail_at(patch, number, done)
            try:
                write(layout_of(kind, place))
            except Exception as failure:
                assert "nothing was written" in str(failure)
                assert content(place) == old, (number, calls)
            else:
                assert content(place) == new_set(kind), (number, calls)
        if len(calls) <= number:
            break
    assert number >= 2 * len(SETS[kind])


@pytest.mark.parametrize("kind", SETS)
def test_where_nothing_can_be_put_back_the_message_says_so(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one move on, all fail: what stands there is of one set, and the next run puts the old one back."""
    for first in range(1, 2 * len(SETS[kind]) - 1):
        place = tmp_path / str(first)
        old = old_set(kind, place)
        with pytest.MonkeyPatch.context() as patch:
            calls: list[int] = []

            def broken(real: Any, calls: list[int] = calls, first: int = first) -> Any:
                def move(*args: Any, **kwargs: Any) -> Any:
                    calls.append(1)
                    if len(calls) > first:
                        raise OSError(5, "Input/output error")
                    return real(*args, **kwargs)

                return move

            for name in ("replace", "rename", "link"):
                patch.setattr(os, name, broken(getattr(os, name)))
            with pytest.raises(OutputError) as caught:
                write(layout_of(kind, place))
        if content(place) != old:
            assert isinstance(caught.value, swap.NotUndone) and "nothing was written" not in str(caught.value)
            assert one_kind(place, kind)
            again = Disk(layout_of(kind, place))
            assert len(again.claim()) == 1
            again.abandon()
        assert content(place) == old


def one_kind(place: Path, kind: str) -> bool:
    """Whether all files of the set that are there are of one set."""
    found = {(place / name).read_bytes()[:3] for name in SETS[kind] if (place / name).exists()}
    return len(found) <= 1


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from storage.test_swap import MOVES, layout_of
from converter.storage.output import write

left = [{number}]
def wrap(name):
    real = getattr(os, name)
    def move(*args, **kwargs):
        if not left[0]:
            os._exit(9)
        left[0] -= 1
        return real(*args, **kwargs)
    setattr(os, name, move)
for name in MOVES:
    wrap(name)
write(layout_of({kind!r}, Path({place!r})))
"""


@pytest.mark.parametrize("kind", ["shards", "folder"])
def test_a_kill_between_two_moves(tmp_path: Path, kind: str) -> None:
    """What a kill leaves is of one set; the next run ends what was begun and leaves one of the two, whole."""
    results = set()
    for number in range(100):
        place = tmp_path / str(number)
        old = old_set(kind, place)
        here = [str(Path(__file__).parents[1])]
        code = KILLED.format(path=here, number=number, kind=kind, place=str(place))
        if subprocess.run([sys.executable, "-c", code]).returncode == 0:
            break
        assert one_kind(place, kind)
        again = Disk(layout_of(kind, place))
        found = again.claim()
        again.abandon()
        assert ["left by a run that was killed" in each for each in found] in ([True], [])  # none: at its last step
        assert content(place) in (old, new_set(kind))
        results.add(content(place) == old)
    assert number >= 2 * len(SETS[kind])
    assert results == {True, False}


# ------------------------------------------------------------------------------------- without --force


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("kind", SETS)
def test_what_comes_there_meanwhile_is_not_replaced(
    tmp_path: Path, kind: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:  # as on FAT

        def link(*_: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    for number, name in enumerate(SETS[kind]):
        place = tmp_path / str(number)
        place.mkdir()
        layout = layout_of(kind, place)
        disk = Disk(layout, replace=False)
        with pytest.raises(OutputExists, match=r"meanwhile.*nothing was written"):
            write(layout, disk, check=lambda place=place, name=name: old_set(kind, place, [name]))  # type: ignore[misc]
        assert content(place) == {name: b"old " + name.encode(), "stranger": b"old stranger"}


def test_a_single_file_that_comes_there_meanwhile(tmp_path: Path) -> None:
    layout = Layout((whole_file(tmp_path / "out", b"new"),))
    with pytest.raises(OutputExists, match=r"meanwhile.*nothing was written"):
        write(layout, Disk(layout, replace=False), check=lambda: old_set("onnx", tmp_path, ["out"]))
    assert content(tmp_path) == {"out": b"old out", "stranger": b"old stranger"}


@pytest.mark.parametrize("kind", SETS)
def test_two_runs_into_one_place(tmp_path: Path, kind: str) -> None:
    layout = layout_of(kind, tmp_path)

    def second() -> None:
        with pytest.raises(OutputError, match="another run is writing it"):
            write(layout)

    write(layout, check=second)
    assert content(tmp_path).keys() == set(SETS[kind])


def test_runs_beside_each_other(tmp_path: Path) -> None:
    """Names that differ at their end only are different outputs."""
    one, two = (Layout((whole_file(tmp_path / f"{'x' * 60}{end}", b"new"),)) for end in "12")
    write(one, check=lambda: write(two))
    assert len(content(tmp_path)) == 2


# ------------------------------------------------------------------------------------- what dead runs leave


def test_only_what_is_certainly_dead_is_removed(tmp_path: Path) -> None:
    layout = Layout((whole_file(tmp_path / "out", b"new"),))
    other = Layout((whole_file(tmp_path / "living", b"new"),))

    def during() -> None:
        for name in (".out.0123abcd.part", ".other.0123abcd.part", ".gone.0123abcd.part", ".gone.lock", ".out.part"):
            (tmp_path / name).write_bytes(b"12345")
        disk = Disk(layout)
        assert disk.claim() == [
            f".{name}.0123abcd.part: left by a run that was killed, removed (5 bytes)" for name in ("gone", "out")
        ]
        disk.abandon()

    write(other, check=during)
    assert set(os.listdir(tmp_path)) == {".other.0123abcd.part", ".out.part", "living"}


def test_what_a_run_for_a_new_folder_left_beside_it(tmp_path: Path) -> None:
    """Killed before the folder had its name, or after it and before the lock was gone."""
    folder = tmp_path / "out"
    folder.mkdir()
    for left in ((".out.lock", ".out.0123abcd.part"), (".out.lock",)):
        for name in left:
            (tmp_path / name).write_bytes(b"")
        disk = Disk(Layout((whole_file(folder / "a", b"new"),), folder=folder))
        assert len(disk.claim()) == len(left) - 1
        disk.abandon()
        assert os.listdir(tmp_path) == ["out"] and not os.listdir(folder)


@pytest.mark.parametrize("kind", SETS)
def test_the_mode_of_what_is_replaced_stays(tmp_path: Path, kind: str) -> None:
    if os.name == "nt":
        pytest.skip("modes are of POSIX")
    old_set(kind, tmp_path)
    name = SETS[kind][0]
    (tmp_path / name).chmod(0o640)
    write(layout_of(kind, tmp_path))
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
    single = Layout((whole_file(tmp_path / name, b"newer"),))
    write(single)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


def staged(place: Path, *, moved: bool = True) -> Path:
    """What a killed run of any version left: "a" was to be replaced, "b" is new; `moved`: both are in place."""
    stage = place / ".a.0123abcd.part"
    (stage / "new").mkdir(parents=True)
    (stage / "old").mkdir()
    for name in "ab":
        (stage / "new" / name).write_bytes(b"new")
    (stage / "old" / "a").write_bytes(b"old")
    inodes = {name: (stage / "new" / name).lstat().st_ino for name in "ab"}
    journal = [{"name": name, "replaces": name == "a", "inode": inodes[name]} for name in "ab"]
    (stage / "journal").write_text(json.dumps(journal))
    for name in "ba" if moved else "":
        os.rename(stage / "new" / name, place / name)
    return stage


def told(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


def test_a_run_that_had_done_all_is_only_cleaned_up(tmp_path: Path) -> None:
    swap.recover(staged(tmp_path))
    assert told(tmp_path) == {"a": b"new", "b": b"new"} and not list(tmp_path.glob(".*"))


def test_a_new_file_that_is_left_shows_that_not_all_was_done(tmp_path: Path) -> None:
    """As after links of which the first name was not yet removed."""
    stage = staged(tmp_path)
    os.link(tmp_path / "a", stage / swap.NEW / "a")
    swap.recover(stage)
    assert told(tmp_path) == {"a": b"old"} and not list(tmp_path.glob(".*"))


def test_a_run_that_had_moved_nothing_new_is_undone(tmp_path: Path) -> None:
    swap.recover(staged(tmp_path, moved=False))
    assert told(tmp_path) == {"a": b"old"} and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_has_come_there_since_is_not_touched(tmp_path: Path, name: str) -> None:
    """In the place of an old file nothing is decided, and nothing lost; a new one's place is its owner's."""
    stage = staged(tmp_path, moved=False)
    (tmp_path / name).write_bytes(b"stranger")
    if name == "a":
        with pytest.raises(swap.NotUndone, match=rf"a: is neither .*\n.* lie in {stage / swap.OLD}: move them back"):
            swap.recover(stage)
        assert told(tmp_path) == {"a": b"stranger"} and (stage / swap.OLD / "a").read_bytes() == b"old"
    else:
        swap.recover(stage)
        assert told(tmp_path) == {"a": b"old", "b": b"stranger"}


@pytest.mark.parametrize("name", ["../mine/file", "link/file", "ABSOLUTE", "..", "sub/../../mine/file", None])
def test_a_journal_that_a_stranger_put_there_leads_nowhere(tmp_path: Path, name: str | None) -> None:
    """In a folder that others write to: what it names outside is not touched, nor is it followed by a link."""
    shared, mine = tmp_path / "shared", tmp_path / "mine"
    shared.mkdir()
    mine.mkdir()
    (mine / "file").write_bytes(b"mine")
    (shared / "link").symlink_to(mine)
    stage = staged(shared, moved=False)
    entry = {"name": str(mine / "file") if name == "ABSOLUTE" else name, "replaces": False}
    entry["inode"] = (mine / "file").stat().st_ino
    (stage / swap.JOURNAL).write_text(json.dumps([entry]) if name else "[{]")
    with pytest.raises(swap.NotUndone, match=r"journal: no run wrote this; look at what is in .*, and remove"):
        swap.recover(stage)
    assert (mine / "file").read_bytes() == b"mine" and stage.is_dir()


def test_without_a_journal_nothing_had_begun(tmp_path: Path) -> None:
    stage = staged(tmp_path, moved=False)
    (stage / swap.JOURNAL).unlink()
    (stage / swap.OLD / "a").rename(tmp_path / "a")
    swap.recover(stage)
    assert told(tmp_path) == {"a": b"old"} and not list(tmp_path.glob(".*"))


def test_a_stage_that_cannot_be_removed_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged(tmp_path, moved=False)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "rmdir", refuse)
    swap.recover(stage)
    assert told(tmp_path) == {"a": b"old"} and not (stage / "journal").exists()


def test_a_journal_is_whole_when_it_is_made_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        for part in tmp_path.glob(".*/journal.part"):
            seen.append([each["name"] for each in json.loads(part.read_text())])
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    write(layout_of("onnx", tmp_path))
    assert seen == [SETS["onnx"]]


def test_a_set_that_is_in_place_has_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is done with its files later is nobody's business."""
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    old_set("split", tmp_path)
    write(layout_of("split", tmp_path))
    (stage,) = tmp_path.glob(".*.part")
    assert not (stage / swap.JOURNAL).exists() and (stage / swap.OLD).exists()
    monkeypatch.undo()
    (tmp_path / SETS["split"][0]).write_bytes(b"later")
    again = Disk(layout_of("split", tmp_path))
    assert len(again.claim()) == 1
    again.abandon()
    assert content(tmp_path)[SETS["split"][0]] == b"later"


def test_folders_that_a_failed_run_made_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that hold something else."""
    layout = layout_of("folder", tmp_path)
    link = os.link

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name == "model.safetensors":
            raise FileExistsError(17, "File exists")
        link(source, target)

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "diary").touch()
    for before in ([], ["onnx"]):
        for name in before:
            (tmp_path / name).mkdir()
            (tmp_path / name / "diary").touch()
        with pytest.raises(OutputExists):
            write(layout, Disk(layout, replace=False))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["diary", *before]


# ------------------------------------------------------------------------------------- single files


def test_a_file_has_one_name_when_it_is_placed(tmp_path: Path) -> None:
    (tmp_path / "in").touch()
    swap.place(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out").stat().st_nlink == 1


@pytest.mark.parametrize("links", [True, False])
def test_the_name_of_a_link_is_taken(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that leads nowhere."""

    def refuse(*_: Path) -> None:
        raise NotImplementedError("no hard links on this file system")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "in").touch()
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="has come there meanwhile; --force replaces it") as caught:
        swap.place(tmp_path / "in", tmp_path / "out")
    assert (caught.value.errno, caught.value.filename) == (errno.EEXIST, str(tmp_path / "out"))
    assert (tmp_path / "in").exists() and (tmp_path / "out").is_symlink()


def owned(monkeypatch: pytest.MonkeyPatch, path: Path, uid: int, gid: int) -> list[tuple[Any, ...]]:
    """Let a file be somebody's; gets the calls of `chown`."""
    calls: list[tuple[Any, ...]] = []
    stat = os.stat

    def claimed(asked: Any, **more: Any) -> os.stat_result:
        found = stat(asked, **more)
        return os.stat_result((*found[:4], uid, gid, *found[6:10])) if asked == path else found

    monkeypatch.setattr(os, "stat", claimed)
    monkeypatch.setattr(os, "chown", lambda *given: calls.append(given), raising=False)
    return calls


@pytest.mark.skipif(os.name == "nt", reason="modes are of POSIX")
@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (1, 0), (0, 1)])
def test_a_file_keeps_owner_and_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, gid: int) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for path, mode in ((old, 0o641), (new, 0o600)):
        path.touch()
        path.chmod(mode)
    own = new.stat()
    calls = owned(monkeypatch, old, own.st_uid + uid, own.st_gid + gid)
    swap.keep_mode(old, new)
    assert calls == ([(new, own.st_uid + uid, own.st_gid + gid)] if uid or gid else [])
    assert new.stat().st_mode & 0o7777 == 0o641


@pytest.mark.skipif(os.name == "nt", reason="modes are of POSIX")
def test_the_mode_of_another_s_file_and_of_a_link_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for path, mode in ((old, 0o666), (new, 0o600)):
        path.touch()
        path.chmod(mode)
    (tmp_path / "link").symlink_to("old")
    swap.keep_mode(tmp_path / "link", new)
    assert new.stat().st_mode & 0o777 == 0o600
    owned(monkeypatch, old, new.stat().st_uid + 1, new.stat().st_gid)
    monkeypatch.setattr(os, "chown", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    swap.keep_mode(old, new)
    assert new.stat().st_mode & 0o777 == 0o600


def test_folders_that_cannot_be_made_safe_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every one that was opened is closed."""
    if os.name == "nt":
        pytest.skip("folders cannot be opened there")
    handles: list[int] = []
    opened, closed = os.open, os.close
    monkeypatch.setattr(os, "open", lambda *given: handles.append(opened(*given)) or handles[-1])
    monkeypatch.setattr(os, "close", lambda handle: (handles.remove(handle), closed(handle))[1])
    flushed: list[int] = []

    def fsync(handle: int) -> None:
        flushed.append(handle)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    swap.flush_folders([tmp_path / "absent", tmp_path, tmp_path])
    assert len(flushed) == 2 and handles == []


# ------------------------------------------------------------------------------------- layouts that lead elsewhere


@pytest.mark.parametrize("name", ["../elsewhere", "sub/../../elsewhere", "/elsewhere"])
def test_a_file_outside_is_refused(tmp_path: Path, name: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    layout = Layout((whole_file(place / "in", b""), whole_file(place / name, b"")), place)
    with pytest.raises(OutputError, match="lies outside"):
        write(layout)
    assert not list(place.iterdir())


@pytest.mark.parametrize("folder", [False, True])
def test_a_writer_that_leads_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    """A plugin's, say: it was asked for one place and names another."""
    elsewhere = tmp_path / "elsewhere"
    wrong = Layout((whole_file(elsewhere / "out.wrong", b"new"),), elsewhere if folder else None)
    plugin = replace(formats()["npz"], name="wrong", extensions=(".wrong",), layout=lambda *_: wrong)
    monkeypatch.setitem(formats(), "wrong", plugin)
    for place in ("elsewhere", "here"):
        (tmp_path / place).mkdir()
    np.savez(tmp_path / "in.npz", w=np.ones((2, 2), np.float32))
    with pytest.raises(OutputError, match=r"elsewhere: is not where .*out\.wrong was to go"):
        convert(tmp_path / "in.npz", tmp_path / "here" / "out.wrong")
    assert not list(elsewhere.iterdir())
