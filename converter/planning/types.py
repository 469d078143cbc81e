"""Which type each tensor gets, and what its encoder follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from converter.architectures import traits_of
from converter.errors import OutputError, QuantizationError, UsageError
from converter.events import Decoded, ImportanceNeeded, Note, Report, few
from converter.formats.base import Format
from converter.metadata import Array, Value
from converter.planning.draft import Draft
from converter.planning.graph import for_graph, for_trace
from converter.quant import feedback, imatrix, mixtures
from converter.quant.imatrix import Foreseen
from converter.quant.recipes import (
    TODAY,
    Choice,
    ModelFacts,
    Options,
    Recipe,
    Rules,
    TensorSpec,
    assign,
    needs_imatrix,
    recipe,
)
from converter.storage.files import remembering
from converter.tensors.dtypes import F32, DType, dtype
from converter.tensors.kernels import needs_importance
from converter.tensors.tensor import LazyTensor, TensorInfo
from converter.text import counted


def open_matrix(draft: Draft) -> Draft:
    """The importance matrix that the request names, which the output then also reads from.

    Raises:
        CorruptFile, UsageError, OutputError: as `quant.imatrix.open_imatrix`.
    """
    types = draft.request.types
    if types.imatrix is None:
        return draft
    try:
        with remembering(draft.checkpoint.opened):
            matrix = imatrix.open_imatrix(types.imatrix, types.include_weights, types.exclude_weights)
    except OutputError as error:  # it is another file than what is converted
        raise type(error)(f"--imatrix {error}") from error
    own = draft.checkpoint
    own = own.replace(files=(*own.files, matrix.path), closers=(*own.closers, matrix.close))
    return replace(draft, checkpoint=own, matrix=matrix, weighted=True)


def open_calibration(draft: Draft) -> Draft:
    """The calibration that the request names, which the output then also reads from.

    Raises:
        CorruptFile, UsageError, OutputError: as `quant.feedback.open_calibration`.
    """
    path = draft.request.types.calibrate
    if path is None:
        return draft
    try:
        with remembering(draft.checkpoint.opened):
            opened = feedback.open_calibration(path)
    except OutputError as error:  # it is another file than what is converted
        raise type(error)(f"--calibrate {error}") from error
    own = draft.checkpoint
    own = own.replace(files=(*own.files, opened.path), closers=(*own.closers, opened.close))
    return replace(draft, checkpoint=own, feedback=opened)


def choose(draft: Draft) -> Draft:
    """The type of each tensor, and why: by the recipe in a GGUF, by what the format can hold in others.

    Raises:
        UsageError, QuantizationError: as `quant.recipes.assign`; a type that the format cannot hold.
    """
    if draft.to_graph:
        return replace(draft, choices=for_graph(draft, _by_recipe(draft)))
    if draft.to_trace:
        return replace(draft, choices=for_trace(draft))
    choices = _by_recipe(draft) if draft.to_gguf else _plain(draft)
    return replace(draft, choices=choices, mixed=draft.to_gguf and _mixed(draft, choices))


def _mixed(draft: Draft, choices: Mapping[str, Choice]) -> bool:
    """Whether a mixture gives other types than the recipe alone."""
    if draft.request.types.recipe is None:
        return False
    alone = _by_recipe(replace(draft, request=draft.request.replace(recipe=None), report=Report()))
    return any(choice.type != alone[name].type for name, choice in choices.items())


def _named(draft: Draft, facts: ModelFacts) -> dict[str, tuple[str, str]]:
    """The types that a mixture gives, and by which of its rules.

    Raises:
        UsageError: a rule that cannot be meant, or none that means a tensor of this model.
    """
    mixture = draft.request.types.recipe
    if mixture is None:
        return {}
    found = mixtures.meant(mixture, list(draft.checkpoint.tensors), facts.n_layer)
    if not found.rules:
        raise UsageError(f"{draft.opened.path}: has no tensor that a rule of the recipe names; it is for another model")
    if mixture.architecture not in (None, facts.arch):
        draft.report.add(Note(f"the recipe is for {mixture.architecture}, and this is {facts.arch}"))
    if found.scaled:
        draft.report.add(
            Note(
                f"the recipe is for {mixture.block_count} blocks, and this has {facts.n_layer}: by depth they are alike"
            )
        )
    if found.idle:
        draft.report.add(Note(f"no tensor has these rules of the recipe: {few([r.tensors for r in found.idle])}"))
    return {name: (rule.type, rule.label) for name, rule in found.rules.items()}


def _by_recipe(draft: Draft) -> dict[str, Choice]:
    types, tensors, facts = draft.request.types, draft.checkpoint.tensors, _facts(draft)
    specs = [TensorSpec(name, tensor.info.shape, tensor.info.dtype.name) for name, tensor in tensors.items()]
    options = Options(
        pure=types.pure,
        tensor_types=types.tensor_types,
        output_type=types.output_type,
        embedding_type=types.embedding_type,
        leave_output=types.leave_output,
        no_fallback=types.no_fallback,
        has_imatrix=draft.weighted or _is_foreseen(draft),
        named=_named(draft, facts),
    )
    choices = assign(draft.recipe or recipe("COPY"), specs, facts, options)
    if draft.recipe is None:
        choices = {name: Choice(choice.type, "as in the source") for name, choice in choices.items()}
    if draft.stays_packed:
        packed = (spec for spec in specs if dtype(spec.source).quantized)
        choices |= {spec.name: Choice(spec.source, "kept: arrives quantized") for spec in packed}
    return choices if draft.to_graph else {name: _of_ggml(name, choice, draft) for name, choice in choices.items()}


def by_older(draft: Draft, order: Sequence[str], older: Recipe, rules: Rules = TODAY) -> dict[str, str]:
    """The types that a recipe of another year gives to a model, in the order in which its file has the tensors.

    Raises:
        QuantizationError: as `quant.recipes.assign`.
    """
    tensors = draft.checkpoint.tensors
    infos = [tensors[name].info for name in order if name in tensors]
    specs = [TensorSpec(info.name, info.shape, info.dtype.name) for info in infos]
    choices = assign(older, specs, _facts(draft), Options(has_imatrix=draft.weighted), rules)
    return {name: choice.type for name, choice in choices.items()}


def _of_ggml(name: str, choice: Choice, draft: Draft) -> Choice:
    """A type that a GGUF has; others are of graphs alone."""
    if not dtype(choice.type).scale_nbytes:
        return choice
    draft.report.add(Decoded(name, choice.type, F32.name))
    return Choice(F32.name, f"GGUF cannot hold {choice.type}")


def _is_foreseen(draft: Draft) -> bool:
    """Whether types are those that an importance matrix gives, which is not at hand."""
    own = draft.recipe
    return draft.foreseen and draft.matrix is None and own is not None and own.base in own.needs_imatrix


def _needs(draft: Draft, info: TensorInfo, types: Mapping[str, str]) -> bool:
    assert draft.recipe is not None
    return needs_imatrix(draft.recipe, info.name, types[info.name]) or needs_importance(dtype(types[info.name]))


def _facts(draft: Draft) -> ModelFacts:
    """What the mixture rules ask of a model; a number that differs per layer counts for layer 0."""
    metadata = draft.checkpoint.config
    arch = metadata.get("general.architecture")
    name = str(arch.value) if isinstance(arch, Value) else ""

    def number(key: str, default: int) -> int:
        entry = metadata.get(f"{name}.{key}")
        value = entry.values[0] if isinstance(entry, Array) and len(entry) else getattr(entry, "value", default)
        return int(value) if isinstance(value, int) else default

    n_head = number("attention.head_count", 0)
    n_head_kv, n_expert = number("attention.head_count_kv", n_head), number("expert_count", 0)
    traits = draft.mapped.architecture.traits if draft.mapped else traits_of(name)
    return ModelFacts(name, number("block_count", 0), n_head, n_head_kv, n_expert, traits)


def _plain(draft: Draft) -> dict[str, Choice]:
    asked, structure = draft.request.types.dtype, draft.checkpoint.structure
    wanted = dtype(asked) if asked else None
    if wanted is not None and (wanted.quantized or not wanted.floating):
        raise UsageError(f"--dtype {asked}: give a plain floating type such as f32, f16 or bf16")
    fixed = structure.fixed if structure is not None and wanted is not None else {}
    choices, n_kept = {}, 0
    for name, tensor in draft.checkpoint.tensors.items():
        if draft.packed is not None and name in draft.packed.bounds:
            choices[name] = Choice(tensor.info.dtype.name, f"--scheme {draft.request.types.scheme}")
            continue
        kept = name in fixed and tensor.info.dtype.floating
        choices[name] = _plain_type(tensor, None if name in fixed else wanted, draft.target, draft.report)
        if kept:
            choices[name] = replace(choices[name], rule=f"as in the source: {fixed[name]}")
        n_kept += kept and tensor.info.dtype is not wanted
    if n_kept:
        draft.report.add(
            Note(f"type kept of {counted(n_kept, 'tensor')}, which the graph relies on; `convert plan` says why")
        )
    return choices


def _plain_type(tensor: LazyTensor, wanted: DType | None, target: Format, report: Report) -> Choice:
    """The type of a tensor in a file of plain numbers, and why. What is packed becomes F32, which holds all of it."""
    own = tensor.info.dtype
    if wanted is not None and own.floating:
        return Choice(wanted.name, f"--dtype {wanted.name.lower()}")
    if own.name in target.dtypes:
        return Choice(own.name, "as in the source")
    if not own.quantized:
        raise QuantizationError(f"{tensor.name}: {target.name} cannot hold {own}")
    report.add(Decoded(tensor.name, own.name, F32.name, F32.row_nbytes(tensor.info.n_elements)))
    return Choice(F32.name, f"{target.name} cannot hold {own}")


def weigh(draft: Draft) -> Draft:
    """The entry of the importance matrix that each tensor's encoder follows, or, where it has one, of the calibration.

    Raises:
        MissingImportance, QuantizationError: as `quant.imatrix.assign_weights` and `quant.feedback.assign_feedback`.
    """
    if draft.recipe is None:
        return draft
    infos = [tensor.info for tensor in draft.checkpoint.tensors.values()]
    types = {name: choice.type for name, choice in draft.choices.items()}
    if _is_foreseen(draft):
        wanted = [info for info in infos if info.dtype.name != types[info.name] and _needs(draft, info, types)]
        draft.report.extend([ImportanceNeeded(info.name, types[info.name]) for info in wanted])
        return replace(draft, weights={info.name: Foreseen(info) for info in wanted})
    weights, events = imatrix.assign_weights(draft.matrix, draft.recipe, infos, types)
    draft.report.extend(events)
    if draft.feedback is None:
        return replace(draft, weights=weights)
    spread, events = feedback.assign_feedback(draft.feedback, infos, types)
    draft.report.extend(events)
    return replace(draft, weights={**weights, **spread})
