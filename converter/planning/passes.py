"""The passes: from an opened checkpoint to the files to be. Everything that can fail by name, shape or type fails here.

`PASSES` is the whole way, in groups, because not everybody goes all of it: `convert verify` stops where types are
chosen, `convert compare` goes through what the model is once, and through the rest for every quant. A new stage
(checkpoints that arrive quantized, adapters, a search for types) is one more function in one group.
No pass reads a tensor byte, but the zero points and the like that tell what holds codes which arrive quantized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.adapters.merge import merged
from converter.adapters.to_gguf import adapter_to_gguf
from converter.architectures import traits_of
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, QuantizationError, UnsupportedFeature, UsageError
from converter.events import Decoded, Event, MetadataLost, NamesKept, Note, Report, Requantized, TypeFallback
from converter.formats.base import Format, WriteOptions
from converter.formats.gguf import open_gguf
from converter.formats.hf_folder import beside_weights
from converter.graphs.decoder import decoder
from converter.graphs.encoder import encoder
from converter.graphs.experts import is_of_experts
from converter.graphs.model import Model as GraphModel
from converter.mapping.companions import normalises
from converter.mapping.folder import with_small_files
from converter.mapping.general_keys import default_file_name, general_metadata
from converter.mapping.tensors import Translation, projector_to_gguf, to_gguf, to_hf
from converter.mapping.view import tokenizer_beside
from converter.metadata import Array, Metadata, Value
from converter.planning.draft import Draft
from converter.planning.plan import Step
from converter.quant import imatrix
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
)
from converter.quant.sources import unpacked
from converter.quant.targets import packed, target
from converter.request import KEEP_CODES, SCALES, Model, Request, Types
from converter.storage.files import remembering
from converter.storage.layout import Layout
from converter.tensors.dtypes import BF16, F16, F32, DType, dtype
from converter.tensors.encode import Watch, encoded
from converter.tensors.nvfp4 import parted
from converter.tensors.operands import KINDS as PACKABLE
from converter.tensors.tensor import LazyTensor

QUANTIZATION_VERSION = 2
PLAIN = ("F32", "F16", "BF16")
#: `general.file_type` of what only arrives packed, or has a recipe under another name.
_FILE_TYPES = {"MXFP4": 38, "NVFP4": 39}
EXTERNAL_DATA = ("auto", "always", "never")


# ---------------------------------------------------------------------------- what is asked of this source


def check(draft: Draft) -> Draft:
    """Refuse what contradicts itself, the source or the target.

    Raises:
        UsageError: options that do not go together, or have no effect on this target.
        ArchitectureError: nothing says what the names would be in a GGUF.
    """
    target, request = draft.target, draft.request
    if request.types.quant and not draft.to_gguf:
        raise UsageError(
            f"--quant {request.types.quant}: {target.name} holds plain types; --dtype f16|bf16|f32 is for it"
        )
    if request.types.scheme and not target.folder:
        raise UsageError(
            f"--scheme {request.types.scheme}: packs the weights of a folder; end the output's name in a slash"
        )
    if draft.whole and not target.folder and not draft.to_graph:
        raise UsageError(f"{draft.path}: a folder of {target.name} is for models that run; a file takes tensors alone")
    if request.types.scale != SCALES[0] and not request.types.scheme:
        raise UsageError(f"--scale {request.types.scale}: says how --scheme finds scales, and has no effect without")
    _check_imatrix(request.types)
    if draft.opened.dialect == "peft" and target.dialect != "peft":
        _check_adapter(draft)
    elif draft.opened.base is not None and draft.route.map != "hf->gguf":
        raise UsageError(
            f"--base {draft.opened.base.path}: has a part in a GGUF of a draft model, and in no other file"
        )
    if request.types.dtype and draft.to_gguf and not draft.to_graph:
        raise UsageError(f"--dtype {request.types.dtype}: for GGUF output say --quant {request.types.dtype}")
    if isinstance(request.model.mmproj, Path) and draft.route.map != "gguf->hf":
        raise UsageError("--mmproj FILE makes a GGUF the folder of a whole model, and has no effect on others")
    for option, asked in _parts_of(request.model).items():
        if asked and draft.route.map != "hf->gguf":
            raise UsageError(
                f"--{option.replace('_', '-')} says which parts of a Hugging Face model a GGUF has, "
                "and has no effect on others"
            )
    if request.types.exact and not draft.to_graph:
        raise UsageError(f"--exact: says how a graph computes with blocks of codes, and {target.name} gets none here")
    if request.output.external_data not in EXTERNAL_DATA:
        raise UsageError(f"--external-data {request.output.external_data}: say {', '.join(EXTERNAL_DATA)}")
    if request.output.external_data != "auto" and not target.runs:
        raise UsageError(f"--external-data {request.output.external_data}: only ONNX has data files, not {target.name}")
    if draft.to_gguf and draft.opened.dialect is None and not request.model.tensors_only:
        raise ArchitectureError(
            f"{draft.opened.path}: no config.json beside it, so the names cannot be mapped to GGUF\n"
            "--config DIR takes config and tokenizer from a folder, --tensors-only keeps names as they are"
        )
    return draft


def _parts_of(model: Model) -> dict[str, bool]:
    """Which parts of a model are wanted that a runtime can do without."""
    return {"no_nextn": model.no_nextn, "no_head": model.no_head, "dense_modules": model.dense_modules}


def _check_adapter(draft: Draft) -> None:
    base, quant = draft.opened.base, draft.request.types.quant
    assert base is not None
    if draft.route.map != "peft->gguf":
        raise UsageError(
            f"--base {base.path}: makes a GGUF adapter, with its own names, and nothing else\n"
            f"to merge {draft.opened.path} into the model: convert {base.path} OUT --lora {draft.opened.path}"
        )
    if quant is not None and recipe(quant).base not in PLAIN:
        raise UsageError(f"--quant {quant}: the matrices of an adapter are small; f32, f16 and bf16 are for them")


def _check_imatrix(types: Types) -> None:
    if types.imatrix is not None and (types.quant is None or recipe(types.quant).base is None):
        raise UsageError("--imatrix has no effect without a type to encode to; say --quant TYPE")
    if types.imatrix is None and (types.include_weights or types.exclude_weights):
        raise UsageError("--include-weights and --exclude-weights choose from an importance matrix: pass --imatrix")
    if types.include_weights and types.exclude_weights:
        raise UsageError("--include-weights and --exclude-weights cannot be used together")


def detach(draft: Draft) -> Draft:
    """Leave what the source has around its tensors, which only a target of its own format can keep.

    Raises:
        UnsupportedFeature: that is too much to lose.
    """
    structure = draft.checkpoint.structure
    if structure is None or draft.target.name == draft.opened.format:
        return draft
    draft.report.extend(list(structure.leave()))
    return replace(draft, checkpoint=draft.checkpoint.replace(structure=None))


# ------------------------------------------------------------- what the model is, in the target's own names


def widen(draft: Draft) -> Draft:
    """Vectors in F32, as llama.cpp wants them in a GGUF, where a graph had them in F16."""
    own = draft.checkpoint
    if own.stored is None or not draft.to_gguf or draft.to_graph:
        return draft
    tensors = {name: _wide(tensor, draft.watch) for name, tensor in own.tensors.items()}
    return replace(draft, checkpoint=own.replace(tensors=tensors))


def _wide(tensor: LazyTensor, watch: Watch) -> LazyTensor:
    return encoded(tensor, F32, watch) if len(tensor.info.shape) == 1 and tensor.info.dtype is F16 else tensor


def unpack(draft: Draft) -> Draft:
    """Weights that arrive in codes as numbers, or as the blocks of ggml that hold these codes.

    Codes are kept where no type is asked for, those of a type of ggml also where a plain one is, as the reference does.
    A folder, or tensors alone, may take them over as they are.

    Raises:
        UnsupportedFeature, CorruptFile: as `quant.sources.unpacked`.
        UsageError: --keep-codes says something else than there is.
    """
    types, own = draft.request.types, draft.checkpoint
    if types.keep_codes not in (None, *KEEP_CODES):
        raise UsageError(f"--keep-codes {types.keep_codes}: say {', '.join(KEEP_CODES)}")
    as_asked = types.quant is None and types.dtype is None and types.scheme is None
    as_it_is = not own.adapters and (draft.request.model.tensors_only or draft.target.name == "hf")
    if own.dialect == draft.dialect == "gguf" or (as_asked and as_it_is and own.dialect != "gguf"):
        return draft
    keep = types.keep_codes or _keeps(draft.recipe)
    plain = unpacked(
        own, typed=draft.to_gguf, keep=keep if draft.to_gguf else "never", rounded=as_asked, watch=draft.watch
    )
    draft.report.extend(list(plain.events[len(own.events) :]))
    return replace(draft, opened=plain, checkpoint=plain)


def _keeps(recipe: Recipe | None) -> str:
    if recipe is None:
        return "exact"
    return "same" if recipe.base in PLAIN else "never"


def merge(draft: Draft) -> Draft:
    """The model with its adapters in it; in its own types, or in F32 where F32 is asked for.

    Raises:
        UsageError: no Hugging Face model, or an adapter that changes nothing.
        ConverterError: as `adapters.merge.merged`.
    """
    types, own = draft.request.types, draft.checkpoint
    if own.adapters and own.dialect == "gguf":
        raise UsageError(
            f"--lora {own.adapters[0][0].path}: adapters are merged into Hugging Face models, {own.path} is none"
        )
    wide = "F32" in (name.upper() for name in (types.dtype, types.quant, types.via) if name)
    for adapter, strength in own.adapters:
        tensors, events = merged(own, adapter, strength, draft.watch.again(), wide=wide)
        draft.report.extend(events)
        own = own.replace(tensors=tensors)
    return replace(draft, checkpoint=own)


def map_names(draft: Draft) -> Draft:
    """Tensors and what is known of the model under the names that the target has for them.

    Raises:
        ArchitectureError, TokenizerError: what makes the mapping impossible.
    """
    mapping = {"hf->gguf": _to_gguf, "gguf->hf": _to_hf, "peft->gguf": _adapter_to_gguf, None: _as_it_is}[
        draft.route.map
    ]
    draft = mapping(draft)
    return replace(draft, read=draft.checkpoint.tensors, intermediate=draft.checkpoint.tensors)


def _to_gguf(draft: Draft) -> Draft:
    model, own = draft.request.model, draft.checkpoint
    mapped = projector_to_gguf(own) if model.mmproj else to_gguf(own, model.arch, **_parts_of(model))
    draft.report.extend(list(mapped.events))
    mapped = replace(mapped, tensors=parted(mapped.tensors), config=mapped.config | _wide_inputs(mapped.tensors))
    tokenizer = not (model.no_tokenizer or model.mmproj or draft.to_graph)
    metadata = _hf_metadata(draft.checkpoint, mapped, draft.request, draft.report, tokenizer=tokenizer)
    return _mapped(draft, mapped, metadata, {})


def _wide_inputs(tensors: Mapping[str, LazyTensor]) -> Metadata:
    """Which weights of four bits must not meet activations of four bits."""
    names = sorted(name for name, tensor in tensors.items() if tensor.beside and not tensor.beside.prec_a4)
    told = {"name": Array("str", names), "prec_a4": Array("bool", [False] * len(names))}
    return {f"general.tensor_extra.{key}": values for key, values in told.items()} if names else {}


def _adapter_to_gguf(draft: Draft) -> Draft:
    own, model = draft.checkpoint, draft.request.model
    assert own.base is not None  # `open_checkpoint` opens no adapter without
    made = adapter_to_gguf(own, unpacked(own.base), model.arch)
    draft.report.extend(list(made.events))
    name = model.name or own.path.resolve().name
    general, events = general_metadata(name, own.assets, {}, name=model.name, kind="adapter")
    draft.report.extend(events)
    metadata: Metadata = {
        "general.architecture": Value("str", made.architecture.gguf),
        **general,
        "adapter.type": Value("str", "lora"),
        "adapter.lora.alpha": Value("f32", made.alpha),
    }
    wanted = dtype(recipe(draft.request.types.quant or "F32").base or "F32")
    tensors = {name: encoded(tensor, wanted, draft.watch.again()) for name, tensor in made.tensors.items()}
    own = own.replace(tensors=tensors, config=metadata, metadata={}, dialect=draft.dialect)
    return replace(draft, checkpoint=own)


def _to_hf(draft: Draft) -> Draft:
    """Hugging Face names, which a model's folder must have.

    A single file of tensors is of use under any names: where no architecture answers, it keeps them.
    """
    arch, file = draft.request.model.arch, draft.request.model.mmproj
    projector = None
    if isinstance(file, Path):
        draft, projector = _beside(draft, file)
    try:
        mapped = to_hf(draft.checkpoint, arch, projector)
    except ArchitectureError as error:
        if arch or projector or draft.target.folder:
            raise
        draft.report.add(NamesKept(str(error).splitlines()[0]))
        return _as_it_is(replace(draft, route=replace(draft.route, map=None)))
    draft.report.extend(list(mapped.events))
    return _mapped(draft, mapped, mapped.config, {"format": "pt"})


def _beside(draft: Draft, file: Path) -> tuple[Draft, Checkpoint]:
    """The file of a projector, which the output then also reads from."""
    own = draft.checkpoint
    with remembering(own.opened):
        projector = open_gguf(file)
    own = own.replace(files=(*own.files, *projector.files), closers=(*own.closers, projector.close))
    return replace(draft, checkpoint=own), projector


def _mapped(draft: Draft, mapped: Translation, config: Mapping[str, Any], texts: Mapping[str, str]) -> Draft:
    checkpoint = draft.checkpoint.replace(tensors=mapped.tensors, config=config, metadata=texts, dialect=draft.dialect)
    return replace(draft, checkpoint=checkpoint, mapped=mapped)


def _as_it_is(draft: Draft) -> Draft:
    own, target = draft.checkpoint, draft.dialect
    if target == "gguf":  # which has typed key/values, and no other place for anything
        own = own.replace(config=own.config if own.dialect == "gguf" else {}, metadata={})
    return replace(draft, checkpoint=own.replace(dialect=target))


def _hf_metadata(
    checkpoint: Checkpoint, mapped: Translation, request: Request, report: Report, *, tokenizer: bool
) -> Metadata:
    """All key/values of a GGUF made from a Hugging Face model, in the reference's order."""
    shapes = {name: tensor.info.shape for name, tensor in mapped.tensors.items()}
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    kind = "mmproj" if request.model.mmproj else "model"
    general, events = general_metadata(
        folder.resolve().name, checkpoint.assets, shapes, name=request.model.name, kind=kind
    )
    report.extend(events)
    first: Metadata = {"general.architecture": Value("str", mapped.architecture.gguf), **mapped.early}
    if not tokenizer:
        return {**first, **general, **mapped.config}
    keys = _tokenizer(checkpoint, mapped, request, report)
    style = mapped.tokenizer or mapped.architecture.traits.tokenizer
    first |= {key: keys[key] for key in style.early if key in keys}
    return {**first, **general, **mapped.config, **keys}


def _tokenizer(checkpoint: Checkpoint, mapped: Translation, request: Request, report: Report) -> Metadata:
    """The tokenizer's keys; a draft model speaks the language of the model that it is for."""
    from converter.tokenizers import read_tokenizer  # costs as much to import as all the rest

    owner = checkpoint.base or checkpoint
    tokenizer = read_tokenizer(
        owner.assets,
        owner.config,
        n_rows=mapped.hparams["n_vocab"],
        style=mapped.tokenizer or mapped.architecture.traits.tokenizer,
        pre=request.model.pre,
    )
    report.extend(list(tokenizer.events))
    return tokenizer.metadata


def narrow(draft: Draft) -> Draft:
    """Tensors in the types that the reference's 16-bit (or F32) intermediate file would have.

    With `--via source` that type is the tensor's own, so nothing is rounded on the way but what was computed.
    """
    if draft.route.map != "hf->gguf":
        return draft
    via, tensors = draft.request.types.via, {}
    forced = draft.mapped.types if draft.mapped else {}
    stored = draft.mapped.stored if draft.mapped else {}
    for name, tensor in draft.checkpoint.tensors.items():
        own = tensor.info.dtype
        outtype = _nearest_float(stored.get(name, own)) if via == "source" else dtype(via)
        wanted = dtype(converter_type(name, tensor.info.shape, own.name, outtype.name, forced.get(name)).type)
        tensors[name] = tensor if own is wanted else encoded(tensor, wanted, draft.watch)
    return replace(draft, checkpoint=draft.checkpoint.replace(tensors=tensors), intermediate=tensors)


def pack(draft: Draft) -> Draft:
    """A folder's weights as codes of the scheme that the request names.

    Raises:
        UsageError: a scheme that does not exist, or that does not search for scales.
        UnsupportedFeature: a model whose maps are stored the other way round.
    """
    name = draft.request.types.scheme
    if name is None:
        return draft
    if draft.checkpoint.config.get("model_type") == "gpt2":
        raise UnsupportedFeature(f"--scheme {name}: GPT-2 stores its maps transposed (Conv1D), which no loader expects")
    made = packed(target(name), draft.checkpoint.tensors, draft.request.types.scale)
    draft.report.add(Note(f"{len(made.bounds)} tensors hold codes of {name}"))
    own = draft.checkpoint.replace(tensors=made.tensors)
    return replace(draft, checkpoint=own, read=made.tensors, intermediate=made.tensors, packed=made)


def _nearest_float(own: DType) -> DType:
    """The GGUF type that holds every value of `own`, or the widest there is."""
    if own in (F32, F16, BF16) or own.quantized:
        return own
    return BF16 if own.name.startswith("F8") else F32


# --------------------------------------------------------------------------- which type each tensor gets


def open_matrix(draft: Draft) -> Draft:
    """The importance matrix that the request names, which the output then also reads from.

    Raises:
        CorruptFile, UsageError, OutputError: as `quant.imatrix.open_imatrix`.
    """
    types = draft.request.types
    if types.imatrix is None:
        return draft
    with remembering(draft.checkpoint.opened):
        matrix = imatrix.open_imatrix(types.imatrix, types.include_weights, types.exclude_weights)
    own = draft.checkpoint
    own = own.replace(files=(*own.files, matrix.path), closers=(*own.closers, matrix.close))
    return replace(draft, checkpoint=own, matrix=matrix, weighted=True)


def choose(draft: Draft) -> Draft:
    """The type of each tensor, and why: by the recipe in a GGUF, by what the format can hold in others.

    Raises:
        UsageError, QuantizationError: as `quant.recipes.assign`; a type that the format cannot hold.
    """
    if draft.to_graph:
        return replace(draft, choices=_for_graph(draft, _by_recipe(draft)))
    return replace(draft, choices=_by_recipe(draft) if draft.to_gguf else _plain(draft))


def _for_graph(draft: Draft, choices: Mapping[str, Choice]) -> dict[str, Choice]:
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


def _by_recipe(draft: Draft) -> dict[str, Choice]:
    types, tensors = draft.request.types, draft.checkpoint.tensors
    specs = [TensorSpec(name, tensor.info.shape, tensor.info.dtype.name) for name, tensor in tensors.items()]
    options = Options(
        pure=types.pure,
        tensor_types=types.tensor_types,
        output_type=types.output_type,
        embedding_type=types.embedding_type,
        leave_output=types.leave_output,
        no_fallback=types.no_fallback,
        has_imatrix=draft.weighted,
    )
    choices = assign(draft.recipe or recipe("COPY"), specs, _facts(draft), options)
    if draft.recipe is None:
        choices = {name: Choice(choice.type, "as in the source") for name, choice in choices.items()}
    if _stays_packed(draft):
        packed = (spec for spec in specs if dtype(spec.source).quantized)
        choices |= {spec.name: Choice(spec.source, "kept: arrives quantized") for spec in packed}
    return choices


def _stays_packed(draft: Draft) -> bool:
    """Whether a Hugging Face model has packed weights that no other type is asked for."""
    kept = draft.request.types.keep_codes in KEEP_CODES[1:] or draft.recipe is None or draft.recipe.base in PLAIN
    if draft.route.map != "hf->gguf" or not kept:
        return False
    return any(tensor.info.dtype.quantized for tensor in draft.intermediate.values())


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
        draft.report.add(Note(f"{n_kept} tensors keep their type, which the graph relies on; `convert plan` says why"))
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
    report.add(Decoded(tensor.name, own.name, F32.name))
    return Choice(F32.name, f"{target.name} cannot hold {own}")


def weigh(draft: Draft) -> Draft:
    """The entry of the importance matrix that each tensor's encoder follows.

    Raises:
        MissingImportance, QuantizationError: as `quant.imatrix.assign_weights`.
    """
    if draft.recipe is None:
        return draft
    infos = [tensor.info for tensor in draft.checkpoint.tensors.values()]
    types = {name: choice.type for name, choice in draft.choices.items()}
    weights, events = imatrix.assign_weights(draft.matrix, draft.recipe, infos, types)
    draft.report.extend(events)
    return replace(draft, weights=weights)


# ------------------------------------------------------------------------------------------- the files to be


def encode(draft: Draft) -> Draft:
    """Tensors in the types that were chosen, which is the order of the output, too.

    Raises:
        QuantizationError: a tensor that is quantized already, unless the request allows to do it again.
        MissingImportance: a type that cannot be encoded without.
    """
    tensors = {}
    for step in draft.steps:
        if draft.to_gguf:
            _tell(step, draft)
        watch = draft.watch if step.intermediate is step.read else draft.watch.again()
        tensors[step.name] = encoded(step.intermediate, dtype(step.type), watch, step.weights)
    return replace(draft, checkpoint=draft.checkpoint.replace(tensors=tensors))


def _tell(step: Step, draft: Draft) -> None:
    """What quantizing a tensor loses beside precision."""
    choice, own = step.choice, step.intermediate.info.dtype
    if choice.fallback_from:
        draft.report.add(TypeFallback(step.name, choice.fallback_from, choice.type, step.read.info.row))
    decoded = draft.to_graph and not dtype(choice.type).quantized
    if own.quantized and own.name != choice.type and not decoded:
        if not draft.request.types.allow_requantize:
            raise QuantizationError(
                f"{step.name}: already quantized as {own}; encoding it again as {choice.type} loses more\n"
                "convert the original model, or pass --allow-requantize"
            )
        draft.report.add(Requantized(step.name, own.name, choice.type))


def speak(draft: Draft) -> Draft:
    """The tokenizer of a graph that was written of a GGUF, from the files beside it.

    Raises:
        MissingPart, TokenizerError: there are no such files, or they cannot be read.
    """
    own = draft.opened
    wanted = draft.whole or (draft.to_gguf and not draft.to_graph)
    if own.stored is None or not wanted or draft.request.model.no_tokenizer:
        return draft
    keys, events = tokenizer_beside(own, draft.request.model.arch, draft.request.model.pre)
    draft.report.extend(events)
    opened, checkpoint = own.replace(config={**own.config, **keys}), draft.checkpoint
    if checkpoint.dialect == "gguf":
        checkpoint = checkpoint.replace(config={**checkpoint.config, **keys})
    return replace(draft, opened=opened, checkpoint=checkpoint)


def describe(draft: Draft) -> Draft:
    """What the output says of itself: a GGUF in its key/values, a folder in its small files."""
    if draft.to_gguf and not draft.to_graph:
        return replace(draft, checkpoint=draft.checkpoint.replace(config=_said(draft)))
    if not draft.whole:
        return draft
    wanted = not draft.request.model.no_tokenizer
    more = draft.packed.config if draft.packed else {}
    mapped = draft.mapped
    if draft.to_graph:
        mapped = to_hf(draft.opened, draft.request.model.arch) if draft.opened.dialect == "gguf" else None
        more = CLIENTS
    result, events = with_small_files(draft.checkpoint, draft.opened, mapped, tokenizer=wanted, more=more)
    draft.report.extend(events)
    return replace(draft, checkpoint=result)


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
    asked, metadata = dtype((types.dtype or "f32").upper()), _said(draft)
    if not any(dtype(step.type).quantized for step in draft.steps):
        metadata["general.file_type"] = Value("u32", RECIPES[asked.name].file_type or 0)
    model = GraphModel.of(metadata, own.tensors)
    traits, watch = model.architecture.traits, draft.watch.again()
    if traits.encoder is not None:
        normalised = normalises(draft.opened.assets)
        program = encoder(model, traits.encoder, asked, watch, exact=types.exact, normalised=normalised)
    elif traits.decoder is not None:
        program = decoder(model, traits.decoder, asked, watch, exact=types.exact)
    else:
        raise UnsupportedFeature(
            f"{model.architecture.gguf}: no graph can be written of this architecture yet\n"
            "--tensors-only writes its tensors without one"
        )
    return replace(draft, checkpoint=own.replace(tensors=program.initializers, config={}, structure=program))


def _said(draft: Draft) -> Metadata:
    """Key/values with those that say what the file is; like the reference's quantizer's, they go to the end.

    What an earlier quantization said of its own importance matrix goes where there is another.
    """
    file_type = draft.recipe.file_type if draft.recipe else None
    metadata: Metadata = dict(draft.checkpoint.config)
    if file_type is None:
        old = getattr(metadata.get("general.file_type"), "value", None)
        file_type = old if type(old) is int and 0 <= old < 1 << 32 else _dense_file_type(draft)
    if _stays_packed(draft):
        file_type = _packed_file_type(draft)
    own = {
        "general.quantization_version": Value("u32", QUANTIZATION_VERSION),
        "general.file_type": Value("u32", file_type),
    }
    replaced = (*own, *imatrix.KEYS) if draft.matrix else tuple(own)
    kept = {key: value for key, value in metadata.items() if key not in replaced}
    return kept | own | (draft.matrix.metadata() if draft.matrix else {})


def _packed_file_type(draft: Draft) -> int:
    """By the type that most bytes are packed in."""
    nbytes: Counter[str] = Counter()
    for step in draft.steps:
        nbytes[step.type] += step.bytes if dtype(step.type).quantized else 0
    name = max(nbytes, key=nbytes.__getitem__)
    return _FILE_TYPES[name] if name in _FILE_TYPES else RECIPES[name].file_type or 0


def _dense_file_type(draft: Draft) -> int:
    """By the largest tensor whose type its architecture leaves open."""
    forced = draft.mapped.types if draft.mapped else {}
    largest = max(
        (t.info for name, t in draft.intermediate.items() if len(t.info.shape) > 1 and name not in forced),
        key=lambda info: info.n_elements,
        default=None,
    )
    name = largest.dtype.name if largest is not None and largest.dtype.name in RECIPES else "F32"
    return RECIPES[name].file_type or 0


def name_file(draft: Draft) -> Draft:
    """The name that the GGUF convention gives a file, where the target is a folder to put it in."""
    if not draft.unnamed or draft.whole:
        return draft
    largest = max(draft.steps, key=lambda step: step.bytes, default=None)
    quant = draft.request.types.quant or (largest.type if largest is not None else "F32")
    return replace(draft, path=draft.path / default_file_name(draft.checkpoint.config, quant.upper()), unnamed=False)


def lay_out(draft: Draft) -> Draft:
    """The files to be, and what the target has no place for.

    Raises:
        ConverterError: a name, a shape or a type that the format cannot hold.
    """
    assert draft.target.layout is not None
    wishes = draft.request.output
    options = WriteOptions(wishes.split_max_size, wishes.split_max_tensors, wishes.external_data)
    inner = draft.target.in_folder if draft.whole else ""
    layout = draft.target.layout(draft.checkpoint, draft.path / inner, options)
    if inner:
        small, events = beside_weights(draft.checkpoint, draft.path)
        layout = Layout((*layout.files, *small), draft.path, (*layout.events, *events))
    draft.report.extend(list(layout.events))
    draft.report.extend(_lost_texts(draft.opened, draft.target))
    return replace(draft, layout=layout)


def _lost_texts(checkpoint: Checkpoint, target: Format) -> list[Event]:
    """What the container says in free texts that the target has no place for; which framework it was for is no loss."""
    if target.free_metadata is None:
        return []
    kept = target.free_metadata | {"format"}
    return [MetadataLost(key, f"{target.name} holds no free texts") for key in checkpoint.metadata if key not in kept]


ASKED = (check, detach)
MODEL = (widen, unpack, merge, map_names, narrow, pack)
TYPES = (open_matrix, choose, weigh)
FILES = (encode, speak, describe, write_graph, name_file, lay_out)
PASSES = (*ASKED, *MODEL, *TYPES, *FILES)
