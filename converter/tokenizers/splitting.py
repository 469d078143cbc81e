"""Normalizers and pre-tokenizers of a `tokenizer.json`, as plain functions over strings.

Semantics: the components of the Hugging Face `tokenizers` library. Only what can be reproduced
exactly is here; anything else raises Unsupported and the caller goes another way.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator

import regex

from converter.errors import TokenizerError
from converter.tokenizers.files import as_dict, as_list, as_text

Normalizer = Callable[[str], str]
Splitter = Callable[[list[str]], list[str]]
Spans = list[tuple[int, int, bool]]

REGEX_SECONDS, ALL_REGEX_SECONDS = 2.0, 10.0
MAX_PATTERN = 20_000
# `(a{9999}){9999}` is unrolled when it is compiled. Patterns of real tokenizers come to some 1,000 items.
MAX_UNROLLED = 50_000
_ITEM = regex.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{\s*(\d+)[^}]*\}|.", regex.DOTALL)
# What this library would follow and no tokenizer needs: a group that calls itself grows its stack by gigabytes in the
# seconds that matching may take, and errors that a match may have cost the same; Oniguruma spells both otherwise.
_CALLS = regex.compile(r"\((?:\?(?:R|&|P>|[-+]?\d)|\*)|(?<!\\[A-Za-z])\{(?:[^{}]*<[^{}]*|\s*[dies]\b[^{}]*)\}")
# The probe text has some 450 characters; a normalizer that makes more than this of it means harm.
MAX_TEXT = 4096
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


class Unsupported(Exception):
    """A component that is not reproduced here; the text names it."""


_deadline: contextvars.ContextVar[float] = contextvars.ContextVar("deadline")


@contextlib.contextmanager
def regex_budget(seconds: float = ALL_REGEX_SECONDS) -> Iterator[None]:
    """Within it, all expressions together may take `seconds`; outside, each has REGEX_SECONDS."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def _seconds_left() -> float:
    deadline = _deadline.get(None)
    return REGEX_SECONDS if deadline is None else min(REGEX_SECONDS, max(deadline - time.monotonic(), 1e-3))


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(spare)) for byte in range(256))


@functools.cache
def byte_values() -> dict[str, int]:
    """The inverse of `byte_alphabet`."""
    return {char: byte for byte, char in enumerate(byte_alphabet())}


def compile_pattern(pattern: str, where: str) -> regex.Pattern[str]:
    """A regular expression of tokenizer.json (Oniguruma's dialect: `$` ends a line).

    Raises:
        TokenizerError: longer than any real pattern, or with more repetitions.
        Unsupported: it does not compile.
    """
    if len(pattern) > MAX_PATTERN:
        raise TokenizerError(f"{where}: a regular expression of {len(pattern)} characters is refused")
    if _unrolled(pattern) > MAX_UNROLLED:
        raise TokenizerError(f"{where}: the regular expression {pattern[:60]!r} repeats too much and is refused")
    if _calls(pattern):
        raise Unsupported(f"regular expression {pattern[:60]!r}, which calls itself or may differ from what it matches")
    flags = regex.MULTILINE | (regex.V1 if "&&" in pattern else regex.V0)
    try:
        return regex.compile(pattern, flags)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise Unsupported(f"regular expression {pattern[:60]!r}") from error


def _calls(pattern: str) -> bool:
    """Whether a pattern has an item of `_CALLS`; classes and escaped characters are none."""
    return any(item[0][0] in "({" and _CALLS.match(pattern, item.start()) for item in _ITEM.finditer(pattern))


def _unrolled(pattern: str) -> int:
    """How many items a pattern has when what must be there n times is written n times."""
    sizes, last = [0], 0
    for item in _ITEM.finditer(pattern):
        if item[1] is not None:
            more = last * max(int(item[1][:9]) - 1, 0)
            last += more
        elif item[0] == "(":
            sizes.append(0)
            continue
        else:
            last = more = max(sizes.pop(), 1) if item[0] == ")" and len(sizes) > 1 else 1
        sizes[-1] += more
    return sum(sizes)


def find_spans(pattern: regex.Pattern[str], text: str) -> Spans:
    """Cover `text` with (start, end, matched) spans, left to right; a match may be empty.

    Raises:
        TokenizerError: matching takes longer than REGEX_SECONDS, or than what is left of `regex_budget`.
    """
    spans: Spans = []
    last = 0
    try:
        for match in pattern.finditer(text, timeout=_seconds_left()):
            start, end = match.span()
            if start > last:
                spans.append((last, start, False))
            spans.append((start, end, True))
            last = end
    except TimeoutError:
        raise TokenizerError(
            f"tokenizer.json: the regular expression {pattern.pattern[:60]!r} does not finish in {REGEX_SECONDS:g} s\n"
            "pass --pre NAME to go on without it"
        ) from None
    if last < len(text):
        spans.append((last, len(text), False))
    return spans


def split_by(spans: Spans, text: str, behavior: str) -> list[str]:
    """Apply one of the five split behaviours of the `tokenizers` library to `spans`."""
    if behavior == "Removed":
        kept = [(a, b) for a, b, matched in spans if not matched]
    elif behavior == "Isolated":
        kept = [(a, b) for a, b, _ in spans]
    elif behavior == "Contiguous":
        kept = _merge(spans, lambda previous, matched: previous is matched)
    elif behavior == "MergedWithPrevious":
        kept = _merge(spans, lambda previous, matched: matched and previous is False)
    elif behavior == "MergedWithNext":
        backwards = _merge(
            [(-b, -a, matched) for a, b, matched in reversed(spans)],
            lambda previous, matched: matched and previous is False,
        )
        kept = [(-b, -a) for a, b in reversed(backwards)]
    else:
        raise Unsupported(f"split behavior {behavior}")
    return [text[a:b] for a, b in kept if b > a]


def _merge(spans: Spans, joins: Callable[[bool | None, bool], bool]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    previous: bool | None = None
    for start, end, matched in spans:
        if merged and joins(previous, matched):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
        previous = matched
    return merged


def _char_spans(text: str, matches: Callable[[str], bool]) -> Spans:
    spans: Spans = []
    last = 0
    for at, char in enumerate(text):
        if matches(char):
            if at > last:
                spans.append((last, at, False))
            spans.append((at, at + 1, True))
            last = at + 1
    if last < len(text):
        spans.append((last, len(text), False))
    return spans


def is_punctuation(char: str) -> bool:
    """ASCII punctuation or Unicode category P."""
    return char in ASCII_PUNCTUATION or unicodedata.category(char).startswith("P")


def _is_number(char: str) -> bool:
    return unicodedata.category(char).startswith("N")


def to_byte_level(text: str) -> str:
    """UTF-8 bytes of `text` in the byte-level alphabet."""
    table = byte_alphabet()
    return "".join(table[byte] for byte in text.encode("utf-8", "surrogatepass"))


# --- normalizers

_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
MAX_PARTS = 64


def make_normalizer(spec: object, where: str = "tokenizer.json normalizer") -> Normalizer:
    """Build a normalizer from its JSON; null is the identity.

    Raises:
        Unsupported: a component that is not reproduced.
        TokenizerError: malformed JSON values.
    """
    if spec is None:
        return lambda text: text
    fields = as_dict(spec, where)
    kind = as_text(fields.get("type"), f"{where} type")
    if kind == "Sequence":
        return _chain([make_normalizer(part, where) for part in _parts(fields, "normalizers", where)])
    if kind in _UNICODE_FORMS:
        return functools.partial(unicodedata.normalize, kind)  # type: ignore[arg-type]
    if kind in _SIMPLE_NORMALIZERS:
        return _SIMPLE_NORMALIZERS[kind]
    if kind == "Prepend":
        prefix = check_length(as_text(fields.get("prepend"), where))
        return lambda text: prefix + text if text else text
    if kind == "Strip":
        return _stripper(bool(fields.get("strip_left")), bool(fields.get("strip_right")))
    if kind == "Replace":
        return _replacer(fields, where)
    if kind == "BertNormalizer":
        return _bert_normalizer(fields)
    raise Unsupported(f"normalizer {kind}")


def _parts(fields: dict[str, object], key: str, where: str) -> list[object]:
    parts = as_list(fields.get(key), f"{where} {key}")
    if len(parts) > MAX_PARTS:
        raise TokenizerError(f"{where}: {len(parts)} parts are refused, {MAX_PARTS} are allowed")
    return parts


def _chain(steps: list[Normalizer]) -> Normalizer:
    def run(text: str) -> str:
        for step in steps:
            text = check_length(step(text))
        return text

    return run


def check_length(text: str) -> str:
    """`text` itself; a TokenizerError when it has outgrown MAX_TEXT."""
    if len(text) > MAX_TEXT:
        raise TokenizerError(f"tokenizer.json: its normalizer makes a text of more than {MAX_TEXT} characters: refused")
    return text


def _stripper(left: bool, right: bool) -> Normalizer:
    def run(text: str) -> str:
        text = text.lstrip() if left else text
        return text.rstrip() if right else text

    return run


def strip_accents(text: str) -> str:
    """Drop combining marks (category Mn)."""
    return "".join(char for char in text if unicodedata.category(char) != "Mn")


_SIMPLE_NORMALIZERS: dict[str, Normalizer] = {
    "Lowercase": str.lower,
    "StripAccents": strip_accents,
    "ByteLevel": to_byte_level,
}


def pattern_of(fields: dict[str, object], where: str) -> tuple[str, bool]:
    """(pattern, is_regex) of a `{"Regex": ...}` or `{"String": ...}` field."""
    spec = as_dict(fields.get("pattern"), f"{where} pattern")
    for key in ("Regex", "String"):
        if key in spec:
            return as_text(spec[key], f"{where} pattern"), key == "Regex"
    raise TokenizerError(f"{where}: a pattern needs Regex or String")


def _compiled(fields: dict[str, object], where: str) -> regex.Pattern[str]:
    pattern, is_regex = pattern_of(fields, where)
    return compile_pattern(pattern if is_regex else regex.escape(pattern), where)


def _replacer(fields: dict[str, object], where: str) -> Normalizer:
    content = check_length(as_text(fields.get("content"), f"{where} content"))
    compiled = _compiled(fields, where)

    def run(text: str) -> str:
        spans = find_spans(compiled, text)
        return "".join(content if matched else text[a:b] for a, b, matched in spans) if spans else text

    return run


_CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def _bert_normalizer(fields: dict[str, object]) -> Normalizer:
    lowercase = bool(fields.get("lowercase", True))
    accents = fields.get("strip_accents")
    steps: list[Normalizer] = []
    if fields.get("clean_text", True):
        steps.append(_clean_text)
    if fields.get("handle_chinese_chars", True):
        steps.append(_space_chinese)
    if accents or (accents is None and lowercase):
        steps.append(lambda text: strip_accents(unicodedata.normalize("NFD", text)))
    if lowercase:
        steps.append(str.lower)
    return _chain(steps)


def _clean_text(text: str) -> str:
    kept: list[str] = []
    for char in text:
        if char.isspace() and char not in "\x1c\x1d\x1e\x1f\x0b\x0c\x85":
            kept.append(" ")
        elif char not in "\x00\ufffd" and not unicodedata.category(char).startswith("C"):
            kept.append(char)
    return "".join(kept)


def _space_chinese(text: str) -> str:
    return "".join(f" {c} " if any(low <= ord(c) <= high for low, high in _CJK) else c for c in text)


# --- pre-tokenizers


def make_splitter(spec: object, where: str = "tokenizer.json pre_tokenizer") -> Splitter:
    """Build a pre-tokenizer from its JSON; null leaves pieces whole. Errors as `make_normalizer`."""
    if spec is None:
        return lambda pieces: pieces
    fields = as_dict(spec, where)
    kind = as_text(fields.get("type"), f"{where} type")
    if kind == "Sequence":
        return _chain_splitters([make_splitter(part, where) for part in _parts(fields, "pretokenizers", where)])
    maker = _SPLITTERS.get(kind)
    if maker is None:
        raise Unsupported(f"pre-tokenizer {kind}")
    return maker(fields, where)


def _chain_splitters(steps: list[Splitter]) -> Splitter:
    def run(pieces: list[str]) -> list[str]:
        for step in steps:
            pieces = step(pieces)
        return pieces

    return run


def _each(split: Callable[[str], Iterable[str]]) -> Splitter:
    return lambda pieces: [part for piece in pieces for part in split(piece)]


def _byte_level(fields: dict[str, object], where: str) -> Splitter:
    compiled = compile_pattern(GPT2_PATTERN, where)
    prefix, use_regex = bool(fields.get("add_prefix_space", True)), bool(fields.get("use_regex", True))

    def split(piece: str) -> Iterator[str]:
        if prefix and not piece.startswith(" "):
            piece = " " + piece
        for part in split_by(find_spans(compiled, piece), piece, "Isolated") if use_regex else [piece]:
            yield to_byte_level(part)

    return _each(split)


def _split(fields: dict[str, object], where: str) -> Splitter:
    compiled = _compiled(fields, where)
    behavior = as_text(fields.get("behavior"), f"{where} behavior")
    invert = bool(fields.get("invert"))

    def split(piece: str) -> list[str]:
        spans = find_spans(compiled, piece)
        return split_by([(a, b, m != invert) for a, b, m in spans], piece, behavior)

    return _each(split)


def _digits(fields: dict[str, object], where: str) -> Splitter:
    behavior = "Isolated" if fields.get("individual_digits") else "Contiguous"
    return _each(lambda piece: split_by(_char_spans(piece, _is_number), piece, behavior))


def _punctuation(fields: dict[str, object], where: str) -> Splitter:
    behavior = as_text(fields.get("behavior", "Isolated"), f"{where} behavior")
    return _each(lambda piece: split_by(_char_spans(piece, is_punctuation), piece, behavior))


def _whitespace(fields: dict[str, object], where: str) -> Splitter:
    compiled = compile_pattern(r"\w+|[^\w\s]+", where)
    return _each(lambda piece: split_by([(a, b, not m) for a, b, m in find_spans(compiled, piece)], piece, "Removed"))


def _whitespace_split(fields: dict[str, object], where: str) -> Splitter:
    return _each(lambda piece: split_by(_char_spans(piece, str.isspace), piece, "Removed"))


def _bert(fields: dict[str, object], where: str) -> Splitter:
    words = _whitespace_split(fields, where)
    marks = _each(lambda piece: split_by(_char_spans(piece, is_punctuation), piece, "Isolated"))
    return lambda pieces: marks(words(pieces))


def _metaspace(fields: dict[str, object], where: str) -> Splitter:
    mark = as_text(fields.get("replacement", "▁"), f"{where} replacement")
    if len(mark) != 1:
        raise TokenizerError(f"{where}: the replacement of a Metaspace is one character")
    scheme = fields.get("prepend_scheme", "always" if fields.get("add_prefix_space", True) else "never")
    divide = bool(fields.get("split", True))

    def run(pieces: list[str]) -> list[str]:
        out: list[str] = []
        for at, piece in enumerate(pieces):
            piece = piece.replace(" ", mark)
            if (scheme == "always" or (scheme == "first" and at == 0)) and not piece.startswith(mark):
                piece = mark + piece
            spans = _char_spans(piece, lambda char: char == mark)
            out += split_by(spans, piece, "MergedWithNext") if divide else [piece]
        return out

    return run


_SPLITTERS: dict[str, Callable[[dict[str, object], str], Splitter]] = {
    "ByteLevel": _byte_level,
    "Split": _split,
    "Digits": _digits,
    "Punctuation": _punctuation,
    "Whitespace": _whitespace,
    "WhitespaceSplit": _whitespace_split,
    "BertPreTokenizer": _bert,
    "Metaspace": _metaspace,
}
