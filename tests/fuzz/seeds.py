"""Collects seeds: `python tests/fuzz/seeds.py WORK [FOLDER ...]` fills WORK/TARGET from our samples and from folders.

The folders are searched for small files of the formats (real models, collections of damaged ones); several files that
belong together become one input.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import targets
from support import samples
from support.paths import ROOT

LARGEST = 64 << 10


def inputs(target: targets.Target, folders: list[Path]) -> Iterator[bytes]:
    """Every input that files in `folders` make for `target`."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if not targets.matches(target.seeds[0], path.name) or not _small(path):
                continue
            data = path.read_bytes()
            if target.pack is not bytes:
                data = targets.pickle_of(data)
            yield targets.SEPARATOR.join([data, *(_beside(path, pattern) for pattern in target.seeds[1:])])


def _small(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST


def _beside(path: Path, pattern: str) -> bytes:
    fitting = (each for each in sorted(path.parent.iterdir()) if targets.matches(pattern, each.name) and _small(each))
    return next((each.read_bytes() for each in fitting), b"")


def main(arguments: list[str]) -> None:
    work, folders = Path(arguments[0]), [Path(each) for each in arguments[1:]]
    with tempfile.TemporaryDirectory() as made:
        samples.every_kind(Path(made))
        for name, target in targets.TARGETS.items():
            (work / name).mkdir(parents=True, exist_ok=True)
            for data in inputs(target, [Path(made), ROOT / "fixtures", ROOT / "tests" / "data", *folders]):
                if data and len(data) <= LARGEST:
                    (work / name / hashlib.sha1(data).hexdigest()).write_bytes(data)
            print(name, len(list((work / name).iterdir())))


if __name__ == "__main__":
    main(sys.argv[1:])
