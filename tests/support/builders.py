"""Files built byte by byte, so that a test can say exactly which of them is wrong.

Nothing here uses the package under test: what a reader is checked against comes from the formats' specifications.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from support.paths import FIXTURES

# ------------------------------------------------------------------------------------------- safetensors

F32_2X3 = np.arange(6, dtype="<f4").tobytes()


def entry(dtype: str, shape: Sequence[Any], start: int, stop: int) -> dict[str, Any]:
    """One entry of a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file; the header as an object, or its own bytes; `length` is what the file claims of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ST_TYPES = {
    "f4": "F32",
    "f2": "F16",
    "f8": "F64",
    "i1": "I8",
    "i2": "I16",
    "i4": "I32",
    "i8": "I64",
    "u1": "U8",
    "u4": "U32",
}


def safetensors_of(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """A valid file of numpy arrays, in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = entry(ST_TYPES[array.dtype.str[1:]], array.shape, len(data), len(data) + len(raw))
        data += raw
    return safetensors(header, data)


# -------------------------------------------------------------------------------------------------- gguf

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
SCALARS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
T_F32, T_F16, T_Q4_0, T_Q8_0, T_Q4_K, T_I8 = 0, 1, 2, 8, 12, 24


def string(text: str | bytes, *, length: int | None = None, order: str = "<") -> bytes:
    """A GGUF string; `length` is what it claims."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(order + "Q", len(data) if length is None else length) + data


def value(kind: int, content: Any, order: str = "<") -> bytes:
    """The bytes of one value, without its type."""
    return string(content, order=order) if kind == STR else struct.pack(order + SCALARS[kind], content)


def pair(key: str | bytes, kind: int, content: Any, order: str = "<") -> bytes:
    """One key with its scalar value."""
    return string(key, order=order) + struct.pack(order + "I", kind) + value(kind, content, order)


def array(kind: int, items: Iterable[Any], *, count: int | None = None) -> bytes:
    """The bytes of an array: element type, count (or the one it claims) and elements; bytes stand for themselves."""
    items = list(items)
    body = b"".join(item if isinstance(item, bytes) else value(kind, item) for item in items)
    return struct.pack("<IQ", kind, len(items) if count is None else count) + body


def array_pair(key: str, kind: int, items: Iterable[Any], *, count: int | None = None) -> bytes:
    """One key with an array."""
    return string(key) + struct.pack("<I", ARR) + array(kind, items, count=count)


def tensor(
    name: str | bytes, dims: Sequence[int], kind: int, offset: int, *, n_dims: int | None = None, order: str = "<"
) -> bytes:
    """One line of the tensor table; `dims` in GGUF's order, the row first."""
    n_dims = len(dims) if n_dims is None else n_dims
    return string(name, order=order) + struct.pack(f"{order}I{len(dims)}QIQ", n_dims, *dims, kind, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    order: str = "<",
) -> bytes:
    """A GGUF file; the counts as they are or as it claims."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    header = b"GGUF" + struct.pack(order + "IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return header + (bytes(-len(header) % alignment) + data if tensors or data else b"")


ARCH = pair("general.architecture", STR, "llama")
LLAMA_PAIRS = (
    ARCH,
    pair("llama.block_count", U32, 0),
    pair("llama.embedding_length", U32, 32),
    pair("llama.feed_forward_length", U32, 64),
    pair("llama.attention.head_count", U32, 4),
)
EMBEDDING = np.arange(16 * 32, dtype="<f4").tobytes()


def small_gguf(*, version: int = 3) -> bytes:
    """A valid file of two tensors: F32 (2, 3) `a` and Q8_0 (1, 32) `b`."""
    data = F32_2X3 + bytes(8) + bytes(range(34)) + bytes(30)
    return gguf([ARCH], [tensor("a", (3, 2), T_F32, 0), tensor("b", (32, 1), T_Q8_0, 32)], data, version=version)


# ------------------------------------------------------------------------------------------- properties


def examples(count: int) -> settings:
    """How long a property is tried: always the same `count` cases, or CONVERTER_FUZZ times as many random ones."""
    times = int(os.environ.get("CONVERTER_FUZZ", "0"))
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=count * (times or 1), derandomize=not times, deadline=None, suppress_health_check=checks
    )


# ---------------------------------------------------------------------------------------------- outputs


def assembled(file: Any) -> bytes:
    """The bytes of a writer's file layout, put together in the simplest way there is."""
    out = bytearray(file.size)
    out[: len(file.header)] = file.header
    for slot in file.slots:
        data = slot.tensor.rows(0, slot.tensor.info.n_rows).tobytes()
        out[slot.offset : slot.offset + len(data)] = data
    return bytes(out)


# ------------------------------------------------------------------------------------- Hugging Face folders

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "float32",
}  # fmt: skip


def llama_shapes(vocab: int = 512, layers: int = 1) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that CONFIG asks for."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, 32)}
    for block in range(layers):
        prefix = f"model.layers.{block}."
        shapes |= {
            prefix + "input_layernorm.weight": (32,),
            prefix + "post_attention_layernorm.weight": (32,),
            prefix + "self_attn.q_proj.weight": (32, 32),
            prefix + "self_attn.k_proj.weight": (16, 32),
            prefix + "self_attn.v_proj.weight": (16, 32),
            prefix + "self_attn.o_proj.weight": (32, 32),
            prefix + "mlp.gate_proj.weight": (64, 32),
            prefix + "mlp.up_proj.weight": (64, 32),
            prefix + "mlp.down_proj.weight": (32, 64),
        }
    return shapes | {"model.norm.weight": (32,), "lm_head.weight": (vocab, 32)}


def llama_weights(vocab: int = 512, layers: int = 1) -> dict[str, Any]:
    """Seeded F32 weights of that model."""
    random = np.random.default_rng(7)
    return {name: random.standard_normal(shape, np.float32) for name, shape in llama_shapes(vocab, layers).items()}


def llama_folder(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    vocab: int = 512,
    tokenizer: bool = True,
) -> Path:
    """A small Llama with the 512-token tokenizer of stories260K; `config` changes single keys of CONFIG."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = {**CONFIG, "vocab_size": vocab, **(config or {})}
    (folder / "config.json").write_text(json.dumps({key: item for key, item in merged.items() if item is not None}))
    (folder / "model.safetensors").write_bytes(safetensors_of(weights if weights is not None else llama_weights(vocab)))
    if tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(FIXTURES / "stories260K" / name, folder / name)
    return folder


def sharded(folder: Path, shards: Sequence[Mapping[str, Any]], weight_map: Mapping[str, Any] | None = None) -> Path:
    """Weights in `shards` with an index (`weight_map` replaces the true one), beside a config.json; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    true: dict[str, Any] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / name).write_bytes(safetensors_of(shard))
        true |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 0}, "weight_map": true if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
