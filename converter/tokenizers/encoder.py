"""An encoder for `tokenizer.json`: text to token ids, as the Hugging Face `tokenizers` library does it.

It exists to tell tokenizers apart (the probe text's ids name the pre-tokenizer), so it favours
few lines and exactness over speed. BPE, WordPiece and WordLevel models; Unigram is Unsupported.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping

from converter.errors import TokenizerError
from converter.tokenizers.files import as_dict, as_id, as_list, as_text
from converter.tokenizers.splitting import Unsupported, byte_values, check_length, make_normalizer, make_splitter
from converter.tokenizers.vocabulary import AddedToken, Vocabulary

MAX_WORD, MAX_AFFIX = 1000, 64
WordModel = Callable[[list[str]], list[list[int]]]


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
        words: list[str] = []
        slots: list[int | None] = []  # ids of added tokens, and None where a word stands
        for part, token in _extract(text, self._raw):
            if token is not None:
                slots.append(token.id)
                continue
            for plain, normalized in _extract(check_length(self._normalize(part)), self._normalized):
                found = [] if normalized else self._split([plain])
                words += found
                slots += [normalized.id] if normalized else [None] * len(found)
        ids = iter(self._words(words))
        return [i for slot in slots for i in (next(ids) if slot is None else (slot,))]

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
        piece = _word_piece(model, vocabulary)
        return lambda words: [piece(word) for word in words]
    if vocabulary.kind == "WordLevel":
        unknown = vocabulary.base.get(str(model.get("unk_token")))
        return lambda words: [[i for i in (vocabulary.base.get(w, unknown),) if i is not None] for w in words]
    raise Unsupported(f"model {vocabulary.kind}")


class _Bpe:
    def __init__(self, model: dict[str, object], vocabulary: Vocabulary) -> None:
        self._vocab = vocabulary.base
        self._find_ranks = vocabulary.ranks
        self._prefix = str(model.get("continuing_subword_prefix") or "")
        self._suffix = str(model.get("end_of_word_suffix") or "")
        self._unknown = model.get("unk_token")
        self._fuse = bool(model.get("fuse_unk"))
        self._byte_fallback = bool(model.get("byte_fallback"))
        self._ignore_merges = bool(model.get("ignore_merges"))

    def __call__(self, words: list[str]) -> list[list[int]]:
        cut = len(self._prefix)
        symbols = [[word] if self._ignore_merges and word in self._vocab else self._symbols(word) for word in words]
        text = "\0".join("".join(symbol[cut:] if at else symbol for at, symbol in enumerate(w)) for w in symbols)
        ranks = self._find_ranks(text, self._prefix)
        return [[self._vocab[symbol] for symbol in self._merge(word, ranks)] for word in symbols]

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

    def _merge(self, symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
        while len(symbols) > 1:
            ranked = [
                (rank, at)
                for at, pair in enumerate(itertools.pairwise(symbols))
                if (rank := ranks.get(pair)) is not None
            ]
            if not ranked:
                break
            at = min(ranked)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1][len(self._prefix) :]]
        return symbols


def _word_piece(model: dict[str, object], vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    vocab = vocabulary.base
    prefix = str(model.get("continuing_subword_prefix", "##"))
    limit = as_id(model.get("max_input_chars_per_word", 100), "tokenizer.json model max_input_chars_per_word")
    longest = min(limit, MAX_WORD)
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
        sides[side].extend(as_id(i, where) for i in ids[: MAX_AFFIX + 1])
        if len(sides[side]) > MAX_AFFIX:
            raise TokenizerError(f"{where}: more than {MAX_AFFIX} special tokens around a text")
    return sides


# --- decoding one token


class Decoder:
    """The decoder of a tokenizer.json, as far as single tokens go: what an added token reads as once decoded.

    Building it raises TokenizerError where the decoder is malformed or an expression does not compile.
    """

    def __init__(self, spec: object) -> None:
        try:
            self._steps = _decoder_steps(spec)
        except Unsupported as error:
            raise TokenizerError(f"tokenizer.json decoder: {error} cannot be used") from None

    def token(self, text: str) -> str:
        """The text that the one-token sequence `text` decodes to."""
        for step in self._steps:
            text = step(text)
        return text


Step = Callable[[str], str]


def _decoder_steps(spec: object) -> list[Step]:
    where = "tokenizer.json decoder"
    fields = as_dict(spec, where)
    kind = fields.get("type")
    if kind == "Sequence":
        return [step for part in as_list(fields.get("decoders"), where) for step in _decoder_steps(part)]
    maker = _DECODERS.get(str(kind))
    return [maker(fields, where)] if maker else []


def _from_bytes(fields: dict[str, object], where: str) -> Step:
    table = byte_values()

    def run(token: str) -> str:
        if not all(char in table for char in token):
            return token
        return bytes(table[char] for char in token).decode("utf-8", "replace")

    return run


def _replace(fields: dict[str, object], where: str) -> Step:
    return make_normalizer({**fields, "type": "Replace"}, where)


def _byte_token(fields: dict[str, object], where: str) -> Step:
    def run(token: str) -> str:
        found = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
        return bytes([int(found[1], 16)]).decode("utf-8", "replace") if found else token

    return run


def _strip(fields: dict[str, object], where: str) -> Step:
    char = as_text(fields.get("content", " "), where)
    start, stop = (as_id(fields.get(key, 0), where) for key in ("start", "stop"))
    if len(char) != 1:
        raise TokenizerError(f"{where}: the content of a Strip is one character")

    def run(token: str) -> str:
        left = min(start, len(token) - len(token.lstrip(char)))
        token = token[left:]
        right = min(stop, len(token) - len(token.rstrip(char)))
        return token[: len(token) - right]

    return run


def _from_metaspace(fields: dict[str, object], where: str) -> Step:
    mark = as_text(fields.get("replacement", "▁"), where)
    keeps = fields.get("prepend_scheme") == "never"
    return lambda token: (token if keeps else token.removeprefix(mark)).replace(mark, " ") if mark else token


_DECODERS: dict[str, Callable[[dict[str, object], str], Step]] = {
    "ByteLevel": _from_bytes,
    "Replace": _replace,
    "ByteFallback": _byte_token,
    "Strip": _strip,
    "Metaspace": _from_metaspace,
}
