"""Colour where there is a terminal, or where it is forced; nothing but the words elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from converter.cli.colour import painted, say

ESCAPE = "\x1b["


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(
    ("terminal", "environment", "wanted"),
    [
        (True, {}, True),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_where(terminal: bool, environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Stream(terminal)
    say("warning: [red]x[/red]", stream)
    assert painted(stream) == wanted == (ESCAPE in stream.getvalue())
    assert stream.getvalue().endswith(" [red]x[/red]\n"), "nothing in a text is markup"


@pytest.mark.parametrize(
    ("line", "codes", "part"),
    [
        ("convert: no such file", "1;31", "convert:"),
        ("convert: warning: odd", "1;33", "convert: warning:"),
        ("warning: lossy", "1;33", "warning:"),
        ("note: by the way", "2", "note: by the way"),
        ("failed: blk.0: zero", "1;31", "failed:"),
        ("PASSED: b against a", "1;32", "PASSED"),
        ("FAILED: b against a", "1;31", "FAILED"),
        ("m.gguf: ok: nothing found", "1;32", ": ok:"),
        ("m.gguf: FAILED: 1 failed", "1;31", ": FAILED:"),
    ],
)
def test_what(line: str, codes: str, part: str) -> None:
    stream = Stream(True)
    say(line, stream)
    assert f"{ESCAPE}{codes}m{part}{ESCAPE}0m" in stream.getvalue()


def test_long_lines_are_not_wrapped() -> None:
    stream = Stream(True)
    say("note: " + "x" * 500, stream)
    assert stream.getvalue().count("\n") == 1


def test_nothing_is_imported_for_a_pipe() -> None:
    code = "import sys; from converter.cli.main import main; main(['nothing-there']); print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n" and done.stderr.startswith("convert: nothing-there: ")
