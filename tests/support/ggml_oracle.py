"""ggml itself, through ctypes: the library libggml-base that llama-cpp-python installs.

The oracle of the kernels' bytes: `quantize` is `ggml_quantize_chunk`, `dequantize` the `to_float`
of the type's traits. Tests skip where the library is not installed.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from converter.tensors.dtypes import DType


class _Traits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def _find() -> Path | None:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    return next((folder / name for name in names if (folder / name).exists()), None)


@cache
def _library() -> ctypes.CDLL:
    path = _find()
    assert path is not None
    lib = ctypes.CDLL(str(path))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    )
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    return lib


def available() -> bool:
    return _find() is not None


needs_ggml = pytest.mark.skipif(not available(), reason="libggml-base not found: pip install llama-cpp-python")


def quantize(rows: np.ndarray, dtype: DType, weights: np.ndarray | None = None) -> np.ndarray:
    """`ggml_quantize_chunk` over (n, row) float32; returns (n, row_nbytes) uint8."""
    n, row = rows.shape
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.zeros((n, dtype.row_nbytes(row)), np.uint8)
    pointer = None if weights is None else np.ascontiguousarray(weights, np.float32).ctypes.data
    _library().ggml_quantize_chunk(dtype.gguf, rows.ctypes.data, out.ctypes.data, 0, n, row, pointer)
    return out


def dequantize(data: np.ndarray, dtype: DType) -> np.ndarray:
    """ggml's `to_float` over (n, row_nbytes) uint8; returns (n, row) float32."""
    data = np.ascontiguousarray(data)
    n, nbytes = data.shape
    if dtype.name == "F32":  # ggml has no to_float for what is float already
        return data.view(np.float32)
    out = np.zeros((n, nbytes // dtype.type_size * dtype.block_size), np.float32)
    _library().ggml_get_type_traits(dtype.gguf).contents.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out
