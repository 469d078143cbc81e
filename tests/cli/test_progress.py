"""`--progress`: a bar, a line now and then, JSON for programs: what of it comes, where, and when."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import models
from support.paths import ROOT

from converter import pipeline
from converter.cli import progress as shown
from converter.cli.main import main
from converter.errors import Cancelled
from converter.reports.progress import Pace
from converter.request import Request
from converter.storage.slabs import Progress
from converter.tensors import kernels

STORIES = models.FIXTURES / "stories260K"
DOCUMENT = (ROOT / "docs/json.md").read_text("utf-8")


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# -------------------------------------------------------------------------------------------------- the pace


def test_rate_and_time_left() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.rate is None and pace.left is None
    clock.now += 2
    pace.add(Progress(50, 250, "w"))
    assert (pace.rate, pace.left, pace.elapsed) == (25, 8, 2)


def test_what_was_there_already_is_no_rate() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 1
    pace.add(Progress(600, 1000, "w", resumed=600))
    assert pace.rate is None and pace.left is None
    clock.now += 1
    pace.add(Progress(700, 1000, "w", resumed=600))
    assert (pace.rate, pace.left) == (50, 6)


def test_the_rate_is_that_of_the_last_while() -> None:
    """A fast beginning (copied tensors) is forgotten."""
    clock = Clock()
    pace = Pace(clock)
    for done in (9000, *range(9010, 9000 + 10 * 100, 10)):
        clock.now += 1
        pace.add(Progress(done, 10_000, "w"))
    assert pace.rate == pytest.approx(10)


# --------------------------------------------------------------------------------------------------- as JSON


def test_json_lines_are_what_the_documentation_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown.Json, "seconds", 0.0)
    target = tmp_path / "o.gguf"
    assert main([str(STORIES), str(target), "-q", "q8_0", "--json", "--verify", "--progress", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["verification"]["passed"]
    found = objects(err)
    assert [json.dumps(each) for each in found] == err.splitlines(), "nothing else comes with --json"
    section = DOCUMENT.split("## Progress")[1].split("\n## ")[0]
    fields = [name for cell in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`(\w+)`", cell)]
    for each in found:
        assert list(each) == [name for name in fields if name not in ("ok", "status") or name in each]
        assert (each["schema"], each["verb"]) == (1, "convert") and f"`{each['event']}`" in section
    writing = [each for each in found if each["stage"] == "convert"]
    assert [each["event"] for each in writing] == ["start", *["progress"] * (len(writing) - 2), "end"]
    assert len(writing) > 10 and {each["file"] for each in writing} == {"o.gguf"}
    assert writing[-1]["done"] == writing[-1]["total"] == sum(step.bytes for step in _steps(target))
    assert writing[-1]["ok"] is True and writing[-1]["left"] == 0
    assert {each["stage"] for each in found} == {"convert", "verify"}


def _steps(target: Path) -> Any:
    plan = pipeline.plan(STORIES, target.with_name("p.gguf"), Request(quant="q8_0"))
    plan.checkpoint.close()
    return plan.steps


def test_objects_are_far_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of many small tensors does not drown its reader."""
    assert main([str(STORIES), str(tmp_path / "o.gguf"), "--progress", "json", "--quiet"]) == 0
    assert len(objects(capsys.readouterr().err)) < 10


def test_a_failed_run_ends_with_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(STORIES), str(tmp_path / "o.gguf"), "-q", "q4_k_m", "--strict", "--progress", "json"]) == 40
    (end,) = objects(capsys.readouterr().err)
    assert (end["event"], end["ok"], end["done"]) == ("end", False, 0)


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, int]:
    """The target of a run that was stopped half-way, and how many bytes it kept."""
    monkeypatch.setattr(kernels, "SLAB_NBYTES", 4096)
    target, seen = tmp_path / "o.gguf", []

    def half(now: Progress) -> bool:
        seen.append(now)
        return now.done * 2 < now.total

    with pytest.raises(Cancelled):
        pipeline.convert(STORIES, target, Request(quant="q8_0"), threads=1, progress=half, resume=True)
    return target, seen[-1].done


def test_what_is_resumed_is_said(stopped: tuple[Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    target, kept = stopped
    assert main([str(STORIES), str(target), "-q", "q8_0", "-j", "1", "--progress", "json", "--json"]) == 0
    events = {each["event"]: each for each in objects(capsys.readouterr().err)}
    assert events["resumed"]["resumed"] == events["end"]["resumed"] == kept
    assert events["end"]["done"] == events["end"]["total"] > kept


def test_a_log_says_what_is_resumed(stopped: tuple[Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    target, kept = stopped
    assert main([str(STORIES), str(target), "-q", "q8_0", "-j", "1", "--progress", "log"]) == 0
    assert f"convert: resumed: {kept:,} bytes are there\n" in capsys.readouterr().err


def test_jobs_of_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown.Json, "seconds", 0.0)
    argv = ["batch", str(STORIES), "--out", str(tmp_path / "{name}-{quant}.gguf"), "-q", "q8_0", "--progress", "json"]
    for status in ("done", "skipped"):
        assert main([*argv, "--quiet"]) == 0
        found = objects(capsys.readouterr().err)
        assert {each["job"] for each in found if each["event"] == "progress"} <= {"stories260K"}
        (job,) = [each for each in found if each["event"] == "job"]
        assert (job["job"], job["status"], job["verb"]) == ("stories260K", status, "batch")
        assert found[-1]["event"] == "end" and found[-1]["done"] == found[-1]["total"] > 0


# ----------------------------------------------------------------------------------------- a log, a bar, nothing


@pytest.mark.parametrize("more", [(), ("--progress", "log")])
def test_a_log_line_now_and_then(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal that is the default; a run of less than half a minute says nothing."""
    assert main([str(STORIES), str(tmp_path / "short.gguf"), *more]) == 0
    assert "convert: " not in capsys.readouterr().err
    assert shown.Log.seconds == 30
    monkeypatch.setattr(shown.Log, "seconds", 0.0)
    assert main([str(STORIES), str(tmp_path / "long.gguf"), *more]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("convert: ")]
    assert re.fullmatch(r"convert: 100% of .* [kM]B, .* [kM]B/s, 0 s left \(\S+\)", lines[-1])


@pytest.mark.parametrize("more", [("--quiet",), ("--json",), ("--progress", "none")])
def test_nothing(more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(shown.Log, "seconds", 0.0)
    assert main([str(STORIES), str(tmp_path / "o.gguf"), *more]) == 0
    assert "convert: " not in capsys.readouterr().err


def test_a_bar_that_is_asked_for(tmp_path: Path) -> None:
    """Also without a terminal, for who records one. What takes less than a tenth of a second may be over undrawn."""
    argv = [models.FIXTURES / "kjv-llama", tmp_path / "o.gguf", "-q", "iq3_s", "-j", "1", "--progress", "bar"]
    done = subprocess.run([sys.executable, "-m", "converter", *argv], capture_output=True, check=True)
    assert b"\x1b[" in done.stderr and b"blk." in done.stderr, done.stderr


@pytest.mark.parametrize("verb", ["convert", "verify", "check", "diff", "compare", "hash", "split", "merge", "edit"])
def test_every_long_verb_has_it(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, cut = tmp_path / "m.gguf", tmp_path / "cut.gguf"
    pipeline.convert(STORIES, model, Request())
    pipeline.convert(STORIES, cut, Request(split_max_tensors=20))
    argv = {
        "convert": [STORIES, tmp_path / "o.gguf"],
        "verify": ["verify", STORIES, model],
        "check": ["check", model],
        "diff": ["diff", model, model],
        "compare": ["compare", STORIES, "-q", "q8_0"],
        "hash": ["hash", model],
        "split": ["split", model, tmp_path / "part", "--max-tensors", "20"],
        "merge": ["merge", next(tmp_path.glob("cut-00001*")), tmp_path / "whole"],
        "edit": ["edit", model, tmp_path / "e.gguf", "--set", "general.name=x"],
    }[verb]
    capsys.readouterr()
    assert main([*map(str, argv), "--progress", "json", "--quiet"]) == 0
    found = objects(capsys.readouterr().err)
    assert found[0]["event"] == "start" and found[-1]["event"] == "end"
    assert found[-1]["done"] == found[-1]["total"] > 0 and found[-1]["verb"] == verb


def test_what_is_counted_in_another_unit_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is converted, in bytes, and then reads, in tokens: neither rate nor columns are those of before."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "120")
    parts = [Progress(1 << 30, 1 << 30, "blk.0"), Progress(100, 8192, "text"), Progress(200, 8192, "text")]
    parts[1:] = [replace(each, unit="tokens") for each in parts[1:]]
    bar, lines = shown.Bar("convert", "calibrate", forced=True), shown.Json("convert", "calibrate")
    with bar as take:
        for each in parts:
            assert take is not None
            take(each)
            bar._bar.refresh()
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "1.1/1.1 GB" in said and "200/8192" in said and "8.2" not in said, said
    stream.truncate(0)
    stream.seek(0)
    with lines as take:
        for each in parts:
            assert take is not None
            take(each)
    told = objects(stream.getvalue())
    assert [each["event"] for each in told] == ["start", "start", "end"]
    assert [each["unit"] for each in told] == ["bytes", "tokens", "tokens"] and told[-1]["rate"] != told[0]["rate"]


@pytest.mark.parametrize(("columns", "narrow"), [(30, True), (60, True), (100, False)])
def test_a_bar_fits_its_terminal(columns: int, narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is wrapped would stay behind."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = shown.Bar("convert", "convert", forced=True)
    with bar as take:
        assert take is not None
        for done in (1 << 20, 1 << 30, 900 << 30):
            take(Progress(done, 900 << 30, "blk.127.ffn_down_exps.weight"))
            bar._bar.refresh()
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()))
    assert any("%" in line for line in lines) == narrow and any("blk.127" in line for line in lines) != narrow
    assert max(map(len, lines)) <= columns
