"""The table of verbs: what help, completion and the documentation say follows from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from converter import __version__, errors
from converter.cli import commands, verbs
from converter.cli.main import main

COMMANDS = (ROOT / "docs/commands.md").read_text("utf-8")
FROBNICATE = '''
"""`convert frobnicate FILE`: made up."""

from converter.cli.verbs import GROUPS, Outcome, Verb

VERB = Verb(
    "frobnicate", GROUPS[-1], "FILE", "turn the knobs", "Turn all knobs of a file.",
    examples=(("convert frobnicate model.gguf --knob 7", "the seventh"), ("convert frobnicate x", "again")),
    exit_codes=((3, "a knob came off"),),
)


def add_arguments(parser):
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--knob", type=int, default=0)


def run(args):
    return Outcome(lambda: {"knob": args.knob}, lambda: print("turned", args.knob), 3)
'''


@pytest.fixture
def frobnicate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb is one file in the folder of verbs."""
    (tmp_path / "frobnicate.py").write_text(FROBNICATE)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "converter.cli.commands.frobnicate", raising=False)


def out(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    try:
        assert main(argv) == code
    except SystemExit as end:  # argparse's --help
        assert end.code == code
    return capsys.readouterr().out


@pytest.mark.usefixtures("frobnicate")
def test_a_new_verb_is_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    shown = out(capsys, "--help")
    assert re.search(r"^  frobnicate +turn the knobs$", shown, re.M)
    assert "convert frobnicate" not in shown, "its examples are its own"
    assert "3 frobnicate: a knob came off" in shown
    own = out(capsys, "frobnicate", "--help")
    assert own.startswith("usage: convert frobnicate FILE [options]\n") and "--json" in own
    assert re.search(r"^  convert frobnicate model.gguf --knob 7 +the seventh$", own, re.M)
    for shell in ("bash", "zsh", "fish"):
        script = out(capsys, "completion", shell)
        assert "frobnicate" in script and "knob" in script
    assert out(capsys, "frobnicate", "x", "--knob", "7", code=3) == "turned 7\n"
    told = {"schema": 1, "verb": "frobnicate", "version": __version__, "knob": 0}
    assert out(capsys, "frobnicate", "x", "--json", code=3) == f"{json.dumps(told)}\n"
    assert "| `convert frobnicate FILE` | turn the knobs |" in verbs.markdown()
    assert "| 3 | `frobnicate`: a knob came off |" in verbs.exit_code_markdown()


def test_every_verb_says_what_it_is() -> None:
    """Its name is that of its module; examples are command lines that its parser takes."""
    for name in verbs.names():
        verb: verbs.Verb = verbs.module(name).VERB
        assert verb.name == name and verb.group in verbs.GROUPS and verb.help and verb.description
        for command, words in verb.examples:
            program, *argv = command.split()
            chosen, rest = verbs.chosen(argv)
            assert (program, chosen) == ("convert", name) and words
            verbs.parser(name).parse_args(rest)


def test_help_lists_every_verb_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    shown = out(capsys, "--help")
    found = re.findall(r"^commands to (.*):\n((?:  .*\n)+)", shown, re.M)
    assert [group for group, _ in found] == list(verbs.GROUPS)
    listed = {name: group for group, lines in found for name in re.findall(r"^  (\S+)", lines, re.M)}
    assert listed == {verb.name: verb.group for verb in verbs.all_verbs() if verb.name != verbs.DEFAULT}


def test_help_is_a_screen_and_names_what_there_is_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in ("80", "100", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        shown = out(capsys, "--help").splitlines()
        assert len(shown) <= len(verbs.names()) + (40 if columns == "80" else 32), "a verb is a line"
        assert max(map(len, shown)) <= 118
    for name in verbs.names():
        short, full = out(capsys, "-h", name), out(capsys, "help", name)
        flags = {each.option_strings[-1] for each in verbs.parser(name)._actions if each.option_strings}
        assert all(flag in full for flag in flags) and "more options" not in full
        if name != verbs.DEFAULT:
            told = re.search(rf"`convert help {name}` has (\d+) more options", short)
            heads = re.findall(r"^  (-.*?)(?:  |$)", short, re.M)
            shown_flags = {word for head in heads for word in re.findall(r"--[\w-]+", head)}
            assert len(flags - shown_flags) == int(told[1] if told else 0)
    assert len(out(capsys, "plan", "-h").splitlines()) < len(out(capsys, "plan", "--help-all").splitlines()) / 2
    assert "`convert help convert`" in " ".join(out(capsys, "--help").split())


def test_a_file_may_be_called_like_the_default_verb() -> None:
    assert verbs.chosen(["convert", "out.gguf"]) == ("convert", ["convert", "out.gguf"])
    assert verbs.chosen(["plan", "a", "b"]) == ("plan", ["a", "b"])


def test_choosing_a_verb_imports_no_other() -> None:
    code = "import sys; from converter.cli import verbs; verbs.parser('inspect'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.rpartition(".")[2] for name in done.stdout.split() if name.startswith(commands.__name__ + ".")}
    assert loaded == {"inspect"}


# --------------------------------------------------------------------------------------------- exit codes


def kinds(of: type[errors.ConverterError] = errors.ConverterError) -> list[type[errors.ConverterError]]:
    return [
        of,
        *(kind for below in of.__subclasses__() if below.__module__ == errors.__name__ for kind in kinds(below)),
    ]


def test_every_error_has_its_line_in_the_tree() -> None:
    """The drawing at the head of errors.py shows every class with its code, below the one that it is a kind of."""
    tree = re.findall(r"^([├└│─ ]*)(\w+) +(\d+)\b", errors.__doc__ or "", re.M)
    above: list[str] = []
    drawn = {}
    for lines, name, code in tree:
        above[len(lines) // 4 :] = [name]
        drawn[name] = (above[-2] if len(above) > 1 else "Exception", int(code))
    assert drawn == {kind.__name__: (kind.__mro__[1].__name__, kind.exit_code) for kind in kinds()}


def test_exit_codes_are_listed_once_and_mean_one_thing() -> None:
    listed = [code for _, family in errors.exit_codes() for code, _ in family]
    assert len(listed) == len(set(listed)) and set(listed) == {kind.exit_code for kind in kinds()}
    assert all(words for _, family in errors.exit_codes() if len(family) > 1 for _, words in family)


def test_help_has_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    shown = out(capsys, "--help").partition("exit codes:\n")[2]
    spans = [found.split("-") for found in re.findall(r"(?:^  |  )(\d+(?:-\d+)?) (?=\w)", shown, re.M)]
    codes = {code for span in spans for code in range(int(span[0]), int(span[-1]) + 1)}
    assert {kind.exit_code for kind in kinds()} | {0} <= codes


# ----------------------------------------------------------------------------------------- documentation


def test_a_page_lists_the_verbs_and_exit_codes() -> None:
    """`python -c "from converter.cli import verbs; print(verbs.markdown()); print(verbs.exit_code_markdown())"`"""
    assert verbs.markdown() in COMMANDS
    assert verbs.exit_code_markdown() in COMMANDS


def test_reports_are_named_by_help() -> None:
    """The extensions that --report's help has are those that there are."""
    from converter.reports.files import REPORTS

    for name in verbs.names():
        action = next((each for each in verbs.parser(name)._actions if "--report" in each.option_strings), None)
        assert (action is not None) == (name in REPORTS)
        if action is not None:
            assert set(re.findall(r"\.\w+", action.help or "")) == set(REPORTS[name])


@pytest.mark.skipif(os.name != "posix", reason="a pipe that is closed early")
def test_help_into_a_pipe_that_closes() -> None:
    line = f"{sys.executable} -m converter --help | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: convert") and done.stderr == ""
