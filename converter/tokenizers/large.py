"""JSON files whose long parts stay in the file: vocabularies and merges of hundreds of thousands of entries.

As Python values they would take ten times the room of the file. `parse_large` gives the value of a file with a `Long`
in the place of each long part; its entries are read a piece at a time. Whatever is not of the plain shape that such
parts have is parsed as any other JSON, with the same errors.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO

from converter.errors import TokenizerError
from converter.storage import json as strict_json

Opened = Callable[[], AbstractContextManager[BinaryIO]]
Path = tuple[str, ...]

WINDOW = 1 << 20  # what each piece leaves behind keeps memory among the tokens from being given back: few pieces
LONGEST = 1 << 22  # of one entry
_KEY = 1 << 10  # of a key with the white space up to the bracket
_BOM = b"\xef\xbb\xbf"

_GAP = rb"[ \t\r\n]*+"
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_WHOLE = rb"-?+[0-9]{1,40}+"
_REAL = _WHOLE + rb"(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
_FIELD = _TEXT + _GAP + b":" + _GAP + b"(?:" + _TEXT + b"|" + _REAL + b"|null|true|false)" + _GAP
# Entries as they stand between the brackets: ids of tokens; tokens with scores, merges in two forms, tokens as objects.
_ENTRIES = {
    b"{": (_TEXT + _GAP + b":" + _GAP + _WHOLE,),
    b"[": (
        rb"\[" + _GAP + _TEXT + _GAP + b"," + _GAP + _REAL + _GAP + rb"\]",
        _TEXT,
        rb"\[" + _GAP + _TEXT + _GAP + b"," + _GAP + _TEXT + _GAP + rb"\]",
        rb"\{" + _GAP + _FIELD + b"(?:," + _GAP + _FIELD + rb")*+\}",
    ),
}
_CLOSING = {b"{": b"}", b"[": b"]"}


@dataclass(frozen=True)
class _Shape:
    """Entries of one form: `many` are those that a comma follows, `last` is what is left with the closing bracket."""

    opening: bytes
    many: re.Pattern[bytes]
    last: re.Pattern[bytes]


def _shape(opening: bytes, entry: bytes) -> _Shape:
    many = b"(?:" + _GAP + entry + _GAP + b",)*+"
    last = _GAP + b"(" + entry + b")" + _GAP + re.escape(_CLOSING[opening])
    return _Shape(opening, re.compile(many, re.DOTALL), re.compile(last, re.DOTALL))


_SHAPES = {opening: [_shape(opening, entry) for entry in entries] for opening, entries in _ENTRIES.items()}


class _Unlike(Exception):
    """A part that has another shape."""


class _Window:
    """The part of a file that is looked at: what lies before `position` is done with."""

    def __init__(self, file: BinaryIO, at: int = 0) -> None:
        file.seek(at)
        self._file, self._start = file, at
        self.data, self.position = b"", 0
        self.more()

    @property
    def offset(self) -> int:
        """Where in the file `position` is."""
        return self._start + self.position

    def more(self) -> bool:
        """Look on; False at the end of the file, and where one entry is longer than any."""
        if len(self.data) - self.position > LONGEST:
            return False
        read = self._file.read(WINDOW)
        kept = max(self.position - 1, 0)
        self.data = self.data[kept:] + read
        self._start, self.position = self._start + kept, self.position - kept
        return bool(read)

    def take(self, end: int) -> bytes:
        piece = self.data[self.position : end]
        self.position = end
        return piece


def _pieces(window: _Window, shape: _Shape) -> Iterator[bytes]:
    """The entries up to the closing bracket, as many at once as the window holds, without a comma at the end."""
    while True:
        if (many := shape.many.match(window.data, window.position)) and many.end() > window.position:
            yield window.take(many.end())[:-1]
        elif last := shape.last.match(window.data, window.position):
            yield window.take(last.end(1))
            window.position = last.end()
            return
        elif not window.more():
            raise _Unlike


@dataclass(frozen=True, eq=False)
class Long:
    """A long part of a JSON file: an object ("{") of numbers, or a list ("[")."""

    name: str
    opened: Opened
    start: int
    shape: _Shape

    @property
    def kind(self) -> str:
        return self.shape.opening.decode()

    def pieces(self) -> Iterator[list[Any]]:
        """Its entries, a list of some thousand at a time; those of an object are pairs.

        Raises:
            TokenizerError: not UTF-8, or not JSON.
        """
        with self.opened() as file:
            window = _Window(file, self.start)
            at = self.start
            try:
                for piece in _pieces(window, self.shape):
                    yield self._parse(piece, at)
                    at = window.offset
            except _Unlike:
                raise TokenizerError(f"{self.name}: changed while it was read") from None

    def _parse(self, piece: bytes, at: int) -> list[Any]:
        try:
            text = piece.decode()
            if self.kind == "{":
                return strict_json.parse_pairs("{" + text + "}")
            value: list[Any] = strict_json.parse("[" + text + "]")
            return value
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{self.name}: not UTF-8 at byte {at + error.start}") from error
        except ValueError as error:
            raise TokenizerError(f"{self.name}: not valid JSON ({error}, counted from byte {at})") from error


def parse_large(name: str, opened: Opened, paths: tuple[Path, ...], parse: Callable[[bytes], Any]) -> Any:
    """The value of a JSON file with a `Long` at each of `paths` that has the shape of one; `parse` reads the rest."""
    with opened() as file:
        try:
            rest, found = _cut(name, opened, _Window(file), paths) if paths else (file.read(), {})
            value = parse(rest)
            for path in paths:
                value = _filled(value, path, found)
            if not found:
                return value
        except (_Unlike, TokenizerError):
            pass
        file.seek(0)  # a part has another shape, or stands elsewhere, too; or the error is to say where it is
        return parse(file.read())


def _filled(value: Any, path: Path, found: dict[str, Long]) -> Any:
    """`value` with the long part at `path`, taken out of `found`."""
    if not path:
        return found.pop(_marker_of(value), value)
    if isinstance(value, dict) and path[0] in value:
        value[path[0]] = _filled(value[path[0]], path[1:], found)
    return value


def _marker_of(part: object) -> str:
    first = next(iter(part), None) if isinstance(part, dict | list) and len(part) == 1 else None
    return first if isinstance(first, str) else ""


def _cut(name: str, opened: Opened, window: _Window, paths: tuple[Path, ...]) -> tuple[bytes, dict[str, Long]]:
    """The file without its long parts, and those, by the text that stands in their place."""
    keys = b"|".join(re.escape(path[-1].encode()) for path in paths if path)
    key = rb'(?<!\\)"(?:' + keys + b')"' + _GAP + b":" if keys else rb"\A(?:" + _BOM + b")?"
    pattern = re.compile(key + _GAP + rb"([{\[])")
    rest, found = bytearray(), dict[str, Long]()
    while True:
        if match := pattern.search(window.data, window.position):
            rest += window.take(match.end())
            if (shape := _shape_of(match[1], window)) is not None:
                marker = secrets.token_hex(16)
                found[marker] = Long(name, opened, window.offset, shape)
                rest += b'"' + marker.encode() + (b'": 0}' if shape.opening == b"{" else b'"]')
                for _ in _pieces(window, shape):
                    pass
        else:
            rest += window.take(max(window.position, len(window.data) - _KEY))
            if not window.more():
                rest += window.take(len(window.data))
                return bytes(rest), found


def _shape_of(opening: bytes, window: _Window) -> _Shape | None:
    """The shape that the first entry has."""
    while True:
        for shape in _SHAPES[opening]:
            many = shape.many.match(window.data, window.position)
            if (many and many.end() > window.position) or shape.last.match(window.data, window.position):
                return shape
        if not window.more():
            return None
