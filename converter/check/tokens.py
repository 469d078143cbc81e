"""A tokenizer by itself: its `tokenizer.ggml.*` keys against each other and against the embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.chat import jinja
from converter.errors import MissingDependency, UsageError
from converter.extras import package
from converter.findings import Finding
from converter.metadata import Array, Value, array_of, number_of, text_of

Metadata = Mapping[str, Value | Array]

PREFIX = "tokenizer.ggml."
TOKENS, MODEL, PRE, MERGES = PREFIX + "tokens", PREFIX + "model", PREFIX + "pre", PREFIX + "merges"
TEMPLATE = "tokenizer.chat_template"
WITHOUT_TOKENS = ("none", "no_vocab")
NO_TOKEN = (1 << 32) - 1  # an id that says that there is no such token
TOKEN_TYPES = range(7)  # enum llama_token_type: undefined to byte
# Models of tokenizer.ggml.model whose runtime needs merges.
WITH_MERGES = ("gpt2", "gemma4")

# Arrays with one entry per token: key, element types, what values may be (of a numpy array, as a mask), and its words.
_PER_TOKEN: tuple[tuple[str, frozenset[str], Callable[[Any], Any], str], ...] = (
    ("scores", frozenset(("f32",)), np.isfinite, "not finite"),
    ("token_type", frozenset(("i32", "u32")), lambda v: (v >= 0) & (v < TOKEN_TYPES.stop), "not a known token type"),
)


@dataclass(frozen=True)
class TokenizerKeys:
    """The keys of a tokenizer, and the rows of the embedding that it serves; None where there is no embedding."""

    metadata: Metadata
    n_rows: int | None

    def findings(self) -> Iterator[Finding]:
        """Everything that does not fit. A file without `tokenizer.ggml.model` is not looked at further."""
        model = text_of(self.metadata, MODEL)
        if model is None:
            yield _wrong(MODEL, "is not there: runtimes do not load a model without a tokenizer")
        elif model not in WITHOUT_TOKENS:
            tokens = array_of(self.metadata, TOKENS, "str")
            if not tokens:
                yield _wrong(TOKENS, "is not an array of texts")
                return
            yield from self._sizes(len(tokens))
            yield from self._ids(len(tokens))
            yield from self._merges(model, tokens.values)
            yield from self._pre(model)

    def _sizes(self, count: int) -> Iterator[Finding]:
        if self.n_rows is not None and count != self.n_rows:
            yield _wrong(TOKENS, f"has {count} tokens, the embedding has {self.n_rows} rows")
        for name, types, good, words in _PER_TOKEN:
            key = PREFIX + name
            if key not in self.metadata:
                continue
            if (entry := array_of(self.metadata, key, *types)) is None:
                yield _wrong(key, f"is not an array of {' or '.join(sorted(types))}")
                continue
            if len(entry) != count:
                yield _wrong(key, f"has {len(entry)} entries for {count} tokens")
            stored = np.asarray(entry.values)
            if len(bad := np.flatnonzero(~good(stored))):
                yield _wrong(key, f"the entry of token {bad[0]} is {stored[bad[0]]}, {words}")

    def _ids(self, count: int) -> Iterator[Finding]:
        for key in self.metadata:
            if not (key.startswith(PREFIX) and key.endswith("_token_id")):
                continue
            number = number_of(self.metadata, key, "u32")
            if number is None:
                yield _wrong(key, "is not a u32, which runtimes insist on")
            elif count <= number != NO_TOKEN:
                yield _wrong(key, f"is {number}, and there are {count} tokens")

    def _merges(self, model: str, tokens: Iterable[Any]) -> Iterator[Finding]:
        if MERGES not in self.metadata:
            if model in WITH_MERGES:
                yield _wrong(MERGES, f"is not there: a {model} tokenizer is not loaded without it")
            return
        if (entry := array_of(self.metadata, MERGES, "str")) is None:
            yield _wrong(MERGES, "is not an array of texts")
            return
        known = set(tokens)
        for number, merge in enumerate(entry.values):
            if problem := _merge_problem(merge, known):
                yield _wrong(MERGES, f"merge {number}, {str(merge)[:60]!r}, {problem}")
                return

    def _pre(self, model: str) -> Iterator[Finding]:
        from converter.tokenizers.pretokenizer import check_name

        if model != "gpt2":
            return
        name = text_of(self.metadata, PRE)
        if name is None:
            yield _doubtful(PRE, "is not there: runtimes then cut text in a way that fits no model well")
            return
        try:
            check_name(name)
        except UsageError:
            yield _doubtful(PRE, f"{name[:60]!r} is not a name that is known here")


def _merge_problem(merge: Any, known: set[Any]) -> str:
    """What is wrong with a merge; its halves are parted by the first space after its first character."""
    text = merge if isinstance(merge, str) else bytes(merge).decode("utf-8", "surrogateescape")
    cut = text.find(" ", 1)
    if cut < 0:
        return "is not two parts with a space between"
    left, right = text[:cut], text[cut + 1 :]
    for part in (left, right, left + right):
        if part not in known:
            return f"has a part that is no token: {part[:40]!r}"
    return ""


def templates(metadata: Metadata) -> Iterator[Finding]:
    """Chat templates that are not text or do not parse. They are parsed only, where jinja2 is installed; never run."""
    keys = [key for key in metadata if key == TEMPLATE or key.startswith(TEMPLATE + ".")]
    try:
        parse = _parser() if keys else None
    except MissingDependency as error:
        parse = None
        yield Finding("template", TEMPLATE, "not looked at", failed=False, hint=str(error))
    for key in keys:
        if (template := text_of(metadata, key)) is None:
            yield Finding("template", key, "is not text")
        elif len(template) > _MAX_TEMPLATE:
            yield Finding("template", key, f"has {len(template)} characters, no chat template has")
        elif parse is not None and (problem := parse(template)):
            yield Finding("template", key, problem)


_MAX_TEMPLATE = 1 << 20


def _parser() -> Callable[[str], str]:
    """What says why a template does not parse; "" where it does.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    jinja2, environment = package("jinja2", "parsing it"), jinja.environment()

    def problem(template: str) -> str:
        try:
            environment.parse(jinja.plain(template))
        except jinja2.TemplateSyntaxError as error:
            return f"does not parse: line {error.lineno}: {str(error.message)[:120]}"
        except (RecursionError, ValueError, OverflowError) as error:
            return f"does not parse: {type(error).__name__}"
        return ""

    return problem


def _wrong(key: str, message: str) -> Finding:
    return Finding("tokenizer", key, message)


def _doubtful(key: str, message: str) -> Finding:
    return Finding("tokenizer", key, message, failed=False)
