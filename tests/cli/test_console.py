"""Consoles that are not UTF-8: whatever a model is called, or calls its tokens, is printed, and the work counts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import models

from converter import pipeline
from converter.cli import verbs
from converter.request import Request

STORIES = models.FIXTURES / "stories260K"
NAME = "modèle-Ł-模型-🦙"
# What makes a console speak something else than UTF-8; the C locale with Python's own ways around it closed.
CONSOLES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "strict": {"PYTHONIOENCODING": "latin-1:strict"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
VERBS = {
    "convert": ("{stories}", "{tmp}/{name}.gguf"),
    "plan": ("plan", "{folder}", "{tmp}/{name}.gguf"),
    "compare": ("compare", "{stories}", "-q", "q8_0"),
    "imatrix": ("imatrix", "-f", "--merge", "{matrix}", "-o", "{tmp}/{name}.imatrix.gguf"),
    "verify": ("verify", "{stories}", "{model}"),
    "certify": ("certify", "{stories}", "{model}"),
    "check": ("check", "{model}"),
    "diff": ("diff", "{model}", "{model}"),
    "inspect": ("inspect", "{folder}"),
    "ui": ("ui", "{folder}", "--out", "{tmp}", "--idle", "0.2"),
    "formats": ("formats",),
    "quants": ("quants",),
    "architectures": ("architectures",),
    "completion": ("completion", "bash"),
    "clean": ("clean", "{folder}"),
    "batch": ("batch", "{stories}", "--out", "{tmp}/batch.gguf", "-q", "q8_0"),
    "split": ("split", "-f", "{model}", "{tmp}/part", "--max-tensors", "20"),
    "merge": ("merge", "-f", "{shard}", "{tmp}/whole"),
    "trim-vocab": ("trim-vocab", "-f", "{model}", "{tmp}/less", "--tokens", "{tokens}"),
    "package": ("package", "-f", "{model}", "{tmp}/store", "--as", "ollama"),
    "modelfile": ("modelfile", "{model}"),
    "recipe": ("recipe", "{model}"),
    "prune": ("prune", "-f", "{model}", "{tmp}/less", "--drop-layers", "1"),
    "edit": ("edit", "-f", "{model}", "{tmp}/edited.gguf", "--set", "general.name=x"),
    "hash": ("hash", "{model}"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    tmp = tmp_path_factory.mktemp("console")
    folder = models.build_model("qwen2-96", tmp).rename(tmp / NAME)  # byte-level: its tokens begin with a Ġ
    stories = tmp / f"{NAME} stories"
    shutil.copytree(STORIES, stories)
    pipeline.convert(stories, tmp / f"{NAME}.model.gguf", Request())
    pipeline.convert(stories, tmp / f"{NAME}.cut.gguf", Request(split_max_tensors=20))
    (shard,) = tmp.glob(f"{NAME}.cut-00001-of-*.gguf")
    model = tmp / f"{NAME}.model.gguf"
    tokens = tmp / f"{NAME}.tokens.json"
    tokens.write_text("[300, 301]", "utf-8")
    return {
        "tmp": tmp, "name": NAME, "folder": folder, "stories": stories, "model": model, "shard": shard,
        "tokens": tokens, "matrix": models.FIXTURES / "imatrix" / "stories260K.dat",
    }  # fmt: skip


def run(console: str, *argv: str) -> subprocess.CompletedProcess[bytes]:
    # The paths are given as UTF-8, whatever the locale, as a shell passes on what it was given.
    environment = os.environ | CONSOLES[console]
    command = [sys.executable, "-m", "converter", *(each.encode() for each in argv)]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


def test_every_verb_is_tried() -> None:
    assert VERBS.keys() == set(verbs.names())


@pytest.mark.skipif(sys.platform == "win32", reason="paths are given as bytes")
@pytest.mark.parametrize("console", CONSOLES)
@pytest.mark.parametrize("verb", VERBS)
def test_any_console_takes_what_is_said(verb: str, console: str, places: dict[str, object]) -> None:
    argv = [part.format(**places) for part in VERBS[verb]]
    if verb == "convert":
        argv += ["--force"]
    done = run(console, *argv)
    assert done.returncode == 0, done.stderr
    assert b"internal error" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="paths are given as bytes")
def test_signs_that_a_console_lacks_are_escapes(places: dict[str, object]) -> None:
    done = run("ascii", "inspect", str(places["folder"]))
    assert rb"mod\xe8le-\u0141-\u6a21\u578b-\U0001f999" in done.stdout, done.stdout
    done = run("cp1252", "inspect", str(places["folder"]))
    assert b"mod\xe8le-\\u0141-" in done.stdout, "what it has is written as it is"
    found = json.loads(run("ascii", "inspect", str(places["folder"]), "--json").stdout)
    assert NAME in found["file"], "JSON stays JSON"


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
@pytest.mark.parametrize("utf8", ["1", "0"])
def test_a_file_name_that_is_no_text(utf8: str, tmp_path: Path) -> None:
    target, report = os.fsencode(tmp_path) + b"/bad-\xff.gguf", tmp_path / "report"
    command = [sys.executable, "-X", f"utf8={utf8}", "-m", "converter"]
    done = subprocess.run([*command, STORIES, target], capture_output=True, check=False)
    assert done.returncode == 0 and os.path.exists(target), done.stderr
    for extension in ("json", "md", "html", "txt", "xml"):
        argv = ["verify", STORIES, target, "--report", f"{report}.{extension}"]
        done = subprocess.run([*command, *argv], capture_output=True, check=False)
        assert done.returncode == 0, (extension, done.stderr)
        assert "bad-" in Path(f"{report}.{extension}").read_text("utf-8")
