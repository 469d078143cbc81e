"""HDF5 fixtures, and Keras archives around them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from support.paths import DATA

FIXTURES = DATA / "hdf5"


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, body in members.items():
            out.writestr(name, body)
    return path
