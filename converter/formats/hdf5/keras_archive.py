"""Keras 3 archives out: the configuration as it was read, the weights laid out anew inside a zip archive.

Source: what `keras.saving` writes. Members are stored; the weights begin at a multiple of 64, so that they can be
mapped.
"""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature, short
from converter.formats.base import WriteOptions
from converter.formats.hdf5 import writer
from converter.storage.layout import Layout, whole_file
from converter.storage.zip_writer import Member, Style, archive

WEIGHTS, CONFIG, METADATA, ASSETS = "model.weights.h5", "config.json", "metadata.json", "assets/"
# Member -> the metadata key it travels under; assets have their own names.
TEXTS = {METADATA: "keras_metadata", CONFIG: "model_config"}
MAX_NAME = 4096
_STYLE = Style((0xFFFF, b"", b"\0"))  # padded by an extra field that nobody has


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """One archive; the configuration must have been read from one, for nothing else has it whole.

    Raises:
        UnsupportedFeature: no configuration, an asset's name that is no plain path, or what HDF5 cannot hold.
    """
    if any(key not in checkpoint.metadata for key in TEXTS.values()):
        raise UnsupportedFeature(
            f"{target}: an archive has the model's configuration, which comes from another .keras file only\n"
            "write a .weights.h5 and load it by model.load_weights"
        )
    texts = {name: checkpoint.metadata[key].encode("utf-8") for name, key in TEXTS.items()}
    texts |= {key: text.encode("utf-8") for key, text in checkpoint.metadata.items() if key.startswith(ASSETS)}
    inside = {key: text for key, text in checkpoint.metadata.items() if key not in (*TEXTS.values(), *texts)}
    (weights,) = writer.layout(checkpoint.replace(metadata=inside), target, options).files
    files = {name: whole_file(target, text) for name, text in texts.items()} | {WEIGHTS: weights}
    for name in files:
        _check(target, name)
    return Layout((archive(target, [Member(name, file) for name, file in files.items()], _STYLE),))


def _check(target: Path, name: str) -> None:
    parts = name.split("/")
    plain = name.isprintable() and not any(character in name for character in "\\:")
    if len(name) > MAX_NAME or not plain or any(part in ("", ".", "..") for part in parts):
        raise UnsupportedFeature(f"{target}: {short(name)} cannot be a file's name in the archive")
