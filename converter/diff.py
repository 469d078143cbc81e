"""What differs between two models: metadata, small files, tensors and their values, like a diff.

Names are compared as they are; nothing is taken for a rename. Where one side has Hugging Face names and the other
GGUF's, the first is looked at as the GGUF that it would become, by its architecture's rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, MissingPart, TokenizerError, about
from converter.events import SettingLost
from converter.formats.registry import formats, open_checkpoint
from converter.mapping.recovered import alike, open_model
from converter.mapping.view import view
from converter.metadata import Array, Value
from converter.planning.build import build
from converter.quant.sources import unpacked
from converter.request import PathLike, Request, Source
from converter.storage import slabs
from converter.storage.files import local, regular_size
from converter.storage.slabs import ProgressCallback
from converter.tensors import kernels
from converter.tensors.dtypes import DType
from converter.tensors.nvfp4 import joined
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor, TensorInfo

Kind = Literal["added", "removed", "changed"]
Group = Literal["metadata", "files", "tensors"]


@dataclass(frozen=True)
class Change:
    """One line: what differs under a name, in words (`before`, `after`, `detail`) and as numbers (`facts`)."""

    group: Group
    kind: Kind
    name: str
    before: str = ""
    after: str = ""
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.kind != "changed":
            return f"{self.name}: {self.before or self.after}"
        changed = f"{self.before} -> {self.after}" if self.before != self.after else self.before
        return f"{self.name}: " + "; ".join(part for part in (changed, self.detail) if part)

    def as_dict(self) -> dict[str, Any]:
        """As JSON; texts that are empty are left out."""
        own = {"group": self.group, "kind": self.kind, "name": self.name}
        texts = {"before": self.before, "after": self.after, "detail": self.detail}
        return own | {key: text for key, text in texts.items() if text} | dict(self.facts)


@dataclass(frozen=True)
class Differences:
    """Everything that differs, and how many names of each group were compared.

    `mapped` says that the side with Hugging Face names was looked at as a GGUF; `tensors` are all that were compared,
    as they are before, or else after.
    """

    before: str
    after: str
    changes: tuple[Change, ...]
    compared: Mapping[str, int]
    mapped: bool = False
    seconds: float = 0.0
    tensors: tuple[TensorInfo, ...] = field(default=(), repr=False)

    @property
    def equal(self) -> bool:
        return not self.changes

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = {key: value for key, value in vars(self).items() if key not in ("changes", "tensors")}
        changes = [change.as_dict() for change in self.changes]
        return (
            own
            | {"compared": dict(self.compared), "seconds": round(self.seconds, 3), "equal": self.equal}
            | {"changes": changes}
        )


def diff(
    before: PathLike,
    after: PathLike,
    *,
    before_type: str | None = None,
    after_type: str | None = None,
    before_key: str | None = None,
    after_key: str | None = None,
    raw: bool = False,
    metadata_only: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Differences:
    """Compare two files or folders of any formats.

    Args:
        before, after: what to compare; "added" is what only `after` has.
        before_type, after_type: formats, where content and extension do not tell.
        before_key, after_key: the parts of files that hold several, as of `Source`.
        raw: compare names as they are, whatever the dialects.
        metadata_only: leave the tensors out.
        threads, progress: as for `convert`.

    Raises:
        FormatError, OutputError: one of them cannot be read.
        ArchitectureError: a Hugging Face model cannot be mapped to GGUF names; `raw` does without.
        Cancelled: `progress` returned False.
    """
    started = time.monotonic()
    left, right = Source(before, before_type, key=before_key), Source(after, after_type, key=after_key)
    opener = open_checkpoint if raw else open_model
    with opener(left) as one, opener(right) as other:
        one, other = alike(one, other)
        mapped = not raw and view(one).named and view(other).named and one.dialect != other.dialect
        changes: list[Change] = []
        tensors: tuple[TensorInfo, ...] = ()
        if mapped:
            (one, left_lost), (other, right_lost) = _as_gguf(one), _as_gguf(other)
            changes += [Change("metadata", "removed", f"config.json: {lost.key}", lost.told) for lost in left_lost]
            changes += [Change("metadata", "added", f"config.json: {lost.key}", "", lost.told) for lost in right_lost]
        if not raw:
            one, other = _as_numbers(one, other)
        changes += _metadata(one, other)
        compared = {"metadata": len({*_entries(one), *_entries(other)})}
        if not mapped:
            changes += _files(one, other)
            compared["files"] = len({*one.assets, *other.assets} - {"config.json"})
        if not metadata_only:
            changes += _tensors(one.tensors, other.tensors, threads, progress)
            both = {**other.tensors, **one.tensors}
            compared["tensors"], tensors = len(both), tuple(tensor.info for tensor in both.values())
            one.check()
            other.check()
    return Differences(str(before), str(after), tuple(changes), compared, mapped, time.monotonic() - started, tensors)


def _as_numbers(one: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Weights in codes as numbers, where the other side has numbers or other codes."""
    if one.dialect == other.dialect == "hf" and not one.tensors.keys() == other.tensors.keys():
        return unpacked(one, typed=False), unpacked(other, typed=False)
    if one.dialect == other.dialect == "gguf":
        alike = {
            name
            for name in one.tensors.keys() & other.tensors.keys()
            if one.tensors[name].info.dtype is other.tensors[name].info.dtype
        }
        joint = [each.replace(tensors=joined(each.tensors, alike)) for each in (one, other)]
        return joint[0], joint[1]
    return one, other


def _as_gguf(model: Checkpoint) -> tuple[Checkpoint, list[SettingLost]]:
    """The GGUF that a conversion without options would make of a model with Hugging Face names, never written.

    And what of its settings a GGUF cannot say: there the two differ, whatever the keys are.
    """
    target = formats()["gguf"]
    if model.dialect == target.dialect:
        return model, []
    try:
        with about(model.path):
            try:
                plan = build(model, Path("as.gguf"), target, Request())
            except (TokenizerError, MissingPart):
                plan = build(model, Path("as.gguf"), target, Request(no_tokenizer=True))
    except ArchitectureError as error:
        raise type(error)(f"{error}\n--raw compares names as they are") from error
    return plan.checkpoint, [event for event in plan.report.events if isinstance(event, SettingLost)]


# ------------------------------------------------------------------------------------------------ metadata


@dataclass(frozen=True)
class _Entry:
    """A value of metadata: its type, and the value or (several) the values."""

    type: str
    value: Any
    several: bool = False

    def __str__(self) -> str:
        if self.several:
            return f"{len(self.value):,} of {self.type}"
        return _short(self.value)


def _entries(model: Checkpoint) -> dict[str, _Entry]:
    """GGUF keys, entries of config.json and of a container's free texts, by name."""
    found: dict[str, _Entry] = {}
    for key, entry in model.config.items():
        if isinstance(entry, Value):
            stored = np.float32(entry.value) if entry.type == "f32" else entry.value
            found[key] = _Entry(entry.type, stored)
        elif isinstance(entry, Array):
            found[key] = _Entry(entry.type, entry.values, several=True)
        else:
            found.update(_flat(key, entry))
    return found | {f"metadata: {key}": _Entry("str", text) for key, text in model.metadata.items()}


def _flat(key: str, value: Any) -> Iterator[tuple[str, _Entry]]:
    """An entry of config.json, objects taken apart."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}", inner)
    elif isinstance(value, list):
        yield key, _Entry("list", value, several=True)
    else:
        yield key, _Entry(type(value).__name__, value)


def _metadata(one: Checkpoint, other: Checkpoint) -> Iterator[Change]:
    old, new = _entries(one), _entries(other)
    for key in {**old, **new}:
        if key not in new:
            yield Change("metadata", "removed", key, before=str(old[key]))
        elif key not in old:
            yield Change("metadata", "added", key, after=str(new[key]))
        elif (change := _changed(key, old[key], new[key])) is not None:
            yield change


def _changed(key: str, old: _Entry, new: _Entry) -> Change | None:
    types = "" if old.type == new.type else f"type {old.type} -> {new.type}"
    if old.several and new.several:
        count, first = _compare(old.value, new.value)
        if not count and not types:
            return None
        facts: dict[str, Any] = {"differing": count, "lengths": [len(old.value), len(new.value)]}
        detail = types
        if first is not None:
            at = (_short(side[first]) if first < len(side) else "nothing" for side in (old.value, new.value))
            detail = "; ".join(filter(None, (types, f"{count:,} differ, first entry {first:,}: {' -> '.join(at)}")))
            facts["first"] = first
        return Change("metadata", "changed", key, str(old), str(new), detail, facts)
    if old.several == new.several and _same(old.value, new.value) and not types:
        return None
    return Change("metadata", "changed", key, str(old), str(new), types)


def _compare(old: Any, new: Any) -> tuple[int, int | None]:
    """How many entries of two sequences differ (those that only one has included), and the first that does."""
    shared = min(len(old), len(new))
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        a, b = old[:shared], new[:shared]
        same = (a == b) | ((a != a) & (b != b))  # NaN equals NaN here
        at = np.flatnonzero(~same)
        found, first = len(at), int(at[0]) if len(at) else None
    else:
        differing = [i for i, (a, b) in enumerate(zip(old, new, strict=False)) if not _same(a, b)]
        found, first = len(differing), next(iter(differing), None)
    beyond = max(len(old), len(new)) - shared
    return found + beyond, shared if first is None and beyond else first


def _same(a: Any, b: Any) -> bool:
    """Equality under which NaN equals NaN."""
    return bool(a == b) or bool(a != a and b != b)


def _short(value: Any) -> str:
    # Of an F32, the shortest decimal that is the same.
    text = str(value) if isinstance(value, np.generic) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --------------------------------------------------------------------------------------------------- files

_PIECE = 1 << 20


def _files(one: Checkpoint, other: Checkpoint) -> Iterator[Change]:
    """Small files beside the weights; config.json is compared entry by entry."""
    for name in {**one.assets, **other.assets}:
        old, new = one.assets.get(name), other.assets.get(name)
        if name == "config.json":
            continue
        if new is None and old is not None:
            yield Change("files", "removed", name, before=f"{regular_size(old):,} bytes")
        elif old is None and new is not None:
            yield Change("files", "added", name, after=f"{regular_size(new):,} bytes")
        elif old is not None and new is not None and not _same_file(old, new):
            sizes = [regular_size(path) for path in (old, new)]
            before, after = (f"{size:,} bytes" for size in sizes)
            yield Change("files", "changed", name, before, after, "contents differ", {"sizes": sizes})


def _same_file(old: Path, new: Path) -> bool:
    if regular_size(old) != regular_size(new):
        return False
    with open(local(old), "rb") as a, open(local(new), "rb") as b:
        while piece := a.read(_PIECE):
            if piece != b.read(_PIECE):
                return False
    return True


# ------------------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class Gap:
    """How far the numbers of two tensors are apart. The first element that differs, and its values; -1 for none.

    `max_abs`, `noise` (the sum of squares) and `energy` (that of the values before) are over elements that are finite
    on both sides; `energy` is None where all are equal and nobody has looked. `rows` are those that were compared.
    """

    differing: int = 0
    max_abs: float = 0.0
    noise: float = 0.0
    first: int = -1
    before: Any = None
    after: Any = None
    energy: float | None = None
    rows: tuple[int, int] = (0, 0)

    @classmethod
    def together(cls, gaps: Sequence[Gap]) -> Gap:
        """Of all slabs of a tensor, in order."""
        lead = next((gap for gap in gaps if gap.first >= 0), gaps[0])
        return replace(
            lead,
            differing=sum(gap.differing for gap in gaps),
            max_abs=max(gap.max_abs for gap in gaps),
            noise=math.fsum(gap.noise for gap in gaps),
            energy=math.fsum(gap.energy or 0.0 for gap in gaps),
        )


class _Pair:
    """Two tensors of one shape under one name, compared slab by slab from any thread."""

    def __init__(self, old: LazyTensor, new: LazyTensor) -> None:
        self.old, self.new = old, new
        self.gap = Gap()

    def job(self) -> slabs.Job:
        row = self.old.info.row
        wide = 2 * (4 if _as_floats(self.old.info.dtype) and _as_floats(self.new.info.dtype) else 24) * row
        work = self.old.row_work + self.new.row_work + (0 if self.identical_types else wide)
        return slabs.gathering((self.old, self.new), self._compare, self._done, work)

    @property
    def identical_types(self) -> bool:
        return self.old.info.dtype is self.new.info.dtype

    def _compare(self, start: int, stop: int) -> Gap:
        if self.identical_types and np.array_equal(self.old.rows(start, stop), self.new.rows(start, stop)):
            return Gap(rows=(start, stop))
        return _gap(self.old, self.new, start, stop)

    def _done(self, gaps: list[Gap]) -> None:
        """All slabs; where some differ, the others count for the size of the values, and are looked at for that."""
        if any(gap.differing for gap in gaps):
            gaps = [gap if gap.energy is not None else replace(gap, energy=self._energy(*gap.rows)) for gap in gaps]
        self.gap = Gap.together(gaps)

    def _energy(self, start: int, stop: int) -> float:
        return _gap(self.old, self.old, start, stop).energy or 0.0

    def change(self) -> Change | None:
        """The line for this pair; None where nothing differs."""
        info, gap = self.old.info, self.gap
        if self.identical_types and not gap.differing:
            return None
        rmse = float(np.sqrt(gap.noise / max(1, info.n_elements)))
        facts: dict[str, Any] = {"differing": gap.differing, "elements": info.n_elements}
        if not gap.differing:
            return _tensor_change(self.old, self.new, "values equal", facts)
        row, column = divmod(gap.first, max(1, info.row))
        texts = [str(value) for value in (gap.before, gap.after)]
        facts |= {"max_abs": gap.max_abs, "rmse": rmse, "first": gap.first, "first_values": texts}
        facts["relative"] = math.sqrt(gap.noise / gap.energy) if gap.energy else None
        detail = (
            f"{gap.differing:,} of {info.n_elements:,} values differ, max abs {gap.max_abs:.4g}, rmse {rmse:.4g}, "
            f"first at row {row:,}, column {column:,}: {texts[0]} -> {texts[1]}"
        )
        return _tensor_change(self.old, self.new, detail, facts)


def _tensors(
    old: Mapping[str, LazyTensor],
    new: Mapping[str, LazyTensor],
    threads: int | None,
    progress: ProgressCallback | None,
) -> Iterator[Change]:
    pairs: dict[str, _Pair] = {}
    for name, tensor in old.items():
        partner = new.get(name)
        if partner is not None and partner.info.shape == tensor.info.shape and tensor.info.n_elements:
            pairs[name] = _Pair(tensor, partner)
    slabs.run([pair.job() for pair in pairs.values()], threads, progress)
    for name in {**old, **new}:
        if name not in new:
            yield Change("tensors", "removed", name, before=_described(old[name]))
        elif name not in old:
            yield Change("tensors", "added", name, after=_described(new[name]))
        elif name in pairs:
            if (change := pairs[name].change()) is not None:
                yield change
        elif _described(old[name]) != _described(new[name]):
            yield _tensor_change(old[name], new[name], "", {})


def _described(tensor: LazyTensor) -> str:
    return f"{tensor.info.dtype} {'x'.join(map(str, tensor.info.shape)) or 'scalar'}"


def _tensor_change(old: LazyTensor, new: LazyTensor, detail: str, facts: Mapping[str, Any]) -> Change:
    return Change("tensors", "changed", old.name, _described(old), _described(new), detail, facts)


def _as_floats(dtype: DType) -> bool:
    """Whether F32 holds every value of this type."""
    return dtype.floating and dtype.name != "F64"


def _gap(old: LazyTensor, new: LazyTensor, start: int, stop: int) -> Gap:
    """What is between rows [start, stop) of two tensors."""
    if _as_floats(old.info.dtype) and _as_floats(new.info.dtype):
        a, b = (values(tensor, start, stop).reshape(-1) for tensor in (old, new))
        found = kernels.compare(a, b)
        max_abs, noise, energy = found.max_abs, found.noise, found.energy
        if not found.differing_values:
            return Gap(energy=energy, rows=(start, stop))
    else:
        a, b = (_wide(tensor, start, stop) for tensor in (old, new))
        with np.errstate(all="ignore"):
            error = np.abs(a - b)
            finite = np.isfinite(error)
            error = np.where(finite, error, 0)
            max_abs, noise = float(error.max(initial=0)), float(np.square(error).sum())
            energy = float(np.square(np.abs(np.where(finite, a, 0))).sum())
    different = (a != b) & ~((a != a) & (b != b))
    count = int(np.count_nonzero(different))
    if not count:
        return Gap(energy=energy, rows=(start, stop))
    at = int(np.argmax(different))
    return Gap(count, max_abs, noise, start * old.info.row + at, a[at], b[at], energy, (start, stop))


def _wide(tensor: LazyTensor, start: int, stop: int) -> NDArray[Any]:
    """Numbers of any type in one that holds them; integers beyond 2**53 lose their last bits."""
    dtype = tensor.info.dtype
    if dtype.quantized and dtype.numpy is None:
        return values(tensor, start, stop).reshape(-1).astype(np.float64)
    stored = np.ascontiguousarray(tensor.rows(start, stop)).view(dtype.numpy or np.uint8).reshape(-1)
    return stored.astype(np.complex128 if stored.dtype.kind == "c" else np.float64)


# -------------------------------------------------------------------------------------------------- groups


def grouped(changes: Iterable[Change], key: Callable[[Change], str]) -> dict[str, list[Change]]:
    """Changes by a key, in order of first appearance."""
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(key(change), []).append(change)
    return found


def family(change: Change) -> str:
    """What a change is counted under: a key's first part, a tensor's name with its numbers left out."""
    if change.group == "tensors":
        return ".".join("*" if part.isdecimal() else part for part in change.name.split("."))
    if change.group == "files":
        return "files"
    head = change.name.partition(".")[0]
    return f"metadata: {head}.*" if "." in change.name else f"metadata: {change.name}"
