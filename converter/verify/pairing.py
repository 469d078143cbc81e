"""Which tensor of a target is to be compared with what of its source: the conversion planned again, not run.

The source goes through the same mapping as in a conversion, so that names, permutations and stacks are those that the
target must have. What differs already there (a tensor, a shape, a type) is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, MissingImportance
from converter.events import Report
from converter.findings import Finding
from converter.formats.base import Format
from converter.metadata import Value
from converter.planning import Route, choose_types, mapped_back, open_imatrix, route, unencoded
from converter.quant import imatrix
from converter.quant.imatrix import ImportanceMatrix
from converter.quant.recipes import RECIPES, Choice, Recipe, recipe
from converter.request import Request
from converter.tensors.dtypes import DType
from converter.tensors.encode import Importance, Watch
from converter.tensors.tensor import LazyTensor

#: Metadata that says that an importance matrix was used.
IMATRIX_KEYS = imatrix.KEYS


@dataclass(frozen=True)
class Pair:
    """A tensor of the target and what it should hold.

    `reference` are the values of the source, `rounded` the same in the type of the implied intermediate file (the same
    object where there is none); `weights` is the importance its encoder had. `explained` is False where the encoder
    followed an importance matrix that is not at hand, so that its bytes cannot be made again.
    """

    name: str
    reference: LazyTensor
    rounded: LazyTensor
    candidate: LazyTensor
    weights: Importance | None = None
    explained: bool = True


@dataclass(frozen=True)
class Pairing:
    """All pairs, and what is wrong before a value was read. `expected` are the key/values the target should have."""

    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...]
    expected: Mapping[str, object] = field(default_factory=dict)
    dialect: str | None = None
    #: tensors of the target without a partner, for what they may be
    left_over: Mapping[str, LazyTensor] = field(default_factory=dict)
    #: what lets go of the importance matrix, when all is measured
    closers: tuple[Callable[[], None], ...] = ()


def pair(source: Checkpoint, target: Checkpoint, writer: Format, request: Request) -> Pairing:
    """Pair the tensors of two checkpoints, of which `target` was made from `source`.

    Raises:
        ConverterError: the source cannot be mapped to the target's dialect.
    """
    way = route(source, writer, request)
    if target.dialect == "gguf" and (way.map or source.dialect == "gguf"):
        return _with_gguf(source, way, target, request)
    return _with_plain(source, way, writer, target, request)


# ------------------------------------------------------------------------------------------------- GGUF


def _with_gguf(source: Checkpoint, way: Route, target: Checkpoint, request: Request) -> Pairing:
    raw = unencoded(source, way, request, Report(), Watch())
    request = request.replace(quant=request.types.quant or _said_recipe(target, source))
    chosen = recipe(request.types.quant) if request.types.quant else None
    weighted = any(key in target.config for key in IMATRIX_KEYS)
    choices = choose_types(raw.tensors, raw.metadata, chosen, request, weighted or request.types.imatrix is not None)
    kept = choose_types(raw.tensors, raw.metadata, None, Request(), False)
    matrix = open_imatrix(request)
    weights = _weights(matrix, raw.tensors, chosen, target, choices) if matrix and chosen else {}
    pairs, findings = _match(raw.read, target)
    made = []
    for found in pairs:
        name, type_ = found.name, found.candidate.info.dtype.name
        unknown = weighted and matrix is None and type_ in imatrix.WEIGHTED
        made.append(replace(found, rounded=raw.tensors[name], weights=weights.get(name), explained=not unknown))
        if type_ not in (choices[name].type, kept[name].type if not (chosen and chosen.quantized) else ""):
            findings.append(_type_finding(name, type_, choices[name], chosen))
    left_over, closers = _left_over(raw.read, target), (matrix.close,) if matrix else ()
    return Pairing(tuple(made), tuple(findings), raw.metadata, "gguf", left_over, closers)


def _said_recipe(target: Checkpoint, source: Checkpoint) -> str | None:
    """The recipe that `general.file_type` names; None where the file only took over what its source had."""
    value = _number(target, "general.file_type")
    if value is None or (source.dialect == "gguf" and value == _number(source, "general.file_type")):
        return None
    return next((name for name, each in RECIPES.items() if each.file_type == value and each.base is not None), None)


def _number(checkpoint: Checkpoint, key: str) -> int | None:
    entry = checkpoint.config.get(key)
    return entry.value if isinstance(entry, Value) and type(entry.value) is int else None


def _weights(
    matrix: ImportanceMatrix,
    tensors: Mapping[str, LazyTensor],
    chosen: Recipe,
    target: Checkpoint,
    choices: Mapping[str, Choice],
) -> Mapping[str, Importance]:
    own = {name: target.tensors[name].info.dtype.name for name in choices if name in target.tensors}
    types = {name: own.get(name, choice.type) for name, choice in choices.items()}
    try:
        return imatrix.assign_weights(matrix, chosen, [tensor.info for tensor in tensors.values()], types)[0]
    except MissingImportance:
        return {}


def _type_finding(name: str, type_: str, choice: Choice, chosen: Recipe | None) -> Finding:
    said = chosen.name if chosen else "the source"
    return Finding(
        "type", name, f"is {type_}, {said} gives {choice.type} ({choice.rule})",
        hint="if that is meant, pass the options it was made with (--tensor-type, --pure ...), or --any-types",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ plain files


def _with_plain(source: Checkpoint, way: Route, writer: Format, target: Checkpoint, request: Request) -> Pairing:
    """Names as in the source, or as the mapping back to Hugging Face gives them: whichever the target has."""
    tensors: Mapping[str, LazyTensor] = source.tensors
    expected: Mapping[str, object] = source.config if source.dialect == target.dialect else {}
    if source.dialect == "gguf" and target.dialect != "gguf":
        mapped = _mapped_back(source, way, writer, request)
        if mapped is not None and _shared(mapped[0], target) >= _shared(tensors, target):
            tensors, expected = mapped
    pairs, findings = _match(tensors, target)
    dialect = "hf" if expected and target.dialect == "hf" else target.dialect if expected else None
    return Pairing(tuple(pairs), tuple(findings), expected, dialect, _left_over(tensors, target))


def _mapped_back(
    source: Checkpoint, way: Route, writer: Format, request: Request
) -> tuple[Mapping[str, LazyTensor], Mapping[str, object]] | None:
    way = way if way.map else replace(way, map="gguf->hf")
    try:
        mapped = mapped_back(source, way, writer, request, Report())
    except ArchitectureError:
        return None
    return (mapped.tensors, mapped.config) if mapped is not None else None


def _shared(tensors: Mapping[str, LazyTensor], target: Checkpoint) -> int:
    return sum(name in target.tensors for name in tensors)


# ---------------------------------------------------------------------------------------------- shared


def _match(tensors: Mapping[str, LazyTensor], target: Checkpoint) -> tuple[list[Pair], list[Finding]]:
    pairs, findings = [], []
    for name, tensor in tensors.items():
        candidate = target.tensors.get(name)
        if candidate is None:
            findings.append(_missing(name, tensor))
        elif candidate.info.shape != tensor.info.shape:
            shapes = f"has shape {_shape(candidate.info.shape)}, the source gives {_shape(tensor.info.shape)}"
            turned = candidate.info.shape == tuple(reversed(tensor.info.shape))
            findings.append(Finding("shape", name, shapes, hint="it looks transposed" if turned else ""))
        else:
            pairs.append(Pair(name, tensor, tensor, candidate))
    findings += [_extra(name, target, tensors) for name in target.tensors if name not in tensors]
    return pairs, findings


#: Output tensors that may be the embedding, by their names in both dialects.
HEADS = {"output.weight": "token_embd.weight", "lm_head.weight": "model.embed_tokens.weight"}


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
