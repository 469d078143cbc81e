"""The graph that computes a model, where the target runs: the types that it can use, and its operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from converter.errors import UsageError
from converter.events import Decoded
from converter.graphs.experts import is_of_experts
from converter.graphs.model import Model as GraphModel
from converter.graphs.network import Options
from converter.graphs.write import program
from converter.mapping.companions import normalises, ways_to_generate
from converter.metadata import Value
from converter.planning.draft import Draft
from converter.planning.said import said
from converter.quant.recipes import RECIPES, Choice
from converter.tensors.dtypes import dtype
from converter.tensors.operands import KINDS as PACKABLE


def for_graph(draft: Draft, choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Types that a graph calculates with: blocks that have codes for it, else plain numbers."""
    plain = (draft.request.types.dtype or "f32").upper()
    if plain not in ("F32", "F16"):
        raise UsageError(f"--dtype {plain.lower()}: a graph calculates in f32 or f16")
    result = {}
    for name, choice in choices.items():
        tensor = draft.checkpoint.tensors[name]
        own = dtype(choice.type)
        if own.name in PACKABLE and (len(tensor.info.shape) == 2 or is_of_experts(name)):
            result[name] = choice
            continue
        if own.quantized:
            draft.report.add(Decoded(name, own.name, plain))
        rule = choice.rule if own.name == plain else "what a graph calculates in"
        result[name] = replace(choice, type=plain, rule=rule)
    return result


#: Transformers.js asks its config whether a model's tensors lie beside it.
CLIENTS = {"transformers.js_config": {"use_external_data_format": True}}


def write_graph(draft: Draft) -> Draft:
    """The graph that computes the model, with the tensors that it uses.

    Raises:
        UnsupportedFeature: nothing says how the architecture computes, or a tensor that no graph can use yet.
    """
    if not draft.to_graph:
        return draft
    own, types = draft.checkpoint, draft.request.types
    asked, metadata = dtype((types.dtype or "f32").upper()), said(draft)
    if not any(dtype(step.type).quantized for step in draft.steps):
        metadata["general.file_type"] = Value("u32", RECIPES[asked.name].file_type or 0)
    model = GraphModel.of(metadata, own.tensors)
    normalised = normalises(draft.opened.assets)
    options = Options(asked, draft.watch.again(), types.exact, normalised, draft.profile)
    graph = program(model, options)
    made = {**own.made, **draft.profile.beside(graph, model, ways_to_generate(own))}
    return replace(draft, checkpoint=own.replace(tensors=graph.initializers, config={}, structure=graph, made=made))
