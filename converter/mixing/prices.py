"""What each type of each tensor costs, in bytes and in KL divergence, and the types that this leads to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from converter.metadata import number_of, text_of
from converter.mixing.groups import Group
from converter.mixing.measured import Errors
from converter.mixing.solve import Option, gain, improved, solved
from converter.mixing.space import Space
from converter.mixture import Mixture, Rule
from converter.quant.mixtures import rules_of


@dataclass(frozen=True)
class Prices:
    """What each type of each tensor costs: bytes, and KL divergence as predicted."""

    space: Space
    errors: Errors
    sensitivity: Mapping[str, float]

    def option(self, name: str, type_: str) -> Option:
        """A tensor in a type."""
        return Option(self.space.nbytes(name, type_), self.sensitivity[name] * self.errors[name][type_])

    def total(self, types: Mapping[str, str]) -> float:
        """KL divergence of a whole model."""
        return math.fsum(self.option(name, type_).harm for name, type_ in types.items())

    def chosen(self, groups: Sequence[Group], budget: int) -> dict[str, str]:
        """Types by group, then what is left by tensor."""
        kinds = [self.space.types(plan) for plan in self.space.plans.values()]
        items = [
            [_together([self.option(name, kind[name]) for name in group.names]) for kind in kinds] for group in groups
        ]
        made = solved(items, budget)
        types = {name: kinds[at][name] for group, at in zip(groups, made, strict=True) for name in group.names}
        return self.bettered(types, budget)

    def bettered(self, types: Mapping[str, str], budget: int) -> dict[str, str]:
        """Single tensors in better types, while the budget lasts; none in a worse one."""
        names = list(types)
        kinds = [
            list(dict.fromkeys([types[name], *(self.space.types(plan)[name] for plan in self.space.plans.values())]))
            for name in names
        ]
        items = [[self.option(name, kind) for kind in own] for name, own in zip(names, kinds, strict=True)]
        made = improved(items, [0] * len(items), budget)
        return {name: own[at] for name, own, at in zip(names, kinds, made, strict=True)}

    def mixture(self, base: str, types: Mapping[str, str], origin: str) -> Mixture:
        """Rules for these types, with what was measured."""
        config = self.space.draft.checkpoint.config
        arch = text_of(config, "general.architecture")
        rules = tuple(self._described(rule, names) for rule, names in rules_of(types))
        return Mixture(base, rules, arch, number_of(config, f"{arch}.block_count"), origin)

    def _described(self, rule: Rule, names: Sequence[str]) -> Rule:
        own = _together([self.option(name, rule.type) for name in names])
        error = math.fsum(self.errors[name][rule.type] for name in names) / len(names)
        smaller = [
            before
            for plan in self.space.plans.values()
            if (before := _together([self.option(name, self.space.types(plan)[name]) for name in names])).nbytes
            < own.nbytes
        ]
        last = max(smaller, key=lambda each: each.nbytes, default=None)
        return replace(
            rule, bytes=own.nbytes, error=error, sensitivity=own.harm / error if error else None, kl=own.harm,
            gain=None if last is None else gain(last, own),
        )  # fmt: skip


def _together(options: Sequence[Option]) -> Option:
    return Option(sum(each.nbytes for each in options), math.fsum(each.harm for each in options))
