"""The files to be: tensors in their types, what the output says of itself, its names and layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from converter.address import is_elsewhere
from converter.checkpoint import Checkpoint
from converter.errors import OutputError, QuantizationError, UsageError
from converter.events import Event, MetadataLost, Requantized, StayBehind, TypeFallback
from converter.formats.base import Format, WriteOptions
from converter.formats.hf_folder import beside_weights
from converter.mapping.folder import with_small_files
from converter.mapping.general_keys import default_file_name
from converter.mapping.tensors import to_hf
from converter.mapping.view import tokenizer_beside
from converter.planning.draft import Draft
from converter.planning.graph import for_clients, named
from converter.planning.plan import Step
from converter.planning.said import said
from converter.storage.layout import Layout
from converter.tensors.dtypes import dtype
from converter.tensors.encode import encoded


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
        tensors[step.name] = encoded(step.intermediate, dtype(step.type), watch, step.weights, step.effort)
    return replace(draft, checkpoint=draft.checkpoint.replace(tensors=tensors))


def _tell(step: Step, draft: Draft) -> None:
    """What quantizing a tensor loses beside precision."""
    choice, own = step.choice, step.intermediate.info.dtype
    if choice.fallback_from:
        draft.report.add(TypeFallback(step.name, choice.fallback_from, choice.type, step.read.info.row))
    decoded = (draft.to_graph or own.gguf is None) and not dtype(choice.type).quantized
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
    if own.stored is None or own.dialect != "gguf" or not wanted or draft.request.model.no_tokenizer:
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
        return replace(draft, checkpoint=draft.checkpoint.replace(config=said(draft)))
    if not draft.whole:
        return draft
    wanted = not draft.request.model.no_tokenizer
    more = draft.packed.config if draft.packed else {}
    mapped = draft.mapped
    if draft.to_graph:
        mapped = to_hf(draft.opened, draft.request.model.arch) if draft.opened.dialect == "gguf" else None
    if draft.to_graph or draft.to_trace:
        more = for_clients(draft)
    result, events = with_small_files(draft.checkpoint, draft.opened, mapped, tokenizer=wanted, more=more)
    draft.report.extend(events)
    return replace(draft, checkpoint=result)


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
    inner = _place(draft) if draft.whole else ""
    layout = draft.target.layout(draft.checkpoint, draft.path / inner, options)
    if inner:
        small, events = beside_weights(draft.checkpoint, draft.path)
        layout = Layout((*layout.files, *small), draft.path, (*layout.events, *events))
    layout = replace(layout, spread=_spread(draft))
    draft.report.extend(list(layout.events))
    draft.report.extend(_lost_texts(draft.opened, draft.target))
    draft.report.extend(_left(draft))
    return replace(draft, layout=layout)


def _spread(draft: Draft) -> tuple[Path, ...]:
    """The folders on other disks that shards may go to.

    Raises:
        UsageError: there are no shards of this format, or none of this place.
        OutputError: there is no such folder.
    """
    folders = draft.request.output.spread
    if folders and not draft.target.shards:
        raise UsageError(f"--spread {folders[0]}: is for shards, and {draft.target.name} has none")
    if folders and is_elsewhere(draft.path):
        raise UsageError(f"--spread {folders[0]}: is for shards on this machine, not for {draft.path}")
    for folder in folders:
        if not folder.is_dir():
            raise OutputError(f"{folder}: no such folder; --spread makes none, in case a disk is not there")
    return folders


def _place(draft: Draft) -> str:
    """Where the model's file lies in its folder."""
    if draft.profile.in_folder or not draft.to_graph:
        return draft.profile.in_folder or draft.target.in_folder
    known = PurePosixPath(draft.target.in_folder)
    return str(known.with_stem(known.stem + named(draft).ending))


_FIRST = ("config.json", "tokenizer.json", "tokenizer.model")  # of the files that are told


def _left(draft: Draft) -> list[Event]:
    """What a file of weights does not take along of the model: a folder's small files, a GGUF's keys."""
    own = draft.opened
    in_keys = draft.to_gguf and (own.dialect == "gguf" or not draft.to_graph)
    if draft.whole or in_keys or draft.request.model.tensors_only or draft.target.dialect == "peft":
        return []
    names = sorted(own.assets, key=lambda name: (name not in _FIRST, name)) if own.dialect == "hf" else []
    if own.dialect == "gguf":
        names = ["config", *(["tokenizer"] if any(key.startswith("tokenizer.") for key in own.config) else [])]
    folder = f"OUT/ --to {draft.target.name}" if draft.target.in_folder else "OUT/"
    return [StayBehind(tuple(names), folder)] if names else []


def _lost_texts(checkpoint: Checkpoint, target: Format) -> list[Event]:
    """What the container says in free texts that the target has no place for; which framework it was for is no loss."""
    if target.free_metadata is None:
        return []
    kept = target.free_metadata | {"format"}
    return [MetadataLost(key, f"{target.name} holds no free texts") for key in checkpoint.metadata if key not in kept]
