"""`--json` of every verb: one object on stdout with schema and verb, for a result as for an error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import models
from support.paths import ROOT

from converter import errors, pipeline
from converter.cli import verbs
from converter.cli.main import main
from converter.housekeeping.shards import split
from converter.request import Request

STORIES = models.FIXTURES / "stories260K"
DOCUMENT = (ROOT / "docs/json.md").read_text("utf-8")

# A line that works and one that fails, for every verb: arguments, exit code, kind of the error.
WORKS = {
    "convert": ("{stories}", "{tmp}/o.gguf", "-q", "q8_0"),
    "plan": ("plan", "{stories}", "{tmp}/o.gguf"),
    "edit": ("edit", "{model}", "{tmp}/edited.gguf", "--set", "general.name=x"),
    "split": ("split", "{model}", "{tmp}/part", "--max-tensors", "20"),
    "merge": ("merge", "{shard}", "{tmp}/whole"),
    "prune": ("prune", "{model}", "{tmp}/less", "--drop-layers", "1"),
    "trim-vocab": ("trim-vocab", "{model}", "{tmp}/less", "--tokens", "{tokens}"),
    "package": ("package", "{model}", "{tmp}/store", "--as", "ollama"),
    "modelfile": ("modelfile", "{model}"),
    "recipe": ("recipe", "{model}"),
    "compare": ("compare", "{stories}", "-q", "q8_0"),
    "imatrix": ("imatrix", "--statistics", "{matrix}"),
    "verify": ("verify", "{stories}", "{model}"),
    "hash": ("hash", "{model}"),
    "certify": ("certify", "{stories}", "{model}", "-o", "{tmp}/a.json"),
    "check": ("check", "{model}"),
    "diff": ("diff", "{model}", "{model}"),
    "inspect": ("inspect", "{model}"),
    "ui": ("ui", "{stories}", "--out", "{tmp}", "--idle", "0.2"),
    "formats": ("formats",),
    "quants": ("quants",),
    "architectures": ("architectures",),
    "completion": ("completion", "bash"),
    "clean": ("clean", "{tmp}"),
    "batch": ("batch", "{stories}", "--out", "{tmp}/{{name}}.gguf", "-q", "q8_0"),
}
FAILS: dict[str, tuple[tuple[str, ...], type[errors.ConverterError]]] = {
    "convert": (("{broken}", "{tmp}/o.gguf"), errors.CorruptFile),
    "plan": (("plan", "{stories}", "{tmp}/o.gguf", "--arch", "nonsense"), errors.UnknownArchitecture),
    "edit": (("edit", "{model}", "--remove", "nothing"), errors.UsageError),
    "split": (("split", "{broken}", "{tmp}/part", "--max-size", "1M"), errors.CorruptFile),
    "merge": (("merge", "{model}", "{tmp}/whole"), errors.UsageError),
    "trim-vocab": (("trim-vocab", "{model}", "{tmp}/less"), errors.UsageError),
    "package": (("package", "{broken}", "{tmp}/store", "--as", "oci"), errors.CorruptFile),
    "modelfile": (("modelfile", "{stories}"), errors.UnsupportedFeature),
    "recipe": (("recipe", "{broken}"), errors.CorruptFile),
    "prune": (("prune", "{broken}", "{tmp}/less", "--layers", "0"), errors.CorruptFile),
    "compare": (("compare", "{broken}"), errors.CorruptFile),
    "imatrix": (("imatrix", "--statistics", "{broken}"), errors.CorruptFile),
    "verify": (("verify", "{stories}", "{broken}"), errors.CorruptFile),
    "hash": (("hash", "{broken}"), errors.CorruptFile),
    "certify": (("certify", "{stories}", "{broken}"), errors.CorruptFile),
    "check": (("check", "{broken}"), errors.CorruptFile),
    "diff": (("diff", "{model}", "{broken}"), errors.CorruptFile),
    "inspect": (("inspect", "{tmp}/absent"), errors.OutputError),
    "ui": (("ui", "{tmp}/absent"), errors.OutputError),
    "formats": (("formats", "--frobnicate"), errors.UsageError),
    "quants": (("quants", "one"), errors.UsageError),
    "architectures": (("architectures", "-x"), errors.UsageError),
    "completion": (("completion", "tcsh"), errors.UsageError),
    "clean": (("clean", "{tmp}/absent"), errors.OutputError),
    "batch": (("batch", "{tmp}/absent", "--out", "{tmp}/x.gguf"), errors.UsageError),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("json")
    pipeline.convert(STORIES, folder / "model.gguf", Request(quant="q8_0"))
    (folder / "broken.gguf").write_bytes((folder / "model.gguf").read_bytes()[:5000])
    parts = split(folder / "model.gguf", folder / "part", max_tensors=20)
    (folder / "tokens.json").write_text("[300, 301]", "utf-8")
    return {
        "stories": STORIES,
        "model": folder / "model.gguf",
        "broken": folder / "broken.gguf",
        "shard": parts.files[0][0],
        "tokens": folder / "tokens.json",
        "matrix": models.FIXTURES / "imatrix" / "stories260K.dat",
    }


def run(
    capsys: pytest.CaptureFixture[str], places: dict[str, Path], tmp: Path, argv: tuple[str, ...], code: int
) -> Any:
    assert main([*(part.format(tmp=tmp, **places) for part in argv), "--json"]) == code
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1, "one object, one line"
    return json.loads(printed, parse_constant=pytest.fail)


def documented(verb: str) -> set[str]:
    """The names in the table below the heading of a verb."""
    section = re.search(rf"^### {verb}\b.*?(?=^##|\Z)", DOCUMENT, re.M | re.S)
    assert section, f"docs/json.md does not say what {verb} prints"
    return {name for line in re.findall(r"^\| (`.*?) \|", section[0], re.M) for name in re.findall(r"`(\w+)`", line)}


def test_every_verb_is_tested() -> None:
    assert WORKS.keys() == FAILS.keys() == set(verbs.names())


@pytest.mark.parametrize("verb", WORKS)
def test_results(verb: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, places, tmp_path, WORKS[verb], 0)
    assert list(found)[:3] == ["schema", "verb", "version"] and (found["schema"], found["verb"]) == (1, verb)
    assert "error" not in found and len(found) > 2
    assert found.keys() - {"schema", "verb", "version"} <= documented(verb)


@pytest.mark.parametrize("verb", FAILS)
def test_errors(verb: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv, kind = FAILS[verb]
    found = run(capsys, places, tmp_path, argv, kind.exit_code)
    assert (found["schema"], found["verb"]) == (1, verb)
    assert (found["error"]["kind"], found["error"]["exit_code"]) == (kind.__name__, kind.exit_code)
    assert found["error"].keys() == {"kind", "exit_code", "message"} and found["error"]["message"]


def test_an_error_says_the_same_to_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["inspect", str(tmp_path / "absent"), "--json"]) == 50
    said = capsys.readouterr()
    assert said.err == f"convert: {json.loads(said.out)['error']['message']}\n"


def test_faults_that_are_no_errors_of_ours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not meant to happen is an error in the same envelope."""
    for raised, kind, code in (
        (KeyboardInterrupt(), "Interrupted", 130),
        (PermissionError(13, "Permission denied", "x"), "OutputError", 50),
        (MemoryError(), "OutOfMemory", 71),
        (ZeroDivisionError("by zero"), "InternalError", 70),
    ):

        def fail(_: object, raised: BaseException = raised) -> None:
            raise raised

        monkeypatch.setattr(verbs.module("formats"), "run", fail)
        assert main(["formats", "--json"]) == code
        error = json.loads(capsys.readouterr().out)["error"]
        assert (error["kind"], error["exit_code"]) == (kind, code)
