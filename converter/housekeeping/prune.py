"""Layers and experts left out of a model, everything else byte for byte what it was."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature, UsageError, about
from converter.events import Dropped, MetadataLost
from converter.formats.registry import open_checkpoint
from converter.housekeeping import blocks
from converter.housekeeping import experts as of_experts
from converter.housekeeping.rewrite import Rewritten, check_format, fewer_weights, made_anew
from converter.request import PathLike, Source
from converter.storage.slabs import ProgressCallback

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_FORMATS = ("gguf", "hf")
SIZE_LABEL = "general.size_label"


def prune(
    source: PathLike | Source,
    target: PathLike,
    *,
    layers: str | None = None,
    drop_layers: str | None = None,
    experts: str | int | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Rewritten:
    """A model with fewer layers, fewer experts or both; those that stay keep their order and are counted anew.

    Args:
        source: a GGUF of any types, or a Hugging Face folder.
        target: the file or folder to be.
        layers: those that stay, `0-15,20`; layers that predict further tokens (MTP) are not counted, and stay.
        drop_layers: those that do not.
        experts: those that stay in every layer, `0-3,7`; or how many, the first ones.
        force, threads, progress: as for `convert`.

    Raises:
        UsageError: nothing to leave out, nothing left, or a number that the model does not have.
        UnsupportedFeature: another format, an architecture that is not known here, or one that would compute
            something else in a layer with another number.
        ConverterError: as `rewrite`.
    """
    if layers is None and drop_layers is None and experts is None:
        raise UsageError("nothing to leave out: say --layers, --drop-layers or --experts")
    with about(Source.of(source).path), open_checkpoint(source) as checkpoint:
        check_format(checkpoint, "prune")
        if checkpoint.format not in _FORMATS:
            raise UnsupportedFeature(f"{checkpoint.path}: tensors alone; give the folder, whose config.json says more")
        pruned = _fewer_layers(checkpoint, layers, drop_layers)
        pruned = pruned if experts is None else _fewer_experts(pruned, experts)
        return made_anew(without_size(pruned), target, force=force, threads=threads, progress=progress)


def _fewer_layers(checkpoint: Checkpoint, layers: str | None, drop_layers: str | None) -> Checkpoint:
    if layers is None and drop_layers is None:
        return checkpoint
    count = blocks.Model.of(checkpoint).n_main
    kept = set(range(count)) if layers is None else _numbers("--layers", layers, count)
    gone = set() if drop_layers is None else _numbers("--drop-layers", drop_layers, count)
    kept -= gone
    return _told(checkpoint, blocks.only(checkpoint, _some("layers", kept)), "layers", kept, count)


def _fewer_experts(checkpoint: Checkpoint, wanted: str | int) -> Checkpoint:
    count = blocks.Model.of(checkpoint).hparams.get("n_expert") or 0
    count = count if isinstance(count, int) else 0
    text = f"0-{int(wanted) - 1}" if isinstance(wanted, int) or wanted.isdecimal() else wanted
    kept = _numbers("--experts", text, count) if count and text != "0--1" else set()
    if count and not kept:
        raise UsageError(f"--experts {wanted}: leaves none")
    return _told(checkpoint, of_experts.only(checkpoint, sorted(kept)), "experts", kept, count)


def _numbers(option: str, text: str, count: int) -> set[int]:
    """What `0-15,20` means of `count`.

    Raises:
        UsageError: no such list, or a number beyond the last.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"{option} {text}: is no list of numbers such as 0-15,20")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= count:
            raise UsageError(f"{option} {part.strip()}: there are 0-{count - 1}")
        found.update(range(first, last + 1))
    return found


def _some(what: str, kept: Iterable[int]) -> Sequence[int]:
    if not kept:
        raise UsageError(f"no {what} would be left")
    return sorted(kept)


def _told(before: Checkpoint, after: Checkpoint, what: str, kept: set[int], count: int) -> Checkpoint:
    """With what was lost, by name and as a share of the weights."""
    gone = [number for number in range(count) if number not in kept]
    said = f"{len(gone)} of {count}, {fewer_weights(before, after)}"
    event = Dropped(f"{what} {of_experts.in_words(gone) or 'none'}", said)
    return after.replace(events=(*after.events, event))


def without_size(checkpoint: Checkpoint) -> Checkpoint:
    """Without the size that is part of the name of a GGUF, which it has no more."""
    if SIZE_LABEL not in checkpoint.config:
        return checkpoint
    config = {key: value for key, value in checkpoint.config.items() if key != SIZE_LABEL}
    event = MetadataLost(SIZE_LABEL, "it is that of the model before")
    return checkpoint.replace(config=config, events=(*checkpoint.events, event))
