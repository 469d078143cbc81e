"""Megatron-LM's older checkpoints: `iter_0000100/mp_rank_TT_PPP/model_optim_rng.pt`, under Megatron's own names.

Source: Megatron-LM's `training/checkpointing.py` (names and contents), `core/tensor_parallel/layers.py` and the modules
that use them (which weights are cut along which axis), `core/transformer/mlp.py` (gates). How a tensor is cut nobody
wrote down, so its name must tell; what every rank has whole is compared. (`torch_dist`, the newer kind, is a checkpoint
of torch.distributed, which says all this.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, UsageError, short
from converter.events import Dropped, Event
from converter.formats.distributed import dcp
from converter.formats.distributed.folder import Files, Saved, checkpoint, replicated
from converter.formats.distributed.pieces import Piece, assembled
from converter.formats.torch.tree import lazy
from converter.formats.torch.values import attributes
from converter.storage.files import local, regular_size
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

LATEST = "latest_checkpointed_iteration.txt"
_RANK = re.compile(r"mp_rank_(\d{2,6})(?:_(\d{3,6}))?")
_MODEL_FILES = ("model_optim_rng.pt", "model_rng.pt")
MODEL = "model"

# How names end -> the axis along which tensor parallelism cuts; None for what every rank has whole. The first counts.
_CUT: tuple[tuple[str, int | None], ...] = (
    (r"(word_embeddings|word_embeddings_for_head|output_layer|lm_head)\.weight", 0),
    (r"(lm_head|output_layer)\.bias", 0),
    (r"(query_key_value|query|key_value|linear_qkv|linear_q|linear_kv)\.(weight|bias)", 0),
    (r"(dense_h_to_4h|linear_fc1)\.(weight|bias)", 0),
    (r"(attention|inter_attention|self_attention)\.dense\.weight", 1),
    (r"(dense_4h_to_h|linear_fc2|linear_proj)\.weight", 1),
    (r"(dense|dense_4h_to_h|linear_fc2|linear_proj)\.bias", None),
    (r"([a-z_]*norm[a-z_0-9]*|[a-z_]*layer_?norm[a-z_0-9]*)\.(weight|bias)", None),
    (r"(linear_qkv|linear_fc1|linear_q|linear_kv)\.layer_norm_(weight|bias)", None),
    (r"(position_embeddings|tokentype_embeddings|router|gate)\.(weight|bias)", None),
    (r"rotary_pos_emb\.inv_freq", None),
)
_ENDS = [(re.compile(rf"(?:.*\.)?{end}"), axis) for end, axis in _CUT]
# Their two halves, the gate and what it opens, are cut each.
_GATED = re.compile(r"(?:.*\.)?(dense_h_to_4h|linear_fc1)\.(weight|bias)")
_BLOCK = re.compile(r"(.*\blayers\.)(\d{1,6})(\..*)")


def found(path: Path) -> Path | None:
    """The folder of an iteration: itself, or the one that the tracker names."""
    if not path.is_dir():
        return None
    for folder in (path, *_tracked(path)):
        if any(_RANK.fullmatch(each.parent.name) for each in _files(folder)) or dcp.found(folder) == folder != path:
            return folder
    return None


def _tracked(path: Path) -> Iterator[Path]:
    tracker = path / LATEST
    if tracker.is_file() and regular_size(tracker) < 64:
        said = local(tracker).read_bytes().decode("utf-8", "replace").strip()
        if said == "release" or said.isdecimal():
            folder = path / (said if said == "release" else f"iter_{int(said):07d}")
            yield from [folder] * folder.is_dir()


def _files(folder: Path) -> list[Path]:
    return [file for name in _MODEL_FILES for file in sorted(folder.glob(f"mp_rank_*/{name}"))]


def open_megatron(path: Path, folder: Path, key: str | None) -> Checkpoint:
    """The model's tensors, put together from the parts of the ranks.

    Raises:
        CorruptFile, MissingPart, UnsupportedFeature, UsageError
    """
    if not _files(folder):
        return dcp.open_dcp(path, folder, key)
    if key is not None:
        raise UsageError(f"--key {key}: of a Megatron checkpoint the model is read")
    files = Files(folder, folder)
    try:
        stages = _stages(files, folder)
        tensors: dict[str, LazyTensor] = {}
        blocks = 0
        for stage in stages:
            made = [_whole(files, stage, name) for name in stage[0].saved.tensors]
            named = {_counted(tensor.name, blocks): tensor for tensor in made}
            for name, tensor in named.items():
                tensor = tensor.renamed(name) if name != tensor.name else tensor
                tensors[name] = replicated(files, [tensors[name], tensor]) if name in tensors else tensor
            blocks += 1 + max(
                (int(match[2]) for name in stage[0].saved.tensors if (match := _BLOCK.fullmatch(name))), default=-1
            )
        has = any(part.optimizer for stage in stages for part in stage)
        events: list[Event] = [Dropped("optimizer", "its states, beside the model")] * has
        return checkpoint(path, files, tensors, [*stages[0][0].saved.events(), *events])
    except BaseException:
        files.close()
        raise


def _counted(name: str, before: int) -> str:
    """The name with its block counted from the first stage of the pipeline; each stage counts from its own."""
    match = _BLOCK.fullmatch(name)
    return f"{match[1]}{int(match[2]) + before}{match[3]}" if match else name


@dataclass(frozen=True)
class _Part:
    """What one rank saved: its tensors, the arguments of the run, whether an optimizer is there, too."""

    saved: Saved
    arguments: Mapping[Any, Any]
    version: float
    optimizer: bool

    @classmethod
    def read(cls, files: Files, name: str) -> _Part:
        file = files.torch(name)
        root = file.root if type(file.root) is dict else {}
        if "model0" in root:
            raise UnsupportedFeature(f"{file.mapped.path}: a pipeline with virtual stages is not read")
        if type(root.get(MODEL)) is not dict:
            raise CorruptFile(f"{file.mapped.path}: holds no {MODEL!r}, as Megatron's files do")
        version = root.get("checkpoint_version", 0)
        return cls(
            Saved.of(file, root[MODEL]),
            attributes(root.get("args")),
            float(version) if type(version) in (int, float) else 0.0,
            "optimizer" in root,
        )


def _stages(files: Files, folder: Path) -> list[list[_Part]]:
    """The parts by stage of the pipeline and rank of tensor parallelism, none missing."""
    found: dict[tuple[int, int], str] = {}
    for file in _files(folder):
        match = _RANK.fullmatch(file.parent.name)
        if match is None:
            raise CorruptFile(f"{file}: its folder is not that of a rank")
        found.setdefault((int(match[2] or 0), int(match[1])), f"{file.parent.name}/{file.name}")
    stages, ranks = (max(at) + 1 for at in zip(*found, strict=True))
    for stage in range(stages):
        for rank in range(ranks):
            if (stage, rank) not in found:
                raise MissingPart(f"{folder}: the files of rank {rank} of stage {stage} are not there; copy them, too")
    parts = [[_Part.read(files, found[stage, rank]) for rank in range(ranks)] for stage in range(stages)]
    said = [parts[0][0].arguments.get(f"{kind}_model_parallel_size") for kind in ("pipeline", "tensor")]
    for number, count, what in zip(said, (stages, ranks), ("stages", "ranks"), strict=True):
        if type(number) is int and number != count:
            raise MissingPart(f"{folder}: the files of {count} {what} are there, of {number}; copy the others, too")
    for stage_parts in parts:
        for part in stage_parts[1:]:
            if different := part.saved.tensors.keys() ^ stage_parts[0].saved.tensors.keys():
                raise CorruptFile(f"{part.saved.path}: tensor {short(min(different))} is not in the files of all ranks")
    return parts


def _whole(files: Files, parts: Sequence[_Part], name: str) -> LazyTensor:
    own = [lazy(part.saved.file, name, part.saved.tensors[name]) for part in parts]
    if len(own) == 1:
        return own[0]
    path, first = parts[0].saved.path, own[0].info
    axis = next((axis for end, axis in _ENDS if end.fullmatch(name)), -1)
    if axis == -1:
        raise UnsupportedFeature(
            f"{path}: how tensor {short(name)} is cut its name does not tell\n"
            "convert the checkpoint to torch_dist with Megatron's own tool, which writes it down"
        )
    if axis is None:
        return replicated(files, own)
    if any(tensor.info != first for tensor in own) or len(first.shape) <= axis:
        raise CorruptFile(f"{path}: the parts of tensor {short(name)} have different shapes or types")
    if "query_key_value" in name and parts[0].version < 2:
        raise UnsupportedFeature(
            f"{path}: tensor {short(name)} is in the order of checkpoint_version 0 or 1, save it anew"
        )
    shape = tuple(size * len(own) if each == axis else size for each, size in enumerate(first.shape))
    halves = 2 if _GATED.fullmatch(name) and _gated(path, name, parts[0]) else 1
    return assembled(path, replace(first, shape=shape), _pieces(path, own, axis, halves))


def _gated(path: Path, name: str, part: _Part) -> bool:
    """Whether a block's first matrix is two, which the run's arguments say."""
    said = [part.arguments.get(key) for key in ("swiglu", "gated_linear_unit", "glu_activation")]
    if not part.arguments:
        raise UnsupportedFeature(
            f"{path}: whether tensor {short(name)} is one matrix or two only `args` tell, not there"
        )
    return any(each not in (None, False) for each in said)


def _pieces(path: Path, own: Sequence[LazyTensor], axis: int, halves: int) -> Iterable[Piece]:
    size = own[0].info.shape[axis]
    if size % halves:
        raise CorruptFile(f"{path}: tensor {short(own[0].name)} has {size} rows, which are not two halves")
    part = size // halves
    for rank, tensor in enumerate(own):
        for half in range(halves):
            offset = [0] * len(tensor.info.shape)
            offset[axis] = half * part * len(own) + rank * part
            yield Piece(tuple(offset), tensor if halves == 1 else _rows(tensor, half * part, part))


def _rows(tensor: LazyTensor, first: int, count: int) -> LazyTensor:
    """Part of a tensor along its first axis; of a vector that is part of its one row."""
    info = TensorInfo(tensor.name, (count, *tensor.info.shape[1:]), tensor.info.dtype)
    inner = tensor.info.n_rows // max(1, tensor.info.shape[0])

    def read(start: int, stop: int) -> Rows:
        if len(info.shape) == 1:
            size = info.dtype.type_size
            return tensor.rows(start, stop)[:, first * size : (first + count) * size]
        return tensor.rows(first * inner + start, first * inner + stop)

    return tensor.derived(info, read)
