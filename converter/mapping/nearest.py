"""The known architecture that an unknown model is most like, for the error that says so; never a suggestion to use it.

Names of tensors alone are compared. Two architectures may share them and still compute different things (how rotary
pairs lie is in no name), so this helps who writes an architecture file, and decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from converter.architectures import architectures, plugged
from converter.architectures.spec import Architecture
from converter.mapping.names import RuleNames, fill, spellings

MOST_KINDS = 400  # of names, in a file that has one kind after the other
ALIKE = 0.6  # share of the kinds of tensors, from which on another family is worth a word


def nearest(names: Iterable[str]) -> str:
    """One line about the architecture whose rules know most of these kinds of names; empty where none is near."""
    kinds = _kinds(names)
    every = {**plugged(), **architectures()}
    known = {name: _known(architecture, kinds) for name, architecture in every.items()}
    best = max(known, key=lambda name: (len(known[name]), -_missing(every[name], kinds), len(every[name].hf)))
    if not kinds or len(known[best]) < ALIKE * len(kinds):
        return ""
    without = [kind for kind in kinds if kind not in known[best]]
    differs = f", but {_some(without)}" if without else ", but what it computes may differ"
    return f"by its tensors' names nearest to {best} ({len(known[best])} of {len(kinds)} kinds){differs}"


def _kinds(names: Iterable[str]) -> list[str]:
    """Names with 0 for every number, each once."""
    found: dict[str, None] = {}
    for name in names:
        found[re.sub(r"(?<=\.)\d+(?=\.)", "0", name)] = None
        if len(found) >= MOST_KINDS:
            break
    return list(found)


def _known(architecture: Architecture, kinds: Iterable[str]) -> set[str]:
    rules = RuleNames(architecture.tensors, "hf")
    return {kind for kind in kinds if any(rules.find(each, lambda *_: True) for each in spellings(architecture, kind))}


def _missing(architecture: Architecture, kinds: Iterable[str]) -> int:
    """How many of its tensors that every model of it has are not there."""
    every = {each for kind in kinds for each in spellings(architecture, kind)}
    always = (rule for rule in architecture.tensors if rule.hf and not (rule.optional or rule.when or rule.read_only))
    return sum(fill(name, 0, 0) not in every for rule in always for name in rule.hf)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more} {'is' if len(names) == 1 else 'are'} not in it"
