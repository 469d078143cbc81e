"""Commands and options that are nearly right, and those of other programs, are answered about what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.paths import ROOT

from converter.cli import meant, verbs
from converter.cli.main import main

KJV = str(ROOT / "fixtures" / "kjv-llama")


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    try:
        assert main(argv) == code
    except SystemExit as end:  # argparse's --help
        assert end.code == code
    shown = capsys.readouterr()
    return shown.err + shown.out


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (("inspct", "m.gguf"), "no command 'inspct', and no such file; did you mean convert inspect?"),
        (("compair", KJV), "did you mean convert compare?"),
        (("Plan", KJV, "x.gguf"), "did you mean convert plan?"),
        (("insp", "x.gguf"), "did you mean convert inspect?"),
        (("--json", "verfy", "x.gguf"), "did you mean convert verify?"),
        (("quantize", KJV, "x.gguf", "q4_k_m"), "did you mean convert IN OUT -q TYPE?"),
        (("convert", KJV, "x.gguf"), "did you mean convert IN OUT, without the word?"),
        (("list",), "did you mean convert formats, convert quants or convert architectures?"),
        ((KJV, "x.gguf", "--quantize", "q4_k_m"), "unrecognized arguments: --quantize q4_k_m; did you mean --quant?"),
        ((KJV, "x.gguf", "--outtype=f16"), "did you mean -q TYPE?"),
        ((KJV, "x.gguf", "--threds", "2"), "did you mean --threads?"),
        ((KJV, "x.gguf", "--junit", "x.xml"), "that is an option of convert check"),
        ((KJV, "x.gguf", "more"), "unrecognized arguments: more\n"),
        (("plan", KJV, "x.gguf", "--dtype", "fp16"), "for GGUF output say --quant fp16"),
        (
            ("plan", KJV, "x.gguf", "--dtype", "int8"),
            "for GGUF output --quant TYPE says it; `convert quants` lists types",
        ),
        ((KJV, "x.gguf", "-t", "q4_k_m"), "did you mean -q TYPE, or -j N for threads?"),
    ],
)
def test_near(argv: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hint in said(capsys, *argv)


@pytest.mark.parametrize("argv", [("plan", KJV, "out.ggfu"), ("plan", KJV, "out", "--to", "gugf")])
def test_near_formats(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "; did you mean" in said(capsys, *argv, code=10)


def test_what_is_suggested_of_types_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert "11.6 MB" in said(capsys, "plan", KJV, "x.gguf", "--quant", "fp16", code=0)


def test_what_is_there_is_what_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quantize").write_bytes(b"no model")
    assert "did you mean" not in said(capsys, "quantize", "x.gguf", code=10)
    assert "did you mean" not in said(capsys, "nothing.gguf", "x.gguf", code=50)


@pytest.mark.parametrize(
    ("argv", "usage", "has"),
    [
        (("help",), "convert IN [OUT] [options]\n       convert COMMAND", "commands to change what is there:"),
        (("help", "convert"), "convert IN [OUT] [options]\n\n", "--leave-output"),
        (("help", "plan"), "convert plan IN [OUT] [options]\n", "--leave-output"),
        (("-h", "plan"), "convert plan IN [OUT] [options]\n", "--quant"),
    ],
)
def test_help(argv: tuple[str, ...], usage: str, has: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, *argv, code=0)
    assert shown.startswith(f"usage: {usage}") and has in shown


def test_flags_of_all_verbs_may_stand_in_front() -> None:
    assert verbs.chosen(["--json", "--quiet", "inspect", "m.gguf"]) == ("inspect", ["--json", "--quiet", "m.gguf"])
    assert verbs.chosen(["--json", "m.gguf", "out"]) == ("convert", ["--json", "m.gguf", "out"])
    assert verbs.chosen(["--json"]) == ("convert", ["--json"])


def test_what_is_suggested_is_there() -> None:
    """A command or option that a table names is none of ours; what it stands for is."""
    options = {option for name in verbs.names() for option in meant._options(verbs.parser(name))} | {"-q"}
    for wrong, right in meant.OPTIONS.items():
        assert wrong not in meant._options(verbs.parser("convert"))
        assert right.split()[0] in options or right.split(",")[0] in ("IN", "OUT")
    for wrong, right in meant.COMMANDS.items():
        assert wrong not in verbs.names() or wrong == verbs.DEFAULT
        assert right.split()[1].rstrip(",") in {*verbs.names(), "IN", "--version"}
