"""Expressions over hyperparameter names: "n_head_kv * head_dim", "n_expert > 0", "rope_type == 'yarn'".

Architecture files are data, so their sizes and conditions are text. This is a parser, never `eval`.

    condition  = disjunct ("or" disjunct)*
    disjunct   = comparison ("and" comparison)*
    comparison = sum [("==" | "!=" | "<=" | ">=" | "<" | ">") sum]
    sum        = term (("+" | "-") term)*
    term       = factor (("*" | "//") factor)*
    factor     = integer | 'text' | name | "(" condition ")"

Texts are for comparison only; arithmetic on them is an error.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from converter.errors import ArchitectureError

Sizes = Mapping[str, Any]
_Node = Callable[[Sizes], Any]

_TOKEN = re.compile(r"\s*(\d+|'[^']*'|[A-Za-z_]\w*|//|==|!=|<=|>=|[-+*()<>])")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_SUM: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub}
_TERM: dict[str, Callable[[int, int], int]] = {"*": operator.mul, "//": operator.floordiv}


class ExpressionError(ArchitectureError):
    """The text is no expression of this grammar, or names an unknown size."""


def evaluate(text: str | int, sizes: Sizes) -> int:
    """The value of `text` with names taken from `sizes`; an int stands for itself.

    Raises:
        ExpressionError: syntax, an unknown name, or a division by zero.
    """
    if isinstance(text, int):
        return text
    try:
        return int(_parse(text)(sizes))
    except (TypeError, ValueError) as error:
        raise ExpressionError(f"{text!r}: {error}") from None
    except KeyError as error:
        raise ExpressionError(f"{text!r}: the config has no {error.args[0]}") from None
    except ZeroDivisionError:
        raise ExpressionError(f"{text!r}: division by zero, a size in the config must be 0") from None


@lru_cache(maxsize=1024)
def _parse(text: str) -> _Node:
    try:
        tokens = _tokens(text.strip())
        node = _condition(tokens)
        if tokens:
            raise ExpressionError(f"unexpected {tokens[0]!r}")
    except ExpressionError as error:
        raise ExpressionError(f"{text!r}: {error}") from None
    return node


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected {text[position:].lstrip()[0]!r}")
        tokens.append(match[1])
        position = match.end()
    return tokens


def _condition(tokens: list[str]) -> _Node:
    return _words(tokens, "or", lambda t: _words(t, "and", _comparison))


def _words(tokens: list[str], word: str, inner: Callable[[list[str]], _Node]) -> _Node:
    nodes = [inner(tokens)]
    while tokens and tokens[0] == word:
        tokens.pop(0)
        nodes.append(inner(tokens))
    if len(nodes) == 1:
        return nodes[0]
    combine = any if word == "or" else all
    return lambda sizes: int(combine(node(sizes) for node in nodes))


def _comparison(tokens: list[str]) -> _Node:
    left = _chain(tokens, _SUM, lambda t: _chain(t, _TERM, _factor))
    if not tokens or tokens[0] not in _COMPARE:
        return left
    compare = _COMPARE[tokens.pop(0)]
    right = _chain(tokens, _SUM, lambda t: _chain(t, _TERM, _factor))
    return lambda sizes: int(compare(left(sizes), right(sizes)))


def _chain(
    tokens: list[str], table: dict[str, Callable[[int, int], int]], inner: Callable[[list[str]], _Node]
) -> _Node:
    node = inner(tokens)
    while tokens and tokens[0] in table:
        node = _binary(table[tokens.pop(0)], node, inner(tokens))
    return node


def _binary(apply: Callable[[int, int], int], left: _Node, right: _Node) -> _Node:
    return lambda sizes: apply(left(sizes), right(sizes))


def _factor(tokens: list[str]) -> _Node:
    if not tokens:
        raise ExpressionError("the expression ends too early")
    token = tokens.pop(0)
    if token.isdecimal():
        value = int(token)
        return lambda sizes: value
    if token[0] == "'":
        return lambda sizes: token[1:-1]
    if token == "(":
        node = _condition(tokens)
        if not tokens or tokens.pop(0) != ")":
            raise ExpressionError("a parenthesis is not closed")
        return node
    if token[0].isalpha() or token[0] == "_":
        return lambda sizes: sizes[token]
    raise ExpressionError(f"unexpected {token!r}")
