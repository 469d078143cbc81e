"""The part of Go's text/template that chat templates for Ollama use, evaluated.

Text, `{{- -}}`, comments, fields, variables, pipelines, parentheses, literals, `if`, `else if`, `with`, `range` (with
one or two variables), `break`, `continue`, and the functions below. Values are Python's: a dict is a map or a struct, a
field that it lacks is false and prints nothing here, where Go prints `<no value>` of a map.

Source: https://pkg.go.dev/text/template. A slow test compares with Go itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class TemplateError(ValueError):
    """A template that cannot be parsed, or evaluated with the values at hand."""


# ------------------------------------------------------------------------------------------------- nodes


class Text(NamedTuple):
    """Text as it stands."""

    text: str


class Pipeline(NamedTuple):
    """Commands, each of operands; the value of one is the last argument of the next.

    `names` are the variables that get the value, `declared` whether they are new ones.
    """

    commands: tuple[tuple[Any, ...], ...]
    names: tuple[str, ...] = ()
    declared: bool = True


class Branch(NamedTuple):
    """`if`, `with` or `range`."""

    kind: str
    pipeline: Pipeline
    then: tuple[Any, ...]
    other: tuple[Any, ...]


class Jump(NamedTuple):
    """`break` or `continue`."""

    kind: str


class Field(NamedTuple):
    """`.A.B` of a start: None is the dot, a text a variable, a pipeline one in parentheses."""

    start: str | Pipeline | None
    path: tuple[str, ...]


class Literal(NamedTuple):
    """A number, a text or a truth value."""

    value: Any


class Function(NamedTuple):
    """A function by its name."""

    name: str


Nodes = tuple[Any, ...]

# ------------------------------------------------------------------------------------------------- parsing

_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
    (?P<string>"(?:[^"\\\n]|\\.)*") | (?P<raw>`[^`]*`) | (?P<number>-?\d+)
    | (?P<variable>\$\w*) | (?P<field>\.[A-Za-z_]\w*) | (?P<dot>\.) | (?P<word>[A-Za-z_]\w*)
    | (?P<sign>:=|[=(),|]))""",
    re.VERBOSE,
)
_SPACE = " \t\r\n"
_LITERALS = {"true": True, "false": False, "nil": None}


class _Token(NamedTuple):
    kind: str
    text: str
    spaced: bool


def parse(source: str) -> Nodes:
    """The nodes of a template.

    Raises:
        TemplateError: it is none, or uses what is not known here.
    """
    parser = _Parser(_pieces(source))
    nodes, end = parser.block()
    if end:
        raise TemplateError(f"unexpected {{{{ {end[0].text} }}}}")
    return nodes


def _pieces(source: str) -> list[str | list[_Token]]:
    """Text and, between, the tokens of each action."""
    pieces: list[str | list[_Token]] = []
    at, trim = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at : start if start >= 0 else None]
        trims = start >= 0 and source[start + 2 : start + 3] == "-" and source[start + 3 : start + 4] in tuple(_SPACE)
        text = text.lstrip(_SPACE) if trim else text
        text = text.rstrip(_SPACE) if trims else text
        pieces += [text] if text else []
        if start < 0:
            return pieces
        action, at, trim = _action(source, start + 2 + (1 if trims else 0))
        pieces += [action] if action is not None else []


def _action(source: str, at: int) -> tuple[list[_Token] | None, int, bool]:
    """The tokens of an action (None for a comment), where it ends, and whether the text after it is trimmed.

    Raises:
        TemplateError: an empty action, or something that is no token.
    """
    comment = re.compile(r"\s*/\*.*?\*/", re.DOTALL).match(source, at)
    at, tokens = comment.end() if comment else at, list[_Token]()
    while True:
        end = re.compile(r"[ \t\r\n]+-\}\}|[ \t\r\n]*\}\}").match(source, at)
        if end is not None and (tokens or comment):
            return tokens or None, end.end(), "-" in end[0]
        match = _TOKEN.match(source, at)
        if match is None or comment:
            raise TemplateError(f"cannot be read: {source[at : at + 20]!r}")
        kind = match.lastgroup or ""
        tokens.append(_Token(kind, match[kind], match.start(kind) > at or not tokens))
        at = match.end()


class _Parser:
    def __init__(self, pieces: Sequence[str | list[_Token]]) -> None:
        self.pieces, self.at = pieces, 0

    def block(self) -> tuple[Nodes, list[_Token]]:
        """Nodes up to an `end` or an `else` of somebody else, and the tokens of that; none at the end."""
        nodes: list[Any] = []
        while self.at < len(self.pieces):
            piece = self.pieces[self.at]
            self.at += 1
            if isinstance(piece, str):
                nodes.append(Text(piece))
                continue
            word = piece[0].text if piece[0].kind == "word" else ""
            if word in ("end", "else"):
                return tuple(nodes), piece
            if word in ("if", "with", "range"):
                nodes.append(self.branch(word, piece[1:]))
            elif word in ("break", "continue"):
                nodes.append(Jump(word))
            else:
                nodes.append(_Action(piece).whole())
        return tuple(nodes), []

    def branch(self, kind: str, tokens: list[_Token]) -> Branch:
        pipeline = _Action(tokens).whole()
        then, end = self.block()
        other: Nodes = ()
        if len(end) > 1 and end[1].text == "if":
            other = (self.branch("if", end[2:]),)  # which takes the one `end` of both
        elif end and end[0].text == "else":
            other, end = self.block()
        if not end:
            raise TemplateError(f"{{{{ {kind} }}}} has no end")
        return Branch(kind, pipeline, then, other)


class _Action:
    """One action's tokens as a pipeline."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens, self.at = tokens, 0

    def whole(self) -> Pipeline:
        made = self.pipeline()
        if self.at < len(self.tokens):
            raise TemplateError(f"unexpected {self.tokens[self.at].text}")
        return made

    def peek(self, ahead: int = 0) -> _Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else _Token("", "", True)

    def pipeline(self) -> Pipeline:
        names, declared = self.assigned()
        commands = [self.command()]
        while self.peek().text == "|" and self.peek().kind == "sign":
            self.at += 1
            commands.append(self.command())
        return Pipeline(tuple(commands), names, declared)

    def assigned(self) -> tuple[tuple[str, ...], bool]:
        """`$a :=`, `$a, $b :=`, `$a =`."""
        names, ahead = [], 0
        while self.peek(ahead).kind == "variable":
            names.append(self.peek(ahead).text)
            sign = self.peek(ahead + 1)
            if sign.kind == "sign" and sign.text in (":=", "="):
                self.at += ahead + 2
                return tuple(names), sign.text == ":="
            if sign.text != ",":
                break
            ahead += 2
        return (), True

    def command(self) -> tuple[Any, ...]:
        operands: list[Any] = []
        while (operand := self.operand()) is not None:
            operands.append(operand)
        if not operands:
            raise TemplateError("an empty command")
        return tuple(operands)

    def operand(self) -> Any:
        token = self.peek()
        if token.kind in ("", "sign") and token.text != "(":
            return None
        self.at += 1
        if token.kind == "string":
            return Literal(json.loads(token.text))
        if token.kind == "raw":
            return Literal(token.text[1:-1])
        if token.kind == "number":
            return Literal(int(token.text))
        if token.kind == "word":
            return Literal(_LITERALS[token.text]) if token.text in _LITERALS else Function(token.text)
        if token.kind == "field":
            return Field(None, (token.text[1:], *self.fields()))
        if token.kind == "variable":
            return Field(token.text, self.fields())
        return Field(self.inner(), self.fields()) if token.text == "(" else Field(None, ())

    def inner(self) -> Pipeline:
        made = self.pipeline()
        if self.peek().text != ")":
            raise TemplateError("a parenthesis is not closed")
        self.at += 1
        return made

    def fields(self) -> tuple[str, ...]:
        """Fields that follow without a space."""
        found = []
        while self.peek().kind == "field" and not self.peek().spaced:
            found.append(self.peek().text[1:])
            self.at += 1
        return tuple(found)


# ------------------------------------------------------------------------------------------------- evaluating


def compact(value: Any) -> str:
    """JSON as Go writes it: no spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def shown(value: Any) -> str:
    """A value as an action prints it; maps and lists as JSON, as Ollama's types print themselves."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else compact(value)


def _slice(value: Any, *bounds: int) -> Any:
    if not all(0 <= each <= len(value) for each in bounds) or list(bounds) != sorted(bounds):
        raise TemplateError("slice: out of range")
    return value[slice(*bounds)] if len(bounds) > 1 else value[bounds[0] :] if bounds else value


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else value[key]
    return value


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": lambda *values: next((each for each in values if not each), values[-1]),
    "or": lambda *values: next((each for each in values if each), values[-1]),
    "not": lambda value: not value,
    "len": len,
    "index": _index,
    "slice": _slice,
    "eq": lambda one, *others: any(one == each for each in others),
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
    "json": compact,
}


class _Jumped(Exception):
    """`break` or `continue`, on its way to its `range`."""


@dataclass
class _Scope:
    """Variables, those of the blocks around last."""

    own: dict[str, Any]
    outer: _Scope | None = None

    def holder(self, name: str) -> dict[str, Any]:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.own:
                return scope.own
            scope = scope.outer
        raise TemplateError(f"undefined variable {name}")


@dataclass
class _Run:
    out: list[str] = field(default_factory=list)

    def nodes(self, nodes: Nodes, dot: Any, scope: _Scope) -> None:
        for node in nodes:
            match node:
                case Text():
                    self.out.append(node.text)
                case Pipeline():
                    value = self.value(node, dot, scope)
                    self.out.append("" if node.names else shown(value))
                case Jump():
                    raise _Jumped(node.kind)
                case Branch(kind="range"):
                    self.range(node, dot, scope)
                case Branch():
                    inner = _Scope({}, scope)
                    value = self.value(node.pipeline, dot, inner)
                    chosen = node.then if value else node.other
                    self.nodes(chosen, value if value and node.kind == "with" else dot, inner)

    def range(self, node: Branch, dot: Any, scope: _Scope) -> None:
        names, plain = node.pipeline.names, node.pipeline._replace(names=())
        value = self.value(plain, dot, scope)
        if not value:
            return self.nodes(node.other, dot, _Scope({}, scope))
        pairs = sorted(value.items()) if isinstance(value, Mapping) else enumerate(value)
        for key, each in pairs:
            own = dict(zip(names, (key, each) if len(names) > 1 else (each,), strict=True)) if names else {}
            try:
                self.nodes(node.then, each, _Scope(own, scope))
            except _Jumped as jump:
                if str(jump) == "break":
                    break
        return None

    def value(self, pipeline: Pipeline, dot: Any, scope: _Scope) -> Any:
        piped: tuple[Any, ...] = ()
        for command in pipeline.commands:
            piped = (self.command(command, piped, dot, scope),)
        for name in pipeline.names:
            (scope.own if pipeline.declared else scope.holder(name))[name] = piped[0]
        return piped[0]

    def command(self, operands: tuple[Any, ...], piped: tuple[Any, ...], dot: Any, scope: _Scope) -> Any:
        first, *rest = operands
        if not isinstance(first, Function):
            if rest or piped:
                raise TemplateError("arguments for what is no function")
            return self.operand(first, dot, scope)
        if first.name not in FUNCTIONS:
            raise TemplateError(f"function {first.name} is not known")
        values = (*(self.operand(each, dot, scope) for each in rest), *piped)
        try:
            return FUNCTIONS[first.name](*values)
        except (TypeError, LookupError, AttributeError) as error:
            raise TemplateError(f"{first.name}: {error}") from error

    def operand(self, operand: Any, dot: Any, scope: _Scope) -> Any:
        match operand:
            case Literal():
                return operand.value
            case Function():
                return self.command((operand,), (), dot, scope)
            case Field(start=str() as name):
                value = scope.holder(name)[name]
            case Field(start=Pipeline() as pipeline):
                value = self.value(pipeline, dot, scope)
            case _:
                value = dot
        for name in operand.path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


def evaluate(nodes: Nodes, values: Mapping[str, Any]) -> str:
    """What a parsed template makes of values.

    Raises:
        TemplateError: a function that is not known, or its arguments.
    """
    run = _Run()
    try:
        run.nodes(nodes, values, _Scope({"$": values}))
    except _Jumped as jump:
        raise TemplateError(f"{jump} outside range") from None
    return "".join(run.out)
