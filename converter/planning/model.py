"""What the model is, in the target's own names: codes as numbers, adapters merged, tensors and keys mapped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.adapters.merge import merged
from converter.adapters.to_gguf import adapter_to_gguf
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, UnsupportedFeature, UsageError
from converter.events import NamesKept, Note, Report
from converter.formats.gguf import open_gguf
from converter.mapping.general_keys import general_metadata
from converter.mapping.tensors import Translation, projector_to_gguf, to_gguf, to_hf
from converter.metadata import Array, Metadata, Value
from converter.planning.draft import PLAIN, Draft
from converter.quant.recipes import Recipe, converter_type, recipe
from converter.quant.sources import unpacked
from converter.quant.targets import packed, target
from converter.request import KEEP_CODES, Request, Types
from converter.storage.files import remembering
from converter.tensors.dtypes import BF16, F16, F32, DType, dtype
from converter.tensors.encode import Watch, encoded
from converter.tensors.nvfp4 import parted
from converter.tensors.tensor import LazyTensor


def widen(draft: Draft) -> Draft:
    """Vectors in F32, as llama.cpp wants them in a GGUF, where a graph had them in F16."""
    own = draft.checkpoint
    if own.stored is None or own.dialect != "gguf" or not draft.to_gguf or draft.to_graph:
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


def meaning(types: Types) -> tuple[bool | str, ...]:
    """Whatever of the types decides what the model is: outputs that share it can be made of the same tensors."""
    asked = recipe(types.quant) if types.quant is not None else None
    return _keeps(asked), _is_wide(types), types.quant is None


def _is_wide(types: Types) -> bool:
    return "F32" in (name.upper() for name in (types.dtype, types.quant, types.via) if name)


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
    wide = _is_wide(types)
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
    mapped = projector_to_gguf(own) if model.mmproj else to_gguf(own, model.arch, graph=draft.to_graph, **model.parts)
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
