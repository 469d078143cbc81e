"""The vocabulary of a Hugging Face tokenizer folder: base tokens, merges, added tokens, named special tokens.

Reads `tokenizer.json`, or the older pairs `vocab.json` + `merges.txt` and `vocab.txt`, and lays
tokenizer_config.json, special_tokens_map.json and added_tokens.json over them as transformers does
when it loads the folder. Everything is checked here, so what follows can index without fear.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from converter.errors import TokenizerError
from converter.metadata import Strings
from converter.tokenizers.beside import DNA_MARKS, read_beside
from converter.tokenizers.files import MAX_TOKENS, TokenizerFiles, as_dict, as_id, as_list, as_text, entries
from converter.tokenizers.large import Long
from converter.tokenizers.splitting import byte_alphabet

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# Special tokens that a tokenizer class brings without being told; used where the vocabulary has them.
_ENDOFTEXT = "<|endoftext|>"
CLASS_DEFAULTS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
    "GPT2Tokenizer": {"unk": _ENDOFTEXT, "bos": _ENDOFTEXT, "eos": _ENDOFTEXT},
    "Qwen2Tokenizer": {"unk": _ENDOFTEXT, "eos": _ENDOFTEXT, "pad": _ENDOFTEXT},
    "BertTokenizer": {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    "InternS1Tokenizer": {"unk": _ENDOFTEXT, "eos": _ENDOFTEXT, "pad": _ENDOFTEXT},
    "HybridDNATokenizer": {"eos": _ENDOFTEXT, "pad": _ENDOFTEXT},
    "RobertaTokenizer": {
        "bos": "<s>",
        "eos": "</s>",
        "sep": "</s>",
        "cls": "<s>",
        "unk": "<unk>",
        "pad": "<pad>",
        "mask": "<mask>",
    },
}
_CLASS_OF_MODEL = {
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "starcoder2": "GPT2Tokenizer",
    "phi": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
}
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: Classes that cut text into words as Qwen2's does, which their vocab.json does not say.
_CUT_AS_QWEN2 = ("Qwen2Tokenizer", "InternS1Tokenizer", "HybridDNATokenizer")

_SHORT = 16  # characters of a token that is looked up, not searched for


@dataclass(frozen=True)
class AddedToken:
    """A token outside the model's own segmentation; `normalized` says whether text is normalized before it is found."""

    id: int
    content: str
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by text. `kind` is the model type (BPE, WordPiece, WordLevel, Unigram).

    base: token -> id of the model; scores: per id, Unigram only; merges: "left right", best first;
    added: by text, ids resolved; named: bos, eos, ... -> text; extra: further special tokens;
    tokenizer: the tokenizer.json, or what the older files amount to; named_by: special token -> what names it;
    model: the tokenizer model of a GGUF that has byte-level BPE of this kind.
    """

    kind: str
    base: dict[str, int]
    merges: Strings
    added: dict[str, AddedToken]
    named: dict[str, str]
    extra: tuple[str, ...]
    tokenizer: dict[str, object]
    scores: list[float] = field(default_factory=list)
    named_by: dict[str, str] = field(default_factory=dict)
    model: str = "gpt2"

    def ranks(self, text: str, prefix: str = "") -> dict[tuple[str, str], int]:
        """Pairs of tokens that merge -> their priority, lower first; those whose halves (less `prefix`) `text` has."""
        short = {text[at : at + size] for size in range(1, _SHORT + 1) for at in range(len(text))}

        def had(half: str) -> bool:
            half = half.removeprefix(prefix) if prefix else half
            return half in short or (len(half) > _SHORT and half in text)

        found: dict[tuple[str, str], int] = {}
        for rank, merge in enumerate(self.merges):
            left, _, right = str(merge).partition(" ")
            if had(left) and had(right):
                found[left, right] = rank
        return found

    def tokens(self) -> Iterator[tuple[int, str]]:
        """Ids and texts: base tokens, then the added ones, some of which are base tokens again."""
        for token, i in self.base.items():
            yield i, token
        for added in self.added.values():
            yield added.id, added.content

    def n_ids(self) -> int:
        """One more than the highest id."""
        return 1 + max(max(self.base.values(), default=-1), max((t.id for t in self.added.values()), default=-1))

    def special_ids(self) -> set[int]:
        """Ids of the named and extra special tokens (not of every token flagged special)."""
        found = (self.id_of(content) for content in (*self.named.values(), *self.extra))
        return {i for i in found if i is not None}

    def id_of(self, content: str) -> int | None:
        token = self.added.get(content)
        return self.base.get(content) if token is None else token.id


def read_vocabulary(files: TokenizerFiles, config: Mapping[str, object]) -> Vocabulary:
    """The vocabulary of the folder.

    Raises:
        TokenizerError: no such files, malformed or contradictory ones.
    """
    settings = files.json("tokenizer_config.json")
    source = files.first("tokenizer.json", "vocab.json", "vocab.txt")
    if source is None:
        raise TokenizerError("no tokenizer.json, vocab.json or vocab.txt in the model's folder")
    tokenizer = files.json(source) if source == "tokenizer.json" else _from_older_files(files, source, settings, config)
    model = as_dict(tokenizer.get("model"), f"{source} model")
    kind = _kind(model, source)
    base, scores = _base(model, kind, source)
    named, extra, named_by = _special_tokens(files, settings, config)
    added = _added_tokens(as_list(tokenizer.get("added_tokens"), f"{source} added_tokens"), base, source)
    merges = _merges(model, base, kind, source)
    beside = read_beside(files, tokenizer_class(settings, config), _following(base, added))
    _lay_between(beside.tokens, base, added)
    added = _lay_over(added, base, settings, (*named.values(), *extra), keep=bool(beside.tokens))
    return Vocabulary(kind, base, merges, added, named, extra, tokenizer, scores, named_by, beside.model)


def _following(base: dict[str, int], added: dict[str, AddedToken]) -> int:
    """The first id after those of the files, of which tokens that code makes are none."""
    plain = (token.id for token in added.values() if token.content not in DNA_MARKS)
    return 1 + max(max(base.values(), default=-1), max(plain, default=-1))


def _lay_between(tokens: Mapping[str, int], base: dict[str, int], added: dict[str, AddedToken]) -> None:
    """Tokens that code makes, among those of the vocabulary."""
    taken = {i: token for token, i in base.items()} if tokens else {}
    for token, i in tokens.items():
        if (known := taken.setdefault(i, token)) != token or base.setdefault(token, i) != i:
            raise TokenizerError(
                f"the tokenizer's code gives id {i} to {ascii(token)[:60]}, which the vocabulary gives to "
                f"{ascii(known)[:60]}: its files are not of one model"
            )
        if token in added and added[token].id != i:
            raise TokenizerError(
                f"tokenizer.json added_tokens: {ascii(token)[:60]} has id {added[token].id}, and its code gives it {i}"
            )


def _kind(model: dict[str, object], source: str) -> str:
    if "type" in model:
        return as_text(model["type"], f"{source} model type")
    if "merges" in model:
        return "BPE"
    vocab = model.get("vocab")
    listed = isinstance(vocab, list) or (isinstance(vocab, Long) and vocab.kind == "[")
    return "Unigram" if listed else "WordPiece"


def _base(model: dict[str, object], kind: str, source: str) -> tuple[dict[str, int], list[float]]:
    where = f"{source} vocab"
    if kind == "Unigram":
        return _unigram(model.get("vocab"), where)
    base: dict[str, int] = {}
    for pairs in entries(model.get("vocab"), "{", where):
        before = len(base)
        base.update(pairs)
        if len(base) != before + len(pairs):
            raise TokenizerError(f"{source}: a token of the vocabulary stands twice")
        for token, i in pairs:
            if type(i) is not int or not 0 <= i < MAX_TOKENS:
                raise TokenizerError(f"{where}: token {ascii(token)[:60]} has no id from 0 to {MAX_TOKENS - 1}")
    if not base:
        raise TokenizerError(f"{source}: the vocabulary is empty")
    # Not np.unique: the modules that it imports would lie among the tokens, whose memory could then not be given back.
    taken = np.zeros(MAX_TOKENS, bool)
    taken[np.fromiter(base.values(), np.int32, len(base))] = True
    if np.count_nonzero(taken) != len(base):
        raise TokenizerError(f"{source}: two tokens of the vocabulary share one id")
    return base, []


def _unigram(vocab: object, where: str) -> tuple[dict[str, int], list[float]]:
    base: dict[str, int] = {}
    scores: list[float] = []
    for entry in (entry for some in entries(vocab, "[", where) for entry in some):
        pair = as_list(entry, where)
        if len(pair) != 2 or isinstance(pair[1], bool) or not isinstance(pair[1], int | float):
            raise TokenizerError(f"{where}: entry {len(scores)} is not a [token, score] pair")
        if base.setdefault(as_text(pair[0], where), len(scores)) != len(scores):
            raise TokenizerError(f"{where}: token {ascii(pair[0])[:60]} appears twice")
        scores.append(float(pair[1]))
    return base, scores


def _merges(model: dict[str, object], base: dict[str, int], kind: str, source: str) -> Strings:
    """Merges as "left right"; a space inside a token becomes its byte-level letter, as in llama.cpp's converter."""
    if kind != "BPE":
        return Strings.of(())
    pairs = _pairs(model, base, source)
    if not any(" " in token for token in base):
        return Strings.of(f"{left} {right}" for left, right in pairs)
    space = byte_alphabet()[ord(" ")]
    return Strings.of(f"{left.replace(' ', space)} {right.replace(' ', space)}" for left, right in pairs)


def _pairs(model: dict[str, object], base: dict[str, int], source: str) -> Iterator[tuple[str, str]]:
    """The pairs of the merges, each of two known tokens that make a known one; raises TokenizerError at another."""
    cut = len(str(model.get("continuing_subword_prefix") or ""))
    merges = (entry for some in entries(model.get("merges"), "[", f"{source} merges") for entry in some)
    for at, entry in enumerate(merges):
        pair = entry.split(" ") if type(entry) is str else entry
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise TokenizerError(f"{source}: merge {at} is not a pair of tokens")
        left, right = pair
        if left not in base or right not in base or left + (right[cut:] if cut else right) not in base:
            shown = f"{ascii(left)[:40]} {ascii(right)[:40]}"
            raise TokenizerError(f"{source}: merge {at} ({shown}) names an unknown token")
        yield left, right


# --- special and added tokens


def _token_text(value: object) -> str | None:
    """A token given as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _special_tokens(
    files: TokenizerFiles, settings: dict[str, object], config: Mapping[str, object]
) -> tuple[dict[str, str], tuple[str, ...], dict[str, str]]:
    """(named, extra, what names each); tokenizer_config.json over special_tokens_map.json over the class's defaults."""
    cls = tokenizer_class(settings, config)
    defaults = {f"{name}_token": text for name, text in CLASS_DEFAULTS.get(cls, {}).items()}
    sources = (
        ("tokenizer_config.json", settings), ("special_tokens_map.json", files.json("special_tokens_map.json")),
        (f"{cls}'s defaults", defaults),
    )  # fmt: skip
    named: dict[str, str] = {}
    named_by: dict[str, str] = {}
    for name in NAMED:
        key = f"{name}_token"
        where, given = next(((where, said[key]) for where, said in sources if key in said), ("", None))
        if (text := _token_text(given)) is not None:
            named[name] = text
            named_by.setdefault(text, f"{key} of {where}")
    extra: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        where, value = next(((where, said[key]) for where, said in sources if key in said), ("", None))
        items = list(value.values()) if isinstance(value, dict) else as_list(value, f"tokenizer_config.json {key}")
        extra += (texts := [text for item in items if (text := _token_text(item)) is not None])
        named_by = {text: f"{key} of {where}" for text in texts} | named_by
    return named, tuple(dict.fromkeys(extra)), named_by


def tokenizer_class(settings: Mapping[str, object], config: Mapping[str, object]) -> str:
    """The tokenizer class without its Fast suffix, by tokenizer_config.json, else by the model type."""
    name = settings.get("tokenizer_class") or _CLASS_OF_MODEL.get(str(config.get("model_type")), "")
    return str(name).removesuffix("Fast")


def _added_tokens(given: list[object], base: dict[str, int], source: str) -> dict[str, AddedToken]:
    where = f"{source} added_tokens"
    added: dict[str, AddedToken] = {}
    listed = [as_dict(entry, where) for entry in given]
    ids = {as_id(fields.get("id"), where) for fields in listed}
    taken = {i: token for token, i in base.items() if i in ids}
    # tokenizers numbers new tokens on from the vocabulary, whatever ids the file gives; vocab.json's readers do not.
    following = len(base)
    ordered = source == "tokenizer.json" and max(base.values(), default=-1) < following
    for fields in listed:
        token = _added(as_id(fields.get("id"), where), fields, where)
        shown = f"{ascii(token.content)[:60]} has id {token.id}"
        if (own := base.get(token.content, token.id)) != token.id:
            raise TokenizerError(
                f"{where}: {shown}, and {own} in the vocabulary, which is the one that tokenizers keeps\n"
                f"set its id to {own} in {source}"
            )
        if (known := taken.setdefault(token.id, token.content)) != token.content:
            raise TokenizerError(f"{where}: {shown}, which the vocabulary gives to {ascii(known)[:60]}")
        if ordered and token.content not in base and token.content not in added:
            if token.id != following:
                raise TokenizerError(
                    f"{where}: {shown}, and tokenizers gives it {following}, the next that is free\n"
                    f"set its id in {source} to that of its row in the embedding, with tokens in all rows before it"
                )
            following += 1
        added[token.content] = token
    return added


def _added(i: int, fields: Mapping[str, object], where: str) -> AddedToken:
    special = bool(fields.get("special"))
    return AddedToken(
        i,
        as_text(fields.get("content"), where),
        special,
        bool(fields.get("normalized", not special)),
        *(bool(fields.get(flag)) for flag in ("lstrip", "rstrip", "single_word")),
    )


def _lay_over(
    added: dict[str, AddedToken],
    base: dict[str, int],
    settings: dict[str, object],
    special: Iterable[str],
    *,
    keep: bool,
) -> dict[str, AddedToken]:
    """What transformers adds on loading: tokens of tokenizer_config.json, then special tokens not yet among the added.

    A text that the vocabulary has keeps its id; a new one is appended at the end, whatever id it asked for, or has the
    one that it asked for where ids are to `keep`.
    """
    result = dict(added)
    last = max(max(base.values(), default=-1), max((token.id for token in added.values()), default=-1))
    where = "tokenizer_config.json added_tokens_decoder"
    decoder = as_dict(settings.get("added_tokens_decoder"), where)
    listed = sorted((as_id(i, where), as_dict(fields, where)) for i, fields in decoder.items()) if decoder else []
    for asked, fields in listed:
        content = as_text(fields.get("content"), where)
        if keep and content not in result and content not in base:
            i, last = asked, max(asked, last)
        else:
            i, last = _place(content, result, base, last)
        result[content] = _added(i, fields, where)
    for content in special:
        if content not in result and content in base:
            result[content] = AddedToken(base[content], content, special=True, normalized=False)
        elif content not in result:
            i, last = _place(content, result, base, last)
            result[content] = AddedToken(i, content, special=True, normalized=False)
    return result


def _place(content: str, added: dict[str, AddedToken], base: dict[str, int], last: int) -> tuple[int, int]:
    if content in added:
        return added[content].id, last
    if content in base:
        return base[content], last
    return last + 1, last + 1


# --- older layouts


def _from_older_files(
    files: TokenizerFiles, source: str, settings: dict[str, object], config: Mapping[str, object]
) -> dict[str, object]:
    if source == "vocab.txt":
        return _from_vocab_txt(files.text(source), settings)
    merges = read_merges(files.text("merges.txt")) if "merges.txt" in files else []
    added = [
        {"id": i, "content": content, "special": False, "normalized": True}
        for content, i in files.json("added_tokens.json").items()
    ]
    byte_level: dict[str, object] = {"type": "ByteLevel", "add_prefix_space": bool(settings.get("add_prefix_space"))}
    tokenizer: dict[str, object] = {
        "added_tokens": added,
        "decoder": {"type": "ByteLevel"},
        "pre_tokenizer": byte_level,
        "model": {"type": "BPE", "vocab": files.value("vocab.json"), "merges": merges},
    }
    if tokenizer_class(settings, config) in _CUT_AS_QWEN2:
        split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
        parts = [split, {**byte_level, "use_regex": False}]
        tokenizer |= {"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}
    return tokenizer


def read_merges(text: str) -> list[str]:
    """The merges of a merges.txt: "left right" per line, a leading #version line and malformed lines skipped."""
    lines = text.split("\n")
    pairs = (line.split() for line in (lines[1:] if lines[0].startswith("#") else lines))
    return [" ".join(pair) for pair in pairs if len(pair) == 2]


def _from_vocab_txt(text: str, settings: dict[str, object]) -> dict[str, object]:
    lines = text.removesuffix("\n").split("\n")
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    if len(vocab) != len(lines):
        raise TokenizerError("vocab.txt: a token appears twice")
    defaults = CLASS_DEFAULTS["BertTokenizer"]
    cls, sep = (vocab.get(defaults[name]) for name in ("cls", "sep"))
    around = {} if cls is None or sep is None else {"type": "BertProcessing", "cls": ["", cls], "sep": ["", sep]}
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "lowercase": bool(settings.get("do_lower_case", True)),
            "strip_accents": settings.get("strip_accents"),
            "handle_chinese_chars": bool(settings.get("tokenize_chinese_chars", True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": around or None,
        "decoder": {"type": "WordPiece"},
        "model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]", "continuing_subword_prefix": "##"},
        "added_tokens": [
            {"id": vocab[token], "content": token, "special": True, "normalized": False}
            for token in defaults.values()
            if token in vocab
        ],
    }
