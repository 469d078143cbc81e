"""The output that is a folder: its names, its lock, what is made safe and in which order, what dead runs leave."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.errors import DiskFull, OutputError
from converter.storage import disk
from converter.storage.disk import Disk
from converter.storage.layout import FileLayout, Layout, whole_file
from converter.storage.lock import Lock
from converter.storage.output import write


def single(path: Path, content: bytes = b"new") -> Layout:
    return Layout((whole_file(path, content),))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ------------------------------------------------------------------------------------- names


def test_long_names_are_shortened_and_stay_apart(tmp_path: Path) -> None:
    """Up to 48 characters a lock is called like its file; then by the first 40 and a CRC-32 of all."""
    for name, short in (
        ("out", "out"),
        ("x" * 48, "x" * 48),
        ("x" * 49, "x" * 40 + f"{zlib.crc32(b'x' * 49):08x}"),
        ("ü" * 49, "ü" * 40 + f"{zlib.crc32(('ü' * 49).encode()):08x}"),
    ):
        assert Disk(single(tmp_path / name)).lock == tmp_path / f".{short}.lock"


@pytest.mark.parametrize("kind", ["file", "files", "new folder", "folder"])
def test_what_is_being_written_stands_beside_its_place(tmp_path: Path, kind: str) -> None:
    """In one entry whose name says that it is not the output: it is the next run's to remove."""
    place = tmp_path / "place"
    folder = place / "model" if "folder" in kind else None
    for each in (place, place / "model")[: 2 if kind == "folder" else 1]:
        each.mkdir()
    files = [whole_file((folder or place) / name, b"new") for name in ("a", "b")[: 1 if kind == "file" else 2]]
    out = Disk(Layout(tuple(files), folder))
    out.create()
    (found,) = place.rglob(".*.part")
    anchor = {"folder": "model", "new folder": "model"}.get(kind, "a")
    assert found.parent == (folder if kind == "folder" else place)
    assert found.name[:-13] == f".{anchor}." and int(found.name[-13:-5], 16) >= 0
    inner = {
        "file": [],
        "files": ["new", "new/a", "new/b"],
        "new folder": ["a", "b"],
        "folder": ["new", "new/a", "new/b"],
    }
    assert names(found) == inner[kind] and out.lock == found.with_name(f".{anchor}.lock")
    out.abandon()
    assert not [path for path in place.rglob("*") if path != folder]


# ------------------------------------------------------------------------------------- room


def test_room_for_exactly_what_is_written_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for where the files go, as far as that is there, or where a folder will be."""
    (tmp_path / "model").mkdir()
    asked: list[Path] = []
    free = 5

    def usage(folder: Path) -> Any:
        asked.append(folder)
        return type("Usage", (), {"free": free})

    monkeypatch.setattr(disk.shutil, "disk_usage", usage)
    layout = Layout((whole_file(tmp_path / "model" / "a", b"12"), whole_file(tmp_path / "model" / "b", b"345")))
    Disk(layout).check_room()
    Disk(Layout(layout.files, tmp_path / "model")).check_room()
    Disk(Layout((whole_file(tmp_path / "no" / "such" / "c", b"1"),))).check_room()
    assert asked == [tmp_path / "model", tmp_path / "model", tmp_path]
    free = 4
    with pytest.raises(DiskFull, match="model: the output needs 5 bytes, 4 are free"):
        Disk(layout).check_room()


# ------------------------------------------------------------------------------------- the lock


def test_where_no_lock_can_be_had_none_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems without; what lies there is then not known to be dead."""

    def refuse(_: Lock) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(Lock, "take", refuse)
    (tmp_path / ".out.0123abcd.part").touch()
    write(single(tmp_path / "out"))
    assert names(tmp_path) == [".out.0123abcd.part", "out"]


def test_a_lock_that_cannot_be_asked_for_is_another_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Lock.take

    def refuse(lock: Lock) -> bool:
        if lock.path.name == ".other.lock":
            raise OSError(errno.ENOLCK, "No locks available")
        return take(lock)

    monkeypatch.setattr(Lock, "take", refuse)
    for name in (".other.lock", ".other.0123abcd.part"):
        (tmp_path / name).touch()
    write(single(tmp_path / "out"))
    assert names(tmp_path) == [".other.0123abcd.part", ".other.lock", "out"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_run_is_told_which_output_is_taken(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model" if kind == "folder" else None
    layout = Layout((whole_file((folder or tmp_path) / "out", b"new"),), folder)
    one, other = Disk(layout), Disk(layout)
    assert one.claim() == [] == one.claim()
    with pytest.raises(OutputError, match=f"{folder or tmp_path / 'out'}: another run is writing it"):
        other.claim()
    one.abandon()
    assert other.claim() == []
    other.abandon()
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------- what dead runs leave


def test_links_that_look_like_leftovers_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"precious")
    for number, target in enumerate(("precious", "precious/file", "nowhere")):
        (tmp_path / f".out.0123abc{number}.part").symlink_to(target)
    out = Disk(single(tmp_path / "out"))
    sizes = [len(target) for target in ("precious", "precious/file", "nowhere")]
    assert out.claim() == [
        f".out.0123abc{number}.part: left by a run that was killed, removed ({size} bytes)"
        for number, size in enumerate(sizes)
    ]
    out.abandon()
    assert names(tmp_path) == ["precious", "precious/file"]


def test_what_a_folder_holds_is_counted(tmp_path: Path) -> None:
    stage = tmp_path / ".out.0123abcd.part"
    (stage / "new" / "inner").mkdir(parents=True)
    (stage / "new" / "a").write_bytes(bytes(1000))
    (stage / "new" / "inner" / "b").write_bytes(bytes(234))
    out = Disk(single(tmp_path / "out"))
    assert out.claim() == [f"{stage.name}: left by a run that was killed, removed (1,234 bytes)"]
    out.abandon()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [".out.0123abc.part", ".out.0123abcde.part", ".out.0123abcg.part", ".0123abcd.part"])
def test_other_names_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    write(single(tmp_path / "out"))
    assert names(tmp_path) == [name, "out"]


# ------------------------------------------------------------------------------------- made safe


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the name of every file and folder that is made safe, and of what is given its place, as it comes."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("what a handle stands for is not to be had here")
    lines: list[str] = []
    fsync = os.fsync

    def safe(file: int) -> None:
        lines.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    def watched(move: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def moved(source: Any, target: Any) -> None:
            lines.append(f"-> {Path(target).name}")
            move(source, target)

        return moved

    monkeypatch.setattr(os, "fsync", safe)
    for name in ("replace", "rename", "link"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    return lines


def test_a_new_folder_is_safe_before_it_has_its_name(tmp_path: Path, flushed: list[str]) -> None:
    folder = tmp_path / "model"
    files = [whole_file(folder / name, b"new") for name in ("a", "inner/b")]
    out = Disk(Layout(tuple(files), folder))
    out.create()
    out.flush()
    assert flushed == ["a", "b"]
    out.publish()
    stage = next(name for name in flushed if name.endswith(".part"))
    assert sorted(flushed[2:4]) == sorted([stage, "inner"])
    assert flushed[4:] == ["-> model", tmp_path.name]
    out.abandon()


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_is_safe_before_it_has_its_name(tmp_path: Path, flushed: list[str], replace: bool) -> None:
    layout = single(tmp_path / "out")
    write(layout, Disk(layout, replace=replace))
    assert flushed[1:] == ["-> out", tmp_path.name] and flushed[0].endswith(".part")


def test_a_set_is_safe_and_its_journal_before_the_first_move(tmp_path: Path, flushed: list[str]) -> None:
    files = [whole_file(tmp_path / name, b"new") for name in ("a", "b", "m.index.json")]
    (tmp_path / "b").touch()
    write(Layout(tuple(files)))
    stage = flushed[5]
    assert stage.startswith(".a.") and stage.endswith(".part")
    assert flushed == [
        "a", "b", "m.index.json",
        "journal.part", "-> journal", stage,
        "-> b", "-> b", "-> a", "-> m.index.json",
        tmp_path.name, tmp_path.name,
    ]  # fmt: skip


def test_files_are_closed_when_they_are_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows an open file cannot be renamed; and of many files at once few may be open."""
    opened: list[Any] = []
    real = open
    monkeypatch.setattr(
        disk, "open", lambda *given, **more: opened.append(real(*given, **more)) or opened[-1], raising=False
    )
    layout = Layout(tuple(FileLayout(tmp_path / name, b"", (), 10) for name in "ab"))
    one, other = Disk(layout), Disk(layout)
    one.create()
    assert [file.closed for file in opened] == [True, True]
    one.flush()
    assert [file.closed for file in opened] == [True, True]
    one.abandon()
    other.create()
    other.abandon()
    assert len(opened) == 4 and all(file.closed for file in opened)
    assert names(tmp_path) == []


@pytest.mark.parametrize("ahead", [True, False])
def test_files_are_as_long_as_they_will_be_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """Whether room can be taken ahead or not."""
    if not ahead:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    layout = Layout(tuple(FileLayout(tmp_path / name, b"", (), size) for name, size in (("a", 0), ("b", 5000))))
    out = Disk(layout)
    out.create()
    sizes = {path.name: (path.stat().st_size, path.read_bytes().strip(b"\0")) for path in tmp_path.rglob("[ab]")}
    assert sizes == {"a": (0, b""), "b": (5000, b"")}
    out.abandon()
