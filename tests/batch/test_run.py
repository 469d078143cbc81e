"""Batches: outputs as of single runs, done once, side by side within memory, going on after errors and stops."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import models

import converter
from converter import pipeline
from converter.batch import run as batch
from converter.batch.manifest import Job, jobs_of
from converter.batch.run import Result, Wishes
from converter.cli.main import main
from converter.errors import CorruptFile, FidelityError, OutputError, OutputExists, UsageError

STORIES = models.FIXTURES / "stories260K"
QUANTS = ("q8_0", "q4_0")


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """A job of the model under another name."""

    def made(name: str = "stories", **keys: Any) -> Job:
        defaults = {"source": str(STORIES), "out": f"out/{name}-{{quant}}.gguf", "quant": list(QUANTS)}
        (found,) = jobs_of(defaults | keys, tmp_path)
        return replace(found, name=name)

    return made


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    return path


def statuses(found: batch.Batch) -> list[str]:
    return [each.status for each in found.results]


def test_outputs_are_those_of_single_runs(tmp_path: Path, job: Callable[..., Job]) -> None:
    found = batch.run([job(), job("other", quant="f16", verify=True)])
    assert statuses(found) == ["done", "done"] and found.passed and found.exit_code == 0
    assert [each.sqnr_db for each in found.results[1].made] != [None]
    for quant in QUANTS:
        converter.convert(STORIES, tmp_path / "single.gguf", converter.Request(quant=quant), force=True)
        assert (tmp_path / "single.gguf").read_bytes() == (tmp_path / f"out/stories-{quant.upper()}.gguf").read_bytes()


def test_what_is_done_is_skipped(tmp_path: Path, job: Callable[..., Job]) -> None:
    out = tmp_path / "out/stories-Q4_0.gguf"
    assert statuses(batch.run([job()])) == ["done"]
    before = out.stat().st_mtime_ns
    assert statuses(batch.run([job()])) == ["skipped"] and out.stat().st_mtime_ns == before
    assert statuses(batch.run([job(leave_output=True)])) == ["done"], "our own, untouched: made anew"
    assert out.stat().st_mtime_ns != before
    assert statuses(batch.run([job(leave_output=True)], Wishes(force=True))) == ["done"]
    out.write_bytes(b"somebody else's")
    found = batch.run([job(leave_output=True)])
    assert isinstance(found.results[0].error, OutputExists) and out.read_bytes() == b"somebody else's"
    (tmp_path / "out/.convert-batch.json").write_text('{"schema": 1, "done": {"x": 3}}')
    assert isinstance(batch.run([job()]).results[0].error, OutputExists)


def test_errors_do_not_end_the_others(tmp_path: Path, job: Callable[..., Job], broken: Path) -> None:
    jobs = [job("a"), job("b", source=str(broken)), job("c")]
    told: list[Result] = []
    found = batch.run(jobs, told=told.append)
    assert statuses(found) == ["done", "failed", "done"] and len(told) == 3
    assert isinstance(found.results[1].error, CorruptFile) and found.exit_code == CorruptFile.exit_code
    found = batch.run(jobs, Wishes(fail_fast=True, force=True))
    assert statuses(found) == ["stopped", "failed", "stopped"] and not found.passed


@pytest.mark.parametrize("parallel", [1, 2])
def test_what_cannot_be_meant_is_refused_before_anything_is_done(
    tmp_path: Path, job: Callable[..., Job], parallel: int
) -> None:
    jobs = [job("a"), replace(job("b", quant="nonsense"), place="m.toml:3"), job("a")]
    with pytest.raises(UsageError) as caught:
        batch.run(jobs, Wishes(parallel=parallel))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("m.toml:3: ") and "is an output of a, too" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_only_reading_and_writing_is_tried_again(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    own = pipeline.convert_several
    monkeypatch.setattr(batch, "PAUSE", 0.01)

    def fails(*given: Any, **more: Any) -> Any:
        tries.append(0)
        if len(tries) < 3:
            raise OutputError("lost the disk")
        return own(*given, **more)

    monkeypatch.setattr(pipeline, "convert_several", fails)
    assert isinstance(batch.run([job()], Wishes(retries=1)).results[0].error, OutputError)
    tries.clear()
    assert statuses(batch.run([job()], Wishes(retries=2))) == ["done"] and len(tries) == 3


@pytest.mark.parametrize(("memory", "most"), [(None, 3), (1, 1)])
def test_side_by_side_within_memory(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, memory: int | None, most: int
) -> None:
    running, seen, lock = [0], [0], threading.Lock()
    own = pipeline.convert_several

    def slow(*given: Any, **more: Any) -> Any:
        with lock:
            running[0] += 1
            seen[0] = max(seen[0], running[0])
        time.sleep(0.3)
        try:
            return own(*given, **more)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(pipeline, "convert_several", slow)
    found = batch.run([job(name) for name in "abc"], Wishes(parallel=3, memory=memory))
    assert statuses(found) == ["done"] * 3 and seen[0] == most


@pytest.mark.parametrize("parallel", [1, 2])
def test_cancelled(job: Callable[..., Job], parallel: int) -> None:
    found = batch.run([job(name) for name in "abc"], Wishes(parallel=parallel), progress=lambda _: False)
    assert statuses(found) == ["stopped"] * 3 and found.exit_code == 130


def test_an_output_that_is_wrong_fails(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        passed = False

        def summary(self) -> dict[str, float]:
            return {"sqnr_db": 3.0}

    monkeypatch.setattr(batch, "verify", lambda *_, **__: Wrong())
    found = batch.run([job(verify=True)])
    assert isinstance(found.results[0].error, FidelityError) and found.results[0].made[0].sqnr_db == 3.0
    monkeypatch.undo()
    assert isinstance(batch.run([job(verify=True)]).results[0].error, OutputExists), "what failed is not remembered"


def test_folders(tmp_path: Path, job: Callable[..., Job]) -> None:
    wanted = job(out="models/{name}/", quant="q8_0")
    for status in ("done", "skipped"):
        assert statuses(batch.run([wanted])) == [status]
    (found,) = (tmp_path / "models/stories260K").glob("*.gguf")
    assert found.stat().st_size > 0


def test_the_verb(tmp_path: Path, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "m.toml"
    manifest.write_text(
        f'[defaults]\nout = "{{name}}-{{quant}}.gguf"\n[[models]]\nsource = {str(STORIES)!r}\nquant = "q8_0,q4_0"\n'
        f"[[models]]\nsource = {str(broken)!r}\n"
    )
    line = [
        "batch",
        str(manifest),
        "--report",
        str(tmp_path / "r.xml"),
        "--sums",
        "--card",
        "--log",
        str(tmp_path / "log"),
    ]
    before = sorted(tmp_path.rglob("*"))
    assert main([*line, "--dry-run", "--json"]) == CorruptFile.exit_code
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "r.xml"])
    assert [each["status"] for each in json.loads(capsys.readouterr().out)["jobs"]] == ["planned", "failed"]
    assert list(tmp_path.glob("*.gguf")) == [broken]
    assert main(line) == CorruptFile.exit_code
    said = capsys.readouterr()
    assert "[1/2] broken" in said.err and "1 done, 1 failed in" in said.out
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: gguf\n---\n<!-- convert card -->\n# ")
    assert "Q4_0" in (tmp_path / "README.md").read_text() and (tmp_path / "log/broken.log").read_text().startswith(
        "failed"
    )
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert [each[64:] for each in lines] == [" *stories260K-Q4_0.gguf", " *stories260K-Q8_0.gguf"]
    for each in lines:
        assert hashlib.sha256((tmp_path / each[66:]).read_bytes()).hexdigest() == each[:64]
    (tmp_path / "SHA256SUMS").unlink()
    assert main([*line, "--json"]) == CorruptFile.exit_code
    assert json.loads(capsys.readouterr().out)["jobs"][0]["status"] == "skipped"
    assert (tmp_path / "SHA256SUMS").read_text().splitlines() == lines


def test_models_without_a_manifest(tmp_path: Path) -> None:
    line = ["batch", str(STORIES), "-q", "q8_0"]
    assert main(line) == UsageError.exit_code
    assert main([*line, "--out", f"{tmp_path}/{{name}}.gguf", "--quiet"]) == 0
    assert (tmp_path / "stories260K.gguf").is_file()
