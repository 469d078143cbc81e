"""Which tensor of a target is to be compared with what of its source: the steps of the conversion, planned again.

The source goes through the same mapping as in a conversion, so that names, permutations and stacks are those that the
target must have. What differs already there (a tensor, a shape, a type) is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, MissingImportance, UnsupportedFeature, UsageError
from converter.events import Report, SettingLost
from converter.findings import Finding
from converter.formats.base import Format
from converter.formats.onnx.program import TRACED_KEY
from converter.graphs import origin
from converter.graphs.blocks import rounded
from converter.graphs.model import Model as GraphModel
from converter.mapping.view import HEADS, view
from converter.metadata import number_of, text_of
from converter.planning.draft import Draft, begin, run
from converter.planning.passes import MODEL
from converter.planning.plan import Step
from converter.planning.said import EFFORT_KEY, TYPES_KEY
from converter.planning.types import choose, open_calibration, open_matrix, weigh
from converter.quant import feedback, imatrix
from converter.quant.mixtures import digest
from converter.quant.recipes import RECIPES, Choice, Recipe
from converter.quant.sources import scheme_of
from converter.quant.targets import told
from converter.request import EFFORTS, Request
from converter.tensors import kernels
from converter.tensors.dtypes import F16, F32, INT8, DType, dtype
from converter.tensors.encode import Feedback, Importance, encoded
from converter.tensors.operands import KINDS
from converter.tensors.tensor import LazyTensor
from converter.verify.experts import as_in

#: Metadata that says that an importance matrix was used.
IMATRIX_KEYS = imatrix.KEYS


@dataclass(frozen=True)
class Pair:
    """A tensor of the target and what it should hold.

    `reference` are the values of the source, `rounded` the same in the type of the implied intermediate file (the same
    object where there is none); `weights` is the importance its encoder had, `effort` how
    hard it tried. `explained` is False where the encoder
    followed an importance matrix or a calibration that is not at hand, so that its bytes cannot be made again;
    `spread` is whether errors were spread by a calibration, at hand or not, so that no bound of its type holds.
    """

    name: str
    reference: LazyTensor
    rounded: LazyTensor
    candidate: LazyTensor
    weights: Importance | None = None
    effort: int = 0
    explained: bool = True
    spread: bool = False


@dataclass(frozen=True)
class Pairing:
    """All pairs, and what is wrong before a value was read. `expected` are the key/values the target should have."""

    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...]
    expected: Mapping[str, object] = field(default_factory=dict)
    #: tensors of the target without a partner, for what they may be
    left_over: Mapping[str, LazyTensor] = field(default_factory=dict)
    #: what lets go of the importance matrix and the calibration, when all is measured
    closers: tuple[Callable[[], None], ...] = ()
    #: the file of the calibration that was found or given
    calibration: Path | None = None


def pair(source: Checkpoint, target: Checkpoint, writer: Format, request: Request) -> Pairing:
    """Pair the tensors of two checkpoints, of which `target` was made from `source`.

    Raises:
        ConverterError: the source cannot be mapped to the target's dialect.
    """
    if target.dialect == "gguf" and text_of(target.config, "general.type") == "mmproj":
        request = request.replace(mmproj=True)
    if target.stored is not None:  # what is compared is what both mean
        source = source.replace(stored=None)
    if writer.runs and not view(target).keyed:
        request = request.replace(tensors_only=True)
    draft = begin(source, writer, request.replace(strict=False))
    if draft.to_gguf and (draft.route.map or view(source).keyed):
        return _with_gguf(draft, target)
    return _with_plain(draft, target)


# ------------------------------------------------------------------------------------------------- GGUF


def _with_gguf(draft: Draft, target: Checkpoint) -> Pairing:
    weighted = any(key in target.config for key in IMATRIX_KEYS)
    quant = draft.request.types.quant or (None if _kept(draft, target) else _said_recipe(target, draft.opened))
    calibrate = _calibrate(draft, target)
    effort = said_effort(target, draft.request.types.effort)
    request = draft.request.replace(quant=quant, effort=effort, calibrate=calibrate)
    passes = (*MODEL, partial(as_in, target), open_matrix, open_calibration, choose)
    draft = run(replace(draft, request=request, weighted=weighted), passes)
    calibrated = feedback.said_calibration(target.config)
    _check_calibration(draft, calibrated, target)
    if draft.to_graph:
        draft = replace(draft, choices=_as_calculated(draft.choices, target))
    recorded = draft.request.types.recipe is None and not draft.to_graph and _is_recorded(target)
    if recorded:
        draft = replace(draft, choices=_as_recorded(draft.choices, target))
    steps, recipe = {step.name: step for step in _weighed(draft, target)}, draft.recipe
    pairs, findings = _match(_wanted(draft), target)
    if recorded:
        findings.append(Finding("type", TYPES_KEY, "types are those of a recipe file, as was recorded", failed=False))
    not_here = calibrated is not None and draft.feedback is None
    made, unproven = [], 0
    for found in pairs:
        step, type_ = steps[found.name], found.candidate.info.dtype.name
        spread = isinstance(step.weights, Feedback) or (not_here and _may_be_spread(found))
        unproven += spread and not_here
        unknown = (weighted and draft.matrix is None and type_ in imatrix.WEIGHTED) or (spread and not_here)
        if draft.to_graph and type_ == F32.name and step.type in KINDS:
            made.append(replace(found, rounded=_with_short_scales(step, draft), explained=not unknown))
            continue
        made.append(
            replace(
                found, rounded=step.intermediate, weights=step.weights, effort=step.effort, explained=not unknown,
                spread=spread,
            )
        )  # fmt: skip
        if type_ != step.type and (type_ != step.source_type or (recipe is not None and recipe.quantized)):
            findings.append(_type_finding(step, type_, recipe))
    lost = (event for event in draft.report.events if isinstance(event, SettingLost))
    findings += [Finding("metadata", f"config.json: {event.key}", event.told, failed=False) for event in lost]
    findings += [_not_here(target, calibrated, unproven)] if calibrated is not None and unproven else []
    closers = tuple(opened.close for opened in (draft.matrix, draft.feedback) if opened is not None)
    calibration = None if draft.feedback is None else draft.feedback.path
    expected, left_over = _keys(draft, target), _left_over(draft.read, target)
    return Pairing(tuple(made), tuple(findings), expected, left_over, closers, calibration)


def _wanted(draft: Draft) -> Mapping[str, LazyTensor]:
    """The tensors that the target must have: a graph does without some."""
    if not draft.to_graph:
        return draft.read
    read = _model(draft).read
    return {name: tensor for name, tensor in draft.read.items() if name in read}


def _model(draft: Draft) -> GraphModel:
    return GraphModel.of(dict(draft.checkpoint.config), draft.read)


def said_effort(target: Checkpoint, asked: int = 0) -> int:
    """How hard the encoders of a file tried: as was asked for, or as it says.

    Raises:
        UnsupportedFeature: harder than any here does.
    """
    effort = asked or number_of(target.config, EFFORT_KEY) or 0
    if effort not in EFFORTS:
        raise UnsupportedFeature(
            f"{target.path}: {EFFORT_KEY} is {effort}, which no encoder here knows; a newer version wrote it?"
        )
    return effort


def _calibrate(draft: Draft, target: Checkpoint) -> Path | None:
    """The calibration that the target was made with: as was asked for, or that which lies beside it or the source."""
    asked, said = draft.request.types.calibrate, feedback.said_calibration(target.config)
    if asked is not None or not said:
        return asked
    found = (feedback.beside(path, said) for path in (target.path, draft.opened.path))
    return next((each for each in found if each is not None), None)


def _check_calibration(draft: Draft, said: str | None, target: Checkpoint) -> None:
    """Refuse another calibration than the target's.

    Raises:
        UsageError: as said.
    """
    given = draft.feedback
    if given is not None and said is not None and given.sha256 != said:
        given.close()
        raise UsageError(
            f"--calibrate {given.path}: is another calibration ({given.sha256[:12]}) than that which {target.path} "
            f"was made with ({said[:12] or 'not said'})"
        )


def _may_be_spread(pair: Pair) -> bool:
    own, info = pair.reference.info.dtype, pair.candidate.info
    return info.dtype.name in kernels.FEEDBACK and own is not info.dtype and len(info.shape) > 1


def _not_here(target: Checkpoint, said: str, count: int) -> Finding:
    return Finding(
        "calibration", str(target.path),
        f"{count} tensors may be made with a calibration that is not here ({said[:12] or 'no digest'}): "
        "their errors are measured, their bytes are not proven",
        failed=False, hint=f"--calibrate FILE{feedback.SUFFIX} encodes with it and compares bytes",
    )  # fmt: skip


def _as_calculated(choices: Mapping[str, Choice], target: Checkpoint) -> dict[str, Choice]:
    """The choices, with the type that a graph calculates in where they are plain numbers: that is its own affair."""
    made = dict(choices)
    for name, choice in choices.items():
        tensor = target.tensors.get(name)
        if tensor is not None and {tensor.info.dtype.name, choice.type} <= {F32.name, F16.name}:
            made[name] = replace(choice, type=tensor.info.dtype.name)
    return made


def _is_recorded(target: Checkpoint) -> bool:
    """Whether the target says that its types are a mixture's. By their digest: none that was changed since is."""
    types = {name: tensor.info.dtype.name for name, tensor in target.tensors.items()}
    return text_of(target.config, TYPES_KEY) == digest(types)


def _as_recorded(choices: Mapping[str, Choice], target: Checkpoint) -> dict[str, Choice]:
    """The choices, with the types that the target has."""
    own = {name: tensor.info.dtype.name for name, tensor in target.tensors.items()}
    return {name: replace(choice, type=own.get(name, choice.type)) for name, choice in choices.items()}


def _with_short_scales(step: Step, draft: Draft) -> LazyTensor:
    """The numbers of blocks in a graph that has finer scales than F16 in F16."""
    return rounded(encoded(step.intermediate, dtype(step.type), draft.watch, step.weights, step.effort))


def _keys(draft: Draft, target: Checkpoint) -> Mapping[str, object]:
    """The keys that the target must have; a graph's tokenizer is in files beside it."""
    keys = draft.checkpoint.config
    if draft.to_graph:
        return origin.keys(_model(draft))
    if draft.opened.stored is None or not view(draft.opened).keyed:
        return keys
    return {**keys, **(view(draft.opened).tokenizer() or {})}


def _kept(draft: Draft, target: Checkpoint) -> bool:
    """Whether the target has the types that keeping the codes of a source which arrives quantized gives."""
    if scheme_of(draft.opened) is None:
        return False
    given = run(replace(draft, report=Report()), MODEL).intermediate
    own = {name: tensor.info.dtype for name, tensor in target.tensors.items()}
    return all(own.get(name, tensor.info.dtype) is tensor.info.dtype for name, tensor in given.items())


def _said_recipe(target: Checkpoint, source: Checkpoint) -> str | None:
    """The recipe that `general.file_type` names, or a graph's types; None where it only took over its source's."""
    if any(tensor.info.dtype is INT8 for tensor in target.tensors.values()):
        return INT8.name
    same = number_of(target.config, "general.file_type") == number_of(source.config, "general.file_type")
    return None if same else named_recipe(target)


def named_recipe(model: Checkpoint) -> str | None:
    """The recipe that `general.file_type` names; None where it says none."""
    value = number_of(model.config, "general.file_type")
    named = (name for name, each in RECIPES.items() if each.file_type == value and each.base is not None)
    return None if value is None else next(named, None)


def _weighed(draft: Draft, target: Checkpoint) -> tuple[Step, ...]:
    """The steps of a draft, with the importance that encoders of the types which the target has would follow."""
    own = {name: tensor.info.dtype.name for name, tensor in target.tensors.items()}
    types = {name: replace(choice, type=own.get(name, choice.type)) for name, choice in draft.choices.items()}
    try:
        known = draft.matrix is not None or draft.feedback is not None
        weights = run(replace(draft, choices=types), (weigh,)).weights if known else {}
    except MissingImportance:
        weights = {}
    return replace(draft, weights=weights).steps


def _type_finding(step: Step, type_: str, recipe: Recipe | None) -> Finding:
    said = recipe.name if recipe else "the source"
    return Finding(
        "type", step.name, f"is {type_}, {said} gives {step.type} ({step.choice.rule})",
        hint="if that is meant, pass what it was made with (--recipe, --tensor-type, --pure ...), or --any-types",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ plain files


def _with_plain(draft: Draft, target: Checkpoint) -> Pairing:
    """Names as in the source, or as the mapping back to Hugging Face gives them: whichever the target has."""
    source = draft.opened
    arrived, made = scheme_of(source, typed=False), scheme_of(target, typed=False)
    if arrived is not None and made is None:
        draft = replace(draft, request=draft.request.replace(dtype=F32.name))  # the numbers, not the codes
    if made is not None and made != arrived:  # else the codes were taken over as they are
        scheme = draft.request.types.scheme or told(target.config)
        draft = replace(draft, request=draft.request.replace(scheme=scheme))
    own = run(_routed(draft, None), MODEL)
    tensors = own.read
    expected: Mapping[str, object] = own.opened.config if source.dialect == target.dialect else {}
    if view(source).keyed and not view(target).keyed:
        mapped = _mapped_back(draft)
        if mapped is not None and _shared(mapped.read, target) >= _shared(tensors, target):
            tensors, expected = mapped.read, mapped.checkpoint.config
    pairs, findings = _match(tensors, target)
    if TRACED_KEY in target.metadata:
        findings = _of_a_traced(findings)
    return Pairing(tuple(pairs), tuple(findings), expected, _left_over(tensors, target))


def _of_a_traced(findings: Sequence[Finding]) -> list[Finding]:
    """A traced graph has constants of its own, and leaves tensors out that it has no use for."""
    own = [each for each in findings if each.check == "extra"]
    rest = [replace(each, failed=each.failed and each.check not in ("missing", "tied")) for each in findings]
    told = (
        [Finding("extra", own[0].subject, f"and {len(own) - 1} more are the graph's own", failed=False)] if own else []
    )
    return [*(each for each in rest if each.check != "extra"), *told]


def _routed(draft: Draft, map: str | None) -> Draft:
    return replace(draft, route=replace(draft.route, map=map))


def _mapped_back(draft: Draft) -> Draft | None:
    try:
        mapped = run(_routed(draft, "gguf->hf"), MODEL)
    except ArchitectureError:
        return None
    return mapped if mapped.route.map else None


def _shared(tensors: Mapping[str, LazyTensor], target: Checkpoint) -> int:
    return sum(name in target.tensors for name in tensors)


# ---------------------------------------------------------------------------------------------- shared


def _match(tensors: Mapping[str, LazyTensor], target: Checkpoint) -> tuple[list[Pair], list[Finding]]:
    pairs, findings = [], []
    for name, tensor in tensors.items():
        candidate = target.tensors.get(name)
        if candidate is None:
            findings.append(_missing(name, tensor))
        elif not _same_shape(candidate.info.shape, tensor.info.shape, target):
            shapes = f"has shape {_shape(candidate.info.shape)}, the source gives {_shape(tensor.info.shape)}"
            turned = candidate.info.shape == tuple(reversed(tensor.info.shape))
            findings.append(Finding("shape", name, shapes, hint="it looks transposed" if turned else ""))
        else:
            pairs.append(Pair(name, tensor, tensor, candidate))
    findings += [_extra(name, target, tensors) for name in target.tensors if name not in tensors]
    return pairs, findings


def _same_shape(one: tuple[int, ...], other: tuple[int, ...], target: Checkpoint) -> bool:
    """Whether two shapes are the same; ggml does not count outer axes of one, and llama-quantize drops them."""
    if target.dialect != "gguf":
        return one == other
    return _without_outer_ones(one) == _without_outer_ones(other)


def _without_outer_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _missing(name: str, tensor: LazyTensor) -> Finding:
    if name in HEADS:
        return Finding(
            "tied", name, "is not there, but the source has an output of its own",
            hint=f"a runtime would use {HEADS[name]} instead",
        )  # fmt: skip
    return Finding("missing", name, f"is not there; the source has it as {', '.join(tensor.parts or (tensor.name,))}")


def _extra(name: str, target: Checkpoint, tensors: Mapping[str, LazyTensor]) -> Finding:
    twin = HEADS.get(name)
    if twin is not None and twin in target.tensors and twin in tensors:
        return Finding("tied", name, "is there, but the source ties it to the embedding", failed=False)
    return Finding("extra", name, "is not in the source")


def _left_over(tensors: Mapping[str, LazyTensor], target: Checkpoint) -> dict[str, LazyTensor]:
    return {name: tensor for name, tensor in target.tensors.items() if name not in tensors}


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def holds(candidate: DType, reference: DType) -> bool:
    """Whether `candidate` holds every value of `reference`, so that a conversion loses nothing."""
    if candidate is reference:
        return True
    wider = {"F64": 4, "F32": 3, "F16": 1, "BF16": 2}
    if candidate.name not in wider:
        return False
    if reference.quantized or reference.name == "F8_E8M0":
        return wider[candidate.name] >= 3
    if reference.name in wider:
        narrow = wider[reference.name]
        return wider[candidate.name] > narrow and not (candidate.name == "BF16" and reference.name == "F16")
    return reference.floating or (reference.numpy is not None and reference.numpy.itemsize <= 2)
