"""A Hugging Face folder: config.json, weights (safetensors or PyTorch, also sharded), tokenizer and small files."""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import MissingPart
from converter.formats.base import Format, child
from converter.formats.safetensors import INDEX_SUFFIX, open_safetensors
from converter.formats.torch_pickle import open_torch

WEIGHTS = ("model.safetensors", f"model{INDEX_SUFFIX}")
# Only where there is no safetensors file, and no other name: such folders hold pickles of other things, too.
TORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")


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
    indexes = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    files = sorted(path.glob("*.safetensors"))
    chosen = [path / name for name in WEIGHTS if (path / name).is_file()][:1] or indexes or files
    if not chosen and (torch := [path / name for name in TORCH_WEIGHTS if (path / name).is_file()][:1]):
        return open_torch(child(path, torch[0].name, path)).replace(format="hf", path=path)
    if len(chosen) == 1:
        return open_safetensors(child(path, chosen[0].name, path)).replace(format="hf", path=path)
    found = ", ".join(file.name for file in (indexes or files)[:4]) or "none"
    raise MissingPart(f"{path}: no model.safetensors and no model{INDEX_SUFFIX} (found: {found})\ngive the file itself")


FORMATS = (
    Format(
        name="hf",
        extensions=(),
        dialect="hf",
        description="Hugging Face folder (config.json, safetensors or PyTorch weights, tokenizer)",
        dtypes=frozenset(),
        sniff=sniff,
        open=open_folder,
        folder=True,
    ),
)
