"""Files that change while they are read: told before anything of them is relied on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from converter.errors import OutputError
from converter.pipeline import convert
from converter.storage.files import MappedFile, open_bytes, remembering


def overwritten(path: Path) -> None:
    """In place, as long as it was."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(size - 4)
        file.write(b"\1\2\3\4")
    os.utime(path, ns=(1, 1))


def longer(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def another(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    times = path.stat()
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(copy, path)


CHANGES = [overwritten, longer, another, os.unlink]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_source_that_changes_fails_the_run(tmp_path: Path, change: Callable[[Path], None]) -> None:
    source, out = tmp_path / "in.safetensors", tmp_path / "out.npz"
    tensors = {name: np.ones((8, 8), np.float32) for name in "ab"}
    safetensors.numpy.save_file(tensors, source)
    with pytest.raises(OutputError, match=r"in\.safetensors: (was changed|cannot be found again)"):
        convert(source, out, threads=1, on_plan=lambda _: change(source))
    assert not out.exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "README.md"])
def test_any_file_of_a_folder(tmp_path: Path, name: str) -> None:
    """A shard that is mapped, and a file that is carried over as it is."""
    source, out = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, file in enumerate(files):
        safetensors.numpy.save_file({f"w{number}": np.ones((8, 8), np.float32)}, source / file)
    (source / "config.json").write_text("{}")
    (source / "README.md").write_text("about the model")
    index = ",".join(f'"w{number}":"{file}"' for number, file in enumerate(files))
    (source / "model.safetensors.index.json").write_text('{"weight_map":{' + index + "}}")
    with pytest.raises(OutputError, match=f"{name}: was changed"):
        convert(source, f"{out}/", threads=1, on_plan=lambda _: overwritten(source / name))
    assert not out.exists()


def test_what_is_only_looked_at_passes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    with remembering() as opened:
        mapped = open_bytes(path)
    path.chmod(0o600)
    path.read_bytes()
    opened.check()
    mapped.close()
    outside = MappedFile(path)  # not remembered by anybody
    longer(path)
    with pytest.raises(OutputError, match="was changed"):
        opened.check()
    outside.close()
