"""The command line that does what the page does, to be copied."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence

from converter.request import Request

#: Fields of a request that the page sets -> the option that says the same.
OPTIONS = {
    "quant": "--quant",
    "dtype": "--dtype",
    "output_type": "--output-type",
    "embedding_type": "--embedding-type",
    "imatrix": "--imatrix",
    "pure": "--pure",
    "leave_output": "--leave-output",
    "allow_requantize": "--allow-requantize",
}


def command(words: Sequence[object], request: Request | None = None, *options: object) -> str:
    """A line for the shell of this system: words, what a request asks for, further options."""
    line = [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in ("convert", *words)]
    line += [] if request is None else list(_options(request))
    line += map(str, options)
    return subprocess.list2cmdline(line) if sys.platform == "win32" else shlex.join(line)


def _options(request: Request) -> Iterator[str]:
    for name, option in OPTIONS.items():
        value = getattr(request.types, name)
        if value is True:
            yield option
        elif value:
            yield from (option, str(value))
    for pattern, kind in request.types.tensor_types:
        yield from ("--tensor-type", f"{pattern}={kind}")
