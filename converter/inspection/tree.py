"""A model's tensors as a tree of modules, in which layers that are alike are one node.

Names are cut at their dots and slashes. Children that are numbers (layers, experts) and have the same names and shapes
below them are folded: `blk.*` with a count of 32. Types may differ among them, as those of a mixture do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from converter.tensors.tensor import TensorInfo

#: How ggml begins the names of a layer's parts that belong together: `attn_q`, `attn_norm`.
PARTS = ("attn", "cross_attn", "ffn", "ssm", "time_mix", "channel_mix", "enc", "dec", "nextn", "shortconv", "indexer")
MAX_DEPTH = 24  # parts of a name; the rest of a longer one is one part
_CUT = re.compile(r"([./])")
_PART = re.compile(rf"([./](?:{'|'.join(sorted(PARTS, key=len, reverse=True))}))_")
_SHOWN_RUNS = 4


@dataclass(frozen=True)
class Node:
    """A module, or a tensor where it has no children; `*` in its name are numbers that were folded.

    Attributes:
        name: the parts of the name below that of its parent.
        count: how many of them there are; sums are over all.
        parameters, bytes: of all tensors below.
        types: bytes by type, the most first.
        shape: of a tensor, row-major; None for a module.
        tensors: numbers of the tensors below, in the order that `tree` got them.
    """

    name: str
    count: int
    parameters: int
    bytes: int
    types: dict[str, int]
    shape: tuple[int, ...] | None
    tensors: tuple[int, ...]
    children: tuple[Node, ...] = ()

    @property
    def each(self) -> int:
        """Parameters of one of them."""
        return self.parameters // self.count

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """This node and all below it with their depths, parents first."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)

    def as_dict(self, numbers: bool = False) -> dict[str, Any]:
        """As JSON; with the numbers of tensors where somebody has these by number."""
        own: dict[str, Any] = {
            "name": self.name,
            "count": self.count,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "types": self.types,
            "shape": None if self.shape is None else list(self.shape),
            "children": [child.as_dict(numbers) for child in self.children],
        }
        return own | ({"tensors": list(self.tensors)} if numbers and not self.children else {})


def tree(tensors: Iterable[TensorInfo]) -> Node:
    """The tree of a model's tensors; its root has no name. Takes their names and shapes, reads nothing."""
    root = _Module()
    kept = list(tensors)
    for number, info in enumerate(kept):
        place = root
        for part in _parts(info.name):
            place = place.below.setdefault(part, _Module())
        place.numbers.append(number)
    return _Folding(kept).node("", root)


def where(name: str) -> tuple[int | None, str]:
    """A tensor's place in a grid: its layer, the first number in its name, and what follows, further numbers as *."""
    parts = _split(name)
    for at, part in enumerate(parts):
        if _is_number(part):
            rest = "".join(f"{each[0]}*" if _is_number(each) else each for each in parts[at + 1 :])
            return int(part.lstrip("./")), rest[1:] or name
    return None, name


def _split(name: str) -> list[str]:
    """Parts of a name, each after the first with the sign before it: `blk`, `.0`, `.attn_q`, `.weight`."""
    if "/" not in name:  # most names; an expression takes four times as long
        first, *rest = name.split(".", MAX_DEPTH)
        return [first, *("." + part for part in rest)]
    first, *rest = _CUT.split(name, MAX_DEPTH)
    return [first, *(sign + part for sign, part in zip(rest[::2], rest[1::2], strict=True))]


def _parts(name: str) -> list[str]:
    """The same with ggml's groups as modules: `blk`, `.0`, `.attn`, `.attn_q`, `.weight`."""
    parts = _split(name)
    made: list[str] = []
    for at, part in enumerate(parts):
        group = _PART.match(part) if at and _is_number(parts[at - 1]) else None
        made += [group[1], part] if group else [part]
    return made


def _is_number(part: str) -> bool:
    number = part.lstrip("./")
    return number.isdecimal() and number.isascii() and len(number) < 10


@dataclass(slots=True)
class _Module:
    """A place in the names: what ends here, and what goes on."""

    numbers: list[int] = field(default_factory=list)
    below: dict[str, _Module] = field(default_factory=dict)


class _Folding:
    """Makes nodes of places. Two that look alike have the same number in `_kinds`."""

    def __init__(self, tensors: Sequence[TensorInfo]) -> None:
        self._tensors = tensors
        self._kinds: dict[object, int] = {}
        self._kind_of: dict[int, int] = {}  # by id(module)

    def node(self, name: str, module: _Module) -> Node:
        return self._merged(name, [module], 1)

    def _kind(self, module: _Module) -> int:
        found = self._kind_of.get(id(module))
        if found is None:
            shapes = tuple(self._tensors[number].shape for number in module.numbers)
            looks = (shapes, tuple((name, self._kind(each)) for name, each in module.below.items()))
            found = self._kind_of[id(module)] = self._kinds.setdefault(looks, len(self._kinds))
        return found

    def _merged(self, name: str, modules: Sequence[_Module], count: int) -> Node:
        """One node of modules that are all alike."""
        own = [number for module in modules for number in module.numbers]
        if not modules[0].below:
            return self._tensor(name, own, count)
        children = [self._tensor("(itself)", own, count)] if own else []
        children += self._children(modules, count)
        if len(children) == 1 and name:
            only = children[0]
            return replace(only, name=only.name if only.name.startswith(f"{name}_") else f"{name}{only.name}")
        return _sum(name, count, children)

    def _children(self, modules: Sequence[_Module], count: int) -> Iterator[Node]:
        folded: dict[int, list[str]] = {}  # kind -> numbers
        first = modules[0].below
        for name in first:
            if _is_number(name):
                folded.setdefault(self._kind(first[name]), []).append(name)
        for name in first:
            if not _is_number(name):
                yield self._merged(name, [module.below[name] for module in modules], count)
                continue
            names = folded.pop(self._kind(first[name]), None)
            if names is not None:
                label = "*" if len(names) == len(first) else _runs(names)
                label = names[0] if len(names) == 1 else name[: len(name) - len(name.lstrip("./"))] + label
                below = [module.below[each] for module in modules for each in names]
                yield self._merged(label, below, count * len(names))

    def _tensor(self, name: str, numbers: Sequence[int], count: int) -> Node:
        infos = [self._tensors[number] for number in numbers]
        types: Counter[str] = Counter()
        for info in infos:
            types[info.dtype.name] += info.nbytes
        return Node(
            name,
            count,
            sum(info.n_elements for info in infos),
            sum(types.values()),
            dict(types.most_common()),
            infos[0].shape if infos else None,
            tuple(numbers),
        )


def _sum(name: str, count: int, children: Sequence[Node]) -> Node:
    types: Counter[str] = Counter()
    for child in children:
        types.update(child.types)
    return Node(
        name,
        count,
        sum(child.parameters for child in children),
        sum(child.bytes for child in children),
        dict(types.most_common()),
        None,
        tuple(number for child in children for number in child.tensors),
        tuple(replace(child, name=child.name[child.name[:1] in (".", "/") :]) for child in children),
    )


def _runs(names: Sequence[str]) -> str:
    """Numbers as runs: 0-2, or 3,7,11... of which a few are shown."""
    numbers = sorted(int(name.lstrip("./")) for name in names)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    return ",".join(texts[:_SHOWN_RUNS]) + ("..." if len(texts) > _SHOWN_RUNS else "")
