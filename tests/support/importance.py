"""Importance matrices and the models they are for, made from a stable generator; and llama.cpp's quantizer on both.

The models are GGUF files whose tensors have the right rows and few of them: the rules that choose types read the
metadata and the names, and llama.cpp's quantizer does not ask how many rows there are. So every file type can be
compared in a second, even those that llama.cpp encodes at half a million weights a second.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support import paths

Floats = npt.NDArray[np.float32]

FIXTURES = paths.FIXTURES / "imatrix"
DATASET, CHUNKS = "calibration.txt", 17


@dataclass(frozen=True)
class Matrix:
    """What llama-imatrix measures: `sums` float32 (matrices, row) and `counts` float32 (matrices,) of each weight."""

    sums: Mapping[str, Floats]
    counts: Mapping[str, Floats]

    def means(self) -> dict[str, Floats]:
        """What llama-quantize makes of them: flat float32 means, 1 where nothing was counted."""
        return {
            name: np.concatenate([
                row / count if count > 0 else np.ones_like(row)
                for row, count in zip(sums, self.counts[name], strict=True)
            ])
            for name, sums in self.sums.items()
        }  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A GGUF model of few rows. `row` is the width, `ffn` that of ffn_down, `n_rows` the rows of every matrix."""

    arch: str
    layers: int
    heads: int
    kv_heads: int
    row: int = 256
    ffn: int = 512
    experts: int = 0
    n_rows: int = 2
    bf16: bool = True
    tied: bool = False


# All that the rules ask: grouped heads or not, 8 experts and others, an output or a tied one, rows that fit or not.
MODELS = {
    "grouped": Model("llama", 16, 8, 2),
    "plain": Model("llama", 16, 4, 4, bf16=False, tied=True),
    "experts8": Model("llama", 8, 4, 4, experts=8),
    "experts16": Model("qwen3moe", 8, 8, 2, ffn=256, experts=16),
    "narrow": Model("llama", 9, 4, 2, row=96, ffn=160),
}


def bell(seed: str, *shape: int) -> Floats:
    """Seeded float32 values, bell-shaped with a standard deviation of about 1; the same everywhere and for ever."""
    generator = np.random.PCG64(zlib.crc32(seed.encode()))
    sixteens = generator.random_raw(int(np.prod(shape))).astype("<u8").view("<u2").reshape(-1, 4)
    centred = (sixteens.astype(np.int32).sum(axis=1) - 131070).astype(np.float32)
    return (centred * np.float32(1 / 37837)).reshape(shape)


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Name and row-major shape of every tensor."""
    n, row, ffn = model.n_rows, model.row, model.ffn
    result: dict[str, tuple[int, ...]] = {"token_embd.weight": (8, row), "output_norm.weight": (row,)}
    if not model.tied:
        result["output.weight"] = (8, row)
    stack, suffix = ((model.experts,), "_exps") if model.experts else ((), "")
    for block in range(model.layers):
        prefix = f"blk.{block}."
        result |= {prefix + f"attn_{part}.weight": (n, row) for part in ("q", "k", "v", "output")}
        result[prefix + "attn_norm.weight"] = (row,)
        result[prefix + f"ffn_gate{suffix}.weight"] = (*stack, n, row)
        result[prefix + f"ffn_up{suffix}.weight"] = (*stack, n, row)
        result[prefix + f"ffn_down{suffix}.weight"] = (*stack, n, ffn)
        if model.experts:
            result[prefix + "ffn_gate_inp.weight"] = (model.experts, row)
    return result


def build_model(name: str, path: Path) -> Path:
    """Write a model of MODELS as a GGUF file."""
    model = MODELS[name]
    tensors = {}
    for tensor, shape in shapes(model).items():
        values = bell(f"{name}/{tensor}", *shape) * np.float32(0.04)
        dense = model.bf16 and len(shape) > 1
        tensors[tensor] = (30, _bf16(values)) if dense else (0, values)
    write_gguf(path, _metadata(model), tensors)
    return path


def _metadata(model: Model) -> dict[str, Any]:
    numbers = {
        "block_count": model.layers, "context_length": 128, "embedding_length": model.row,
        "feed_forward_length": model.ffn, "attention.head_count": model.heads,
        "attention.head_count_kv": model.kv_heads, "rope.dimension_count": model.row // model.heads,
    }  # fmt: skip
    if model.experts:
        numbers |= {"expert_count": model.experts, "expert_used_count": 2, "expert_feed_forward_length": model.ffn}
    return {
        "general.architecture": model.arch,
        **{f"{model.arch}.{key}": value for key, value in numbers.items()},
        f"{model.arch}.attention.layer_norm_rms_epsilon": 1e-5,
    }


def _bf16(values: Floats) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def build_matrix(name: str, tensors: Mapping[str, tuple[int, ...]]) -> Matrix:
    """A matrix for a model: no entry for the embedding and for one attn_v, one expert in five never used."""
    sums, counts = {}, {}
    for tensor, shape in sorted(tensors.items()):
        if len(shape) < 2 or tensor in ("token_embd.weight", "blk.1.attn_v.weight"):
            continue
        n = shape[0] if len(shape) > 2 else 1
        spread = bell(f"{name}/{tensor}/spread", n, shape[-1])
        counts[tensor] = np.array([0 if i % 5 == 4 else 96 + 7 * i for i in range(n)], np.float32)
        square = bell(f"{name}/{tensor}/activation", n, shape[-1]) ** 2 * (np.float32(1) + spread**2 * spread**2)
        sums[tensor] = square * counts[tensor][:, None]
    return Matrix(sums, counts)


# -------------------------------------------------------------------------------------------------- files


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, npt.NDArray[Any]]]) -> None:
    """A GGUF v3 file: metadata of str, int (u32), float (f32) and list[str]; tensors with their ggml type numbers."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        header += _string(key) + _value(value)
    data = b""
    for name, (kind, array) in tensors.items():
        shape = tuple(reversed(array.shape))
        header += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += array.tobytes()
        data += bytes(-len(data) % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + _string(value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case list():
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    raise TypeError(f"{value!r}")


def write_matrix(path: Path, matrix: Matrix, datasets: list[str] | None = None, **changes: Any) -> Path:
    """The matrix as GGUF, as llama-imatrix writes it; `changes` replaces metadata (None drops a key)."""
    metadata: dict[str, Any] = {
        "general.type": "imatrix", "imatrix.datasets": [DATASET] if datasets is None else datasets,
        "imatrix.chunk_count": CHUNKS, "imatrix.chunk_size": 512,
    }  # fmt: skip
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    tensors: dict[str, tuple[int, npt.NDArray[Any]]] = {}
    for name, sums in matrix.sums.items():
        tensors[name + ".in_sum2"] = (0, sums)
        tensors[name + ".counts"] = (0, matrix.counts[name].reshape(-1, 1))
    write_gguf(path, {key: value for key, value in metadata.items() if value is not None}, tensors)
    return path


def dat_bytes(values: Mapping[str, Floats], calls: int = 3, tail: bytes | None = None) -> bytes:
    """The older kind of file; `values` are flat, already times `calls`. `tail` replaces what follows the entries."""
    data = struct.pack("<i", len(values))
    for name, numbers in values.items():
        data += struct.pack("<i", len(name.encode())) + name.encode() + struct.pack("<ii", calls, len(numbers))
        data += numbers.astype("<f4").tobytes()
    return data + (struct.pack("<ii", CHUNKS, len(DATASET)) + DATASET.encode() if tail is None else tail)


def read_dat(path: Path) -> tuple[dict[str, Floats], int, str]:
    """The older kind of file: flat means, chunks, data set."""
    data, position = path.read_bytes(), 4
    means = {}
    for _ in range(struct.unpack_from("<i", data)[0]):
        (length,) = struct.unpack_from("<i", data, position)
        name = data[position + 4 : position + 4 + length].decode()
        calls, size = struct.unpack_from("<ii", data, position + 4 + length)
        position += 12 + length
        means[name] = np.frombuffer(data, "<f4", size, position) / np.float32(calls)
        position += 4 * size
    chunks, length = struct.unpack_from("<ii", data, position)
    return means, chunks, data[position + 8 : position + 8 + length].decode()


# ------------------------------------------------------------------------------------------- the reference


def quantize(
    source: Path,
    target: Path,
    file_type: int,
    means: Mapping[str, Floats],
    matrix_file: str,
    dataset: str | None,
    chunks: int,
    **settings: Any,
) -> bool:
    """What llama-quantize does with an importance matrix: the overrides it makes of it, and `llama_model_quantize`.

    False where llama.cpp refuses. Raises ImportError without llama-cpp-python.
    """
    import llama_cpp

    llama_cpp.llama_log_set(_SILENT, None)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 1
    for name, value in settings.items():
        setattr(parameters, name, value)
    arrays = [np.ascontiguousarray(values) for values in means.values()]
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
    for entry, name, values in zip(entries, means, arrays, strict=False):
        entry.name, entry.data, entry.size = name.encode(), values.ctypes.data_as(pointer), values.size
    facts: list[tuple[str, str | int | None]] = [
        ("file", matrix_file), ("dataset", dataset), ("entries_count", len(arrays)), ("chunks_count", chunks or None),
    ]  # fmt: skip
    overrides = _overrides(llama_cpp, [(f"quantize.imatrix.{key}", value) for key, value in facts if value is not None])
    parameters.imatrix, parameters.kv_overrides = entries, overrides
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    return bool(status == 0)


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SILENT = _LOG(lambda *_: None)
_TAG_INT, _TAG_STR = 0, 3


def _overrides(llama_cpp: Any, pairs: list[tuple[str, str | int]]) -> Any:
    overrides = (llama_cpp.llama_model_kv_override * (len(pairs) + 1))()
    for override, (key, value) in zip(overrides, pairs, strict=False):
        override.key = key.encode()
        if isinstance(value, str):
            override.tag, override.value.val_str = _TAG_STR, value.encode()[:127]
        else:
            override.tag, override.value.val_i64 = _TAG_INT, value
    return overrides
