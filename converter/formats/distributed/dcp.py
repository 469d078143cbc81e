"""torch.distributed.checkpoint: `.metadata` says which box of which tensor is where in `__RANK_FILE.distcp`.

Source: `torch/distributed/checkpoint` (metadata.py, filesystem.py, planner_helpers.py, default_planner.py). FSDP's and
FSDP2's sharded state dicts, torchtitan, accelerate, Lightning and Megatron Core's `torch_dist` are written so. Each box
is a file of `torch.save` in the file; `.metadata` is a pickle, read by the machine that reads those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, short
from converter.events import Event, MetadataLost
from converter.formats.base import MAX_AXES, check_elements, check_name
from converter.formats.distributed.folder import Files, checkpoint
from converter.formats.distributed.names import Steps, chosen
from converter.formats.distributed.pieces import Box, Piece, assembled
from converter.formats.torch.files import open_file
from converter.formats.torch.pickle import Instance, PickleMachine
from converter.formats.torch.tree import MAX_NAME, lazy, listed
from converter.formats.torch.values import Names, Tensor, TypeName, attributes, is_size, refuse_unknown
from converter.storage.files import Bytes, Part, check_inside
from converter.storage.windows import Windows
from converter.tensors.dtypes import DType
from converter.tensors.tensor import LazyTensor, TensorInfo

METADATA = ".metadata"
SHARD = re.compile(r"__\d+_\d+\.distcp")
# What accelerate calls the model's folder among those of a training state.
MODELS = ("pytorch_model_fsdp_0",)
# A box is about 90 opcodes: 300,000 of them, hundreds of ranks of a model with its optimizer.
_MAX_OPCODES, _MAX_NBYTES, _MAX_BOXES = 32 << 20, 512 << 20, 1 << 19
_ROOTS = (
    "torch.distributed.checkpoint.metadata.Metadata",
    "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata",
)


def found(path: Path) -> Path | None:
    """The folder of shards that a path means: itself, that of a shard, or accelerate's within."""
    if path.is_file():
        return path.parent if path.name == METADATA or SHARD.fullmatch(path.name) else None
    folders = (path, *(path / name for name in MODELS))
    return next((each for each in folders if (each / METADATA).is_file() or any(each.glob("__*_*.distcp"))), None)


def open_dcp(path: Path, folder: Path, key: str | None) -> Checkpoint:
    """The model's tensors, each of the boxes that `.metadata` names.

    Raises:
        CorruptFile, MissingPart, UnsupportedFeature, UsageError
    """
    file = folder / METADATA
    if not file.is_file():
        raise MissingPart(f"{file}: not there, and it says what the .distcp files hold; copy this hidden file, too")
    files = Files(folder, file)
    try:
        stored = _Stored.read(files.open(METADATA))
        wanted, events = chosen(path, {name: stored.steps(name) for name in stored.tensors}, key)
        tensors = {new: _tensor(files, stored, name) for new, name in wanted.items()}
        return checkpoint(path, files, tensors, [*stored.events, *events])
    except BaseException:
        files.close()
        raise


@dataclass(frozen=True)
class _Place:
    """Where the bytes of one box are: a file of `torch.save` within a file."""

    file: object
    offset: int
    length: int


@dataclass(frozen=True)
class _Described:
    """What is said of a tensor; `dtype` is None where we have no such encoding."""

    dtype: DType | None
    shape: tuple[int, ...]
    boxes: list[Box]


@dataclass(frozen=True)
class _Stored:
    """What `.metadata` says: of each tensor its boxes, of each box by name and offset the place."""

    path: Path
    tensors: dict[str, _Described]
    places: dict[tuple[str, tuple[int, ...]], _Place]
    ways: Mapping[Any, Any]
    events: list[Event]

    @classmethod
    def read(cls, mapped: Bytes) -> _Stored:
        """Raises CorruptFile, UnsupportedFeature."""
        path = mapped.path
        root = attributes(_unpickled(mapped))
        described, stored = root.get("state_dict_metadata"), root.get("storage_data")
        if type(described) is not dict or type(stored) is not dict:
            raise CorruptFile(f"{path}: does not say what is stored, and where")
        tensors: dict[str, _Described] = {}
        others, count = [], 0
        for name, about in described.items():
            if type(name) is not str or len(name) > MAX_NAME:
                raise CorruptFile(f"{path}: {short(name)} is not the name of a tensor")
            check_name(path, name)
            if said := attributes(about):
                tensors[name] = _described(path, name, said)
                count += len(tensors[name].boxes)
            else:
                others.append(name)
            if count > _MAX_BOXES:  # more than there is room for, so that many tensors share a list of them
                raise CorruptFile(f"{path}: tensors in more than {_MAX_BOXES} pieces")
        places = dict(_place(path, index, info) for index, info in stored.items())
        ways = root.get("planner_data")
        events: list[Event] = []
        if others:
            events = [MetadataLost(listed(others), f"{len(others)} values that are no tensors")]
        return cls(path, tensors, places, ways if type(ways) is dict else {}, events)

    def steps(self, name: str) -> Steps:
        """The keys that lead to a tensor; its name alone where nothing is said of them."""
        way = self.ways.get(name)
        if type(way) is not tuple or len(way) > MAX_AXES or not all(type(step) in (str, int) for step in way):
            return (name,)
        steps = tuple(str(step) for step in way)
        # Names are such steps, joined; lengths first, as many names can share one long step.
        return steps if sum(map(len, steps)) + len(steps) - 1 == len(name) and ".".join(steps) == name else (name,)


def _unpickled(mapped: Bytes) -> Any:
    path, names = mapped.path, Names(script=False)
    if mapped.size > _MAX_NBYTES:
        raise CorruptFile(f"{path}: {mapped.size} bytes, the limit is {_MAX_NBYTES}")
    machine = PickleMachine(Windows(mapped), "it", names.find, _no_storage, _MAX_OPCODES)
    root = machine.run()
    refuse_unknown(path, names.unknown)
    if machine.position != mapped.size:
        raise CorruptFile(f"{path}: {mapped.size - machine.position} bytes follow the end of its pickle")
    if type(root) is not Instance or root.name not in _ROOTS:
        raise CorruptFile(f"{path}: a pickle, but not the metadata of a distributed checkpoint")
    return root


def _no_storage(pid: Any) -> Any:
    raise CorruptFile("a storage where there can be none")


def _described(path: Path, name: str, said: Mapping[Any, Any]) -> _Described:
    properties, chunks = said.get("properties"), said.get("chunks")
    shape: Any = said.get("size")
    state = properties.state if type(properties) is Instance else None
    kind = state[0] if type(state) is tuple and state else attributes(properties).get("dtype")
    boxes = [attributes(chunk) for chunk in chunks] if type(chunks) is list and len(chunks) <= _MAX_BOXES else []
    sizes: list[Any] = [(box.get("offsets"), box.get("sizes")) for box in boxes]
    shapes = (shape, *(each for box in sizes for each in box))
    if type(kind) is not TypeName or type(chunks) is not list or not all(map(_is_shape, shapes)):
        raise CorruptFile(f"{path}: what it says of tensor {short(name)} makes no sense")
    check_elements(path, name, shape)
    return _Described(kind.dtype, shape, list(dict.fromkeys(sizes)))


def _is_shape(value: Any) -> bool:
    return type(value) is tuple and len(value) <= MAX_AXES and all(map(is_size, value))


def _place(path: Path, index: Any, info: Any) -> tuple[tuple[str, tuple[int, ...]], _Place]:
    key, place = attributes(index), attributes(info)
    name, offset = key.get("fqn"), key.get("offset")
    start: Any = place.get("offset")
    length: Any = place.get("length")
    if type(name) is not str or not (offset is None or _is_shape(offset)):
        raise CorruptFile(f"{path}: what it says of a place makes no sense")
    if not is_size(start) or not is_size(length):
        raise CorruptFile(f"{path}: the place of {short(name)} makes no sense")
    if place.get("transform_descriptors"):
        raise UnsupportedFeature(
            f"{path}: {short(name)} was changed by an extension when it was saved; save it without"
        )
    return (name, offset or ()), _Place(place.get("relative_path"), start, length)


def _tensor(files: Files, stored: _Stored, name: str) -> LazyTensor:
    said, dtype = stored.tensors[name], stored.tensors[name].dtype
    what = f"tensor {short(name)}"
    if dtype is None:
        raise UnsupportedFeature(f"{stored.path}: {what} has a type that no format here can hold")
    info = TensorInfo(name, said.shape, dtype)
    pieces = []
    for offset, size in said.boxes:
        place = stored.places.get((name, offset))
        if place is None:
            raise CorruptFile(f"{stored.path}: {what} has a piece at {list(offset)}, and nothing says where")
        mapped = files.open(place.file)
        check_inside(mapped, place.offset, place.length, what)
        file = open_file(Part(mapped, place.offset, place.length))
        refuse_unknown(mapped.path, file.unknown)
        if not isinstance(file.root, Tensor) or (file.root.dtype, file.root.shape) != (dtype, size):
            raise CorruptFile(f"{mapped.path}: at {place.offset} is not the piece of {what} that {METADATA} says")
        files.checks.append(file.check)
        pieces.append(Piece(offset, lazy(file, name, file.root)))
    return assembled(stored.path, info, pieces)
