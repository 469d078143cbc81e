"""Which formats there are, which of them a file is, and how it is opened.

Third parties add a format through the entry-point group `converter.formats`, whose value is a Format or a tuple of
them.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

from converter import formats as builtin
from converter.address import is_elsewhere
from converter.checkpoint import Checkpoint
from converter.errors import MissingPart, OutputError, UnknownFormat, UnsupportedFeature, UsageError, about
from converter.formats.base import Format, head
from converter.formats.foreign import foreign_file, foreign_folder, hub_name, packed
from converter.formats.hub import folder_assets
from converter.formats.peft import is_adapter, open_adapter
from converter.plugins import BrokenPlugin, plugins
from converter.remote.mirror import hold, reach
from converter.request import PathLike, Source
from converter.storage.files import Opened, remembering
from converter.storage.folders import nearest
from converter.storage.json import read_json
from converter.storage.stand_ins import refuse_stand_in, unfinished
from converter.text import did_you_mean

ENTRY_POINTS = "converter.formats"


@cache
def formats() -> dict[str, Format]:
    """Every format by name: our own first, then plugins in order of their names. A plugin cannot replace ours."""
    found: dict[str, Format] = {}
    for module in sorted(_modules()):
        found.update({each.name: each for each in _own(module)})
    for plugged in plugins(ENTRY_POINTS, Format):
        found.setdefault(plugged.name, plugged)
    return found


def _modules() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(builtin.__path__)}


def _own(module: str) -> tuple[Format, ...]:
    formats: tuple[Format, ...] = getattr(importlib.import_module(f"{builtin.__name__}.{module}"), "FORMATS", ())
    return formats


def source_format(path: Path, name: str | None = None) -> Format:
    """The format of an input: by `name`, else by its content; the extension only breaks a tie.

    Raises:
        UnknownFormat: nothing reads it; the message lists what can be read.
        MissingPart: a pointer, a web page or an unfinished download lies in the file's place.
        UnsupportedFeature: a folder or a file that is known to hold something else.
        OutputError: no such file, or it may not be read; what an address names is reached for.
    """
    reach(path)
    if name is not None:
        return _named(name, readers())
    if says := hub_name(path):
        raise OutputError(f"{path}: {says}")
    start = head(path)
    if says := foreign_folder(path):
        raise UnsupportedFeature(f"{path}: {says}")
    if path.is_file():
        refuse_stand_in(path, start)
        if says := unfinished(path):
            raise MissingPart(f"{path}: {says}")
        if start.lstrip().startswith(b"{") and (says := packed(path)):
            raise UnsupportedFeature(f"{path}: {says}")
    # A module named like the extension is asked first, so that opening a GGUF loads no other format's code.
    extension = path.suffix.lower().removeprefix(".")
    for each in _own(extension) if extension in _modules() else ():
        if each.open is not None and _sniffs(each, path, start):
            return each
    matches = [each for each in readers() if _sniffs(each, path, start)]
    matches.sort(key=lambda each: path.suffix.lower() not in each.extensions)
    if not matches:
        if says := foreign_file(path, start):
            raise UnsupportedFeature(f"{path}: {says}")
        known = ", ".join(each.name for each in readers())
        raise UnknownFormat(f"{path}: not a format that can be read (known: {known})\n`convert formats` lists them")
    return matches[0]


def _sniffs(each: Format, path: Path, start: bytes) -> bool:
    try:
        return each.sniff(path, start)
    except PermissionError:  # of the file or folder, not a fault of the format
        raise
    except Exception as error:
        warnings.warn(f"format {each.name!r} failed to look at {path.name}: {error!r}", BrokenPlugin, stacklevel=2)
        return False


def target_format(path: Path, name: str | None = None) -> Format:
    """The format of an output: by `name`, else by its extension.

    Raises:
        UnknownFormat: nothing writes it; the message lists what can be written.
        OutputError: there can be no such folder, because a file is on the way.
    """
    if not is_elsewhere(path):  # elsewhere, folders are names
        nearest(path.parent)
    if name is not None:
        return writer(name)
    for each in writers():
        if path.suffix.lower() in each.extensions:
            return each
    known = [extension for each in writers() for extension in each.extensions]
    meant = did_you_mean(path.suffix, known) or f" (known: {', '.join(known)})"
    raise UnknownFormat(
        f"{path}: no writer for this extension{meant}\n--to NAME chooses one; "
        "a Hugging Face folder ends in a slash, or is called so by --to hf"
    )


def writer(name: str) -> Format:
    """The format of this name, to be written.

    Raises:
        UnknownFormat: there is none; the message lists what can be written.
    """
    return _named(name, writers())


def open_checkpoint(source: PathLike | Source) -> Checkpoint:
    """Open a model without reading its tensors.

    Args:
        source: a file or folder of any format that `convert formats` lists as readable; a `Source` where its content
            does not tell the format, for a part of it, or to take config.json and tokenizer from elsewhere.

    Returns:
        A Checkpoint, to be closed (it is a context manager).

    Raises:
        FormatError, OutputError: unknown, damaged or missing.
        UsageError: an adapter that adapters are to be merged into.
    """
    source = Source.of(source)
    with ExitStack() as held:
        for path in source.paths:
            held.callback(hold(path))
        checkpoint = _opened(source, Opened())
        return checkpoint.replace(closers=(*checkpoint.closers, held.pop_all().close))


def _opened(source: Source, opened: Opened) -> Checkpoint:
    if source.base is not None and is_adapter(source.path):
        return _adapter_of(source, source.base, opened)
    checkpoint = _model(source, opened)
    try:
        if source.base is not None:
            checkpoint = checkpoint.replace(base=_small_files(source.base, "--base", opened))
        for folder, strength in source.adapters:
            adapter = _adapter(folder, opened)
            checkpoint = _beside(checkpoint, adapter).replace(adapters=(*checkpoint.adapters, (adapter, strength)))
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def _model(source: Source, opened: Opened) -> Checkpoint:
    path, key = source.path, source.key
    with about(path), remembering(opened):
        reader = source_format(path, source.format)
        assert reader.open is not None  # `source_format` returns readers
        if key is not None and reader.open_key is None:
            raise UsageError(f"--key {key}: a {reader.name} file holds one model")
        try:
            checkpoint = reader.open(path) if key is None or reader.open_key is None else reader.open_key(path, key)
        except Exception as error:
            opened.explain(error)
            raise
    for file in (*checkpoint.files, *checkpoint.assets.values()):
        opened.add(file)
    checkpoint = checkpoint.replace(opened=opened)
    if source.config is None:
        return checkpoint
    try:
        small = _small_files(source.config, "--config", opened)
        if checkpoint.stored is not None:  # it says itself what it is
            return checkpoint.replace(assets=small.assets)
        return checkpoint.replace(assets=small.assets, config=small.config, dialect="hf")
    except BaseException:
        checkpoint.close()
        raise


def _small_files(folder: Path, option: str, opened: Opened) -> Checkpoint:
    """A model's folder without its weights, which need not be there."""
    assets = folder_assets(folder)
    if "config.json" not in assets:
        raise UsageError(f"{option} {folder}: no config.json in it")
    for file in assets.values():
        opened.add(file)
    return Checkpoint("hf", folder, "hf", {}, read_json(assets["config.json"], python=True), assets=assets)


def _adapter(folder: Path, opened: Opened) -> Checkpoint:
    with about(folder), remembering(opened):
        adapter = open_adapter(folder).replace(opened=opened)
    for file in (*adapter.files, *adapter.assets.values()):
        opened.add(file)
    return adapter


def _adapter_of(source: Source, base: Path, opened: Opened) -> Checkpoint:
    """An adapter with the model that it is for."""
    if source.adapters or source.key is not None:
        raise UsageError(f"--base {base}: {source.path} is an adapter, --lora and --key are for models")
    adapter = _adapter(source.path, opened)
    try:
        model = _model(replace(source, path=base, base=None), opened)
    except BaseException:
        adapter.close()
        raise
    return _beside(adapter, model).replace(base=model)


def _beside(checkpoint: Checkpoint, other: Checkpoint) -> Checkpoint:
    """A checkpoint that is also read from the files of another."""
    return checkpoint.replace(
        events=(*checkpoint.events, *other.events),
        files=(*checkpoint.files, *other.files),
        closers=(*checkpoint.closers, other.close),
        checks=(*checkpoint.checks, *other.checks),
    )


def readers() -> list[Format]:
    return [each for each in formats().values() if each.open is not None]


def writers() -> list[Format]:
    return [each for each in formats().values() if each.layout is not None]


def _named(name: str, candidates: Iterable[Format]) -> Format:
    table = {each.name: each for each in candidates}
    if name not in table:
        meant = did_you_mean(name, table) or f" (known: {', '.join(table)})"
        raise UnknownFormat(f"no such format: {name}{meant}")
    return table[name]
