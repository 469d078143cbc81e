"""What a person does next with a GGUF that was made: on a terminal, a few lines on stderr."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from converter.address import is_elsewhere
from converter.cli.colour import HINT, say
from converter.text import printable

if TYPE_CHECKING:
    from converter.planning.plan import Plan

PROGRAM = "convert"


def modelfile_place(plan: Plan) -> Path:
    """Where the Modelfile of a conversion goes: beside the GGUF, called as it is."""
    return plan.written.with_name(f"{_name(plan.written)}.Modelfile")


def is_model(plan: Plan) -> bool:
    """Whether a conversion makes a GGUF of a whole model on this machine: no projector, no adapter."""
    from converter.mapping.view import view

    return plan.route.target == "gguf" and not is_elsewhere(plan.written) and view(plan.checkpoint).whole


def next_steps(plan: Plan, modelfile: Path | None) -> list[str]:
    """How llama.cpp, Ollama and LM Studio take the file; `modelfile` is one that was written for it."""
    if not is_model(plan):
        return []
    name, path = _name(plan.written), plan.written
    place = modelfile or modelfile_place(plan)
    before = "" if modelfile else f"{PROGRAM} modelfile {_quoted(path)} {_quoted(place)}, then "
    model = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"
    return [
        f"run it: llama-server -m {_quoted(path)}",
        f"Ollama: {before}ollama create {model} -f {_quoted(place)}",
        f"LM Studio: put it into ~/.lmstudio/models/PUBLISHER/{_quoted(Path(name))}/",
    ]


def show_next_steps(plan: Plan, modelfile: Path | None) -> None:
    """Print them where somebody sits in front."""
    if not sys.stderr.isatty():
        return
    for line in map(printable, next_steps(plan, modelfile)):
        say(line, sys.stderr, HINT)


def _name(path: Path) -> str:
    """A file's name without its extension; of a shard that of the whole."""
    from converter.formats.hub import shard_of

    shard = shard_of(path)
    return shard[0] if shard is not None else path.stem


def _quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))
