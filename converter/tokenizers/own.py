"""Vocabularies in formats of one model family each: RWKV's world vocabulary, PLaMo's tokenizer.jsonl."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass

from converter.errors import TokenizerError
from converter.storage import json as strict_json
from converter.tokenizers.files import MAX_TOKENS, as_text
from converter.tokenizers.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN

RWKV_FILE, PLAMO_FILE = "rwkv_vocab_v20230424.txt", "tokenizer.jsonl"
MAX_LITERAL = 1 << 12  # characters of one token as Python writes it
_BARE_QUOTE = re.compile(r"(?<!\\)(?:\\\\)*'")
_PLAMO_TYPES = {"UNKNOWN": UNKNOWN, "CONTROL": CONTROL, "BYTE": BYTE}


def read_rwkv(text: str) -> list[str]:
    """The tokens of the world vocabulary from id 1 on, as Python writes their bytes: printable ones, others escaped.

    Raises:
        TokenizerError: a line is not an id, a Python text or bytes literal, and its length in bytes.
    """
    tokens: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        wrong = TokenizerError(f"{RWKV_FILE}: line {number} is not a number, a quoted token and its length")
        first, _, rest = line.partition(" ")
        literal, _, length = rest.rpartition(" ")
        if first != str(len(tokens) + 1) or not 0 < len(literal) <= MAX_LITERAL or len(tokens) >= MAX_TOKENS:
            raise wrong
        token = _literal(literal)
        if token is None or str(len(token)) != length.strip():
            raise wrong
        tokens.append(repr(token)[2:-1])
    return tokens


def _literal(text: str) -> bytes | None:
    """The bytes that a Python literal of text or bytes stands for; None for anything else. Nothing is executed."""
    try:
        value = ast.literal_eval(text.strip()) if text.lstrip()[:1] in ("'", '"', "b") else None
        return value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def write_rwkv(tokens: list[str]) -> str:
    """The lines of `read_rwkv`, for tokens as it gives them.

    Raises:
        TokenizerError: a token is not written so.
    """
    lines = []
    for number, token in enumerate(tokens, 1):
        quote = '"' if _BARE_QUOTE.search(token) else "'"
        value = _literal(f"b{quote}{token}{quote}") if len(token) <= MAX_LITERAL else None
        if value is None or repr(value)[2:-1] != token:
            raise TokenizerError(f"token {number} ({ascii(token)[:40]}) is not the escaped bytes that RWKV's are")
        try:
            shown = repr(value.decode())
        except UnicodeDecodeError:
            shown = repr(value)
        lines.append(f"{number} {shown} {len(value)}\n")
    return "".join(lines)


@dataclass(frozen=True)
class PlamoToken:
    """One line of tokenizer.jsonl."""

    text: str
    score: float
    type: int


def read_plamo(text: str) -> list[PlamoToken]:
    """The tokens of a tokenizer.jsonl: lists of text, score, type and more that GGUF has no place for.

    Raises:
        TokenizerError: a line is none.
    """
    tokens = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{PLAMO_FILE}: line {number}"
        try:
            entry = strict_json.parse(line, python=True)
        except ValueError as error:
            raise TokenizerError(f"{where} is not valid JSON ({error})") from None
        if not isinstance(entry, list) or len(entry) < 2 or type(entry[1]) not in (int, float):
            raise TokenizerError(f"{where} is not a token with its score")
        token = as_text(entry[0], where)
        shown = CONTROL if token.startswith("<|plamo:") and token.endswith("|>") else NORMAL
        tokens.append(
            PlamoToken(token, float(entry[1]), _PLAMO_TYPES.get(str(entry[2]) if len(entry) > 2 else "", shown))
        )
    return tokens


def write_plamo(tokens: list[PlamoToken]) -> str:
    """The lines of `read_plamo`."""
    names = {kind: name for name, kind in _PLAMO_TYPES.items()}
    return "".join(
        json.dumps([t.text, t.score, names.get(t.type, "NORMAL")], ensure_ascii=False) + "\n" for t in tokens
    )
