"""Uploads in parts as every store has them: begun, sent part by part, completed or aborted, and until then listed.

What all stores do alike is `multipart.py`; what each calls it is a `Store` of a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from converter.errors import OutputError
from converter.remote.objects import StoredObject

AT_WORK = timedelta(days=1)  # an upload that got nothing for so long is nobody's any more


@dataclass(frozen=True)
class Part:
    """A part that is there.

    Attributes:
        nbytes: its size.
        md5: of its bytes, in hex; another text where the store does not say it.
        name: what the upload is completed by.
    """

    nbytes: int
    md5: str
    name: str


@dataclass(frozen=True)
class Begun:
    """An upload that was begun, and neither completed nor aborted.

    Attributes:
        object: what it would become.
        id: what the store calls it.
        parts: what is there of it, by number; they are counted from 1.
        last: when something came of it last.
        until: when the store forgets it by itself, where nothing else makes it; None where it can be aborted.
    """

    object: StoredObject
    id: str
    parts: Mapping[int, Part]
    last: datetime
    until: datetime | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def name(self) -> str:
        return self.object.name

    @property
    def stays(self) -> bool:
        """Whether it is not for us to abort: its run may be at work still, or there is no way."""
        return self.until is not None or datetime.now(UTC) - self.last < AT_WORK

    @property
    def why(self) -> str:
        """Why it stays."""
        if self.until is not None:
            return f"stays: the store itself removes it, on {self.until:%Y-%m-%d}"
        return "may be at work: it got something within a day"

    def as_dict(self) -> dict[str, Any]:
        """As JSON, as that of a `Leftover` (storage/leftovers.py)."""
        return {"path": self.name, "bytes": self.nbytes, "running": self.stays, "unlinked_from": None}


def is_below(key: str, folder: str) -> bool:
    """Whether an object's name is of a folder; "" is the whole bucket."""
    return not folder or key.startswith(f"{folder}/")


class Ended(OutputError):
    """An upload is no more: completed or aborted."""

    @classmethod
    def of(cls, name: str) -> Ended:
        return cls(f"{name}: somebody else completed or aborted the upload; nothing was written, run again")


class Store(Protocol):
    """What a kind of store is asked, each thing once.

    All raise Ended where there is no such upload any more, Transient where the answer may be another one a moment
    later, OutputError where the store refuses, and MissingDependency where the package is not there that asks it.
    """

    def begun(self, object: StoredObject, *, below: bool) -> list[Begun]:
        """Uploads that were begun to an object; with `below` also those to objects whose names follow its and a slash,
        and to all of the bucket where it has no name."""

    def begin(self, object: StoredObject) -> str:
        """Begin an upload; what it is called."""

    def send(self, object: StoredObject, upload: str, number: int, data: bytes, md5: str) -> str:
        """Send a part, which the store compares with its MD5; what the upload is completed by."""

    def complete(self, object: StoredObject, upload: str, parts: Mapping[int, str], *, replace: bool) -> str | None:
        """Make the object of parts, by number what `send` or a `Part` calls them; its ETag.

        Without `replace`, a store that knows conditions raises OutputExists where an object has come there.
        """

    def abort(self, object: StoredObject, upload: str) -> None:
        """Have the store forget an upload, where there is a way."""
