"""Attention of a block: heads that share keys or not, whole or latent, what is added to scores, what gates the result.

Its cache is (batch, heads, tokens, elements): of latent attention the common keys without positions, and those with.

Source: llama.cpp's graphs (`build_attn`, `ggml_soft_max_ext`, deepseek2.cpp), whose tensors and keys these are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from converter.errors import UnsupportedFeature
from converter.graphs.builder import PAST, TOTAL
from converter.graphs.layers import Layers
from converter.graphs.masks import Masks
from converter.graphs.rotary import READ, Rotary
from converter.tensors.dtypes import F32
from converter.tensors.elementary import double_log, power


@dataclass(frozen=True)
class Heads:
    """Of one block's attention: heads of queries, of keys and values, elements of keys, of values."""

    n: int
    n_kv: int
    key: int
    value: int


class Attention:
    """Writes the attention of any block."""

    def __init__(self, layers: Layers) -> None:
        self.layers, self.build, self.model, self.facts = layers, layers.build, layers.model, layers.model.facts
        self.masks = Masks(self.build, self.model)
        self.rotary = Rotary(self.build, self.model, self.masks)
        self.temperature = ""
        self.found: dict[int, tuple[str, str]] = {}
        layers.used |= READ

    def has(self, block: int) -> bool:
        """Whether a block has attention: with keys, where others have a state that ends in a matrix of that name."""
        has_keys = bool(self.model.key("attention.head_count_kv", block, default=1))
        return has_keys and self.layers.has(f"blk.{block}.attn_output")

    def __call__(self, x: str, block: int) -> str:
        name = f"blk.{block}.attn_"
        made = self.latent(x, block) if self.layers.has(f"{name}kv_a_mqa") else self.whole(x, block)
        return self.layers.linear(self.gated(made, x, block), f"{name}output")

    # --------------------------------------------------------------------------------------------- whole

    def whole(self, x: str, block: int) -> str:
        """Keys and values of every head, or of several: (batch, tokens, heads * elements)."""
        heads = self.heads(block)
        if (owner := self.owner(block)) != block:
            return self.borrowed(x, block, heads, owner)
        q, k, v = self.projected(x, block, heads)
        q, gate = self.from_gates(q, block, heads)
        q = self.positioned(q, block, "q", heads.n, heads.key)
        k = self.positioned(k, block, "k", heads.n_kv, heads.key)
        v = self.unit(v, heads.n_kv, heads.value) if self.facts.unit_values else v
        q = self.sharpened(q, block)
        made = self.attended(q, k, v, block, heads)
        return self.build.op("Mul", made, self.build.op("Sigmoid", gate)) if gate else made

    def owner(self, block: int) -> int:
        """The block whose keys and values a block meets: its own, or of those before all that have none the last that
        sees as many tokens.

        Raises:
            UnsupportedFeature: there is none.
        """
        first = self.model.n_layer - int(self.model.key("attention.shared_kv_layers", default=0))
        if block < first:
            return block
        for other in reversed(range(first)):
            if self.masks.window(other) == self.masks.window(block):
                return other
        raise UnsupportedFeature(f"block {block} reuses keys and values, and no block before {first} is of its kind")

    def borrowed(self, x: str, block: int, heads: Heads, owner: int) -> str:
        """Queries that meet the keys and values of another block, all of which its cache has."""
        name = f"blk.{block}.attn_"
        q = self.positioned(self.layers.linear(x, f"{name}q"), block, "q", heads.n, heads.key)
        made = self.build.op("Attention", self.apart(q, heads.n, heads.key), *self.found[owner],
                             self.masks.of(block), scale=self.scale(block, heads), softcap=self.cap)  # fmt: skip
        return self.together(made)

    def from_gates(self, q: str, block: int, heads: Heads) -> tuple[str, str]:
        """Queries, and the gates of what attention makes, which may stand behind each head's query."""
        matrix = self.model.tensor(f"blk.{block}.attn_q.weight")
        if matrix is None or matrix.info.shape[0] != 2 * heads.n * heads.key:
            return q, ""
        apart = self.build.split(self.build.reshape(q, 0, 0, heads.n, -1), (heads.key, heads.key))
        q, gate = (self.build.reshape(part, 0, 0, -1) for part in apart)
        return q, gate

    def attended(self, q: str, k: str, v: str, block: int, heads: Heads) -> str:
        """Values by how keys meet queries, after those of the cache."""
        sinks = self.layers.tensor(f"blk.{block}.attn_sinks.weight")
        if sinks is not None:
            return self.with_sink(q, k, v, block, heads, self.layers.matrices.plain(sinks))
        past, present = self.kept(heads)
        self.found[block] = present or (
            self.apart(k, heads.n_kv, heads.key), self.apart(v, heads.n_kv, heads.value)
        )  # fmt: skip
        return self.build.ops(
            "Attention", q, k, v, self.bias(block, heads), *past, outputs=("", *present),
            q_num_heads=heads.n, kv_num_heads=heads.n_kv, scale=self.scale(block, heads), softcap=self.cap,
        )[0]  # fmt: skip

    def with_sink(self, q: str, k: str, v: str, block: int, heads: Heads, sinks: str) -> str:
        """A key of zeros before all others, whose score is the head's sink, and which has nothing to give."""
        build = self.build
        self.kept(heads)
        keys = self.remembered(self.apart(k, heads.n_kv, heads.key), "key")
        values = self.remembered(self.apart(v, heads.n_kv, heads.value), "value")
        keys, values = (build.op("Pad", each, build.constant([0, 0, 1, 0, 0, 0, 0, 0])) for each in (keys, values))
        mask = self.masks.of(block)
        bias = build.op("Where", mask, build.number(0), build.number(-np.inf))
        shape = build.op("Shape", bias)
        tokens = build.op("Gather", shape, build.constant([2]))
        batch = build.op("Gather", shape, build.constant([0]))
        column = build.op("Concat", batch, build.constant([heads.n]), tokens, build.constant([1]), axis=0)
        first = build.op("Expand", build.reshape(sinks, 1, heads.n, 1, 1), column)
        every = build.op("Concat", batch, build.constant([heads.n]), tokens, self.masks.total, axis=0)
        bias = build.op("Concat", first, build.op("Expand", bias, every), axis=-1)
        made = build.op("Attention", self.apart(q, heads.n, heads.key), keys, values, bias,
                        scale=self.scale(block, heads), softcap=self.cap)  # fmt: skip
        return self.together(made)

    def bias(self, block: int, heads: Heads) -> str:
        """What a token sees, or with ALiBi what is added to its scores."""
        steepest = self.model.number(self.facts.alibi) if self.facts.alibi else 0.0
        return self.masks.sloped(block, slopes(heads.n, steepest)) if steepest else self.masks.of(block)

    def kept(self, heads: Heads) -> tuple[tuple[str, ...], tuple[()] | tuple[str, str]]:
        """The keys and values of a block, as they come in and as they go out; nothing where there is no cache."""
        if not self.model.has_cache:
            return (), ()
        for part, size in (("key", heads.key), ("value", heads.value)):
            shapes = ((heads.n_kv, length, size) for length in (PAST, TOTAL))
            past, present = (f"{whose}.{self.layers.slot}.{part}" for whose in ("past_key_values", "present"))
            self.layers.keep(past, present, self.build.dtype, *shapes)
        (key, new_key), (value, new_value) = self.layers.states[-2:]
        return (key.name, value.name), (new_key.name, new_value.name)

    def remembered(self, x: str, part: str) -> str:
        """Keys or values (batch, heads, tokens, elements) after those of the cache."""
        if not self.model.has_cache:
            return x
        past, present = (f"{whose}.{self.layers.slot}.{part}" for whose in ("past_key_values", "present"))
        return self.build.op("Concat", past, x, output=present, axis=2)

    def apart(self, x: str, n: int, size: int) -> str:
        """(batch, tokens, heads * elements) -> (batch, heads, tokens, elements)."""
        return self.build.op("Transpose", self.build.reshape(x, 0, 0, n, size), perm=[0, 2, 1, 3])

    def together(self, x: str) -> str:
        """The way back."""
        return self.build.reshape(self.build.op("Transpose", x, perm=[0, 2, 1, 3]), 0, 0, -1)

    @property
    def cap(self) -> float:
        return float(self.model.key("attn_logit_softcapping", default=0.0))

    def heads(self, block: int) -> Heads:
        model = self.model
        n = model.size("attention.head_count", block)
        width = model.size("embedding_length") // n
        key = model.size("attention.key_length", block, width)
        value = model.size("attention.value_length", block, key)
        n_kv = model.size("attention.head_count_kv", block, n)
        if self.masks.window(block):
            key, value = (
                model.size(f"attention.{of}_length_swa", block, own) for of, own in (("key", key), ("value", value))
            )
        return Heads(n, n_kv, key, value)

    def scale(self, block: int, heads: Heads) -> float:
        if self.facts.scale:
            return self.model.number(self.facts.scale, block)
        return float(self.model.key("attention.scale") or 1 / math.sqrt(heads.key))

    def projected(self, x: str, block: int, heads: Heads) -> tuple[str, str, str]:
        name = f"blk.{block}.attn_"
        sizes = (heads.n * heads.key, heads.n_kv * heads.key, heads.n_kv * heads.value)
        if self.layers.has(f"{name}qkv"):
            q, k, v = self.build.split(self.layers.linear(x, f"{name}qkv"), sizes)
        else:
            q, k = (self.layers.linear(x, f"{name}{each}") for each in "qk")
            v = k if self.has_one(block) else self.layers.linear(x, f"{name}v")
        if limit := self.model.key("attention.clamp_kqv"):
            ends = self.build.number(-limit), self.build.number(limit)
            q, k, v = (self.build.op("Clip", each, *ends) for each in (q, k, v))
        return q, k, v

    def has_one(self, block: int) -> bool:
        """Whether one matrix makes keys and values."""
        return bool(self.facts.keys_are_values) and self.model.holds(self.facts.keys_are_values, block)

    def positioned(self, x: str, block: int, which: str, n: int, size: int) -> str:
        """Queries or keys, normalised where they are, and rotated."""
        steps = [self.by_head_norm, self.rotated]
        for step in reversed(steps) if self.facts.late_norm else steps:
            x = step(x, block, which, n, size)
        return x

    def by_head_norm(self, x: str, block: int, which: str, n: int, size: int) -> str:
        name = f"blk.{block}.attn_{which}_norm"
        weight = self.layers.tensor(f"{name}.weight")
        if weight is None:
            return self.unit(x, n, size) if self.facts.unit and self.model.holds(self.facts.unit, block) else x
        if weight.info.shape == (n * size,) and n > 1:
            return self.layers.norm(x, name) or x
        apart = self.build.reshape(x, 0, 0, n, size)
        plain, norm = self.layers.matrices.plain(weight), self.layers.normalised
        if weight.info.shape == (size,):
            made = norm(apart, plain)
        else:  # a weight for every head
            made = self.build.op("Mul", norm(apart, self.layers.ones(size)), plain)
        return self.build.reshape(made, 0, 0, n * size)

    def unit(self, x: str, n: int, size: int) -> str:
        """Heads of the same length, without a weight."""
        made = self.layers.normalised(self.build.reshape(x, 0, 0, n, size), self.layers.ones(size))
        return self.build.reshape(made, 0, 0, n * size)

    def rotated(self, x: str, block: int, which: str, n: int, size: int) -> str:
        if self.layers.has("position_embd") or not self.model.holds(self.facts.rotates, block):
            return x
        fused = self.layers.has(f"blk.{block}.attn_qkv")
        neighbours = self.model.neighbours(f"blk.{block}.attn_{'qkv' if fused else which}.weight")
        return self.rotation(x, block, n, size, neighbours=neighbours)

    def rotation(self, x: str, block: int, n: int, size: int, *, neighbours: bool) -> str:
        """The first elements of every head by their angles: (batch, tokens, heads * elements)."""
        angles = self.rotary.angles(block)
        return self.build.op(
            "RotaryEmbedding", x, angles.cos, angles.sin, num_heads=n, interleaved=int(neighbours),
            rotary_embedding_dim=0 if angles.n_rot == size else angles.n_rot,
        )  # fmt: skip

    def gated(self, made: str, x: str, block: int) -> str:
        """What attention made, scaled, by a gate of its input where there is one: for each element or for each head."""
        name, build = f"blk.{block}.attn_gate", self.build
        made = self.layers.times(made, self.model.key("attention.value_scale"))
        if not self.layers.has(name):
            return made
        gate = build.op(self.facts.attention_gate, self.layers.linear(x, name))
        n, n_rows = self.heads(block).n, self.layers.needed(f"{name}.weight").info.shape[0]
        if n_rows != n:
            return build.op("Mul", made, gate)
        apart = build.op("Mul", build.reshape(made, 0, 0, n, -1), build.op("Unsqueeze", gate, build.constant([-1])))
        return build.reshape(apart, 0, 0, -1)

    # -------------------------------------------------------------------------------------------- latent

    def latent(self, x: str, block: int) -> str:
        """Keys and values out of a short common vector, and a common part of keys that has the position."""
        layers, build, model, name = self.layers, self.build, self.model, f"blk.{block}.attn_"
        n, n_rot = model.size("attention.head_count", block), model.size("rope.dimension_count")
        kv_lora = model.size("attention.kv_lora_rank")
        key = model.size("attention.key_length_mla", block, model.size("attention.key_length", block))
        width = model.size("embedding_length") // n
        value = model.size("attention.value_length_mla", block, model.size("attention.value_length", block, width))
        heads, nope, turned = Heads(n, n, key, value), key - n_rot, self.facts.neighbours
        if layers.has(f"{name}q_a"):
            q = layers.linear(x, f"{name}q_a")
            q = layers.linear(layers.norm(q, f"{name}q_a_norm", self.facts.latent_epsilon) or q, f"{name}q_b")
        else:
            q = layers.linear(x, f"{name}q")
        q = build.reshape(self.sharpened(q, block), 0, 0, n, key)
        q_nope, q_rot = build.split(q, (nope, n_rot))
        q_rot = build.reshape(q_rot, 0, 0, n * n_rot)
        common, k_rot = build.split(layers.linear(x, f"{name}kv_a_mqa"), (kv_lora, n_rot))
        common = layers.norm(common, f"{name}kv_a_norm", self.facts.latent_epsilon) or common
        if self.model.holds(self.facts.rotates, block):
            q_rot = self.rotation(q_rot, block, n, n_rot, neighbours=turned)
            k_rot = self.rotation(k_rot, block, 1, n_rot, neighbours=turned)
        if layers.has(f"{name}kv_b"):
            return self.unfolded(q_nope, q_rot, common, k_rot, block, heads)
        return self.folded(q_nope, q_rot, common, k_rot, block, heads)

    def folded(self, q_nope: str, q_rot: str, common: str, k_rot: str, block: int, heads: Heads) -> str:
        """Queries meet the common vector itself, which is all that the cache has."""
        build, layers, name = self.build, self.layers, f"blk.{block}.attn_"
        kv_lora, n_rot = self.model.size("attention.kv_lora_rank"), self.model.size("rope.dimension_count")
        self.kept(Heads(heads.n, 1, kv_lora, n_rot))
        q_nope = build.op("Transpose", q_nope, perm=[0, 2, 1, 3])
        q_nope = layers.matrices.by_head(q_nope, layers.needed(f"{name}k_b.weight"))
        q = build.op("Concat", q_nope, self.apart(q_rot, heads.n, n_rot), axis=-1)
        values = self.remembered(self.apart(common, 1, kv_lora), "key")
        turned = self.remembered(self.apart(k_rot, 1, n_rot), "value")
        keys = build.op("Concat", values, turned, axis=-1)
        made = build.op(
            "Attention", q, keys, values, self.masks.of(block), scale=self.latent_scale(block, heads), softcap=self.cap
        )
        return self.together(layers.matrices.by_head(made, layers.needed(f"{name}v_b.weight")))

    def unfolded(self, q_nope: str, q_rot: str, common: str, k_rot: str, block: int, heads: Heads) -> str:
        """Every head's keys and values, as the cache has them."""
        build, n_rot = self.build, self.model.size("rope.dimension_count")
        both = self.layers.linear(common, f"blk.{block}.attn_kv_b")
        both = build.reshape(both, 0, 0, heads.n, heads.key - n_rot + heads.value)
        k_nope, values = build.split(both, (heads.key - n_rot, heads.value))
        every = build.op("Concat", *[build.reshape(k_rot, 0, 0, 1, n_rot)] * heads.n, axis=2)
        k = build.reshape(build.op("Concat", k_nope, every, axis=-1), 0, 0, -1)
        q = build.op("Concat", q_nope, build.reshape(q_rot, 0, 0, heads.n, n_rot), axis=-1)
        past, present = self.kept(heads)
        return build.ops(
            "Attention", build.reshape(q, 0, 0, -1), k, build.reshape(values, 0, 0, -1), self.masks.of(block), *past,
            outputs=("", *present), q_num_heads=heads.n, kv_num_heads=heads.n,
            scale=self.latent_scale(block, heads), softcap=self.cap,
        )[0]  # fmt: skip

    def latent_scale(self, block: int, heads: Heads) -> float:
        """Of heads as they are unfolded, larger where the context is stretched."""
        if self.facts.scale:
            return self.model.number(self.facts.scale, block)
        more = float(self.model.key("rope.scaling.yarn_log_multiplier", default=0.0))
        factor = float(self.model.key("rope.scaling.factor", default=1.0))
        magnitude = 1.0 + more * double_log(factor) if factor > 1 else 1.0
        return magnitude * magnitude / math.sqrt(heads.key)

    # --------------------------------------------------------------------------------------- temperature

    def sharpened(self, q: str, block: int) -> str:
        """Queries of far tokens, larger by the logarithm of how many contexts of the training lie before them."""
        own, length = self.facts.temperature
        beta = float(self.model.key("attention.temperature_scale", default=own))
        if not beta or (own and self.model.holds(self.facts.rotates, block)):
            return q
        if not self.temperature:
            with self.build.outside_blocks():
                self.temperature = self._temperature(beta, own, length)
        return self.build.op("Mul", q, self.temperature)

    def _temperature(self, beta: float, own: float, length: int) -> str:
        """What queries are multiplied by: (batch, tokens, 1)."""
        build = self.build
        trained = length or self.model.key("rope.scaling.original_context_length")
        steps = build.constant(self.model.size("attention.temperature_length", default=trained))
        place = build.op("Add", "position_ids", build.constant(1)) if own else "position_ids"
        contexts = build.cast(build.op("Div", place, steps), F32)
        grown = build.op("Log", build.op("Add", contexts, build.constant(1, np.float32)))
        grown = build.op("Mul", grown, build.constant(beta, np.float32))
        grown = build.op("Add", grown, build.constant(1, np.float32))
        return build.cast(build.op("Unsqueeze", grown, build.constant([-1])), build.dtype)


def slopes(n_head: int, steepest: float) -> list[float]:
    """ALiBi's slope of each head: powers of one number, and between them those of its root where heads are left."""
    n = 1 << (n_head.bit_length() - 1)
    whole = [-steepest * (head + 1) / n for head in range(n)]
    between = [-steepest * (2 * (head - n) + 1) / (2 * n) for head in range(n, n_head)]
    return [float(slope) for slope in power(2.0, np.array(whole + between, np.float32))]
