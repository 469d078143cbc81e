"""safetensors: 8 bytes of header length, a JSON header, the tensors without gaps.

Source: the format section of the safetensors README. The reader is as strict as the reference and a little
stricter: the header must start with `{`, keys are unique, and the tensors cover the data exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.formats.base import MAX_AXES, Format, WriteOptions, check_elements, check_name, sharded
from converter.formats.hub import check_index, folder_assets, read_config, whole_set
from converter.storage.files import Bytes, each_of, extent_of, open_bytes
from converter.storage.json import parse_json
from converter.storage.layout import FileLayout, Layout, Slot
from converter.tensors.dtypes import BY_SAFETENSORS
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

MAX_HEADER = 100_000_000
_NOT_READ = ("F4", "F6_E2M3", "F6_E3M2")  # of safetensors 0.6 and later
INDEX_SUFFIX = ".safetensors.index.json"


def sniff(path: Path, start: bytes) -> bool:
    """A plausible header length followed by an opening brace."""
    if path.name.endswith(INDEX_SUFFIX):
        return start.lstrip()[:1] == b"{"
    return len(start) > 8 and int.from_bytes(start[:8], "little") <= MAX_HEADER and start[8:9] == b"{"


def open_safetensors(path: Path) -> Checkpoint:
    """A single file, or a sharded set by its index or any of its shards.

    Config and tokenizer come from the file's own folder; with a config.json the names are Hugging Face's.

    Raises:
        CorruptFile, MissingPart, UnsupportedFeature, OutputError
    """
    said, files, expected = whole_set(path)
    return open_files(said, files, expected, folder_assets(path.parent), "safetensors").replace(path=path)


def open_files(
    path: Path, files: Iterable[Path], expected: Mapping[str, Path] | None, assets: Mapping[str, Path], name: str
) -> Checkpoint:
    """The checkpoint that `files` make together; `expected` says which tensor the index puts in which file."""
    maps: list[Bytes] = []
    tensors: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    owner: dict[str, Path] = {}
    try:
        files = list(files)
        for file, (mapped, found, texts) in zip(files, each_of(files, _opened), strict=True):
            maps.append(mapped)
            for twice in found.keys() & tensors.keys():
                raise CorruptFile(f"{file}: tensor {short(twice)} is also in {owner[twice].name}")
            tensors.update(found)
            owner.update(dict.fromkeys(found, file))
            metadata.update(texts)
        if expected is not None:
            check_index(path, expected, owner)
        config, dialect = read_config(assets)
    except BaseException:
        for mapped in maps:
            mapped.close()
        raise
    return Checkpoint(
        format=name,
        path=path,
        dialect=dialect,
        tensors=tensors,
        config=config,
        metadata=metadata,
        assets=assets,
        files=tuple(mapped.path for mapped in maps),
        closers=tuple(mapped.close for mapped in maps),
    )


def _opened(path: Path) -> tuple[Bytes, dict[str, LazyTensor], dict[str, str]]:
    mapped = open_bytes(path)
    try:
        return mapped, *_read(mapped)
    except BaseException:
        mapped.close()
        raise


def open_file(path: Path) -> Checkpoint:
    """One file alone, be it a shard or not.

    Raises:
        CorruptFile, UnsupportedFeature, OutputError
    """
    return open_files(path, [path], None, {}, "safetensors")


def file_layout(checkpoint: Checkpoint, target: Path) -> Layout:
    """One file with everything that `open_file` found in another, in its order; its header is not shorter than there.

    So that bytes stay where they are whenever they can.
    """
    tensors = list(checkpoint.tensors.values())
    places = {tensor.name: tensor.extent.offset for tensor in tensors if tensor.extent is not None}
    stored = sorted(tensors, key=lambda tensor: places.get(tensor.name, 0))
    room = min(places.values(), default=8) - 8
    return Layout((_laid_out(target, stored, [tensor.name for tensor in tensors], checkpoint.metadata, room),))


def _read(mapped: Bytes) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    path = mapped.path
    length = int.from_bytes(mapped.view(0, 8, "the header length").tobytes(), "little")
    if length > MAX_HEADER:
        raise CorruptFile(f"{path}: a header of {length} bytes is over the limit of {MAX_HEADER}")
    header_bytes = mapped.view(8, length, "the header").tobytes()
    if header_bytes[:1] != b"{":
        raise CorruptFile(f"{path}: the header does not start with '{{'")
    header = parse_json(header_bytes, path)
    metadata = _texts(path, {} if (said := header.pop("__metadata__", None)) is None else said)
    entries = [_entry(path, name, header.pop(name)) for name in tuple(header)]  # one form at a time is in memory
    start, end = 8 + length, 0
    for info, low, high in sorted(entries, key=itemgetter(1, 2)):
        if low != end:
            raise CorruptFile(f"{path}: tensor {short(info.name)} starts at {low}, the one before it ends at {end}")
        end = high
    if start + end != mapped.size:
        raise CorruptFile(
            f"{path}: the tensors end at byte {start + end}, the file at {mapped.size}\n"
            "the file is truncated or has something appended; download it again"
        )
    mapped.forward(start + low for _, low, _ in entries)
    return {info.name: _tensor(mapped, info, start + low) for info, low, _ in entries}, metadata


def _texts(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CorruptFile(f"{path}: __metadata__ is not a map of texts")
    return value


def _entry(path: Path, name: str, value: Any) -> tuple[TensorInfo, int, int]:
    """One header entry, checked: type known, shape and offsets plain integers, size equal to shape times type."""
    check_name(path, name)
    try:
        code, shape, (low, high) = value["dtype"], value["shape"], value["data_offsets"]
        if len(value) != 3:
            raise ValueError("unknown fields")
        if not isinstance(shape, list) or len(shape) > MAX_AXES:
            raise ValueError(f"a shape is a list of at most {MAX_AXES} sizes")
        numbers = (*shape, low, high)
        if set(map(type, numbers)) != {int} or min(numbers) < 0:
            raise ValueError("shape and offsets must be whole numbers")
    except (TypeError, KeyError, ValueError) as error:
        raise CorruptFile(f"{path}: bad header entry {short(name)} ({str(error)[:80]})") from None
    dtype = BY_SAFETENSORS.get(code) if isinstance(code, str) else None
    if dtype is None:
        known = isinstance(code, str) and code in _NOT_READ
        raise UnsupportedFeature(
            f"{path}: tensor {short(name)} has type {code}, of less than a byte, which cannot be read here"
            if known
            else f"{path}: tensor {short(name)} has unknown type {short(code)}"
        )
    check_elements(path, name, shape)
    if math.prod(shape) * dtype.type_size != high - low:
        raise CorruptFile(f"{path}: tensor {short(name)} is {dtype}{shape[:8]} but has {high - low} bytes")
    return TensorInfo(name, tuple(shape), dtype), low, high


def _tensor(mapped: Bytes, info: TensorInfo, offset: int) -> LazyTensor:
    row_nbytes = info.row_nbytes

    def read(start: int, stop: int) -> Rows:
        data = mapped.view(offset + start * row_nbytes, (stop - start) * row_nbytes, f"tensor {short(info.name)}")
        return data.reshape(stop - start, row_nbytes)

    return LazyTensor(info, read, f"{mapped.path}@{offset}", extent=extent_of(mapped, offset))


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """One file, or shards with their index; a file's tensors by falling alignment, then name, as the reference does.

    Raises:
        UnsupportedFeature: a type that safetensors cannot hold.
        UsageError: a limit that is not positive.
    """
    for tensor in checkpoint.tensors.values():
        if tensor.info.dtype.safetensors is None:
            raise UnsupportedFeature(
                f"{target}: tensor {short(tensor.name)} is {tensor.info.dtype}, which safetensors cannot hold; "
                "pass --dtype f16, bf16 or f32 to decode it"
            )

    def file(path: Path, tensors: Sequence[LazyTensor]) -> FileLayout:
        return _file(path, tensors, checkpoint.metadata)

    return sharded(target, list(checkpoint.tensors.values()), options, file)


def _file(path: Path, tensors: Sequence[LazyTensor], metadata: Mapping[str, str]) -> FileLayout:
    ordered = sorted(tensors, key=lambda t: (-t.info.dtype.type_size, t.name))
    return _laid_out(path, ordered, [tensor.name for tensor in ordered], metadata)


def _laid_out(
    path: Path, ordered: Sequence[LazyTensor], names: Iterable[str], metadata: Mapping[str, str], room: int = 0
) -> FileLayout:
    """Tensors one after the other, under a header that lists them as `names` does, of `room` bytes at least."""
    offset, offsets, entries = 0, [], {}
    for tensor in ordered:
        end = offset + tensor.info.nbytes
        entries[tensor.name] = {
            "dtype": tensor.info.dtype.safetensors,
            "shape": list(tensor.info.shape),
            "data_offsets": [offset, end],
        }
        offsets.append(offset)
        offset = end
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    header |= {name: entries[name] for name in names}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(room)
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    slots = tuple(Slot(data + start, tensor) for start, tensor in zip(offsets, ordered, strict=True))
    return FileLayout(path, len(text).to_bytes(8, "little") + text, slots, data + offset)


FORMATS = (
    Format(
        name="safetensors",
        extensions=(".safetensors",),
        dialect="hf",
        description="safetensors file, or a sharded set by its .index.json",
        dtypes=frozenset(dtype.name for dtype in BY_SAFETENSORS.values()),
        sniff=sniff,
        open=open_safetensors,
        layout=layout,
        shards=True,
        free_metadata=None,
    ),
)
