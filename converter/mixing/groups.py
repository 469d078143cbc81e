"""Groups of tensors that are probed and chosen together: of one role, in one third of the depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from converter.quant.mixtures import ranges, template
from converter.quant.recipes import block_of, sort_key

#: Tensors up to which each is a group of its own.
FEW = 64
PARTS = 3  # of the depth


@dataclass(frozen=True)
class Group:
    """Tensors of one role; `blocks` are numbers of their blocks, empty where they have none."""

    role: str
    blocks: str
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """As a line of a table has it."""
        return self.role + (f" of blocks {self.blocks}" if self.blocks else "")


def grouped(names: Iterable[str], block_count: int) -> list[Group]:
    """Groups of these tensors, in the order of a file; of a small model each tensor by itself."""
    ordered = sorted(names, key=sort_key)
    single = len(ordered) <= FEW
    found: dict[tuple[str, int], list[str]] = {}
    for name in ordered:
        block = block_of(name)
        part = block if single else block * PARTS // max(block_count, 1)
        found.setdefault((template(name), part), []).append(name)
    return [
        Group(role, ranges(block for name in own if (block := block_of(name)) >= 0), tuple(own))
        for (role, _), own in sorted(found.items(), key=lambda item: (item[0][0], item[0][1]))
    ]
