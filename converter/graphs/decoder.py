"""A decoder in one graph: with its cache, for prompts and single tokens, batches with padding on the left; or, of one
that makes vectors of texts or fills in words, for texts as a whole.

Inputs and outputs are those that optimum and Transformers.js know: `input_ids`, `attention_mask`, `position_ids`,
`past_key_values.N.key|value`; `logits`, `present.N.key|value`; of blocks with other states `past_conv.N` and its like.
"""

from __future__ import annotations

import math

from converter.formats.onnx.program import Value
from converter.graphs.builder import BATCH, TOKENS, TOTAL
from converter.graphs.network import Network
from converter.graphs.texts import Texts


class Blocks(Network):
    """The blocks of a decoder."""

    def block(self, x: str, block: int) -> str:
        if self.altup.n > 1:
            return self.altup.through(
                x, block, lambda one: self.parts(one, block), lambda one: self.per_block(one, block)
            )
        x = self.parts(x, block)
        if self.per_block.has(block):
            x = self.build.op("Add", x, self.per_block(x, block))
        scale = self.layers.tensor(f"blk.{block}.layer_output_scale.weight")
        return x if scale is None else self.build.op("Mul", x, self.layers.matrices.plain(scale))

    def parts(self, x: str, block: int) -> str:
        """Attention or what stands in its place, and the feed-forward part, beside what they were given."""
        name = f"blk.{block}."
        inner = self.first_norm(x, f"{name}attn_norm")
        if not self.looks(block):
            return self.added(x, self.feed_forward(inner or x, block, x, x))
        if not self.feed_forward.has(block):
            return self.added(x, self.mixed(inner or x, block))
        attended = self.mixed(self.norm(x, f"{name}attn_norm_2") or inner or x, block)
        if self.has_late:
            attended = self.norm(attended, f"{name}post_attention_norm", self.model.facts.late_epsilon) or attended
        if inner is not None and self.is_parallel(name, block):
            second = self.norm(x, f"{name}ffn_norm") or inner
            made = self.build.op("Add", attended, self.feed_forward(second, block, x, x))
            return self.added(x, made)
        given, x = x, self.low_rank(self.added(x, attended), inner or x, name)
        inner = self.first_norm(x, f"{name}{self.model.facts.ffn_norm}") or x
        made = self.feed_forward(inner, block, x, given)
        made = self.norm(made, f"{name}post_ffw_norm", self.model.facts.late_epsilon) or made
        return self.added(x, made)

    def low_rank(self, x: str, inner: str, name: str) -> str:
        """Laurel: beside attention a matrix of low rank, added to what both were given; of both sums the mean, as
        large as one."""
        if not self.layers.has(f"{name}laurel_l"):
            return x
        made = self.layers.linear(self.layers.linear(inner, f"{name}laurel_l"), f"{name}laurel_r")
        beside = self.build.op("Add", inner, self.norm(made, f"{name}laurel_post_norm") or made)
        return self.times(self.build.op("Add", x, beside), math.sqrt(0.5))

    def added(self, x: str, made: str) -> str:
        """What a part made, beside what it was given."""
        return self.build.op("Add", x, self.times(made, self.residual()))

    def mixed(self, x: str, block: int) -> str:
        """What the part makes that looks at other tokens."""
        if self.convolution.has(block):
            return self.convolution.short(x, block)
        if not self.recurrent.has(block):
            return self.attention(x, block)
        made = self.recurrent(x, block)
        return self.build.op("Add", made, self.attention(x, block)) if self.attention.has(block) else made

    def looks(self, block: int) -> bool:
        """Whether a block has such a part."""
        return any(part.has(block) for part in (self.attention, self.convolution, self.recurrent))

    def residual(self) -> float | None:
        """What a part of a block is multiplied by."""
        if self.model.facts.residual:
            return self.model.number(self.model.facts.residual)
        found = self.model.key("residual_scale")
        return None if found is None else float(found)

    @property
    def has_late(self) -> bool:
        """Whether a `post_attention_norm` stands behind the attention, and not before what follows."""
        return self.model.facts.ffn_norm != "post_attention_norm"

    def is_parallel(self, name: str, block: int) -> bool:
        facts = self.model.facts
        if facts.parallel:
            return self.model.holds(facts.parallel, block)
        return not facts.plain_norm and not self.layers.has_norm(f"{name}{facts.ffn_norm}")


class Decoder(Blocks):
    """A decoder with its cache."""

    def head(self, x: str) -> None:
        x = self.first_norm(x, self.model.facts.last_norm) or x
        self.output("logits", self.logits(x), self.n_vocab)

    def inputs(self) -> tuple[Value, ...]:
        ids = ("input_ids", TOKENS), ("attention_mask", TOTAL), ("position_ids", TOKENS)
        own = tuple(Value(name, "I64", (BATCH, size)) for name, size in ids)
        return (*own, *(past for past, _ in self.layers.states))


class TextDecoder(Texts, Blocks):
    """A decoder without one."""
