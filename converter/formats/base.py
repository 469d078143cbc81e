"""What a format is: a value with a few functions. The last line of a format's file makes one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, OutputError, UsageError, short
from converter.storage.annexes import Note, shard_of
from converter.storage.files import peek, regular_size
from converter.storage.layout import FileLayout, Layout, whole_file
from converter.tensors.tensor import LazyTensor


@dataclass(frozen=True)
class WriteOptions:
    """What a user can ask of a writer. A writer that cannot do it says so.

    `split_max_size` is the bytes of tensors in a shard, `split_max_tensors` their number. `external_data` says which
    tensors lie in a data file beside the model: "auto", "always" or "never".
    """

    split_max_size: int | None = None
    split_max_tensors: int | None = None
    external_data: str = "auto"


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: what `convert formats` prints and `--from`/`--to` take.
        extensions: of its files, lower case; empty for folders.
        dialect: the names and metadata it holds: "hf", "gguf" or None (plain arrays).
        description: one line.
        dtypes: encodings it can hold, by name.
        sniff: whether the file's first bytes (or the folder) are of this format; must not raise.
        open: path -> Checkpoint, reading no tensor byte; None for a write-only format.
        layout: checkpoint, target, options -> Layout; None for a read-only format.
        folder: True when the target is a folder.
        open_key: path, key -> Checkpoint, where a file can hold several models or states (`--key`).
        free_metadata: keys of the free texts (`Checkpoint.metadata`) that its writer keeps; None where it keeps any.
        in_folder: where its file lies in the folder that a model's clients load, with config and tokenizer around it.
        shards: whether its writer makes several files of a large model; `--spread` is for them.
        runs: a model whose architecture is known becomes one that runs: its graph is written of ggml's names and keys.
    """

    name: str
    extensions: tuple[str, ...]
    dialect: str | None
    description: str
    dtypes: frozenset[str]
    sniff: Callable[[Path, bytes], bool]
    open: Callable[[Path], Checkpoint] | None = None
    layout: Callable[[Checkpoint, Path, WriteOptions], Layout] | None = None
    folder: bool = False
    open_key: Callable[[Path, str], Checkpoint] | None = None
    free_metadata: frozenset[str] | None = frozenset()
    in_folder: str = ""
    runs: bool = False
    shards: bool = False


HEAD = 64


def head(path: Path) -> bytes:
    """The first bytes of a regular file, for sniffing; nothing for a folder.

    Raises:
        OutputError: there is no such file, or it is neither a regular file nor a folder.
    """
    if path.is_dir():
        return b""
    regular_size(path)
    try:
        return peek(path, HEAD)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error


MAX_AXES = 64  # what numpy can hold
_MAX_ELEMENTS = 1 << 63


def check_elements(path: Path, name: str, shape: Sequence[int]) -> None:
    """Refuse a shape that no 64-bit reader can hold, even where a zero makes its product small.

    Raises:
        CorruptFile: as said.
    """
    if math.prod(filter(None, shape)) >= _MAX_ELEMENTS:
        raise CorruptFile(f"{path}: tensor {short(name)} is {list(shape[:8])}, more than 2**63 elements")


def check_name(path: Path, name: str) -> None:
    """Refuse a tensor name or a key with control characters: readers in C end it at a NUL, terminals obey the rest.

    Raises:
        CorruptFile: as said.
    """
    if _CONTROL.search(name):
        raise CorruptFile(f"{path}: the name {short(name)} has control characters in it")


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _is_plain(name: str) -> bool:
    """Whether a name says nothing but a name; bytes that are no text here, as the system gives them, may be in it."""
    text = "".join(each for each in name if not "\udc80" <= each <= "\udcff")
    return bool(name) and text.isprintable() and "\\" not in name and ":" not in name


def child(folder: Path, name: object, of: Path) -> Path:
    """The path of a file that `of` names, inside `folder`, or a link there to a shard that is noted as its own.

    Raises:
        CorruptFile: the name is not a plain relative path, or leads out of the folder.
    """
    if not isinstance(name, str) or not _is_plain(name):
        raise CorruptFile(f"{of}: {short(name)} is not a file name")
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise CorruptFile(f"{of}: {short(name)} leads out of the folder")
    path = folder.joinpath(*parts)
    try:
        inside = not path.exists() or _inside(path.resolve(), folder, of) or shard_of(path) is not None
    except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
        raise CorruptFile(f"{of}: {short(name)} cannot be a file ({getattr(error, 'strerror', error)})") from None
    if not inside:
        raise CorruptFile(
            f"{of}: {short(name)} leads out of the folder, by a link; a stranger's folder could name any file so\n"
            f"give the folder that it leads to, or a copy without links: cp -rL {folder.name} COPY{_moved(path)}"
        )
    return path


def _moved(link: Path) -> str:
    """What to do about a set that `--spread` made, where it was moved."""
    note = Note.of(link.resolve().parent)
    return "" if note is None else f", or move the set back to {note.folder}"


def _inside(real: Path, folder: Path, of: Path) -> bool:
    """Whether a file that is there belongs to `folder`, or to the place of a linked file `of` that the user named."""
    roots = (folder.resolve(), _hub_blobs(folder), of.resolve().parent if of.is_file() else None)
    return any(root is not None and real.is_relative_to(root) for root in roots)


def _hub_blobs(folder: Path) -> Path | None:
    """The blob store a Hugging Face cache links to: snapshots/<revision>/file -> ../../blobs/<hash>."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
        return folder.parent.parent / "blobs"
    return None


def split_evenly(sizes: Sequence[int], options: WriteOptions) -> list[list[int]]:
    """Indices of the tensors of each shard, in order, by size or by count.

    Raises:
        UsageError: a limit that is not positive.
    """
    limit, count = options.split_max_size, options.split_max_tensors
    if (limit is not None and limit <= 0) or (count is not None and count <= 0):
        raise UsageError("a split limit must be positive")
    shards: list[list[int]] = [[]]
    filled = 0
    for index, size in enumerate(sizes):
        full = (count is not None and len(shards[-1]) >= count) or (limit is not None and filled + size > limit)
        if shards[-1] and full:
            shards.append([])
            filled = 0
        shards[-1].append(index)
        filled += size
    return shards


INDEX = ".index.json"


def sharded(
    target: Path,
    tensors: Sequence[LazyTensor],
    options: WriteOptions,
    file: Callable[[Path, Sequence[LazyTensor]], FileLayout],
) -> Layout:
    """One file, or shards `name-00001-of-00003.ext` and their index `name.ext.index.json`; `file` lays out one of them.

    Source: huggingface_hub's `split_state_dict_into_shards_factory` (what goes where, names, index) and transformers'
    `save_pretrained` (the index as text). Where a tensor is above the limit, which gives it a shard of its own, ours
    stay in the order of the tensors.

    Raises:
        UsageError: a limit that is not positive.
    """
    groups = split_evenly([tensor.info.nbytes for tensor in tensors], options)
    if len(groups) == 1:
        return Layout((file(target, tensors),))
    files: list[FileLayout] = []
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        path = target.with_name(f"{target.stem}-{number:05d}-of-{len(groups):05d}{target.suffix}")
        files.append(file(path, [tensors[index] for index in group]))
        weight_map.update((tensors[index].name, path.name) for index in group)
    total = sum(tensor.info.nbytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    return Layout((*files, whole_file(target.with_name(target.name + INDEX), text)))
