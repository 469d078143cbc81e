"""llama.cpp's quantizer without an importance matrix: the function that the program llama-quantize calls."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import pytest

needs_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="pip install llama-cpp-python")
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SILENT = _LOG(lambda *_: None)


def quantize(source: Path, target: Path, file_type: int, **settings: Any) -> bool:
    """`target` out of the GGUF `source`; False where llama.cpp refuses. `settings` are fields of its parameters."""
    import llama_cpp

    llama_cpp.llama_log_set(_SILENT, None)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 1
    for name, value in settings.items():
        setattr(parameters, name, value)
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    return bool(status == 0)
