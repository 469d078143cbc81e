"""Whose mixture of types a file has: a recipe of llama-quantize, of which year, or which one is nearest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from converter.checkpoint import Checkpoint
from converter.errors import ConverterError, QuantizationError
from converter.events import Report
from converter.formats.base import Format
from converter.metadata import number_of
from converter.planning.draft import Draft, begin, run
from converter.planning.passes import MODEL
from converter.planning.types import by_older, choose
from converter.quant.ages import ages
from converter.quant.recipes import RECIPES
from converter.request import Request
from converter.text import counted
from converter.verify.experts import as_in
from converter.verify.pairing import IMATRIX_KEYS, named_recipe

#: Beyond this share of the tensors, a recipe is not worth a name.
NEAR = 0.5


@dataclass(frozen=True)
class Fit:
    """A recipe of an age, and the tensors of a file to which it gives another type."""

    name: str
    age: str
    apart: tuple[str, ...]


def mixture(source: Checkpoint, target: Checkpoint, writer: Format, request: Request) -> str:
    """In words: `q4_k_m`, `q4_k_m but for 3 of 120 tensors, blk.0.ffn_down.weight the first`, `one of its own`."""
    weighted = any(key in target.config for key in IMATRIX_KEYS)
    draft = run(begin(source, writer, request.replace(strict=False, imatrix=None)), (*MODEL, partial(as_in, target)))
    draft = replace(draft, weighted=weighted)
    types = {name: tensor.info.dtype.name for name, tensor in target.tensors.items()}
    said = named_recipe(target)
    best = _best(_today(draft, types), said)
    if best is None or best.apart or best.name != said:
        best = _best((best, *_older(draft, types, number_of(target.config, "general.file_type"))), said)
    if best is None or len(best.apart) > NEAR * len(types):
        return "one of its own"
    name, first = best.name.lower(), next(iter(best.apart), None)
    if first is None:
        return f"{name}, as llama.cpp {best.age}"
    apart = f"{len(best.apart):,} of {counted(len(types), 'tensor')}, {first} the first"
    return f"{name}, as llama.cpp {best.age}, but for {apart}: somebody's own"


def _best(fits: Iterable[Fit | None], said: str | None = None) -> Fit | None:
    """The nearest; of those that are alike the one that the file names, or else the first."""
    known = [fit for fit in fits if fit is not None]
    return min(known, key=lambda fit: (len(fit.apart), fit.name != said), default=None)


def _today(draft: Draft, types: Mapping[str, str]) -> Iterator[Fit]:
    for name, recipe in RECIPES.items():
        if recipe.base is None:
            continue
        asked = replace(draft, request=draft.request.replace(quant=name), report=Report())
        try:
            choices = run(asked, (choose,)).choices
        except ConverterError:
            continue
        chosen = {name: choice.type for name, choice in choices.items()}
        yield Fit(name, "of November 2026 has it", _apart(chosen, types))


def _older(draft: Draft, types: Mapping[str, str], number: int | None) -> Iterator[Fit]:
    """Recipes of other years: those that the file's number names, or all where it has none.

    That an importance matrix was followed was not always written, so both are tried.
    """
    for age, recipes in ages():
        for recipe in recipes.values():
            if recipe.base is None or number not in (None, recipe.file_type):
                continue
            for weighted in sorted({draft.weighted, True}):
                try:
                    chosen = by_older(replace(draft, weighted=weighted), list(types), recipe, age.rules)
                except QuantizationError:
                    continue
                yield Fit(recipe.name, f"had it {age.words}", _apart(chosen, types))


def _apart(chosen: Mapping[str, str], types: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name, type in chosen.items() if types.get(name, type) != type)
