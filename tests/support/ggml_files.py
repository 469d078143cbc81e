"""The files of llama.cpp and whisper.cpp before GGUF, built by hand from their layout."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

F32, F16, Q4_0, Q5_1, Q8_0, Q4_K = 0, 1, 2, 7, 8, 12
SIZES = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q5_1: (32, 24), Q8_0: (32, 34), Q4_K: (256, 144)}
N_VOCAB, N_EMBD, N_FF = 3, 32, 64
TOKENS = ["a", b"\xff\xfe", "\n"]


def content(name: str, shape: Sequence[int], kind: int) -> bytes:
    """Bytes that only this tensor has."""
    block, size = SIZES[kind]
    rng = np.random.default_rng(zlib.crc32(name.encode()) + kind)
    return rng.integers(0, 256, int(np.prod(shape)) // block * size, np.uint8).tobytes()


def tensor(at: int, name: str, shape: Sequence[int], kind: int, align: int = 1, data: bytes | None = None) -> bytes:
    """A tensor's record that begins at offset `at` of the file."""
    head = struct.pack(f"<3I{len(shape)}I", len(shape), len(name.encode()), kind, *reversed(shape)) + name.encode()
    return head + bytes(-(at + len(head)) % align) + (content(name, shape, kind) if data is None else data)


def joined(head: bytes, shapes: dict[str, tuple[tuple[int, ...], int]], align: int = 1) -> bytes:
    for name, (shape, kind) in shapes.items():
        head += tensor(len(head), name, shape, kind, align)
    return head


def vocabulary(scores: bool) -> bytes:
    raw = [token if isinstance(token, bytes) else token.encode() for token in TOKENS]
    return b"".join(
        struct.pack("<I", len(token)) + token + (struct.pack("<f", -1.5 * i) if scores else b"")
        for i, token in enumerate(raw)
    )


def llama_shapes(kind: int, layers: int = 2) -> dict[str, tuple[tuple[int, ...], int]]:
    square, up, down = (N_EMBD, N_EMBD), (N_FF, N_EMBD), (N_EMBD, N_FF)
    block: dict[str, tuple[tuple[int, ...], int]] = {f"attention.w{x}": (square, kind) for x in "qkvo"}
    block |= {"attention_norm": ((N_EMBD,), F32), "ffn_norm": ((N_EMBD,), F32)}
    block |= {"feed_forward.w1": (up, kind), "feed_forward.w2": (down, kind), "feed_forward.w3": (up, kind)}
    top = {"tok_embeddings.weight": ((N_VOCAB, N_EMBD), kind), "norm.weight": ((N_EMBD,), F32)}
    top["output.weight"] = ((N_VOCAB, N_EMBD), kind)
    return top | {f"layers.{i}.{name}.weight": entry for i in range(layers) for name, entry in block.items()}


def llama(magic: bytes = b"tjgg", version: int | None = 3, kind: int = Q4_0, layers: int = 2) -> bytes:
    head = magic + (struct.pack("<I", version) if version is not None else b"")
    head += struct.pack("<7I", N_VOCAB, N_EMBD, 256, 4, layers, N_EMBD // 4, 2) + vocabulary(version is not None)
    return joined(head, llama_shapes(kind, layers), 32 if magic == b"tjgg" else 1)


def whisper_shapes(kind: int, audio: int = 1, text: int = 1) -> dict[str, tuple[tuple[int, ...], int]]:
    """As many tensors as Whisper has; their names need not be its names."""
    names = [f"encoder.{i}" for i in range(7)] + [f"decoder.{i}" for i in range(4)]
    names += [f"encoder.blocks.{b}.{i}" for b in range(audio) for i in range(15)]
    names += [f"decoder.blocks.{b}.{i}" for b in range(text) for i in range(24)]
    return {name: ((2, 32), kind if i % 2 else F32) for i, name in enumerate(names)}


def whisper_head(ftype: int = 1, mels: int = 4) -> bytes:
    head = b"lmgg" + struct.pack("<11I", 3, 10, 32, 2, 1, 10, 32, 2, 1, mels, ftype) + struct.pack("<2I", mels, 201)
    return head + np.arange(mels * 201, dtype="<f4").tobytes() + struct.pack("<I", len(TOKENS)) + vocabulary(False)


def whisper(ftype: int = 1, kind: int = F16) -> bytes:
    return joined(whisper_head(ftype), whisper_shapes(kind))


GOOD, WHISPER = llama(), whisper()
