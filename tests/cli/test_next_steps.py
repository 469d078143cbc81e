"""After a conversion to GGUF: what to do next, on a terminal, and the Modelfile that `--modelfile` writes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from support import architectures, models

import converter
from converter.cli.main import main
from converter.cli.next_steps import next_steps
from converter.errors import OutputExists, UsageError
from converter.housekeeping.modelfile import read

KJV = models.FIXTURES / "kjv-llama"


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: object) -> list[str]:
    """The lines on a terminal that say what comes next."""
    with monkeypatch.context() as terminal:
        terminal.setattr(sys.stderr, "isatty", lambda: True)
        terminal.setenv("NO_COLOR", "1")
        assert main([str(each) for each in (*argv, "--progress", "none")]) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith(("run it:", "Ollama:", "LM Studio:"))]


def test_commands_that_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "My model.gguf"
    run, ollama, studio = shown(capsys, monkeypatch, KJV, target, "-q", "q8_0")
    assert shlex.split(run)[2:] == ["llama-server", "-m", str(target)]
    first, _, second = ollama.removeprefix("Ollama: ").partition(", then ")
    program, *argv = shlex.split(first)
    assert program == "convert" and main(argv) == 0
    assert shlex.split(second) == ["ollama", "create", "my-model", "-f", str(tmp_path / "My model.Modelfile")]
    assert read((tmp_path / "My model.Modelfile").read_text("utf-8"))[0].value == "./My model.gguf"
    assert "~/.lmstudio/models/PUBLISHER/" in studio


def test_nobody_in_front(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([str(KJV), str(tmp_path / "a.gguf")]) == 0
    assert "ollama" not in capsys.readouterr().err
    for flag in ("--quiet", "--json"):
        assert not shown(capsys, monkeypatch, KJV, tmp_path / "a.gguf", "--force", flag)
    assert not shown(capsys, monkeypatch, KJV, f"{tmp_path}/folder/")


def test_the_modelfile_of_a_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, place = tmp_path / "m.gguf", tmp_path / "m.Modelfile"
    _, ollama, _ = shown(capsys, monkeypatch, KJV, target, "--modelfile")
    assert ollama == f"Ollama: ollama create m -f {place}"
    assert read(place.read_text("utf-8"))[0].value == "./m.gguf"
    target.unlink()
    assert main([str(KJV), str(target), "--modelfile"]) == OutputExists.exit_code
    assert not target.exists(), "nothing is written where the Modelfile could not be"
    capsys.readouterr()
    assert main([str(KJV), str(target), "--modelfile", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modelfile"]["path"] == str(place)


def test_every_quant_and_every_shard(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert main([str(KJV), f"{tmp_path}/out/", "-q", "q8_0,q4_0", "--modelfile", "--quiet"]) == 0
    places = sorted((tmp_path / "out").glob("*.Modelfile"))
    assert [path.with_suffix(".gguf").name for path in places] == sorted(
        path.name for path in (tmp_path / "out").glob("*.gguf")
    )
    assert main([str(KJV), f"{tmp_path}/s.gguf", "--split-max-tensors", "30", "--modelfile", "--quiet"]) == 0
    names = [each.value for each in read((tmp_path / "s.Modelfile").read_text("utf-8")) if each.name == "FROM"]
    assert names == ["./s-00001-of-00002.gguf", "./s-00002-of-00002.gguf"]


def test_what_has_no_modelfile(tmp_path: Path) -> None:
    assert main([str(KJV), f"{tmp_path}/folder/", "--modelfile"]) == UsageError.exit_code
    source = architectures.build("gemma3-mmproj", tmp_path)
    request = converter.Request(**architectures.facts("gemma3-mmproj")["request"])
    assert main([str(source), f"{tmp_path}/mmproj.gguf", "--modelfile", "--mmproj"]) == UsageError.exit_code
    assert not (tmp_path / "folder").exists() and not list(tmp_path.glob("*.gguf"))
    with converter.plan(source, tmp_path / "mmproj.gguf", request).checkpoint:
        assert not next_steps(converter.plan(source, tmp_path / "mmproj.gguf", request), None)
