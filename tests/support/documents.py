"""The documents, and the commands in them, to be run as they stand.

A fenced block `console` is a session of bash: a line that begins with `$ ` is a command, which a backslash at its end
continues; below it stands what it prints. `...` stands for any number of lines, in a line for any text; seconds may be
others. A block `sh` or `python` is a script, without what it prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from support.paths import ROOT

#: Every page of the site: of the repository's top, of docs/, and of the kernels.
DOCUMENTS = sorted(
    path for where in ("*.md", "docs/*.md", "docs/howto/*.md", "native/README.md") for path in ROOT.glob(where)
)

_BLOCK = re.compile(r"^```(console|sh|python)\n(.*?)^```$", re.M | re.S)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.M)
_OURS = {
    "console": re.compile(r"^\$ (convert (?:.*\\\n)*.*)$", re.M),
    "sh": re.compile(r"^(convert (?:.*\\\n)*.*)$", re.M),
    "python": re.compile(r"(?!)"),
}
_INDENTED = re.compile(r"^    (convert .*)$", re.M)
_SECONDS = re.compile(r"\b\d+(?:\\?\.\d+)?\\? (?=s\b)")


@dataclass(frozen=True)
class Step:
    """One command of a page: where it stands, and what is shown below it (None: nothing is said about that)."""

    line: int
    command: str
    shown: str | None = None
    span: tuple[int, int] = (0, 0)  #: of what is shown, in the text of the page


def steps(text: str) -> Iterator[Step]:
    """The commands of a page, in their order."""
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(2)) + 1
        if block[1] != "console":
            yield Step(line, block[2] if block[1] == "sh" else f"python - <<'END'\n{block[2]}END")
            continue
        for found in _COMMAND.finditer(block[2]):
            start, end = (block.start(2) + at for at in found.span(2))
            yield Step(line + block[2].count("\n", 0, found.start()), found[1], found[2], (start, end))


def like(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed."""
    lines = (re.escape(line).replace(r"\.\.\.", ".*") + "\n" for line in shown.splitlines())
    pattern = "".join(r"(?:.*\n)*?" if line == ".*\n" else line for line in lines)
    return re.fullmatch(_SECONDS.sub(r"[\\d.]+ ", pattern), printed) is not None


def rewritten(text: str, printed: dict[Step, str]) -> str:
    """The page with what was printed in the place of what it shows, where that is something else."""
    for step, new in sorted(printed.items(), key=lambda each: each[0].span, reverse=True):
        if step.shown is not None and not like(step.shown, new):
            start, end = step.span
            text = text[:start] + _anew(step.shown, new) + text[end:]
    return text


def _anew(shown: str, printed: str) -> str:
    """What was printed, less what the page leaves out: of each run of lines that it shows, the lines most like it."""
    runs = re.split(r"^\.\.\.\n", shown, flags=re.M)
    if len(runs) == 1:
        return printed
    lines, at = printed.splitlines(keepends=True), 0
    for place, run in enumerate(runs):
        n = run.count("\n")
        near = {i: SequenceMatcher(None, run, "".join(lines[i : i + n])).ratio() for i in range(at, len(lines) - n + 1)}
        start = max(near, key=near.__getitem__, default=at) if n else at
        runs[place], at = "".join(lines[start : start + n]), start + n
    return "...\n".join(runs)


def commands(text: str) -> Iterator[tuple[int, str]]:
    """Every line of a page that calls our program, in fenced blocks and indented ones, with its number."""
    blocks = [(block.start(2), _OURS[block[1]].finditer(block[2])) for block in _BLOCK.finditer(text)]
    for start, found in [*blocks, (0, _INDENTED.finditer(text))]:
        for each in found:
            yield text.count("\n", 0, start + each.start()) + 1, each[1]


def pages(*names: str) -> list[Path]:
    return [ROOT / name for name in names] + sorted((ROOT / "docs/howto").glob("*.md"))
