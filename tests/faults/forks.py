"""What sweep.py and kills.py share: what somebody sees in a folder, and the program in a fork that has it loaded."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

MEMORY = Path("/dev/shm")  # a disk would have to flush every try
TEMPORARY = re.compile(r"\..*\.(part|lock)|\.convert-batch\.json", re.DOTALL)
Snapshot = dict[str, str]


def scratch_in() -> Path | None:
    """Where tries are made; None for the usual place."""
    return MEMORY if MEMORY.is_dir() else None


def seen(place: Path) -> Snapshot:
    """The files that somebody sees there, by their content; so are links that lead nowhere."""
    found = (path for path in sorted(place.rglob("*")) if path.is_file() or path.is_symlink())
    files = {path.relative_to(place): path for path in found}
    return {
        name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "leads nowhere"
        for name, path in files.items()
        if not any(TEMPORARY.fullmatch(part) for part in name.parts)
    }


def empty(folders: Sequence[Path], scratch: Path | None) -> None:
    """Leave nothing in folders, or what was there at first, which lies in `scratch`."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        if scratch is None:
            folder.mkdir()
        else:
            shutil.copytree(scratch / f"old-{folder.name}", folder, symlinks=True)


def unseen(place: Path, disk: Path) -> list[str]:
    """What lies on another disk and no link in a place leads to."""
    seen = {path.resolve() for path in place.rglob("*") if path.is_symlink()}
    kept = {each for path in seen for each in (path, path.parent, path.parent / "annex.json")}
    return [str(path.relative_to(disk)) for path in disk.rglob("*") if path not in kept]


def begun(words: Sequence[str], said: Path, armed: Callable[[], None] = lambda: None) -> int:
    """The number of a fork that runs the command line and says everything into a file; `armed` is called in it."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        armed()
        code = program()(list(words))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def program():  # type: ignore[no-untyped-def]
    """The entry of the command line."""
    from converter.cli.main import main

    return main
