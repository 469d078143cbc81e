"""Shards on several disks: one set to whoever reads it, whole or not at all, nothing lost and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.models import FIXTURES

import converter
from converter.cli.main import main
from converter.errors import CorruptFile, DiskFull, Interrupted, OutputError, UsageError
from converter.formats.registry import open_checkpoint
from converter.request import Request
from converter.storage import annexes, leftovers, shares
from converter.storage import disk as disks
from converter.storage.disk import Disk
from converter.storage.layout import FileLayout, Layout

STORIES = FIXTURES / "stories260K"
MEMORY = Path("/dev/shm")  # another file system than the usual one, where it is there
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gguf": ("out.gguf", {"quant": "f16", "tensors_only": True}),
    "safetensors": ("out.safetensors", {}),
    "torch": ("out.bin", {"format": "torch"}),
    "folder": ("out/", {}),
}
USAGE = namedtuple("USAGE", "total used free")


def links_work() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.symlink("there", Path(folder) / "here")
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(not links_work(), reason="no symbolic links for this user")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another disk."""
    place = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="disk-", dir=place) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of eight tensors of 64 KB."""
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    folder.mkdir()
    save_file({f"t{number}": rng.random((64, 256), np.float32) for number in range(8)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "none"}')
    return folder


def asked(kind: str, *folders: Path, **more: Any) -> Request:
    return Request(**KINDS[kind][1] | {"split_max_tensors": 2, "spread": folders} | more)


def made(source: Path, target: Path, kind: str, *folders: Path, force: bool = False, **more: Any) -> dict[str, bytes]:
    target.mkdir(exist_ok=True)
    converter.convert(source, f"{target}/{KINDS[kind][0]}", asked(kind, *folders, **more), force=force)
    return content(target)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def links(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink())


def lies_there(disk: Path) -> set[Path]:
    return {path for path in disk.rglob("*") if path.is_file() and path.name != annexes.NOTE}


# ------------------------------------------------------------------------------------------------ a set


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_set(kind: str, source: Path, disk: Path, tmp_path: Path) -> None:
    plain = made(source, tmp_path / "plain", kind)
    assert made(source, tmp_path / "here", kind, disk) == plain
    found = links(tmp_path / "here")
    assert 0 < len(found) and {path.resolve() for path in found} == lies_there(disk)
    assert all(path.stat().st_dev == disk.stat().st_dev for path in found)
    entry = tmp_path / "here" / ("out" if kind == "folder" else min(name for name in plain))
    with open_checkpoint(entry) as checkpoint:
        assert len(checkpoint.tensors) == 8 and all(tensor.read(0, 64).size for tensor in checkpoint.tensors.values())
    assert leftovers.found(disk) == leftovers.found(tmp_path / "here") == []


def test_verbs_read_it(disk: Path, tmp_path: Path) -> None:
    place, other = tmp_path / "here", tmp_path / "other,disk"
    place.mkdir()
    other.mkdir()
    words = [str(STORIES), f"{place}/m.gguf", "--split-max-tensors", "10", "--spread", str(other)]
    assert main([*words, "--spread", f"{disk},{disk}", "--verify", "--quiet"]) == 0
    assert lies_there(disk) | lies_there(other) == {path.resolve() for path in links(place)}
    first = f"{place}/m-00001-of-00005.gguf"
    for verb in (["inspect", first], ["check", first], ["hash", first], ["verify", str(STORIES), first]):
        assert main(verb) == 0
    assert main(["merge", first, f"{tmp_path}/whole.gguf", "--quiet"]) == 0
    assert main([str(STORIES), f"{tmp_path}/plain.gguf", "--quiet"]) == 0
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


# ------------------------------------------------------------------------------------------------ which disk


def layout_of(place: Path, *sizes: int, spread: tuple[Path, ...] = ()) -> Layout:
    """Files that may move, and a small one that may not."""
    slots: Any = (None,)
    files = [FileLayout(place / f"m-{number}", b"", slots, size) for number, size in enumerate(sizes)]
    return Layout((*files, FileLayout(place / "small", b"", (), 10)), spread=spread)


def rooms(monkeypatch: pytest.MonkeyPatch, free: dict[Path, int]) -> None:
    """Folders as disks of their own, with that much room."""
    numbers = {str(folder): number for number, folder in enumerate(free)}
    monkeypatch.setattr(
        shares, "os", type("os", (), {"stat": lambda path: type("s", (), {"st_dev": numbers[str(path)]})})
    )
    monkeypatch.setattr(shares.shutil, "disk_usage", lambda path: USAGE(0, 0, free[Path(path)]))


def test_each_disk_gets_as_much_as_it_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    rooms(monkeypatch, {tmp_path: 100, a: 200, b: 700})
    found = shares.shares(layout_of(tmp_path, *[90] * 10, 30, spread=(a, b)))
    assert [share.nbytes for share in found] == [10 + 90, 2 * 90, 7 * 90 + 30]
    assert [(share.folder, share.free) for share in found] == [(tmp_path, 100), (a, 200), (b, 700)]
    assert found[0].names[1:] == ("small",) and sum(len(share.files) for share in found) == 12
    rooms(monkeypatch, {tmp_path: 100, a: 200, b: 0})
    assert shares.shares(layout_of(tmp_path, *[90] * 3, spread=(a, b)))[2].nbytes == 0, "a full disk gets nothing"


def test_folders_on_one_disk_share_its_room(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    spread = (tmp_path / "a", tmp_path / "b", tmp_path / "a", tmp_path / "a" / "..")
    found = shares.shares(layout_of(tmp_path, *[90] * 6, spread=spread))
    assert [(share.folder.name, len(share.files)) for share in found[1:]] == [("a", 2), ("b", 2)]
    assert len(found) == 3 and len({share.free - share.nbytes for share in found}) == 1


def test_the_disk_that_lacks_room_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other, place = tmp_path / "other", tmp_path / "here"
    other.mkdir()
    place.mkdir()
    rooms(monkeypatch, {place: 20_000, other: 300_000})
    words = [str(source), f"{place}/out.safetensors", "--split-max-tensors", "2", "--spread", str(other)]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr()
    assert f"{other}: 4 file(s), " in said.out and f"the disk of {other} has too little room" in said.err
    assert main(words) == DiskFull.exit_code == 52
    assert f"{other}: its part of the output needs " in capsys.readouterr().err
    assert not list(place.iterdir()) and not list(other.iterdir())


def test_plan_tells_what_goes_where(
    source: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(source), f"{tmp_path}/out/", "--split-max-tensors", "2", "--spread", str(disk), "--spread", str(disk)]
    assert main(["plan", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    here, there = told["preflight"]["disks"]
    assert (here["folder"], there["folder"]) == (str(tmp_path), str(disk)) and there["files"]
    assert here["bytes"] + there["bytes"] == told["total_bytes"] == told["preflight"]["disk_bytes"]
    assert sorted(here["files"] + there["files"]) == sorted(Path(file["path"]).name for file in told["files"])
    assert main(words) == 0
    assert {path.name for path in lies_there(disk)} == set(there["files"])


@pytest.mark.parametrize(
    ("target", "folder", "kind", "words"),
    [
        ("out.npz", "", UsageError, "is for shards, and npz has none"),
        ("s3://bucket/out.gguf", "", UsageError, "is for shards on this machine"),
        ("out.safetensors", "nowhere", OutputError, "no such folder; --spread makes none"),
    ],
)
def test_what_cannot_be(
    target: str, folder: str, kind: type[Exception], words: str, source: Path, tmp_path: Path
) -> None:
    place = target if "://" in target else f"{tmp_path}/{target}"
    with pytest.raises(kind, match=words):
        converter.plan(source, place, Request(tensors_only=True, spread=[tmp_path / folder]))


def test_a_place_without_links(source: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(disks.os, "symlink", refused)
    with pytest.raises(
        OutputError, match=r"no symbolic link can be made there \(Operation not permitted\)[^$]*leave --spread out"
    ):
        made(source, tmp_path / "here", "safetensors", disk)
    assert not list((tmp_path / "here").iterdir()) and not list(disk.iterdir())


# ------------------------------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("again", ["spread", "plain", "one file"])
@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_older_shards_go_when_the_new_set_is_there(
    again: str, kind: str, source: Path, disk: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    made(source, here, kind, disk)
    old = lies_there(disk)
    if again == "one file":
        link = links(here)[0]
        converter.convert(source, link, Request(tensors_only=True, format="gguf"), force=True)
        assert not link.is_symlink() and lies_there(disk) == old - {path for path in old if path.name == link.name}
        return
    folders = (disk,) if again == "spread" else ()
    more = {"quant": "f32"} if kind == "gguf" else {"dtype": "f16"}
    new = made(source, here, kind, *folders, force=True, **more)
    assert new == made(source, tmp_path / "plain", kind, **more)
    assert not old & lies_there(disk) and {path.resolve() for path in links(here)} == lies_there(disk)
    assert bool(list(disk.iterdir())) == (again == "spread")


def test_a_link_of_somebody_elses_loses_nothing(source: Path, disk: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (disk / "mine").write_text("mine")
    (here / "out-00001-of-00004.safetensors").symlink_to(disk / "mine")
    made(source, here, "safetensors", force=True)
    assert (disk / "mine").read_text() == "mine" and not links(here)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_disk_that_is_full(
    call: str, source: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, real = disk.stat().st_dev, getattr(os, call, None)
    if device == tmp_path.stat().st_dev or real is None:
        pytest.skip(f"needs two file systems, and {call}")
    here = tmp_path / "here"
    old = made(source, here, "folder", disk)

    def full(handle: int, *rest: Any) -> Any:
        if os.fstat(handle).st_dev == device:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, *rest)

    monkeypatch.setattr(os, call, full)
    named = rf"{re.escape(str(disk))}.out\.[0-9a-f]+\.annex.model-0000\d-of-00004\.safetensors: No space left"
    with pytest.raises(DiskFull, match=named):
        made(source, here, "folder", disk, force=True, dtype="f16")
    monkeypatch.undo()
    assert content(here) == old and {path.resolve() for path in links(here)} == lies_there(disk)


def stopped(progress: Any) -> bool:
    return False


def test_a_run_that_was_stopped_is_gone_on_with(source: Path, disk: Path, tmp_path: Path) -> None:
    here, whole = tmp_path / "here", made(source, tmp_path / "plain", "safetensors")
    here.mkdir()
    request, target = asked("safetensors", disk), here / "out.safetensors"
    with pytest.raises(Interrupted, match="the same command goes on"):
        converter.convert(source, target, request, progress=stopped, resume=True, threads=1)
    began = lies_there(disk)
    assert began and not links(here)[0].parent == here
    plan = converter.convert(source, target, request)
    assert "goes on where a run was stopped" in " ".join(map(str, plan.report.events))
    assert content(here) == whole and lies_there(disk) == began


def test_another_command_takes_away_what_a_stopped_run_left(source: Path, disk: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    target = here / "out.safetensors"
    with pytest.raises(Interrupted):
        converter.convert(source, target, asked("safetensors", disk), progress=stopped, resume=True)
    converter.convert(source, target, asked("safetensors"))
    assert not list(disk.iterdir()) and len(list(here.iterdir())) == 5


# -------------------------------------------------------------------------------------------------- clean

KILLED = """
import os, signal, sys
import converter
converter.convert(sys.argv[1], sys.argv[2], converter.Request(split_max_tensors=2, spread=sys.argv[3:4]),
                  force=True, progress=lambda now: os.kill(os.getpid(), signal.SIGKILL))
"""


def killed(source: Path, target: str, disk: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, source, target, disk], check=False)
    assert done.returncode != 0


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("at", ["here", "disk", "both"])
@pytest.mark.parametrize("target", ["out.safetensors", "out/"])
@pytest.mark.parametrize("replacing", [True, False])
def test_clean_finds_what_a_killed_run_left(
    replacing: bool, target: str, at: str, source: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    kind = "folder" if target == "out/" else "safetensors"
    old = made(source, here, kind, disk, dtype="f16") if replacing else {}
    here.mkdir(exist_ok=True)
    live = lies_there(disk)
    killed(source, f"{here}/{target}", disk)
    assert live < lies_there(disk)
    inner = here / "out" if replacing and kind == "folder" else here
    places = [str(each) for each in ([inner] if at != "disk" else []) + ([disk] if at != "here" else [])]
    assert main(["clean", *places, "--dry-run", "--json"]) == 0
    assert [each["unlinked_from"] for each in json.loads(capsys.readouterr().out)["left"]] == [None]
    assert main(["clean", *places, "--quiet"]) == 0
    assert lies_there(disk) == live and content(here) == old and len(list(disk.iterdir())) == bool(live)


def test_clean_names_the_shards_of_a_set_that_was_moved(
    source: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, moved = tmp_path / "here", tmp_path / "moved"
    made(source, here, "safetensors", disk)
    here.rename(moved)
    kept = content(moved)
    assert main(["clean", str(disk)]) == 0
    assert f"stays: no link in {here} leads to it" in " ".join(capsys.readouterr().out.split())
    (left,) = leftovers.found(disk)
    with pytest.raises(OutputError, match="remove it yourself when its set is gone for good"):
        leftovers.clean(left)
    assert content(moved) == kept
    with pytest.raises(
        CorruptFile, match=f"leads out of the folder, by a link.*\n.*or move the set back to {re.escape(str(here))}"
    ):
        open_checkpoint(moved / "out.safetensors.index.json")
    moved.rename(here)
    open_checkpoint(here / "out.safetensors.index.json").close()


# ---------------------------------------------------------------------------------------------- strangers


def strangers(source: Path, place: Path, secret: Path) -> Path:
    """A folder with an index, whose second shard is a link to something of the user's."""
    made(source, place, "safetensors")
    shard = place / "out-00002-of-00004.safetensors"
    shutil.copy(shard, secret)
    shard.unlink()
    shard.symlink_to(secret)
    return place / "out.safetensors.index.json"


def test_a_strangers_link_is_refused(source: Path, disk: Path, tmp_path: Path) -> None:
    """Also one to a shard of another set, and one beside which a note says something else."""
    index = strangers(source, tmp_path / "bad", disk / "out-00002-of-00004.safetensors")
    with pytest.raises(CorruptFile, match="leads out of the folder, by a link"):
        open_checkpoint(index)
    made(source, tmp_path / "good", "safetensors", disk)
    for shard in links(tmp_path / "good"):
        own = tmp_path / "bad" / shard.name
        own.unlink()
        own.symlink_to(shard.resolve())
    with pytest.raises(CorruptFile, match="leads out of the folder, by a link"):
        open_checkpoint(index)
    for said in (
        "",
        "[]",
        '{"set": 3}',
        "{" * 10_000,
        json.dumps({"set": str(tmp_path), "names": "ab", "ledger": "x"}),
    ):
        (disk / annexes.NOTE).write_text(said + "\n")
        assert annexes.shard_of(links(tmp_path / "bad")[0]) is None


@pytest.mark.parametrize("state", ["made", "published"])
def test_a_strangers_ledger_removes_nothing(state: str, source: Path, disk: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    made(source, tmp_path / "good", "safetensors", disk)
    (disk / "mine").write_text("mine")
    victims = [*map(str, lies_there(disk)), str(source / "model.safetensors")]
    whole = {"set": str(tmp_path / "good"), "names": ["a"], "new": {str(n): v for n, v in enumerate(victims)}}
    (bad / ".out.01234567.disks.part").write_text(json.dumps(whole | {"old": victims, "state": state}) + "\n")
    before = content(disk), content(source)
    assert main(["clean", str(bad), "--quiet"]) == 0
    assert (content(disk), content(source)) == before and not list(bad.iterdir())


@pytest.mark.parametrize(
    "said", ["", "{", "[]\n", '{"state": "made"}\n', '{"set": 1, "names": 2, "new": 3, "state": 4}\n']
)
def test_a_damaged_ledger_is_none(said: str, tmp_path: Path) -> None:
    (tmp_path / ".out.01234567.disks.part").write_text(said)
    assert annexes.Ledger.read(tmp_path / ".out.01234567.disks.part") is None
    assert main(["clean", str(tmp_path), "--quiet"]) == 0
    assert not list(tmp_path.iterdir())


def test_the_end_of_a_ledger_may_be_missing(tmp_path: Path) -> None:
    ledger = annexes.Ledger(tmp_path / ".out.01234567.disks.part", tmp_path, ["a"], {"a": tmp_path / "x.annex" / "a"})
    ledger.begin()
    ledger.publishing([])
    data = ledger.path.read_bytes()
    read = annexes.Ledger.read(ledger.path)
    assert read is not None and read.state == annexes.PUBLISHING
    for end in range(data.index(b"\n") + 1, len(data)):
        ledger.path.write_bytes(data[:end])
        read = annexes.Ledger.read(ledger.path)
        assert read is not None and (read.state, read.new) == (annexes.MADE, ledger.new)


def test_a_disk_object_without_other_disks_makes_no_ledger(tmp_path: Path) -> None:
    out = Disk(Layout((FileLayout(tmp_path / "a", b"", (), 3),), spread=(tmp_path,)))
    out.create()
    assert not list(tmp_path.glob("*.disks.part"))
    out.abandon()
    assert not list(tmp_path.iterdir())
