"""A set of files takes the place of another as one thing: all old, all new, or nothing that opens; never both."""

from __future__ import annotations

import os
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
