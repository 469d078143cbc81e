"""Convert and quantize models between formats; see `convert --help` and the README.

The public names are imported on first use, so that `import converter` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "convert": "pipeline",
    "open_checkpoint": "formats.registry",
    "plan": "pipeline",
    "run": "pipeline",
    "Request": "request",
    "Source": "request",
    "Plan": "planning",
    "Checkpoint": "checkpoint",
    "LazyTensor": "tensors.tensor",
    "TensorInfo": "tensors.tensor",
    "DType": "tensors.dtypes",
    "Progress": "storage.slabs",
    "quantize": "tensors.kernels",
    "dequantize": "tensors.kernels",
    "ConverterError": "errors",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"converter.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'converter' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
