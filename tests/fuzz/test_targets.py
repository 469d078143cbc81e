"""The fuzz targets do what they say: valid samples pass, damage ends as an error, and a finding would be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import seeds
import targets
from support import builders, samples

from converter.errors import CorruptFile
from converter.formats.registry import formats
from converter.storage import files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    samples.every_kind(folder)
    return folder


def test_every_reader_has_a_target() -> None:
    readers = {name for name, format in formats().items() if format.open is not None}
    assert readers <= {target.format for target in targets.TARGETS.values()}


@pytest.mark.parametrize("name", targets.TARGETS)
def test_samples_pass_and_their_first_halves_do_not(made: Path, name: str) -> None:
    target = targets.TARGETS[name]
    inputs = list(seeds.inputs(target, [made]))
    whole = [targets.run(target, data) for data in inputs]
    assert None in whole, whole
    assert all(isinstance(targets.run(target, data[: len(data) // 2]), Exception) for data in inputs)


def leaks(target: targets.Target, path: Path) -> None:
    kept.append(files.MappedFile(path))


kept: list[files.MappedFile] = []


def crashes(target: targets.Target, path: Path) -> None:
    raise IndexError("found")


def rambles(target: targets.Target, path: Path) -> None:
    raise CorruptFile("a\nb\nc\nd")


def obeys_terminals(target: targets.Target, path: Path) -> None:
    raise CorruptFile("\x1b[2J")


@pytest.mark.parametrize(
    ("bad", "says"),
    [(leaks, "stays mapped"), (crashes, "found"), (rambles, "4 lines"), (obeys_terminals, "unprintable")],
)
def test_findings_are_seen(monkeypatch: pytest.MonkeyPatch, bad: Callable[..., None], says: str) -> None:
    monkeypatch.setattr(targets, "_open", bad)
    with pytest.raises((AssertionError, IndexError), match=says):
        targets.run(targets.TARGETS["gguf"], builders.small_gguf())
    while kept:
        kept.pop().close()
