"""The name of a pre-tokenizer (`tokenizer.ggml.pre`), which tells the runtime how to cut text into words.

tokenizer.json carries expressions, GGUF a name. The name is found by the known hash of the token
ids of a probe text, else by the expressions themselves, else the user is asked for it.
`pretokenizers.json` holds the facts: probe, hash -> name, expressions -> name, names the runtime knows.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

from converter.errors import TokenizerError, UnknownPreTokenizer, UsageError
from converter.events import Event, Note
from converter.tokenizers.encoder import Encoder
from converter.tokenizers.files import as_dict, as_list
from converter.tokenizers.splitting import GPT2_PATTERN, Unsupported, pattern_of
from converter.tokenizers.vocabulary import Vocabulary

MAX_PARTS = 64
_BYTE_LEVEL: dict[str, object] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


@dataclass(frozen=True)
class Expression:
    """A pre-tokenizer in words (see `signature`) and its name; `ignore_merges` None means either."""

    split: tuple[str, ...]
    name: str
    ignore_merges: bool | None = None
    normalizer: str = ""


@dataclass(frozen=True)
class PreTokenizerFacts:
    """The table in pretokenizers.json; `same_as` gives names whose expressions are another name's."""

    probe: str
    hashes: Mapping[str, str]
    names: frozenset[str]
    expressions: tuple[Expression, ...]
    same_as: Mapping[str, str]


@functools.cache
def facts() -> PreTokenizerFacts:
    """The table, read once."""
    table = json.loads(resources.files("converter.tokenizers").joinpath("pretokenizers.json").read_text("utf-8"))
    expressions = tuple(
        Expression(tuple(row["split"]), row["name"], row.get("ignore_merges"), row.get("normalizer", ""))
        for row in table["expressions"]
    )
    names = frozenset(table["names"])
    return PreTokenizerFacts(table["probe"], table["hashes"], names, expressions, table["same_as"])


def check_name(name: str) -> str:
    """`name` itself when it is a known pre-tokenizer.

    Raises:
        UsageError: it is not; the message has the closest names.
    """
    known = facts().names | set(facts().hashes.values())
    if name not in known:
        close = difflib.get_close_matches(name, known, 4, 0.4) or ["gpt-2", "llama-bpe", "qwen2", "starcoder"]
        raise UsageError(f"unknown pre-tokenizer {name!r}; close names: {', '.join(close)}")
    return name


def find_name(vocabulary: Vocabulary) -> tuple[str, Event | None]:
    """The pre-tokenizer's name, and a note where it was not found by hash.

    Raises:
        UnknownPreTokenizer: neither hash nor expression is known; the message shows both.
        TokenizerError: malformed tokenizer.json, or an expression that does not finish.
    """
    digests: list[str] = []
    obstacle = ""
    try:
        for digest in _digests(vocabulary):
            if digest in facts().hashes:
                return facts().hashes[digest], None
            digests.append(digest)
    except Unsupported as error:
        obstacle = f"; the probe text cannot be encoded here: {error}"
    split = signature(vocabulary.tokenizer.get("pre_tokenizer"))
    name = _by_expression(split, vocabulary)
    if name is not None:
        return name, Note(f"pre-tokenizer {name!r}: taken from the regular expression in tokenizer.json")
    raise UnknownPreTokenizer(
        f"tokenizer.json: unknown pre-tokenizer: {' then '.join(_shorten(part) for part in split) or 'none'}"
        f" (hash {digests[0][:16] if digests else 'not computed'}{obstacle})\n"
        "pass --pre NAME with the closest one, such as gpt-2, llama-bpe, qwen2, gpt-4o, tekken, deepseek-v3, default"
    )


def _shorten(part: str) -> str:
    return part if len(part) <= 100 else part[:97] + "..."


def _digests(vocabulary: Vocabulary) -> Iterator[str]:
    """Hashes of the probe's ids: with the special tokens the post-processor adds, then as other loaders add them."""
    encoder = Encoder(vocabulary.tokenizer, vocabulary)
    ids = encoder.encode(facts().probe)
    bos, eos = (vocabulary.id_of(vocabulary.named.get(name, "")) for name in ("bos", "eos"))
    before, after = [[i] if i is not None else [] for i in (bos, eos)]
    for variant in (encoder.with_special(ids), ids, before + ids, before + ids + after, ids + after):
        yield hashlib.sha256(str(variant).encode()).hexdigest()


def _by_expression(split: tuple[str, ...], vocabulary: Vocabulary) -> str | None:
    ignores = bool(as_dict(vocabulary.tokenizer.get("model"), "tokenizer.json model").get("ignore_merges"))
    return next(
        (row.name for row in facts().expressions if row.split == split and row.ignore_merges in (None, ignores)), None
    )


def signature(spec: object, where: str = "tokenizer.json pre_tokenizer") -> tuple[str, ...]:
    """A pre-tokenizer as a sequence of words: expressions as they stand, "gpt2", "digits", "numbers", ..."""
    fields = as_dict(spec, where)
    kind = str(fields.get("type", ""))
    if kind == "Sequence":
        parts = as_list(fields.get("pretokenizers"), where)
        if len(parts) > MAX_PARTS:
            raise TokenizerError(f"{where}: {len(parts)} parts are refused, {MAX_PARTS} are allowed")
        return tuple(word for part in parts for word in signature(part, where))
    if kind == "ByteLevel":
        return ("gpt2",) if fields.get("use_regex", True) else ()
    if kind == "Digits":
        return ("digits" if fields.get("individual_digits") else "numbers",)
    if kind == "Punctuation":
        return (f"punctuation {fields.get('behavior', 'Isolated')}",)
    if kind == "Split":
        return (_split_word(fields, where),)
    return (kind,) if kind else ()


def expression_of(name: str) -> Expression | None:
    """The expressions behind a pre-tokenizer's name, where they are known."""
    name = facts().same_as.get(name, name)
    return next((row for row in facts().expressions if row.name == name), None)


def to_json(split: tuple[str, ...]) -> dict[str, object]:
    """The pre-tokenizer of a tokenizer.json for words of `signature`; the inverse of it for byte-level BPE."""
    plain: dict[str, dict[str, object]] = {
        "digits": {"type": "Digits", "individual_digits": True},
        "numbers": {"type": "Digits", "individual_digits": False},
        "punctuation Contiguous": {"type": "Punctuation", "behavior": "Contiguous"},
        "gpt2": _BYTE_LEVEL,
    }
    parts: list[dict[str, object]] = [
        plain.get(word) or {"type": "Split", "pattern": {"Regex": word}, "behavior": "Isolated", "invert": False}
        for word in split
    ]
    if "gpt2" not in split:
        parts.append({**_BYTE_LEVEL, "use_regex": False})
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def _split_word(fields: dict[str, object], where: str) -> str:
    pattern, is_regex = pattern_of(fields, where)
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n")
    plain = fields.get("behavior") == "Isolated" or (fields.get("behavior") == "Removed" and bool(fields.get("invert")))
    if is_regex and plain:
        return "gpt2" if pattern == GPT2_PATTERN else pattern
    return f"{'' if is_regex else 'string '}{fields.get('behavior')} {pattern}"
