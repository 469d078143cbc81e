"""Pickles, read as data: a loop over opcodes that builds plain values; nothing is imported, looked up or called.

Source: the opcode descriptions of Python's `pickletools`, protocols 0 to 5. A class or function that a pickle names is
an exact pair of names in a table of inert constructors of our own; `find` decides what becomes of other names.
Containers become dict, list and tuple; what a constructor makes of its arguments is up to the table.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.errors import ConverterError, CorruptFile
from converter.storage.windows import Windows

MAX_NBYTES = 128 << 20
# Bounds of time and memory: an opcode makes at most one value of about 100 bytes, whatever text it carries.
MAX_OPCODES = 8 << 20
HIGHEST_PROTOCOL = 5
_MAX_LINE = 1 << 16
_MAX_INT_BYTES = 256  # half of numpy's generator states need 17; keys and texts of numbers stay short


@dataclass(eq=False, slots=True)
class Named:
    """A class or function of the table: `make(*arguments)` is what calling it gives."""

    name: str
    make: Callable[..., Any]


@dataclass(eq=False, slots=True)
class Instance:
    """An object of a class that means nothing here: what was put into it, by the ways a pickle has."""

    name: str
    state: Any = None
    mapping: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


class PickleMachine:
    """Runs one pickle.

    `find(module, name)` is the table, `persistent(pid)` what a persistent id stands for, `limit` the most opcodes.
    After `run`, `position` is behind the STOP opcode.
    """

    def __init__(
        self,
        data: Windows,
        what: str,
        find: Callable[[str, str], Any],
        persistent: Callable[[Any], Any],
        limit: int = MAX_OPCODES,
    ) -> None:
        self.position = 0
        self._data = data
        self._path, self._what = data.path, what
        self._find, self._persistent, self._limit = find, persistent, limit
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._result: list[Any] = []

    def run(self) -> Any:
        """The value of the pickle.

        Raises:
            CorruptFile: it is not a pickle, or beyond the limits above.
            ConverterError: what the table or `persistent` raises.
        """
        table, start, end = _OPCODES, self.position, -1
        try:
            for _ in range(self._limit):
                start = self.position
                if start >= end:
                    buffer, base = self._data.near(start)
                    end = base + len(buffer)
                self.position += 1
                table[buffer[start - base]](self)
                if self._result:
                    return self._result[0]
        except ConverterError as error:
            if self._path.name not in str(error):
                error.args = (f"{self._path}: {self._what}: {error}",)
            raise
        except (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error, RecursionError) as error:
            raise CorruptFile(
                f"{self._path}: {self._what} is not a proper pickle at byte {start} ({_plain(error)})"
            ) from None
        raise CorruptFile(f"{self._path}: {self._what} has more than {self._limit} opcodes")

    # ------------------------------------------------------------------------------------------- reading

    def take(self, nbytes: int) -> memoryview:
        """The next `nbytes` of the stream."""
        start = self.position
        if not 0 <= nbytes <= self._data.size - start:
            raise ValueError(f"{nbytes} bytes wanted, {self._data.size - start} are left")
        self.position += nbytes
        return self._data.at(start, nbytes, self._what)

    def uint(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def raw_line(self) -> bytes:
        """Bytes up to the next line feed, without it."""
        window, end = 128, -1
        while end < 0 and window < _MAX_LINE:
            window *= 2
            raw = bytes(self._data.at(self.position, min(window, self._data.size - self.position), self._what))
            end = raw.find(b"\n")
        if end < 0:
            raise ValueError("a line does not end")
        self.position += end + 1
        return raw[:end]

    def line(self) -> str:
        """The next line as text."""
        return self.raw_line().decode("utf-8")

    # --------------------------------------------------------------------------------------- the machine

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError("stack is too short")
        values = tuple(self._stack[-count:])
        self._stack[-count:] = [values]

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def drop(self) -> None:
        """POP, which also takes a mark away."""
        if self._stack:
            self._stack.pop()
        else:
            self.pop_mark()

    def protocol(self) -> None:
        if (number := self.uint(1)) > HIGHEST_PROTOCOL:
            raise ValueError(f"protocol {number}")

    def frame(self) -> None:
        if (size := self.uint(8)) > self._data.size - self.position:
            raise ValueError(f"a frame of {size} bytes")

    def integer_line(self) -> None:
        text = self.line()
        if text in ("00", "01"):  # how protocol 1 writes False and True
            self.push(text == "01")
            return
        text = text.removesuffix("L")
        if not _INTEGER.fullmatch(text):
            raise ValueError("a number in text")
        self.push(int(text))

    def float_line(self) -> None:
        text = self.line()
        if len(text) > 40:
            raise ValueError("a number in text")
        self.push(float(text))

    def string_line(self) -> None:
        text = self.line()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
            raise ValueError("a string without quotes")
        self.push(_whole(text[1:-1].encode("ascii").decode("unicode_escape")))

    def unicode_line(self) -> None:
        self.push(_whole(self.raw_line().decode("raw_unicode_escape")))

    def long(self, width: int) -> None:
        size = self.uint(width)
        if size > _MAX_INT_BYTES:
            raise ValueError(f"a number of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def string(self, width: int) -> None:
        """A string of Python 2: text where it is UTF-8."""
        raw = bytes(self.take(self.uint(width)))
        try:
            self.push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.push(raw)

    def text(self, width: int) -> None:
        self.push(str(self.take(self.uint(width)), "utf-8"))

    def octets(self, width: int) -> None:
        self.push(bytes(self.take(self.uint(width))))

    def struct(self, layout: struct.Struct) -> None:
        self.push(layout.unpack(self.take(layout.size))[0])

    def extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Instance):
            target.elements.extend(items)
        elif type(target) is list:
            target.extend(items)
        else:
            raise TypeError(f"items are added to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        target = target.mapping if isinstance(target, Instance) else target
        if type(target) is not dict or len(items) % 2:
            raise TypeError(f"{len(items)} keys and values are added to a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _add(target, key, value)

    def dict_of_marked(self) -> None:
        items = self.pop_mark()
        self.push({})
        self.set_items(items)

    def find(self, module: str, name: str) -> None:
        self.push(self._find(module, name))

    def stack_find(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a name that is no text")
        self.find(module, name)

    def call(self, function: Any, arguments: Any, keywords: Any = None) -> None:
        if not isinstance(function, Named) or type(arguments) is not tuple or keywords:
            raise TypeError(f"a {type(function).__name__} is called")
        self.push(function.make(*arguments))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.call(function, arguments)

    def new_with_keywords(self) -> None:
        keywords, arguments, function = self.pop(), self.pop(), self.pop()
        self.call(function, arguments, keywords)

    def obj(self) -> None:
        function, *arguments = self.pop_mark()
        self.call(function, tuple(arguments))

    def inst(self) -> None:
        module, name = self.line(), self.line()
        self.find(module, name)
        self.call(self.pop(), tuple(self.pop_mark()))

    def build(self) -> None:
        """State for the object below: of an object that means nothing, and the `_metadata` of a state dict."""
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, Instance):
            target.state = state
        elif type(target) is not dict or type(state) is not dict or not state.keys() <= {"_metadata"}:
            raise TypeError(f"a {type(target).__name__} is given a state")

    def persistent(self) -> None:
        self.push(self._persistent(self.pop()))

    def stop(self) -> None:
        if len(self._stack) != 1 or self._marks:
            raise ValueError("something is left on the stack")
        self._result = [self.pop()]


def _whole(text: str) -> str:
    """`text`, which must not hold half a surrogate pair."""
    text.encode("utf-8")
    return text


_INTEGER = re.compile(r"-?[0-9]{1,640}")


def _add(target: dict[Any, Any], key: Any, value: Any) -> None:
    key = key.name if isinstance(key, Named) else key
    if type(key) is int and abs(key) >> 64:
        raise ValueError("a key of more than 64 bits")
    # Hashing a deep tuple recurses in C, so keys are plain, tuples of what is plain, or objects, which differ all.
    plain = type(key) in _KEYS or (type(key) is tuple and all(type(part) in _KEYS for part in key))
    if not plain and type(key) is not Instance:
        raise TypeError(f"a {type(key).__name__} as key")
    if key in target:
        raise ValueError("a key stands twice")
    target[key] = value


_KEYS = frozenset((str, int, bool, float, bytes, type(None)))


def _plain(error: Exception) -> str:
    """What is wrong, in a few words; of a bare KeyError or IndexError only that."""
    if isinstance(error, KeyError):
        return "an opcode or a memo entry that does not exist"
    return " ".join(str(error).split())[:100] if str(error) else type(error).__name__


_M = PickleMachine
_FLOAT64, _INT32 = struct.Struct(">d"), struct.Struct("<i")

_OPCODES: Mapping[int, Callable[[PickleMachine], object]] = {
    ord(opcode): run
    for opcode, run in {
        # the stack
        "(": _M.mark,
        ".": _M.stop,
        "0": _M.drop,
        "1": _M.pop_mark,
        "2": lambda m: m.push(m._stack[-1]),
        "\x80": _M.protocol,
        "\x95": _M.frame,
        # the memo
        "p": lambda m: m.put(int(m.line())),
        "q": lambda m: m.put(m.uint(1)),
        "r": lambda m: m.put(m.uint(4)),
        "g": lambda m: m.get(int(m.line())),
        "h": lambda m: m.get(m.uint(1)),
        "j": lambda m: m.get(m.uint(4)),
        "\x94": _M.memoize,
        # plain values
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "I": _M.integer_line,
        "L": _M.integer_line,
        "F": _M.float_line,
        "S": _M.string_line,
        "V": _M.unicode_line,
        "K": lambda m: m.push(m.uint(1)),
        "M": lambda m: m.push(m.uint(2)),
        "J": lambda m: m.struct(_INT32),
        "G": lambda m: m.struct(_FLOAT64),
        "\x8a": lambda m: m.long(1),
        "\x8b": lambda m: m.long(4),
        "U": lambda m: m.string(1),
        "T": lambda m: m.string(4),
        "\x8c": lambda m: m.text(1),
        "X": lambda m: m.text(4),
        "\x8d": lambda m: m.text(8),
        "C": lambda m: m.octets(1),
        "B": lambda m: m.octets(4),
        "\x8e": lambda m: m.octets(8),
        "\x96": lambda m: m.octets(8),
        # containers; the order of a set and its uniqueness mean nothing here, so it is a list
        "}": lambda m: m.push({}),
        "]": lambda m: m.push([]),
        ")": lambda m: m.push(()),
        "\x8f": lambda m: m.push([]),
        "d": _M.dict_of_marked,
        "l": lambda m: m.push(m.pop_mark()),
        "t": lambda m: m.push(tuple(m.pop_mark())),
        "\x91": lambda m: m.push(m.pop_mark()),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "a": lambda m: m.extend([m.pop()]),
        "e": lambda m: m.extend(m.pop_mark()),
        "\x90": lambda m: m.extend(m.pop_mark()),
        "s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        "u": lambda m: m.set_items(m.pop_mark()),
        # objects
        "c": lambda m: m.find(m.line(), m.line()),
        "\x93": _M.stack_find,
        "R": _M.reduce,
        "\x81": _M.reduce,
        "\x92": _M.new_with_keywords,
        "o": _M.obj,
        "i": _M.inst,
        "b": _M.build,
        "Q": _M.persistent,
    }.items()
}
