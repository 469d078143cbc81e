"""Tokens, types and scores for each kind of tokenizer, laid out by embedding row.

Token types are llama.cpp's: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. A row
that no token claims holds "[PADn]", unused, score -10000, as llama.cpp's converter writes it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from converter.architectures.traits import TokenizerStyle
from converter.errors import TokenizerError
from converter.events import Dropped, Event, Note
from converter.metadata import Array, Metadata, Strings, boolean, text, u32
from converter.tokenizers.encoder import Decoder
from converter.tokenizers.files import TokenizerFiles, as_dict, as_id, as_list, as_text
from converter.tokenizers.own import PLAMO_FILE, RWKV_FILE, read_plamo, read_rwkv
from converter.tokenizers.ranks import (
    RANK_FILES,
    merges_of,
    read_ranks,
    read_tekken,
    special_tokens,
    spelled,
    splits_of,
)
from converter.tokenizers.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    read_sentencepiece,
)
from converter.tokenizers.special import ADD_BOS, ADD_EOS, CHARSMAP, COLLAPSE, ID_KEYS, SPACE_PREFIX
from converter.tokenizers.vocabulary import Vocabulary

PAD_SCORE, ADDED_SCORE = -10000.0, -1000.0
MARK = "▁"
WHITESPACE = "whitespace"  # the name of a tokenizer model and of its pre-tokenizer
#: What the code beside ChatGLM's SentencePiece model calls its first pieces, and puts behind the last.
CHATGLM_PRE, CHATGLM_FIRST = "chatglm-spm", ("<unk>", "<bos>", "<eos>")
CHATGLM_SPECIAL = (
    "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
_SPECIAL_LOOKS = frozenset(("<pad>", "<mask>", "<2mass>", "[@BOS@]"))
_SPECIAL_AFFIXES = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))


@dataclass
class Rows:
    """One slot per embedding row; a slot that stays empty becomes a padding token."""

    size: int
    texts: list[str | None] = field(init=False)
    types: np.ndarray = field(init=False)
    scores: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [None] * self.size
        self.types = np.full(self.size, UNUSED, np.int32)
        self.scores = np.full(self.size, PAD_SCORE, np.float32)

    def set(self, at: int, token: str, kind: int, score: float = ADDED_SCORE) -> None:
        self.texts[at], self.types[at], self.scores[at] = token, kind, score

    def filled_rows(self) -> Iterator[tuple[int, str]]:
        """Rows that have a token."""
        return ((i, token) for i, token in enumerate(self.texts) if token is not None)

    @property
    def filled(self) -> int:
        return sum(token is not None for token in self.texts)

    def arrays(self, *, scores: bool) -> Iterator[tuple[str, Array]]:
        """The tokens, scores and token_type keys in the reference's order."""
        try:
            tokens = Strings.of(f"[PAD{i}]" if t is None else t for i, t in enumerate(self.texts))
        except UnicodeEncodeError as error:
            raise TokenizerError(f"a token holds half a surrogate pair and cannot be stored ({error.reason})") from None
        yield "tokenizer.ggml.tokens", Array("str", tokens)
        if scores:
            yield "tokenizer.ggml.scores", Array("f32", self.scores)
        yield "tokenizer.ggml.token_type", Array("i32", self.types)


@dataclass(frozen=True)
class Given:
    """A special id that the files of the vocabulary imply: where nothing says any, where nothing says it, or always."""

    name: str
    id: int
    when: Literal["none said", "not said", "always"] = "always"


@dataclass
class Built:
    """A tokenizer laid out.

    Attributes:
        reader: which made it.
        head: keys in write order.
        merges: for the key after them.
        limit: whether special ids must lie within the rows.
        given: special ids besides those of config and settings.
        tail: keys after the special ids.
        template: the chat template of a folder that has none.
        elsewhere: what llama.cpp's converter takes of its own tree for such a folder.
        named: whether the special ids that the style gives by text go with it.
    """

    reader: str
    rows: Rows
    head: Metadata
    merges: Strings = field(default_factory=lambda: Strings.of(()))
    limit: bool = True
    events: list[Event] = field(default_factory=list)
    given: tuple[Given, ...] = ()
    tail: Metadata = field(default_factory=dict)
    template: str | None = None
    elsewhere: str = ""
    named: bool = True


def looks_special(token: str) -> bool:
    """Whether an added token is a control token by its looks, whatever its flags say."""
    return token in _SPECIAL_LOOKS or any(token.startswith(a) and token.endswith(b) for a, b in _SPECIAL_AFFIXES)


def check_size(n_tokens: int, rows: int) -> None:
    """Raise TokenizerError when there are more tokens than embedding rows."""
    if n_tokens > rows:
        raise too_many(n_tokens, rows)


def too_many(n_tokens: int, rows: int) -> TokenizerError:
    """What is wrong where there are more tokens than embedding rows."""
    return TokenizerError(
        f"tokenizer has {n_tokens} tokens, the embedding {rows} rows: they do not belong together\n"
        "check that the tokenizer files and config.json's vocab_size are those of this model"
    )


def _table(vocabulary: Vocabulary, rows: int | None) -> Rows:
    """All tokens by their ids, as normal ones.

    Raises:
        TokenizerError: there are more tokens than rows; says which setting names those beyond.
    """
    n_ids = vocabulary.n_ids()
    table = Rows(n_ids if rows is None else rows)
    if n_ids > table.size:
        raise _surplus(vocabulary, n_ids, table.size)
    for i, token in vocabulary.tokens():
        table.texts[i] = token
    table.types[[i for i, token in enumerate(table.texts) if token is not None]] = NORMAL
    return table


def _surplus(vocabulary: Vocabulary, n_ids: int, rows: int) -> TokenizerError:
    beyond = sorted((i, token) for i, token in vocabulary.tokens() if i >= rows)
    surplus = [token for _, token in beyond]
    if any(token not in vocabulary.named_by for token in surplus):
        return too_many(n_ids, rows)
    shown = ", ".join(f"{ascii(token)[:60]} ({vocabulary.named_by[token]})" for token in surplus[:4])
    more = f" and {len(surplus) - 4} more" if len(surplus) > 4 else ""
    return TokenizerError(
        f"tokenizer has {n_ids} tokens, the embedding {rows} rows: it has none for {shown}{more}\n"
        "name tokens of the vocabulary in tokenizer_config.json, or null; "
        'with "tokenizer_class": "PreTrainedTokenizerFast" there are no defaults'
    )


# --- SentencePiece


def build_spm(files: TokenizerFiles, name: str, style: TokenizerStyle, rows: int | None) -> Built:
    """`tokenizer.model` of either kind, as the "llama" tokenizer model."""
    model = read_sentencepiece(files.data(name), name)
    table, events = _spm_rows(files, model, style, rows)
    head: Metadata = {"tokenizer.ggml.model": text("llama"), "tokenizer.ggml.pre": text("default")}
    head.update(table.arrays(scores=True))
    if style.own_prefix:
        head[SPACE_PREFIX] = boolean(model.add_dummy_prefix)
    return Built("spm", table, head, events=events)


def _spm_rows(
    files: TokenizerFiles, model: SentencePieceModel, style: TokenizerStyle, rows: int | None
) -> tuple[Rows, list[Event]]:
    table = Rows(len(model) if rows is None else rows)
    check_size(len(model), table.size)
    respelled = dict(style.respelled)
    for i, piece in enumerate(model.pieces):
        kind, token = model.types[i], piece.decode()
        kind = UNUSED if style.unused and token.startswith(style.unused) else NORMAL if kind == USER_DEFINED else kind
        table.set(i, respelled.get(token, token), kind, model.scores[i])
    events: list[Event] = []
    if style.redefines:
        _redefine(files.json("tokenizer_config.json"), table)
        return table, events
    for content, place in files.json("added_tokens.json").items():
        _set_added(table, as_id(place, "added_tokens.json"), content, USER_DEFINED, "added_tokens.json", events)
    _overlay(files, table, style, events)
    return table, events


def build_chatglm(files: TokenizerFiles, name: str, rows: int | None) -> Built:
    """ChatGLM's SentencePiece model, whose special tokens only its code names, as the "llama" tokenizer model."""
    model = read_sentencepiece(files.data(name), name)
    first = len(model)
    table = Rows(first + len(CHATGLM_SPECIAL) if rows is None else rows)
    check_size(first + len(CHATGLM_SPECIAL), table.size)
    table.scores[:] = 0.0
    for i, (piece, kind, score) in enumerate(zip(model.pieces, model.types, model.scores, strict=True)):
        token = CHATGLM_FIRST[i] if i < len(CHATGLM_FIRST) else piece.decode()
        table.set(i, token, NORMAL if kind == USER_DEFINED else kind, score)
    for i, token in enumerate(CHATGLM_SPECIAL, first):
        table.set(i, token, CONTROL, 0.0)
    head: Metadata = {"tokenizer.ggml.model": text("llama"), "tokenizer.ggml.pre": text(CHATGLM_PRE)}
    head.update(table.arrays(scores=True))
    return Built("chatglm", table, head, named=False)


def _redefine(settings: dict[str, object], table: Rows) -> None:
    """Pieces that tokenizer_config.json names otherwise."""
    where = "tokenizer_config.json added_tokens_decoder"
    for key, value in as_dict(settings.get("added_tokens_decoder"), where).items():
        fields = as_dict(value, where)
        i, content, special = as_id(key, where), as_text(fields.get("content"), where), bool(fields.get("special"))
        kind = USER_DEFINED if not special else UNKNOWN if content == settings.get("unk_token") else CONTROL
        if i < table.size:
            table.set(i, content, kind, 0.0 if special else PAD_SCORE)


def _set_added(table: Rows, i: int, content: str, kind: int, source: str, events: list[Event]) -> None:
    if i < table.size:
        table.set(i, content, kind)
    else:
        events.append(Dropped(f"token {i} {content!r} of {source}", f"the embedding has {table.size} rows"))


def _overlay(files: TokenizerFiles, table: Rows, style: TokenizerStyle, events: list[Event]) -> None:
    where = "tokenizer_config.json added_tokens_decoder"
    for key, value in as_dict(files.json("tokenizer_config.json").get("added_tokens_decoder"), where).items():
        fields = as_dict(value, where)
        content, kind = _added_kind(as_text(fields.get("content"), where), bool(fields.get("special")), style)
        _set_added(table, as_id(key, where), content, kind, "tokenizer_config.json", events)
    where = "tokenizer.json added_tokens"
    for entry in as_list(files.json("tokenizer.json").get("added_tokens"), where):
        fields = as_dict(entry, where)
        i = as_id(fields.get("id"), where)
        if style.keep_added or (i < table.size and table.texts[i] is None):
            content, kind = _added_kind(as_text(fields.get("content"), where), bool(fields.get("special")), style)
            _set_added(table, i, content, kind, "tokenizer.json", events)


def _added_kind(content: str, special: bool, style: TokenizerStyle) -> tuple[str, int]:
    if special or (looks_special(content) and not style.keep_added):
        return content, CONTROL
    return content if style.keep_added else content.replace(MARK, " "), USER_DEFINED


# --- tokenizer.json of a SentencePiece-like BPE


def is_spm_json(vocabulary: Vocabulary) -> bool:
    """Whether tokenizer.json is Llama's kind of BPE: byte fallback, and a decoder that is a sequence."""
    model = as_dict(vocabulary.tokenizer.get("model"), "tokenizer.json model")
    decoder = as_dict(vocabulary.tokenizer.get("decoder"), "tokenizer.json decoder")
    return vocabulary.kind == "BPE" and bool(model.get("byte_fallback")) and decoder.get("type") == "Sequence"


def build_spm_json(vocabulary: Vocabulary, rows: int | None) -> Built:
    """Llama-style tokenizer.json as the "llama" tokenizer model.

    llama.cpp's converter gives every token the score -1000. Its runtime merges by score, so those
    scores cut text elsewhere than the tokenizer does; here the score is minus the merge's place.
    """
    table = _table(vocabulary, rows)
    special = vocabulary.special_ids()
    scores = _merge_scores(vocabulary)
    count = len(vocabulary.base)
    for i, token in table.filled_rows():
        kind = BYTE if _BYTE_TOKEN.fullmatch(token) else CONTROL if i in special else NORMAL
        if i >= count:
            kind = CONTROL if i in special else USER_DEFINED
        table.set(i, token, kind, scores.get(token, 0.0) if kind in (NORMAL, BYTE) else ADDED_SCORE)
    head: Metadata = {"tokenizer.ggml.model": text("llama"), "tokenizer.ggml.pre": text("default")}
    head.update(table.arrays(scores=True))
    note = Note("tokenizer.json alone: token scores derived from the order of its merges")
    return Built("hf-spm", table, head, events=[note])


def _merge_scores(vocabulary: Vocabulary) -> dict[str, float]:
    """Score per token that a merge makes: minus the place of the first such merge; other plain tokens last."""
    scores: dict[str, float] = {}
    for place, merge in enumerate(vocabulary.merges):
        left, _, right = str(merge).partition(" ")
        scores.setdefault(left + right, -float(place))
    last = -float(len(vocabulary.merges))
    for token in vocabulary.base:
        if token not in vocabulary.added and not _BYTE_TOKEN.fullmatch(token):
            scores.setdefault(token, last)
    return scores


_GEMMA4_SHOWN = frozenset(
    ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
)


def build_gemma4(vocabulary: Vocabulary, rows: int | None) -> Built:
    """The same kind of tokenizer.json as the "gemma4" tokenizer model, which merges by rank: no scores are needed."""
    table = build_spm_json(vocabulary, rows).rows
    table.scores[table.types != UNUSED] = ADDED_SCORE
    for i, token in enumerate(table.texts):
        if token in _GEMMA4_SHOWN:
            table.types[i] = USER_DEFINED
    head: Metadata = {"tokenizer.ggml.model": text("gemma4")}
    head.update(table.arrays(scores=True))
    return Built("gemma4", table, head, merges=vocabulary.merges, limit=False)


# --- byte-level BPE and WordPiece


def build_bpe(vocabulary: Vocabulary, pre: str, rows: int | None, keep_added: bool = False) -> Built:
    """BPE as the "gpt2" tokenizer model; `keep_added` as the style's `keep_added_bpe`."""
    return _merging(vocabulary, "bpe", vocabulary.model, pre, _plain_rows(vocabulary, rows, keep_added))


def build_whitespace(vocabulary: Vocabulary, rows: int | None) -> Built:
    """BPE of letters, not of bytes, in words between spaces: the "whitespace" tokenizer model."""
    return _merging(vocabulary, "whitespace", WHITESPACE, WHITESPACE, _plain_rows(vocabulary, rows))


def cuts_at_spaces(vocabulary: Vocabulary) -> bool:
    """Whether tokenizer.json cuts text into words at spaces and marks, and merges letters in them."""
    spec = as_dict(vocabulary.tokenizer.get("pre_tokenizer"), "tokenizer.json pre_tokenizer")
    return vocabulary.kind == "BPE" and spec.get("type") == "Whitespace"


def _merging(vocabulary: Vocabulary, reader: str, model: str, pre: str, table: Rows) -> Built:
    head: Metadata = {"tokenizer.ggml.model": text(model), "tokenizer.ggml.pre": text(pre)}
    head.update(table.arrays(scores=False))
    return Built(reader, table, head, merges=vocabulary.merges, limit=False)


def build_wordpiece(vocabulary: Vocabulary, pre: str, rows: int | None) -> Built:
    """WordPiece as the "bert" tokenizer model: word starts marked with ▁ instead of continuations with ##."""
    table = _plain_rows(vocabulary, rows)
    for i, token in enumerate(table.texts):
        if table.types[i] != CONTROL:
            token = f"[PAD{i}]" if token is None else token
            table.texts[i] = token[2:] if token.startswith("##") else MARK + token
    head: Metadata = {"tokenizer.ggml.model": text("bert"), "tokenizer.ggml.pre": text(pre)}
    head.update(table.arrays(scores=False))
    return Built("wordpiece", table, head)


def _plain_rows(vocabulary: Vocabulary, rows: int | None, keep_added: bool = False) -> Rows:
    table = _table(vocabulary, rows)
    decoder = Decoder(vocabulary.tokenizer.get("decoder"))
    for added in vocabulary.added.values():
        if keep_added:
            table.set(added.id, added.content, CONTROL if added.special else USER_DEFINED)
            continue
        content = added.content if added.normalized else decoder.token(added.content)
        if added.special or looks_special(content):
            table.set(added.id, content, CONTROL)
        else:
            table.set(added.id, content.replace(MARK, " "), USER_DEFINED)
    return table


# --- Unigram


def build_unigram(model: SentencePieceModel, files: TokenizerFiles, style: TokenizerStyle, rows: int | None) -> Built:
    """A unigram SentencePiece model as the "t5" tokenizer model."""
    if model.model_type != UNIGRAM:
        raise TokenizerError("a unigram model was expected, this SentencePiece model is BPE; pass the style spm")
    table, events = _spm_rows(files, model, style, rows)
    head = _unigram_head(
        table, model.add_dummy_prefix, model.remove_extra_whitespaces, model.precompiled_charsmap, None
    )
    return Built("unigram", table, head, events=events)


def build_xlmr(model: SentencePieceModel, token_types: int | None, rows: int | None, mask: bool = False) -> Built:
    """XLM-RoBERTa's sentencepiece.bpe.model: its ids are shifted by fairseq's four special tokens.

    With `mask`, the token behind them all, of which the file says nothing.
    """
    if model.model_type != UNIGRAM:
        raise TokenizerError("sentencepiece.bpe.model: a unigram model was expected")
    special = (("<s>", CONTROL), ("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN))
    table = Rows(len(model) if rows is None else rows)
    check_size(len(model), table.size)
    for i, (token, kind) in enumerate(special):
        table.set(i, token, kind, 0.0)
    for i in range(3, len(model)):
        if i + 1 < table.size:
            table.set(i + 1, model.pieces[i].decode(), model.types[i], model.scores[i])
    if mask and len(model) + 1 < table.size:
        table.set(len(model) + 1, "<mask>", CONTROL, 0.0)
    head = _unigram_head(
        table, model.add_dummy_prefix, model.remove_extra_whitespaces, model.precompiled_charsmap, token_types
    )
    return Built("unigram", table, head)


def build_unigram_json(vocabulary: Vocabulary, token_types: int | None, rows: int | None) -> Built:
    """A unigram tokenizer.json as the "t5" tokenizer model."""
    table = _table(vocabulary, rows)
    model = as_dict(vocabulary.tokenizer.get("model"), "tokenizer.json model")
    unknown = vocabulary.id_of(vocabulary.named.get("unk", ""))
    if unknown is None:
        unknown = as_id(model.get("unk_id", 3), "tokenizer.json model unk_id")
    special = vocabulary.special_ids()
    added = {token.id for token in vocabulary.added.values()}
    for i, token in table.filled_rows():
        kind = UNKNOWN if i == unknown else CONTROL if i in special else USER_DEFINED if i in added else NORMAL
        table.set(i, token, kind, vocabulary.scores[i] if i < len(vocabulary.scores) else ADDED_SCORE)
    words = str(vocabulary.tokenizer.get("pre_tokenizer"))
    head = _unigram_head(
        table,
        "Metaspace" in words,
        "WhitespaceSplit" in words,
        _charsmap(vocabulary.tokenizer.get("normalizer")),
        token_types,
    )
    return Built("unigram", table, head)


def _unigram_head(table: Rows, prefix: bool, collapse: bool, charsmap: bytes, token_types: int | None) -> Metadata:
    head: Metadata = {"tokenizer.ggml.model": text("t5"), "tokenizer.ggml.pre": text("default")}
    head.update(table.arrays(scores=True))
    head[SPACE_PREFIX] = boolean(prefix)
    if token_types is not None:
        head["tokenizer.ggml.token_type_count"] = u32(token_types)
    head[COLLAPSE] = boolean(collapse)
    if charsmap:
        head[CHARSMAP] = Array("u8", np.frombuffer(charsmap, np.uint8))
    return head


def _charsmap(spec: object) -> bytes:
    where = "tokenizer.json normalizer"
    fields: Mapping[str, object] = as_dict(spec, where)
    parts = as_list(fields.get("normalizers"), where) if fields.get("type") == "Sequence" else [fields]
    for part in parts:
        encoded = as_dict(part, where).get("precompiled_charsmap")
        if isinstance(encoded, str):
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error:
                raise TokenizerError(f"{where}: precompiled_charsmap is not base64") from None
    return b""


def model_kind(model: SentencePieceModel) -> str:
    """The reader for a SentencePiece model: "spm" for BPE, "unigram"."""
    return "spm" if model.model_type == BPE else "unigram"


# --- ranks


def build_tiktoken(files: TokenizerFiles, name: str, rows: int | None, pre: str | None) -> Built:
    """A file of ranks as the "gpt2" tokenizer model."""
    kind = RANK_FILES[name]
    tokens = read_ranks(files.text(name), name)
    size = rows or len(tokens) + max(len(kind.special), kind.n_reserved)
    special = special_tokens(kind, files.json("tokenizer_config.json"), len(tokens), size)
    table = Rows(size)
    check_size(max([len(tokens) - 1, *special]) + 1, size)
    table.texts[: len(tokens)] = map(spelled, tokens)
    table.types[: len(tokens)] = NORMAL
    for i, token in special.items():
        table.set(i, token, CONTROL)
    head: Metadata = {"tokenizer.ggml.model": text("gpt2"), "tokenizer.ggml.pre": text(pre or kind.pre)}
    head.update(table.arrays(scores=False))
    ids = {token: i for i, token in special.items()}
    given = [Given(n, ids[token], "none said") for n, token in kind.alone if token in ids]
    given += [Given(n, ids[token], "not said") for n, token in kind.ids if token in ids]
    given += [Given(n, ids[token]) for n, token in kind.forced if token in ids]
    return Built("tiktoken", table, head, Strings.of(merges_of(tokens)), limit=False, given=tuple(given))


# Names under which llama.cpp has Mistral's templates, by version and kind of vocabulary.
_MISTRAL_TEMPLATES = {
    ("v1", "spm"): "mistral-v1", ("v3", "spm"): "mistral-v3", ("v3", "tekken"): "mistral-v3-tekken",
    ("v7", "spm"): "mistral-v7", ("v7", "tekken"): "mistral-v7-tekken",
}  # fmt: skip
# The files of those that it has whole.
_MISTRAL_ELSEWHERE = {
    "v11": "Mistral-Small-3.2-24B-Instruct-2506.jinja", "v13": "unsloth-mistral-Devstral-Small-2507.jinja",
}  # fmt: skip


def build_tekken(files: TokenizerFiles, rows: int | None) -> Built:
    """Mistral's tekken.json as the "gpt2" tokenizer model; the keys' order is llama.cpp's for this file."""
    tekken = read_tekken(files)
    first = len(tekken.special)
    n_tokens = first + len(tekken.tokens)
    table = Rows(n_tokens if rows is None else rows)
    check_size(n_tokens, table.size)
    table.texts[:n_tokens] = [*tekken.special, *map(spelled, tekken.tokens)]
    table.types[:first], table.types[first:n_tokens], table.scores[:n_tokens] = CONTROL, NORMAL, 0.0
    head: Metadata = {
        "tokenizer.ggml.model": text("gpt2"), "tokenizer.ggml.pre": text("tekken"),
        "tokenizer.ggml.merges": Array("str", Strings.of(splits_of(tekken.tokens))),
    }  # fmt: skip
    ids = {name: tekken.id_of(token) for name, token in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))}
    ids["pad"] = tekken.id_of("<pad>") if tekken.id_of("<pad>") is not None else ids["eos"]
    head.update({ID_KEYS[name]: u32(i) for name, i in ids.items() if i is not None})
    head.update(table.arrays(scores=True))
    head["tokenizer.ggml.scores"] = Array("i32", table.scores.astype(np.int32))  # zeros, which the reference has whole
    head.update({ADD_BOS: boolean(True), ADD_EOS: boolean(False)})
    template = _MISTRAL_TEMPLATES.get((tekken.version, "tekken"))
    return Built("tekken", table, head, template=template, elsewhere=_MISTRAL_ELSEWHERE.get(tekken.version, ""))


# --- of one family each


def build_rwkv(files: TokenizerFiles, rows: int | None) -> Built:
    """RWKV's world vocabulary; its runtime ends a turn at an empty line."""
    tokens = ["<s>", *read_rwkv(files.text(RWKV_FILE))]
    table = Rows(65536 if rows is None else rows)
    check_size(len(tokens), table.size)
    table.texts[: len(tokens)] = tokens
    table.types[: len(tokens)] = NORMAL
    table.types[0] = CONTROL
    head: Metadata = {"tokenizer.ggml.model": text("rwkv")}
    head.update(table.arrays(scores=False))
    given = (Given("eot", 261, "not said"), Given("bos", 0), Given("eos", 0))
    return Built("rwkv", table, head, limit=False, given=given, template="rwkv-world")


def build_plamo(files: TokenizerFiles, rows: int | None) -> Built:
    """PLaMo's tokenizer.jsonl as the "plamo2" tokenizer model."""
    tokens = read_plamo(files.text(PLAMO_FILE))
    table = Rows(len(tokens) if rows is None else rows)
    check_size(len(tokens), table.size)
    for i, token in enumerate(tokens):
        table.set(i, token.text, token.type, token.score)
    for i in range(len(tokens), table.size):
        table.set(i, f"[PAD{i - len(tokens) + 1}]", UNUSED)
    head: Metadata = {"tokenizer.ggml.model": text("plamo2"), "tokenizer.ggml.pre": text("default")}
    head.update(table.arrays(scores=True))
    settings, ids = files.json("tokenizer_config.json"), {token.text: i for i, token in enumerate(tokens)}
    for name in ("bos", "eos", "pad", "sep", "unk"):
        if isinstance(named := settings.get(f"{name}_token"), str):
            if named not in ids:
                raise TokenizerError(f"tokenizer_config.json: {name}_token {named[:40]!r} is not in {PLAMO_FILE}")
            head[ID_KEYS[name]] = u32(ids[named])
    head.update({ID_KEYS["eot"]: u32(4), SPACE_PREFIX: boolean(False)})
    return Built("plamo", table, head)
