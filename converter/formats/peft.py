"""The folder of an adapter, as PEFT or MLX writes it: adapter_config.json and the weights beside it.

An adapter changes a model and is none: no row of `convert formats`. It is opened for its base (`Source.adapters`), or
with it (`Source.base`), and written where one is extracted; what its config and the names of its tensors mean is known
in `converter/adapters`.
"""

from __future__ import annotations

import json
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import MissingPart
from converter.formats.base import Format, WriteOptions, child
from converter.formats.safetensors import layout as safetensors_layout
from converter.formats.safetensors import open_safetensors
from converter.formats.torch.checkpoint import open_torch
from converter.storage.json import read_json
from converter.storage.layout import Layout, whole_file
from converter.tensors.dtypes import BY_SAFETENSORS

CONFIG = "adapter_config.json"
#: The files that hold an adapter's weights, the first that is there, and what opens them.
WEIGHTS = {
    "adapter_model.safetensors": open_safetensors,
    "adapter_model.bin": open_torch,
    "adapters.safetensors": open_safetensors,
}


def is_adapter(path: Path) -> bool:
    """Whether this is the folder of an adapter, or the file of its weights in it."""
    return (_folder(path) / CONFIG).is_file()


def _folder(path: Path) -> Path:
    return path.parent if path.name in WEIGHTS else path


def open_adapter(path: Path) -> Checkpoint:
    """An adapter by its folder, or by the file of its weights in it; no tensor is read, and no pickle is run.

    Returns:
        A Checkpoint of dialect "peft": tensors under their names in the file, adapter_config.json as `config`.

    Raises:
        MissingPart: no adapter_config.json, or no weights beside it.
        CorruptFile, UnsupportedFeature, OutputError: as the readers of the weights.
    """
    folder = _folder(path)
    if not is_adapter(path):
        raise MissingPart(f"{folder}: no {CONFIG}; give the folder of an adapter that PEFT or MLX saved")
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise MissingPart(f"{folder}: no {' or '.join(WEIGHTS)} beside {CONFIG}; download it, too")
    config = read_json(child(folder, CONFIG, folder), python=True)
    opened = WEIGHTS[name](child(folder, name, folder))
    return opened.replace(
        format="peft", path=folder, dialect="peft", config=config, files=(*opened.files, folder / CONFIG)
    )


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """The folder that PEFT loads: all weights in one file, and the config.

    Raises:
        UnsupportedFeature: a type that safetensors cannot hold.
    """
    labelled = checkpoint.replace(metadata={"format": "pt"})
    weights = safetensors_layout(labelled, target / next(iter(WEIGHTS)), WriteOptions()).files
    said = json.dumps(checkpoint.config, indent=2, ensure_ascii=False) + "\n"
    return Layout((*weights, whole_file(target / CONFIG, said.encode())), target)


#: Of what is written; no reader of models knows it.
ADAPTER = Format(
    name="peft",
    extensions=(),
    dialect="peft",
    description="adapter of PEFT",
    dtypes=frozenset(dtype.name for dtype in BY_SAFETENSORS.values()),
    sniff=lambda path, start: False,
    layout=layout,
    folder=True,
)
