"""Typed events: nothing is lost silently.

Each event is a value that prints as one line, goes into the JSON report, and (when it is a
loss) fails the run under `--strict`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Self, TypeVar

from converter.errors import LossyError
from converter.text import are, counted, human_bytes

SHOWN = 3  # names in a line, and events of a kind that have a line each


@dataclass(frozen=True)
class Event:
    """Something the user should know. `loss` says whether `--strict` refuses it."""

    loss: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        return type(self).__name__

    def as_dict(self) -> dict[str, object]:
        """The event as JSON: its kind, its text, whether it is a loss, and its own fields."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"kind": self.kind, "loss": self.loss, "message": str(self), **own}

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        """What many events of this kind say, in few lines for people; by default a line each."""
        return [str(event) for event in events]


E = TypeVar("E", bound=Event)


def _grouped(events: Iterable[E], key: Callable[[E], object]) -> list[list[E]]:
    groups: dict[object, list[E]] = {}
    for event in events:
        groups.setdefault(key(event), []).append(event)
    return list(groups.values())


def few(names: Sequence[str]) -> str:
    """`a, b, c and 5 more`."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _counts(words: Iterable[str]) -> str:
    """`30 Q4_K, 5 Q6_K`, what there is most of first."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def told(events: Iterable[Event]) -> Iterator[tuple[bool, str]]:
    """Events for people: whether it is a loss, and a line; of a kind of which there are many, few lines for all."""
    for group in _grouped(events, lambda event: event.kind):
        lines = list(map(str, group)) if len(group) <= SHOWN else type(group[0]).together(group)
        lines = list(dict.fromkeys(lines))
        yield from ((group[0].loss, line) for line in lines[: 2 * SHOWN])
        if len(lines) > 2 * SHOWN:
            yield group[0].loss, f"... and {len(lines) - 2 * SHOWN} more of the kind (--json lists all)"


@dataclass(frozen=True)
class Note(Event):
    """A choice that was made for the user, worth one line."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class TypeFallback(Event):
    """A tensor whose rows do not divide into the wanted type's blocks got another type."""

    tensor: str
    wanted: str
    used: str
    row: int
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.tensor}: rows of {self.row} do not fit {self.wanted}, {self.used} used instead"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        kinds = _counts(f"{event.used} for {event.wanted}" for event in events)
        return [f"rows of {len(events)} tensors do not fit the wanted type: {kinds} (--no-fallback fails instead)"]


@dataclass(frozen=True)
class Dropped(Event):
    """A tensor or a file of the source that has no place in the target."""

    name: str
    reason: str
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.name}: dropped ({self.reason})"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        groups = _grouped(events, lambda event: event.reason)
        return [f"{few([event.name for event in group])}: dropped ({group[0].reason})" for group in groups]


@dataclass(frozen=True)
class StayBehind(Event):
    """Small files of a model that a file of weights alone does not take along; the source still has them.

    `folder` is the output that would.
    """

    names: tuple[str, ...]
    folder: str

    def __str__(self) -> str:
        verb = "stays" if len(self.names) == 1 else "stay"
        return f"{few(self.names)} {verb} behind ({self.folder} writes a whole folder)"


@dataclass(frozen=True)
class Ignored(Event):
    """A tensor the architecture drops on purpose: the runtime computes it or has no use for it."""

    name: str

    def __str__(self) -> str:
        return f"{self.name}: left out, the runtime does without it"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        return [f"{few([event.name for event in events])}: left out, the runtime does without them"]


@dataclass(frozen=True)
class Requantized(Event):
    """A tensor that was already quantized is decoded and encoded again."""

    tensor: str
    source: str
    target: str
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.tensor}: {self.source} decoded and encoded again as {self.target}"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        kinds = _counts(f"{event.source} as {event.target}" for event in events)
        return [f"{len(events)} tensors decoded and encoded again: {kinds} (of the original model, less would be lost)"]


@dataclass(frozen=True)
class Merged(Event):
    """An adapter became part of a model; `ranks` are the lowest and the highest of its matrices, where it has such."""

    adapter: str
    tensors: int
    ranks: tuple[int, int] | None
    strength: float

    def __str__(self) -> str:
        low, high = self.ranks or (0, 0)
        rank = f", rank {low}" + (f" to {high}" if high != low else "") if self.ranks else ""
        strength = f", strength {self.strength:g}" if self.strength != 1 else ""
        return f"{self.adapter}: merged into {counted(self.tensors, 'tensor')}{rank}{strength}"


@dataclass(frozen=True)
class Decoded(Event):
    """A quantized tensor goes to a format of plain numbers; its values are the same, its packed bytes are gone.

    `nbytes` is what it takes as `target`, where --dtype could choose another type.
    """

    tensor: str
    source: str
    target: str
    nbytes: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.tensor}: {self.source} decoded to {self.target}"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        return [cls._of_target(group) for group in _grouped(events, lambda event: event.target)]

    @staticmethod
    def _of_target(events: Sequence[Decoded]) -> str:
        nbytes, target = sum(event.nbytes for event in events), events[0].target
        size = f" ({human_bytes(nbytes)}; --dtype bf16 halves it)" if nbytes else ""
        kinds = _counts(event.source for event in events)
        return f"{counted(len(events), 'tensor')} decoded to {target}: {kinds}{size}"


@dataclass(frozen=True)
class StoredLoss(Event):
    """Codes that a source stores were kept in a type that does not hold all of them exactly."""

    tensor: str
    how: str
    what: str
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.tensor}: {self.how}, {self.what}"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        groups = _grouped(events, lambda event: (event.how, event.what))
        return [f"{few([each.tensor for each in group])}: {group[0].how}, {group[0].what}" for group in groups]


@dataclass(frozen=True)
class ScalesRounded(Event):
    """Codes that a source stores were kept, but the type's scales are F16, which does not hold all of the source's."""

    tensor: str
    type: str
    count: int
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.tensor}: {self.count} scales were rounded, {self.type} has them in F16"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        count = sum(event.count for event in events)
        return [f"{count:,} scales of {len(events)} tensors were rounded, {events[0].type} has them in F16"]


@dataclass(frozen=True)
class NamesKept(Event):
    """Tensors could not be given the names that the target's readers expect."""

    reason: str
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"tensor names and shapes kept as in the source ({self.reason})"


@dataclass(frozen=True)
class NamesUnknown(Event):
    """Tensors of a graph keep their names, because not all of those that the model has were found again."""

    architecture: str
    reason: str

    def __str__(self) -> str:
        return f"tensors keep the graph's names, those of {self.architecture} were not found again: {self.reason}"


@dataclass(frozen=True)
class NoImportance(Event):
    """An importance matrix is given, but a tensor whose type would follow it is encoded without."""

    tensor: str
    type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor}: encoded as {self.type} without importance, there is {self.reason}"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        kinds = _counts(event.type for event in events)
        names = few([event.tensor for event in events])
        return [f"{len(events)} tensors encoded without importance: {kinds} ({names})"]


@dataclass(frozen=True)
class NoFeedback(Event):
    """A calibration is given, but a tensor is encoded without error feedback."""

    tensor: str
    type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor}: encoded as {self.type} without error feedback, {self.reason}"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        groups = _grouped(events, lambda event: (event.type, event.reason))
        return [
            f"{few([each.tensor for each in group])}: encoded as {group[0].type} without error feedback, "
            f"{group[0].reason}"
            for group in groups
        ]


@dataclass(frozen=True)
class ImportanceNeeded(Event):
    """A plan was made as with an importance matrix, which its type cannot do without, and none was given."""

    tensor: str
    type: str

    def __str__(self) -> str:
        return f"{self.tensor}: {self.type} needs an importance matrix; to convert, pass --imatrix FILE"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        kinds = _counts(event.type for event in events)
        return [f"{len(events)} tensors need an importance matrix: {kinds}; to convert, pass --imatrix FILE"]


@dataclass(frozen=True)
class ReadAs(Event):
    """--arch names another architecture than config.json does."""

    asked: str
    own: str
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"read as {self.asked}, as asked, though config.json says {self.own}"


@dataclass(frozen=True)
class NotFinite(Event):
    """NaN or infinity in a source tensor."""

    tensor: str
    count: int
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.tensor}: {are(self.count, 'value')} NaN or infinite"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        count, names = sum(event.count for event in events), few([event.tensor for event in events])
        return [f"{count:,} values of {len(events)} tensors are NaN or infinite: {names}"]


@dataclass(frozen=True)
class Overflow(Event):
    """A cast that turned finite numbers into infinities."""

    tensor: str
    target: str
    count: int
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.tensor}: {are(self.count, 'value')} too large for {self.target}"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        count, names = sum(event.count for event in events), few([event.tensor for event in events])
        return [f"{count:,} values of {len(events)} tensors are too large for {events[0].target}: {names}"]


@dataclass(frozen=True)
class BlocksOverflow(Event):
    """Finite numbers that blocks of a quantized type do not hold, because no scale of theirs can be so large."""

    tensor: str
    target: str
    count: int
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        blocks = f"1 block of {self.target} does" if self.count == 1 else f"{self.count:,} blocks of {self.target} do"
        return f"{self.tensor}: {blocks} not hold numbers that are so large"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        count, names = sum(event.count for event in events), few([event.tensor for event in events])
        return [f"{count:,} blocks of {len(events)} tensors do not hold their numbers, which are too large: {names}"]


@dataclass(frozen=True)
class VocabularyPadded(Event):
    """The tokenizer has fewer tokens than the embedding has rows."""

    tokens: int
    rows: int

    def __str__(self) -> str:
        return f"tokenizer has {self.tokens} tokens, embedding {self.rows} rows: padded with [PADn]"


@dataclass(frozen=True)
class MetadataLost(Event):
    """A metadata key the target cannot hold."""

    key: str
    reason: str
    loss: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"metadata {self.key}: dropped ({self.reason})"

    @classmethod
    def together(cls, events: Sequence[Self]) -> list[str]:
        groups = _grouped(events, lambda event: event.reason)
        return [f"metadata {few([event.key for event in group])}: dropped ({group[0].reason})" for group in groups]


@dataclass(frozen=True)
class SettingLost(Event):
    """A setting of config.json that changes what the model computes, and that the target has no word for."""

    key: str
    value: str
    architecture: str
    loss: ClassVar[bool] = True

    @property
    def told(self) -> str:
        return (
            f"is {self.value}, which changes what the model computes, and a GGUF of {self.architecture} cannot say it"
        )

    def __str__(self) -> str:
        return f"config.json: {self.key} {self.told}"


@dataclass
class Report:
    """The events of one run, in the order they came; under `strict` a loss raises at once.

    Not bound to one thread: `list.append` is atomic, and order between workers carries no meaning.
    """

    strict: bool = False
    events: list[Event] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Record `event`.

        Raises:
            LossyError: the event is a loss and the report is strict.
        """
        self.events.append(event)
        if self.strict and event.loss:
            raise LossyError(f"{event}\nrefused under --strict")

    def extend(self, events: Iterator[Event] | list[Event]) -> None:
        for event in events:
            self.add(event)

    def as_json(self) -> list[dict[str, object]]:
        return [event.as_dict() for event in self.events]
