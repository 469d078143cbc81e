"""A state dict for each rank of FSDP, as verl saves them: `model_world_size_N_rank_R.pt` of DTensors or ShardedTensors.

Source: `torch/distributed/tensor` (`_utils.compute_local_shape_and_global_offset`, placement_types.py),
`torch/distributed/_shard/sharded_tensor`, verl's `FSDPCheckpointManager`. Where a rank's part belongs is computed from
its place in the mesh and from how the tensor is placed there, and compared with what the file holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature, short
from converter.formats.base import MAX_AXES, check_elements
from converter.formats.distributed.folder import Files, Saved, checkpoint, replicated
from converter.formats.distributed.names import chosen
from converter.formats.distributed.pieces import Piece, assembled
from converter.formats.torch.pickle import Instance
from converter.formats.torch.tree import lazy
from converter.formats.torch.values import Refused, Sharded, Tensor, attributes, is_size
from converter.tensors.tensor import LazyTensor, TensorInfo

_FILE = re.compile(r"model_world_size_(\d{1,6})_rank_\d{1,6}\.pt")
_PATTERN = "model_world_size_*_rank_*.pt"


def found(path: Path) -> Path | None:
    """The folder itself, where files of ranks are in it."""
    return path if path.is_dir() and _worlds(path) else None


def _worlds(folder: Path) -> set[int]:
    return {int(match[1]) for file in folder.glob(_PATTERN) if (match := _FILE.fullmatch(file.name))}


def open_ranks(path: Path, folder: Path, key: str | None) -> Checkpoint:
    """The tensors that the ranks' files hold together.

    Raises:
        CorruptFile, MissingPart, UnsupportedFeature, UsageError
    """
    worlds = _worlds(folder)
    if len(worlds) > 1:
        said = ", ".join(map(str, sorted(worlds)[:4]))
        raise UnsupportedFeature(f"{folder}: the files of several runs (of {said} ranks)\nkeep those of one")
    files, world = Files(folder, folder), worlds.pop()
    try:
        ranks = [files.saved(f"model_world_size_{world}_rank_{rank}.pt") for rank in range(world)]
        for rank in ranks[1:]:
            if different := rank.tensors.keys() ^ ranks[0].tensors.keys():
                name = min(different)
                raise CorruptFile(f"{rank.path}: only one of this and {ranks[0].path.name} has tensor {short(name)}")
        wanted, events = chosen(path, ranks[0].steps, key)
        tensors = {new: _tensor(files, ranks, name) for new, name in wanted.items()}
        return checkpoint(path, files, tensors, [*ranks[0].events(), *events])
    except BaseException:
        files.close()
        raise


def _tensor(files: Files, ranks: Sequence[Saved], name: str) -> LazyTensor:
    parts = [rank.tensors[name] for rank in ranks]
    kinds = {type(part) for part in parts}
    if kinds == {Tensor}:
        return replicated(files, [lazy(rank.file, name, rank.tensors[name]) for rank in ranks])
    refused = next((part for part in parts if type(part) is Refused), None)
    if refused is not None:
        raise UnsupportedFeature(f"{ranks[0].path}: tensor {short(name)}: {refused.reason}")
    shards = [part for part in parts if isinstance(part, Sharded)]
    if len(shards) != len(parts):
        raise CorruptFile(f"{ranks[0].path}: tensor {short(name)} is whole in some ranks' files, and a part in others")
    return _Whole(name, ranks, shards).assembled()


@dataclass(frozen=True)
class _Whole:
    """A tensor and what each rank has of it."""

    name: str
    ranks: Sequence[Saved]
    parts: Sequence[Sharded]

    def assembled(self) -> LazyTensor:
        path, first = self.ranks[0].path, self.parts[0]
        for rank, part in zip(self.ranks, self.parts, strict=True):
            if (part.dtype, part.shape) != (first.dtype, first.shape):
                raise CorruptFile(
                    f"{rank.path}: tensor {short(self.name)} has another shape or type than in {path.name}"
                )
        check_elements(path, self.name, first.shape)
        info = TensorInfo(self.name, first.shape, first.dtype)
        pieces: dict[Any, Piece] = {}
        for piece in self._sharded() if type(first.state) is tuple and len(first.state) > 2 else self._placed():
            pieces.setdefault((piece.offset, piece.tensor.info.shape), piece)  # the first of those that replicate it
        return assembled(path, info, pieces.values())

    def _local(self, index: int, value: Any) -> LazyTensor:
        rank = self.ranks[index]
        if not isinstance(value, Tensor) or value.dtype != self.parts[index].dtype:
            raise CorruptFile(
                f"{rank.path}: what it holds of tensor {short(self.name)} is no tensor, or of another type"
            )
        return lazy(rank.file, self.name, value)

    def _wrong(self, index: int, what: str) -> CorruptFile:
        return CorruptFile(f"{self.ranks[index].path}: tensor {short(self.name)}: {what}")

    # ------------------------------------------------------------------------------------ ShardedTensor

    def _sharded(self) -> list[Piece]:
        """Each of a rank's shards says where it belongs."""
        pieces = []
        for index, part in enumerate(self.parts):
            shards = part.state[0] if type(part.state) is tuple and part.state else None
            if type(shards) is not list or len(shards) > _MAX_SHARDS:
                raise self._wrong(index, "its shards are not listed")
            for shard in map(attributes, shards):
                said = attributes(shard.get("metadata"))
                offset: Any = said.get("shard_offsets")
                shape: Any = said.get("shard_sizes")
                local = self._local(index, shard.get("tensor"))
                if not _is_place(offset) or not _is_place(shape) or tuple(shape) != local.info.shape:
                    raise self._wrong(index, "a shard has another shape than it says, or says no place")
                pieces.append(Piece(tuple(offset), local))
        return pieces

    # ------------------------------------------------------------------------------------------ DTensor

    def _placed(self) -> list[Piece]:
        """Where a rank's part belongs follows from its coordinates in the mesh, along whose axes the tensor is cut."""
        specs = [attributes(attributes(part.state).get("_spec")) for part in self.parts]
        coordinates = [self._coordinate(index, spec) for index, spec in enumerate(specs)]
        mesh = tuple(max(along) + 1 for along in zip(*coordinates, strict=True))
        if len(set(coordinates)) != len(coordinates) or math.prod(mesh) != len(coordinates):
            raise self._wrong(0, f"the {len(coordinates)} ranks do not fill their mesh of {list(mesh)}")
        pieces = []
        for index, (spec, coordinate) in enumerate(zip(specs, coordinates, strict=True)):
            local = self._local(index, attributes(self.parts[index].state).get("_local_tensor"))
            offset, shape = self._place(index, spec.get("placements"), mesh, coordinate)
            if local.info.shape != shape:
                raise self._wrong(index, f"its part is {list(local.info.shape)}, where {list(shape)} is its share")
            pieces.append(Piece(offset, local))
        return pieces

    def _coordinate(self, index: int, spec: Mapping[Any, Any]) -> tuple[int, ...]:
        said: Any = attributes(spec.get("mesh")).get("_coordinate_on_dim")
        if not _is_place(said) or not said or any(at >= len(self.ranks) for at in said):
            raise self._wrong(index, "nothing says where the rank is in its mesh")
        return tuple(said)

    def _place(
        self, index: int, placements: Any, mesh: tuple[int, ...], coordinate: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Offset and shape of the part at `coordinate`.

        The axes of the mesh cut in their order, but for those that cut after later ones (`_StridedShard`: FSDP of what
        tensor parallelism has cut before).
        """
        known = type(placements) is tuple and len(placements) == len(mesh)
        kinds = [each.name.rpartition(".")[2] for each in placements if type(each) is Instance] if known else []
        if len(kinds) != len(mesh) or not set(kinds) <= _PLACEMENTS:
            raise UnsupportedFeature(
                f"{self.ranks[index].path}: tensor {short(self.name)} is placed by {', '.join(map(short, kinds))}, "
                "which is not read"
            )
        late = [axis for axis, kind in enumerate(kinds) if kind == "_StridedShard"]
        early = [axis for axis, kind in enumerate(kinds) if kind == "Shard"]
        offset, shape = [0] * len(self.parts[index].shape), list(self.parts[index].shape)
        cut_before = [1] * len(shape)
        for axis in (*early, *reversed(late)):
            said = attributes(placements[axis])
            dim = said.get("dim")
            if type(dim) is not int or not 0 <= dim < len(shape):
                raise self._wrong(index, "is cut along an axis that it has not")
            if axis in late and said.get("split_factor") != cut_before[dim]:
                raise UnsupportedFeature(
                    f"{self.ranks[index].path}: tensor {short(self.name)} is cut in an order not known"
                )
            step = -(-shape[dim] // mesh[axis])
            start = min(coordinate[axis] * step, shape[dim])
            offset[dim] += start
            shape[dim] = min(step, shape[dim] - start)
            cut_before[dim] *= mesh[axis]
        return tuple(offset), tuple(shape)


_MAX_SHARDS = 16  # of a tensor that one rank has
_PLACEMENTS = {"Shard", "_StridedShard", "Replicate"}


def _is_place(value: Any) -> bool:
    return type(value) in (list, tuple) and len(value) <= MAX_AXES and all(map(is_size, value))
