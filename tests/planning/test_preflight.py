"""What a conversion takes, told before it begins: the sums, what is free, what is refused and what is warned of."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from support import models

from converter import pipeline
from converter.cli.commands import convert
from converter.cli.main import main
from converter.errors import DiskFull
from converter.planning import preflight as told
from converter.request import Request
from converter.storage import disk, shares
from converter.tensors.dtypes import DTYPES

STORIES = models.FIXTURES / "stories260K"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that decodes a number in 1 µs and encodes one in 2, whatever the type."""
    monkeypatch.setattr(told, "decoding", lambda name: 1e-6)
    monkeypatch.setattr(told, "encoding", lambda name, weighted, effort: 2e-6)
    monkeypatch.setattr(told, "COPYING", 1e6)
    monkeypatch.setattr(told, "memory_free", lambda: 1 << 40)


def free(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> list[Path]:
    """A disk with that much room; the folders that were asked about."""
    asked: list[Path] = []
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: asked.append(Path(place)) or Usage(0, 0, nbytes))
    return asked


@pytest.mark.usefixtures("rates")
@pytest.mark.parametrize("quants", [("q8_0",), ("q8_0", "f16")])
def test_the_sums(quants: tuple[str, ...], tmp_path: Path) -> None:
    """What several outputs read they read once, what is copied is not encoded, and threads share the work."""
    plans = pipeline.plan_several(STORIES, tmp_path / "{quant}.gguf", [Request(quant=quant) for quant in quants])
    if len(quants) == 1:
        plans = [pipeline.plan(STORIES, tmp_path / "o.gguf", Request(quant="q8_0"))]
    steps = [step for plan in plans for step in plan.steps]
    numbers = [step.info.n_elements for step in steps if step.type != "F32"]
    copied = sum(step.bytes for step in steps if step.type == "F32")
    assert copied and len(numbers) < len(steps)
    found = told.preflight(plans, threads=2)
    assert found.seconds == pytest.approx((sum(numbers) * (1e-6 / len(quants) + 2e-6) + copied / 1e6) / 2)
    assert found.read_bytes == sum(step.read.info.nbytes for step in plans[0].steps)
    assert found.disk_bytes == sum(plan.total_bytes for plan in plans)
    assert found.disk_rate * found.seconds == pytest.approx(found.read_bytes + found.disk_bytes)
    assert found.memory_bytes == max(plan.memory(2) for plan in plans)
    for plan in plans:
        plan.checkpoint.close()


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16", "IQ2_XXS", "BF16", "TQ1_0"])
def test_rates_are_measured(name: str) -> None:
    """A number takes between a hundredth of a nanosecond and a tenth of a millisecond on any machine."""
    assert 1e-11 < told.encoding(name, True, 0) < 1e-4
    assert 1e-11 < told.decoding(name) < 1e-4


@pytest.mark.parametrize("name", DTYPES)
def test_a_type_that_no_kernel_reads_costs_nothing(name: str) -> None:
    """Codes of other packages, whole numbers: no error."""
    assert told.decoding(name) >= 0


def test_what_is_free() -> None:
    """At least what this process holds already must be somewhere; a limit of a control group counts."""
    found = told.memory_free()
    assert found is None or found > 1 << 20


def test_the_limit_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, taken = tmp_path / "max", tmp_path / "current"
    limit.write_text("3000000\n")
    taken.write_text("1000000\n")
    monkeypatch.setattr(told, "CGROUP", ((str(limit), str(taken)),))
    assert told.memory_free() == 2_000_000
    limit.write_text("max\n")
    assert told.memory_free() != 2_000_000


# ----------------------------------------------------------------------------------------------- on the command line


@pytest.mark.usefixtures("rates")
def test_plan_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1000)
    argv = ["plan", str(STORIES), str(tmp_path / "o.gguf"), "-q", "q8_0"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    costs = found["preflight"]
    assert costs["disk_bytes"] == found["total_bytes"] and costs["disk_free"] == 1000
    assert (costs["fits"], costs["tight"]) == (False, False) and costs["seconds"] > 0
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "needs 345 kB of disk (1.00 kB free) and about" in out and "takes at least " in out
    assert "warning: the disk has too little room" in err
    monkeypatch.setattr(told, "memory_free", lambda: 1 << 20)
    assert main(argv) == 0
    assert "fewer --threads need less" in capsys.readouterr().err


@pytest.mark.usefixtures("rates")
def test_a_long_conversion_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [str(STORIES), str(tmp_path / "{quant}.gguf"), "-q", "q8_0,q4_0", "--force"]
    assert main(argv) == 0
    assert "takes at least" not in capsys.readouterr().err, "a short one need not"
    monkeypatch.setattr(convert, "LONG", 1000)
    assert main(argv) == 0
    said = capsys.readouterr().err
    assert said.count("takes at least") == said.count("note: needs ") == 1
    assert main([*argv, "--quiet"]) == 0
    assert "takes at least" not in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1000)
    assert main([str(STORIES), str(tmp_path / "o.gguf")]) == DiskFull.exit_code == 52
    assert f"{tmp_path}: the output needs " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_the_disk_that_is_asked_is_that_of_the_folder(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files come into a folder that is there, which may be another disk; a new one is built beside its place."""
    out = tmp_path / "out"
    if there:
        out.mkdir()
    asked = free(monkeypatch, 1 << 40)
    pipeline.convert(STORIES, f"{out}/")
    assert set(asked) == {out if there else tmp_path} and (out / "model.safetensors").is_file()


def test_usage_is_what_the_system_says(tmp_path: Path) -> None:
    plan: Any = pipeline.plan(STORIES, tmp_path / "o.gguf")
    plan.checkpoint.close()
    (share,) = shares.shares(plan.layout)
    assert share.folder == tmp_path and share.nbytes == plan.total_bytes
    assert share.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
