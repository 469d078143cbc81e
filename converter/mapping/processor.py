"""What a folder says of the images its model is given: preprocessor_config.json and processor_config.json together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.storage.json import read_json

#: In this order; what a later one says counts. Some have the image's part in an object of its own.
FILES = (("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor"))


def processor_config(assets: Mapping[str, Path]) -> dict[str, Any]:
    """Their settings as one object; empty where there are none.

    Raises:
        CorruptFile: a file is no JSON object.
    """
    merged: dict[str, Any] = {}
    for name, part in FILES:
        if name in assets:
            content = read_json(assets[name])
            inner = content.get(part)
            merged |= {**content, **(inner if isinstance(inner, dict) else {})}
    return merged
