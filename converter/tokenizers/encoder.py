"""An encoder for `tokenizer.json`: text to token ids, as the Hugging Face `tokenizers` library does it.

It exists to tell tokenizers apart (the probe text's ids name the pre-tokenizer), so it favours
few lines and exactness over speed. BPE, WordPiece and WordLevel models; Unigram is Unsupported.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from converter.errors import TokenizerError
from converter.tokenizers.files import as_dict, as_id, as_list, as_text
from converter.tokenizers.splitting import Unsupported, byte_values, make_normalizer, make_splitter
from converter.tokenizers.vocabulary import AddedToken, Vocabulary

WordModel = Callable[[str], list[int]]


class Encoder:
    """Text to ids for one tokenizer.json. Building it may raise Unsupported or TokenizerError."""

    def __init__(self, tokenizer: Mapping[str, object], vocabulary: Vocabulary) -> None:
        self._normalize = make_normalizer(tokenizer.get("normalizer"))
        self._split = make_splitter(tokenizer.get("pre_tokenizer"))
        self._words = _word_model(as_dict(tokenizer.get("model"), "tokenizer.json model"), vocabulary)
        added = [token for token in vocabulary.added.values() if token.content]
        self._raw = [(token.content, token) for token in added if not token.normalized]
        self._normalized = [(self._normalize(token.content), token) for token in added if token.normalized]
        self._affixes = _affixes(tokenizer.get("post_processor"), vocabulary)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens around them."""
        ids: list[int] = []
        first = True
        for part, token in _extract(text, self._raw):
            if token is not None:
                ids.append(token.id)
            else:
                ids += self._encode_plain(part, first)
            first = False
        return ids

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        ids: list[int] = []
        for part, token in _extract(self._normalize(text), self._normalized):
            if token is not None:
                ids.append(token.id)
                continue
            for word in self._split([part]):
                ids += self._words(word)
        return ids

    def with_special(self, ids: list[int]) -> list[int]:
        """`ids` between the special tokens that the post-processor puts around a single sequence."""
        before, after = self._affixes
        return [*before, *ids, *after]


def _extract(text: str, tokens: Iterable[tuple[str, AddedToken]]) -> list[tuple[str, AddedToken | None]]:
    """Cut added tokens out of `text`, leftmost and longest first."""
    found = {content: token for content, token in tokens if content and content in text}
    if not found:
        return [(text, None)] if text else []
    pattern = re.compile("|".join(re.escape(content) for content in sorted(found, key=len, reverse=True)))
    parts: list[tuple[str, AddedToken | None]] = []
    last = 0
    for match in pattern.finditer(text):
        token = found[match.group()]
        start, end = match.span()
        if start < last or (token.single_word and _inside_word(text, start, end)):
            continue
        if token.lstrip:
            start = last + len(text[last:start].rstrip())
        if token.rstrip:
            end += len(text[end:]) - len(text[end:].lstrip())
        if start > last:
            parts.append((text[last:start], None))
        parts.append((text[start:end], token))
        last = end
    if last < len(text):
        parts.append((text[last:], None))
    return parts


def _inside_word(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return bool(re.match(r"\w", before) or re.match(r"\w", after))


# --- models


def _word_model(model: dict[str, object], vocabulary: Vocabulary) -> WordModel:
    if vocabulary.kind == "BPE":
        return _Bpe(model, vocabulary)
    if vocabulary.kind == "WordPiece":
        return _word_piece(model, vocabulary)
    if vocabulary.kind == "WordLevel":
        unknown = vocabulary.base.get(str(model.get("unk_token")))
        return lambda word: [i for i in (vocabulary.base.get(word, unknown),) if i is not None]
    raise Unsupported(f"model {vocabulary.kind}")


class _Bpe:
    def __init__(self, model: dict[str, object], vocabulary: Vocabulary) -> None:
        self._vocab = vocabulary.base
        self._ranks = vocabulary.ranks()
        self._prefix = str(model.get("continuing_subword_prefix") or "")
        self._suffix = str(model.get("end_of_word_suffix") or "")
        self._unknown = model.get("unk_token")
        self._fuse = bool(model.get("fuse_unk"))
        self._byte_fallback = bool(model.get("byte_fallback"))
        self._ignore_merges = bool(model.get("ignore_merges"))

    def __call__(self, word: str) -> list[int]:
        if self._ignore_merges and word in self._vocab:
            return [self._vocab[word]]
        return [self._vocab[symbol] for symbol in self._merge(self._symbols(word))]

    def _symbols(self, word: str) -> list[str]:
        symbols: list[str] = []
        unknown = False
        for at, char in enumerate(word):
            symbol = (self._prefix if at else "") + char + (self._suffix if at == len(word) - 1 else "")
            pieces = [symbol] if symbol in self._vocab else self._bytes(symbol)
            if pieces:
                symbols += pieces
            elif isinstance(self._unknown, str) and self._unknown in self._vocab and not (self._fuse and unknown):
                symbols.append(self._unknown)
            unknown = not pieces
        return symbols

    def _bytes(self, symbol: str) -> list[str]:
        if not self._byte_fallback:
            return []
        pieces = [f"<0x{byte:02X}>" for byte in symbol.encode("utf-8", "surrogatepass")]
        return pieces if all(piece in self._vocab for piece in pieces) else []

    def _merge(self, symbols: list[str]) -> list[str]:
        while len(symbols) > 1:
            ranked = [
                (rank, at) for at, pair in enumerate(itertools.pairwise(symbols))
                if (rank := self._ranks.get(f"{pair[0]} {pair[1]}")) is not None
            ]
            if not ranked:
                break
            at = min(ranked)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1][len(self._prefix) :]]
        return symbols


def _word_piece(model: dict[str, object], vocabulary: Vocabulary) -> WordModel:
    vocab = vocabulary.base
    prefix = str(model.get("continuing_subword_prefix", "##"))
    longest = as_id(model.get("max_input_chars_per_word", 100), "tokenizer.json model max_input_chars_per_word")
    unknown = vocab.get(str(model.get("unk_token", "[UNK]")))

    def encode(word: str) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(word) <= longest:
            lead = prefix if start else ""
            end = next((e for e in range(len(word), start, -1) if lead + word[start:e] in vocab), None)
            if end is None:
                break
            ids.append(vocab[lead + word[start:end]])
            start = end
        else:
            if len(word) <= longest:
                return ids
        return [] if unknown is None else [unknown]

    return encode


# --- post-processor

Affixes = tuple[list[int], list[int]]


def _affixes(spec: object, vocabulary: Vocabulary) -> Affixes:
    where = "tokenizer.json post_processor"
    fields = as_dict(spec, where)
    kind = fields.get("type")
    if kind in (None, "ByteLevel"):
        return [], []
    if kind == "Sequence":
        before: list[int] = []
        after: list[int] = []
        for part in as_list(fields.get("processors"), where):
            left, right = _affixes(part, vocabulary)
            before, after = left + before, after + right
        return before, after
    if kind in ("RobertaProcessing", "BertProcessing"):
        return [_pair_id(fields.get("cls"), where)], [_pair_id(fields.get("sep"), where)]
    if kind == "TemplateProcessing":
        return _template(fields, where)
    raise Unsupported(f"post-processor {kind}")


def _pair_id(value: object, where: str) -> int:
    pair = as_list(value, where)
    if len(pair) != 2:
        raise TokenizerError(f"{where}: a (token, id) pair was expected")
    return as_id(pair[1], where)


def _template(fields: dict[str, object], where: str) -> Affixes:
    special = as_dict(fields.get("special_tokens"), where)
    sides: Affixes = ([], [])
    side = 0
    for item in as_list(fields.get("single"), where):
        entry = as_dict(item, where)
        if "Sequence" in entry:
            side = 1
            continue
        name = as_text(as_dict(entry.get("SpecialToken"), where).get("id"), where)
        ids = as_list(as_dict(special.get(name), where).get("ids"), where)
        sides[side].extend(as_id(i, where) for i in ids)
    return sides


# --- decoding one token


@dataclass(frozen=True)
class Decoder:
    """The decoder of a tokenizer.json, as far as single tokens go: what an added token reads as once decoded."""

    spec: object

    def token(self, text: str) -> str:
        """The text that the one-token sequence `text` decodes to."""
        return "".join(_decode(self.spec, [text]))


def _decode(spec: object, tokens: list[str]) -> list[str]:
    where = "tokenizer.json decoder"
    fields = as_dict(spec, where)
    kind = fields.get("type")
    if kind == "Sequence":
        for part in as_list(fields.get("decoders"), where):
            tokens = _decode(part, tokens)
        return tokens
    step = _DECODERS.get(str(kind))
    return step(fields, tokens) if step else tokens


def _decode_bytes(fields: dict[str, object], tokens: list[str]) -> list[str]:
    table = byte_values()
    raw = b"".join(
        bytes(table[char] for char in token) if all(char in table for char in token)
        else token.encode("utf-8", "surrogatepass")
        for token in tokens
    )
    return [raw.decode("utf-8", "replace")]


def _decode_replace(fields: dict[str, object], tokens: list[str]) -> list[str]:
    replace = make_normalizer(fields, "tokenizer.json decoder")
    return [replace(token) for token in tokens]


def _decode_fallback(fields: dict[str, object], tokens: list[str]) -> list[str]:
    return [
        bytes([int(token[3:5], 16)]).decode("utf-8", "replace") if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token) else token
        for token in tokens
    ]


def _decode_strip(fields: dict[str, object], tokens: list[str]) -> list[str]:
    char = as_text(fields.get("content", " "), "tokenizer.json decoder")
    start = as_id(fields.get("start", 0), "tokenizer.json decoder")
    stop = as_id(fields.get("stop", 0), "tokenizer.json decoder")
    return [_strip(token, char, start, stop) for token in tokens]


def _strip(token: str, char: str, start: int, stop: int) -> str:
    while start and char and token.startswith(char):
        token, start = token[len(char) :], start - 1
    while stop and char and token.endswith(char):
        token, stop = token[: -len(char)], stop - 1
    return token


def _decode_metaspace(fields: dict[str, object], tokens: list[str]) -> list[str]:
    mark = as_text(fields.get("replacement", "▁"), "tokenizer.json decoder")
    keeps = fields.get("prepend_scheme") == "never"
    return [
        (token[len(mark) :] if not at and not keeps and token.startswith(mark) else token).replace(mark, " ")
        for at, token in enumerate(tokens)
    ]


_DECODERS: dict[str, Callable[[dict[str, object], list[str]], list[str]]] = {
    "ByteLevel": _decode_bytes,
    "Replace": _decode_replace,
    "ByteFallback": _decode_fallback,
    "Fuse": lambda fields, tokens: ["".join(tokens)],
    "Strip": _decode_strip,
    "Metaspace": _decode_metaspace,
}
