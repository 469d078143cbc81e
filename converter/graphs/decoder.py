"""A decoder with its cache in one graph: prompts and single tokens, batches with padding on the left.

Inputs and outputs are those that optimum and Transformers.js know: `input_ids`, `attention_mask`, `position_ids`,
`past_key_values.N.key|value`; `logits`, `present.N.key|value`.
"""

from __future__ import annotations

from converter.errors import UnsupportedFeature
from converter.formats.onnx.program import Program, Value
from converter.formats.onnx.values import CODES
from converter.graphs import origin
from converter.graphs.attention import Attention
from converter.graphs.builder import MICROSOFT, Builder
from converter.graphs.feedforward import FeedForward
from converter.graphs.layers import Layers
from converter.graphs.linear import Matrices
from converter.graphs.model import Model
from converter.tensors.dtypes import F32, DType
from converter.tensors.encode import Watch

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


class _Decoder:
    def __init__(self, model: Model, dtype: DType, watch: Watch, *, exact: bool) -> None:
        self.model, self.facts = model, model.facts
        self.build = Builder(dtype)
        self.matrices = Matrices(self.build, watch, exact=exact)
        self.layers = Layers(self.build, model, self.matrices)
        self.attention = Attention(self.layers)
        self.feed_forward = FeedForward(self.layers)
        self.norm, self.first_norm, self.times = self.layers.norm, self.layers.first_norm, self.layers.times

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
        x = self.matrices.rows(self.layers.needed("token_embd.weight"), "input_ids")
        scale = self.model.number(self.facts.embedding) if self.facts.embedding else self.model.key("embedding_scale")
        x = self.times(x, scale)
        if (positions := self.layers.tensor("position_embd.weight")) is not None:
            x = self.build.op("Add", x, self.matrices.rows(positions, "position_ids"))
        return self.norm(x, "token_embd_norm") or x

    def block(self, x: str, block: int) -> str:
        name = f"blk.{block}."
        inner = self.first_norm(x, f"{name}attn_norm")
        attended = self.attention(self.norm(x, f"{name}attn_norm_2") or inner or x, block)
        attended = self.norm(attended, f"{name}post_attention_norm") or attended if self.has_late(name) else attended
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

    def has_late(self, name: str) -> bool:
        """Whether the norm that is called so stands behind the attention, and not before what follows."""
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
        if self.build.dtype is F32:
            self.build.op("Identity", logits, output="logits")
        else:
            self.build.op("Cast", logits, output="logits", to=CODES[F32.name])
        self.n_vocab = head.info.shape[0]

    def refuse_unused(self) -> None:
        """A tensor that the graph did not use says that it computes something else."""
        n_layer = self.model.n_layer
        left = [name for name in self.model.tensors if name not in self.layers.used]
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
            for block, heads in enumerate(self.attention.caches)
            for part, size in (("key", heads.key), ("value", heads.value))
        )
