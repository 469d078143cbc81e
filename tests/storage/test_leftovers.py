"""What killed runs left: found by name, apart from what runs are at work on, removed with all that belongs to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converter.cli.main import main
from converter.errors import OutputError
from converter.storage import leftovers
from converter.storage.lock import Lock

OTHERS = ("out.gguf", ".out.gguf.0123abc.part", ".hidden.part", ".out.lock", ".out.gguf.0123abcd.incomplete")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file with its journal and lock, a folder, a journal alone; and names of others."""
    for name in (".a.gguf.0123abcd.part", ".a.gguf.0123abcd.journal.part", ".c.00000000.journal.part"):
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / ".a.gguf.lock").touch()
    (tmp_path / ".b.89abcdef.part" / "new").mkdir(parents=True)
    (tmp_path / ".b.89abcdef.part" / "new" / "file").write_bytes(bytes(100))
    for name in OTHERS:
        (tmp_path / name).touch()
    return tmp_path


def test_found_by_name(place: Path) -> None:
    found = [(each.path.name, each.nbytes, each.running) for each in leftovers.found(place)]
    assert found == [
        (".a.gguf.0123abcd.part", 5, False), (".b.89abcdef.part", 100, False), (".c.00000000.journal.part", 5, False),
    ]  # fmt: skip


def test_removed_with_what_belongs_to_it(place: Path) -> None:
    for each in leftovers.found(place):
        leftovers.clean(each)
    assert sorted(path.name for path in place.iterdir()) == sorted(OTHERS)


def test_what_a_run_is_at_work_on_stays(place: Path) -> None:
    lock = Lock(place / ".a.gguf.lock")
    assert lock.take()
    found = leftovers.found(place)
    assert [each.running for each in found] == [True, False, False]
    with pytest.raises(OutputError, match="a run is writing it; wait for its end"):
        leftovers.clean(found[0])
    lock.release()
    assert (place / ".a.gguf.0123abcd.part").exists()


def test_the_verb(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", str(place), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert ".b.89abcdef.part" in said and said.endswith("3 would be removed, 110 bytes\n")
    assert main(["clean", str(place), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["left"]) == 3
    assert main(["clean", str(place)]) == 0
    assert capsys.readouterr().out == "0 removed, 0 bytes\n"
    assert sorted(path.name for path in place.iterdir()) == sorted(OTHERS)
