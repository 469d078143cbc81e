"""A model that reads a text at once, as a whole, in batches with padding on either side.

Inputs are those that optimum and Transformers.js know: `input_ids`, `attention_mask`, and `token_type_ids` where tokens
are of more than one type. Outputs are `logits` of a classifier, or of a model that fills in words; else
`last_hidden_state`, and `sentence_embedding` where the model says how the tokens of a text become one vector;
`token_embeddings` where each token keeps its own, through dense layers.

Source: llama.cpp's bert.cpp and modern-bert.cpp, and `build_pooling`; sentence-transformers' Pooling and Normalize.
"""

from __future__ import annotations

import numpy as np

from converter.architectures.traits import CLS, LAST, MEAN, Encoder
from converter.errors import UnsupportedFeature
from converter.formats.onnx.program import Value
from converter.graphs.builder import BATCH, TOKENS
from converter.graphs.feedforward import ACTIVATIONS
from converter.graphs.network import Network
from converter.tensors.dtypes import F32

#: Below this a vector is no longer divided by its length, as in torch's `normalize`.
SHORTEST = 1e-12


class Texts(Network):
    """Its ends; blocks are those of an encoder or of a decoder."""

    def embedded(self) -> str:
        """Positions are counted from the first token that is no padding."""
        build = self.build
        counted = build.op("CumSum", "attention_mask", build.constant(1))
        places = build.op("Sub", counted, build.constant(1))
        build.op("Max", places, build.constant(0), output="position_ids")
        return super().embedded()

    def head(self, x: str) -> None:
        x = self.first_norm(x, self.model.facts.last_norm) or x
        if self.layers.has("cls.output"):
            self.give_one("logits", self.scores(x), self.rows("cls.output"))
        elif self.is_of_states:
            self.states(x)
        else:
            self.output("logits", self.logits(x), self.n_vocab)

    @property
    def is_of_states(self) -> bool:
        """Whether it makes states and vectors of texts, not words: those of an encoder do not see their own words."""
        return isinstance(self.model.facts, Encoder) or self.model.is_of_texts

    def states(self, x: str) -> None:
        """Those of every token, and a text's vector."""
        width = self.model.size("embedding_length")
        self.output("last_hidden_state", x, width)
        self.layers.used.add("output.weight")  # a head that nobody asks
        kind = self.model.key("pooling_type", default=0)
        dense = [name for name in ("dense_2", "dense_3") if self.layers.has(name)]
        if kind not in (MEAN, CLS, LAST) and not dense:
            return
        vector = self.pooled(x, kind) if kind else x
        for name in dense:
            vector, width = self.layers.linear(vector, name), self.rows(name)
        vector = self.of_length_one(vector) if self.normalised else vector
        if kind:
            self.give_one("sentence_embedding", vector, width)
        else:
            self.output("token_embeddings", vector, width)

    def rows(self, name: str) -> int:
        return self.layers.needed(f"{name}.weight").info.shape[0]

    def give_one(self, name: str, x: str, width: int) -> None:
        """An output of one vector a text."""
        self.give(name, self.build.op("Squeeze", x, self.build.constant([1])))
        self.made.append(Value(name, "F32", (BATCH, width)))

    def scores(self, x: str) -> str:
        """What a classifier makes of a text."""
        facts = self.model.facts
        own, head = (facts.pooling, facts.head) if isinstance(facts, Encoder) else (LAST, ())
        kind = self.model.key("classifier.pooling_type", default=own)
        x = self.pooled(x, kind)
        if self.layers.has("cls"):
            activation = next(name for name, condition in head if self.model.holds(condition))
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
