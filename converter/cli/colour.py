"""Lines in colour on a terminal: NO_COLOR and TERM=dumb leave them plain, FORCE_COLOR paints for a pipe, too.

Elsewhere a line is printed as it is, and nothing is imported for it.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

#: What is painted in a line: a regular expression, and its style.
STYLES = (
    (r"^note:.*", "dim"),
    (r"^warning:", "bold yellow"),
    (r"^convert:(?! warning)", "bold red"),
    (r"^convert: warning:", "bold yellow"),
    (r"^failed:", "bold red"),
    (r"^(FAILED|NOT what|NOT FROM|not {5}|failed  )\b|: FAILED:", "bold red"),
    (r"^(PASSED|verified|PROVEN(?! BUT))\b|: ok:", "bold green"),
)
HINT = "dim"  # of an error's second and third line: what to do


def painted(stream: TextIO) -> bool:
    """Whether lines on `stream` are."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


@cache
def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, soft_wrap=True)


def say(text: str, stream: TextIO | None = None, style: str = "") -> None:
    """Print lines on `stream`, by default stdout, in `style`, or as they begin.

    `text` has no control characters but its line ends.
    """
    stream = sys.stdout if stream is None else stream
    if not painted(stream):
        print(text, file=stream)
        return
    from rich.text import Text

    console = _console(stream)
    for line in text.split("\n"):
        shown = Text(line, style)
        for pattern, words in STYLES if not style else ():
            shown.highlight_regex(pattern, words)
        console.print(shown)
