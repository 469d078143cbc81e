"""Some blocks of a model, counted anew: names, keys, and the proof that each block still is what it was.

Which block a tensor is in, and which keys have a value for each, say the rows of the architecture. What depends on a
block's number alone (every fourth sees all tokens, the first three have no experts) is computed for the model before
and after, block by block; where it differs, the model would compute something else, and is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from converter.architectures.spec import Architecture, HFClass, HParam
from converter.architectures.traits import Blocks
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, UnsupportedFeature, short
from converter.housekeeping.settings import Config, Keys, Settings, settings_of
from converter.mapping.hparams import HParams, Scope
from converter.mapping.names import resolved, spellings
from converter.mapping.view import ModelView, view
from converter.metadata import Array
from converter.tensors.expressions import BLOCK, ExpressionError, compute

_BLOCK = f"{{{BLOCK}}}"
_OTHER = re.compile(rf"\{{{BLOCK}([+-]\d+)\}}")  # a stack that counts from another block on
# Conditions that part the blocks in two at a number: of those that stay, as many lie below it as are counted.
_BOUNDARY = re.compile(rf"\b{BLOCK} (?:<|>=) (\w+)(?! *[-+*/%(\[.])")
#: What the number of blocks itself is called.
COUNTS = ("n_layer", "n_main")
# Rows of lists that have a value for each block though they do not say so, and one that has not.
_LISTS = ("n_head", "n_head_kv", "limits", "limits_shared", "hybrid", "rotates", "kinds")
_NO_LISTS = ("eos",)
# Entries of config.json that no row has: a boundary, and numbers of blocks, which are counted from 0 or from 1.
_BOUNDARIES = ("max_window_layers",)
_NUMBERS = {
    "moe_layers": 0, "mlp_only_layers": 0, "full_attn_idxs": 0, "attn_layer_indices": 0, "ple_layer_ids": 1,
    "linear_attn_config.full_attn_layers": 1, "linear_attn_config.kda_layers": 1,
}  # fmt: skip
_BY_COUNT = re.compile(r"\bn_layer [=<>]")  # what the runtime itself tells models apart by
_NAMED = re.compile(r"\b(?:layers|blocks?|h)\W{1,3}\d")  # a block by its number, in a text of config.json
_HEADS = "attention.head_count_kv"  # none in layers that have a state instead
_LAST = f"{BLOCK} + 1 < n_layer"  # in a row's default: the last layer is of a kind of its own
SHARED = "shared"  # a layer that takes what an earlier one of another kind found
SHARED_CACHES, IMAGES_IN = "attention.shared_kv_layers", "n_deepstack"


@dataclass(frozen=True)
class Model:
    """A checkpoint whose architecture is known here."""

    checkpoint: Checkpoint
    seen: ModelView
    architecture: Architecture
    hf: HFClass | None
    hparams: HParams

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Model:
        """Raises: UnsupportedFeature, ArchitectureError."""
        seen = view(checkpoint)
        if seen.architecture is None or not seen.whole:
            why = seen.unknown or "no whole model, or nothing says which"
            raise UnsupportedFeature(f"{checkpoint.path}: {why}: what depends on the number of a layer is not known")
        hparams = seen.hparams
        assert hparams is not None  # of a known architecture
        return cls(checkpoint, seen, resolved(seen.architecture, hparams), seen.hf_class, hparams)

    @property
    def n_main(self) -> int:
        """Blocks, less those behind them that predict further tokens."""
        found: int = self.hparams.get("n_main", self.n_layer)
        return found

    @property
    def n_layer(self) -> int:
        """All blocks that the rows count."""
        found: int = self.hparams["n_layer"]
        return found

    @cached_property
    def scope(self) -> Scope:
        return Scope(self.hparams, self.checkpoint.tensors)

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        """What the names of tensors in blocks begin with."""
        side = "gguf" if self.hf is None else "hf"
        templates = [name for rule in self.architecture.tensors for name in getattr(rule, side)]
        return tuple({name.partition(_BLOCK)[0] for name in templates if _BLOCK in name})

    def spelled(self, name: str) -> list[str]:
        """A tensor's name, and what the architecture calls it."""
        return [name] if self.hf is None else spellings(self.architecture, name)

    def block(self, name: str) -> int | None:
        """The block that a tensor is in."""
        for spelled in self.spelled(name):
            for beginning in self._beginnings:
                number = spelled.removeprefix(beginning).partition(".")[0] if spelled.startswith(beginning) else ""
                if len(number) < 10 and number.isdecimal() and str(int(number)) == number:
                    return int(number)
        return None

    def settings(self) -> Settings:
        return settings_of(self.checkpoint, self.architecture, self.hf)

    def check_one_stack(self) -> None:
        """Raises: UnsupportedFeature, where the model has several stacks of blocks."""
        names = [name for rule in self.architecture.tensors for name in (*rule.hf, *rule.gguf)]
        later = [-int(match[1]) for name in names for match in _OTHER.finditer(name)]
        stacks = {
            name.partition(_BLOCK)[0] for rule in self.architecture.tensors for name in rule.gguf if _BLOCK in name
        }
        if len(stacks) > 1 or any(first < self.n_main for first in later):
            raise self.refused("has more than one stack of layers")

    def refused(self, why: str) -> UnsupportedFeature:
        return UnsupportedFeature(f"{self.checkpoint.path}: {self.architecture.gguf} {why}")


def only(checkpoint: Checkpoint, kept: Sequence[int]) -> Checkpoint:
    """The model with the blocks `kept` alone, ascending; those that predict further tokens stay behind them.

    Raises:
        UnsupportedFeature: what a block computes depends on its number, and would change; it is named.
        ArchitectureError: the model says too little of itself.
    """
    model = Model.of(checkpoint)
    model.check_one_stack()
    _check_reach(model, kept)
    numbers = {old: new for new, old in enumerate((*kept, *range(model.n_main, model.n_layer)))}

    def renamed(name: str) -> str | None:
        block = model.block(name)
        if block is None:
            return name
        if block >= model.n_layer:  # further ones, that nobody reads
            return numbered(name, block, block - model.n_main + len(kept))
        return numbered(name, block, numbers[block]) if block in numbers else None

    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        if (new := renamed(name)) is not None:
            tensors[new] = tensor if new == name else tensor.renamed(new)
    settings = model.settings()
    _count_anew(model, settings, list(numbers))
    pruned = settings.applied(checkpoint.replace(tensors=tensors))
    changed = _said_outright(model, Model.of(pruned), list(numbers))
    for row, value in changed:
        settings.change(row, value)
    pruned = settings.applied(pruned) if changed else pruned
    again = Model.of(pruned)
    check_facts(model, again, list(numbers))
    _check_tensors(model, again, renamed)
    return pruned


def numbered(name: str, old: int, new: int) -> str:
    """A tensor's name with another number for the first component that is `old`."""
    parts = name.split(".")
    parts[parts.index(str(old))] = str(new)
    return ".".join(parts)


# ------------------------------------------------------------------------------------------------- settings


def per_block(row: HParam) -> bool:
    """Whether a list that a row reads has a value for each block."""
    either = " or " in row.type and row.name not in _NO_LISTS
    return row.per_block in (True, "n_main") or either or (row.name in _LISTS and "[]" in row.type)


def _count_anew(model: Model, settings: Settings, kept: list[int]) -> None:
    """Every setting that counts blocks, has a value for each, or parts them at a number."""
    gone = model.n_layer - len(kept)
    rows = {row.name: row for row in model.architecture.hparams}
    for name in COUNTS:
        row = rows.get(name)
        if row is not None and isinstance(said := settings.value(row), int):
            settings.change(row, said - gone)
    for row in rows.values():
        said = settings.value(row)
        if per_block(row) and isinstance(said, list) and len(said) in (model.n_main, model.n_layer):
            settings.change(row, [said[block] for block in kept if block < len(said)])
        elif "pattern" in row.name and isinstance(said, str) and len(said) == model.n_main:
            settings.change(row, "".join(said[block] for block in kept if block < len(said)))
    for name in _boundaries(model.architecture):
        if isinstance(old := model.hparams.get(name), int) and (new := _below(kept, old)) != old:
            settings.change(rows[name], new)
    if isinstance(settings, Config):
        _count_config(model, settings, kept)
    elif isinstance(settings, Keys):
        _count_keys(model, settings, kept)


def _below(kept: Iterable[int], boundary: int) -> int:
    return sum(block < boundary for block in kept)


def _boundaries(architecture: Architecture) -> Iterator[str]:
    """Hyperparameters that conditions compare with a block's number, but for its last."""
    texts = [rule.when for rule in architecture.tensors]
    texts += [text for row in architecture.hparams for text in (row.default, row.back) if isinstance(text, str)]
    found = {name for text in texts if text for name in _BOUNDARY.findall(text)}
    return (
        row.name for row in architecture.hparams
        if row.name in found and row.name not in COUNTS and (row.config or row.gguf)
    )  # fmt: skip


def _count_keys(model: Model, settings: Keys, kept: list[int]) -> None:
    """Lists of a GGUF that no row reads, as long as there are blocks."""
    known = {model.architecture.key(key) for row in model.architecture.hparams for key in row.gguf}
    for key, entry in settings.entries.items():
        own = key.startswith(f"{model.architecture.gguf}.") and key not in known
        if own and isinstance(entry, Array) and len(entry) == model.n_layer:
            settings.entries[key] = Array(entry.type, [entry.values[block] for block in kept])  # type: ignore[arg-type]


def _count_config(model: Model, settings: Config, kept: list[int]) -> None:
    """Entries of config.json that no row reads.

    Raises:
        UnsupportedFeature: one that speaks of layers and is not known.
    """
    main = [block for block in kept if block < model.n_main]
    known = {key for row in model.architecture.hparams for key in row.config} - _NUMBERS.keys()
    for dotted, base in _NUMBERS.items():
        for holder, key in settings.holders(dotted):
            numbers = holder[key]
            if isinstance(numbers, list):
                holder[key] = [new + base for new, old in enumerate(main) if old + base in numbers]
    for holder in {id(part): part for part in (settings.text, settings.whole)}.values():
        for key, value in holder.items():
            if key in known or key in _NUMBERS or "layer" not in key or key.startswith("mtp_"):
                continue
            if isinstance(value, dict) and value and all(str(number).isdecimal() for number in value):
                named = {int(number): each for number, each in value.items()}
                holder[key] = {str(new): named[old] for new, old in enumerate(main) if old in named}
            elif key in _BOUNDARIES and isinstance(value, int):
                holder[key] = _below(main, value)
            elif isinstance(value, list) and len(value) == model.n_main:
                holder[key] = [value[block] for block in main]
            elif isinstance(value, list) and value:
                raise model.refused(f"says {key} in config.json, a list of which it is not known what it counts")
    if found := _NAMED.search(json.dumps(settings.whole)):
        raise model.refused(f"names a layer by its number in config.json ({found.group()}), in a text that would stay")


def _said_outright(model: Model, pruned: Model, kept: list[int]) -> list[tuple[HParam, list[Any]]]:
    """Facts of blocks that followed from their number, and can be said as a list instead."""
    changed = []
    for row in model.architecture.hparams:
        keys = row.gguf if model.hf is None else [key for key in row.config if not key.startswith(("rope.", "/"))]
        old, new = (each.hparams.get(row.name) for each in (model, pruned))
        if keys and per_block(row) and isinstance(old, list) and len(old) in (model.n_main, model.n_layer):
            wanted = [old[block] for block in kept if block < len(old)]
            if new != wanted and not row.values:
                changed.append((row, wanted))
    return changed


# ---------------------------------------------------------------------------------------------------- proof


def _check_reach(model: Model, kept: Sequence[int]) -> None:
    """What one block has of another, or of an image."""
    shared = next((row.name for row in model.architecture.hparams if SHARED_CACHES in row.gguf), "")
    if model.architecture.traits.first_shared is not None or model.hparams.get(shared):
        raise model.refused("has layers that use the cache of earlier ones; which would change with their numbers")
    for row in model.architecture.hparams:
        kinds = model.hparams.get(row.name)
        if not (per_block(row) and isinstance(kinds, list) and len(kinds) in (model.n_main, model.n_layer)):
            continue
        if _HEADS in row.gguf and any(kinds) and not any(kinds[block] for block in kept):
            raise model.refused("would have no layer with attention left, which runtimes want; keep one")
        if _LAST in str(row.default) and kinds[kept[-1]] != kinds[model.n_main - 1]:
            raise model.refused(f"has its last layer be {short(kinds[model.n_main - 1])}; keep it, or end with another")
        for block in (block for block in kept if block < len(kinds) and kinds[block] == SHARED):
            source = next((each for each in range(block, -1, -1) if kinds[each] != SHARED), None)
            if source not in kept:
                raise model.refused(f"has layer {block} use what layer {source} finds ({row.name}); keep that, too")
    first = model.hparams.get(IMAGES_IN, 0)
    if first and list(kept[:first]) != list(range(first)):
        raise model.refused(f"adds images in its first {first} layers; keep these")


def check_facts(model: Model, pruned: Model, kept: list[int], but: Iterable[str] = ()) -> None:
    """Refuse a model that computes something else in a block than it did, or in all of them.

    Raises:
        UnsupportedFeature: as said; it names the fact.
    """
    if len(kept) != pruned.n_layer:
        raise model.refused(f"has {pruned.n_layer} layers by its own word, {len(kept)} are kept")
    free = {*COUNTS, *_boundaries(model.architecture), *but}
    for row in model.architecture.hparams:
        old, new = (each.hparams.get(row.name) for each in (model, pruned))
        if row.name not in free and not _follows(model, row) and new not in _wanted(model, row, old, kept):
            raise model.refused(
                f"computes by {model.settings().said(row)}, which would change with the numbers of the layers "
                f"({short(old)}, then {short(new)})\nkeep layers whose pattern stays, or whole periods of it"
            )
    for name in set(free) & {*_boundaries(model.architecture)}:
        if pruned.hparams.get(name, 0) != _below(kept, model.hparams.get(name, 0)):
            raise model.refused(f"parts its layers by {name}, which cannot be changed")
    traits = model.architecture.traits
    for relation in (*traits.relations, *traits.told, *traits.runtime):
        before, after = (_computed(relation.condition, each, None) for each in (model, pruned))
        if before and after is not None and not after:
            raise model.refused(f"would be one of which it is said: {relation.name}: {relation.message}")
    for new_block, old_block in enumerate(kept):
        before, after = (_facts(each, block) for each, block in ((model, old_block), (pruned, new_block)))
        if unlike := [what for what in before if before[what] != after.get(what)]:
            raise model.refused(
                f"computes layer {old_block} otherwise at {new_block} ({unlike[0]}: {short(before[unlike[0]])}, then "
                f"{short(after.get(unlike[0]))})\nkeep layers whose pattern stays, or whole periods of it"
            )


def _follows(model: Model, row: HParam) -> bool:
    """Whether a GGUF's number is of interest for config.json alone, and follows from what is looked at anyway."""
    computed = str(row.default if row.back is None else row.back)
    return model.hf is None and not row.gguf and "[]" not in row.type and _BY_COUNT.search(computed) is None


def _wanted(model: Model, row: HParam, old: Any, kept: list[int]) -> list[Any]:
    """What may stand where `old` stood: the values of the blocks that stay, their new numbers, or the same."""
    if not isinstance(old, list | str):
        return [old]
    if not per_block(row) and isinstance(old, list):
        return [old, *([new + base for new, block in enumerate(kept) if block + base in old] for base in (0, 1))]
    if len(old) not in (model.n_main, model.n_layer):
        return [old]
    left = [old[block] for block in kept if block < len(old)]
    return ["".join(left) if isinstance(old, str) else left, old]


def _facts(model: Model, block: int) -> Mapping[str, Any]:
    """What is computed of a block's number, by what it is called."""
    traits, found = model.architecture.traits, dict[str, Any]()
    if model.hf is None and (window := traits.window) is not None:
        found["sees all tokens"] = block % window.period == (0 if window.full_first else window.period - 1)
    for number, rule in enumerate(model.architecture.tensors):
        if rule.per_block and rule.when is not None:
            found[f"condition {number}"] = _computed(rule.when, model, block)
    computes: Blocks | None = traits.decoder or traits.encoder
    for each in fields(computes) if computes is not None else ():
        text = getattr(computes, each.name)
        if each.name in ("rotates", "theta", "scaled", "scale", "embedding", "parallel", "unit", "residual", "logits"):
            found[each.name] = _computed(text, model, block)
    return found


def _computed(text: str, model: Model, block: int | None) -> Any:
    try:
        return compute(text, model.scope.at(block)) if text else None
    except ExpressionError:
        return None  # of another size of this architecture


def _check_tensors(model: Model, pruned: Model, renamed: Callable[[str], str | None]) -> None:
    """The rows give the model as it is the tensors that it has, of the same shapes."""
    before, after = (_given(each) for each in (model, pruned))
    if before is None or after is None:
        return
    wanted = {new: shape for name, shape in before.items() if (new := renamed(name)) is not None}
    if wanted != after:
        name = next(name for name in {**wanted, **after} if wanted.get(name) != after.get(name))
        raise model.refused(f"has {name} {wanted.get(name)}, which would be {after.get(name)} with these layers")


def _given(model: Model) -> dict[str, Any] | None:
    """Names and shapes by the rows; None where a row asks for a size that this model does not say."""
    found: dict[str, Any] = {}
    try:
        for each in model.seen.instances(model.architecture, model.hparams):
            found.update(zip(each.names, each.shapes or (None,) * len(each.names), strict=False))
    except ArchitectureError:
        return None
    return found
