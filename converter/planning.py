"""Plan: everything that can fail by name, shape, type or room fails here, before one output byte exists.

A plan is the target checkpoint, still unread, with the reason for every choice. Making it reads no tensor byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from converter import workers
from converter.architectures import traits_of
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, QuantizationError, UsageError
from converter.events import Decoded, Event, MetadataLost, NamesKept, Note, Report, Requantized, TypeFallback
from converter.formats.base import Format, WriteOptions
from converter.mapping.folder import with_small_files
from converter.mapping.general_keys import general_metadata
from converter.mapping.tensors import Mapped, to_gguf, to_hf
from converter.metadata import Array, Metadata, Value
from converter.quant import imatrix
from converter.quant.imatrix import ImportanceMatrix, Weights
from converter.quant.recipes import (
    RECIPES,
    Choice,
    ModelFacts,
    Options,
    Recipe,
    TensorSpec,
    assign,
    converter_type,
    recipe,
    sort_key,
)
from converter.request import Request
from converter.storage import output
from converter.storage.layout import Layout
from converter.tensors.dtypes import BF16, F16, F32, DType, dtype
from converter.tensors.encode import Watch, encoded
from converter.tensors.tensor import LazyTensor

QUANTIZATION_VERSION = 2
EXTERNAL_DATA = ("auto", "always", "never")
# Resident memory of the interpreter with numpy and this package before anything is opened.
BASE_MEMORY = 60 << 20


@dataclass(frozen=True)
class Route:
    """The stages between a checkpoint and a target format.

    N readers and M writers around one hub type give every route: Map where the dialects differ (Hugging Face names <->
    GGUF names, through the architecture), Encode where types change. `map` is the direction of renaming, "hf->gguf" or
    "gguf->hf", or None where the dialects agree.
    """

    source: str
    target: str
    map: str | None

    @property
    def stages(self) -> tuple[str, ...]:
        return ("open", *(("map " + self.map,) if self.map else ()), "encode", "save")


def route(checkpoint: Checkpoint, target: Format, request: Request) -> Route:
    """The one route from a checkpoint to `target`."""
    dialect = None if request.model.tensors_only else checkpoint.dialect
    renames = dialect is not None and target.dialect is not None and dialect != target.dialect
    return Route(checkpoint.format, target.name, f"{dialect}->{target.dialect}" if renames else None)


@dataclass(frozen=True)
class Step:
    """One tensor of the output: where it comes from, what it becomes, and why.

    `imatrix` says whether its encoder follows an entry of the importance matrix.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    source_type: str
    type: str
    bytes: int
    rule: str
    imatrix: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "sources": list(self.sources), "shape": list(self.shape)}


@dataclass(frozen=True)
class Plan:
    """A conversion that can be printed, compared and run. Holds no data."""

    source: Path
    target: Path
    route: Route
    steps: tuple[Step, ...]
    checkpoint: Checkpoint
    layout: Layout
    report: Report
    watch: Watch = field(repr=False)

    @property
    def total_bytes(self) -> int:
        return self.layout.size

    @property
    def n_parameters(self) -> int:
        return sum(tensor.info.n_elements for tensor in self.checkpoint.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        stored = sum(step.bytes for step in self.steps)
        return 8 * stored / self.n_parameters if self.n_parameters else 0.0

    def memory(self, threads: int | None = None) -> int:
        """Peak resident bytes that running the plan should need."""
        working = output.working_nbytes(self.layout, threads or workers.default_threads())
        header = sum(len(file.header) for file in self.layout.files)
        return BASE_MEMORY + 4 * header + working + (64 << 20)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "source": str(self.source),
            "target": str(self.target),
            "stages": list(self.route.stages),
            "tensors": [step.as_dict() for step in self.steps],
            "files": [{"path": str(file.path), "bytes": file.size} for file in self.layout.files],
            "parameters": self.n_parameters,
            "total_bytes": self.total_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "memory_bytes": self.memory(),
            "events": self.report.as_json(),
        }

    def __str__(self) -> str:
        return json.dumps(self.as_dict(), indent=1)


def build(checkpoint: Checkpoint, target: Path, target_format: Format, request: Request) -> Plan:
    """Decide everything about a conversion.

    Raises:
        ConverterError: whatever makes it impossible, as its kind.
    """
    report = Report(strict=request.output.strict)
    report.extend(list(checkpoint.events))
    way = route(checkpoint, target_format, request)
    _check_request(checkpoint, target_format, request)
    watch = Watch(request.output.strict)
    if checkpoint.structure is not None and target_format.name != checkpoint.format:
        report.extend(list(checkpoint.structure.leave()))
        checkpoint = checkpoint.replace(structure=None)
    if target_format.dialect == "gguf":
        result, steps = _gguf(checkpoint, way, request, report, watch)
    else:
        result, steps, way = _dense(checkpoint, way, target_format, request, report, watch)
    assert target_format.layout is not None
    wishes = request.output
    options = WriteOptions(wishes.split_max_size, wishes.split_max_tensors, wishes.external_data)
    layout = target_format.layout(result, target, options)
    report.extend(list(layout.events))
    report.extend(_lost_texts(checkpoint, target_format))
    return Plan(checkpoint.path, target, way, tuple(steps), result, layout, report, watch)


def _lost_texts(checkpoint: Checkpoint, target: Format) -> list[Event]:
    """What the container says in free texts that the target has no place for; which framework it was for is no loss."""
    if target.texts is None:
        return []
    kept = target.texts | {"format"}
    return [MetadataLost(key, f"{target.name} holds no free texts") for key in checkpoint.metadata if key not in kept]


def _check_request(checkpoint: Checkpoint, target: Format, request: Request) -> None:
    if request.types.quant and target.dialect != "gguf":
        raise UsageError(
            f"--quant {request.types.quant}: {target.name} holds plain types; --dtype f16|bf16|f32 is for it"
        )
    _check_imatrix(request)
    if request.types.dtype and target.dialect == "gguf":
        raise UsageError(f"--dtype {request.types.dtype}: for GGUF output say --quant {request.types.dtype}")
    if request.output.external_data not in EXTERNAL_DATA:
        raise UsageError(f"--external-data {request.output.external_data}: say {', '.join(EXTERNAL_DATA)}")
    if request.output.external_data != "auto" and target.name != "onnx":
        raise UsageError(f"--external-data {request.output.external_data}: only ONNX has data files, not {target.name}")
    if target.dialect == "gguf" and checkpoint.dialect is None and not request.model.tensors_only:
        raise ArchitectureError(
            f"{checkpoint.path}: no config.json beside it, so the names cannot be mapped to GGUF\n"
            "--config DIR takes config and tokenizer from a folder, --tensors-only keeps names as they are"
        )


def _check_imatrix(request: Request) -> None:
    if request.types.imatrix is not None and (request.types.quant is None or recipe(request.types.quant).base is None):
        raise UsageError("--imatrix has no effect without a type to encode to; say --quant TYPE")
    if request.types.imatrix is None and (request.types.include_weights or request.types.exclude_weights):
        raise UsageError("--include-weights and --exclude-weights choose from an importance matrix: pass --imatrix")
    if request.types.include_weights and request.types.exclude_weights:
        raise UsageError("--include-weights and --exclude-weights cannot be used together")


# ----------------------------------------------------------------------------------------- GGUF output


@dataclass(frozen=True)
class Unencoded:
    """What a GGUF will hold, before its tensors get their types.

    `read` are the tensors as they were read and mapped; `tensors` the same in the types of the implied intermediate.
    """

    read: dict[str, LazyTensor]
    tensors: dict[str, LazyTensor]
    metadata: Metadata


def unencoded(checkpoint: Checkpoint, way: Route, request: Request, report: Report, watch: Watch) -> Unencoded:
    """The tensors of a GGUF made of `checkpoint` under their GGUF names, and its key/values.

    Raises:
        ArchitectureError, TokenizerError: what makes the mapping impossible.
    """
    if not way.map:
        same = dict(checkpoint.tensors)
        return Unencoded(same, same, dict(checkpoint.config) if checkpoint.dialect == "gguf" else {})
    mapped = to_gguf(checkpoint, request.model.arch)
    report.extend(list(mapped.events))
    metadata = _hf_metadata(checkpoint, mapped, request, report)
    return Unencoded(mapped.tensors, _intermediate(mapped.tensors, request, watch), metadata)


def _gguf(
    checkpoint: Checkpoint, way: Route, request: Request, report: Report, watch: Watch
) -> tuple[Checkpoint, list[Step]]:
    chosen = recipe(request.types.quant) if request.types.quant is not None else None
    matrix = open_imatrix(request)
    raw = unencoded(checkpoint, way, request, report, watch)
    tensors, metadata = raw.tensors, raw.metadata
    choices = choose_types(tensors, metadata, chosen, request, matrix is not None)
    weights = _weights(matrix, chosen, tensors, choices, report)
    results, steps = {}, []
    for name in sorted(choices, key=sort_key):
        choice, importance = choices[name], weights.get(name)
        watching = watch if tensors[name] is raw.read[name] else watch.again()
        results[name] = _retyped(tensors[name], choice, importance, request, report, watching)
        steps.append(_step(tensors[name], results[name], _reason(choice), importance is not None))
    _set_type(metadata, chosen, tensors)
    result = checkpoint.replace(tensors=results, config=metadata, dialect="gguf", metadata={})
    return (_with_imatrix(result, metadata, matrix) if matrix else result), steps


def open_imatrix(request: Request) -> ImportanceMatrix | None:
    """The importance matrix that the request names."""
    if request.types.imatrix is None:
        return None
    return imatrix.open_imatrix(
        Path(request.types.imatrix), request.types.include_weights, request.types.exclude_weights
    )


def _weights(
    matrix: ImportanceMatrix | None,
    chosen: Recipe | None,
    tensors: Mapping[str, LazyTensor],
    choices: Mapping[str, Choice],
    report: Report,
) -> dict[str, Weights]:
    if chosen is None:
        return {}
    infos = [tensor.info for tensor in tensors.values()]
    weights, events = imatrix.assign_weights(matrix, chosen, infos, {name: c.type for name, c in choices.items()})
    report.extend(events)
    return weights


def _with_imatrix(result: Checkpoint, metadata: Metadata, matrix: ImportanceMatrix) -> Checkpoint:
    """`result`, which also reads from the matrix and says so; what an earlier quantization said of its own goes."""
    own = {key: value for key, value in metadata.items() if key not in imatrix.KEYS}
    return result.replace(
        config={**own, **matrix.metadata()},
        files=(*result.files, matrix.path),
        closers=(*result.closers, matrix.close),
    )


def _intermediate(tensors: Mapping[str, LazyTensor], request: Request, watch: Watch) -> dict[str, LazyTensor]:
    """Tensors in the types that the reference's 16-bit (or F32) intermediate file would have.

    With `--via source` that type is the tensor's own, so nothing is rounded on the way.
    """
    result = {}
    for name, tensor in tensors.items():
        own = tensor.info.dtype
        outtype = _nearest_float(own) if request.types.via == "source" else dtype(request.types.via)
        wanted = dtype(converter_type(name, tensor.info.shape, own.name, outtype.name).type)
        result[name] = tensor if own is wanted else encoded(tensor, wanted, watch)
    return result


def _nearest_float(own: DType) -> DType:
    """The GGUF type that holds every value of `own`, or the widest there is."""
    if own in (F32, F16, BF16) or own.quantized:
        return own
    return BF16 if own.name.startswith("F8") else F32


def choose_types(
    tensors: Mapping[str, LazyTensor], metadata: Metadata, chosen: Recipe | None, request: Request, has_imatrix: bool
) -> dict[str, Choice]:
    """The type of each tensor of a GGUF, and why; `chosen` None keeps them."""
    specs = [TensorSpec(name, tensor.info.shape, tensor.info.dtype.name) for name, tensor in tensors.items()]
    facts = _facts(metadata)
    options = Options(
        pure=request.types.pure,
        tensor_types=request.types.tensor_types,
        output_type=request.types.output_type,
        embedding_type=request.types.embedding_type,
        leave_output=request.types.leave_output,
        no_fallback=request.types.no_fallback,
        has_imatrix=has_imatrix,
    )
    choices = assign(chosen or recipe("COPY"), specs, facts, options)
    if chosen is None:
        choices = {name: Choice(choice.type, "as in the source") for name, choice in choices.items()}
    return choices


def _facts(metadata: Metadata) -> ModelFacts:
    """What the mixture rules ask of a model; a number that differs per layer counts for layer 0."""
    arch = metadata.get("general.architecture")
    name = str(arch.value) if isinstance(arch, Value) else ""

    def number(key: str, default: int) -> int:
        entry = metadata.get(f"{name}.{key}")
        value = entry.values[0] if isinstance(entry, Array) and len(entry) else getattr(entry, "value", default)
        return int(value) if isinstance(value, int) else default

    n_head = number("attention.head_count", 0)
    n_head_kv, n_expert = number("attention.head_count_kv", n_head), number("expert_count", 0)
    return ModelFacts(name, number("block_count", 0), n_head, n_head_kv, n_expert, traits_of(name))


def _retyped(
    tensor: LazyTensor, choice: Choice, weights: Weights | None, request: Request, report: Report, watch: Watch
) -> LazyTensor:
    own, wanted = tensor.info.dtype, dtype(choice.type)
    if choice.fallback_from:
        report.add(TypeFallback(tensor.name, choice.fallback_from, choice.type, tensor.info.row))
    if own.quantized and own is not wanted:
        if not request.types.allow_requantize:
            raise QuantizationError(
                f"{tensor.name}: already quantized as {own}; encoding it again as {wanted} loses more\n"
                "convert the original model, or pass --allow-requantize"
            )
        report.add(Requantized(tensor.name, own.name, wanted.name))
    return encoded(tensor, wanted, watch, weights)


def _reason(choice: Choice) -> str:
    return choice.rule + (f"; rows do not fit {choice.fallback_from} -> {choice.type}" if choice.fallback_from else "")


def _step(source: LazyTensor, result: LazyTensor, rule: str, weighted: bool = False) -> Step:
    info, origin = result.info, source.info.dtype.name
    parts = source.parts or (source.name,)
    return Step(info.name, parts, info.shape, origin, info.dtype.name, info.nbytes, rule, weighted)


def _set_type(metadata: Metadata, chosen: Recipe | None, tensors: Mapping[str, LazyTensor]) -> None:
    """The two keys that say what the file is; like the reference's quantizer, they go to the end."""
    file_type = chosen.file_type if chosen else None
    if file_type is None:
        old = getattr(metadata.get("general.file_type"), "value", None)
        file_type = old if type(old) is int and 0 <= old < 1 << 32 else _dense_file_type(tensors)
    for key, value in (
        ("general.quantization_version", Value("u32", QUANTIZATION_VERSION)),
        ("general.file_type", Value("u32", file_type)),
    ):
        metadata.pop(key, None)
        metadata[key] = value


def _dense_file_type(tensors: Mapping[str, LazyTensor]) -> int:
    largest = max(
        (tensor.info for tensor in tensors.values() if len(tensor.info.shape) > 1),
        key=lambda info: info.n_elements,
        default=None,
    )
    name = largest.dtype.name if largest is not None and largest.dtype.name in RECIPES else "F32"
    return RECIPES[name].file_type or 0


def _hf_metadata(checkpoint: Checkpoint, mapped: Mapped, request: Request, report: Report) -> Metadata:
    """All key/values of a GGUF made from a Hugging Face model, in the reference's order."""
    shapes = {name: tensor.info.shape for name, tensor in mapped.tensors.items()}
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    general, events = general_metadata(folder.resolve().name, checkpoint.assets, shapes, name=request.model.name)
    report.extend(events)
    first: Metadata = {"general.architecture": Value("str", mapped.architecture.gguf), **mapped.early}
    metadata: Metadata = {**first, **general, **mapped.config}
    if not request.model.no_tokenizer:
        metadata.update(_tokenizer(checkpoint, mapped, request, report))
    return metadata


def _tokenizer(checkpoint: Checkpoint, mapped: Mapped, request: Request, report: Report) -> Metadata:
    from converter.tokenizers import read_tokenizer  # costs as much to import as all the rest

    tokenizer = read_tokenizer(
        checkpoint.assets,
        checkpoint.config,
        n_rows=mapped.hparams["n_vocab"],
        style=mapped.architecture.traits.tokenizer,
        pre=request.model.pre,
    )
    report.extend(list(tokenizer.events))
    return tokenizer.metadata


# ---------------------------------------------------------------------------------------- plain output


def _dense(
    checkpoint: Checkpoint, way: Route, target: Format, request: Request, report: Report, watch: Watch
) -> tuple[Checkpoint, list[Step], Route]:
    tensors, config, metadata = dict(checkpoint.tensors), checkpoint.config, dict(checkpoint.metadata)
    mapped = mapped_back(checkpoint, way, target, request, report)
    if mapped is not None:
        tensors, config, metadata = mapped.tensors, mapped.config, {"format": "pt"}
    elif way.map:
        way = replace(way, map=None)
    wanted = dtype(request.types.dtype) if request.types.dtype else None
    if wanted is not None and (wanted.quantized or not wanted.floating):
        raise UsageError(f"--dtype {request.types.dtype}: give a plain floating type such as f32, f16 or bf16")
    fixed = checkpoint.structure.fixed if checkpoint.structure is not None and wanted is not None else {}
    results, steps, n_kept = {}, [], 0
    for name, tensor in tensors.items():
        type_, rule = _plain_type(tensor, None if name in fixed else wanted, target, report)
        results[name] = encoded(tensor, type_, watch)
        kept = name in fixed and tensor.info.dtype.floating
        steps.append(_step(tensor, results[name], f"as in the source: {fixed[name]}" if kept else rule))
        n_kept += kept and tensor.info.dtype is not wanted
    if n_kept:
        report.add(Note(f"{n_kept} tensors keep their type, which the graph relies on; `convert plan` says why"))
    result = checkpoint.replace(tensors=results, config=config, metadata=metadata, dialect=target.dialect)
    if target.folder:
        result, events = with_small_files(result, checkpoint, mapped, tokenizer=not request.model.no_tokenizer)
        report.extend(events)
    return result, steps, way


def mapped_back(checkpoint: Checkpoint, way: Route, target: Format, request: Request, report: Report) -> Mapped | None:
    """The checkpoint under Hugging Face names, which a model's folder must have.

    A single file of tensors is of use under any names: where no architecture answers, it keeps them.
    """
    if not way.map:
        return None
    try:
        mapped = to_hf(checkpoint, request.model.arch)
    except ArchitectureError as error:
        if request.model.arch or target.folder:
            raise
        report.add(NamesKept(str(error).splitlines()[0]))
        return None
    report.extend(list(mapped.events))
    return mapped


def _plain_type(tensor: LazyTensor, wanted: DType | None, target: Format, report: Report) -> tuple[DType, str]:
    """The type of a tensor in a file of plain numbers, and why. What is packed becomes F32, which holds all of it."""
    own = tensor.info.dtype
    if wanted is not None and own.floating:
        return wanted, f"--dtype {wanted.name.lower()}"
    if own.name in target.dtypes:
        return own, "as in the source"
    if not own.quantized:
        raise QuantizationError(f"{tensor.name}: {target.name} cannot hold {own}")
    report.add(Decoded(tensor.name, own.name, F32.name))
    return F32, f"{target.name} cannot hold {own}"
