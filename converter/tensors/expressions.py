"""Expressions over hyperparameters: "n_head_kv * head_dim", "n_expert > 0", "layer_types[block] == 'full_attention'".

Architecture files are data, so their sizes, conditions and derived numbers are text. This is a parser, never `eval`.

    expression = condition ["if" condition "else" expression]
    condition  = conjunct ("or" conjunct)*
    conjunct   = negation ("and" negation)*
    negation   = "not" negation | comparison
    comparison = sum [("==" | "!=" | "<=" | ">=" | "<" | ">" | ["not"] "in") sum]
    sum        = term (("+" | "-") term)*
    term       = factor (("*" | "//" | "/" | "%") factor)*
    factor     = "-" factor | power
    power      = item ["**" factor]
    item       = atom ("[" expression "]")*
    atom       = number | 'text' | name | function "(" expression ("," expression)* ")" | "(" expression ")"

Numbers are Python's, integers and doubles; comparisons and conditions are 1 or 0. Texts are for comparison, indexing
and `in` only. **Where one value is needed, a list stands for its element at `block`**, so that a fact that differs per
block is written like one that does not. An index, the right side of `in` and the functions for lists take it whole.

Functions: `int` (towards zero), `sqrt`, `ln`, `min`, `max`, `round_up(number, multiple)`; for lists `len` and `first`
(of a number: 1, and itself), `sum`, `min`, `max`, `where(list, start)` (the indexes of what is true, counted from
`start` or 0), `join(list, separator)` (one text), `numbers('0,4,8')` (a list again), `resized(list, length)` (cut, or
with zeros at its end); `present('blk.{block}.attn_q.bias')` says whether the file that is read has a tensor of that
name, `present(name, number)` the same of another block; `stored(name, 'MXFP4')` whether it has that type there,
`shape(name, axis)` how long it is along an axis there, 0 where there is none.

An expression may come from a stranger's file: its length, its depth and its numbers are limited.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from converter.errors import ArchitectureError, short
from converter.tensors.elementary import double_log, double_power

Sizes = Mapping[str, Any]
_Node = Callable[[Sizes], Any]

BLOCK, PRESENT = "block", "present"  # names that are no hyperparameters: the block meant, the names of the tensors read
STORED, SHAPE, VALUES_IN = "stored", "shape", "values_in"  # ask the same tensors
MAX_LENGTH = 1000  # characters
MAX_DEPTH = 32  # of parentheses, functions, signs
MAX_BITS = 1 << 12  # of an integer on the way
MAX_EXPONENT = 1 << 10
MAX_ITEMS = 1 << 16  # of a list made of a text

_TOKEN = re.compile(
    r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|'[^']*'|[A-Za-z_]\w*|\*\*|//|==|!=|<=|>=|[-+*/%()<>,\[\]])"
)
_WORDS = frozenset(("if", "else", "or", "and", "not", "in"))


class ExpressionError(ArchitectureError):
    """The text is no expression of this grammar, or has no value for these sizes."""


def evaluate(text: str | int, sizes: Sizes) -> int:
    """The whole number that `text` is, with names taken from `sizes`; an int stands for itself.

    Raises:
        ExpressionError: syntax, an unknown name, a division by zero, or a value that is no whole number.
    """
    if isinstance(text, int):
        return text
    value = compute(text, sizes)
    if not isinstance(value, int | float) or (isinstance(value, float) and not value.is_integer()):
        raise ExpressionError(f"{text!r}: {short(value)} is no whole number")
    return int(value)


def compute(text: str, sizes: Sizes) -> Any:
    """The value of `text`: a number, a text, or a list where no `block` is meant.

    Raises:
        ExpressionError: as `evaluate`.
    """
    try:
        value = _parse(text).value(sizes)
        return _one(value, sizes) if BLOCK in sizes else value
    except KeyError as error:
        raise ExpressionError(f"{text!r}: the config has no {error.args[0]}") from None
    except ZeroDivisionError:
        raise ExpressionError(f"{text!r}: division by zero, a size in the config must be 0") from None
    except (ExpressionError, TypeError, ValueError, OverflowError) as error:
        raise ExpressionError(f"{text!r}: {error}") from None


def names(text: str | int) -> frozenset[str]:
    """The names that an expression asks for, `block` and `present` among them.

    Raises:
        ExpressionError: it is none.
    """
    if isinstance(text, int):
        return frozenset()
    try:
        return _parse(text).names
    except ExpressionError as error:
        raise ExpressionError(f"{text!r}: {error}") from None


# ---------------------------------------------------------------------------------------------- values


def _one(value: Any, sizes: Sizes) -> Any:
    """What stands for `value` where one value is needed."""
    if not isinstance(value, list | tuple):
        return value
    if BLOCK not in sizes:
        raise ExpressionError(f"{short(list(value))} has a value for each block, and no block is meant here")
    return _item(value, sizes[BLOCK])


def _item(values: Any, index: Any) -> Any:
    if not isinstance(values, list | tuple | str):
        raise ExpressionError(f"{short(values)} is no list")
    if not isinstance(index, int) or not 0 <= index < len(values):
        raise ExpressionError(f"{short(values)} has {len(values)} values, none at {short(index)}")
    return values[index]


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise ExpressionError(f"{short(value)} is no number")
    return value


def _bounded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ExpressionError(f"{value} is no number to go on with")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ExpressionError("a number on the way is too large")
    return value


def _power(base: Any, exponent: Any) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int) and exponent >= 0
    if abs(exponent) > MAX_EXPONENT or (whole and base.bit_length() * exponent > MAX_BITS):
        raise ExpressionError("a number on the way is too large")
    return pow(base, exponent) if whole else double_power(base, exponent)


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "/": operator.truediv,
    "%": operator.mod,
    "**": _power,
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ExpressionError(f"{short(value)} is no list")
    return value


def _extreme(choose: Callable[[Sequence[Any]], Any]) -> Callable[..., Any]:
    def chosen(sizes: Sizes, *values: Any) -> Any:
        among = _list(values[0]) if len(values) == 1 else [_one(value, sizes) for value in values]
        return choose([_number(value) for value in among])

    return chosen


def _first(sizes: Sizes, value: Any) -> Any:
    return _item(value, 0) if isinstance(value, list | tuple) else value


def _where(sizes: Sizes, values: Any, start: Any = 0) -> list[int]:
    return [index for index, value in enumerate(_list(values), _number(start)) if value]


def _join(sizes: Sizes, values: Any, separator: Any = "") -> str:
    return str(separator).join(map(str, _list(values)))


def _numbers(sizes: Sizes, value: Any) -> list[int]:
    parts = [part for part in str(_one(value, sizes)).split(",") if part.strip()]
    if len(parts) > MAX_ITEMS:
        raise ExpressionError(f"{short(value)} has {len(parts)} numbers")
    return [int(part) for part in parts]


def _resized(sizes: Sizes, values: Any, length: Any) -> list[Any]:
    if not isinstance(length, int) or not 0 <= length <= MAX_ITEMS:
        raise ExpressionError(f"{short(length)} is no length of a list")
    return [*_list(values), *[0] * length][:length]


def _present(sizes: Sizes, template: Any, block: Any = None) -> int:
    name = str(template)
    if "{block}" in name:
        name = name.replace("{block}", str(sizes[BLOCK] if block is None else block))
    return int(name in sizes[PRESENT])


def _tensor(sizes: Sizes, template: Any, block: Any = None) -> Any:
    """The tensor of a name; None also where tensors are known by their names alone."""
    tensors = sizes[PRESENT]
    name = str(template).replace("{block}", str(sizes.get(BLOCK) if block is None else block))
    return tensors.get(name) if isinstance(tensors, Mapping) else None


def _stored(sizes: Sizes, template: Any, dtype: Any) -> int:
    tensor = _tensor(sizes, template)
    return int(tensor is not None and tensor.info.dtype.name == dtype)


def _shape(sizes: Sizes, template: Any, axis: Any, block: Any = None) -> int:
    tensor = _tensor(sizes, template, block)
    return int(_item(tensor.info.shape, axis)) if tensor is not None else 0


def _values_in(sizes: Sizes, template: Any, block: Any = None) -> list[Any]:
    tensor = _tensor(sizes, template, block)
    if tensor is None:
        return []
    if tensor.info.n_elements > MAX_ITEMS:
        raise ExpressionError(f"{tensor.name} has {tensor.info.n_elements} numbers")
    found: list[Any] = tensor.array().reshape(-1).tolist()
    return found


# The fewest and the most arguments, and what it does with them.
_FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "int": (1, 1, lambda sizes, value: int(_number(_one(value, sizes)))),
    "sqrt": (1, 1, lambda sizes, value: math.sqrt(_number(_one(value, sizes)))),
    "ln": (1, 1, lambda sizes, value: double_log(_number(_one(value, sizes)))),
    "round_up": (2, 2, lambda sizes, value, unit: -(-_number(_one(value, sizes)) // _number(unit)) * unit),
    "min": (1, 8, _extreme(min)),
    "max": (1, 8, _extreme(max)),
    "len": (1, 1, lambda sizes, value: 1 if isinstance(value, int | float) else len(_list(value))),
    "sum": (1, 1, lambda sizes, values: sum(map(_number, _list(values)))),
    "first": (1, 1, _first),
    "where": (1, 2, _where),
    "join": (1, 2, _join),
    "numbers": (1, 1, _numbers),
    "resized": (2, 2, _resized),
    PRESENT: (1, 2, _present),
    STORED: (2, 2, _stored),
    SHAPE: (2, 3, _shape),
    VALUES_IN: (1, 2, _values_in),
}
RESERVED = frozenset((BLOCK, *_WORDS, *_FUNCTIONS))  # no hyperparameter may be called so


# ---------------------------------------------------------------------------------------------- grammar


@dataclass(frozen=True)
class _Expression:
    value: _Node
    names: frozenset[str]


@lru_cache(maxsize=8192)
def _parse(text: str) -> _Expression:
    parser = _Parser(text)
    node = parser.expression()
    if parser.tokens:
        raise ExpressionError(f"unexpected {parser.tokens[0]!r}")
    return _Expression(node, frozenset(parser.names))


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    text, position, tokens = text.strip(), 0, []
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected {text[position:].lstrip()[0]!r}")
        tokens.append(match[1])
        position = match.end()
    return tokens


class _Parser:
    """One method for each line of the grammar; each takes tokens from the front and gives a function of the sizes."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.names: set[str] = set()
        self.depth = 0

    def take(self, *wanted: str) -> str | None:
        """The next token if it is one of these."""
        return self.tokens.pop(0) if self.tokens and self.tokens[0] in wanted else None

    def need(self, token: str) -> None:
        if not self.take(token):
            raise ExpressionError("a parenthesis is not closed" if token in ")]" else f"there is no {token!r}")

    def inside(self, rule: Callable[[], _Node]) -> _Node:
        """`rule` one level deeper."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"deeper than {MAX_DEPTH} levels")
        node = rule()
        self.depth -= 1
        return node

    def expression(self) -> _Node:
        value = self.condition()
        if not self.take("if"):
            return value
        test = _single(self.condition())
        self.need("else")
        other = self.inside(self.expression)
        return lambda sizes: value(sizes) if test(sizes) else other(sizes)

    def condition(self) -> _Node:
        return self.words("or", any, lambda: self.words("and", all, self.negation))

    def words(self, word: str, combine: Callable[[Any], bool], rule: Callable[[], _Node]) -> _Node:
        nodes = [rule()]
        while self.take(word):
            nodes.append(rule())
        if len(nodes) == 1:
            return nodes[0]
        tests = [_single(node) for node in nodes]
        return lambda sizes: int(combine(test(sizes) for test in tests))

    def negation(self) -> _Node:
        if not self.take("not"):
            return self.comparison()
        node = _single(self.inside(self.negation))
        return lambda sizes: int(not node(sizes))

    def comparison(self) -> _Node:
        left = self.sum()
        if token := self.take(*_COMPARE):
            return _combined(left, [(_COMPARE[token], self.sum())], int)
        wanted = not self.take("not")
        if self.take("in"):
            member, group = _single(left), self.sum()
            return lambda sizes: int((member(sizes) in _group(group(sizes))) is wanted)
        if not wanted:
            raise ExpressionError("unexpected 'not'")
        return left

    def sum(self) -> _Node:
        return self.chain(("+", "-"), lambda: self.chain(("*", "//", "/", "%"), self.factor))

    def chain(self, operators: tuple[str, ...], rule: Callable[[], _Node]) -> _Node:
        node, rest = rule(), []
        while token := self.take(*operators):
            rest.append((_arithmetic(token), rule()))
        return _combined(node, rest) if rest else node

    def factor(self) -> _Node:
        if not self.take("-"):
            return self.power()
        node = _single(self.inside(self.factor))
        return lambda sizes: -_number(node(sizes))

    def power(self) -> _Node:
        base = self.item()
        return _combined(base, [(_arithmetic("**"), self.inside(self.factor))]) if self.take("**") else base

    def item(self) -> _Node:
        node = self.atom()
        while self.take("["):
            node = _indexed(node, _single(self.inside(self.expression)))
            self.need("]")
        return node

    def atom(self) -> _Node:
        if not self.tokens:
            raise ExpressionError("the expression ends too early")
        token = self.tokens.pop(0)
        if token == "(":
            node = self.inside(self.expression)
            self.need(")")
            return node
        if token[0].isdecimal():
            number = int(token) if token.isdecimal() else _bounded(float(token))
            return lambda sizes: number
        if token[0] == "'":
            return lambda sizes: token[1:-1]
        if not (token[0].isalpha() or token[0] == "_") or token in _WORDS:
            raise ExpressionError(f"unexpected {token!r}")
        return self.call(token) if self.take("(") else self.name(token)

    def name(self, name: str) -> _Node:
        self.names.add(name)
        return lambda sizes: sizes[name]

    def call(self, name: str) -> _Node:
        if name not in _FUNCTIONS:
            raise ExpressionError(f"unexpected '(': there is no function {name}")
        fewest, most, function = _FUNCTIONS[name]
        arguments = [self.inside(self.expression)]
        while self.take(","):
            arguments.append(self.inside(self.expression))
        self.need(")")
        if not fewest <= len(arguments) <= most:
            raise ExpressionError(f"{name} takes {fewest} to {most} values, not {len(arguments)}")
        if name in (PRESENT, STORED, SHAPE, VALUES_IN):
            self.names.add(PRESENT)
        return lambda sizes: _bounded(function(sizes, *(argument(sizes) for argument in arguments)))


def _single(node: _Node) -> _Node:
    return lambda sizes: _one(node(sizes), sizes)


def _indexed(node: _Node, index: _Node) -> _Node:
    return lambda sizes: _item(node(sizes), index(sizes))


def _group(value: Any) -> Any:
    return value if isinstance(value, str) else _list(value)


def _arithmetic(token: str) -> Callable[[Any, Any], Any]:
    apply = _ARITHMETIC[token]
    return lambda a, b: _bounded(apply(_number(a), _number(b)))


def _combined(
    node: _Node, rest: list[tuple[Callable[[Any, Any], Any], _Node]], made: Callable[[Any], Any] | None = None
) -> _Node:
    """Operators of one level, from left to right; a loop, for a long sum must not become a deep stack."""

    def value(sizes: Sizes) -> Any:
        result = _one(node(sizes), sizes)
        for apply, other in rest:
            result = apply(result, _one(other(sizes), sizes))
        return made(result) if made else result

    return value
