"""A decoder with its cache in one graph: prompts and single tokens, batches with padding on the left.

Inputs and outputs are those that optimum and Transformers.js know: `input_ids`, `attention_mask`, `position_ids`,
`past_key_values.N.key|value`; `logits`, `present.N.key|value`.
"""

from __future__ import annotations

from converter.architectures.traits import Decoder
from converter.formats.onnx.program import Program, Value
from converter.graphs.model import Model
from converter.graphs.network import BATCH, TOKENS, Network
from converter.tensors.dtypes import DType
from converter.tensors.encode import Watch

PAST, TOTAL = "past_sequence_length", "total_sequence_length"


def decoder(model: Model, facts: Decoder, dtype: DType, watch: Watch, *, exact: bool = False) -> Program:
    """The graph of a decoder; `model`, `dtype`, `watch` and `exact` as `Network`'s.

    Raises:
        UnsupportedFeature: a part that no graph can be written of yet.
    """
    return _Decoder(model, facts, dtype, watch, exact=exact).program()


class _Decoder(Network):
    def __init__(self, model: Model, facts: Decoder, dtype: DType, watch: Watch, *, exact: bool) -> None:
        super().__init__(model, dtype, watch, exact=exact)
        self.facts = facts

    def block(self, x: str, block: int) -> str:
        name = f"blk.{block}."
        inner = self.first_norm(x, f"{name}attn_norm")
        attended = self.attention(self.norm(x, f"{name}attn_norm_2") or inner or x, block)
        if self.has_late:
            attended = self.norm(attended, f"{name}post_attention_norm") or attended
        if inner is not None and self.is_parallel(name, block):
            second = self.norm(x, f"{name}ffn_norm") or inner
            made = self.build.op("Add", attended, self.feed_forward(second, block, x))
            return self.build.op("Add", x, self.times(made, self.residual()))
        given, x = x, self.build.op("Add", x, self.times(attended, self.residual()))
        inner = self.first_norm(x, f"{name}{self.facts.ffn_norm}") or x
        made = self.feed_forward(inner, block, given)
        made = self.norm(made, f"{name}post_ffw_norm") or made
        return self.build.op("Add", x, self.times(made, self.residual()))

    def residual(self) -> float | None:
        """What a part of a block is multiplied by."""
        if self.facts.residual:
            return self.model.number(self.facts.residual)
        found = self.model.key("residual_scale")
        return None if found is None else float(found)

    @property
    def has_late(self) -> bool:
        """Whether a `post_attention_norm` stands behind the attention, and not before what follows."""
        return self.facts.ffn_norm != "post_attention_norm"

    def is_parallel(self, name: str, block: int) -> bool:
        if self.facts.parallel:
            return self.model.holds(self.facts.parallel, block)
        return not self.facts.plain_norm and self.model.tensor(f"{name}{self.facts.ffn_norm}.weight") is None

    # ---------------------------------------------------------------------------------------------- ends

    def head(self, x: str) -> None:
        x = self.first_norm(x, "output_norm") or x
        head = self.layers.tensor("output.weight")
        head = self.layers.needed("token_embd.weight") if head is None else head
        logits = self.matrices.multiply(x, head)
        logits = self.layers.biased(logits, "output.bias")
        if self.facts.logits:
            logits = self.times(logits, self.model.number(self.facts.logits))
        if cap := self.model.key("final_logit_softcapping"):
            size = self.build.number(cap)
            logits = self.build.op("Mul", self.build.op("Tanh", self.build.op("Div", logits, size)), size)
        self.output("logits", logits)
        self.n_vocab = head.info.shape[0]

    def inputs(self) -> tuple[Value, ...]:
        ids = ("input_ids", TOKENS), ("attention_mask", TOTAL), ("position_ids", TOKENS)
        own = tuple(Value(name, "I64", (BATCH, size)) for name, size in ids)
        return (*own, *self.cached("past_key_values", PAST))

    def outputs(self) -> tuple[Value, ...]:
        return (Value("logits", "F32", (BATCH, TOKENS, self.n_vocab)), *self.cached("present", TOTAL))

    def cached(self, name: str, length: str) -> tuple[Value, ...]:
        return tuple(
            Value(f"{name}.{block}.{part}", self.build.dtype.name, (BATCH, heads.n_kv, length, size))
            for block, heads in enumerate(self.attention.caches)
            for part, size in (("key", heads.key), ("value", heads.value))
        )
