"""A run that was stopped is gone on with: what is done is not done again, what is damaged is; the bytes are equal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import converter
from converter.errors import Interrupted
from converter.storage import journal
from converter.storage.slabs import Progress

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("out.npz", {}),
    "split": ("out.safetensors", {"split_max_size": 1 << 20}),
    "folder": ("out/", {"split_max_size": 1 << 20}),
}


def model(folder: Path, count: int, side: int) -> Path:
    """Tensors of random numbers, and a config.json, which a folder of Hugging Face's has."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    save_file(
        {f"t{number}": rng.random((side, side), np.float32) for number in range(count)}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text('{"model_type": "none"}')
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve tensors of 1 MB, which are a slab each."""
    return model(tmp_path / "in", 12, 512)


def stopped_after(slabs: int) -> Any:
    seen: list[Progress] = []

    def progress(now: Progress) -> bool:
        seen.append(now)
        return len(seen) < slabs

    return progress


def read_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the names of tensors whose rows are read from now on."""
    from converter.storage import output

    names: list[str] = []
    checked = output._checked
    monkeypatch.setattr(output, "_checked", lambda tensor, *rows: names.append(tensor.name) or checked(tensor, *rows))
    return names


def content(target: Path) -> dict[str, bytes]:
    found = sorted(target.rglob("*")) if target.is_dir() else sorted(target.parent.glob(f"{target.stem}*"))
    return {path.name: path.read_bytes() for path in found if path.is_file()}


def asked(source: Path, target: str, request: converter.Request, **more: Any) -> converter.Plan:
    return converter.convert(source, target, request, threads=1, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_done_is_not_done_again(
    kind: str, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, wishes = KINDS[kind]
    request, place = converter.Request(**wishes), tmp_path / "place"
    for folder in ("place", "whole"):
        (tmp_path / folder).mkdir()
    asked(source, f"{tmp_path}/whole/{name}", request)
    target = f"{place}/{name}"
    with pytest.raises(Interrupted, match="cancelled; what is done is kept, the same command goes on with it"):
        asked(source, target, request, progress=stopped_after(8), resume=True)
    assert [path for path in place.iterdir() if not path.name.startswith(".")] == []
    names = read_of(monkeypatch)
    plan = asked(source, target, request)
    notes = [str(event) for event in plan.report.events if "goes on where a run was stopped" in str(event)]
    assert len(notes) == 1 and 3 <= len(set(names)) <= 5, (notes, names)
    assert content(place / name) == content(tmp_path / "whole" / name)
    assert [path for path in place.iterdir() if path.name.startswith(".")] == []


def test_without_the_option_a_run_that_is_stopped_leaves_nothing(tmp_path: Path, source: Path) -> None:
    with pytest.raises(Interrupted, match="nothing was written"):
        asked(source, f"{tmp_path / 'out.npz'}", converter.Request(), progress=stopped_after(3))
    assert list(tmp_path.iterdir()) == [source]


def left_by(tmp_path: Path, source: Path, target: str, **wishes: Any) -> Path:
    """What a run leaves that was stopped after half of it; its only temporary file."""
    with pytest.raises(Interrupted):
        asked(source, target, converter.Request(**wishes), progress=stopped_after(6), resume=True)
    (found,) = (path for path in tmp_path.glob(".*.part") if not path.name.endswith(".journal.part"))
    return found


@pytest.mark.parametrize("change", ["request", "source", "another file", "journal", "length"])
def test_another_run_does_not_go_on_with_it(tmp_path: Path, source: Path, change: str) -> None:
    target = str(tmp_path / "out.npz")
    left = left_by(tmp_path, source, target)
    wishes: dict[str, Any] = {}
    if change == "request":
        wishes = {"dtype": "f16"}
    elif change == "source":
        os.utime(source / "model.safetensors", ns=(1, 1))
    elif change == "another file":
        source = source.rename(tmp_path / "other")
    elif change == "journal":
        (tmp_path / f"{left.name.removesuffix('.part')}.journal.part").write_bytes(b'{"journal": 0}\n')
    else:
        with open(left, "r+b") as file:
            file.truncate(100)
    plan = asked(source, target, converter.Request(**wishes))
    assert [str(event) for event in plan.report.events if "left by a run that was killed, removed" in str(event)]
    asked(source, str(tmp_path / "again.npz"), converter.Request(**wishes))
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_bytes_that_did_not_reach_the_disk_are_made_again(tmp_path: Path, source: Path) -> None:
    """After a power cut a record may be there without what it speaks of, or half of itself."""
    target = str(tmp_path / "out.safetensors")
    asked(source, str(tmp_path / "whole.safetensors"), converter.Request(dtype="f16"))
    left = left_by(tmp_path, source, target, dtype="f16")
    data = bytearray(left.read_bytes())
    data[2000:6000] = bytes(4000)
    left.write_bytes(data)
    records = tmp_path / f"{left.name.removesuffix('.part')}.journal.part"
    records.write_bytes(records.read_bytes()[:-5])
    asked(source, target, converter.Request(dtype="f16"))
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_records_that_are_damaged_count_for_nothing(tmp_path: Path) -> None:
    made = journal.Journal(tmp_path / "journal", "key")
    made.open()
    for number in range(3):
        made.wrote(0, number, memoryview(b"bytes"))
    made.close()
    assert not journal.Journal(made.path, "another").read()
    data = bytearray(made.path.read_bytes())
    data[-40] ^= 1
    made.path.write_bytes(data + b"half a record")
    again = journal.Journal(made.path, "key")
    assert again.read() and list(again.done) == [(0, 0, 5), (0, 2, 5)] and again.nbytes == 10
    made.path.write_bytes(data[:10])
    assert not journal.Journal(made.path, "key").read()
