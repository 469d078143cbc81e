"""ggml itself, through ctypes: the library libggml-base that llama-cpp-python installs.

The oracle of the kernels' bytes: `quantize` is `ggml_quantize_chunk`, `dequantize` the `to_float`
of the type's traits. Tests skip where the library is not installed.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

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


class _Memory(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def written_gguf(path: Path, metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """A file of ggml's own writer: metadata of str, int (u32) and list[str]; float32 arrays of two axes."""
    lib, pointer = ctypes.CDLL(str(_find())), ctypes.c_void_p
    for name in ("gguf_init_empty", "ggml_init", "ggml_new_tensor_2d", "ggml_get_data"):
        getattr(lib, name).restype = pointer
    lib.ggml_init.argtypes = (_Memory,)
    lib.ggml_new_tensor_2d.argtypes = (pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    size = sum(array.nbytes + 1024 for array in arrays.values()) + 1024
    file, memory = pointer(lib.gguf_init_empty()), pointer(lib.ggml_init(_Memory(size, None, False)))
    for key, value in metadata.items():
        if isinstance(value, str):
            lib.gguf_set_val_str(file, key.encode(), value.encode())
        elif isinstance(value, int):
            lib.gguf_set_val_u32(file, key.encode(), ctypes.c_uint32(value))
        else:
            texts = (ctypes.c_char_p * len(value))(*(text.encode() for text in value))
            lib.gguf_set_arr_str(file, key.encode(), texts, ctypes.c_size_t(len(value)))
    for name, array in arrays.items():
        tensor = pointer(lib.ggml_new_tensor_2d(memory, 0, array.shape[1], array.shape[0]))
        lib.ggml_set_name(tensor, name.encode())
        ctypes.memmove(lib.ggml_get_data(tensor), np.ascontiguousarray(array, np.float32).ctypes.data, array.nbytes)
        lib.gguf_add_tensor(file, tensor)
    assert lib.gguf_write_to_file(file, str(path).encode(), ctypes.c_bool(False))
    lib.gguf_free(file)
    lib.ggml_free(memory)
