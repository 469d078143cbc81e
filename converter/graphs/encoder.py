"""An encoder in one graph: tokens that all see each other, in batches with padding on either side.

Inputs are those that optimum and Transformers.js know: `input_ids`, `attention_mask`, and `token_type_ids` where tokens
are of more than one type. Outputs are `logits` of a classifier; else `last_hidden_state`, and `sentence_embedding`
where the model says how the tokens of a text become one vector.

Source: llama.cpp's bert.cpp and modern-bert.cpp, and `build_pooling`; sentence-transformers' Pooling and Normalize.
"""

from __future__ import annotations

import numpy as np

from converter.architectures.traits import CLS, LAST, MEAN, Encoder
from converter.errors import UnsupportedFeature
from converter.formats.onnx.program import Program, Value
from converter.graphs.feedforward import ACTIVATIONS
from converter.graphs.model import Model
from converter.graphs.network import BATCH, TOKENS, Network
from converter.tensors.dtypes import F32, DType
from converter.tensors.encode import Watch

#: Below this a vector is no longer divided by its length, as in torch's `normalize`.
SHORTEST = 1e-12


def encoder(
    model: Model, facts: Encoder, dtype: DType, watch: Watch, *, exact: bool = False, normalised: bool = False
) -> Program:
    """The graph of an encoder; `model`, `dtype`, `watch` and `exact` as `Network`'s.

    `normalised`: a text's vector is divided by its length.

    Raises:
        UnsupportedFeature: a part that no graph can be written of yet.
    """
    return _Encoder(model, facts, dtype, watch, exact=exact, normalised=normalised).program()


class _Encoder(Network):
    def __init__(
        self, model: Model, facts: Encoder, dtype: DType, watch: Watch, *, exact: bool, normalised: bool
    ) -> None:
        super().__init__(model, dtype, watch, exact=exact)
        self.facts = facts
        self.is_normalised = normalised
        self.made: list[Value] = []

    def embedded(self) -> str:
        """Positions are counted from the first token that is no padding."""
        build = self.build
        counted = build.op("CumSum", "attention_mask", build.constant(1))
        places = build.op("Sub", counted, build.constant(1))
        build.op("Max", places, build.constant(0), output="position_ids")
        return super().embedded()

    def block(self, x: str, block: int) -> str:
        """Norms stand before the parts of a block or behind them, wherever there are tensors for them."""
        name, add = f"blk.{block}.", self.build.op
        attended = self.attention(self.norm(x, f"{name}attn_norm") or x, block)
        attended = self.norm(attended, f"{name}post_attention_norm") or attended
        before, x = x, add("Add", x, attended)
        x = self.norm(x, f"{name}attn_output_norm") or x
        if self.layers.has(f"{name}attn_norm_2"):
            x = self.norm(add("Add", x, before), f"{name}attn_norm_2") or x
        made = self.feed_forward(self.norm(x, f"{name}ffn_norm") or x, block, before)
        made = self.norm(made, f"{name}post_ffw_norm") or made
        x = add("Add", x, made)
        return self.norm(x, f"{name}layer_output_norm") or x

    # ---------------------------------------------------------------------------------------------- ends

    def head(self, x: str) -> None:
        x = self.norm(x, "output_norm") or x
        if self.layers.has("cls.output"):
            self.give_one("logits", self.scores(x), self.rows("cls.output"))
            return
        width = self.model.size("embedding_length")
        self.output("last_hidden_state", x)
        self.made.append(Value("last_hidden_state", "F32", (BATCH, TOKENS, width)))
        kind = self.model.key("pooling_type", default=0)
        if kind not in (MEAN, CLS, LAST):
            return
        vector = self.pooled(x, kind)
        for dense in filter(self.layers.has, ("dense_2", "dense_3")):
            vector, width = self.layers.linear(vector, dense), self.rows(dense)
        self.give_one("sentence_embedding", self.of_length_one(vector) if self.is_normalised else vector, width)

    def rows(self, name: str) -> int:
        return self.layers.needed(f"{name}.weight").info.shape[0]

    def give_one(self, name: str, x: str, width: int) -> None:
        """An output of one vector a text."""
        self.output(name, self.build.op("Squeeze", x, self.build.constant([1])))
        self.made.append(Value(name, "F32", (BATCH, width)))

    def scores(self, x: str) -> str:
        """What a classifier makes of a text."""
        kind = self.model.key("classifier.pooling_type", default=self.facts.pooling)
        x = self.pooled(x, kind)
        if self.layers.has("cls"):
            activation = next(name for name, condition in self.facts.head if self.model.holds(condition))
            x = ACTIVATIONS[activation](self.build, self.layers.linear(x, "cls"))
        return self.layers.linear(self.norm(x, "cls.norm") or x, "cls.output")

    def pooled(self, x: str, kind: int) -> str:
        """The tokens' vectors as one: (batch, tokens, elements) -> (batch, 1, elements)."""
        build = self.build
        if kind == MEAN:
            real = build.op("Unsqueeze", build.cast("attention_mask", build.dtype), build.constant([-1]))
            count = build.op("Max", build.op("ReduceSum", real, build.constant([1])), build.number(1))
            return build.op("ReduceSum", build.op("Mul", x, build.op("Div", real, count)), build.constant([1]))
        if kind not in (CLS, LAST):
            raise UnsupportedFeature(f"{self.model.architecture.gguf}: pooling of type {kind}, a graph cannot have it")
        place = build.op("ArgMax", "attention_mask", axis=1, keepdims=1, select_last_index=int(kind == LAST))
        return build.op("GatherND", x, build.op("Unsqueeze", place, build.constant([-1])), batch_dims=1)

    def of_length_one(self, x: str) -> str:
        """Vectors by their length, in F32, whose squares do not overflow."""
        build = self.build
        x = build.cast(x, F32)
        length = build.op("ReduceL2", x, build.constant([-1]))
        return build.op("Div", x, build.op("Max", length, build.constant(SHORTEST, np.float32)))

    def inputs(self) -> tuple[Value, ...]:
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if self.has_types else ()))
        return tuple(Value(name, "I64", (BATCH, TOKENS)) for name in names)

    def outputs(self) -> tuple[Value, ...]:
        return tuple(self.made)
