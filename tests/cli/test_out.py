"""Where an output goes: by its name, by none, into folders that are not there."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from support import models

from converter.cli.main import main

STORIES = models.FIXTURES / "stories260K"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(here: Path) -> list[str]:
    return sorted(path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ((), ["stories260K.gguf"]),
        (("-q", "q8_0"), ["stories260K-Q8_0.gguf"]),
        (("-q", "q8_0,q4_0"), ["stories260K-Q4_0.gguf", "stories260K-Q8_0.gguf"]),
        (("--to", "npz"), ["stories260K.npz"]),
        (("--to", "safetensors"), ["stories260K.safetensors"]),
    ],
)
def test_no_name(argv: tuple[str, ...], names: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(STORIES), *argv]) == 0
    assert written(here) == names and all(name in capsys.readouterr().out or len(names) > 1 for name in names)
    assert main([str(STORIES), *argv, "--quiet"]) == 53, "what is there is not replaced"
    assert main([str(STORIES), *argv, "--quiet", "--force"]) == 0


def test_no_name_of_a_folder_or_a_file(here: Path) -> None:
    assert main([str(STORIES), "--to", "hf", "--quiet"]) == 0
    assert (here / "stories260K-hf" / "model.safetensors").is_file()
    assert main([str(STORIES), "in/model-v1.5.gguf", "--split-max-tensors", "20", "--quiet"]) == 0
    assert main(["in/model-v1.5-00001-of-00003.gguf", "-q", "q8_0", "--allow-requantize", "--quiet"]) == 0
    assert (here / "model-v1.5-Q8_0.gguf").is_file()
    shutil.copytree(STORIES, here / "llama-3.2")
    assert main(["llama-3.2", "--quiet"]) == 0
    assert main(["llama-3.2.gguf"]) == 51, "its own name"
    assert (here / "llama-3.2.gguf").is_file(), "only a format's extension is none of the name"


def test_plan_names_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(STORIES), "-q", "q8_0", "--json"]) == 0
    assert '"target": "stories260K-Q8_0.gguf"' in capsys.readouterr().out and not written(here)


def test_folders_are_made(here: Path) -> None:
    assert main([str(STORIES), "a/b/x.gguf", "--quiet"]) == 0
    assert main([str(STORIES), "out/", "-q", "q8_0", "--quiet"]) == 0
    assert main(["split", "a/b/x.gguf", "c/part", "--max-tensors", "40", "--quiet"]) == 0
    assert main(["verify", str(STORIES), "a/b/x.gguf", "--report", "r/s/report.md", "--quiet"]) == 0
    assert written(here) == [
        "a/b/x.gguf",
        "c/part-00001-of-00002.gguf",
        "c/part-00002-of-00002.gguf",
        "out/stories260K-260K-Q8_0.gguf",
        "r/s/report.md",
    ]


def test_what_is_no_place_for_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("precious")
    for target, code, said in (
        ("-", 2, "cannot go to a pipe"),
        ("file/x.gguf", 50, "is a file, not a folder"),
        ("x.ggfu", 10, "did you mean .gguf?"),
    ):
        assert main([str(STORIES), target]) == code
        assert said in capsys.readouterr().err
    assert written(here) == ["file"]


def test_two_models_need_two_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(STORIES), "--extract-lora", "4", "lora/"]) == 2
    assert "both IN and OUT" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of Unix")
@pytest.mark.parametrize("columns", [30, 60, 80])
def test_nothing_is_wider_than_the_terminal(columns: int, here: Path) -> None:
    """Tables are cut and the bar is narrow, so that no line of either is wrapped; a pipe gets all."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
        argv = [sys.executable, "-m", "converter", "plan", str(STORIES), "x.gguf", "-q", "q8_0"]
        os.execve(sys.executable, argv, environment)
    said = b""
    with contextlib.suppress(OSError):  # its end
        while part := os.read(terminal, 1 << 16):
            said += part
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    rows = [line for line in said.decode().splitlines() if "F32 " in line]
    assert len(rows) >= 47 and max(map(len, rows)) <= max(columns, 56)
    assert any("..." in row for row in rows)
