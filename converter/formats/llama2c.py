"""Checkpoints of llama2.c, read: version 0 (no magic), 1 (F32) and 2 (8-bit groups).

Source: llama2.c's export.py and the readers in run.c and runq.c. A file is a header of seven int32 (dim, hidden_dim,
n_layers, n_heads, n_kv_heads, vocab_size, seq_len) and the weights in a fixed order, so header and size must agree to
the byte; that is also how version 0, which begins with its numbers, is told from other files. In version 2 each
matrix is its int8 numbers followed by one F32 scale per group, as runq.c reads them.

The names given are those of Hugging Face's Llama, and q and k get its order of rows: llama2.c rotates neighbours,
Hugging Face rotates halves. The tokenizer.bin beside a model has no pieces' types and is not read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature
from converter.events import Event, Ignored, Note
from converter.formats.base import Format
from converter.formats.hub import folder_assets
from converter.storage.files import Bytes, open_bytes, regular_size
from converter.tensors.dtypes import F32
from converter.tensors.ops import Rope
from converter.tensors.streams import compose
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

MAGIC = struct.pack("<I", 0x616B3432)
HEADER_NBYTES = 256
MAX_LAYERS = 1 << 14
FIELDS = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")

# Key -> Hugging Face name, shape in sizes of the header, sizes key of the heads whose rows are reordered.
TENSORS = {
    "embedding": ("model.embed_tokens.weight", ("vocab", "dim"), None),
    "attention_norm": ("model.layers.{block}.input_layernorm.weight", ("dim",), None),
    "wq": ("model.layers.{block}.self_attn.q_proj.weight", ("dim", "dim"), "heads"),
    "wk": ("model.layers.{block}.self_attn.k_proj.weight", ("kv_dim", "dim"), "kv_heads"),
    "wv": ("model.layers.{block}.self_attn.v_proj.weight", ("kv_dim", "dim"), None),
    "wo": ("model.layers.{block}.self_attn.o_proj.weight", ("dim", "dim"), None),
    "ffn_norm": ("model.layers.{block}.post_attention_layernorm.weight", ("dim",), None),
    "w1": ("model.layers.{block}.mlp.gate_proj.weight", ("hidden", "dim"), None),
    "w2": ("model.layers.{block}.mlp.down_proj.weight", ("dim", "hidden"), None),
    "w3": ("model.layers.{block}.mlp.up_proj.weight", ("hidden", "dim"), None),
    "norm": ("model.norm.weight", ("dim",), None),
    "cosines": ("freqs_cos", ("context", "half_head"), None),
    "sines": ("freqs_sin", ("context", "half_head"), None),
    "head": ("lm_head.weight", ("vocab", "dim"), None),
}
# The order in the file: of all layers each tensor of the first kind, then each of the second, ...
_MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
ORDER = {
    0: ("embedding", "attention_norm", *_MATRICES[:4], "ffn_norm", *_MATRICES[4:], "norm", "cosines", "sines"),
    1: ("attention_norm", "ffn_norm", "norm", "embedding", *_MATRICES),
    2: ("attention_norm", "ffn_norm", "norm", "embedding", *_MATRICES),
}
COMPUTED = ("cosines", "sines")
NORMS = ("attention_norm", "ffn_norm", "norm")
# What run.c has as constants.
CONSTANTS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2, "attention_bias": False, "mlp_bias": False,
    "torch_dtype": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class _Header:
    """`start` is where the weights begin; `group` is the elements per scale of version 2, else 0."""

    version: int
    sizes: Mapping[str, int]
    shared: bool
    start: int
    group: int = 0


@dataclass(frozen=True)
class _Part:
    """One tensor's place in the file."""

    key: str
    name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def sniff(path: Path, start: bytes) -> bool:
    """The magic; or seven plausible sizes that give the file's size to the byte."""
    if start[:4] == MAGIC:
        return True
    header = _legacy(start)
    return header is not None and _end(header) == regular_size(path)


def _legacy(start: bytes) -> _Header | None:
    """Version 0, where the first numbers can be it; a negative vocabulary says that the head is not shared."""
    if len(start) < 28:
        return None
    numbers = struct.unpack("<7i", start[:28])
    sizes = _sizes((*numbers[:5], abs(numbers[5]), numbers[6]))
    return _Header(0, sizes, numbers[5] > 0, 28) if sizes else None


def _sizes(numbers: tuple[int, ...]) -> dict[str, int]:
    """Sizes by name, and those that follow from them; nothing where no model has them."""
    sizes = dict(zip(FIELDS, numbers, strict=True))
    if min(numbers) <= 0 or sizes["layers"] > MAX_LAYERS:
        return {}
    if sizes["dim"] % (2 * sizes["heads"]) or sizes["heads"] % sizes["kv_heads"]:
        return {}
    head = sizes["dim"] // sizes["heads"]
    return {**sizes, "kv_dim": sizes["kv_heads"] * head, "half_head": head // 2}


def open_llama2c(path: Path) -> Checkpoint:
    """A `.bin` of llama2.c, under Hugging Face names and with a config.

    The tokenizer comes from the file's own folder where there is one that Hugging Face models have.

    Raises:
        CorruptFile: impossible sizes, or a file of another size than they give.
        UnsupportedFeature: a version above 2.
    """
    mapped = open_bytes(path)
    try:
        header = _header(mapped)
        if (end := _end(header)) != mapped.size:
            raise CorruptFile(
                f"{path}: its header makes a file of {end} bytes, it has {mapped.size}\n"
                "the file is truncated or no llama2.c checkpoint; download it again"
            )
        parts = list(_parts(header))
        tensors = {part.name: _tensor(mapped, header, part) for part in parts if part.key not in COMPUTED}
        assets = {name: file for name, file in folder_assets(path.parent).items() if name != "config.json"}
    except BaseException:
        mapped.close()
        raise
    return Checkpoint(
        format="llama2c",
        path=path,
        dialect="hf",
        tensors=tensors,
        config=_config(header),
        assets=assets,
        events=_events(header),
        files=(path,),
        closers=(mapped.close,),
    )


def _header(mapped: Bytes) -> _Header:
    start = mapped.view(0, min(mapped.size, HEADER_NBYTES), "the header").tobytes()
    header = _versioned(mapped.path, start) if start[:4] == MAGIC else _legacy(start)
    if header is None or not header.sizes:
        raise CorruptFile(f"{mapped.path}: its first numbers are not the sizes of a llama2.c model")
    return header


def _versioned(path: Path, start: bytes) -> _Header:
    if len(start) < HEADER_NBYTES:
        raise CorruptFile(f"{path}: {len(start)} bytes are less than a header of {HEADER_NBYTES}")
    version, *numbers, shared, group = struct.unpack("<i7iBi", start[4:41])
    if version not in (1, 2):
        raise UnsupportedFeature(f"{path}: llama2.c version {version}; versions 0 to 2 can be read")
    used = 41 if version == 2 else 37
    if shared > 1 or start[used:].strip(b"\0"):
        raise CorruptFile(f"{path}: flags or padding of the header that version {version} does not have")
    sizes = _sizes(tuple(numbers))
    if version == 1:
        return _Header(1, sizes, bool(shared), HEADER_NBYTES)
    matrices = ("vocab", "dim", "kv_dim", "hidden")
    if group <= 0 or any(sizes.get(name, 0) * sizes.get("dim", 0) % group for name in matrices):
        raise CorruptFile(f"{path}: matrices do not divide into groups of {group}")
    return _Header(2, sizes, bool(shared), HEADER_NBYTES, group)


def _order(header: _Header) -> tuple[str, ...]:
    return ORDER[header.version] + (() if header.shared else ("head",))


def _scales(header: _Header, key: str) -> bool:
    return header.version == 2 and key not in NORMS


def _nbytes(header: _Header, key: str) -> int:
    n_elements = math.prod(header.sizes[size] for size in TENSORS[key][1])
    return n_elements + 4 * (n_elements // header.group) if _scales(header, key) else 4 * n_elements


def _end(header: _Header) -> int:
    """Bytes that the file must have."""
    counts = {key: header.sizes["layers"] if "{block}" in TENSORS[key][0] else 1 for key in _order(header)}
    return header.start + sum(count * _nbytes(header, key) for key, count in counts.items())


def _parts(header: _Header) -> Iterator[_Part]:
    """Every tensor in the order of the file; called when the file is known to be as long as they are."""
    offset = header.start
    for key in _order(header):
        name, shape, _ = TENSORS[key]
        for block in range(header.sizes["layers"] if "{block}" in name else 1):
            part = _Part(
                key, name.format(block=block), tuple(header.sizes[size] for size in shape), offset, _nbytes(header, key)
            )
            yield part
            offset += part.nbytes


def _tensor(mapped: Bytes, header: _Header, part: _Part) -> LazyTensor:
    tensor = (_grouped if _scales(header, part.key) else _plain)(mapped, header, part)
    heads = TENSORS[part.key][2]
    if heads is None:
        return tensor
    return compose((Rope(header.sizes[heads], undo=True),), [tensor], [part.name])[0]


def _plain(mapped: Bytes, header: _Header, part: _Part) -> LazyTensor:
    info = TensorInfo(part.name, part.shape, F32)
    row = info.row_nbytes

    def read(start: int, stop: int) -> Rows:
        data = mapped.view(part.offset + start * row, (stop - start) * row, f"tensor {part.name}")
        return data.reshape(stop - start, row)

    return LazyTensor(info, read, f"{mapped.path}@{part.offset}")


def _grouped(mapped: Bytes, header: _Header, part: _Part) -> LazyTensor:
    """Number times scale of its group; groups run through the rows."""
    info, group = TensorInfo(part.name, part.shape, F32), header.group
    row, scales_at = info.row, part.offset + info.n_elements

    def read(start: int, stop: int) -> Rows:
        low, high = start * row, stop * row
        first, last = low // group, -(-high // group)
        numbers = mapped.view(part.offset + low, high - low, f"tensor {part.name}").view(np.int8)
        scales = mapped.view(scales_at + 4 * first, 4 * (last - first), f"the scales of {part.name}").view("<f4")
        each = np.repeat(scales, group)[low - first * group : high - first * group]
        with np.errstate(all="ignore"):
            values: Rows = np.asarray(numbers * each, "<f4").view(np.uint8)
        return values.reshape(stop - start, 4 * row)

    return LazyTensor(info, read, f"{mapped.path}@{part.offset}", work_nbytes=9 * row + 8 * group)


def _config(header: _Header) -> dict[str, Any]:
    sizes = header.sizes
    return {
        **CONSTANTS,
        "hidden_size": sizes["dim"],
        "intermediate_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "head_dim": 2 * sizes["half_head"],
        "vocab_size": sizes["vocab"],
        "max_position_embeddings": sizes["context"],
        "tie_word_embeddings": header.shared,
    }


def _events(header: _Header) -> tuple[Event, ...]:
    if header.version == 0:
        return (Ignored("freqs_cos"), Ignored("freqs_sin"))
    if header.version == 2:
        return (Note(f"matrices of 8-bit numbers in groups of {header.group} are decoded to F32"),)
    return ()


FORMATS = (
    Format(
        name="llama2c",
        extensions=(".bin",),
        dialect="hf",
        description="llama2.c checkpoint, versions 0 to 2",
        dtypes=frozenset({F32.name}),
        sniff=sniff,
        open=open_llama2c,
    ),
)
