"""What decoders and encoders share: embeddings in front, blocks of attention and feed-forward, nothing left over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from converter.errors import UnsupportedFeature
from converter.formats.onnx.program import Program, Value
from converter.formats.onnx.values import CODES
from converter.graphs import origin
from converter.graphs.altup import AltUp
from converter.graphs.attention import Attention
from converter.graphs.builder import BATCH, TOKENS, Builder
from converter.graphs.convolution import Convolution
from converter.graphs.feedforward import FeedForward
from converter.graphs.layers import Layers
from converter.graphs.linear import Matrices, Ranges
from converter.graphs.model import Model
from converter.graphs.per_block import PerBlock
from converter.graphs.profiles import STANDARD, Profile
from converter.graphs.recurrent import Recurrent
from converter.tensors.dtypes import F32, DType
from converter.tensors.encode import Watch


@dataclass(frozen=True)
class Options:
    """How a graph is written.

    Attributes:
        dtype: what numbers are calculated in, F32 or F16; outputs are F32.
        watch: counts what casts lose.
        exact: matrices of codes meet activations as they are, not in 8 bits.
        normalised: a text's vector is divided by its length.
        ranges: what activations are between where INT8 meets them; without, each run looks at its own.
        profile: which operators it is made of.
    """

    dtype: DType
    watch: Watch
    exact: bool = False
    normalised: bool = False
    ranges: Ranges | None = None
    profile: Profile = STANDARD


class Network(ABC):
    """Writes the graph of a model, from its keys, tensors and facts."""

    def __init__(self, model: Model, options: Options) -> None:
        self.model = model
        self.normalised, self.profile = options.normalised, options.profile
        self.made: list[Value] = []
        self.build = Builder(options.dtype, options.profile.lowered)
        self.matrices = Matrices(self.build, options.watch, exact=options.exact, ranges=options.ranges)
        self.layers = Layers(self.build, model, self.matrices)
        self.attention = Attention(self.layers)
        self.convolution = Convolution(self.layers, self.attention.masks)
        self.recurrent = Recurrent(self.layers, self.attention.masks, self.convolution)
        self.feed_forward = FeedForward(self.layers)
        self.per_block, self.altup = PerBlock(self.layers, self.feed_forward), AltUp(self.layers)
        self.norm, self.first_norm, self.times = self.layers.norm, self.layers.first_norm, self.layers.times

    @abstractmethod
    def block(self, x: str, block: int) -> str:
        """What a block makes of its input: (batch, tokens, elements), as it is."""

    @abstractmethod
    def head(self, x: str) -> None:
        """Makes the outputs of what the last block made."""

    @abstractmethod
    def inputs(self) -> tuple[Value, ...]: ...

    def outputs(self) -> tuple[Value, ...]:
        """What was made, then what is kept for later tokens."""
        return (*self.made, *(present for _, present in self.layers.states))

    def program(self) -> Program:
        """The whole graph.

        Raises:
            UnsupportedFeature: a part that no graph can be written of yet.
        """
        x = self.embedded()
        self.per_block.prepare(x)
        x = self.altup.spread(x)
        for turn in range(n_turn := int(self.model.key("num_loops", default=1))):
            for block in range(self.model.n_layer):
                self.build.scope = f"blk.{block}/"
                self.layers.slot = block + turn * self.model.n_layer
                x = self.block(x, block)
            self.build.scope = ""
            if turn + 1 < n_turn and not self.model.key("skip_loop_final_norm", default=False):
                x = self.norm(x, self.model.facts.last_norm) or x
        self.head(self.altup.joined(x))
        self.refuse_unused()
        inputs, outputs = self.inputs(), self.outputs()
        nodes, initializers = self.build.reached(each.name for each in outputs)
        return Program(
            self.model.architecture.gguf, nodes, inputs, outputs, initializers,
            self.profile.opsets, self.profile.ir_version, origin.texts(self.model, self.matrices, initializers),
        )  # fmt: skip

    def embedded(self) -> str:
        """Tokens, with the types and the positions that there are tensors for."""
        build, model = self.build, self.model
        x = self.matrices.rows(self.layers.needed("token_embd.weight"), "input_ids")
        embedding = model.facts.embedding
        x = self.times(x, model.number(embedding) if embedding else model.key("embedding_scale"))
        if model.facts.embedding_norm:
            x = self.layers.normalised(x, self.layers.ones(model.size("embedding_length")))
        if (types := self.layers.tensor("token_types.weight")) is not None:
            ids = "token_type_ids" if self.has_types else build.constant([[0]])
            x = build.op("Add", x, self.matrices.rows(types, ids))
        if (positions := self.layers.tensor("position_embd.weight")) is not None:
            x = build.op("Add", x, self.matrices.rows(positions, "position_ids"))
        return x if self.model.facts.last_norm == "token_embd_norm" else self.norm(x, "token_embd_norm") or x

    @property
    def has_types(self) -> bool:
        """Whether tokens are of more than one type."""
        types = self.model.tensor("token_types.weight")
        return types is not None and types.info.shape[0] > 1

    def output(self, name: str, x: str, width: int) -> None:
        """An output of every token."""
        self.give(name, x)
        self.made.append(Value(name, "F32", (BATCH, TOKENS, width)))

    def give(self, name: str, x: str) -> None:
        """An output, in F32."""
        if self.build.dtype is F32:
            self.build.op("Identity", x, output=name)
        else:
            self.build.op("Cast", x, output=name, to=CODES[F32.name])

    def logits(self, x: str) -> str:
        """What the head makes of states, or the embedding in its place."""
        head = self.layers.tensor("output.weight")
        head = self.layers.needed("token_embd.weight") if head is None else head
        logits = self.layers.biased(self.matrices.multiply(x, head), "output.bias")
        if scale := self.model.facts.logits:
            logits = self.times(logits, self.model.number(scale))
        if cap := self.model.key("final_logit_softcapping"):
            size = self.build.number(cap)
            logits = self.build.op("Mul", self.build.op("Tanh", self.build.op("Div", logits, size)), size)
        return logits

    @property
    def n_vocab(self) -> int:
        """Rows of the head."""
        head = self.model.tensor("output.weight") or self.layers.needed("token_embd.weight")
        return head.info.shape[0]

    def refuse_unused(self) -> None:
        """A tensor that the graph did not use says that it computes something else."""
        left = self.model.read - self.layers.used
        if left:
            raise UnsupportedFeature(
                f"{min(left)}: no graph can be written with it yet ({self.model.architecture.gguf})\n"
                "--tensors-only writes the tensors without a graph"
            )
