"""A Hugging Face folder: config.json, safetensors weights (single or sharded), tokenizer and small files."""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import MissingPart
from converter.formats.base import Format
from converter.formats.safetensors import INDEX_SUFFIX, folder_assets, open_files, open_safetensors

WEIGHTS = ("model.safetensors", f"model{INDEX_SUFFIX}")


def sniff(path: Path, start: bytes) -> bool:
    """A folder with a config.json or with safetensors weights."""
    return path.is_dir() and ((path / "config.json").is_file() or any(path.glob("*.safetensors")))


def open_folder(path: Path) -> Checkpoint:
    """The folder's weights with its config and assets. Only weights, config and tokenizer files are opened.

    Raises:
        MissingPart: no config.json, or no weights that can be told apart.
        CorruptFile, UnsupportedFeature: what the weights' reader raises.
    """
    if not (path / "config.json").is_file():
        raise MissingPart(f"{path}: no config.json; give the weights file itself to convert its tensors as they are")
    for name in WEIGHTS:
        if (path / name).is_file():
            return open_safetensors(path / name).replace(format="hf", path=path)
    indexes = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    if len(indexes) == 1:
        return open_safetensors(indexes[0]).replace(format="hf", path=path)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1 and not indexes:
        return open_files(path, files, None, folder_assets(path), "hf")
    found = ", ".join(file.name for file in (indexes or files)[:4]) or "none"
    raise MissingPart(f"{path}: no model.safetensors and no model{INDEX_SUFFIX} (found: {found})\ngive the file itself")


FORMATS = (
    Format(
        name="hf",
        extensions=(),
        dialect="hf",
        description="Hugging Face folder (config.json, safetensors, tokenizer)",
        dtypes=frozenset(),
        sniff=sniff,
        open=open_folder,
        folder=True,
    ),
)
