"""The three versions of llama2.c's file, built by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

DIM, HIDDEN, LAYERS, HEADS, KV, VOCAB, CONTEXT = SIZES = (16, 24, 2, 4, 2, 10, 6)
HEAD = DIM // HEADS
# export.py's order of the tensors: name in the original Llama, shape; one entry stands for all layers.
NORMS = {"attention_norm": (DIM,), "ffn_norm": (DIM,)}
MATRICES = {
    "wq": (DIM, DIM), "wk": (KV * HEAD, DIM), "wv": (KV * HEAD, DIM), "wo": (DIM, DIM),
    "w1": (HIDDEN, DIM), "w2": (DIM, HIDDEN), "w3": (HIDDEN, DIM),
}  # fmt: skip


def weights(shared: bool) -> dict[str, np.ndarray]:
    """Tensors by `name` or `name.layer`."""
    rng = np.random.default_rng(5)
    shapes = {f"{name}.{i}": shape for name, shape in {**NORMS, **MATRICES}.items() for i in range(LAYERS)}
    shapes |= {"embedding": (VOCAB, DIM), "norm": (DIM,)} | ({} if shared else {"head": (VOCAB, DIM)})
    return {name: rng.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}


def layers(name: str) -> list[str]:
    return [f"{name}.{i}" for i in range(LAYERS)]


def version0(tensors: Mapping[str, np.ndarray]) -> bytes:
    order = ["embedding", *layers("attention_norm")]
    order += [key for name in ("wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3") for key in layers(name)]
    vocab = VOCAB if "head" not in tensors else -VOCAB
    head = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV, vocab, CONTEXT)
    tables = np.zeros((2, CONTEXT, HEAD // 2), "<f4").tobytes()
    body = b"".join(tensors[key].tobytes() for key in [*order, "norm"])
    return head + body + tables + (tensors["head"].tobytes() if "head" in tensors else b"")


def header(version: int, shared: bool, group: bytes = b"", sizes: tuple[int, ...] = SIZES) -> bytes:
    return (struct.pack("<Ii7iB", 0x616B3432, version, *sizes, shared) + group).ljust(256, b"\0")


def ordered(tensors: Mapping[str, np.ndarray]) -> tuple[list[str], list[str]]:
    norms = [*layers("attention_norm"), *layers("ffn_norm"), "norm"]
    matrices = ["embedding", *(key for name in MATRICES for key in layers(name))]
    return norms, matrices + (["head"] if "head" in tensors else [])


def version1(tensors: Mapping[str, np.ndarray]) -> bytes:
    norms, matrices = ordered(tensors)
    return header(1, "head" not in tensors) + b"".join(tensors[key].tobytes() for key in norms + matrices)


def version2(tensors: Mapping[str, np.ndarray], group: int) -> tuple[bytes, dict[str, np.ndarray]]:
    """The file, and what its numbers times scales are."""
    norms, matrices = ordered(tensors)
    data = header(2, "head" not in tensors, struct.pack("<i", group))
    data += b"".join(tensors[key].tobytes() for key in norms)
    decoded = dict(tensors)
    for key in matrices:
        groups = tensors[key].reshape(-1, group)
        scales = (np.abs(groups).max(1) / 127).astype("<f4")
        numbers = np.rint(groups / scales[:, None]).astype(np.int8)
        data += numbers.tobytes() + scales.tobytes()
        decoded[key] = (numbers.astype("<f4") * scales[:, None]).reshape(tensors[key].shape)
    return data, decoded
