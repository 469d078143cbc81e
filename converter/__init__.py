"""Convert and quantize models between formats; see `convert --help` and the README.

The public names are imported on first use, so that `import converter` costs nothing.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing's, without its import

if TYPE_CHECKING:  # the same names for type checkers, to whom __getattr__ would make any name good
    from converter.checkpoint import Checkpoint as Checkpoint
    from converter.errors import Cancelled as Cancelled
    from converter.errors import ConverterError as ConverterError
    from converter.formats.registry import open_checkpoint as open_checkpoint
    from converter.pipeline import convert as convert
    from converter.pipeline import convert_several as convert_several
    from converter.pipeline import plan as plan
    from converter.pipeline import run as run
    from converter.planning.plan import Plan as Plan
    from converter.request import Request as Request
    from converter.request import Source as Source
    from converter.storage.slabs import Progress as Progress
    from converter.storage.slabs import until as until
    from converter.tensors.dtypes import DType as DType
    from converter.tensors.kernels import dequantize as dequantize
    from converter.tensors.kernels import quantize as quantize
    from converter.tensors.tensor import LazyTensor as LazyTensor
    from converter.tensors.tensor import TensorInfo as TensorInfo

__version__ = "0.1.0"

_PUBLIC = {
    "convert": "pipeline",
    "convert_several": "pipeline",
    "open_checkpoint": "formats.registry",
    "plan": "pipeline",
    "run": "pipeline",
    "Request": "request",
    "Source": "request",
    "Plan": "planning.plan",
    "Checkpoint": "checkpoint",
    "LazyTensor": "tensors.tensor",
    "TensorInfo": "tensors.tensor",
    "DType": "tensors.dtypes",
    "Progress": "storage.slabs",
    "until": "storage.slabs",
    "quantize": "tensors.kernels",
    "dequantize": "tensors.kernels",
    "Cancelled": "errors",
    "ConverterError": "errors",
}

__all__ = sorted(_PUBLIC)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in _PUBLIC:
            return getattr(importlib.import_module(f"converter.{_PUBLIC[name]}"), name)
        raise AttributeError(f"module 'converter' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
