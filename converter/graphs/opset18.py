"""Operators of set 20 to 23 by those of set 18, for runtimes that do not have them.

They are written in the forms that ONNX Runtime fuses again. Source: what onnx/docs/Operators.md says they compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from converter.formats.onnx.program import Node
from converter.graphs.builder import Builder, Lowering
from converter.tensors.dtypes import F32


def attention(build: Builder, node: Node) -> None:
    """`Attention`: queries that share the keys of a head are rows of one matrix, so that no key is copied."""
    told: Mapping[str, Any] = node.attributes
    q, k, v, mask, *past = node.inputs
    made, *present = node.outputs
    is_flat = "q_num_heads" in told
    if is_flat:
        n, n_kv = told["q_num_heads"], told["kv_num_heads"]
        q, k, v = (_by_heads(build, x, heads) for x, heads in ((q, n), (k, n_kv), (v, n_kv)))
        every, shared = (build.constant([0, heads, -1, 0]) for heads in (n, n_kv))
    else:
        every, shared = (_shape_of(build, x) for x in (q, k))

    def with_heads(x: str, shape: str) -> str:
        return x if every == shared else build.op("Reshape", x, shape)

    if past:
        ends = zip(past, (k, v), present, strict=True)
        k, v = (build.op("Concat", before, new, output=after, axis=2) for before, new, after in ends)
    q = with_heads(build.op("Mul", q, build.number(told["scale"])), shared)
    scores = with_heads(build.op("MatMul", q, build.op("Transpose", k, perm=[0, 1, 3, 2])), every)
    if told["softcap"]:
        cap = build.number(told["softcap"])
        scores = build.op("Mul", build.op("Tanh", build.op("Div", scores, cap)), cap)
    weights = build.op("Softmax", build.op("Add", scores, bias(build, mask)), axis=-1)
    values = with_heads(build.op("MatMul", with_heads(weights, shared), v), every)
    if is_flat:
        values = build.op("Transpose", values, perm=[0, 2, 1, 3])
        build.op("Reshape", values, build.constant([0, 0, -1]), output=made)
    else:
        build.op("Identity", values, output=made)


def bias(build: Builder, mask: str) -> str:
    """What is added to scores: numbers as they are, of booleans nothing where a token is seen."""
    return build.once("Where", mask, build.number(0), build.number(-np.inf)) if build.is_boolean(mask) else mask


def _by_heads(build: Builder, x: str, n: Any) -> str:
    """(batch, tokens, heads * elements) -> (batch, heads, tokens, elements)."""
    return build.op("Transpose", build.reshape(x, 0, 0, n, -1), perm=[0, 2, 1, 3])


def _shape_of(build: Builder, x: str) -> str:
    """A shape that has the heads of `x`, and as many tokens as there are then."""
    return build.op(
        "Concat", build.constant([0]), build.op("Shape", x, start=1, end=2), build.constant([-1, 0]), axis=0
    )


def rotary(build: Builder, node: Node) -> None:
    """`RotaryEmbedding` of (batch, tokens, heads * elements), by angles (batch, tokens, pairs)."""
    told: Mapping[str, Any] = node.attributes
    x, cos, sin = node.inputs
    x, left = build.op("Reshape", x, build.constant([0, 0, told["num_heads"], -1])), []
    if n_rot := told["rotary_embedding_dim"]:
        left = [build.slice(x, n_rot)]
        x = build.op("Slice", x, build.constant([0]), build.constant([n_rot]), build.constant([-1]))
    # Neighbours are apart on an axis of their own, which angles have, too, then.
    pairs = [-1] if told["interleaved"] else []
    x = build.reshape(x, 0, 0, 0, -1, 2) if pairs else x
    cos, sin = (build.once("Unsqueeze", angles, build.constant([2, *pairs])) for angles in (cos, sin))
    a, b = build.ops("Split", x, outputs=("", ""), axis=-1, num_outputs=2)
    real = build.op("Sub", build.op("Mul", a, cos), build.op("Mul", b, sin))
    other = build.op("Add", build.op("Mul", a, sin), build.op("Mul", b, cos))
    turned = build.op("Concat", real, other, axis=-1)
    turned = build.reshape(turned, 0, 0, 0, -1) if pairs else turned
    whole = build.op("Concat", turned, *left, axis=-1) if left else turned
    build.op("Reshape", whole, build.constant([0, 0, -1]), output=node.outputs[0])


def rms(build: Builder, node: Node) -> None:
    """`RMSNormalization`, in F32 up to the weight."""
    x, weight = node.inputs
    wide = x if build.dtype is F32 else build.cast(x, F32)
    squares = build.op("Pow", wide, build.constant(2, np.float32))
    mean = build.op("ReduceMean", squares, build.constant([-1]), keepdims=1)
    root = build.op("Sqrt", build.op("Add", mean, build.constant(node.attributes["epsilon"], np.float32)))
    made = build.op("Div", wide, root)
    made = made if build.dtype is F32 else build.cast(made, build.dtype)
    build.op("Mul", made, weight, output=node.outputs[0])


def gelu(build: Builder, node: Node) -> None:
    """`Gelu`, exact or by a tangent."""
    (x,), half = node.inputs, build.number(0.5)
    if node.attributes["approximate"] == "tanh":
        cube = build.op("Pow", x, build.number(3))
        inner = build.op("Add", x, build.op("Mul", cube, build.number(0.044715)))
        part = build.op("Tanh", build.op("Mul", inner, build.number(math.sqrt(2 / math.pi))))
    else:
        part = build.op("Erf", build.op("Div", x, build.number(math.sqrt(2))))
    made = build.op("Mul", x, build.op("Add", part, build.number(1)))
    build.op("Mul", made, half, output=node.outputs[0])


LOWERED: Mapping[str, Lowering] = {
    "Attention": attention, "RotaryEmbedding": rotary, "RMSNormalization": rms, "Gelu": gelu,
}  # fmt: skip
