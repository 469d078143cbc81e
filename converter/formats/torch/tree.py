"""From what a PyTorch file holds to named tensors: which part is the model, and what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converter.errors import CorruptFile, UnsupportedFeature, UsageError, short
from converter.events import Dropped, Event, MetadataLost, Note
from converter.formats.base import check_elements, check_name
from converter.formats.torch.exported import SAVE_A_GRAPH
from converter.formats.torch.files import TorchFile
from converter.formats.torch.pickle import Instance, Named
from converter.formats.torch.values import Refused, Tensor, refuse_unknown, some
from converter.storage.files import expands_too_far
from converter.storage.zip import Inflated, Record
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo
from converter.text import counted

# Where training programs keep the model among other things; the first that holds tensors is taken.
MODEL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params_ema",
    "params",
    "weights",
)
ALL = "."
# Shared lists can make a small pickle an endless tree, so the walk is bounded.
MAX_DEPTH = 100
MAX_NODES = 1 << 20
MAX_TENSORS = 1 << 18
MAX_NAME = 1024
MAX_NAMES = 64 << 20
# How much larger than its file the tensors may be (overlapping views, zero strides, deflate).
_SHOWN = 3


@dataclass
class Tree:
    """The tensors of a file by their path in what was saved, and what stands beside them.

    `scalars` are numbers and texts at the top; `others` counts what else is no tensor, by the first step of its path.
    `strange` are the paths of objects of unknown classes.
    """

    tensors: dict[str, Tensor | Refused] = field(default_factory=dict)
    scalars: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    strange: set[str] = field(default_factory=set)


def grow(file: TorchFile) -> Tree:
    """Walk what was saved.

    Raises:
        CorruptFile: too deep, too large, or two tensors of one name.
    """
    tree, path = Tree(), file.mapped.path
    unknown, total = frozenset(file.unknown), 0
    if _is_strange(unknown, file.root):
        tree.strange.add("")
    for name, depth, value in _leaves(file, unknown):
        if _is_strange(unknown, value):
            tree.strange.add(name)
        if not isinstance(value, Tensor | Refused):
            text = str(value) if depth == 1 and type(value) in (str, int, float, bool) else ""
            if text.isprintable() and 0 < len(text) < MAX_NAME and name.isprintable():
                tree.scalars[name] = text
            else:
                tree.others[name.partition(".")[0]] += 1
            continue
        check_name(path, name)
        total += len(name)
        if name in tree.tensors:
            raise CorruptFile(f"{path}: two tensors are called {short(name)}")
        tree.tensors[name] = value
        if len(tree.tensors) > MAX_TENSORS or total > MAX_NAMES:
            raise CorruptFile(f"{path}: more than {MAX_TENSORS} tensors, or names without end")
    return tree


def _leaves(file: TorchFile, unknown: frozenset[str]) -> Iterator[tuple[str, int, Any]]:
    """Path, number of its steps and value of everything that is no container, in order; of strange objects, too."""
    constants = {f"c{index}": value for index, value in enumerate(file.constants)}
    if _children(file.root) is None:
        yield "tensor", 1, file.root
        return
    # An iterator for each level, so that what waits is as deep as the tree and not as wide.
    levels = [("", iter([*(_children(file.root) or ()), ("CONSTANTS", constants)]))]
    nodes = 0
    while levels:
        prefix, iterator = levels[-1]
        step = next(iterator, None)
        if step is None:
            levels.pop()
            continue
        name = prefix + step[0]
        nodes += 1
        if nodes > MAX_NODES or len(name) > MAX_NAME:
            raise CorruptFile(f"{file.mapped.path}: more than {MAX_NODES} values, or names longer than {MAX_NAME}")
        children = _children(step[1])
        if children is not None and _is_strange(unknown, step[1]):
            yield name, len(levels), step[1]
        if children is None:
            yield name, len(levels), step[1]
        elif len(levels) == MAX_DEPTH:
            raise CorruptFile(f"{file.mapped.path}: nested deeper than {MAX_DEPTH} levels, or within itself")
        else:
            levels.append((name + ".", iter(children)))


def _is_strange(unknown: frozenset[str], value: Any) -> bool:
    return type(value) in (Instance, Named) and value.name in unknown


def _children(value: Any) -> Iterable[tuple[str, Any]] | None:
    """The named parts of a container; None for what is none."""
    if type(value) is dict:
        return ((_step(key), part) for key, part in value.items())
    if type(value) in (list, tuple):
        return ((str(index), part) for index, part in enumerate(value))
    if type(value) is Instance:
        state = _children(value.state)
        return (*(_children(value.mapping) or ()), *(_children(value.elements) or ()), *(state or ()))
    return None


def _step(key: Any) -> str:
    """A key as a step of a path; an object, whose text could be without end, by its class."""
    return key if type(key) is str else key.name if type(key) is Instance else str(key)


# ------------------------------------------------------------------------------------------- selection


@dataclass(frozen=True)
class Selection:
    """The tensors that were asked for; `tied` says of a name which name before it has the same bytes.

    `rest` counts those that were not asked for by the first step of their path, and `chosen` is what was.
    """

    tensors: dict[str, LazyTensor]
    tied: dict[str, str]
    metadata: dict[str, str]
    events: list[Event]
    chosen: str
    rest: Counter[str]


def select(file: TorchFile, tree: Tree, key: str | None) -> Selection:
    """The tensors under `key` (by default the model's), and what is to be said of the rest.

    Raises:
        UsageError: nothing is called so.
        CorruptFile, UnsupportedFeature: a tensor that is out of bounds, or of a kind that is not read.
    """
    path = file.mapped.path
    if key is None:
        _refuse_module(file)
    if key is None and _model(file.root, tree) == ALL:  # what is a model's and what is not, nobody said
        refuse_unknown(path, file.unknown)
    if not tree.tensors:
        raise UnsupportedFeature(f"{path}: holds no tensors")
    chosen = _model(file.root, tree) if key is None else key
    if chosen == ALL:
        wanted = dict(tree.tensors)
    else:
        start = len(chosen) + 1
        wanted = {name[start:]: value for name, value in tree.tensors.items() if name.startswith(chosen + ".")}
        if chosen in tree.tensors:
            wanted[chosen.rpartition(".")[2]] = tree.tensors[chosen]
    if not wanted:
        known = ", ".join(short(top)[1:-1] for top in list(dict.fromkeys(map(_top, tree.tensors)))[:8])
        raise UsageError(f"--key {chosen}: no tensor of {path.name} is called so (there are: {known})")
    if any(_within(tree.strange, name if chosen == ALL else f"{chosen}.{name}") for name in wanted):
        refuse_unknown(path, file.unknown)
    tensors = {name: lazy(file, name, value) for name, value in wanted.items()}
    _check_expansion(file, sum(tensor.info.nbytes for tensor in tensors.values()))
    outside = (name for name in tree.tensors if name != chosen and not name.startswith(chosen + "."))
    rest = Counter(map(_top, outside)) if chosen != ALL else Counter()
    events = [*file.events, *_left_out(file, tree, chosen, rest)]
    metadata = {**({} if file.script else tree.scalars), "format": "pt"}
    return Selection(tensors, _tied(wanted), metadata, events, chosen, rest)


def _refuse_module(file: TorchFile) -> None:
    """Refuse a model that was saved as the Python object that it is, or lies so among other things.

    Raises:
        UnsupportedFeature: as said, with what to save instead.
    """
    root = file.root
    parts = [root, *(root[key] for key in MODEL_KEYS if key in root)] if type(root) is dict else [root]
    for part in parts:
        if type(part) is Instance and type(part.state) is dict and part.state.keys() >= {"_parameters", "_modules"}:
            raise UnsupportedFeature(
                f"{file.mapped.path}: a pickled model ({short(part.name)[1:-1]}): Python's objects are never loaded\n"
                f'its tensors alone: torch.save(model.state_dict(), "weights.pt"), where the model is made\n'
                f"{SAVE_A_GRAPH}"
            )


def _within(strange: set[str], name: str) -> bool:
    """Whether a path leads through an object of an unknown class."""
    if not strange:
        return False
    steps = name.split(".")
    return "" in strange or any(".".join(steps[:end]) in strange for end in range(1, len(steps)))


def _check_expansion(file: TorchFile, nbytes: int) -> None:
    if expands_too_far(nbytes, file.mapped.size):
        raise UnsupportedFeature(f"{file.mapped.path}: {file.mapped.size} bytes that expand to {nbytes} are refused")


def _top(name: str) -> str:
    return name.partition(".")[0]


def _model(root: Any, tree: Tree) -> str:
    tops = set(map(_top, tree.tensors))
    if type(root) is dict:
        for key in MODEL_KEYS:
            if key in tops and _children(root.get(key)) is not None:
                return key
    return ALL


def _left_out(file: TorchFile, tree: Tree, chosen: str, rest: Counter[str]) -> Iterator[Event]:
    for name, count in list(rest.items())[:_SHOWN]:
        told = short(name)[1:-1]
        yield Dropped(told, f"{counted(count, 'tensor')} beside {chosen!r}; --key {told} takes them")
    if len(rest) > _SHOWN:
        yield Dropped(listed(list(rest)[_SHOWN:]), f"more tensors beside {chosen!r}")
    if file.unknown:
        yield MetadataLost(
            listed(sorted(tree.strange) or ["hooks"]), f"Python objects, never loaded: {some(file.unknown)}"
        )
    if file.script:
        yield Note("TorchScript: only tensors are read, neither programs nor settings")
        return
    if tree.scalars:
        yield Note(f"beside the tensors, kept as metadata where the output has any: {listed(list(tree.scalars))}")
    if others := {name: count for name, count in tree.others.items() if name not in rest}:
        yield MetadataLost(listed(list(others)), f"{sum(others.values())} values that are neither tensors nor plain")


def _tied(wanted: dict[str, Tensor | Refused]) -> dict[str, str]:
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, value in wanted.items():
        if isinstance(value, Tensor) and 0 not in value.shape:
            same = (value.storage.key, value.storage.start, value.offset, value.dtype.name, value.shape, value.stride)
            if first.setdefault(same, name) != name:
                tied[name] = first[same]
    return tied


def listed(names: list[str]) -> str:
    """The first few of some names out of a file, for an event."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(short(name)[1:-1] for name in names[:_SHOWN]) + more


# --------------------------------------------------------------------------------------------- tensors


def lazy(file: TorchFile, name: str, value: Tensor | Refused) -> LazyTensor:
    """A tensor of a file, unread.

    Raises:
        CorruptFile: it leaves its storage.
        UnsupportedFeature: of a kind that is not read.
    """
    path, what = file.mapped.path, f"tensor {short(name)}"
    if isinstance(value, Refused):
        raise UnsupportedFeature(f"{path}: {what}: {value.reason}\n--key chooses another part of the file")
    check_elements(path, name, value.shape)
    info, storage = TensorInfo(name, value.shape, value.dtype), value.storage
    steps = sum((n - 1) * step for n, step in zip(value.shape, value.stride, strict=True))
    # An empty tensor may point anywhere.
    extent = (1 + steps) * value.dtype.type_size if info.n_elements else 0
    start = storage.start_nbytes + value.offset * value.dtype.type_size if extent else 0
    if start + extent > storage.nbytes:
        raise CorruptFile(f"{path}: {what} needs bytes {start} to {start + extent} of a storage of {storage.nbytes}")
    record = file.record(storage)
    source = f"{path}:{storage.key}@{start}"
    if _contiguous(value):
        return LazyTensor(info, _reader(record, info, start), source)
    work, grain = 2 * info.row_nbytes + 8 * len(info.shape), 1
    if isinstance(record, Inflated):  # it is inflated once, and that is when all rows are taken in one go
        _check_expansion(file, extent)
        grain = info.n_rows
    read = _gatherer(record, value, info, start, extent)
    return LazyTensor(info, read, source, work_nbytes=work, grain=grain)


def _contiguous(value: Tensor) -> bool:
    """Whether the elements stand in row-major order without gaps; the stride of an axis of one element is free."""
    expected = 1
    for n, step in zip(reversed(value.shape), reversed(value.stride), strict=True):
        if n != 1 and step != expected:
            return 0 in value.shape
        expected *= n
    return True


def _reader(record: Record, info: TensorInfo, start: int) -> Callable[[int, int], Rows]:
    row, part, what = info.row_nbytes, info.nbytes != record.size, f"tensor {short(info.name)}"

    def read(first: int, last: int) -> Rows:
        if part:  # nobody may ever ask for the rest
            record.check()
        return record.view(start + first * row, (last - first) * row, what).reshape(last - first, row)

    return read


def _gatherer(record: Record, value: Tensor, info: TensorInfo, start: int, extent: int) -> Callable[[int, int], Rows]:
    """Rows of a view whose elements do not stand in order: `extent` bytes from `start` hold them all."""
    size, outer = info.dtype.type_size, info.shape[:-1]
    what = f"tensor {short(info.name)}"
    unit = np.dtype(f"V{size}") if size > 8 else np.dtype(f"u{size}")
    strides = tuple(step * size if n > 1 else 0 for n, step in zip(info.shape, value.stride, strict=True))

    def read(first: int, last: int) -> Rows:
        record.check()
        flat = record.view(start, extent, what).view(unit)
        view = np.lib.stride_tricks.as_strided(flat, info.shape, strides, writeable=False)
        rows = view[np.unravel_index(np.arange(first, last), outer)] if outer else view[None][first:last]
        return np.ascontiguousarray(rows).view(np.uint8).reshape(last - first, info.row_nbytes)

    return read
