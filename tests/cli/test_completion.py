"""Completion in the shells themselves: bash calls the function, fish has a command for it, zsh gets a terminal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from converter.cli import verbs
from converter.cli.completion import commands
from converter.cli.shells import SHELLS, script
from converter.quant.recipes import RECIPES

NAMES = {"bash": "bash", "zsh": "zsh", "fish": "fish", "powershell": "pwsh"}


@cache
def made(shell: str) -> str:
    return script(shell, commands())


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Files to complete, and the scripts beside them."""
    folder = tmp_path / "here"
    for name in ("my model.gguf", "notes.txt", "imatrix.dat", "gate.toml"):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "folder").mkdir()
    for shell in SHELLS:
        (tmp_path / shell).write_text(made(shell), "utf-8")
    return folder


def of_bash(here: Path, *words: str) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in words)
    code = f"""source '{here.parent}/bash'
COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
_model_convert; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=here)
    assert not done.stderr
    return sorted(set(filter(None, done.stdout.split("\n"))))


def of_fish(here: Path, *words: str) -> list[str]:
    code = f"source '{here.parent}/fish'; complete -C '{' '.join(words)}'"
    home = os.environ | {"HOME": str(here.parent), "XDG_CONFIG_HOME": str(here.parent)}
    done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True, cwd=here, env=home)
    assert not done.stderr, done.stderr
    return sorted({line.partition("\t")[0] for line in done.stdout.splitlines()})


def of_zsh(here: Path, *words: str) -> list[str]:
    """What it finds on a terminal: a function of the same name as its own writes it down on the way."""
    import pty

    for name in ("found", "done"):
        (here.parent / name).unlink(missing_ok=True)
    setup = f"""unsetopt promptsp; PS1=; autoload -U compinit; compinit -u -D; source '{here.parent}/zsh'
zstyle ':completion:*' list-grouped false
compadd () {{ builtin compadd "$@"; local -a found; builtin compadd -O found "$@"; print -rl -- "${{(@)found/#/@@}}" >> '{here.parent}/found'; }}
"""  # noqa: E501
    (here.parent / ".zshrc").write_text(setup)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(here)
        environment = os.environ | {"ZDOTDIR": str(here.parent), "TERM": "dumb"}
        os.execvpe("zsh", ["zsh", "-i"], environment)
    try:
        seen = b""
        while b"\x1b[?2004h" not in seen:  # it reads a line now
            seen += os.read(terminal, 4096)
        os.write(terminal, f"{' '.join(words)}\t\x15: > '{here.parent}/done'\n".encode())
        until = time.monotonic() + 60
        while not (here.parent / "done").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        os.close(terminal)
        os.kill(child, 9)
        os.waitpid(child, 0)
    found = here.parent / "found"
    text = found.read_text("utf-8") if found.exists() else ""
    return sorted({line[2:] for line in text.splitlines() if line.startswith("@@") and len(line) > 2})


OFFERED: dict[str, Callable[..., list[str]]] = {"bash": of_bash, "fish": of_fish, "zsh": of_zsh}
QUANTS = sorted(name.lower() for name in RECIPES if name.startswith("Q4_K"))
#: A command line up to the tab, and what is offered for its end.
LINES = {
    "a quant": (("-q", "q4_k"), QUANTS),
    "a quant by the long option": (("plan", "in", "--quant", "q4_k"), QUANTS),
    "a format": (("in", "--to", "safet"), ["safetensors"]),
    "a format to read": (("check", "--from", "safet"), ["safetensors"]),
    "a type": (("in", "--dtype", "b"), ["bf16"]),
    "an architecture": (("in", "--arch", "qwen3v"), ["qwen3vl", "qwen3vlmoe"]),
    "a choice": (("in", "--external-data", "al"), ["always"]),
    "a shell": (("completion", "z"), ["zsh"]),
    "a command": (("insp",), ["inspect"]),
    "a command to be explained": (("help", "insp"), ["inspect"]),
    "an option": (("in", "out", "--tensor-t"), ["--tensor-type"]),
    "an option of a command": (("inspect", "--al"), ["--all"]),
    "no option of another command": (("inspect", "--quan"), []),
    "a number": (("in", "--threads", ""), []),
}


@pytest.mark.skipif(sys.platform == "win32", reason="shells of Unix")
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("shell", OFFERED)
def test_what_is_offered(shell: str, line: str, here: Path) -> None:
    if shutil.which(NAMES[shell]) is None:
        pytest.skip(f"no {shell} here")
    words, wanted = LINES[line]
    assert OFFERED[shell](here, "convert", *words) == wanted


@pytest.mark.skipif(sys.platform == "win32", reason="shells of Unix")
@pytest.mark.parametrize("shell", OFFERED)
def test_files(shell: str, here: Path) -> None:
    """Those that may be meant, and folders."""
    if shutil.which(NAMES[shell]) is None:
        pytest.skip(f"no {shell} here")

    def offered(*words: str) -> set[str]:
        return {each.rstrip("/").replace("\\", "") for each in OFFERED[shell](here, "convert", *words)}

    assert offered("inspect", "m") == {"my model.gguf"}
    if shell != "fish":  # it offers the others, too, after these
        assert offered("x", "--imatrix", "") == {"imatrix.dat", "my model.gguf", "folder"}
        assert offered("verify", "--gate", "") == {"gate.toml", "folder"}
    assert offered("x", "--config", "f") == {"folder"}
    assert offered("completion", "n") == set()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_lists_and_equal_signs(here: Path) -> None:
    assert of_bash(here, "convert", "in", "-q", "q8_0,q4_k") == [f"q8_0,{name}" for name in QUANTS]
    assert of_bash(here, "convert", "in", "--to", "=", "safet") == ["safetensors"]
    assert of_bash(here, "convert", "in", "--dtype", "=") == ["bf16", "f16", "f32"]
    assert of_bash(here, "convert", "in", "-q", "Q4_K") == [name.upper() for name in QUANTS]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_completes_lists(here: Path) -> None:
    assert of_fish(here, "convert", "in", "-q", "q8_0,q4_k") == [f"q8_0,{name}" for name in QUANTS]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_option_is_in_every_script(shell: str) -> None:
    words = set(re.findall(r"[\w-]+", made(shell)))
    for name in verbs.names():
        assert name in words
        flags = {flag for action in verbs.parser(name)._actions for flag in action.option_strings if flag[:2] == "--"}
        assert {flag[2:] for flag in flags} <= {word.removeprefix("--") for word in words}


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_valid(shell: str, tmp_path: Path) -> None:
    program = shutil.which(NAMES[shell])
    if program is None:
        pytest.skip(f"no {shell} here")
    path = tmp_path / "script.ps1"
    path.write_text(made(shell), "utf-8")
    check = {"fish": ["--no-execute", path], "powershell": ["-NoProfile", "-File", path]}.get(shell, ["-n", path])
    subprocess.run([program, *check], check=True)
