"""Names of tensors by templates: which rule a name belongs to, in which block, of which expert; and other spellings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from converter.architectures.spec import NUMBERED, Architecture, HFClass, TensorRule
from converter.tensors.expressions import BLOCK, Sizes, evaluate, names

_INDEX = re.compile("0|[1-9][0-9]{0,8}")
#: The components of a name that are numbers.
_INDEXES = re.compile(rf"(?<![^.])({_INDEX.pattern})(?![^.])")
_BEYOND = "{beyond}"
_NUMBER = re.compile(r"\{(\w+)([+-]\d+)?\}")


@dataclass(frozen=True)
class Match:
    """A name as a rule's: the place among the rule's names, and the numbers in it."""

    rule: TensorRule
    slot: int
    block: int | None
    expert: int | None


def resolved(architecture: Architecture, sizes: Sizes) -> Architecture:
    """An architecture with `{n_main}` and `{block-n_main}` in its rules' names as a model has them: `12`, `{block-12}`.

    Raises:
        ExpressionError: `sizes` say no whole number.
    """

    def part(text: str) -> str:
        if not text.startswith("{") or text[1:-1] in NUMBERED:
            return text
        number = evaluate(text[1:-1], {**sizes, BLOCK: 0})
        return f"{{{BLOCK}{number:+d}}}" if BLOCK in names(text[1:-1]) else str(number)

    def name(template: str) -> str:
        return ".".join(map(part, template.split(".")))

    rules = tuple(
        replace(rule, hf=tuple(map(name, rule.hf)), gguf=tuple(map(name, rule.gguf))) for rule in architecture.tensors
    )
    return architecture if rules == architecture.tensors else replace(architecture, tensors=rules)


class RuleNames:
    """Finds the rule of a name. Templates have `{block}` and `{expert}` as whole components, so a table does it.

    A model has up to a hundred thousand names: what a template says is taken apart once.
    """

    def __init__(self, rules: Iterable[TensorRule], side: str) -> None:
        self._table: dict[tuple[str, ...], list[tuple[TensorRule, int, tuple[_Number, ...]]]] = {}
        for rule in rules:
            for slot, template in enumerate(getattr(rule, side)):
                parts = template.split(".")
                texts = _INDEXES.split(".".join("0" if part.startswith("{") else part for part in parts))[::2]
                numbers = tuple(_Number.of(part) for part in parts if part.startswith("{") or _INDEX.fullmatch(part))
                self._table.setdefault(tuple(texts), []).append((rule, slot, numbers))

    def find(self, name: str, applies: Callable[[TensorRule, int | None], bool]) -> Match | None:
        """The first rule of this name that applies to its block."""
        parts = _INDEXES.split(name)
        for rule, slot, numbers in self._table.get(tuple(parts[::2]), ()):
            block = expert = None
            for number, value in zip(numbers, map(int, parts[1::2]), strict=True):
                if number.word == BLOCK:
                    block = value - number.plus
                elif number.word == "expert":
                    expert = value
                elif number.word is None and number.plus != value:
                    break
            else:
                if (block is None or block >= 0) and applies(rule, block):
                    return Match(rule, slot, block, expert)
        return None


@dataclass(frozen=True)
class _Number:
    """A number in a template: a word and what is added to it (`{block-12}`), or the number alone.

    What hparams say (`{n_main}`) is any number where no model has said it.
    """

    word: str | None
    plus: int

    @classmethod
    def of(cls, part: str) -> _Number:
        match = _NUMBER.fullmatch(part)
        if match:
            return cls(match[1], int(match[2] or 0))
        return cls(part, 0) if part.startswith("{") else cls(None, int(part))


def fill(template: str, block: int | None, expert: int | None = None) -> str:
    """The name that a template means in a block."""

    def number(match: re.Match[str]) -> str:
        value = block if match[1] == BLOCK else expert
        return str(value) if value is None else str(value + int(match[2] or 0))

    return _NUMBER.sub(number, template)


# ------------------------------------------------------------------------------------ aliases and ignored names


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """Numbers where `{block}`, `{expert}` or `{beyond}` stands, one or more components where another word does."""
    parts = []
    for part in template.split("."):
        inside = _INDEX.pattern if part in ("{block}", "{expert}", _BEYOND) else ".+"
        parts.append(f"(?P<{part[1:-1]}>{inside})" if part.startswith("{") else re.escape(part))
    return re.compile(r"\.".join(parts), re.DOTALL)


@cache
def _heads(aliases: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """What every name starts with that one of the aliases fits."""
    return tuple(template.partition("{")[0] for template, _ in aliases)


def spellings(architecture: Architecture, name: str) -> list[str]:
    """A name and what it is called under the aliases, each of which also rewrites what those before it made."""
    found = [name]
    if not name.startswith(_heads(architecture.aliases)):  # most of a hundred thousand names end here
        return found
    for alias in architecture.aliases:
        for each in tuple(found):
            new = _respelled(alias, each)
            found += [new] if new is not None and new not in found else []
    return found


def in_whole(architecture: Architecture, name: str) -> str:
    """What a tensor of a projector's or its text model's is called in a folder that has both."""
    return next((new for pair in architecture.whole if (new := _respelled(pair, name)) is not None), name)


@cache
def _beginnings(alias: tuple[str, str]) -> tuple[str, str] | None:
    """Of an alias that changes how names begin, the old and the new beginning."""
    (old, _, rest), (new, _, other) = (template.rpartition("{") for template in alias)
    return (old, new) if rest == other == "rest}" and "{" not in old + new else None


def _respelled(alias: tuple[str, str], name: str) -> str | None:
    if (begins := _beginnings(alias)) is not None:  # as nearly all do; a hundred thousand names are asked
        old, new = begins
        return new + name[len(old) :] if name.startswith(old) and len(name) > len(old) else None
    pattern, new = alias
    match = _pattern(pattern).fullmatch(name)
    for word, text in match.groupdict().items() if match else ():
        new = new.replace("{" + word + "}", text)
    return new if match else None


def is_ignored(architecture: Architecture, names: Iterable[str]) -> bool:
    """Whether a tensor of one of these names is dropped on purpose, wherever it is."""
    dropped = (*architecture.ignore, *architecture.text)
    return _any_is(names, [template for template in dropped if _BEYOND not in template])


def is_own(hf: HFClass | None, name: str) -> bool:
    """Whether a class has a tensor of this name beside the model."""
    return hf is not None and bool(hf.ignore) and _any_is([name], hf.ignore)


def is_beside(projector: Architecture, name: str) -> bool:
    """Whether a tensor is one of a projector's, used or dropped."""
    templates = [*projector.ignore, *(template for rule in projector.tensors for template in rule.hf)]
    return _any_is([name, *spellings(projector, name)], templates)


def _any_is(names: Iterable[str], templates: Iterable[str]) -> bool:
    return any(_pattern(template).fullmatch(name) for name in names for template in templates)


def block_beyond(architecture: Architecture, names: Iterable[str], n_layer: int) -> int | None:
    """The number of the block after the last that one of these names lies in, where such are dropped on purpose."""
    templates = [template for template in architecture.ignore if _BEYOND in template]
    matches = (_pattern(template).fullmatch(name) for name in names for template in templates)
    blocks = (int(match["beyond"]) for match in matches if match)
    return next((block for block in blocks if block >= n_layer), None)


class Spelled(Mapping[str, Any]):
    """A checkpoint's tensors by their names and by what the aliases make of them; made when it is asked."""

    def __init__(self, architecture: Architecture, tensors: Mapping[str, Any]) -> None:
        self._architecture, self._tensors = architecture, tensors

    @cached_property
    def _all(self) -> dict[str, Any]:
        found = dict(self._tensors)
        for name, tensor in self._tensors.items():
            found.update(dict.fromkeys(spellings(self._architecture, name), tensor))
        return found

    def __getitem__(self, name: str) -> Any:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
