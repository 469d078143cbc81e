"""A decoder with its cache in one graph: prompts and single tokens, batches with padding on the left.

Inputs and outputs are those that optimum and Transformers.js know: `input_ids`, `attention_mask`, `position_ids`,
`past_key_values.N.key|value`; `logits`, `present.N.key|value`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from converter.errors import UnsupportedFeature
from converter.formats.onnx.program import Program, Value
from converter.formats.onnx.values import CODES
from converter.graphs import origin
from converter.graphs.builder import MICROSOFT, Builder
from converter.graphs.feedforward import FeedForward
from converter.graphs.linear import Matrices
from converter.graphs.masks import Masks
from converter.graphs.model import Model
from converter.graphs.rotary import Rotary
from converter.tensors.dtypes import F32, DType
from converter.tensors.encode import Watch
from converter.tensors.tensor import LazyTensor

OPSETS = {"": 23, MICROSOFT: 1}
BATCH, TOKENS, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


def decoder(model: Model, dtype: DType, watch: Watch, *, exact: bool = False) -> Program:
    """The graph of a decoder.

    Args:
        model: keys, tensors and facts.
        dtype: what numbers are calculated in, F32 or F16; logits are F32.
        watch: counts what casts lose.
        exact: blocks of codes meet activations as they are, not in 8 bits.

    Raises:
        UnsupportedFeature: a part that no graph can be written of yet.
    """
    return _Decoder(model, dtype, watch, exact=exact).program()


@dataclass(frozen=True)
class _Heads:
    """Of one block's attention: heads of queries, of keys and values, elements of keys, of values."""

    n: int
    n_kv: int
    key: int
    value: int


class _Decoder:
    def __init__(self, model: Model, dtype: DType, watch: Watch, *, exact: bool) -> None:
        self.model, self.facts = model, model.facts
        self.build = Builder(dtype)
        self.matrices = Matrices(self.build, watch, exact=exact)
        self.masks = Masks(self.build, model)
        self.rotary = Rotary(self.build, model, self.masks.total)
        self.feed_forward = FeedForward(self.build, model, self.matrices)
        self.used = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
        self.caches: list[_Heads] = []
        self.temperature = ""

    # ------------------------------------------------------------------------------------------- tensors

    def tensor(self, name: str) -> LazyTensor | None:
        self.used.add(name)
        return self.model.tensor(name)

    def needed(self, name: str) -> LazyTensor:
        found = self.tensor(name)
        if found is None:
            raise UnsupportedFeature(f"{self.model.architecture.gguf}: no {name}, a graph needs it")
        return found

    def linear(self, x: str, name: str) -> str:
        """x @ weight.T + bias, where there is one."""
        y = self.matrices.multiply(x, self.needed(f"{name}.weight"))
        bias = self.tensor(f"{name}.bias")
        return y if bias is None else self.build.op("Add", y, self.matrices.plain(bias))

    def norm(self, x: str, name: str) -> str | None:
        """The norm of that name; None where the model has none."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        if weight is None:
            return None
        return self.normalised(x, self.matrices.plain(weight), None if bias is None else self.matrices.plain(bias))

    def first_norm(self, x: str, name: str) -> str | None:
        """The norm before a part, which some models have without weights."""
        found = self.norm(x, name)
        if found is None and self.facts.plain_norm:
            return self.normalised(x, self.ones(self.model.size("embedding_length")))
        return found

    def normalised(self, x: str, weight: str, bias: str | None = None) -> str:
        rms = self.model.key("attention.layer_norm_rms_epsilon")
        if rms is not None and bias is None and self.model.key("attention.layer_norm_epsilon") is None:
            return self.build.op("RMSNormalization", x, weight, axis=-1, epsilon=float(rms), stash_type=1)
        epsilon = float(self.model.key("attention.layer_norm_epsilon", default=1e-5))
        more = () if bias is None else (bias,)
        return self.build.op("LayerNormalization", x, weight, *more, axis=-1, epsilon=epsilon, stash_type=1)

    def ones(self, size: int) -> str:
        return self.build.op("Expand", self.build.number(1), self.build.constant([size]))

    def times(self, x: str, factor: float | None) -> str:
        return x if factor in (None, 0.0, 1.0) else self.build.op("Mul", x, self.build.number(float(factor or 1)))

    # -------------------------------------------------------------------------------------------- blocks

    def program(self) -> Program:
        x = self.embedded()
        for block in range(self.model.n_layer):
            self.build.scope = f"blk.{block}/"
            x = self.block(x, block)
        self.build.scope = ""
        self.head(x)
        self.refuse_unused()
        return Program(
            self.model.architecture.gguf, tuple(self.build.nodes), self.inputs(), self.outputs(),
            self.build.initializers, OPSETS, origin.texts(self.model, self.matrices, self.build.initializers),
        )  # fmt: skip

    def embedded(self) -> str:
        x = self.matrices.rows(self.needed("token_embd.weight"), "input_ids")
        scale = self.model.number(self.facts.embedding) if self.facts.embedding else self.model.key("embedding_scale")
        x = self.times(x, scale)
        if (positions := self.tensor("position_embd.weight")) is not None:
            x = self.build.op("Add", x, self.matrices.rows(positions, "position_ids"))
        return self.norm(x, "token_embd_norm") or x

    def block(self, x: str, block: int) -> str:
        name = f"blk.{block}."
        inner = self.first_norm(x, f"{name}attn_norm")
        attended = self.attention(self.norm(x, f"{name}attn_norm_2") or inner or x, block)
        attended = self.norm(attended, f"{name}post_attention_norm") or attended if self.has_late(name) else attended
        if inner is not None and self.is_parallel(name, block):
            second = self.norm(x, f"{name}ffn_norm") or inner
            made = self.build.op("Add", attended, self.feed_forward(second, block, self.linear))
            return self.build.op("Add", x, self.times(made, self.model.key("residual_scale")))
        x = self.build.op("Add", x, self.times(attended, self.model.key("residual_scale")))
        inner = self.first_norm(x, f"{name}{self.facts.ffn_norm}") or x
        made = self.feed_forward(inner, block, self.linear)
        made = self.norm(made, f"{name}post_ffw_norm") or made
        return self.build.op("Add", x, self.times(made, self.model.key("residual_scale")))

    def has_late(self, name: str) -> bool:
        """Whether the norm that is called so stands behind the attention, and not before what follows."""
        return self.facts.ffn_norm != "post_attention_norm"

    def is_parallel(self, name: str, block: int) -> bool:
        if self.facts.parallel:
            return self.model.holds(self.facts.parallel, block)
        return not self.facts.plain_norm and self.model.tensor(f"{name}{self.facts.ffn_norm}.weight") is None

    # ----------------------------------------------------------------------------------------- attention

    def attention(self, x: str, block: int) -> str:
        build, model, name = self.build, self.model, f"blk.{block}."
        heads = self.heads(block)
        q, k, v = self.projected(x, name, heads)
        q, k = self.positioned(q, k, block, heads)
        q = self.sharpened(q)
        self.caches.append(heads)
        scale = self.scale(block, heads)
        cap = float(model.key("attn_logit_softcapping", default=0.0))
        past = (f"past_key_values.{block}.key", f"past_key_values.{block}.value")
        present = (f"present.{block}.key", f"present.{block}.value")
        attended, *_ = build.ops(
            "Attention", q, k, v, self.masks.of(block), *past, outputs=("", *present),
            q_num_heads=heads.n, kv_num_heads=heads.n_kv, scale=scale, softcap=cap,
        )  # fmt: skip
        return self.linear(attended, f"{name}attn_output")

    def heads(self, block: int) -> _Heads:
        model = self.model
        n = model.size("attention.head_count", block)
        width = model.size("embedding_length") // n
        key = model.size("attention.key_length", block, width)
        n_kv = model.size("attention.head_count_kv", block, n)
        return _Heads(n, n_kv, key, model.size("attention.value_length", block, key))

    def scale(self, block: int, heads: _Heads) -> float:
        if self.facts.scale:
            return self.model.number(self.facts.scale, block)
        return float(self.model.key("attention.scale") or 1 / math.sqrt(heads.key))

    def projected(self, x: str, name: str, heads: _Heads) -> tuple[str, str, str]:
        sizes = (heads.n * heads.key, heads.n_kv * heads.key, heads.n_kv * heads.value)
        if self.model.tensor(f"{name}attn_qkv.weight") is not None:
            q, k, v = self.build.split(self.linear(x, f"{name}attn_qkv"), sizes)
        else:
            q, k, v = (self.linear(x, f"{name}attn_{each}") for each in "qkv")
        if limit := self.model.key("attention.clamp_kqv"):
            ends = self.build.number(-limit), self.build.number(limit)
            q, k, v = (self.build.op("Clip", each, *ends) for each in (q, k, v))
        return q, k, v

    def positioned(self, q: str, k: str, block: int, heads: _Heads) -> tuple[str, str]:
        """Queries and keys, normalised where they are, and rotated."""
        steps = [self.by_head_norm, self.rotated]
        for step in reversed(steps) if self.facts.late_norm else steps:
            q = step(q, block, "q", heads.n, heads.key)
            k = step(k, block, "k", heads.n_kv, heads.key)
        return q, k

    def by_head_norm(self, x: str, block: int, which: str, n: int, size: int) -> str:
        name = f"blk.{block}.attn_{which}_norm"
        weight = self.tensor(f"{name}.weight")
        if weight is None:
            return x
        if weight.info.shape == (n * size,) and n > 1:
            return self.norm(x, name) or x
        apart = self.build.reshape(x, 0, 0, n, size)
        made = self.normalised(apart, self.matrices.plain(weight)) if weight.info.shape == (size,) else None
        if made is None:  # a weight for every head
            made = self.build.op("Mul", self.normalised(apart, self.ones(size)), self.matrices.plain(weight))
        return self.build.reshape(made, 0, 0, n * size)

    def rotated(self, x: str, block: int, which: str, n: int, size: int) -> str:
        if self.tensor("position_embd.weight") is not None or not self.model.holds(self.facts.rotates, block):
            return x
        angles = self.rotary.angles(block)
        fused = self.model.tensor(f"blk.{block}.attn_qkv.weight") is not None
        neighbours = self.model.neighbours(f"blk.{block}.attn_{'qkv' if fused else which}.weight")
        return self.build.op(
            "RotaryEmbedding", x, angles.cos, angles.sin, num_heads=n, interleaved=int(neighbours),
            rotary_embedding_dim=0 if angles.n_rot == size else angles.n_rot,
        )  # fmt: skip

    def sharpened(self, q: str) -> str:
        """Queries of far tokens, larger by the logarithm of how many contexts of the training lie before them."""
        beta = float(self.model.key("attention.temperature_scale", default=0.0))
        if not beta:
            return q
        if not self.temperature:
            build, scope = self.build, self.build.scope
            build.scope = ""
            trained = self.model.key("rope.scaling.original_context_length")
            length = build.constant(self.model.size("attention.temperature_length", default=trained))
            contexts = build.cast(build.op("Div", "position_ids", length), F32)
            grown = build.op("Log", build.op("Add", contexts, build.constant(1, np.float32)))
            grown = build.op("Mul", grown, build.constant(beta, np.float32))
            grown = build.op("Add", grown, build.constant(1, np.float32))
            self.temperature = build.cast(build.op("Unsqueeze", grown, build.constant([-1])), build.dtype)
            build.scope = scope
        return self.build.op("Mul", q, self.temperature)

    # ---------------------------------------------------------------------------------------------- ends

    def head(self, x: str) -> None:
        x = self.first_norm(x, "output_norm") or x
        head = self.tensor("output.weight")
        head = self.needed("token_embd.weight") if head is None else head
        logits = self.matrices.multiply(x, head)
        if (bias := self.tensor("output.bias")) is not None:
            logits = self.build.op("Add", logits, self.matrices.plain(bias))
        if self.facts.logits:
            logits = self.times(logits, self.model.number(self.facts.logits))
        if cap := self.model.key("final_logit_softcapping"):
            size = self.build.number(cap)
            logits = self.build.op("Mul", self.build.op("Tanh", self.build.op("Div", logits, size)), size)
        if self.build.dtype is F32:
            self.build.op("Identity", logits, output="logits")
        else:
            self.build.op("Cast", logits, output="logits", to=CODES[F32.name])
        self.n_vocab = head.info.shape[0]

    def refuse_unused(self) -> None:
        """A tensor that the graph did not use says that it computes something else."""
        n_layer = self.model.n_layer
        left = [name for name in self.model.tensors if name not in self.used | self.feed_forward.used]
        left = [name for name in left if not origin.is_beyond(name, n_layer)]
        if left:
            raise UnsupportedFeature(
                f"{left[0]}: no graph can be written with it yet ({self.model.architecture.gguf})\n"
                "--tensors-only writes the tensors without a graph"
            )

    def inputs(self) -> tuple[Value, ...]:
        ids = ("input_ids", TOKENS), ("attention_mask", TOTAL), ("position_ids", TOKENS)
        own = tuple(Value(name, "I64", (BATCH, size)) for name, size in ids)
        return (*own, *self.cached("past_key_values", PAST))

    def outputs(self) -> tuple[Value, ...]:
        return (Value("logits", "F32", (BATCH, TOKENS, self.n_vocab)), *self.cached("present", TOTAL))

    def cached(self, name: str, length: str) -> tuple[Value, ...]:
        return tuple(
            Value(f"{name}.{block}.{part}", self.build.dtype.name, (BATCH, heads.n_kv, length, size))
            for block, heads in enumerate(self.caches)
            for part, size in (("key", heads.key), ("value", heads.value))
        )
