"""Several quants of one source: files equal to those of single runs, the source read once, all of them or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import models

import converter
from converter import pipeline
from converter.cli.main import main
from converter.errors import Interrupted, OutputExists, UsageError
from converter.tensors import streams

STORIES = models.FIXTURES / "stories260K"
QUANTS = ("q8_0", "f16", "q4_0", "q5_1")


def requests(*quants: str) -> list[converter.Request]:
    return [converter.Request(quant=quant) for quant in quants or QUANTS]


def test_the_files_are_those_of_single_runs(tmp_path: Path) -> None:
    plans = converter.convert_several(STORIES, tmp_path / "{quant}.gguf", requests())
    assert [plan.target.name for plan in plans] == ["Q8_0.gguf", "F16.gguf", "Q4_0.gguf", "Q5_1.gguf"]
    for quant in QUANTS:
        single = tmp_path / f"single-{quant}.gguf"
        plan = converter.convert(STORIES, single, converter.Request(quant=quant))
        assert single.read_bytes() == (tmp_path / f"{quant.upper()}.gguf").read_bytes()
        own = next(each for each in plans if each.request.types.quant == quant)
        assert [str(event) for event in own.report.events] == [str(event) for event in plan.report.events]


def test_every_row_is_read_and_widened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    own = streams._values
    monkeypatch.setattr(
        streams, "_values", lambda tensor, *rows: seen.append((tensor.name, rows[0])) or own(tensor, *rows)
    )
    converter.convert_several(STORIES, tmp_path / "{quant}.gguf", requests("q8_0", "q4_0", "q5_1"))
    assert seen and len(seen) == len(set(seen))


def test_a_folder_gets_standard_names(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert main([str(STORIES), f"{tmp_path}/out/", "-q", "q8_0,q4_0"]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_one_name_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"write {quant} in it, or name a folder"):
        converter.convert_several(STORIES, tmp_path / "out.gguf", requests())


def test_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "Q4_0.gguf").write_bytes(b"old")
    with pytest.raises(OutputExists):
        converter.convert_several(STORIES, tmp_path / "{quant}.gguf", requests())
    with pytest.raises(Interrupted):
        converter.convert_several(STORIES, tmp_path / "{quant}.gguf", requests(), force=True, progress=lambda _: False)
    assert [path.name for path in tmp_path.iterdir()] == ["Q4_0.gguf"]
    assert (tmp_path / "Q4_0.gguf").read_bytes() == b"old"


def test_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [str(STORIES), str(tmp_path / "{quant}.gguf"), "-q", "q8_0, q4_0,q8_0", "--json"]
    assert main(["plan", *line]) == 0
    assert [each["target"][-9:] for each in json.loads(capsys.readouterr().out)["outputs"]] == [
        "Q8_0.gguf",
        "Q4_0.gguf",
    ]
    assert main([*line, "--verify"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [each["verification"]["passed"] for each in made["outputs"]] == [True, True] and made["seconds"] > 0
    assert main([*line[:3], "q8_0,,q4_0"]) == UsageError.exit_code


def test_a_source_that_arrives_packed(tmp_path: Path) -> None:
    """Codes stay in what is plain otherwise, and are numbers for others."""
    pipeline.convert(STORIES, f"{tmp_path}/packed/", converter.Request(scheme="fp8"))
    wanted = requests("f16", "q4_0")
    converter.convert_several(tmp_path / "packed", tmp_path / "{quant}.gguf", wanted)
    for request in wanted:
        single = tmp_path / "single.gguf"
        converter.convert(tmp_path / "packed", single, request, force=True)
        assert single.read_bytes() == (tmp_path / f"{str(request.types.quant).upper()}.gguf").read_bytes()
