"""What other rooms ask of an architecture besides its tensors and keys. Types only; the rows are data of its file.

Rooms below the mapping (`tokenizers`, `quant`) take these as arguments: whoever calls them knows the architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from converter.metadata import Value

#: Keys below `tokenizer.ggml.`, and what stands there.
Keys = tuple[tuple[str, Value], ...]

#: Types of a tensor in an unquantized file: F16 in one of F16 and F32 in others; what the file has, whatever its name;
#: whole numbers, which are ids.
F16_OR_F32, AS_ASKED, IDS, INDEXES = "F16 or F32", "as asked", "I64", "I32"

#: How a router's numbers become weights, as `expert_gating_func` counts; CHOSEN is a softmax over the chosen experts.
SOFTMAX, SIGMOID, CHOSEN, SQRT_SOFTPLUS = 1, 2, 3, 4

#: How the vectors of a text's tokens become one, as `pooling_type` counts: their mean, that of the first, of the last.
MEAN, CLS, LAST = 1, 2, 3


@dataclass(frozen=True)
class TokenizerStyle:
    """How a tokenizer is written: which readers are tried, what is set around them.

    Attributes:
        readers: tried in this order; the first whose files are there is used.
        first, last: keys set before and after; `last` goes with `last_reader` only, where one is named.
        space_prefix: where `add_prefix_space` of tokenizer_config.json goes: "first", "last", or nowhere.
        ids: special ids given by token text unless already known.
        config_ids: special ids that an entry of config.json names, whatever else does.
        settings_ids: special ids of the tokens that tokenizer_config.json names, whatever config.json says.
        keep_added: SentencePiece added tokens keep their text, and their special flag alone decides their type.
        keep_added_bpe: the same of byte-level BPE.
        redefines: a SentencePiece piece that tokenizer_config.json redefines has no score, the unknown one stays so.
        respelled: SentencePiece pieces that are written otherwise.
        unused: what SentencePiece pieces begin with that no text has.
        own_prefix: write whether the SentencePiece model puts a space in front.
        mask: behind the pieces of XLM-RoBERTa's SentencePiece model is `<mask>`.
        ends: special ids of the tokens with these texts, whatever else is said, where there are such.
        last_ids: the same, written after everything else.
        template: the chat template, whatever the folder has.
        early: keys that stand directly after general.architecture.
        elsewhere: what llama.cpp's converter takes of its own tree for a folder without a chat template.
        usual: whose tokenizer models have whose folder has none.
        by_rows: keys for vocabularies of one exact size.
        token_types: write token_type_count from the config.
        round_to: config's vocab_size is rounded up to a multiple of it.
    """

    readers: tuple[str, ...] = ("spm", "hf-spm", "bpe", "wordpiece", "unigram")
    first: Keys = ()
    last: Keys = ()
    space_prefix: str = ""
    ids: tuple[tuple[str, str], ...] = ()
    config_ids: tuple[tuple[str, str], ...] = ()
    settings_ids: tuple[str, ...] = ()
    keep_added: bool = False
    keep_added_bpe: bool = False
    redefines: bool = False
    respelled: tuple[tuple[str, str], ...] = ()
    unused: str = ""
    own_prefix: bool = False
    mask: bool = False
    ends: tuple[tuple[str, str], ...] = ()
    last_ids: tuple[tuple[str, str], ...] = ()
    template: str = ""
    early: tuple[str, ...] = ()
    elsewhere: str = ""
    usual: str = ""
    by_rows: Mapping[int, Keys] | None = None
    token_types: bool = False
    last_reader: str = ""
    round_to: int = 1


@dataclass(frozen=True)
class SlidingWindow:
    """Blocks that slide over a window where the header does not say it: one of every `period` sees all.

    Attributes:
        period: blocks from one that sees all to the next.
        full_first: the first of a period sees all, not the last.
        size: of the window in tokens, where the header has none.
    """

    period: int
    full_first: bool = False
    size: int = 0


@dataclass(frozen=True)
class Relation:
    """What must hold between hyperparameters: the condition, whose key is to blame, and what to say."""

    condition: str
    name: str
    message: str


@dataclass(frozen=True)
class Blocks:
    """How a model's blocks compute, for graphs that are written of it: what neither its keys nor its tensors say.

    Conditions and numbers are expressions over its hyperparameters; "" where the rule holds: what llama.cpp's graph of
    Llama does, with the parts that there are tensors for and the numbers that there are keys for.

    Attributes:
        activation: of the feed-forward part: "silu", "gelu" (exact), "gelu_tanh", "relu", "relu2", or
            "clamped" (of gpt-oss).
        neighbours: pairs of a head that rotate are neighbours in its matrices as they are stored by Hugging Face, too.
        rotates: which blocks do.
        theta: the base of the angles of a block, where that is not one for all.
        scaled: blocks whose angles follow the scaling of the context.
        scale: what scores are multiplied by.
        embedding: what embeddings are multiplied by.
        parallel: both parts of a block read the same input.
        ffn_norm: what the norm before the feed-forward part is called.
        last_norm: and the one after the last block.
        late_norm: queries and keys are normalised after they were rotated.
        rms: norms are of the root of the mean square, though keys have an epsilon for others, too.
        plain_norm: norms without weights stand where no tensor does.
        gate_first: the gate is the first half of a matrix for both, not the second.
        attention_gate: the operator that makes a gate of attention of what its matrix does.
        alibi: how steep the first head's slope is, as the exponent of a half, where positions are told by slopes.
        unit: blocks whose queries and keys have heads of one length, without a norm's weight.
        unit_values: so have values, in all blocks.
        keys_are_values: blocks whose values are what keys are before their norm.
        chunked: a window is a chunk of the text, not the tokens before one.
        residual: what both parts of a block are multiplied by, where no key says so.
        yarn_rounds: whether YaRN's ramp begins and ends at whole pairs.
        temperature: what blocks that do not rotate sharpen queries of far tokens by, where no key says so, and of
            how many tokens each step is.
        gating: one of SOFTMAX and its like, where no key says it; 0 for what the rule is.
        weights_norm: whether the weights of the chosen experts are made to sum up to one; None where the key says it.
        sparse_mixer: routers choose one expert after the other; how far below the best, relative to it, others count.
        routed_early: experts are chosen by what the block is given.
        weights_first: what experts are given is weighed, not what they make.
        chosen_by_logits: experts are chosen by the router's numbers as they are.
        shared_mean: with the shared experts it is the mean of both, not their sum.
        best_of_group: how many experts of a group have the scores that choose it.
        shared_by_neighbours: heads that share a group or a key of a state stand together, not a whole round apart.
        latent_epsilon: of the norms of latent vectors, where it is not that of the others.
        length_epsilon: of queries and keys of one length in a recurrence, where it is not that of the norms.
        late_epsilon: of the norms behind both parts of a block, where it is not that of the others.
        embedding_norm: embeddings have a norm without weights.
        bounded_first: what a gate is given is bounded, where there is a bound, not what it makes of it.
        rotated: how many elements of a head rotate, where that is not what the key says.
        logits: what logits are multiplied by.
    """

    activation: str = "silu"
    neighbours: bool = False
    rotates: str = ""
    theta: str = ""
    scaled: str = ""
    scale: str = ""
    embedding: str = ""
    parallel: str = ""
    ffn_norm: str = "ffn_norm"
    last_norm: str = "output_norm"
    late_norm: bool = False
    rms: bool = False
    plain_norm: bool = False
    gate_first: bool = True
    attention_gate: str = "Sigmoid"
    alibi: str = ""
    unit: str = ""
    unit_values: bool = False
    keys_are_values: str = ""
    chunked: bool = False
    residual: str = ""
    yarn_rounds: bool = True
    temperature: tuple[float, int] = (0.0, 0)
    gating: int = 0
    weights_norm: bool | None = None
    sparse_mixer: float = 0.0
    routed_early: bool = False
    weights_first: bool = False
    chosen_by_logits: bool = False
    shared_mean: bool = False
    best_of_group: str = "2"
    shared_by_neighbours: bool = True
    latent_epsilon: float | None = None
    length_epsilon: float | None = None
    late_epsilon: float | None = None
    embedding_norm: bool = False
    bounded_first: bool = False
    rotated: str = ""
    logits: str = ""


@dataclass(frozen=True)
class Decoder(Blocks):
    """A decoder, whose tokens see earlier ones."""


@dataclass(frozen=True)
class Encoder(Blocks):
    """An encoder, whose tokens all see each other.

    Attributes:
        head: functions between the matrices of a classifier, each with the condition where it is the one.
        pooling: how a classifier makes one vector of a text's tokens, where no key says it: MEAN, CLS, LAST.
    """

    head: tuple[tuple[str, str], ...] = (("tanh", ""),)
    pooling: int = CLS


@dataclass(frozen=True)
class Traits:
    """The facts of one architecture for rooms other than the mapping.

    Attributes:
        tokenizer: how its tokenizer is written.
        window: which blocks slide, where the header does not say it.
        first_shared: the first block that reuses the cache of earlier ones.
        large: condition over n_layer, n_head, n_head_kv that makes it what llama.cpp calls a 70B; "" where none is.
        kept: why -> parts of names of tensors that are never quantized, besides those of every architecture.
        protected: parts of names of tensors that no mixture stores below 8 bits.
        relations: what must hold besides the relations of every architecture.
        told: what is said where it does not hold, of a GGUF and of a graph that is written of what one holds.
        runtime: what is said of a GGUF alone, of which llama.cpp computes something else than the graph does.
        decoder, encoder: how it computes, where a graph can be written of it, as the one or the other.
        built_in: settings of config.json that its runtime computes without being told, where they are not the usual
            ones of `architectures.settings.NEUTRAL`, or of no interest elsewhere.
    """

    tokenizer: TokenizerStyle = TokenizerStyle()
    window: SlidingWindow | None = None
    first_shared: int | None = None
    large: str = ""
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    protected: tuple[str, ...] = ()
    relations: tuple[Relation, ...] = ()
    told: tuple[Relation, ...] = ()
    runtime: tuple[Relation, ...] = ()
    decoder: Decoder | None = None
    encoder: Encoder | None = None
    built_in: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
