"""A checkpoint cut into shards, and a set of shards joined, byte for byte what was there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UsageError, about
from converter.formats import gguf, hf_folder, safetensors
from converter.formats.base import WriteOptions
from converter.formats.hub import shard_of
from converter.formats.registry import open_checkpoint
from converter.housekeeping.rewrite import Rewritten, check_format, made_anew, place, rewrite
from converter.request import PathLike, Source
from converter.storage.layout import Layout
from converter.storage.slabs import ProgressCallback

#: What lays out a set of shards, by the name of the format.
_SPLIT: dict[str, Callable[[Checkpoint, Path, WriteOptions], Layout]] = {
    "gguf": gguf.split_layout,
    "safetensors": safetensors.layout,
    "hf": hf_folder.layout,
}


def split(
    source: PathLike,
    target: PathLike,
    *,
    max_size: int | None = None,
    max_tensors: int | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Rewritten:
    """Cut a model into shards: GGUF as llama.cpp's gguf-split does, safetensors with an index as the hub has them.

    Args:
        source: a GGUF or safetensors file, a set of them by any of its files, or a Hugging Face folder.
        target: the name of the whole, of which `NAME-00001-of-0000N` are made, or a folder for files of the old name.
        max_size: bytes of a shard's tensors, at most; a larger tensor gets a shard of its own.
        max_tensors: tensors of a shard, at most.
        force, threads, progress: as for `convert`.

    Raises:
        UsageError: neither limit is given, or one is not positive.
        UnsupportedFeature: another format.
        ConverterError: as `rewrite`.
    """
    if max_size is None and max_tensors is None:
        raise UsageError("say how large a shard may be: --max-size 2G or --max-tensors N")
    options = WriteOptions(split_max_size=max_size, split_max_tensors=max_tensors)
    with about(Source.of(source).path), open_checkpoint(source) as checkpoint:
        check_format(checkpoint, "split")
        layout = _SPLIT[checkpoint.format](checkpoint, place(checkpoint, target), options)
        return rewrite(checkpoint, layout, force=force, threads=threads, progress=progress)


def merge(
    source: PathLike,
    target: PathLike,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Rewritten:
    """Join a set of shards: the file that was cut, byte for byte, where its own writer was as regular as ours.

    Args:
        source: any file of the set, its index, or a Hugging Face folder with a set in it.
        target: the file to be, or a folder for a file of the old name.
        force, threads, progress: as for `convert`.

    Raises:
        UsageError: the source is one file already.
        MissingPart, CorruptFile: a shard is not there, or is of another set.
        UnsupportedFeature: another format.
        ConverterError: as `rewrite`.
    """
    with about(Source.of(source).path), open_checkpoint(source) as checkpoint:
        check_format(checkpoint, "merge")
        if len(checkpoint.files) == 1 and shard_of(checkpoint.files[0]) is None:
            raise UsageError(f"{checkpoint.files[0]}: is one file already")
        whole = WriteOptions(split_max_size=sys.maxsize)
        return made_anew(checkpoint, target, whole, force=force, threads=threads, progress=progress)
