"""Which of a training run's tensors are the model's, and what they are called without the wrappers of the training.

Source: torch.distributed.fsdp and torch.distributed.algorithms (`clean_tensor_name`), torch.compile, DDP, Lightning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from converter.errors import CorruptFile, UsageError, short
from converter.events import Dropped, Event, Note
from converter.formats.torch.tree import ALL, MODEL_KEYS, listed

T = TypeVar("T")
# Steps of a name, wherever they stand in it.
WITHIN = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
# Before every name. A second `model.` is the wrapper's, the first could be transformers'.
BEFORE = ("module.", "_forward_module.")
MODEL, HEAD = "model.", "lm_head."
# Where training programs keep the states of their optimizers, beside a model that has no name of its own.
OPTIMIZERS = frozenset(("optimizer", "optimizers", "optim", "optimizer_states", "optimizer_state", "optimizer_0"))

Steps = tuple[str, ...]


def chosen(path: Path, steps: Mapping[str, Steps], key: str | None) -> tuple[dict[str, str], list[Event]]:
    """The tensors that are asked for (without a key the model's), by what they are called below it; and what is left.

    `steps` are the keys that lead to a tensor through nested dictionaries, by the tensor's own name.

    Raises:
        UsageError: nothing is called `key`.
    """
    if key is None:
        part = _model(steps.values())
        wanted = {
            ".".join(way[len(part) :]): name
            for name, way in steps.items()
            if way[: len(part)] == part and not (not part and way[0] in OPTIMIZERS)
        }
        where = ".".join(part)
    else:
        where = "" if key == ALL else key
        wanted = {name[len(key) + 1 :]: name for name in steps if name.startswith(key + ".")} if where else {}
        wanted |= {name: name for name in steps if not where or name == key}
        if not wanted:
            known = ", ".join(short(top)[1:-1] for top in list(dict.fromkeys(way[0] for way in steps.values()))[:8])
            raise UsageError(f"--key {key}: no tensor of {path.name} is called so (there are: {known})")
    return wanted, list(_left(steps, set(wanted.values()), where))


def _model(ways: Iterable[Steps]) -> Steps:
    """The steps to the part that holds the model, as `tree` finds it; through dictionaries that are all there is."""
    part: Steps = ()
    below = list(ways)
    while True:
        tops = dict.fromkeys(way[len(part)] for way in below if len(way) > len(part) + 1)
        key = next((each for each in MODEL_KEYS if each in tops), None)
        if key is None and len(tops) == 1 and all(len(way) > len(part) + 1 for way in below):
            key = next(iter(tops))
        if key is None:
            return part
        part = (*part, key)
        below = [way for way in below if len(way) > len(part) and way[: len(part)] == part]


def _left(steps: Mapping[str, Steps], taken: set[str], where: str) -> Iterator[Event]:
    rest = Counter(way[0] for name, way in steps.items() if name not in taken)
    beside = f"beside {where!r}" if where else "that are not the model's"
    for top, count in list(rest.items())[:3]:
        yield Dropped(short(top)[1:-1], f"{count} tensors {beside}; --key {short(top)[1:-1]} takes them")
    if len(rest) > 3:
        yield Dropped(listed(list(rest)[3:]), f"more tensors {beside}")


def unwrapped(path: Path, tensors: Mapping[str, T]) -> tuple[dict[str, T], list[Event]]:
    """The tensors without the wrappers in their names.

    Raises:
        CorruptFile: two are then called the same.
    """
    names, gone = {name: name for name in tensors}, []
    for wrapper in WITHIN:
        clean = {name: "".join(_without(now, wrapper)) for name, now in names.items()}
        gone += [wrapper] * (clean != names)
        names = clean
    while wrapper := _shared(names.values()):
        names = {name: now.removeprefix(wrapper) for name, now in names.items()}
        gone.append(wrapper)
    result: dict[str, T] = {}
    for name, now in names.items():
        if now in result:
            raise CorruptFile(f"{path}: two tensors are called {short(now)}, without the wrappers in their names")
        result[now] = tensors[name]
    said = ", ".join(each.removesuffix(".") for each in dict.fromkeys(gone))
    return result, [Note(f"names without the wrappers of the training: {said}")] if gone else []


def _without(name: str, wrapper: str) -> Iterator[str]:
    """The parts of a name between wrappers, each of which is a whole step."""
    start = 0
    while (at := name.find(wrapper, start)) >= 0:
        whole = at == 0 or name[at - 1] == "."
        yield name[start : at if whole else at + len(wrapper)]
        start = at + len(wrapper)
    yield name[start:]


def _shared(names: Iterable[str]) -> str:
    """A wrapper before every name; "" where there is none."""
    names = list(names)
    for wrapper in BEFORE:
        if names and all(name.startswith(wrapper) and name != wrapper for name in names):
            return wrapper
    inner = (MODEL + MODEL, MODEL + HEAD)
    if all(name.startswith(MODEL) for name in names) and any(name.startswith(inner) for name in names):
        return MODEL
    return ""
