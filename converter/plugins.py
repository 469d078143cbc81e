"""What other packages add through entry points: formats, architectures. A broken one is a warning, never a failure."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind = TypeVar("Kind")


class BrokenPlugin(RuntimeWarning):
    """A third-party package that could not be loaded, or that failed."""


def plugins(group: str, kind: type[Kind]) -> Iterator[Kind]:
    """What the entry points of a group hold, each a `kind` or a tuple of them, in order of their names."""
    from importlib import metadata  # slow to import, and most runs need no plugin

    for point in sorted(metadata.entry_points(group=group), key=lambda point: point.name):
        yield from _load(point, kind)


def _load(point: EntryPoint, kind: type[Kind]) -> tuple[Kind, ...]:
    what = kind.__name__
    try:
        value = point.load()
        loaded: tuple[Kind, ...] = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(each, kind) for each in loaded):
            raise TypeError(f"{point.value} is no {what} nor a tuple of them")
    except (Exception, SystemExit) as error:
        message = f"{what.lower()} plugin {point.name!r} is broken and left out: {error!r}"
        warnings.warn(message, BrokenPlugin, stacklevel=4)
        return ()
    return loaded
