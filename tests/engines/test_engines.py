"""Slabs that are filled elsewhere: the same bytes as by threads here, whatever becomes of workers on the way."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.models import FIXTURES

import converter
from converter import Request, engines
from converter.cli.main import main
from converter.engines import base, units
from converter.engines.base import Engine, Results
from converter.errors import Cancelled, EngineError, LossyError, UsageError

KJV = FIXTURES / "kjv-llama"
#: What becomes of the model: names, with quants where several are asked for.
TARGETS: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "gguf": ("m.gguf", ({"quant": "q4_k_m"},)),
    "several": ("m-{quant}.gguf", ({"quant": "q4_k_m"}, {"quant": "q8_0"})),
    "shards": ("m.safetensors", ({"dtype": "f16", "split_max_size": 2_000_000},)),
    "folder": ("m/", ({"dtype": "f16"},)),
    "checksums": ("m.npz", ({"dtype": "f16"},)),
}
CLUSTERS = [
    pytest.param(
        name,
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(find_spec(module) is None, reason=f"needs {module}: make engines"),
            pytest.mark.skipif(sys.platform != "linux", reason="finds and kills processes by /proc"),
        ],
    )
    for name, module in (("dask", "distributed"), ("ray", "ray"))
]


class Here(Engine):
    """Units one after the other in this process, the first one twice: as if its worker had been lost at its end."""

    def __init__(self, change: dict[str, Any] | None = None) -> None:
        self.change, self.given = change or {}, 0

    def results(self, work: units.Work, given: Sequence[Any]) -> Results:
        work = replace(work, **self.change)
        for number, unit in enumerate(given):
            self.given += 1
            if not number:
                units.fill(work, unit)
            yield number, units.fill(work, unit)

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(base, "UNIT", 200_000)
    yield
    if (here := getattr(units._local, "here", None)) is not None:
        here.plans[0].checkpoint.close()
        del units._local.here


def content(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


def made(folder: Path, kind: str, engine: Engine | None, **more: Any) -> dict[str, bytes]:
    """What is in a folder afterwards, temporary files and all."""
    folder.mkdir()
    name, requests = TARGETS[kind]
    asked = [Request(**each) for each in requests]
    converter.convert_several(KJV, f"{folder}/{name}", asked, engine=engine, **more)
    return content(folder)


@pytest.mark.parametrize("kind", TARGETS)
def test_the_same_bytes(kind: str, tmp_path: Path) -> None:
    engine = Here()
    assert made(tmp_path / "given-out", kind, engine) == made(tmp_path / "here", kind, None)
    assert engine.given > 5


def test_paths_that_depend_on_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES)
    target = os.path.relpath(tmp_path / "m.gguf")
    converter.convert("kjv-llama", target, Request(quant="q8_0"), engine=Here())
    converter.convert(KJV, tmp_path / "here.gguf", Request(quant="q8_0"))
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "0.0.1"}, "a worker has version .*, the conversion was begun by 0.0.1"),
        ({"plans": ("another",)}, "sees other files, or plans otherwise"),
        ({"seen": (("model", (1, 2)),)}, "sees other files"),
    ],
)
def test_a_worker_that_understands_otherwise(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=words):
        made(tmp_path / "out", "gguf", Here(change))
    assert not list((tmp_path / "out").iterdir())


def test_losses_are_told_and_refused(tmp_path: Path) -> None:
    """What workers count reaches the report, once, and --strict."""
    source = tmp_path / "in.safetensors"
    save_file({name: np.full((64, 1024), 1e6, np.float32) for name in "abc"}, source)
    reports = []
    for engine in (None, Here()):
        plan = converter.convert(source, tmp_path / "out.safetensors", Request(dtype="f16"), engine=engine, force=True)
        reports.append([str(event) for event in plan.report.events])
    assert reports[0] == reports[1] and "65,536" in reports[0][-1]
    with pytest.raises(LossyError, match="nothing was written"):
        converter.convert(source, tmp_path / "no.safetensors", Request(dtype="f16", strict=True), engine=Here())
    assert not list(tmp_path.glob("*no*"))


def test_cancelling(tmp_path: Path) -> None:
    engine = Here()
    with pytest.raises(Cancelled):
        made(tmp_path / "out", "gguf", engine, progress=lambda now: now.done < now.total / 2)
    assert not list((tmp_path / "out").iterdir()) and engine.given < 15


def test_what_an_engine_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keep no journal"):
        converter.convert(KJV, tmp_path / "m.gguf", Request(quant="q8_0"), engine=Here(), resume=True)
    with (
        pytest.raises(UsageError, match=r"there are local, ray\[:ADDRESS\], dask\[:ADDRESS\]"),
        engines.opened("spark"),
    ):
        pass
    with engines.opened("local") as engine:
        assert engine is None


@pytest.mark.parametrize("name", ["ray", "dask"])
def test_without_the_package(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, {"ray": "ray", "dask": "distributed"}[name], None)
    assert main([str(KJV), "m.gguf", "--engine", name]) == 13
    assert f"--engine {name} needs" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- real clusters


def processes() -> list[int]:
    """Workers of Ray and Dask below this process."""
    found, parents = [], {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            line = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(b"ray::") or b"spawn_main" in line:
            found.append(int(path.name))

    def ours(process: int) -> bool:
        while process in parents:
            if process == os.getpid():
                return True
            process = parents[process]
        return False

    return [each for each in found if ours(each)]


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_worker_is_killed(name: str, tmp_path: Path) -> None:
    """One of two, in the middle: the other one does its units, and the bytes are the same."""
    killed: list[int] = []

    def progress(now: converter.Progress) -> None:
        if not killed and now.done > now.total / 4:
            killed.append(processes()[-1])
            os.kill(killed[0], signal.SIGKILL)

    with engines.opened(name, 2) as engine:
        for kind in TARGETS:
            killed.clear()
            wanted = made(tmp_path / f"{kind}-here", kind, None)
            assert made(tmp_path / kind, kind, engine, progress=progress) == wanted
            assert killed
        with pytest.raises(Cancelled):
            made(tmp_path / "cancelled", "gguf", engine, progress=lambda now: False)
    assert not list((tmp_path / "cancelled").iterdir())


@pytest.mark.parametrize("name", CLUSTERS)
def test_errors_of_workers_come_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "__version__", "0.0.1")  # here, and in no worker
    started = time.monotonic()
    with engines.opened(name, 1) as engine, pytest.raises(EngineError, match="the conversion was begun by"):
        made(tmp_path / "out", "gguf", engine)
    assert not list((tmp_path / "out").iterdir()) and time.monotonic() - started < 60


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_batch(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(FIXTURES / each) for each in ("kjv-llama", "stories260K")]
    for place, more in (("here", []), ("there", ["--engine", name, "--jobs", "2", "-j", "2"])):
        assert (
            main(["batch", *folders, "--out", f"{tmp_path}/{place}/{{name}}-{{quant}}.gguf", "-q", "q8_0,f16", *more])
            == 0
        )
    here, there = content(tmp_path / "here"), content(tmp_path / "there")
    ledger = ".convert-batch.json"
    assert len(here) == 5 and {**here, ledger: b""} == {**there, ledger: b""}, capsys.readouterr().err
