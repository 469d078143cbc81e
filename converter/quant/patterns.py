"""Regular expressions for tensor names that cannot hang, whoever wrote them.

The dialect is the useful part of what llama-quantize accepts (ECMAScript as in `std::regex`):
literals, `.`, `[a-z0-9]`, `[^...]`, `[[:digit:]]`, `\\d \\w \\s \\b`, `( )`, `(?: )`, `|`, `* + ? {m,n}`,
`^`, `$`. Look-ahead and back-references are refused by name. The pattern is lower-cased first, as
llama-quantize's command line does, so that `\\D` is `\\d` and an upper-case name cannot be matched.

Matching runs all alternatives side by side and remembers each step (a lazily built automaton):
linear in the name, where a backtracking matcher can be made to take years. A time limit does not help
there: some patterns of 30 characters exhaust memory while they are compiled. What a pattern needs as it stands
(`ffn_down`) is looked for first, so that thousands of patterns and tensors meet in a second.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

from converter.errors import UsageError

MAX_LENGTH = 256
MAX_DEPTH = 32
MAX_STATES = 500
MAX_PATTERNS = 2048  # of one run: more than the largest models have tensors

_WORD = frozenset(string.ascii_letters + string.digits + "_")
_ESCAPES = {"d": frozenset(string.digits), "w": _WORD, "s": frozenset(string.whitespace)}
_POSIX = {
    "alnum": frozenset(string.ascii_letters + string.digits),
    "alpha": frozenset(string.ascii_letters),
    "digit": frozenset(string.digits),
    "lower": frozenset(string.ascii_lowercase),
    "punct": frozenset(string.punctuation),
    "space": frozenset(string.whitespace),
    "upper": frozenset(string.ascii_uppercase),
    "xdigit": frozenset(string.hexdigits),
}
_COUNTED = re.compile(r"\{([0-9]{1,3})(,([0-9]{0,3}))?\}")


@dataclass(frozen=True)
class _Set:
    """One character, any of `members` or (negated) any other."""

    members: frozenset[str]
    negated: bool = False

    def holds(self, char: str) -> bool:
        return (char in self.members) != self.negated


@dataclass(frozen=True)
class _At:
    """A position: `^`, `$` or `b` (word boundary)."""

    kind: str


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Choice:
    branches: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    """`part` at least `least` and at most `most` times (None: any number)."""

    part: _Node
    least: int
    most: int | None


_Node = _Set | _At | _Sequence | _Choice | _Repeat


class _Parser:
    """Recursive descent over the pattern; `at` is the next character, for messages."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def fail(self, reason: str) -> UsageError:
        return UsageError(f"pattern {self.text!r}: {reason} (character {self.at + 1})")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        char = self.peek()
        if not char:
            raise self.fail("ends too early")
        self.at += 1
        return char

    def accept(self, prefix: str) -> bool:
        found = self.text.startswith(prefix, self.at)
        self.at += len(prefix) if found else 0
        return found

    def whole(self) -> _Node:
        node = self.choice()
        if self.peek():
            raise self.fail("unbalanced )")
        return node

    def choice(self) -> _Node:
        branches = [self.sequence()]
        while self.accept("|"):
            branches.append(self.sequence())
        return branches[0] if len(branches) == 1 else _Choice(tuple(branches))

    def sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated(self.atom()))
        return _Sequence(tuple(parts))

    def repeated(self, part: _Node) -> _Node:
        bounds = self.bounds()
        if bounds is None:
            return part
        if isinstance(part, _At):
            raise self.fail("a position cannot be repeated")
        self.accept("?")  # lazy or greedy: the same names match
        if self.peek() and self.peek() in "*+?{":
            raise self.fail("nothing to repeat")
        return _Repeat(part, *bounds)

    def bounds(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if self.peek() in simple:
            return simple[self.take()]
        if self.peek() != "{":
            return None
        found = _COUNTED.match(self.text, self.at)
        if found is None:
            raise self.fail("{ must be {m}, {m,} or {m,n}; write \\{ for the character")
        self.at = found.end()
        least = int(found[1])
        most = least if found[2] is None else int(found[3]) if found[3] else None
        if most is not None and most < least:
            raise self.fail("{m,n} with n below m")
        return least, most

    def atom(self) -> _Node:
        char = self.take()
        if char == "(":
            return self.group()
        if char == "[":
            return self.bracket()
        if char == ".":
            return _Set(frozenset("\n\r"), negated=True)
        if char in "^$":
            return _At(char)
        if char == "\\":
            return _At("b") if self.accept("b") else _Set(self.escape())
        if char in "*+?{":
            self.at -= 1
            raise self.fail("nothing to repeat")
        return _Set(frozenset(char))

    def group(self) -> _Node:
        if self.text.startswith("?", self.at) and not self.accept("?:"):
            raise self.fail("look-ahead and other (? groups are not supported")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} groups inside each other")
        node = self.choice()
        self.depth -= 1
        if not self.accept(")"):
            raise self.fail("missing )")
        return node

    def escape(self) -> frozenset[str]:
        char = self.take()
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char.isdigit():
            raise self.fail("back-references are not supported")
        if char.isalpha():
            raise self.fail(f"unknown escape \\{char}")
        return frozenset(char)

    def bracket(self) -> _Node:
        negated = self.accept("^")
        members: frozenset[str] = frozenset()
        if self.peek() == "]":
            raise self.fail("empty [ ]; write \\] for the character")
        while not self.accept("]"):
            members |= self.members()
        return _Set(members, negated)

    def members(self) -> frozenset[str]:
        """One item of a bracket: a named class, an escape, a character or a range."""
        if self.accept("[:"):
            end = self.text.find(":]", self.at)
            name = self.text[self.at : end]
            if end < 0 or name not in _POSIX:
                raise self.fail(f"unknown class; known: {', '.join(_POSIX)}")
            self.at = end + 2
            return _POSIX[name]
        first = self.escape() if self.accept("\\") else frozenset(self.take())
        if self.peek() != "-" or self.text.startswith("-]", self.at):
            return first
        self.take()
        last = self.escape() if self.accept("\\") else frozenset(self.take())
        return self.span(first, last)

    def span(self, first: frozenset[str], last: frozenset[str]) -> frozenset[str]:
        if len(first) != 1 or len(last) != 1:
            raise self.fail("a range needs one character on each side")
        low, high = ord(min(first)), ord(min(last))
        if low > high or high > 127:
            raise self.fail("a range must rise and stay in ASCII")
        return frozenset(map(chr, range(low, high + 1)))


_MATCH = 0  # the state reached when the whole pattern was found


class _Program:
    """States of the automaton: a `_Set` or `_At` with its successor, or a tuple of successors."""

    def __init__(self, root: _Node) -> None:
        self.states: list[tuple[_Set | _At | None, tuple[int, ...]]] = [(None, ())]
        self.work = 0
        self.start = self.emit(root, _MATCH)

    def add(self, test: _Set | _At | None, *successors: int) -> int:
        self.states.append((test, successors))
        return len(self.states) - 1

    def emit(self, node: _Node, then: int) -> int:
        """States for `node` followed by state `then`; returns the first."""
        self.work += 1
        if self.work > MAX_STATES:
            raise UsageError(f"needs more than {MAX_STATES} steps")
        if isinstance(node, _Set | _At):
            return self.add(node, then)
        if isinstance(node, _Choice):
            return self.add(None, *(self.emit(branch, then) for branch in node.branches))
        if isinstance(node, _Sequence):
            for part in reversed(node.parts):
                then = self.emit(part, then)
            return then
        return self.emit_repeat(node, then)

    def emit_repeat(self, node: _Repeat, then: int) -> int:
        if node.most is None:
            loop = self.add(None)
            self.states[loop] = (None, (self.emit(node.part, loop), then))
            first = loop
        else:
            first = then
            for _ in range(node.most - node.least):
                first = self.add(None, self.emit(node.part, first), then)
        for _ in range(node.least):
            first = self.emit(node.part, first)
        return first


class Pattern:
    """A compiled pattern over lower-cased text; `search` is linear in the name's length."""

    def __init__(self, text: str) -> None:
        """Compile `text`.

        Raises:
            UsageError: empty, malformed, too long or too large, or a feature that is not supported.
        """
        self.text = text.lower()
        if not text:
            raise UsageError("an empty pattern would match every tensor; write .* to mean that")
        if len(text) > MAX_LENGTH:
            raise UsageError(f"pattern {text[:40]!r}... is longer than {MAX_LENGTH} characters")
        try:
            root = _Parser(self.text).whole()
            self._program = _Program(root)
        except UsageError as error:
            named = str(error).startswith("pattern ")
            raise error if named else UsageError(f"pattern {self.text!r} {error}") from None
        self._needed = max(_literals(root), key=len)
        self._steps: dict[tuple[frozenset[int], str, str], tuple[bool, frozenset[int]]] = {}

    def search(self, name: str) -> bool:
        """Whether any part of `name` matches."""
        if self._needed not in name:
            return False
        kernel: frozenset[int] = frozenset()
        before = ""
        for char in (*name, ""):
            key = (kernel, before, char)
            step = self._steps.get(key)
            if step is None:
                step = self._steps[key] = self._step(kernel, before, char)
            found, kernel = step
            if found:
                return True
            before = char
        return False

    def _step(self, kernel: frozenset[int], before: str, after: str) -> tuple[bool, frozenset[int]]:
        """From the states in `kernel` (and a fresh start) across one character."""
        reached = self._closure(kernel, before, after)
        if _MATCH in reached:
            return True, frozenset()
        return False, frozenset(self._successors(reached, after))

    def _closure(self, kernel: frozenset[int], before: str, after: str) -> set[int]:
        reached: set[int] = set()
        pending = [self._program.start, *kernel]
        while pending:
            state = pending.pop()
            if state in reached:
                continue
            reached.add(state)
            test, successors = self._program.states[state]
            if test is None or (isinstance(test, _At) and _stands(test.kind, before, after)):
                pending.extend(successors)
        return reached

    def _successors(self, reached: set[int], char: str) -> Iterator[int]:
        for state in reached:
            test, successors = self._program.states[state]
            if char and isinstance(test, _Set) and test.holds(char):
                yield from successors


def _literals(node: _Node) -> list[str]:
    """Texts that every match has in it, one after the other: characters that stand alone and in a row."""
    if isinstance(node, _Set):
        return ["".join(node.members)] if len(node.members) == 1 and not node.negated else ["", ""]
    if isinstance(node, _At):
        return [""]
    found = [""]
    for part in node.parts if isinstance(node, _Sequence) else ():
        first, *rest = _literals(part)
        found[-1] += first
        found += rest
    return found if isinstance(node, _Sequence) else ["", ""]


def check_count(count: int, where: str) -> None:
    """Refuse more patterns than a model can have tensors to be meant by.

    Raises:
        UsageError: as said; `where` says whose patterns they are.
    """
    if count > MAX_PATTERNS:
        raise UsageError(
            f"{where}: {count} patterns are refused, {MAX_PATTERNS} are allowed; one can mean many tensors"
        )


def _stands(kind: str, before: str, after: str) -> bool:
    """Whether position `kind` holds between two characters ("" beyond the ends)."""
    if kind == "b":
        return (before in _WORD) != (after in _WORD)
    return (before if kind == "^" else after) == ""
