"""Every command of the README and the how-tos runs as it stands and prints what the page shows.

`CONVERTER_ACCEPT=1 pytest tests/docs/test_commands.py` writes what is printed into the pages; read the difference.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import DOCUMENTS, Step, commands, like, pages, rewritten, steps
from support.given import surroundings
from support.paths import ROOT

from converter.cli import verbs
from converter.errors import UsageError

PAGES = pages("README.md")


def identity(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("bash"), reason="the pages' commands are for bash")
@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_commands_print_what_is_shown(page: Path, tmp_path: Path) -> None:
    text = page.read_text("utf-8")
    printed: dict[Step, str] = {}
    assert list(steps(text)), "a page without a command that is run"
    with surroundings(tmp_path, "\n".join(step.command for step in steps(text))) as environment:
        for step in steps(text):
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", step.command],
                cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            assert done.returncode == 0, f"{identity(page)}:{step.line}: {step.command}\n{done.stdout}"
            printed[step] = done.stdout
    if os.environ.get("CONVERTER_ACCEPT"):
        page.write_text(rewritten(text, printed), "utf-8")
        return
    for step, output in printed.items():
        if step.shown is not None:
            assert like(step.shown, output), f"{identity(page)}:{step.line}: {step.command} prints\n{output}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=identity)
def test_commands_are_ones_that_the_program_takes(page: Path) -> None:
    """Of every document, what cannot be run here included: verbs, options and numbers of arguments are right."""
    for line, command in commands(page.read_text("utf-8")):
        for part in command.replace("\\\n", " ").split("&&"):
            words = shlex.split(part.split("|")[0].split(";")[0].split("> ")[0], comments=True)
            if words and words[0] == "convert":
                verb, rest = verbs.chosen(words[1:])
                try:
                    verbs.parser(verb).parse_args(rest)
                except UsageError as error:
                    assert "no such" in str(error), f"{identity(page)}:{line}: {part}"


def test_what_a_page_shows_is_compared() -> None:
    text = "a\n```console\n$ one \\\n  two\n1.5 s\nx\n$ three\n...\nend\n```\n```sh\nfour  # five\n```\n"
    found = list(steps(text))
    assert [(step.line, step.command, step.shown) for step in found] == [
        (3, "one \\\n  two", "1.5 s\nx\n"), (7, "three", "...\nend\n"), (12, "four  # five\n", None),
    ]  # fmt: skip
    assert like(found[0].shown or "", "22.75 s\nx\n") and not like(found[0].shown or "", "22.75 s\ny\n")
    assert like(found[1].shown or "", "a\nb\nend\n") and not like(found[1].shown or "", "a\nb\nends\n")
    assert like("a ... c\n", "a b c\n") and not like("a ... c\n", "a b\n c\n")
    accepted = rewritten(text, {found[0]: "2 s\nz\n", found[1]: "a\nb\nend!\n", found[2]: "?"})
    assert accepted == text.replace("1.5 s\nx\n", "2 s\nz\n").replace("end", "end!"), "what it leaves out stays out"
