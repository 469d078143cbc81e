"""The YAML front matter of a model card, read and added to without a YAML library.

A card (README.md) starts with `---`, lines of YAML, `---`. What cards hold is a small part of YAML 1.1: maps,
lists (block and flow), plain, quoted and block scalars, comments. That part is read here with bounded depth and in
linear time, and nothing is ever constructed but text, numbers, lists and dicts. An entry outside that part
(anchors, aliases, tags, `?` keys) is skipped and named in a Note, the entries around it are kept.

Source: YAML 1.1 (https://yaml.org/spec/1.1/) and its scalar types (https://yaml.org/type/).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import TypeAlias

from converter.events import Event, Note

MAX_DEPTH = 24
MAX_LINES = 1 << 16  # of a card's front matter; the longest in use have some 10,000
MAX_SKIPPED = 64  # a card with more unreadable entries is not read on
MAX_NUMBER_LENGTH = 64  # a longer plain scalar is text: nothing in a card counts that far


@dataclass(frozen=True)
class Plain:
    """An unquoted scalar that YAML 1.1 does not take for text: null, a truth value or a number, as `text` wrote it."""

    text: str
    value: bool | int | float | None


Node: TypeAlias = "str | Plain | list[Node] | dict[str, Node]"


class _Unreadable(Exception):
    """The entry at hand lies outside the subset."""


def front_matter(text: str) -> str | None:
    """The YAML between the first two `---` lines of a model card, None where the card has none.

    A card whose second `---` is missing is front matter to its end, as it is for llama.cpp's converter, whose two
    repairs are applied as well: a list item `no` is Norwegian rather than false, a tab is two spaces.
    """
    lines = text.splitlines()
    if not lines or lines[0] != "---":
        return None
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    body = "\n".join(lines[1:end]) + "\n"
    return body.replace("- no\n", '- "no"\n').replace("\t", "  ")


def read_front_matter(yaml: str, wanted: Container[str] | None = None) -> tuple[dict[str, Node], list[Event]]:
    """The top-level entries of `yaml`, and one Note per entry that could not be read.

    `wanted` limits the notes (not the entries) to the keys that matter to the caller; None means all.
    Never raises: what cannot be read is left out.
    """
    lines = yaml.split("\n", MAX_LINES)
    entries, notes = _Reader("\n".join(lines[:MAX_LINES])).document(wanted)
    if len(lines) > MAX_LINES and lines[MAX_LINES]:
        notes.append(Note(f"README.md: more than {MAX_LINES} lines of front matter, the rest is not read"))
    return entries, notes


# -- plain scalars: YAML 1.1's implicit types, in the order they are tried ----------------------------------------


def _sexagesimal(text: str) -> float:
    """`1:30` is 90: YAML 1.1 reads colons as base 60."""
    digits = [float(part) for part in text.lstrip("+-").split(":")]
    total = reduce(lambda high, low: high * 60 + low, digits)
    return -total if text.startswith("-") else total


_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("~", "null", "Null", "NULL", ""), None),
    **dict.fromkeys(("yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
}
_NUMBER_STARTS = frozenset("+-.0123456789")  # most scalars are words: one look, not ten patterns
_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], int | float]], ...] = tuple(
    (re.compile(f"(?:{pattern})", re.ASCII), parse)
    for pattern, parse in (
        (r"[-+]?0b[01_]+", lambda text: int(text.replace("_", ""), 2)),
        (r"[-+]?0x[0-9a-fA-F_]+", lambda text: int(text.replace("_", ""), 16)),
        (r"[-+]?0[0-7_]+", lambda text: int(text.replace("_", ""), 8)),
        (r"[-+]?(?:0|[1-9][0-9_]*)", lambda text: int(text.replace("_", ""))),
        (r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+", lambda text: int(_sexagesimal(text.replace("_", "")))),
        (r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*", lambda text: _sexagesimal(text.replace("_", ""))),
        (r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?", lambda text: float(text.replace("_", ""))),
        (r"\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?", lambda text: float(text.replace("_", ""))),
        (r"[-+]?\.(?:inf|Inf|INF)", lambda text: float(text.replace(".", ""))),
        (r"\.(?:nan|NaN|NAN)", lambda text: math.nan),
    )
)


def _resolve(text: str) -> str | Plain:
    """What an unquoted scalar means."""
    if text in _WORDS:
        return Plain(text, _WORDS[text])
    if text[0] not in _NUMBER_STARTS or len(text) > MAX_NUMBER_LENGTH:
        return text
    for pattern, parse in _NUMBERS:
        if pattern.fullmatch(text):
            try:
                return Plain(text, parse(text))
            except ValueError:  # `0x_` and the like: the shape of a number without a digit
                return text
    return text


# -- quoted scalars -----------------------------------------------------------------------------------------------

_SINGLE = re.compile(r"'((?:[^']|'')*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))", re.DOTALL)
_ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b", " ": " ",
    '"': '"', "\\": "\\", "/": "/", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code is not None:
        number = int(code, 16)
        if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
            raise _Unreadable(f"\\U{code} is no character")
        return chr(number)
    if match[4] not in _ESCAPES:
        raise _Unreadable(f"unknown escape \\{match[4]}")
    return _ESCAPES[match[4]]


def _join_lines(lines: list[str], glued: Container[int] = ()) -> str:
    """Fold the lines of a plain or quoted scalar: a line break is a space, n blank lines are n line breaks.

    After the lines whose index is in `glued` (they ended in a backslash) nothing is inserted.
    """
    out = [lines[0]]
    blanks = 0
    for index, line in enumerate(lines[1:]):
        if not line and index + 2 < len(lines):
            blanks += 1
            continue
        out.append("\n" * blanks or ("" if index in glued else " "))
        out.append(line)
        blanks = 0
    return "".join(out)


def _quoted_lines(raw: str) -> list[str]:
    """The lines of a quoted scalar without the white space around its line breaks."""
    lines = raw.split("\n")
    if len(lines) == 1:
        return lines
    return [lines[0].rstrip(" "), *(line.strip(" ") for line in lines[1:-1]), lines[-1].lstrip(" ")]


def _double(raw: str) -> str:
    lines = _quoted_lines(raw)
    glued = {i for i, line in enumerate(lines[:-1]) if (len(line) - len(line.rstrip("\\"))) % 2}
    lines = [line[:-1] if i in glued else line for i, line in enumerate(lines)]
    return _ESCAPE.sub(_unescape, _join_lines(lines, glued))


def _single(raw: str) -> str:
    return _join_lines(_quoted_lines(raw)).replace("''", "'")


_QUOTES: dict[str, tuple[re.Pattern[str], Callable[[str], str]]] = {"'": (_SINGLE, _single), '"': (_DOUBLE, _double)}


def _quoted(text: str, start: int) -> tuple[str, int]:
    """The quoted scalar at `start` and the position after it."""
    pattern, decode = _QUOTES[text[start]]
    match = pattern.match(text, start)
    if match is None:
        raise _Unreadable("a quote is not closed")
    return decode(match[1]), match.end()


# -- flow collections: [a, b] and {a: b} --------------------------------------------------------------------------

_BLANK = re.compile(r"(?:[ \n]+(?:#[^\n]*)?)*")
_FLOW_PLAIN = re.compile(r"(?:[^,\[\]{}:#\n ]|:(?![ \n,\[\]{}])|(?<![ \n])#|[ \n]+(?=[^ \n,\[\]{}:#]))+")
_INDICATOR = re.compile(r"[-?](?![^ \n,\[\]{}])")
_NOT_PLAIN = "&*!|>%@`,]}#"  # what a plain scalar cannot start with, beside quotes and opening brackets


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _flow(text: str, at: int, depth: int) -> tuple[Node, int]:
    """The flow node at `at` and the position after it."""
    if depth > MAX_DEPTH:
        raise _Unreadable(f"nested deeper than {MAX_DEPTH}")
    mark = text[at : at + 1]
    if mark in _QUOTES:
        return _quoted(text, at)
    if mark == "[":
        return _flow_list(text, _skip(text, at + 1), depth)
    if mark == "{":
        return _flow_map(text, _skip(text, at + 1), depth)
    match = _FLOW_PLAIN.match(text, at)
    if match is None or mark in _NOT_PLAIN or _INDICATOR.match(text, at, at + 2):
        raise _Unreadable("a list or map in brackets is not closed or not understood")
    return _resolve(_join_lines([line.strip(" ") for line in match[0].split("\n")])), match.end()


def _flow_list(text: str, at: int, depth: int) -> tuple[Node, int]:
    items: list[Node] = []
    while text[at : at + 1] != "]":
        item, at = _flow(text, at, depth + 1)
        items.append(item)
        at = _after_item(text, at, "]")
    return items, at + 1


def _flow_map(text: str, at: int, depth: int) -> tuple[Node, int]:
    entries: dict[str, Node] = {}
    while text[at : at + 1] != "}":
        key, at = _flow(text, at, depth + 1)
        value: Node = Plain("", None)
        at = _skip(text, at)
        if text[at : at + 1] == ":":
            at = _skip(text, at + 1)
            if text[at : at + 1] not in (",", "}"):
                value, at = _flow(text, at, depth + 1)
        entries[_key_text(key)] = value
        at = _after_item(text, at, "}")
    return entries, at + 1


def _after_item(text: str, at: int, close: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] == ",":
        return _skip(text, at + 1)
    if text[at : at + 1] != close:
        raise _Unreadable(f"expected , or {close}")
    return at


def _key_text(key: Node) -> str:
    if isinstance(key, Plain):
        return key.text
    if not isinstance(key, str):
        raise _Unreadable("a list or a map is used as a key")
    return key


# -- block structure ----------------------------------------------------------------------------------------------

_BLOCK_HEADER = re.compile(r"([|>])(?:([-+])?([1-9])?|([1-9])([-+]))(?: +#.*| *)$")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _dash(line: str, column: int) -> bool:
    return line[column : column + 2] in ("-", "- ")


def _split_key(line: str, column: int) -> tuple[str, int] | None:
    """The key that starts at `column` and the column after its colon, None where the line is no `key: value`."""
    if line[column : column + 1] in _QUOTES:
        try:
            key, end = _quoted(line, column)
        except _Unreadable:
            return None
        end += _indent(line[end:])
        return (key, end + 1) if line[end : end + 2] in (":", ": ") else None
    end = line.find(": ", column)
    if end < 0:
        end = len(line) - 1 if line.endswith(":") else column
    key = line[column:end].rstrip(" ")
    if not key or " #" in key or key[0] in _NOT_PLAIN + "[{" or (key[0] in "?-" and key[1:2] in ("", " ")):
        return None
    return key, end + 1


class _Reader:
    """Walks the lines of one document. `at` is the current line; the dash of a list item is blanked when it is read,
    so that what follows it is an ordinary block with a larger indent."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.removesuffix("\n").split("\n")
        self.starts = [0, *accumulate(len(line) + 1 for line in self.lines)]
        self.at = 0

    def document(self, wanted: Container[str] | None) -> tuple[dict[str, Node], list[Event]]:
        entries: dict[str, Node] = {}
        skipped: dict[str, str] = {}
        base = self.peek()
        unreadable = 0
        while self.peek() >= 0 and self.lines[self.at] not in ("...", "---") and unreadable < MAX_SKIPPED:
            first = self.at
            found = _split_key(self.lines[first], base)
            try:
                key, value = self.entry(base, 1)
                self.check_dedent(base)
                entries[key] = value
            except _Unreadable as why:
                unreadable += 1
                name = found[0] if found else self.lines[first].strip(" ")[:40]
                if wanted is None or name in wanted or not found:
                    skipped.setdefault(name, f"README.md: front matter entry {name!r} skipped ({why})")
                self.recover(first, base)
        return entries, [Note(text) for text in skipped.values()]

    def recover(self, first: int, base: int) -> None:
        """Go to the next line after `first` that starts an entry of the outermost map."""
        self.at = first + 1
        while self.peek() >= 0 and (self.peek() != base or _split_key(self.lines[self.at], base) is None):
            self.at += 1

    def peek(self) -> int:
        """Move to the next line that says something; its indent, -1 at the end."""
        while self.at < len(self.lines):
            line = self.lines[self.at].lstrip(" ")
            if line and not line.startswith("#"):
                return len(self.lines[self.at]) - len(line)
            self.at += 1
        return -1

    def entry(self, indent: int, depth: int) -> tuple[str, Node]:
        line = self.lines[self.at]
        found = _split_key(line, indent) if _indent(line) == indent else None
        if found is None:
            raise _Unreadable(f"line {self.at + 2} is no `key: value`")
        key, column = found
        column += _indent(line[column:])
        if line[column : column + 1] in ("", "#"):
            self.at += 1
            return key, self.nested(indent, depth)
        return key, self.inline(indent, column)

    def nested(self, indent: int, depth: int, *, in_list: bool = False) -> Node:
        """The node on the lines below a key or a lone dash at `indent`; nothing there is null."""
        below = self.peek()
        if below > indent:
            return self.block(indent, below, depth + 1)
        if below == indent and not in_list and _dash(self.lines[self.at], indent):
            return self.sequence(indent, depth + 1)
        return Plain("", None)

    def block(self, parent: int, indent: int, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise _Unreadable(f"nested deeper than {MAX_DEPTH}")
        line = self.lines[self.at]
        if _dash(line, indent):
            return self.sequence(indent, depth)
        if _split_key(line, indent):
            return self.mapping(indent, depth)
        return self.inline(parent, indent)

    def mapping(self, indent: int, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while self.peek() == indent and not _dash(self.lines[self.at], indent):
            key, entries[key] = self.entry(indent, depth)
        self.check_dedent(indent)
        return entries

    def sequence(self, indent: int, depth: int) -> list[Node]:
        items: list[Node] = []
        while self.peek() == indent and _dash(self.lines[self.at], indent):
            line = self.lines[self.at] = " " * (indent + 1) + self.lines[self.at][indent + 1 :]
            column = _indent(line)
            if line[column : column + 1] in ("", "#"):
                self.at += 1
                items.append(self.nested(indent, depth, in_list=True))
            else:
                items.append(self.block(indent, column, depth + 1))
        self.check_dedent(indent)
        return items

    def check_dedent(self, indent: int) -> None:
        if self.peek() > indent:
            raise _Unreadable(f"line {self.at + 2} is indented more than its block")

    def inline(self, parent: int, column: int) -> Node:
        """The node that starts at `column` of the current line and belongs to a block at indent `parent`."""
        mark = self.lines[self.at][column]
        if mark in "|>":
            return self.block_scalar(parent, column)
        if mark in _QUOTES or mark in "[{":
            return self.flow(column)
        if mark in _NOT_PLAIN or (mark in "?-:" and self.lines[self.at][column + 1 : column + 2] in ("", " ")):
            raise _Unreadable(f"{mark} is not supported here")
        return self.plain(parent, column)

    def flow(self, column: int) -> Node:
        node, end = _flow(self.text, self.starts[self.at] + column, 1)
        self.at = bisect_right(self.starts, end) - 1
        rest = self.lines[self.at][end - self.starts[self.at] :]
        if not re.match(r" *$| +#", rest):
            raise _Unreadable(f"text after the end of a value on line {self.at + 2}")
        self.at += 1
        return node

    def plain(self, parent: int, column: int) -> str | Plain:
        parts = [self.lines[self.at][column:]]
        while " #" not in parts[-1] and self.continues(parent):
            parts += [line.strip(" ") for line in self.lines[self.at + 1 : self.next_line]]
            parts.append(self.lines[self.next_line].strip(" "))
            self.at = self.next_line
        self.at += 1
        parts[-1] = parts[-1].split(" #", 1)[0]
        parts = [part.rstrip(" ") for part in parts]
        if any(": " in part or part.endswith(":") for part in parts):
            raise _Unreadable("a colon in unquoted text")
        return _resolve(_join_lines(parts))

    def continues(self, parent: int) -> bool:
        """Whether the scalar goes on below: `next_line` is then the next line that is not blank."""
        self.next_line = self.at + 1
        while self.next_line < len(self.lines) and not self.lines[self.next_line].strip(" "):
            self.next_line += 1
        if self.next_line == len(self.lines):
            return False
        line = self.lines[self.next_line]
        return _indent(line) > parent and not line.lstrip(" ").startswith("#")

    def block_scalar(self, parent: int, column: int) -> str:
        header = _BLOCK_HEADER.match(self.lines[self.at], column)
        if header is None:
            raise _Unreadable("a block scalar's header is not understood")
        style, chomp, digit = header[1], header[2] or header[5], header[3] or header[4]
        self.at += 1
        indent = parent + int(digit) if digit else self.block_indent(parent)
        lines: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if _indent(line) < indent and line.strip(" "):
                break
            lines.append(line[indent:])
            self.at += 1
        return _block_text(lines, folded=style == ">", chomp=chomp)

    def block_indent(self, parent: int) -> int:
        """The indent of the first line with text below the header."""
        at = self.at
        while at < len(self.lines) and not self.lines[at].strip(" "):
            at += 1
        return max(_indent(self.lines[at]) if at < len(self.lines) else 0, parent + 1)


def _block_text(lines: list[str], *, folded: bool, chomp: str | None) -> str:
    """Join a block scalar's lines. `chomp`: "-" no final line break, None one, "+" all there are."""
    n_text = max((i + 1 for i, line in enumerate(lines) if line), default=0)
    tail = len(lines) - n_text
    out: list[str] = []
    foldable = False  # a break between two lines that start at the block's own indent becomes a space
    blanks = 0
    for index, line in enumerate(lines[:n_text]):
        if not line:
            blanks += 1
            continue
        flush = not line.startswith(" ")
        if index > blanks:
            out.append((" " if not blanks else "") if folded and foldable and flush else "\n")
        out += ["\n" * blanks, line]
        foldable, blanks = flush, 0
    ending = {"-": "", None: "\n" if n_text else "", "+": "\n" * (tail + (1 if n_text else 0))}[chomp]
    return "".join(out) + ending


# -- writing ------------------------------------------------------------------------------------------------------

_REPLACED = "base_model"  # what a model is made of is said anew; other entries of a card stay as they are


def with_entries(card: str, entries: Mapping[str, str]) -> str:
    """A card whose front matter also has these entries, at its end; one that is there stays, but for the base model.

    Values are names without white space or quotes. A card without front matter gets one.
    """
    matter = front_matter(card)
    if matter is None:
        lines = [f"{key}: {value}" for key, value in entries.items()]
        return "\n".join(["---", *lines, "---", *([card] if card else [""])])
    first, *rest = card.split("\n")
    end = rest.index("---") if "---" in rest else -1
    if end < 0 or "\r" in card:  # without an end, all of it is front matter
        return card
    own = rest[:end]
    if _REPLACED in entries:
        own = list(_without(own, _REPLACED))
    there = {line.partition(":")[0] for line in own}
    own += [f"{key}: {value}" for key, value in entries.items() if key not in there]
    return "\n".join([first, *own, *rest[end:]])


def _without(lines: Sequence[str], key: str) -> Iterator[str]:
    """Lines of YAML less an entry of the outermost map, with what is indented below it or listed."""
    inside = False
    for line in lines:
        inside = line.startswith(f"{key}:") or (inside and line[:1] in (" ", "-", ""))
        if not inside:
            yield line
