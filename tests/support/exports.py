"""Graphs that other exporters made of tiny models (`fixtures/make_exports.py`), and the folders of these models."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

from support import architectures
from support.paths import FIXTURES

FILES = FIXTURES / "exports"
NAMES = sorted(path.name.removesuffix(".onnx.xz") for path in FILES.glob("*.onnx.xz"))


@cache
def models() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / "models.json").read_text("utf-8"))
    return found


def folder(model: str, parent: Path) -> Path:
    """The folder of a model, as save_pretrained would write it."""
    said = models()[model]
    return architectures.write(parent / model, {"config.json": said["config"]}, "", said["tensors"])


def config(model: str, parent: Path) -> Path:
    """The model's config.json, in a folder that is there."""
    path = parent / "config.json"
    path.write_text(json.dumps(models()[model]["config"]), "utf-8")
    return path


def graph(name: str, parent: Path) -> Path:
    """A recorded graph, in a folder of the model's name, from which `general.name` is derived."""
    path = parent / name / name.rpartition("-")[2] / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(lzma.decompress((FILES / f"{name}.onnx.xz").read_bytes()))
    return path
