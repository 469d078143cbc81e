"""DeepSpeed's checkpoints: the FP32 weights in the optimizer's partitions (ZeRO 1 to 3), or the module's own.

Source: DeepSpeed's `runtime/engine.py` (names and contents of the files), `runtime/zero/stage_1_and_2.py`, `stage3.py`,
`runtime/bf16_optimizer.py`, and what `utils/zero_to_fp32.py` makes of them. The optimizer flattens all weights of a
group one after the other: ZeRO 1 and 2 cut that vector into a partition for each rank, ZeRO 3 cuts each weight.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, UsageError, short
from converter.events import Dropped, Event, Note
from converter.formats.base import MAX_AXES, check_elements, check_name
from converter.formats.distributed.folder import Files, Saved, checkpoint
from converter.formats.distributed.pieces import Run, strung
from converter.formats.torch.files import TorchFile
from converter.formats.torch.tree import MAX_NAME, MAX_TENSORS, lazy
from converter.formats.torch.values import Tensor, is_size
from converter.storage.files import local, regular_size
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo

_OPTIMIZER = re.compile(r"(?:[bf]+16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d{1,6})_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{1,6})_model_states\.pt")
# Files of pipelines and of mixtures, which have parts of the model that the others have not.
_OTHERS = re.compile(r"(layer_|expp_rank_).*_states\.pt")
_TAG = re.compile(r"[\w.-]{1,255}")
MODULE = "module"
_MAX_GROUPS = 1 << 14  # of a rank's weights
# Where the partitions of ZeRO 1 and 2 are in an optimizer's state, and those of ZeRO 3.
_FLAT, _FLAT_3 = "single_partition_of_fp32_groups", "fp32_flat_groups"


def found(path: Path) -> Path | None:
    """The folder of a step: itself, or the one that the file `latest` names."""
    if not path.is_dir():
        return None
    if _has_states(path):
        return path
    latest = path / "latest"
    if latest.is_file() and regular_size(latest) < 256:
        tag = local(latest).read_bytes().decode("utf-8", "replace").strip()
        if _TAG.fullmatch(tag) and (path / tag).is_dir() and _has_states(path / tag):
            return path / tag
    return None


def _has_states(folder: Path) -> bool:
    names = (file.name for file in folder.glob("*_states.pt"))
    return any(_MODEL.fullmatch(name) or _OPTIMIZER.fullmatch(name) for name in names)


def open_zero(path: Path, folder: Path, key: str | None) -> Checkpoint:
    """The FP32 weights, where the optimizer's files are there; `module` as key, or nothing else there: the module's.

    Raises:
        CorruptFile, MissingPart, UnsupportedFeature, UsageError
    """
    if key not in (None, MODULE):
        raise UsageError(f"--key {key}: of a DeepSpeed checkpoint only {MODULE!r} can be asked for, the 16-bit weights")
    names = sorted(file.name for file in folder.glob("*_states.pt"))
    if other := next((name for name in names if _OTHERS.fullmatch(name)), None):
        raise _apart(folder / other, "a stage of a pipeline, or experts, in files of their own")
    models, optimizers = _by_rank(folder, names, _MODEL), _by_rank(folder, names, _OPTIMIZER)
    if not models:
        raise MissingPart(
            f"{folder}: no *_model_states.pt, which says what the optimizer's partitions are; copy it, too"
        )
    files = Files(folder, folder)
    try:
        states = [_State.read(files.torch(name)) for name in models]
        if key == MODULE or not optimizers:
            tensors, events = _module(states[0])
        else:
            tensors, events = _masters(states, [files.torch(name) for name in optimizers])
        return checkpoint(path, files, tensors, events)
    except BaseException:
        files.close()
        raise


def _apart(path: Path, what: str) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"{path}: {what}, which no name puts together again; it is not read\n"
        "make a whole model of it first, with the tool of what trained it (GPT-NeoX and Megatron-DeepSpeed have one)"
    )


def _by_rank(folder: Path, names: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    """The files of a pattern in the order of their ranks, none missing."""
    numbered: dict[int, str] = {}
    for name in names:
        if match := pattern.fullmatch(name):
            if int(match[2]):
                raise _apart(folder / name, "a part of weights that tensor parallelism has cut")
            if numbered.setdefault(int(match[1] or 0), name) != name:
                raise CorruptFile(f"{folder}: {name} and {numbered[int(match[1] or 0)]} are of the same rank")
    for rank in range(len(numbered)):
        if rank not in numbered:
            beside = numbered[max(numbered)]
            raise MissingPart(f"{folder}: the file of rank {rank} is not there, beside {beside}; copy it, too")
    return [numbered[rank] for rank in range(len(numbered))]


@dataclass(frozen=True)
class _State:
    """What a file of model states says: shapes of the weights by group, and what of them lies in the file."""

    module: Saved
    shapes: list[dict[str, tuple[int, ...]]]
    frozen: dict[str, tuple[int, ...]]
    fragments: Mapping[Any, Any]
    buffers: list[str]
    shared: dict[str, str]

    @property
    def path(self) -> Path:
        return self.module.path

    @classmethod
    def read(cls, file: TorchFile) -> _State:
        root, path = file.root, file.mapped.path
        if type(root) is not dict or type(root.get(MODULE)) is not dict:
            raise CorruptFile(f"{path}: holds no {MODULE!r}, as DeepSpeed's model states do")
        cut = root.get("mp_world_size")
        if type(cut) is int and cut > 1:
            raise _apart(path, f"a part of weights that tensor parallelism has cut, by {cut}")
        said = root.get("param_shapes")
        groups = said if type(said) is list else [said or {}]
        if sum(len(group) for group in groups if type(group) is dict) > MAX_TENSORS or len(groups) > _MAX_GROUPS:
            raise CorruptFile(f"{path}: says the shapes of more than {MAX_TENSORS} tensors")
        shared = root.get("shared_params") or {}
        if type(shared) is not dict or not all(type(name) is str for pair in shared.items() for name in pair):
            raise CorruptFile(f"{path}: what it says of shared weights makes no sense")
        buffers = root.get("buffer_names")
        return cls(
            Saved.of(file, root[MODULE]),
            [_shapes(path, group) for group in groups],
            _shapes(path, root.get("frozen_param_shapes") or {}),
            root.get("frozen_param_fragments") or {},
            [name for name in buffers if type(name) is str] if type(buffers) is list else [],
            dict(shared),
        )


def _shapes(path: Path, said: Any) -> dict[str, tuple[int, ...]]:
    if type(said) is not dict:
        raise CorruptFile(f"{path}: what it says of the shapes of weights makes no sense")
    for name, shape in said.items():
        if type(name) is not str or len(name) > MAX_NAME or type(shape) is not tuple or len(shape) > MAX_AXES:
            raise CorruptFile(f"{path}: the shape of tensor {short(name)} makes no sense")
        if not all(map(is_size, shape)):
            raise CorruptFile(f"{path}: the shape of tensor {short(name)} makes no sense")
        check_name(path, name)
        check_elements(path, name, shape)
    return dict(said)


def _module(state: _State) -> tuple[dict[str, LazyTensor], list[Event]]:
    """The weights as the module had them, which ZeRO 3 leaves empty."""
    wanted = {name: shape for group in state.shapes for name, shape in group.items()}
    tensors = {}
    for name, value in state.module.tensors.items():
        tensors[name] = lazy(state.module.file, name, value)
        if tensors[name].info.shape != wanted.get(name, tensors[name].info.shape):
            raise MissingPart(
                f"{state.path}: tensor {short(name)} is empty here, as ZeRO 3 leaves it; its parts are in the files\n"
                "*_optim_states.pt, which are read where they are there and no --key is given"
            )
    return tensors, [Note("the weights are the module's, in the type that it trained in"), *state.module.file.events]


def _masters(states: Sequence[_State], optimizers: Sequence[TorchFile]) -> tuple[dict[str, LazyTensor], list[Event]]:
    """The weights that the optimizer changes, in FP32; frozen ones and buffers as the module has them."""
    first = states[0]
    roots = [_optimizer(file) for file in optimizers]
    _check_count(optimizers, roots)
    stage3 = [_FLAT_3 in root for root in roots]
    if any(stage3) != all(stage3):
        raise CorruptFile(f"{optimizers[0].mapped.path}: the optimizer's files are of different stages of ZeRO")
    groups = [
        _vectors(file, root.get(_FLAT_3 if stage3[0] else _FLAT)) for file, root in zip(optimizers, roots, strict=True)
    ]
    tensors: dict[str, LazyTensor] = {}
    for name in first.buffers:
        if name in first.module.tensors:
            tensors[name] = lazy(first.module.file, name, first.module.tensors[name])
    if stage3[0]:
        if len(states) != len(optimizers):
            raise MissingPart(f"{first.path.parent}: {len(states)} files of model states for {len(optimizers)} ranks")
        made = [*_frozen_3(states), *_weights_3(first, groups)]
    else:
        made = [*_frozen(first), *_weights(first, groups, roots[0].get("param_alignment_paddings"))]
    for tensor in made:
        if tensor.name in tensors:
            raise CorruptFile(f"{first.path}: tensor {short(tensor.name)} stands twice")
        tensors[tensor.name] = tensor
    for name, other in first.shared.items():
        if other in tensors and name not in tensors:
            tensors[name] = tensors[other].renamed(name)
    own = first.module.tensors
    if not stage3[0]:  # ZeRO 1 says nothing of frozen weights
        tensors |= {name: lazy(first.module.file, name, own[name]) for name in own if name not in tensors}
    tensors = {name: tensors[name] for name in dict.fromkeys((*own, *tensors)) if name in tensors}
    sixteen = "" if stage3[0] else "; --key module takes those that the module trained with"
    events = [Note(f"the weights are the optimizer's, in FP32{sixteen}"), Dropped("optimizer", "its other states")]
    return tensors, [*first.module.file.events, *events]


def _optimizer(file: TorchFile) -> Mapping[Any, Any]:
    root = file.root.get("optimizer_state_dict") if type(file.root) is dict else None
    if type(root) is not dict or not (_FLAT in root or _FLAT_3 in root):
        raise CorruptFile(f"{file.mapped.path}: holds no FP32 partitions of a ZeRO optimizer")
    return root


def _check_count(files: Sequence[TorchFile], roots: Sequence[Mapping[Any, Any]]) -> None:
    """An optimizer says how many it was cut into; of groups with different numbers the largest counts."""
    said = roots[0].get("partition_count")
    counts = said if type(said) is list else [said]
    if all(type(count) is int for count in counts) and counts and max(counts) != len(files):
        raise MissingPart(
            f"{files[0].mapped.path.parent}: {len(files)} files of the optimizer, it was cut into {max(counts)}\n"
            "copy the others, too, or keep those of one run"
        )


def _vectors(file: TorchFile, said: Any) -> list[LazyTensor]:
    """A rank's partitions, each a vector whose rows are its elements."""
    values = said if type(said) is list else [said]
    if len(values) > _MAX_GROUPS:
        raise CorruptFile(f"{file.mapped.path}: more than {_MAX_GROUPS} partitions")
    return [_vector(file, f"partition {index}", value) for index, value in enumerate(values)]


def _vector(file: TorchFile, name: str, value: Any) -> LazyTensor:
    if not isinstance(value, Tensor) or len(value.shape) != 1:
        raise CorruptFile(f"{file.mapped.path}: {short(name)} is not a vector")
    return lazy(file, name, Tensor(value.storage, value.dtype, value.offset, (*value.shape, 1), (*value.stride, 1)))


class _Row:
    """Vectors that follow each other, as one."""

    def __init__(self, path: Path, vectors: Sequence[LazyTensor]) -> None:
        self._path, self._vectors = path, vectors
        self._ends = list(accumulate(vector.info.shape[0] for vector in vectors))
        self.size = self._ends[-1] if vectors else 0

    def runs(self, name: str, start: int, count: int) -> list[Run]:
        """Elements [start, start + count).

        Raises:
            CorruptFile: there are not so many.
        """
        stop = start + count
        if stop > self.size:
            raise CorruptFile(
                f"{self._path}: tensor {short(name)} needs elements {start} to {stop} of a partition of {self.size}"
            )
        found = []
        at = bisect_right(self._ends, start)
        while start < stop:
            vector, end = self._vectors[at], self._ends[at]
            base = end - vector.info.shape[0]
            if start < end:
                found.append(Run(vector, start - base, min(stop, end) - base))
            start, at = max(start, end), at + 1
        return found


def _strung(path: Path, name: str, shape: tuple[int, ...], runs: Sequence[Run]) -> LazyTensor:
    """The first elements of the runs, which are as many as the shape has or more, as a tensor."""
    left = math.prod(shape)
    taken = []
    for run in runs:
        count = min(left, run.stop - run.start)
        taken.append(Run(run.vector, run.start, run.start + count))
        left -= count
    dtypes = {run.vector.info.dtype.name: run.vector.info.dtype for run in taken} or {"F32": DTYPES["F32"]}
    if left or len(dtypes) > 1:
        raise CorruptFile(f"{path}: tensor {short(name)} of shape {list(shape)} is not whole, or of several types")
    return strung(TensorInfo(name, shape, next(iter(dtypes.values()))), taken)


# ------------------------------------------------------------------------------------------ ZeRO 1 and 2


def _weights(state: _State, ranks: Sequence[Sequence[LazyTensor]], paddings: Any) -> Iterator[LazyTensor]:
    """A group is one vector; each rank has the next part of it, the last one up to 2 elements a rank too many."""
    for number, shapes in enumerate(state.shapes):
        if not all(number < len(rank) for rank in ranks):
            raise CorruptFile(f"{state.path}: group {number} of the weights has no partition in some ranks' files")
        row = _Row(state.path, [rank[number] for rank in ranks])
        behind = paddings[number] if type(paddings) is list and number < len(paddings) else [0] * len(shapes)
        if type(behind) is not list or len(behind) != len(shapes) or not all(map(is_size, behind)):
            raise CorruptFile(f"{state.path}: what stands between the weights of group {number} makes no sense")
        start = 0
        for (name, shape), padding in zip(shapes.items(), behind, strict=True):
            yield _strung(state.path, name, shape, row.runs(name, start, math.prod(shape)))
            start += math.prod(shape) + padding
        unit = 2 * len(ranks)
        if -(-row.size // unit) != -(-start // unit):
            raise CorruptFile(f"{state.path}: group {number} has {row.size} elements, its weights have {start}")


def _frozen(state: _State) -> Iterator[LazyTensor]:
    for name, shape in state.frozen.items():
        value = state.fragments.get(name)
        if not isinstance(value, Tensor) or value.shape != shape:
            raise CorruptFile(f"{state.path}: the frozen tensor {short(name)} is not there, or of another shape")
        yield lazy(state.module.file, name, value)


# ------------------------------------------------------------------------------------------------ ZeRO 3


def _weights_3(state: _State, ranks: Sequence[Sequence[LazyTensor]]) -> Iterator[LazyTensor]:
    """Each weight is cut into as many equal parts as there are ranks, the last ones with zeros behind."""
    start, rows = 0, [_Row(state.path, rank) for rank in ranks]
    for name, shape in ((name, shape) for group in state.shapes for name, shape in group.items()):
        share = -(-math.prod(shape) // len(ranks))
        runs = [run for row in rows for run in row.runs(name, start, share)]
        yield _strung(state.path, name, shape, runs)
        start += share
    for row in rows:
        if row.size != start:
            raise CorruptFile(f"{state.path}: a rank has {row.size} elements, the weights of one are {start}")


def _frozen_3(states: Sequence[_State]) -> Iterator[LazyTensor]:
    for name, shape in states[0].frozen.items():
        parts = [_vector(state.module.file, name, state.fragments.get(name)) for state in states]
        yield _strung(states[0].path, name, shape, [Run(part, 0, part.info.shape[0]) for part in parts])
