"""What a mixture means for a model, and the mixture that a model has."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from converter.errors import UsageError
from converter.mixture import Mixture, Rule
from converter.quant.patterns import Pattern, check_count
from converter.quant.recipes import block_of, recipe, sort_key, type_name

BLOCK = "{block}"
MAX_BLOCK = 99_999
_PLAIN = re.compile(r"[A-Za-z0-9._-]+")
_NUMBER = re.compile(r"(?<=^blk\.)[0-9]+(?=\.)")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@dataclass(frozen=True)
class Meant:
    """What a mixture means for the tensors of one model.

    `rules` is the rule of each tensor that has one, `idle` are rules that no tensor has, `scaled` says that numbers of
    blocks were those of a model with another number of them.
    """

    rules: Mapping[str, Rule]
    idle: tuple[Rule, ...]
    scaled: bool


def meant(mixture: Mixture, names: Sequence[str], block_count: int) -> Meant:
    """The rule of each of `names`, the first that fits.

    Where the model has another number of blocks than the mixture was made for, a block is looked up by its depth: the
    first of a rule's blocks stay the first, the middle stays the middle.

    Raises:
        UsageError: a rule that cannot be meant.
    """
    compiled = compile_rules(mixture)
    own = mixture.block_count
    scaled = bool(own and block_count and own != block_count and any(rule.blocks for rule in mixture.rules))
    found: dict[str, Rule] = {}
    for name in names:
        block = block_of(name)
        at = block * own // block_count if scaled and own and 0 <= block < block_count else block
        rule = next((each.rule for each in compiled if each.fits(name, at)), None)
        if rule is not None:
            found[name] = rule
    used = set(found.values())
    return Meant(found, tuple(rule for rule in mixture.rules if rule not in used), scaled)


def compile_rules(mixture: Mixture) -> list[_Compiled]:
    """All rules, ready to be asked.

    Raises:
        UsageError: an unknown type or base, a malformed pattern or list of blocks; it names the rule.
    """
    check_count(len(mixture.rules), "a recipe")
    if recipe(mixture.base).base is None:
        raise UsageError(f"base {mixture.base}: keeps every type; a recipe needs one that gives them")
    return [_Compiled(rule, at) for at, rule in enumerate(mixture.rules, 1)]


class _Compiled:
    def __init__(self, rule: Rule, at: int) -> None:
        self.rule = rule
        where = f"rule {at} ({rule.tensors[:60]!r})"
        type_name(where, rule.type)
        try:
            self._blocks = _blocks(rule.blocks)
            plain = _PLAIN.fullmatch(rule.tensors)
            self._pattern = None if plain else Pattern(f"^(?:{rule.tensors.replace(BLOCK, '[0-9]+')})$")
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None

    def fits(self, name: str, block: int) -> bool:
        if self._blocks and not any(low <= block <= high for low, high in self._blocks):
            return False
        return name == self.rule.tensors or (self._pattern is not None and self._pattern.search(name))


def _blocks(text: str) -> list[tuple[int, int]]:
    """`0-3,7` as pairs of ends."""
    pairs = []
    for part in text.replace(" ", "").split(",") if text.strip() else ():
        found = _RANGE.fullmatch(part)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if low > high:
            raise UsageError(f"blocks {text[:40]!r} are no numbers such as 0-3,7")
        pairs.append((low, high))
    return pairs


# ------------------------------------------------------------------------------------------ of a model


def template(name: str) -> str:
    """A name with `{block}` in the place of its block's number: what tensors of one role have in common."""
    return _NUMBER.sub(BLOCK, name, count=1)


def rules_of(types: Mapping[str, str]) -> list[tuple[Rule, tuple[str, ...]]]:
    """Rules that give these types, few where tensors of one role agree, each with the tensors that it is for.

    Of the types of a role, that of most blocks comes last and names none, so that it is also for blocks that the model
    does not have.
    """
    roles: dict[str, dict[str, str]] = {}
    for name in sorted(types, key=sort_key):
        if _PLAIN.fullmatch(name):
            role = template(name)
            roles.setdefault(role if role == role.lower() else name, {})[name] = types[name]
    return [each for role, own in roles.items() for each in _of_role(role, own)]


def _of_role(role: str, types: Mapping[str, str]) -> Iterable[tuple[Rule, tuple[str, ...]]]:
    counts = Counter(types.values())
    order = sorted(counts, key=lambda type_: (counts[type_], type_))
    for type_ in order:
        names = tuple(name for name, own in types.items() if own == type_)
        blocks = "" if type_ == order[-1] else ranges(map(block_of, names))
        yield Rule(role, type_, blocks), names


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,7` of 0, 1, 2, 3 and 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def digest(types: Mapping[str, str]) -> str:
    """SHA-256 of the types of all tensors, in hex: lines of name, tab and type, sorted by bytes."""
    lines = sorted(f"{name}\t{type_}\n".encode() for name, type_ in types.items())
    return hashlib.sha256(b"".join(lines)).hexdigest()
