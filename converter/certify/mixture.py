"""Whose mixture of types a file has: a recipe of today, or which one it is nearest to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from converter.checkpoint import Checkpoint
from converter.errors import ConverterError
from converter.events import Report
from converter.formats.base import Format
from converter.planning.draft import Draft, begin, run
from converter.planning.passes import MODEL
from converter.planning.types import choose
from converter.quant.recipes import RECIPES
from converter.request import Request
from converter.text import counted
from converter.verify.pairing import IMATRIX_KEYS, named_recipe

#: Beyond this share of the tensors, a recipe is not worth a name.
NEAR = 0.5


def mixture(source: Checkpoint, target: Checkpoint, writer: Format, request: Request) -> str:
    """In words: `q4_k_m`, `q4_k_m but for 3 of 120 tensors, blk.0.ffn_down.weight the first`, `one of its own`."""
    weighted = any(key in target.config for key in IMATRIX_KEYS)
    draft = run(begin(source, writer, request.replace(strict=False, imatrix=None)), MODEL)
    types = {name: tensor.info.dtype.name for name, tensor in target.tensors.items()}
    fits = sorted(_apart(replace(draft, weighted=weighted), types), key=lambda fit: len(fit[1]))
    if not fits or len(fits[0][1]) > NEAR * len(types):
        return "one of its own"
    said = named_recipe(target)
    alike = [name for name, apart in fits if len(apart) == len(fits[0][1])]
    name, apart = (said if said in alike else alike[0]), fits[0][1]
    if not apart:
        return f"{name.lower()}, as llama.cpp of November 2026 has it"
    words = f"{len(apart):,} of {counted(len(types), 'tensor')}, {apart[0]} the first: an older recipe, or one's own"
    return f"{name.lower()} but for {words}"


def _apart(draft: Draft, types: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Every recipe, and the tensors to which it gives another type."""
    for name, recipe in RECIPES.items():
        if recipe.base is None:
            continue
        asked = replace(draft, request=draft.request.replace(quant=name), report=Report())
        try:
            choices = run(asked, (choose,)).choices
        except ConverterError:
            continue
        yield name, [each for each, choice in choices.items() if types.get(each, choice.type) != choice.type]
