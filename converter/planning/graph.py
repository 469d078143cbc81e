"""The graph that computes a model, where the target runs: the types that it can use, and its operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from converter.errors import UsageError
from converter.events import Decoded, Dropped, Note
from converter.formats.hub import GraphFile, graph_file
from converter.formats.onnx.program import Given, Programs
from converter.formats.torch.exported import ExportedProgram
from converter.graphs.experts import is_stacked
from converter.graphs.model import Model as GraphModel
from converter.graphs.network import Options
from converter.graphs.write import program
from converter.mapping.companions import normalises, ways_to_generate
from converter.metadata import Metadata, Value
from converter.planning.calibration import WINDOW, Calibration
from converter.planning.draft import Draft
from converter.planning.said import said
from converter.quant.recipes import RECIPES, Choice
from converter.storage.files import regular_size
from converter.tensors.dtypes import F16, F32, INT8, dtype
from converter.tensors.encode import Watch, encoded
from converter.tensors.operands import KINDS as PACKABLE
from converter.tensors.streams import decoded
from converter.tensors.tensor import LazyTensor, from_array
from converter.tracing.answer import Answer
from converter.tracing.tracer import trace, translate


def for_graph(draft: Draft, choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Types that a graph calculates with: blocks that have codes for it, else plain numbers."""
    plain, result = _plain(draft), {}
    for name, choice in choices.items():
        tensor = draft.checkpoint.tensors[name]
        own = dtype(choice.type)
        if own.name in (*PACKABLE, INT8.name) and (len(tensor.info.shape) == 2 or is_stacked(name)):
            result[name] = choice
            continue
        if own.quantized:
            draft.report.add(Decoded(name, own.name, plain))
        rule = choice.rule if own.name == plain else "what a graph calculates in"
        result[name] = replace(choice, type=plain, rule=rule)
    return result


def for_trace(draft: Draft) -> dict[str, Choice]:
    """Types that a traced graph calculates with; whole numbers stay what they are."""
    program = isinstance(draft.opened.structure, ExportedProgram)
    plain, result = "" if program else _plain(draft), {}
    for name, tensor in draft.checkpoint.tensors.items():
        own = tensor.info.dtype
        if program:
            result[name] = Choice(own.name, "as in the source")
            continue
        rule = "as in the source" if own.name == plain or not own.floating else "what a graph calculates in"
        result[name] = Choice(plain if own.floating else own.name, rule)
    return result


def _plain(draft: Draft) -> str:
    """The type that a graph calculates in.

    Raises:
        UsageError: one that it cannot.
    """
    plain = (draft.request.types.dtype or "f32").upper()
    if plain not in ("F32", "F16"):
        raise UsageError(f"--dtype {plain.lower()}: a graph calculates in f32 or f16")
    return plain


def named(draft: Draft) -> GraphFile:
    """What the file of a graph is called: by what its recipe, else most of its weights, are."""
    n_elements: Counter[str] = Counter()
    for step in draft.steps:
        n_elements[step.type] += step.info.n_elements
    most = max(n_elements, key=n_elements.__getitem__, default=F32.name)
    own = draft.recipe.base if draft.recipe is not None and draft.recipe.quantized else most
    return graph_file(
        own or most, half=draft.request.types.dtype is not None and dtype(draft.request.types.dtype) is F16
    )


def for_clients(draft: Draft) -> dict[str, Any]:
    """What Transformers.js asks config.json: whether tensors lie beside the model, and of ours which file to take."""
    own = {"dtype": named(draft).dtype} if draft.to_graph else {}
    return {"transformers.js_config": {"use_external_data_format": True, **own}}


def write_graph(draft: Draft) -> Draft:
    """The graph that computes the model, with the tensors that it uses.

    Raises:
        UnsupportedFeature: nothing says how the architecture computes, or a tensor that no graph can use yet.
    """
    if draft.to_trace:
        return _traced(draft)
    if not draft.to_graph:
        return draft
    own, types = draft.checkpoint, draft.request.types
    asked, metadata = dtype((types.dtype or "f32").upper()), said(draft)
    if not any(step.type in PACKABLE for step in draft.steps):
        metadata["general.file_type"] = Value("u32", RECIPES[asked.name].file_type or 0)
    normalised = normalises(draft.opened.assets)
    options = Options(asked, draft.watch.again(), types.exact, normalised, profile=draft.profile)
    calibration = _calibration(draft, metadata, options)
    if calibration is not None:
        options = replace(options, ranges=calibration.ranges)
        own = own.replace(files=(*own.files, calibration.text))
    model = GraphModel.of(metadata, own.tensors)
    graph = program(model, options)
    if idle := sorted(own.tensors.keys() - model.read):
        draft.report.add(
            Note(f"{len(idle)} tensors are left out, which the graph does not need: {idle[0]} and its like")
        )
    made = {**own.made, **draft.profile.beside(graph, model, ways_to_generate(own))}
    own = own.replace(tensors=graph.initializers, config={}, structure=graph, made=made)
    return replace(draft, checkpoint=own, calibration=calibration)


def _calibration(draft: Draft, metadata: Metadata, options: Options) -> Calibration | None:
    """What finds the ranges of activations, where they are asked for: by the same graph in F32."""
    text = draft.request.types.calibration
    if text is None:
        return None
    regular_size(text)
    tensors = {step.name: decoded(step.intermediate) if step.type == INT8.name else draft.checkpoint.tensors[step.name]
               for step in draft.steps}  # fmt: skip
    model = GraphModel.of(metadata, tensors)
    config = draft.opened.assets.get("config.json")
    tokenizer = draft.opened.path if config is None else config.parent
    plain = Options(F32, Watch(), exact=True, normalised=options.normalised)
    context = model.size("context_length", default=WINDOW)
    return Calibration(text, tokenizer, draft.path.absolute().parent, lambda: program(model, plain), context)


def _answer(draft: Draft) -> Answer:
    path, infos = draft.opened.path, {name: tensor.info for name, tensor in draft.checkpoint.tensors.items()}
    structure = draft.opened.structure
    if isinstance(structure, ExportedProgram):
        return translate(path, structure.program, infos)
    return trace(path, draft.opened.config, {name: info.shape for name, info in infos.items()}, _plain(draft))


def _traced(draft: Draft) -> Draft:
    """The graphs that torch traces of the model, filled by the tensors that were planned for it.

    Raises:
        ConverterError: as `tracing.tracer.trace`.
        UsageError: several graphs where one file is to be.
    """
    own, answer = draft.checkpoint, _answer(draft)
    if len(answer.models) > 1 and not draft.whole:
        names = ", ".join(f"{each.name}.onnx" for each in answer.models)
        raise UsageError(f"{draft.path}: the model is {names}\nname a folder for them: OUT/ --to onnx")
    draft.report.add(Note(f"graph {answer.way}"))
    draft.report.extend([Dropped(name, "the model that was traced has no place for it") for name in answer.unused])
    choices: dict[str, Choice] = {}
    models, every = {}, dict[str, LazyTensor]()
    for each in answer.models:
        tensors = {}
        for name, filled in each.filled.items():
            choice = draft.choices[filled.source]
            if choice.type != filled.dtype:
                choice = Choice(filled.dtype, "what the model calculates in")
            choices[filled.source] = choice
            tensor = encoded(draft.intermediate[filled.source], dtype(filled.dtype), draft.watch.again())
            tensors[name] = tensor.renamed(name)
        for name, made in each.computed.items():
            array = np.frombuffer(made.data, dtype(made.dtype).numpy).reshape(made.shape)
            tensors[name] = from_array(name, array, dtype(made.dtype), "computed by the model")
        models[each.name] = Given(each.head, each.graph, tensors)
        every |= tensors
    structure = Programs(models, answer.way)
    return replace(draft, choices=choices, checkpoint=own.replace(tensors=every, config={}, structure=structure))
